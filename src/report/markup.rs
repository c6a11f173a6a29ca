//! Writes HTML: names of elements and attributes are constants, and every other text is escaped.

use std::borrow::Cow;

use crate::model::plain;

/// Attributes by name.
pub(crate) type Attributes<'a> = [(&'static str, &'a str)];

/// A page being written.
#[derive(Debug, Default)]
pub(crate) struct HtmlPage {
    text: String,
}

impl HtmlPage {
    /// The text written.
    pub(crate) fn into_text(self) -> String {
        self.text
    }

    /// Appends constant markup: only a literal of the source code can be passed.
    pub(crate) fn ours(&mut self, markup: &'static str) {
        self.text.push_str(markup);
    }

    /// A text. Dates in it are not broken at the end of a line.
    pub(crate) fn text(&mut self, text: &str) {
        let text = plain(text);
        let mut rest = &*text;
        while let Some((before, date, after)) = around_date(rest).filter(|_| text.len() > DATE.len()) {
            self.text.push_str(&escaped(before));
            self.text.push_str("<span class=\"d\">");
            self.text.push_str(date);
            self.text.push_str("</span>");
            rest = after;
        }
        self.text.push_str(&escaped(rest));
    }

    /// The value of an attribute.
    fn value(&mut self, text: &str) {
        self.text.push_str(&escaped(&plain(text)));
    }

    /// Begins an element.
    pub(crate) fn begin(&mut self, name: &'static str, attributes: &Attributes<'_>) {
        self.text.push('<');
        self.text.push_str(name);
        for (attribute, value) in attributes {
            self.text.push(' ');
            self.text.push_str(attribute);
            self.text.push_str("=\"");
            self.value(value);
            self.text.push('"');
        }
        self.text.push('>');
    }

    /// Ends one.
    pub(crate) fn end(&mut self, name: &'static str) {
        self.text.push_str("</");
        self.text.push_str(name);
        self.text.push_str(">\n");
    }

    /// An element with a text.
    pub(crate) fn element(&mut self, name: &'static str, attributes: &Attributes<'_>, text: &str) {
        self.begin(name, attributes);
        self.text(text);
        self.end(name);
    }
}

/// The form of a date; `0` means any digit.
const DATE: &[u8] = b"0000-00-00";

/// The text before the first date, the date, and the text after it.
fn around_date(text: &str) -> Option<(&str, &str, &str)> {
    let is_date =
        |at: &[u8]| at.iter().zip(DATE).all(|(c, form)| if *form == b'0' { c.is_ascii_digit() } else { c == form });
    let at = text.as_bytes().windows(DATE.len()).position(is_date)?;
    let (before, rest) = text.split_at_checked(at)?;
    let (date, after) = rest.split_at_checked(DATE.len())?;
    Some((before, date, after))
}

/// A text that no reader of HTML takes for markup, in an element and in an attribute.
fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(['&', '<', '>', '"', '\'']) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_chose_never_becomes_markup() {
        let mut page = HtmlPage::default();
        page.element("td", &[("title", "\"><script>alert('1')</script>")], "<img src=x onerror=\"a\">&amp;\u{202e}\n");
        assert_eq!(
            page.into_text(),
            "<td title=\"&quot;&gt;&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;\">&lt;img src=x onerror=&quot;a&quot;&gt;&amp;amp;\u{fffd}</td>\n"
        );
    }

    #[test]
    fn dates_in_a_text_are_not_broken_and_no_attribute_has_an_element_in_it() {
        let mut page = HtmlPage::default();
        page.element("p", &[("title", "a 2026-11-30 b")], "<2026-11-30 10:00 to 2026-12-01>");
        page.element("td", &[], "2026-11-30");
        assert_eq!(
            page.into_text(),
            "<p title=\"a 2026-11-30 b\">&lt;<span class=\"d\">2026-11-30</span> 10:00 to <span class=\"d\">2026-12-01</span>&gt;</p>\n\
             <td>2026-11-30</td>\n"
        );
    }
}
