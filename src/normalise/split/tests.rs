use super::*;
use crate::normalise::{Event, Members};
use proptest::prelude::*;
use serde_json::value::RawValue;

/// All pieces and the ending of `body`, cut into chunks of the lengths given (cycled; the rest when empty).
fn split(body: &[u8], chunk_lens: &[usize], limit: usize) -> (Vec<Piece>, Ending) {
    split_with(body, chunk_lens, limit, Splitter::next)
}

fn split_with(
    body: &[u8],
    chunk_lens: &[usize],
    limit: usize,
    mut next: impl FnMut(&mut Splitter) -> Option<Piece>,
) -> (Vec<Piece>, Ending) {
    let mut splitter = Splitter::with_limit(limit);
    let mut pieces = Vec::new();
    let mut lens = chunk_lens.iter().copied().cycle();
    let mut rest = Bytes::copy_from_slice(body);
    while !rest.is_empty() {
        let n = lens.next().unwrap_or(rest.len()).clamp(1, rest.len());
        splitter.push(rest.split_to(n));
        pieces.extend(std::iter::from_fn(|| next(&mut splitter)));
    }
    assert_eq!(splitter.offset(), body.len() as u64);
    let ending = splitter.finish();
    pieces.extend(std::iter::from_fn(|| next(&mut splitter)));
    (pieces, ending)
}

fn elements(pieces: &[Piece]) -> Vec<String> {
    pieces
        .iter()
        .filter_map(|p| match p {
            Piece::Element { bytes, .. } => Some(String::from_utf8_lossy(bytes).into_owned()),
            Piece::Damaged { .. } => None,
        })
        .collect()
}

/// `why@offset:bytes` of every damage, neighbouring pieces joined.
fn damage(pieces: &[Piece]) -> Vec<(Damage, u64, Vec<u8>)> {
    let mut out: Vec<(Damage, u64, Vec<u8>)> = Vec::new();
    for piece in pieces {
        if let Piece::Damaged { bytes, offset, why } = piece {
            match out.last_mut() {
                Some((last, at, held)) if last == why && !bytes.is_empty() && *at + held.len() as u64 == *offset => {
                    held.extend_from_slice(bytes);
                }
                _ => out.push((*why, *offset, bytes.to_vec())),
            }
        }
    }
    out
}

/// Every byte of `body` is in one piece, in order, or a separator.
fn account(body: &[u8], pieces: &[Piece]) {
    let mut at = 0usize;
    let separators = |gap: &[u8]| {
        assert!(
            gap.iter().all(|b| is_blank(*b) || b",[]\xEF\xBB\xBF".contains(b)),
            "lost: {:?}",
            String::from_utf8_lossy(gap)
        );
    };
    for piece in pieces {
        let (Piece::Element { bytes, offset, .. } | Piece::Damaged { bytes, offset, .. }) = piece;
        let offset = *offset as usize;
        separators(&body[at..offset]);
        assert_eq!(&body[offset..offset + bytes.len()], &bytes[..]);
        at = offset + bytes.len();
    }
    separators(&body[at..]);
}

#[test]
fn good_elements_come_out_around_damage() {
    use Damage::*;
    #[rustfmt::skip]
    type Case = (&'static str, &'static [&'static str], &'static [(Damage, &'static str)]);
    let table: &[Case] = &[
        (r#"[]"#, &[], &[]),
        (r#" [ 1 , "a]" ,{"a":[]}, null ] "#, &["1", r#""a]""#, r#"{"a":[]}"#, "null"], &[]),
        (r#"[{"a":1}{"a":2}]"#, &[r#"{"a":1}"#, r#"{"a":2}"#], &[(MissingComma, "")]),
        (r#"[{"a":1},,{"a":2},]"#, &[r#"{"a":1}"#, r#"{"a":2}"#], &[(MissingElement, ""), (MissingElement, "")]),
        (
            r#"[{"a":0},{"a":1}}, xyz, {"a":2}, 1x, nul]"#,
            &[r#"{"a":0}"#, r#"{"a":1}"#, r#"{"a":2}"#],
            &[(StrayToken, "}"), (StrayToken, "xyz, "), (StrayToken, "1x, nul]")],
        ),
        // The nested array holds objects, which do not begin as an event does.
        (
            r#"[{"Id":0},{"Id":9},{"Id":1,"p":[{"n":1},{"n":2}},{"n":3}],"x":0},{"Id":2}]"#,
            &[r#"{"Id":0}"#, r#"{"Id":9}"#, r#"{"Id":2}"#],
            &[(Unbalanced, r#"{"Id":1,"p":[{"n":1},{"n":2}},{"n":3}],"x":0},"#)],
        ),
        // A lost quote turns strings inside out; JSON inside a string does not match.
        (
            r#"[{"Id":0},{"Id":1},{"Id":2,"o":"x,"p":"{\"Id\":7}"},{"Id":3}]"#,
            &[r#"{"Id":0}"#, r#"{"Id":1}"#, r#"{"Id":3}"#],
            &[(Unbalanced, r#"{"Id":2,"o":"x,"p":"{\"Id\":7}"},"#)],
        ),
        // Where elements are no events, a nested object that begins as they do is taken for one, but its `]` does not
        // end the array.
        (
            r#"[{"Id":0},{"Id":1}},{"Id":2,"p":[}{"Id":3}],"x":0},{"Id":4}]"#,
            &[r#"{"Id":0}"#, r#"{"Id":1}"#, r#"{"Id":3}"#, r#"{"Id":4}"#],
            &[(StrayToken, "}"), (Unbalanced, r#"{"Id":2,"p":[}"#), (AfterEnd, r#","x":0},"#)],
        ),
        // Where they are events, it is not. Nor is what is the value of a member.
        (
            r#"[{"Id":1,"Operation":"o"},{"Id":2,"p":[}{"Id":3}],"x":0,"e":{"Id":5,"Operation":"o"}},{"Id":4,"Operation":"o"}]"#,
            &[r#"{"Id":1,"Operation":"o"}"#, r#"{"Id":4,"Operation":"o"}"#],
            &[(Unbalanced, r#"{"Id":2,"p":[}{"Id":3}],"x":0,"e":{"Id":5,"Operation":"o"}},"#)],
        ),
        // Bytes lost in the middle, with the end of a list among them: the list would swallow all that follows.
        (
            r#"[{"Id":1,"L":[1,{"Id":2,"Operation":"o"},{"Id":3,"Operation":"o"}]"#,
            &[r#"{"Id":2,"Operation":"o"}"#, r#"{"Id":3,"Operation":"o"}"#],
            &[(Cut, r#"{"Id":1,"L":[1,"#)],
        ),
        // A list that is an element stays one, but for a list of events.
        (r#"[[{"a":1},{"b":2}],{"c":3}]"#, &[r#"[{"a":1},{"b":2}]"#, r#"{"c":3}"#], &[]),
        (r#"[[{"a":1},{"b":2]]"#, &[], &[(Unbalanced, r#"[{"a":1},{"b":2]]"#)]),
        (
            r#"[ [ {"Id":1,"Operation":"o"},{"b":2}]]"#,
            &[r#"{"Id":1,"Operation":"o"}"#, r#"{"b":2}"#],
            &[(StrayToken, "[ "), (AfterEnd, "]")],
        ),
        (r#"[1] [2]"#, &["1"], &[(AfterEnd, "[2]")]),
    ];
    for (body, good, bad) in table {
        for chunks in [&[][..], &[1], &[3, 2]] {
            let (pieces, _) = split(body.as_bytes(), chunks, 1000);
            account(body.as_bytes(), &pieces);
            assert_eq!(elements(&pieces), *good, "{body}");
            let found = damage(&pieces);
            let found: Vec<(Damage, &str)> =
                found.iter().map(|(why, _, bytes)| (*why, std::str::from_utf8(bytes).unwrap())).collect();
            assert_eq!(found, *bad, "{body}");
        }
    }
}

#[test]
fn endings_tell_what_the_body_was() {
    let head = |text: &'static str| Bytes::from_static(text.as_bytes());
    let table = [
        ("", Ending::Empty),
        (" \r\n", Ending::Empty),
        ("\u{feff}", Ending::Empty),
        ("\u{feff} [ ] ", Ending::Complete),
        (" null\n", Ending::Null),
        ("nullx", Ending::NotAnArray { head: head("nullx") }),
        ("{\"error\":1}", Ending::NotAnArray { head: head("{\"error\":1}") }),
        ("[1] x ", Ending::TrailingData { head: head("x "), offset: 4 }),
        ("[{\"a\":1", Ending::Cut),
        ("[", Ending::Cut),
    ];
    for (body, ending) in table {
        for chunks in [&[][..], &[1], &[2]] {
            assert_eq!(split(body.as_bytes(), chunks, 1000).1, ending, "{body:?}");
        }
    }
    assert_eq!(split(b"\xEF\xBBx", &[], 9).1, Ending::NotAnArray { head: Bytes::from_static(b"\xEF\xBBx") });
    assert_eq!(split(b"\xEF\xBB", &[1], 9).1, Ending::NotAnArray { head: Bytes::from_static(b"\xEF\xBB") });
}

#[test]
fn events_in_a_member_of_an_object_around_them_are_found() {
    let event =
        |n: usize| format!(r#"{{"Id":"{n}","RecordType":1,"CreationTime":"t","Operation":"o","In":{{"Id":1}}}}"#);
    let (first, second) = (event(1), event(2));
    for (begin, end) in [
        (r#"{"value":["#, "]}"),
        ("\u{feff} { \"@odata.context\": \"x\", \"value\" : [ ", " ] } "),
        (r#"{"error":{"code":1},"value":["#, r#"],"next":{"a":1}}"#),
    ] {
        let body = format!("{begin}{first},{second}{end}");
        for chunks in [&[][..], &[1], &[7], &[40, 3]] {
            let (pieces, _) = split(body.as_bytes(), chunks, 1000);
            assert_eq!(elements(&pieces), [first.as_str(), second.as_str()], "{body} {chunks:?}");
        }
    }
}

#[test]
fn a_null_with_a_long_tail_is_not_null() {
    let body = [b"null".to_vec(), vec![b' '; 2 * HEAD_BYTES_MAX], b"x".to_vec()].concat();
    assert!(matches!(split(&body, &[100], 9).1, Ending::NotAnArray { .. }));
}

#[test]
fn an_element_over_the_limit_streams_as_damage_and_the_next_is_whole() {
    let body = format!(r#"[{{"Id":"{}"}},{{"Id":2}},3]"#, "x".repeat(500));
    for chunks in [&[][..], &[1], &[40], &[64, 1]] {
        let (pieces, ending) = split(body.as_bytes(), chunks, 64);
        account(body.as_bytes(), &pieces);
        assert_eq!(elements(&pieces), [r#"{"Id":2}"#, "3"]);
        assert_eq!(ending, Ending::Complete);
        let longest = chunks.iter().copied().max().unwrap_or(body.len()).max(64);
        for piece in &pieces {
            let (Piece::Element { bytes, .. } | Piece::Damaged { bytes, .. }) = piece;
            assert!(bytes.len() <= longest);
        }
    }
}

#[test]
fn an_element_inside_one_chunk_is_not_copied() {
    let chunk = Bytes::from_static(br#"[{"Id":1},{"Id":2}]"#);
    let mut splitter = Splitter::new();
    splitter.push(chunk.clone());
    let Some(Piece::Element { bytes, offset: 1, read: false }) = splitter.next() else { panic!() };
    assert_eq!(bytes.as_ptr(), chunk.slice(1..).as_ptr());
}

#[test]
fn depth_is_no_danger() {
    let body = ["[".repeat(300_000), "{}".into(), "]".repeat(300_000)].concat();
    let (pieces, ending) = split(body.as_bytes(), &[4096], ELEMENT_BYTES_MAX);
    assert_eq!((pieces.len(), ending), (1, Ending::Complete));
}

fn blank() -> impl Strategy<Value = String> {
    prop_oneof![4 => Just(String::new()), 1 => "[ \t\r\n]{0,3}"]
}

/// A JSON value as text, with arbitrary white space between tokens.
fn json() -> impl Strategy<Value = String> {
    let string = prop_oneof![
        any::<String>().prop_map(|s| serde_json::to_string(&s).unwrap()),
        "[\\\\\"{}\\[\\],:]{0,12}".prop_map(|s| serde_json::to_string(&s).unwrap()),
    ];
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|b| b.to_string()),
        any::<i64>().prop_map(|n| n.to_string()),
        (-1e300..1e300f64).prop_map(|n| format!("{n:e}")),
        string.clone(),
    ];
    leaf.prop_recursive(4, 40, 6, move |inner| {
        prop_oneof![
            prop::collection::vec((blank(), inner.clone(), blank()), 0..6).prop_map(|items| {
                let items: Vec<String> = items.into_iter().map(|(a, v, b)| format!("{a}{v}{b}")).collect();
                format!("[{}]", items.join(","))
            }),
            prop::collection::vec((blank(), string.clone(), blank(), inner, blank()), 0..6).prop_map(|members| {
                let members: Vec<String> =
                    members.into_iter().map(|(a, k, b, v, c)| format!("{a}{k}{b}:{b}{v}{c}")).collect();
                format!("{{{}}}", members.join(","))
            }),
        ]
    })
}

fn array() -> impl Strategy<Value = String> {
    (any::<bool>(), blank(), prop::collection::vec((blank(), json(), blank()), 0..8), blank()).prop_map(
        |(bom, before, items, after)| {
            let items: Vec<String> = items.into_iter().map(|(a, v, b)| format!("{a}{v}{b}")).collect();
            format!("{}{before}[{}]{after}", if bom { "\u{feff}" } else { "" }, items.join(","))
        },
    )
}

/// Bytes that look enough like a body to reach every state.
fn soup() -> impl Strategy<Value = Vec<u8>> {
    let token = prop_oneof![
        4 => prop::sample::select(vec![
            "{", "}", "[", "]", ",", ":", "\"", "\\", " ", "\n", "a", "1", "-", "true", "null", r#"{"Id":1}"#, r#"{"Id":"#,
            r#""x""#, r#"},{"Id":"#, "[{", "}]", "\u{feff}",
        ]).prop_map(|t| t.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..4),
    ];
    (any::<bool>(), prop::collection::vec(token, 0..60)).prop_map(|(array, tokens)| {
        let mut body = tokens.concat();
        if array {
            body.insert(0, b'[');
        }
        body
    })
}

fn chunkings() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1usize..40, 0..6)
}

proptest! {
    #[test]
    fn elements_are_those_serde_json_finds_in_any_chunking(body in array(), chunks in chunkings()) {
        let plain = body.trim_start_matches('\u{feff}');
        let wanted: Vec<&RawValue> = serde_json::from_str(plain).unwrap();
        let wanted: Vec<&str> = wanted.iter().map(|v| v.get()).collect();
        let (pieces, ending) = split(body.as_bytes(), &chunks, ELEMENT_BYTES_MAX);
        prop_assert_eq!(ending, Ending::Complete);
        prop_assert_eq!(damage(&pieces), vec![]);
        prop_assert_eq!(elements(&pieces), wanted);
    }

    #[test]
    fn pieces_are_the_same_when_elements_are_read_on_the_way(
        body in prop_oneof![soup(), array().prop_map(String::into_bytes)],
        chunks in chunkings(),
        limit in prop_oneof![Just(ELEMENT_BYTES_MAX), 1usize..100],
    ) {
        let mut members = Members::default();
        let mut events = Vec::new();
        let read = split_with(&body, &chunks, limit, |splitter| {
            let piece = splitter.next_read(|bytes| members.read(bytes))?;
            if let Piece::Element { bytes, read: true, .. } = &piece {
                let told = |event: Event<'_>| format!("{event:?} {:?}", (event.identity(), event.text()));
                events.push((Event::of(bytes, &members).map(told), Event::parse(bytes).map(told)));
            }
            Some(piece)
        });
        for (on_the_way, after) in events {
            prop_assert_eq!(on_the_way, after);
        }
        let unread = |(pieces, ending): (Vec<Piece>, Ending)| {
            let unread = |piece| match piece {
                Piece::Element { bytes, offset, .. } => Piece::Element { bytes, offset, read: false },
                damaged => damaged,
            };
            (pieces.into_iter().map(unread).collect::<Vec<_>>(), ending)
        };
        prop_assert_eq!(unread(read), split(&body, &chunks, limit));
    }

    #[test]
    fn any_bytes_are_accounted_for_in_any_chunking(body in soup(), chunks in chunkings(), limit in 1usize..100) {
        let (whole, ending) = split(&body, &[], ELEMENT_BYTES_MAX);
        let (parts, ending_of_parts) = split(&body, &chunks, ELEMENT_BYTES_MAX);
        prop_assert_eq!(elements(&whole), elements(&parts));
        prop_assert_eq!(damage(&whole), damage(&parts));
        prop_assert_eq!(&ending, &ending_of_parts);
        let (limited, _) = split(&body, &chunks, limit);
        if !matches!(ending, Ending::NotAnArray { .. } | Ending::Null) {
            account(&body, &whole);
            account(&body, &parts);
            account(&body, &limited);
        }
    }

    #[test]
    fn a_cut_body_yields_the_elements_complete_before_the_cut(body in array(), chunks in chunkings()) {
        let (whole, _) = split(body.as_bytes(), &[], ELEMENT_BYTES_MAX);
        for cut in 0..body.len() {
            let (pieces, ending) = split(&body.as_bytes()[..cut], &chunks, ELEMENT_BYTES_MAX);
            let complete: Vec<Piece> = whole.iter().filter(|p| {
                let (Piece::Element { bytes, offset, .. } | Piece::Damaged { bytes, offset, .. }) = p;
                let end = *offset as usize + bytes.len();
                // Only a delimiter shows that a number is over, and only what follows a string that it is no key.
                let shown_by = match bytes.first() {
                    Some(b'{' | b'[') => 0,
                    Some(b'"') => blank_len(&body.as_bytes()[end..]) + 1,
                    _ => 1,
                };
                end + shown_by <= cut
            }).cloned().collect();
            let found: Vec<Piece> = pieces.iter().filter(|p| matches!(p, Piece::Element { .. })).cloned().collect();
            prop_assert_eq!(found, complete);
            let closed = body.trim_end().len() <= cut;
            prop_assert_eq!(closed, ending == Ending::Complete);
        }
    }
}

/// What a body of events is worth after damage: elements that are events of the body, and how many records would be made
/// of the rest: one for each stretch of damage, and one for each other element.
fn worth<'a>(pieces: &[Piece], events: &'a [String]) -> (Vec<&'a str>, usize) {
    let (mut found, mut about, mut end) = (Vec::new(), 0, u64::MAX);
    for piece in pieces {
        match piece {
            Piece::Element { bytes, .. } => match events.iter().find(|event| event.as_bytes() == &bytes[..]) {
                Some(event) => found.push(event.as_str()),
                None => about += 1,
            },
            Piece::Damaged { bytes, .. } if bytes.is_empty() => {}
            Piece::Damaged { bytes, offset, .. } => {
                about += usize::from(end != *offset);
                end = offset + bytes.len() as u64;
            }
        }
    }
    (found, about)
}

const EDITS: &[u8] = b"{}[]\"\\,:a0\n\x00\xff";

/// Every way to change, remove or add one byte at a place.
fn edits(body: &[u8], at: usize) -> impl Iterator<Item = Vec<u8>> {
    let with = move |byte: Option<u8>, skip: usize| {
        let mut edited = body[..at].to_vec();
        edited.extend(byte);
        edited.extend_from_slice(&body[at + skip..]);
        edited
    };
    let removed = (at < body.len()).then(|| with(None, 1));
    let changed = EDITS.iter().filter(move |byte| body.get(at).is_some_and(|old| old != *byte));
    let changed = changed.map(move |byte| with(Some(*byte), 1));
    removed.into_iter().chain(changed).chain(EDITS.iter().map(move |byte| with(Some(*byte), 0)))
}

/// Events as Microsoft shapes them: lists and objects inside, with names of events among theirs; JSON in strings, in
/// strings of strings; brackets and quotes in texts, some put there by who hopes that they become brackets and quotes.
fn hostile_events() -> Vec<String> {
    [
        r#"{"CreationTime":"2026-05-01T10:00:00","Id":"a","Operation":"x","RecordType":1,"P":{"k":1}}"#,
        r#"{"Id":"b","Operation":"y","Item":{"Id":"n","F":{"Id":"m"}},"L":[{"Id":"1","isPrompt":true},{"Id":"2"}],"E":{}}"#,
        r#"{"Actor":[{"ID":"u","Type":0},{"ID":"v","Type":5}],"Id":"c","Operation":"z","Empty":[],"M":[[],[{}]]}"#,
        r#"{"AppAccessContext":{"AADSessionId":"s"},"CreationTime":"2026-05-01T10:00:01","Id":"d","Operation":"w"}"#,
        r#"{"Operation":"v","Id":"e","Data":"{\"Id\":\"x\",\"Operation\":\"y\",\"L\":[{\"k\":\"{\\\"Id\\\":1}\"}]}","S":""}"#,
        r#"{"Id":"f","Subject":"},{\"Id\":\"forged\",\"Operation\":\"o\"},{","Operation":"u","T":"[]{}[{","U":"\\"}"#,
        r#"{"RecordType":2,"Strings":[" , ","]","},{","[{",","],"Id":"g","Operation":"t","Z":[1,-2.5e3,true,null]}"#,
        r#"{"Id":"h","Operation":"\u00fc \"quoted\" 😀é","CreationTime":"2026-05-01T10:00:02"}"#,
    ]
    .map(str::to_owned)
    .to_vec()
}

/// README: a damaged record costs no neighbour. Every byte, in every layout.
#[test]
fn one_damaged_byte_costs_one_event_at_most_and_makes_three_records_at_most() {
    let events = hostile_events();
    let spread: Vec<String> =
        events.iter().map(|event| event.replacen('{', "{ \r\n\t", 1).replacen("\",\"", "\" ,\n \"", 1)).collect();
    let pretty = |event: &String| -> String {
        serde_json::to_string_pretty(&serde_json::from_str::<serde_json::Value>(event).unwrap()).unwrap()
    };
    let pretty: Vec<String> = events.iter().take(3).map(pretty).collect();
    let few = events[..2].to_vec();
    let layouts = [
        (events.clone(), format!("[{}]", events.join(","))),
        (few.clone(), format!("[{}]", few.join(","))),
        (spread.clone(), format!("\u{feff} [ {} ]\r\n", spread.join(" ,\r\n  "))),
        (pretty.clone(), format!("[\n{}\n]\n", pretty.join(",\n"))),
    ];
    for (events, body) in layouts {
        let body = body.as_bytes();
        assert_eq!(worth(&split(body, &[], ELEMENT_BYTES_MAX).0, &events).0, events);
        for at in 0..=body.len() {
            for edited in edits(body, at) {
                let (pieces, ending) = split(&edited, &[], ELEMENT_BYTES_MAX);
                let shown = || format!("at {at}: {}\n{pieces:#?}", String::from_utf8_lossy(&edited));
                let (found, about) = worth(&pieces, &events);
                assert!(found.len() + 1 >= events.len(), "{} of {}: {}", found.len(), events.len(), shown());
                assert!(found.iter().is_sorted_by_key(|event| events.iter().position(|e| e == event)), "{}", shown());
                assert!(about <= 3, "{about} records: {}", shown());
                account(&edited, &pieces);
                let sound = ending == Ending::Complete && damage(&pieces).is_empty() && about == 0;
                let blank = |bytes: &[u8]| bytes.iter().copied().filter(|b| !is_blank(*b)).collect::<Vec<u8>>();
                assert!(!sound || blank(&edited) == blank(body), "not said: {}", shown());
                // Wherever the chunks end.
                if at % 16 == 0 {
                    for chunks in [&[1][..], &[at.max(1)], &[at + 1], &[7, 2]] {
                        let (parts, ending_of_parts) = split(&edited, chunks, ELEMENT_BYTES_MAX);
                        assert_eq!(elements(&parts), elements(&pieces), "{chunks:?} {}", shown());
                        assert_eq!((damage(&parts), &ending_of_parts), (damage(&pieces), &ending), "{chunks:?}");
                    }
                }
            }
        }
    }
}

/// What an intruder can do with a text of theirs: nothing while its quotes are escaped, whatever byte is damaged.
#[test]
fn no_damaged_byte_makes_an_event_of_a_text() {
    let forged = r#"{"Id":"forged","Operation":"o","CreationTime":"2026-05-01T10:00:00","RecordType":1}"#;
    let once = serde_json::to_string(&format!("{forged},{forged}]")).unwrap();
    let twice = serde_json::to_string(&format!(r#"{{"a":{once}}}"#)).unwrap();
    for text in [once, twice] {
        let body = format!(r#"[{{"Id":"a","Operation":"x","Text":{text}}},{{"Id":"b","Operation":"y"}}]"#);
        for at in 0..=body.len() {
            for edited in edits(body.as_bytes(), at) {
                for element in elements(&split(&edited, &[], ELEMENT_BYTES_MAX).0) {
                    let event = Event::parse(element.as_bytes());
                    let id = event.as_ref().ok().and_then(Event::identity).map(|identity| identity.id.to_owned());
                    assert_ne!(id.as_deref(), Some("forged"), "at {at}: {}", String::from_utf8_lossy(&edited));
                }
            }
        }
    }
}

/// Damage inside damage is not looked through again and again.
#[test]
fn work_is_linear_in_hostile_bytes() {
    for unit in
        ["{", "[{", r#"{"x":[{"Id":1,"Operation":2},"#, r#"[{"Id":1,"Operation":2},"#, r#"{"a":[0,"#, r#","{"{""#]
    {
        for end in ["", "}", "]", "\"", "x"] {
            let body = format!("[{}{end}", unit.repeat(200_000 / unit.len()));
            let mut splitter = Splitter::new();
            for chunk in body.as_bytes().chunks(8192) {
                splitter.push(Bytes::copy_from_slice(chunk));
                while splitter.next().is_some() {}
            }
            splitter.finish();
            while splitter.next().is_some() {}
            assert!(splitter.went < 8 * body.len() as u64, "{} for {unit} {end}", splitter.went);
        }
    }
}
