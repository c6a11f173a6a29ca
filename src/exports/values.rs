//! Finds JSON values anywhere in a text: on lines, pretty-printed, in arrays, in pages, after headers of lines.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use memchr::memchr;

use super::page::{self, ListStart, PageHead, Tail};
use super::place::InputPlace;
use super::prefix::{self, runtime_line};
use super::rows::ROW_BYTES_MAX;
use super::unit::{Lines, TextUnit};
use super::unwrap::is_like_a_wrapper;
use crate::normalise::split::{Damage, Piece, Splitter};
use crate::normalise::{Members, json};

/// Longest value, and longest line with a header, in bytes. Events are kilobytes, a few are megabytes.
const VALUE_BYTES_MAX: usize = ROW_BYTES_MAX;

/// Cuts values out of a text that arrives in chunks.
pub(super) struct Values {
    splitter: Splitter,
    /// The offset in the text of the splitter's offset 0.
    base: u64,
    /// Whether the splitter has got any bytes.
    is_used: bool,
    /// The page whose list is being read: how many objects are open around it.
    page: Option<usize>,
    /// The text after the list of a page, as far as received.
    tail: Vec<u8>,
    in_tail: bool,
    /// The beginning of an object that needs more bytes.
    stash: Bytes,
    /// The beginning of a line that may have a header.
    held: Vec<u8>,
    at_line_start: bool,
    /// How much of the text was passed on.
    at: u64,
    /// Unfinished lines of container runtimes, by stream.
    partial: BTreeMap<Vec<u8>, PartialLine>,
    ended: bool,
}

/// The beginning of a line that a container runtime wrote in parts.
struct PartialLine {
    place: InputPlace,
    text: Vec<u8>,
    /// The raw parts.
    original: Vec<u8>,
    /// Where each part begins in `text` and in `original`.
    parts: Vec<(usize, usize)>,
}

fn stream() -> Splitter {
    Splitter::of_stream(VALUE_BYTES_MAX).seeking(is_like_a_wrapper)
}

impl Default for Values {
    fn default() -> Values {
        Values {
            splitter: stream(),
            base: 0,
            is_used: false,
            page: None,
            tail: Vec::new(),
            in_tail: false,
            stash: Bytes::new(),
            held: Vec::new(),
            at_line_start: true,
            at: 0,
            partial: BTreeMap::new(),
            ended: false,
        }
    }
}

/// The output for units.
struct Out<'a> {
    lines: &'a mut Lines,
    file: &'a Arc<str>,
    units: &'a mut Vec<TextUnit>,
}

impl Out<'_> {
    fn place(&mut self, offset: u64) -> InputPlace {
        self.lines.place(offset, self.file)
    }

    fn damage(&mut self, bytes: Bytes, offset: u64, why: &'static str) {
        if !bytes.is_empty() {
            let place = self.place(offset);
            self.units.push(TextUnit::Damage { bytes, place, why });
        }
    }
}

const NOT_AN_EVENT: &str = "not one JSON object in UTF-8";
/// The message for [`VALUE_BYTES_MAX`].
const TOO_LONG: &str = "a JSON value over 16 MiB, of which no list is known";

impl Values {
    pub(super) fn push(&mut self, chunk: Bytes, lines: &mut Lines, file: &Arc<str>, units: &mut Vec<TextUnit>) {
        let mut out = Out { lines, file, units };
        self.take(chunk, &mut out);
    }

    pub(super) fn finish(&mut self, lines: &mut Lines, file: &Arc<str>, units: &mut Vec<TextUnit>) {
        let mut out = Out { lines, file, units };
        self.ended = true;
        self.take(Bytes::new(), &mut out);
        self.end_run(&mut out);
        for (_, partial) in std::mem::take(&mut self.partial) {
            joined(partial, &mut out);
        }
    }

    /// Checks each line for a header, and passes on lines without one.
    fn take(&mut self, chunk: Bytes, out: &mut Out<'_>) {
        let data = if self.held.is_empty() {
            chunk
        } else {
            let mut held = std::mem::take(&mut self.held);
            held.extend_from_slice(&chunk);
            self.at_line_start = true;
            Bytes::from(held)
        };
        let mut run = 0;
        let mut line = 0;
        while line < data.len() {
            let rest = data.get(line..).unwrap_or_default();
            let length = memchr(b'\n', rest);
            if self.at_line_start && may_have_header(rest) {
                match length {
                    None if !self.ended && rest.len() < VALUE_BYTES_MAX => {
                        self.hand_on(data.slice(run..line), out);
                        self.held = rest.to_vec();
                        return;
                    }
                    _ => {
                        let end = line + length.unwrap_or(rest.len());
                        let before = data.slice(run..line);
                        if self.line_with_header(&data.slice(line..end), before, out) {
                            run = (end + 1).min(data.len());
                            self.at += (run - line) as u64;
                        }
                    }
                }
            }
            self.at_line_start = length.is_some();
            line += length.map_or(rest.len(), |length| length + 1);
        }
        self.hand_on(data.slice(run..), out);
    }

    /// Takes a line that has a header; false where it has none.
    fn line_with_header(&mut self, line: &Bytes, before: Bytes, out: &mut Out<'_>) -> bool {
        let runtime = runtime_line(line.strip_suffix(b"\r").unwrap_or(line));
        let header = if runtime.is_none() { prefix::length(line) } else { None };
        if runtime.is_none() && header.is_none() {
            return false;
        }
        self.hand_on(before, out);
        self.end_run(out);
        let place = out.place(self.at);
        if let Some(at) = header {
            let bytes = line.slice(at..);
            out.units.push(TextUnit::Value { bytes, place, is_prefixed: true });
        } else if let Some(found) = runtime {
            self.part(found.stream, found.text, found.is_partial, (place, line), out);
        }
        true
    }

    /// Adds a part of a line, or all of it, that a container runtime wrote.
    fn part(&mut self, stream: &[u8], text: &[u8], goes_on: bool, whole: (InputPlace, &[u8]), out: &mut Out<'_>) {
        let (place, original) = whole;
        let new = PartialLine { place, text: Vec::new(), original: Vec::new(), parts: Vec::new() };
        let mut partial = self.partial.remove(stream).unwrap_or(new);
        partial.parts.push((partial.text.len(), partial.original.len()));
        partial.text.extend_from_slice(text);
        if !partial.original.is_empty() {
            partial.original.push(b'\n');
        }
        partial.original.extend_from_slice(original);
        if goes_on && partial.text.len() < VALUE_BYTES_MAX {
            self.partial.insert(stream.to_vec(), partial);
        } else {
            let place = partial.place.clone();
            if let Some(rest) = joined(partial, out)
                && let Some(line) = runtime_line(&rest)
            {
                self.part(line.stream, line.text, line.is_partial, (place, &rest), out);
            }
        }
    }

    /// Ends the run: later bytes do not belong to it.
    fn end_run(&mut self, out: &mut Out<'_>) {
        if !self.is_used {
            self.base = self.at;
            return;
        }
        let ended = std::mem::replace(&mut self.ended, true);
        let stash = std::mem::take(&mut self.stash);
        self.base = self.base.wrapping_sub(stash.len() as u64);
        self.splitter.push(stash);
        self.drain(out);
        if self.in_tail {
            self.end_tail(out);
            self.drain(out);
        }
        self.splitter.finish();
        self.drain(out);
        self.ended = ended;
        self.restart(self.at);
    }

    /// Restarts the splitter at this offset.
    fn restart(&mut self, base: u64) {
        self.splitter = stream();
        self.base = base;
        self.page = None;
        self.is_used = false;
    }

    fn hand_on(&mut self, run: Bytes, out: &mut Out<'_>) {
        if run.is_empty() {
            return;
        }
        if !self.is_used && !self.in_tail {
            self.base = self.at;
        }
        self.at += run.len() as u64;
        self.is_used = true;
        if self.in_tail {
            self.tail.extend_from_slice(&run);
            self.end_tail(out);
        } else {
            let stash = std::mem::take(&mut self.stash);
            self.base = self.base.wrapping_sub(stash.len() as u64);
            // In one piece, since the head of a page is searched for in one.
            self.splitter.push(if stash.is_empty() { run } else { [stash, run].concat().into() });
        }
        self.drain(out);
    }

    fn drain(&mut self, out: &mut Out<'_>) {
        loop {
            let mut head = PageHead::Other;
            let ended = self.ended;
            let piece = self.splitter.next_read(|rest| {
                head = page::head(rest, ended);
                match head {
                    PageHead::Page(open) => Some(open.length),
                    PageHead::More => Some(rest.len()),
                    PageHead::Other => None,
                }
            });
            match (piece, head) {
                (Some(Piece::Element { bytes, read: true, .. }), PageHead::More) => {
                    self.stash = bytes;
                    return;
                }
                (Some(Piece::Element { bytes, offset, read: true, .. }), PageHead::Page(open)) => {
                    if page::is_truncated(bytes.get(..open.length).unwrap_or_default()) {
                        let place = out.place(self.base.wrapping_add(offset));
                        out.units.push(TextUnit::Truncated { place });
                    }
                    self.page_begins(offset, open);
                }
                (Some(Piece::Element { bytes, offset, .. }), _) => {
                    self.value(bytes, self.base.wrapping_add(offset), out)
                }
                (Some(Piece::Damaged { bytes, offset, why }), _) => {
                    let why = if why == Damage::Oversize { TOO_LONG } else { NOT_AN_EVENT };
                    out.damage(bytes, self.base.wrapping_add(offset), why);
                }
                (None, _) if self.page.is_some() && self.splitter.is_closed() => {
                    self.in_tail = true;
                    self.base = self.base.wrapping_add(self.splitter.offset());
                    self.tail = self.splitter.take_rest().concat();
                    self.splitter = stream();
                    if !self.end_tail(out) {
                        return;
                    }
                }
                (None, _) => return,
            }
        }
    }

    /// Begins the list of a page after its head, which began at `offset`.
    fn page_begins(&mut self, offset: u64, open: ListStart) {
        let rest = self.splitter.take_rest();
        self.base = self.base.wrapping_add(offset).wrapping_add(open.length as u64);
        self.splitter = Splitter::of_page(VALUE_BYTES_MAX).seeking(is_like_a_wrapper);
        self.page = Some(open.objects);
        for chunk in rest {
            self.splitter.push(chunk);
        }
    }

    /// Reads the text after the list of a page; false if more bytes are needed.
    fn end_tail(&mut self, out: &mut Out<'_>) -> bool {
        let length = match page::tail(&self.tail, self.page.unwrap_or_default(), self.ended) {
            Tail::More => return false,
            Tail::Whole(length) => {
                if page::is_truncated(self.tail.get(..length).unwrap_or_default()) {
                    let place = out.place(self.base);
                    out.units.push(TextUnit::Truncated { place });
                }
                length
            }
            Tail::Broken(length) => {
                let bytes = self.tail.get(..length).unwrap_or_default();
                out.damage(Bytes::copy_from_slice(bytes), self.base, NOT_AN_EVENT);
                length
            }
        };
        let tail = Bytes::from(std::mem::take(&mut self.tail));
        self.in_tail = false;
        let base = self.base.wrapping_add(length as u64);
        self.restart(base);
        let rest = tail.slice(length.min(tail.len())..);
        self.is_used = !rest.is_empty();
        self.splitter.push(rest);
        true
    }

    fn value(&mut self, bytes: Bytes, offset: u64, out: &mut Out<'_>) {
        let place = out.place(offset);
        // Docker stores each line as an object, and a long one as several.
        if bytes.starts_with(b"{\"log\":\"")
            && let Some((stream, text)) = docker_line(&bytes)
            && (self.partial.contains_key(&stream) || !text.ends_with(b"\n"))
        {
            let goes_on = !text.ends_with(b"\n");
            return self.part(&stream, &text, goes_on, (place, &bytes), out);
        }
        out.units.push(TextUnit::Value { bytes, place, is_prefixed: false });
    }
}

/// Whether a line may begin with a header: a header begins with a letter, a digit or `<`; JSON on its own line begins
/// with a bracket, a quote or white space.
fn may_have_header(line: &[u8]) -> bool {
    line.first().is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'<')
}

fn docker_line(bytes: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let text = std::str::from_utf8(bytes).ok()?;
    json::get(text, "time")?;
    let stream = json::scalar(json::get(text, "stream")?)?;
    let log = json::scalar(json::get(text, "log")?)?;
    Some((stream.as_bytes().to_vec(), log.as_bytes().to_vec()))
}

/// Joins a complete line. If the end of an earlier line was lost, the parts of this one are the last ones. If the line
/// break after it was lost, the next line is returned.
fn joined(partial: PartialLine, out: &mut Out<'_>) -> Option<Vec<u8>> {
    let PartialLine { place, text, original, parts } = partial;
    for (from, original_from) in parts {
        let text = text.get(from..).unwrap_or_default().trim_ascii();
        let begin = if text.starts_with(b"{") { Some(0) } else { prefix::length(text) };
        let Some(object) = begin.and_then(|begin| text.get(begin..)) else { continue };
        let Some(length) = Members::default().read(object) else { continue };
        let (object, rest) = object.split_at(length.min(object.len()));
        // The line break is missing, or is another byte.
        let next = [0, 1].into_iter().find(|skip| rest.get(*skip..).is_some_and(|rest| runtime_line(rest).is_some()));
        if !rest.is_empty() && next.is_none() {
            continue;
        }
        let before = original.get(..original_from).unwrap_or_default();
        if !before.is_empty() {
            let bytes = Bytes::copy_from_slice(before);
            out.units.push(TextUnit::Damage { bytes, place: place.clone(), why: NOT_AN_EVENT });
        }
        let bytes = Bytes::copy_from_slice(object);
        let after = place.clone();
        out.units.push(TextUnit::Value { bytes, place, is_prefixed: true });
        let (stray, rest) = rest.split_at(next.unwrap_or_default());
        if !stray.is_empty() {
            let bytes = Bytes::copy_from_slice(stray);
            out.units.push(TextUnit::Damage { bytes, place: after, why: NOT_AN_EVENT });
        }
        return Some(rest.to_vec()).filter(|rest| !rest.is_empty());
    }
    out.units.push(TextUnit::Damage { bytes: original.into(), place, why: NOT_AN_EVENT });
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::normalise::NotAnEvent;

    #[test]
    fn a_value_that_is_too_long_is_told_by_its_length_and_what_follows_is_read() {
        assert_eq!(VALUE_BYTES_MAX, 16 * 1024 * 1024, "TOO_LONG says it");
        let (mut values, mut lines, mut units) = (Values::default(), Lines::default(), Vec::new());
        let file: Arc<str> = "x".into();
        let mut push = |bytes: Bytes| {
            lines.push(bytes.clone());
            values.push(bytes, &mut lines, &file, &mut units);
        };
        push(Bytes::from_static(b"{\"tables\":[\""));
        let some = Bytes::from(vec![b'x'; 1024 * 1024]);
        (0..17).for_each(|_| push(some.clone()));
        push(Bytes::from_static(b"\"]}\n{\"Id\":\"a\"}\n"));
        values.finish(&mut lines, &file, &mut units);
        let is_long = |unit: &TextUnit| matches!(unit, TextUnit::Damage { why, .. } if *why == TOO_LONG);
        assert!(units.iter().any(is_long), "{} units", units.len());
        assert!(matches!(units.last(), Some(TextUnit::Value { bytes, .. }) if *bytes == r#"{"Id":"a"}"#));
    }

    #[test]
    fn the_reason_is_that_of_the_event() {
        assert_eq!(NotAnEvent.to_string(), NOT_AN_EVENT);
    }
}
