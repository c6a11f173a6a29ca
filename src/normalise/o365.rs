//! The field names of Elastic's own `o365` integration, which its dashboards and rules use.
//!
//! `o365.audit` contains the members of the event as that integration writes them: lists of pairs become objects, dots
//! and blanks in names become `_`. These keys come from the event, so their number has no bound; so they are written
//! only if configured (`ecs_profile = "elastic-o365"`).

use super::event::Event;
use super::json;
use super::parameters::{self, Pairs, TokenOrText};
use super::writer::Writer;

/// The data set of Elastic's integration.
pub(crate) const DATASET: &str = "o365.audit";
/// Its module.
pub(crate) const MODULE: &str = "o365";

/// Lists of pairs that become objects; the others stay lists of `Name` and `Value`.
const PAIRS: [&str; 2] = ["Parameters", "ExtendedProperties"];

/// Writes `o365.audit`.
pub(crate) fn push(event: &Event<'_>, w: &mut Writer<'_>) {
    w.nested("o365", |w| {
        w.nested("audit", |w| {
            let mut known: Vec<String> = Vec::new();
            json::members(event.text(), |key, value| {
                let name = plain(&key);
                // Of a repeated key only the first is written.
                if value == "null" || name.is_empty() || known.contains(&name) {
                    return;
                }
                if PAIRS.iter().any(|list| key.eq_ignore_ascii_case(list)) {
                    w.nested(&name, |w| push_pairs(value, w));
                } else if key.eq_ignore_ascii_case("ModifiedProperties") {
                    w.nested(&name, |w| push_modified(value, w));
                } else {
                    push_value(&name, value, w);
                }
                known.push(name);
            });
        });
    });
}

/// A name as a key: letters, digits and `_` stay.
fn plain(name: &str) -> String {
    let stays = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '@') { c } else { '_' };
    name.trim().chars().map(stays).collect()
}

fn push_value(name: &str, token: &str, w: &mut Writer<'_>) {
    match json::inner(token) {
        Some(_) => w.maybe(name, json::scalar(token)),
        None => w.value(name, |out| json::push_on_one_line(out, token)),
    }
}

fn push_pairs(token: &str, w: &mut Writer<'_>) {
    let mut known: Vec<String> = Vec::new();
    Pairs::of(token).each(&mut |name, value| {
        let name = plain(name);
        if name.is_empty() || known.contains(&name) {
            return;
        }
        match value {
            TokenOrText::Token(token) => w.maybe(&name, json::scalar(token)),
            TokenOrText::Text(text) => w.text(&name, text),
        }
        known.push(name);
    });
}

fn push_modified(token: &str, w: &mut Writer<'_>) {
    use crate::severity::Modification as _;
    let mut known: Vec<String> = Vec::new();
    for entry in parameters::modified(token) {
        let name = plain(&entry.name);
        if name.is_empty() || known.contains(&name) {
            continue;
        }
        w.nested(&name, |w| {
            w.text("NewValue", entry.now());
            w.text("OldValue", entry.before());
        });
        known.push(name);
    }
}
