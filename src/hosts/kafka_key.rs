//! The key of a message: the id of the record's event, at the place that the record's format gives it.

use super::json_walk::{Number, Visit, walk};

/// The id of the event, in the record's format: `event_id` (native), `event.id` (ECS), `metadata.uid` (OCSF), `Id`
/// (raw). A record without one, such as that of a gap, gets a digest of itself, so that it can be recognised, too.
pub(super) fn key_of(json: &[u8]) -> String {
    let mut finder = Finder::default();
    let _ = walk(json, &mut finder);
    let found = finder.found.into_iter().flatten().find(|id| !id.is_empty());
    found.unwrap_or_else(|| blake3::hash(json).to_hex().to_string())
}

/// The places of an id: the member of the record that contains it, if any, and its own name. Earlier places take
/// precedence.
const PLACES: [(Option<&str>, &str); 4] =
    [(None, "event_id"), (Some("event"), "id"), (Some("metadata"), "uid"), (None, "Id")];

#[derive(Default)]
struct Finder {
    depth: usize,
    /// The member of the record that is being visited.
    outer: String,
    /// Which of [`PLACES`] the next value is of.
    place: Option<usize>,
    found: [Option<String>; PLACES.len()],
}

impl Visit for Finder {
    fn begin_object(&mut self) {
        self.depth += 1;
        self.place = None;
    }

    fn key(&mut self, key: &str) {
        let is_here = |(outer, name): &(Option<&str>, &str)| match self.depth {
            1 => outer.is_none() && *name == key,
            2 => *outer == Some(self.outer.as_str()) && *name == key,
            _ => false,
        };
        self.place = PLACES.iter().position(is_here);
        if self.depth == 1 {
            key.clone_into(&mut self.outer);
        }
    }

    fn end_object(&mut self) {
        self.depth -= 1;
    }

    fn begin_array(&mut self) {
        // Values inside an array are not members of the record.
        self.depth += 1;
        self.place = None;
    }

    fn end_array(&mut self) {
        self.depth -= 1;
    }

    fn string(&mut self, text: &str) {
        if let Some(found) = self.place.take().and_then(|place| self.found.get_mut(place)) {
            *found = Some(text.to_owned());
        }
    }

    fn number(&mut self, _: Number<'_>) {
        self.place = None;
    }

    fn bool(&mut self, _: bool) {
        self.place = None;
    }

    fn null(&mut self) {
        self.place = None;
    }
}

#[cfg(test)]
mod tests {
    use super::key_of;

    #[test]
    fn the_key_is_the_events_id_in_every_format() {
        for (json, expected) in [
            (r#"{"event_id":"a","raw":{"Id":"b"},"event":{"id":"c"}}"#, "a"),
            (r#"{"event":{"kind":"event","id":"b"},"metadata":{"x":1}}"#, "b"),
            (r#"{"metadata":{"product":{"uid":"no"},"uid":"c"}}"#, "c"),
            (r#"{"Id":"d","ExtendedProperties":[{"Id":"no"}]}"#, "d"),
            (r#"{"x":{"event_id":"no"},"y":[{"Id":"no"}],"Id":"d"}"#, "d"),
        ] {
            assert_eq!(key_of(json.as_bytes()), expected, "{json}");
        }
    }

    #[test]
    fn a_record_without_an_id_has_a_key_of_its_own_and_the_same_each_time() {
        let gap = br#"{"event_type":"m365_audit.gap","event_id":""}"#;
        assert_eq!(key_of(gap).len(), 64);
        assert_eq!(key_of(gap), key_of(gap));
        assert_ne!(key_of(gap), key_of(b"not even json"));
    }
}
