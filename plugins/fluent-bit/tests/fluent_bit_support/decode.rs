//! Decodes the host's buffers with a MessagePack reader that shares no code with the encoder.

use serde_json::{Map, Number, Value};

/// The records of a buffer of whole entries.
pub fn decode(buffer: &[u8]) -> Vec<Value> {
    let mut rest = buffer;
    let mut records = Vec::new();
    while !rest.is_empty() {
        let entry = rmpv::decode::read_value(&mut rest).expect("a buffer of whole entries");
        let [time, body] = entry.as_array().expect("an entry is an array").as_slice() else { panic!("{entry}") };
        let (kind, bytes) = time.as_ext().expect("the time is an extension");
        assert_eq!((kind, bytes.len()), (0, 8));
        let record = to_json(body);
        let seconds = i64::from(u32::from_be_bytes(bytes[..4].try_into().unwrap()));
        let stamp: m365_audit::model::Timestamp = record["timestamp"].as_str().unwrap().parse().unwrap();
        assert_eq!(seconds, stamp.as_second().max(0), "{record}");
        records.push(record);
    }
    records
}

fn to_json(value: &rmpv::Value) -> Value {
    match value {
        rmpv::Value::Nil => Value::Null,
        rmpv::Value::Boolean(b) => (*b).into(),
        rmpv::Value::Integer(n) => n.as_i64().map(Number::from).or(n.as_u64().map(Number::from)).unwrap().into(),
        rmpv::Value::F64(n) => (*n).into(),
        rmpv::Value::String(s) => s.as_str().expect("texts are UTF-8").into(),
        rmpv::Value::Array(items) => items.iter().map(to_json).collect(),
        rmpv::Value::Map(members) => {
            let members = members.iter().map(|(key, value)| (key.as_str().unwrap().to_owned(), to_json(value)));
            let object: Map<String, Value> = members.clone().collect();
            assert_eq!(object.len(), members.len(), "a key came twice");
            Value::Object(object)
        }
        other => panic!("{other} is no JSON"),
    }
}
