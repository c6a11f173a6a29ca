//! Tables of a page: a caption, heads with their scope, numbers to the right.

use super::markup::HtmlPage;

/// A column: its head, and its kind of content.
pub(super) type TableColumn = (&'static str, Holds);

/// The kind of content of a column, which decides its layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    /// Words.
    Words,
    /// Times, which are not broken.
    Times,
    /// Numbers, to the right.
    Numbers,
}

/// A row of a table.
pub(super) enum TableRow {
    /// Its cells; the first is its head.
    Cells(Vec<String>),
    /// The head of the rows that follow.
    Group(String),
}

/// Writes a table.
pub(super) fn table(page: &mut HtmlPage, caption: &str, columns: &[TableColumn], rows: Vec<TableRow>) {
    page.begin("div", &[("class", "wide"), ("role", "region"), ("tabindex", "0"), ("aria-label", caption)]);
    page.ours("<table>\n");
    page.ours("<caption>");
    page.element("span", &[], caption);
    page.ours("</caption>\n");
    page.ours("<thead><tr>");
    for (head, holds) in columns {
        page.element("th", &[("scope", "col"), ("class", class(*holds))], head);
    }
    page.ours("</tr></thead>\n<tbody>\n");
    let span = columns.len().to_string();
    for row in rows {
        match row {
            TableRow::Group(head) => {
                page.ours("<tr class=\"group\">");
                page.element("th", &[("scope", "rowgroup"), ("colspan", &span)], &head);
            }
            TableRow::Cells(cells) => {
                page.ours("<tr>");
                for (at, (cell, (_, holds))) in cells.iter().zip(columns).enumerate() {
                    if at == 0 {
                        page.element("th", &[("scope", "row"), ("class", class(*holds))], cell);
                    } else {
                        page.element("td", &[("class", class(*holds))], cell);
                    }
                }
            }
        }
        page.ours("</tr>\n");
    }
    page.ours("</tbody></table></div>\n");
}

const fn class(holds: Holds) -> &'static str {
    match holds {
        Holds::Words => "w",
        Holds::Times => "t",
        Holds::Numbers => "n",
    }
}

/// Terms and their meanings.
pub(super) fn terms<'a>(page: &mut HtmlPage, class: &'static str, terms: impl IntoIterator<Item = (&'a str, String)>) {
    page.begin("dl", &[("class", class)]);
    for (term, meaning) in terms {
        page.element("dt", &[], term);
        page.element("dd", &[], &meaning);
    }
    page.end("dl");
}
