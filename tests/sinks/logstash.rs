//! Logstash's part as its source has it (`logstash-input-http` 4.1.13, `logstash-codec-json` 3.1), with the settings of
//! the shipped pipeline: what becomes of our requests.
//!
//! Logstash itself is not here. What matters of it is small: which codec a content type gets, which fields the input
//! sets on each event, and that the codec takes whatever fails behind it for bad JSON.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Map, Value, json};

use crate::agents::example;

/// What the pipeline says of the `http` input.
#[derive(Debug, Default)]
struct Input {
    ecs: bool,
    codec_ecs: bool,
    target: Option<Vec<String>>,
    /// `application/json` gets a codec of its own, made without settings.
    own_codec_for_json: bool,
    host_field: Vec<String>,
    headers_field: Vec<String>,
}

/// `[a][b]` and `a`.
fn reference(text: &str) -> Vec<String> {
    let text = text.trim_matches('"');
    text.split(['[', ']']).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

impl Input {
    /// Logstash 8 and later, with nothing set.
    fn by_default() -> Self {
        Self {
            ecs: true,
            codec_ecs: true,
            target: None,
            own_codec_for_json: true,
            host_field: reference("[host][ip]"),
            headers_field: reference("[@metadata][input][http][request][headers]"),
        }
    }

    fn of(pipeline: &str) -> Self {
        let lines = || pipeline.lines().map(str::trim).filter(|line| !line.starts_with('#'));
        let value =
            |key: &str| lines().find_map(|line| line.strip_prefix(key)?.trim().strip_prefix("=>").map(str::trim));
        let codec = value("codec").unwrap_or_default();
        let mut input = Self::by_default();
        input.ecs = value("ecs_compatibility") != Some("disabled");
        if !input.ecs {
            (input.host_field, input.headers_field) = (reference("host"), reference("headers"));
        }
        input.codec_ecs = !codec.contains("ecs_compatibility => disabled");
        input.target = codec.split_once("target => ").map(|(_, rest)| reference(rest.trim_end_matches(['}', ' '])));
        input.own_codec_for_json = value("additional_codecs") != Some("{}");
        for (key, field) in [
            ("remote_host_target_field", &mut input.host_field),
            ("request_headers_target_field", &mut input.headers_field),
        ] {
            if let Some(value) = value(key) {
                *field = reference(value);
            }
        }
        input
    }

    /// `decode_body`: the events that come into the queue. The answer is 200 in any case.
    fn decode(&self, content_type: &str, body: &str) -> Vec<Value> {
        let own = self.own_codec_for_json && content_type == "application/json";
        let (target, codec_ecs) = if own { (&None, true) } else { (&self.target, self.codec_ecs) };
        let mut queue = Vec::new();
        if self.parse_json(body, target, codec_ecs, &mut queue).is_err() {
            let mut event = json!({"message": body, "tags": ["_jsonparsefailure"]});
            let _ = self.push_decoded(&mut event, &mut queue);
        }
        queue
    }

    fn parse_json(
        &self,
        body: &str,
        target: &Option<Vec<String>>,
        codec_ecs: bool,
        queue: &mut Vec<Value>,
    ) -> Result<(), String> {
        let decoded: Value = serde_json::from_str(body).map_err(|error| error.to_string())?;
        let records = match decoded {
            Value::Array(records) => records,
            one => vec![one],
        };
        let alone = records.len() == 1;
        for record in records {
            let mut event = Value::Object(Map::new());
            match target {
                Some(target) => set(&mut event, target, record)?,
                None => event = record,
            }
            if alone && codec_ecs && get(&event, &reference("[event][original]")).is_none() {
                set(&mut event, &reference("[event][original]"), body.into())?;
            }
            self.push_decoded(&mut event, queue)?;
        }
        Ok(())
    }

    fn push_decoded(&self, event: &mut Value, queue: &mut Vec<Value>) -> Result<(), String> {
        if self.ecs {
            for (field, value) in [
                ("[http][version]", json!("HTTP/1.1")),
                ("[user_agent][original]", json!("m365-audit")),
                ("[url][domain]", json!("127.0.0.1")),
                ("[url][port]", json!(8080)),
                ("[http][method]", json!("POST")),
                ("[url][path]", json!("/")),
                ("[http][request][body][bytes]", json!("1")),
                ("[http][request][mime_type]", json!("application/json")),
            ] {
                set(event, &reference(field), value)?;
            }
        }
        set(event, &self.headers_field, json!({"http_host": "127.0.0.1:8080"}))?;
        set(event, &self.host_field, json!("127.0.0.1"))?;
        queue.push(event.clone());
        Ok(())
    }
}

/// `Event#set`: makes the maps on the way; where something else stands there it fails.
fn set(event: &mut Value, path: &[String], value: Value) -> Result<(), String> {
    let (last, way) = path.split_last().expect("a field");
    let mut place = event;
    for part in way {
        let Value::Object(map) = place else { return Err(format!("could not set [{part}]")) };
        place = map.entry(part).or_insert_with(|| json!({}));
    }
    let Value::Object(map) = place else { return Err(format!("could not set [{last}]")) };
    map.insert(last.clone(), value);
    Ok(())
}

fn get<'a>(event: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(event, |place, part| place.get(part))
}

/// Records as the program makes them of the events that the simulated tenant publishes, and some with a user agent.
pub fn records(format: &str) -> Vec<Value> {
    let mut events = String::new();
    for name in ["azuread", "exchange", "general", "sharepoint"] {
        let file = format!("{}/src/sim/events/{name}.ndjson", env!("CARGO_MANIFEST_DIR"));
        events.push_str(std::fs::read_to_string(file).unwrap().trim_end());
        events.push('\n');
    }
    for n in 0..20 {
        events.push_str(&format!(
            "{{\"Id\":\"agent-{n}\",\"CreationTime\":\"2026-05-03T10:00:00\",\"Operation\":\"FileDownloaded\",\"RecordType\":6,\"Workload\":\"SharePoint\",\
             \"UserId\":\"alex@contoso.example\",\"UserAgent\":\"Mozilla/5.0 ({n})\",\"ObjectId\":\"https://contoso.example/sites/a/{n}.docx\",\"ClientIP\":\"192.0.2.7\"}}\n"
        ));
    }
    let mut child = Command::new(env!("CARGO_BIN_EXE_m365-audit"))
        .args(["normalize", "--format", format, "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(events.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The requests of the `http` sink with `encoding = "json"`, each an array.
fn requests(records: &[Value]) -> Vec<String> {
    records.chunks(50).map(|chunk| Value::Array(chunk.to_vec()).to_string()).collect()
}

#[test]
fn with_the_shipped_pipeline_no_record_is_lost_and_none_is_changed() {
    let pipeline = example("logstash/pipeline.conf");
    let shipped = Input::of(&pipeline);
    assert_eq!(shipped.target.as_deref(), Some(&["m365".to_owned()][..]));
    let for_ecs = Input::of(&pipeline.replace(" target => \"[m365]\"", ""));
    assert_eq!(for_ecs.target, None);
    for (format, input) in [("native", &shipped), ("ecs", &shipped), ("ecs", &for_ecs), ("native", &for_ecs)] {
        let records = records(format);
        assert!(records.len() > 50, "{format}: {} records", records.len());
        let mut bodies = requests(&records);
        // A request with one record as well.
        bodies.push(Value::Array(vec![records[0].clone()]).to_string());
        let mut got: Vec<Value> = bodies.iter().flat_map(|body| input.decode("application/json", body)).collect();
        for event in &mut got {
            event.as_object_mut().unwrap().remove("@metadata");
        }
        let expected = records.iter().chain([&records[0]]);
        let expected: Vec<Value> = expected
            .map(|record| if input.target.is_some() { json!({"m365": record}) } else { record.clone() })
            .collect();
        assert!(
            got == expected,
            "{format} with {input:?}: {} of {} events are as they were sent",
            got.iter().filter(|event| expected.contains(event)).count(),
            expected.len()
        );
    }
}

#[test]
fn without_its_settings_records_are_lost_or_changed_as_the_page_says() {
    let bare = Input::by_default();
    let native = records("native");
    let with_agent = native.iter().filter(|record| record["user_agent"].is_string()).count();
    assert!(with_agent >= 20, "{with_agent}");
    let got: Vec<Value> = requests(&native).iter().flat_map(|body| bare.decode("application/json", body)).collect();
    let failed = got.iter().filter(|event| event["tags"] == json!(["_jsonparsefailure"])).count();
    assert!(
        failed >= 1 && got.len() - failed < native.len(),
        "{failed} requests failed, {} events of {}",
        got.len(),
        native.len()
    );
    // ECS records come through and have our own request's user agent in the place of the person's.
    let ecs = records("ecs");
    let agents = |events: &[Value]| {
        events
            .iter()
            .filter(|event| event["user_agent"]["original"].as_str().is_some_and(|a| a.starts_with("Mozilla")))
            .count()
    };
    let got: Vec<Value> = requests(&ecs).iter().flat_map(|body| bare.decode("application/json", body)).collect();
    assert!(agents(&ecs) >= 20 && agents(&got) == 0, "{} before, {} after", agents(&ecs), agents(&got));
    // With `additional_codecs` left as it is, the target is not used.
    let forgot = Input { own_codec_for_json: true, ..Input::of(&example("logstash/pipeline.conf")) };
    let got = forgot.decode("application/json", &requests(&native)[0]);
    assert!(got.iter().all(|event| event.get("m365").is_none()));
}
