//! Measures the encoding of native records for agents that do not take JSON lines: MessagePack for Fluent Bit and
//! Forward, protobuf for OTLP. The bytes counted are those of the records, without compression and transport.

mod events;
/// The plugin is a library to load and not to link, so its encoder is compiled in here.
#[allow(dead_code, reason = "what its tests have, which a bench does not run")]
#[path = "../plugins/fluent-bit/src/encode.rs"]
mod fluent_bit;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use m365_audit::config::Format;
use m365_audit::hosts::{fluent_forward, otlp};
use m365_audit::model::Timestamp;

fn main() {
    divan::main();
}

#[divan::bench(args = ["fluent bit", "forward", "otlp"])]
fn encode(bencher: Bencher<'_, '_>, encoder: &str) {
    let batch = events::batch(Format::Native);
    let bencher = bencher.counter(ItemsCount::new(batch.len())).counter(BytesCount::new(batch.ndjson().len()));
    match encoder {
        "fluent bit" => {
            let mut out = Vec::new();
            bencher.bench_local(|| {
                out.clear();
                for record in batch.records() {
                    fluent_bit::entry(&mut out, record.time, record.json).expect("an object");
                }
                out.len()
            });
        }
        "forward" => bencher.bench_local(|| fluent_forward::encode(&batch).expect("objects").len()),
        _ => bencher.bench_local(|| otlp::encode(&batch, Timestamp::UNIX_EPOCH).expect("objects").len()),
    }
}
