//! Writes nested JSON objects straight into a buffer; a member without a value and an object without members are not
//! written.

use super::json;
use super::parameters::TokenOrText;

/// The members of one object.
pub(crate) struct Writer<'o> {
    out: &'o mut Vec<u8>,
    empty: bool,
}

impl<'o> Writer<'o> {
    /// Appends an object with the members that `fill` writes.
    pub fn object(out: &'o mut Vec<u8>, fill: impl FnOnce(&mut Writer<'_>)) {
        out.push(b'{');
        fill(&mut Writer { out, empty: true });
        out.push(b'}');
    }

    /// Continues an open object that already has a member.
    pub fn more(out: &'o mut Vec<u8>) -> Writer<'o> {
        Writer { out, empty: false }
    }

    fn key(&mut self, key: &str) {
        if !self.empty {
            self.out.push(b',');
        }
        self.empty = false;
        self.out.push(b'"');
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    /// A text, unless it is blank.
    pub fn text(&mut self, key: &str, text: impl AsRef<str>) {
        let text = text.as_ref();
        if !json::is_blank(text) {
            self.key(key);
            json::push_string(self.out, text);
        }
    }

    /// A value given as a token or text, cut to `bytes_max`. A string's token is copied unchanged.
    pub fn at_hand(&mut self, key: &str, value: TokenOrText<'_>, bytes_max: usize) {
        match value {
            TokenOrText::Token(token) => match json::inner(token) {
                Some(inside) if inside.len() <= bytes_max => {
                    if !inside.trim().is_empty() {
                        self.key(key);
                        self.out.push(b'"');
                        super::push_inside(self.out, inside);
                        self.out.push(b'"');
                    }
                }
                _ => {
                    let null = token.is_empty() || token == "null";
                    let text = json::scalar(token).unwrap_or_else(|| json::compact(if null { "" } else { token }));
                    self.text(key, super::cut(&text, bytes_max));
                }
            },
            TokenOrText::Text(text) => self.text(key, super::cut(text, bytes_max)),
        }
    }

    /// A text that may be absent.
    pub fn maybe(&mut self, key: &str, text: Option<impl AsRef<str>>) {
        if let Some(text) = text {
            self.text(key, text);
        }
    }

    /// A number.
    pub fn number(&mut self, key: &str, number: i64) {
        self.key(key);
        json::push_integer(self.out, number);
    }

    /// A boolean.
    pub fn flag(&mut self, key: &str, flag: bool) {
        self.key(key);
        self.out.extend_from_slice(if flag { b"true" } else { b"false" });
    }

    /// A member whose value `write` appends, as valid JSON.
    pub fn value(&mut self, key: &str, write: impl FnOnce(&mut Vec<u8>)) {
        self.key(key);
        write(self.out);
    }

    /// A list of distinct texts that are not blank; if it is empty, no member is written.
    pub fn texts<T: AsRef<str>>(&mut self, key: &str, texts: impl IntoIterator<Item = T>) {
        let mut seen: Vec<T> = Vec::new();
        for text in texts {
            if !json::is_blank(text.as_ref()) && !seen.iter().any(|other| other.as_ref() == text.as_ref()) {
                seen.push(text);
            }
        }
        if seen.is_empty() {
            return;
        }
        self.key(key);
        for (index, text) in seen.iter().enumerate() {
            self.out.push(if index == 0 { b'[' } else { b',' });
            json::push_string(self.out, text.as_ref());
        }
        self.out.push(b']');
    }

    /// An object; if it is empty, no member is written.
    pub fn nested(&mut self, key: &str, fill: impl FnOnce(&mut Writer<'_>)) {
        let (start, was_empty) = (self.out.len(), self.empty);
        self.key(key);
        self.out.push(b'{');
        let mut inner = Writer { out: self.out, empty: true };
        fill(&mut inner);
        if inner.empty {
            self.out.truncate(start);
            self.empty = was_empty;
        } else {
            self.out.push(b'}');
        }
    }

    /// A list of objects; if it is empty, no member is written.
    pub fn objects(&mut self, key: &str, fill: impl FnOnce(&mut Objects<'_>)) {
        let (start, was_empty) = (self.out.len(), self.empty);
        self.key(key);
        let mut list = Objects { out: self.out, empty: true };
        fill(&mut list);
        if list.empty {
            self.out.truncate(start);
            self.empty = was_empty;
        } else {
            self.out.push(b']');
        }
    }
}

/// The elements of a list of objects.
pub(crate) struct Objects<'o> {
    out: &'o mut Vec<u8>,
    empty: bool,
}

impl Objects<'_> {
    /// Adds an object, unless it is empty.
    pub fn push(&mut self, fill: impl FnOnce(&mut Writer<'_>)) {
        let start = self.out.len();
        self.out.push(if self.empty { b'[' } else { b',' });
        self.out.push(b'{');
        let mut inner = Writer { out: self.out, empty: true };
        fill(&mut inner);
        if inner.empty {
            self.out.truncate(start);
        } else {
            self.out.push(b'}');
            self.empty = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_empty_leaves_no_trace() {
        let mut out = Vec::new();
        Writer::object(&mut out, |w| {
            w.nested("a", |w| {
                w.text("x", " ");
                w.nested("y", |_| {});
            });
            w.text("b", "\"1\"");
            w.texts("c", ["", "x", "x", "y"]);
            w.texts("d", [""; 1]);
            w.objects("e", |list| {
                list.push(|_| {});
                list.push(|w| w.number("n", -1));
            });
            w.objects("f", |list| list.push(|_| {}));
            w.nested("g", |w| w.flag("h", true));
        });
        assert_eq!(String::from_utf8(out).unwrap(), r#"{"b":"\"1\"","c":["x","y"],"e":[{"n":-1}],"g":{"h":true}}"#);
    }
}
