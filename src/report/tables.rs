//! Tables of a page: a caption, heads with their scope, numbers to the right.

use super::markup::Page;

/// A column: its head, and whether it holds numbers.
pub(super) type Column = (&'static str, bool);

/// A row of a table.
pub(super) enum Row {
    /// Its cells; the first is its head.
    Cells(Vec<String>),
    /// The head of the rows that follow.
    Group(String),
}

/// Writes a table.
pub(super) fn table(page: &mut Page, caption: &str, columns: &[Column], rows: Vec<Row>) {
    page.begin("div", &[("class", "wide"), ("role", "region"), ("tabindex", "0"), ("aria-label", caption)]);
    page.ours("<table>\n");
    page.element("caption", &[], caption);
    page.ours("<thead><tr>");
    for (head, is_number) in columns {
        page.element("th", &[("scope", "col"), ("class", class(*is_number))], head);
    }
    page.ours("</tr></thead>\n<tbody>\n");
    let span = columns.len().to_string();
    for row in rows {
        page.ours("<tr>");
        match row {
            Row::Group(head) => {
                page.element("th", &[("scope", "rowgroup"), ("colspan", &span), ("class", "group")], &head);
            }
            Row::Cells(cells) => {
                for (at, (cell, (_, is_number))) in cells.iter().zip(columns).enumerate() {
                    if at == 0 {
                        page.element("th", &[("scope", "row"), ("class", class(*is_number))], cell);
                    } else {
                        page.element("td", &[("class", class(*is_number))], cell);
                    }
                }
            }
        }
        page.ours("</tr>\n");
    }
    page.ours("</tbody></table></div>\n");
}

const fn class(is_number: bool) -> &'static str {
    if is_number { "n" } else { "w" }
}

/// Names and what they stand for.
pub(super) fn terms<'a>(page: &mut Page, class: &'static str, terms: impl IntoIterator<Item = (&'a str, String)>) {
    page.begin("dl", &[("class", class)]);
    for (term, meaning) in terms {
        page.element("dt", &[], term);
        page.element("dd", &[], &meaning);
    }
    page.end("dl");
}
