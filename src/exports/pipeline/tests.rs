//! Tests of the whole reader: forms, damage, archives, order and limits.

use std::io::{Cursor, Write};

use super::*;
use crate::exports::input::StopReading;
use flate2::Compression;
use flate2::write::GzEncoder;

/// Hands out `step` bytes at a time, so that everything is cut at every place.
struct Slow(Cursor<Vec<u8>>, usize);

impl Read for Slow {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let step = self.1.min(buffer.len());
        self.0.read(&mut buffer[..step])
    }
}

/// Says the id.
struct Ids;

impl Make for Ids {
    type Made = String;
    fn make(&self, _: &ReadEvent, event: &Event<'_>, _: &mut Vec<u8>) -> String {
        event.identity().map_or("?", |identity| identity.id).to_owned()
    }
}

/// The results in words: the id of each event, `bad` for each stretch without one, `problem` for an error.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    what: Vec<String>,
    forms: Vec<Form>,
    whys: Vec<String>,
    bad: Vec<Vec<u8>>,
    places: Vec<String>,
}

impl Seen {
    fn words(&self) -> String {
        self.what.join(" ")
    }
}

fn read_inputs(inputs: Vec<Input<'_>>) -> Seen {
    let mut seen = Seen::default();
    let mut end = None;
    read(inputs, &Ids, &mut |item| {
        match item {
            Item::Event(read, id, _) => {
                end = None;
                seen.what.push(id);
                seen.forms.push(read.form);
                seen.places.push(read.place.to_string());
            }
            Item::Bad(bad) => {
                // Adjacent stretches count as one.
                let touches = end.replace(bad.place.offset + bad.bytes.len() as u64) == Some(bad.place.offset);
                if !touches || bad.place.row.is_some() {
                    seen.what.push("bad".into());
                    seen.bad.push(Vec::new());
                    seen.whys.push(bad.why.clone());
                    seen.places.push(bad.place.to_string());
                }
                seen.bad.last_mut().unwrap().extend_from_slice(&bad.bytes);
            }
            Item::Notice(kind) => {
                end = None;
                seen.what.push(kind.to_owned());
            }
            Item::Problem(error) => {
                seen.what.push("problem".into());
                seen.whys.push(error.to_string());
            }
            Item::Truncated(place) => seen.whys.push(format!("{place}: truncated")),
            Item::Note(note) => seen.whys.push(note),
            Item::Pause => {}
        }
        Ok(())
    })
    .unwrap();
    seen
}

fn read_in_steps(text: &[u8], step: usize) -> Seen {
    read_inputs(vec![Input::Stream("f".into(), Box::new(Slow(Cursor::new(text.to_vec()), step)))])
}

/// The result, checked to be the same for every chunking of the text.
#[track_caller]
fn read_text(text: &[u8]) -> Seen {
    let seen = read_in_steps(text, usize::MAX);
    for step in [1, 7] {
        assert_eq!(read_in_steps(text, step), seen, "in steps of {step}: {}", String::from_utf8_lossy(text));
    }
    seen
}

fn event(id: &str) -> String {
    format!(
        r#"{{"CreationTime":"2026-03-02T10:15:00","Id":"{id}","Operation":"New-InboxRule","RecordType":1,"UserId":"alex@contoso.example","Workload":"Exchange","Parameters":[{{"Name":"Name","Value":"x, \"y\""}}]}}"#
    )
}

fn text_of(json: &str) -> String {
    serde_json::to_string(json).unwrap()
}

fn quoted(cell: &str) -> String {
    format!("\"{}\"", cell.replace('"', "\"\""))
}

/// Events `a` and `b` in a form, and the form.
fn forms() -> Vec<(Form, String)> {
    let (a, b) = (event("a"), event("b"));
    let both = |wrap: &dyn Fn(&str) -> String| format!("{}\n{}\n", wrap(&a), wrap(&b));
    let list = |wrap: &dyn Fn(&str) -> String| format!("[{},\n{}]", wrap(&a), wrap(&b));
    let outer = r#""RecordType":"ExchangeAdmin","CreationDate":"2026-03-02T10:15:00Z","UserIds":"alex@contoso.example","Operations":"New-InboxRule","Identity":"a""#;
    let graph = |e: &str| {
        format!(
            r#"{{"id":"x","createdDateTime":"2026-03-02T10:15:00Z","auditLogRecordType":"exchangeAdmin","operation":"New-InboxRule","auditData":{e}}}"#
        )
    };
    let page = |open: &str, close: &str, wrap: &dyn Fn(&str) -> String| {
        format!("{open}[{}]{close}\n{open}[{}]{close}\n", wrap(&a), wrap(&b))
    };
    let csv = |head: &str, cells: &dyn Fn(&str) -> String| format!("{head}\n{}\n{}\n", cells(&a), cells(&b));
    vec![
        (Form::Feed, both(&str::to_owned)),
        (Form::Feed, list(&str::to_owned)),
        (Form::UnifiedAuditLog, both(&|e| format!(r#"{{{outer},"AuditData":{e}}}"#))),
        (Form::UnifiedAuditLog, list(&|e| format!(r#"{{{outer},"AuditData":{}}}"#, text_of(e)))),
        (
            Form::Graph,
            page(
                r#"{"@odata.context":"https://g/$metadata","value":"#,
                r#","@odata.nextLink":"https://g?a=1"}"#,
                &graph,
            ),
        ),
        (Form::Graph, both(&graph)),
        (Form::Defender, both(&|e| format!(r#"{{"Timestamp":"t","ActionType":"o","RawEventData":{e}}}"#))),
        (
            Form::Defender,
            page(r#"{"Schema":[{"Name":"x"}],"Results":"#, "}", &|e| format!(r#"{{"RawEventData":{}}}"#, text_of(e))),
        ),
        (
            Form::Elastic,
            page(r#"{"took":1,"hits":{"total":{"value":1},"hits":"#, "}}", &|e| {
                format!(
                    r#"{{"_index":"i","_source":{{"event":{{"original":{}}},"o365":{{"audit":{{}}}}}}}}"#,
                    text_of(e)
                )
            }),
        ),
        (Form::Elastic, both(&|e| format!(r#"{{"@timestamp":"t","event.original":{}}}"#, text_of(e)))),
        (Form::Splunk, both(&|e| format!(r#"{{"preview":false,"result":{{"_time":"t","_raw":{}}}}}"#, text_of(e)))),
        (Form::Splunk, both(&|e| format!(r#"{{"_raw":{},"Id":"z","Operation":"q","CreationTime":"t"}}"#, text_of(e)))),
        (
            Form::Native,
            both(&|e| {
                format!(
                    r#"{{"source":"m365","category":"email","event_type":"m365.exchange.x","severity":"low","raw":{e}}}"#
                )
            }),
        ),
        (
            Form::Native,
            both(&|e| {
                format!(r#"{{"source":"m365","event_type":"m365.exchange.x","severity":"low","raw":{}}}"#, text_of(e))
            }),
        ),
        (
            Form::Ecs,
            both(&|e| {
                format!(
                    r#"{{"ecs":{{"version":"8"}},"event":{{"original":{}}},"m365":{{"audit":{{"category":"email"}}}}}}"#,
                    text_of(e)
                )
            }),
        ),
        (Form::Ocsf, both(&|e| format!(r#"{{"class_uid":6003,"category_uid":6,"raw_data":{}}}"#, text_of(e)))),
        (Form::LogLine, both(&|e| format!("<13>Mar  2 10:15:00 host m365[7]: {e}"))),
        (Form::LogLine, both(&|e| format!("2026-03-02T10:15:00.1Z stdout F {e}"))),
        (
            Form::LogLine,
            both(&|e| {
                format!("2026-03-02T10:15:00Z stdout P {}\n2026-03-02T10:15:00Z stdout F {}", &e[..50], &e[50..])
            }),
        ),
        (Form::LogLine, both(&|e| format!("2026-03-02T10:15:00+00:00\tm365.audit\t{e}"))),
        (Form::LogLine, both(&|e| format!(r#"{{"log":{},"stream":"stdout","time":"t"}}"#, text_of(&format!("{e}\n"))))),
        (
            Form::LogLine,
            both(&|e| {
                let part = |text: &str| format!(r#"{{"log":{},"stream":"stdout","time":"t"}}"#, text_of(text));
                format!("{}\n{}", part(&e[..50]), part(&format!("{}\n", &e[50..])))
            }),
        ),
        (Form::Wrapped, both(&|e| format!(r#"{{"time":"t","tags":{{"host":"h"}},"message":{}}}"#, text_of(e)))),
        (
            Form::AuditCsv,
            csv("RecordId,CreationDate,RecordType,Operation,UserId,AuditData,AssociatedAdminUnits", &|e| {
                format!("r,2026-03-02T10:15:00Z,1,New-InboxRule,alex@contoso.example,{},", quoted(e))
            }),
        ),
        (Form::AuditCsv, csv("sep=;\r\n\"CreationDate\";\"AuditData\"", &|e| format!("x;{}\r", quoted(e)))),
        (Form::AuditCsv, csv("#TYPE System.Object\n\"AuditData\",\"Identity\"", &|e| format!("{},\"1\"", quoted(e)))),
        (Form::AuditCsv, csv("CreationDate\tAuditData", &|e| format!("x\t{e}"))),
        (Form::GraphCsv, csv("id,createdDateTime,auditData", &|e| format!("1,2,{}", quoted(e)))),
        (Form::DefenderCsv, csv("Timestamp,ActionType,RawEventData", &|e| format!("1,2,{}", quoted(e)))),
        (Form::SplunkCsv, csv("\"_raw\",\"_time\"", &|e| format!("{},1", quoted(e)))),
        (Form::SplunkCsv, csv("_time,_raw", &|e| format!("1,{}", quoted(&format!("Mar  2 10:15:00 host m365: {e}"))))),
    ]
}

#[test]
fn every_form_gives_its_events_and_its_name() {
    for (form, text) in forms() {
        let seen = read_text(text.as_bytes());
        assert_eq!((seen.words(), &seen.whys), ("a b".to_owned(), &Vec::new()), "{form}: {text}");
        assert_eq!(seen.forms, [form, form], "{text}");
    }
}

/// X3: in every form, one byte changed, removed or added, or a truncation, loses at most one event.
#[test]
fn a_damaged_byte_costs_one_event_at_most_in_any_form() {
    for (form, text) in forms() {
        // A third event shows that the reader finds its way back.
        let more = text.replace("\"a\"", "\"c\"").replace("\"\"a\"\"", "\"\"c\"\"").replace("\\\"a\\\"", "\\\"c\\\"");
        let whole = match text.as_bytes().first() {
            _ if text.contains("AuditData\n")
                || text.contains("AuditData,")
                || text.contains("auditData\n")
                || text.contains("RawEventData\n")
                || text.contains("_raw\"") && !text.starts_with('{')
                || text.contains("_raw\n") =>
            {
                let rows = more.split_once("\n").map_or("", |(_, rows)| rows);
                format!("{text}{rows}")
            }
            _ => format!("{text}\n{more}"),
        };
        let sound = read_in_steps(whole.as_bytes(), usize::MAX);
        let step = (whole.len() / 60).max(1);
        for at in (0..whole.len()).step_by(step) {
            if !whole.is_char_boundary(at) {
                continue;
            }
            let (before, after) = whole.as_bytes().split_at(at);
            let cut = after.get(1..).unwrap_or_default();
            for (n, damaged) in [
                [before, cut].concat(),
                [before, b"x", cut].concat(),
                [before, b"\"", after].concat(),
                [before, b"{", cut].concat(),
            ]
            .iter()
            .enumerate()
            {
                let seen = read_in_steps(damaged, usize::MAX);
                let lost = sound.what.iter().filter(|id| *id != "bad").count() as i64
                    - seen.what.iter().filter(|id| ["a", "b", "c"].contains(&id.as_str())).count() as i64;
                assert!(lost <= 1, "{form}: {n} at {at}: {seen:?}\n{}", String::from_utf8_lossy(damaged));
                let told = seen.what.iter().filter(|word| *word == "bad").count();
                assert!(told <= 3, "{form}: {n} at {at}: {seen:?}\n{}", String::from_utf8_lossy(damaged));
            }
        }
    }
}

#[test]
fn what_is_no_event_is_told_with_its_place_and_kept_whole() {
    let (a, b) = (event("a"), event("b"));
    let row = format!("r1,2026-03-02T10:15:00Z,Set-Mailbox,alex@contoso.example,{}", quoted(&a).split_at(60).0);
    for (text, words, place, bytes) in [
        (format!("{a}\n{{\"x\":1}}\n{b}"), "a bad b", "f: line 2", "{\"x\":1}".to_owned()),
        (
            format!("RecordId,CreationDate,Operation,UserId,AuditData\n{row}\n1,2,3,4,{}\n", quoted(&b)),
            "bad b",
            "f: line 2, row 1",
            row.clone(),
        ),
        (
            format!("{{\"AuditData\":\"{{\\\"Id\",\"Identity\":\"r\"}}\n{b}"),
            "bad b",
            "f: line 1",
            "{\"AuditData\":\"{\\\"Id\",\"Identity\":\"r\"}".to_owned(),
        ),
        (
            "{\"source\":\"m365\",\"event_type\":\"m365.x.y\",\"severity\":\"low\"}".to_owned(),
            "bad",
            "f: line 1",
            String::new(),
        ),
    ] {
        let seen = read_text(text.as_bytes());
        assert_eq!(seen.words(), words, "{text}");
        let at = seen.what.iter().position(|word| word == "bad").unwrap();
        assert_eq!(seen.places[at], place);
        if !bytes.is_empty() {
            assert_eq!(String::from_utf8_lossy(&seen.bad[0]), bytes);
        }
    }
}

#[test]
fn a_page_of_any_length_is_read_element_by_element() {
    let records: Vec<String> =
        (0..3000).map(|n| format!(r#"{{"id":"x","auditData":{}}}"#, event(&n.to_string()))).collect();
    let page = format!(r#"{{"@odata.context":"c","value":[{}],"@odata.nextLink":"n"}}"#, records.join(","));
    let seen = read_in_steps(page.repeat(2).as_bytes(), usize::MAX);
    let ids: Vec<String> = (0..3000).chain(0..3000).map(|n: u32| n.to_string()).collect();
    assert_eq!(seen.what, ids);
    // A truncated one yields the events before the cut.
    let seen = read_in_steps(&page.as_bytes()[..page.len() / 2], usize::MAX);
    assert!(seen.what.len() > 1400 && seen.what.iter().filter(|id| *id == "bad").count() == 1);
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zipped(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in files {
        writer.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

#[test]
fn archives_are_told_by_their_first_bytes_and_unpacked_at_any_nesting() {
    let line = |id: &str| format!("{}\n", event(id)).into_bytes();
    let zip = zipped(&[("a.json", &line("a")), ("__MACOSX/x", b"?"), ("b.json.gz", &gzip(&line("b")))]);
    for (packed, expected) in [
        (gzip(&line("a")), "a"),
        ([gzip(&line("a")), gzip(&line("b"))].concat(), "a b"),
        (zstd::bulk::compress(&line("a"), 1).unwrap(), "a"),
        (zip.clone(), "a b"),
        (gzip(&zip), "a b"),
        (zipped(&[]), ""),
        (b"7z\xbc\xaf\x27\x1c..".to_vec(), "problem"),
    ] {
        let seen = read_text(&packed);
        assert_eq!(seen.words(), expected, "{seen:?}");
    }
    assert_eq!(read_text(&zip).places, ["f:a.json: line 1", "f:b.json.gz: line 1"]);
}

#[test]
fn of_a_cut_archive_comes_out_what_can_be_read_and_then_an_error_that_names_it() {
    let lines: Vec<u8> = (0..4000).flat_map(|n| format!("{}\n", event(&n.to_string())).into_bytes()).collect();
    let zip = zipped(&[("first.json", &lines), ("second.json", &lines)]);
    for packed in [gzip(&lines), zstd::bulk::compress(&lines, 1).unwrap(), zip] {
        let cut = &packed[..packed.len() * 9 / 10];
        let seen = read_text(cut);
        assert!(seen.what.iter().filter(|id| *id == "0").count() >= 1, "{:?}", &seen.what);
        assert_eq!(seen.what.last().unwrap(), "problem");
        assert!(seen.whys.last().unwrap().starts_with("`f"), "{:?}", seen.whys);
    }
}

#[test]
fn texts_in_any_encoding_are_read() {
    let text = format!("CreationDate,AuditData\nx,{}\n", quoted(&event("a").replace("alex", "josé")));
    let wide = |order: fn(u16) -> [u8; 2], mark: &str| -> Vec<u8> {
        format!("{mark}{text}").encode_utf16().flat_map(order).collect()
    };
    let latin: Vec<u8> = text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect();
    for bytes in [
        wide(u16::to_le_bytes, "\u{feff}"),
        wide(u16::to_be_bytes, "\u{feff}"),
        wide(u16::to_le_bytes, ""),
        wide(u16::to_be_bytes, ""),
        format!("\u{feff}{text}").into_bytes(),
    ] {
        let seen = read_text(&bytes);
        assert_eq!((seen.words().as_str(), seen.whys.len()), ("a", 0));
    }
    let seen = read_text(&latin);
    assert_eq!((seen.words().as_str(), &*seen.whys[0]), ("a", "`f` is not UTF-8 and was read as Windows-1252"));
}

#[test]
fn whoever_has_enough_ends_the_reading() {
    let text = format!("{}\n", event("a")).repeat(20_000);
    let mut count = 0;
    let ended = read(vec![Input::Stream("f".into(), Box::new(text.as_bytes()))], &Ids, &mut |item| {
        if matches!(item, Item::Event(..)) {
            count += 1;
        }
        if count == 10 { Err(StopReading) } else { Ok(()) }
    });
    assert_eq!((ended, count), (Err(StopReading), 10));
}
