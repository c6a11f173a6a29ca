//! What a command shows on a terminal, as a picture: its last rows with their colours, as SVG.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Read as _;
use std::process::{Command, Stdio};

use super::super::terminal::terminal_of;

const COLUMNS: u16 = 110;
/// More than any of the commands prints.
const ROWS: u16 = 600;
/// Of a character and of a row, in pixels.
const WIDTH: f64 = 7.8;
const HEIGHT: usize = 18;
const MARGIN: usize = 14;

/// Words in one style; the style is the names of its classes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Words {
    column: usize,
    pub style: String,
    pub text: String,
}

pub type Row = Vec<Words>;

/// What is on the screen after the command has ended, without the empty rows below. Each `replace` is made in what the
/// command wrote, before it reaches the screen.
pub fn screen(command: &mut Command, replace: &[(&str, &str)]) -> Vec<Row> {
    let (mut ours, theirs) = terminal_of(COLUMNS, ROWS);
    let end = || Stdio::from(theirs.try_clone().unwrap());
    command.stdin(Stdio::null()).stdout(end()).stderr(end());
    command.env("TERM", "xterm-256color").env("NO_PROXY", "*").env_remove("NO_COLOR").env_remove("M365_AUDIT_LOG");
    let mut child = command.spawn().unwrap();
    // The command keeps its ends of the terminal until it is given others.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    drop(theirs);
    let mut written = Vec::new();
    let mut part = [0; 4096];
    // The end of a terminal whose other end is closed is an error.
    while let Ok(n @ 1..) = ours.read(&mut part) {
        written.extend_from_slice(&part[..n]);
    }
    child.wait().unwrap();
    let mut written = String::from_utf8(written).unwrap();
    for (from, to) in replace {
        written = written.replace(from, to);
    }
    let mut parser = vt100::Parser::new(ROWS.try_into().unwrap(), COLUMNS.try_into().unwrap(), 0);
    parser.process(written.as_bytes());
    let mut rows: Vec<Row> = (0..ROWS).map(|row| words(parser.screen(), row)).collect();
    while rows.last().is_some_and(Vec::is_empty) {
        rows.pop();
    }
    assert!(rows.len() < usize::from(ROWS), "the first rows are gone from the screen");
    rows
}

/// A row in parts of one style each, without its blanks where there are two or more.
fn words(screen: &vt100::Screen, row: u16) -> Row {
    let mut words: Row = Vec::new();
    let mut blanks = 2;
    for column in 0..COLUMNS {
        let cell = screen.cell(row, column).unwrap();
        let (text, style) = (cell.contents(), style(cell));
        if text.trim().is_empty() {
            blanks += 1;
            continue;
        }
        match words.last_mut() {
            Some(last) if blanks < 2 && last.style == style => {
                last.text.push_str(&" ".repeat(blanks));
                last.text.push_str(text);
            }
            _ => words.push(Words { column: column.into(), style, text: text.to_owned() }),
        }
        blanks = 0;
    }
    words
}

fn style(cell: &vt100::Cell) -> String {
    let colour = match cell.fgcolor() {
        vt100::Color::Default => "",
        vt100::Color::Idx(1 | 9) => "red",
        vt100::Color::Idx(2 | 10) => "green",
        vt100::Color::Idx(3 | 11) => "yellow",
        vt100::Color::Idx(6 | 14) => "cyan",
        other => panic!("a picture has no colour for {other:?} yet"),
    };
    let styles = [(!colour.is_empty(), colour), (cell.bold(), "bold"), (cell.dim(), "dim")];
    styles.iter().filter(|(there, _)| *there).map(|(_, name)| *name).collect::<Vec<_>>().join(" ")
}

/// The picture of these rows below the command that was given.
pub fn svg(title: &str, description: &str, command: &str, rows: &[Row]) -> String {
    let (width, height) = ((f64::from(COLUMNS) * WIDTH) as usize + 2 * MARGIN, (rows.len() + 1) * HEIGHT + 2 * MARGIN);
    let (title, description) = (escaped(title), escaped(description));
    let mut svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-labelledby="title desc">
<title id="title">{title}</title>
<desc id="desc">{description}</desc>
<style>
  text {{ font: 13px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: var(--ink) }}
  .ground {{ fill: var(--ground); stroke: var(--line) }} .bold {{ font-weight: 700 }} .dim {{ fill: var(--faint) }}
  .red {{ fill: var(--red) }} .green {{ fill: var(--green) }} .yellow {{ fill: var(--yellow) }} .cyan {{ fill: var(--cyan) }}
  svg {{ --ground: #ffffff; --ink: #1c2733; --faint: #51606f; --line: #9aa7b4; --red: #b3261e; --green: #1a6e34; --yellow: #7d5700; --cyan: #0b6478 }}
  @media (prefers-color-scheme: dark) {{
    svg {{ --ground: #10161d; --ink: #e6edf3; --faint: #a5b3c1; --line: #5d6c7b; --red: #ff8a80; --green: #7ddc92; --yellow: #f0c04a; --cyan: #6fd3e8 }}
  }}
</style>
<rect class="ground" x="0.5" y="0.5" width="{}" height="{}" rx="8"/>
"#,
        width - 1,
        height - 1
    );
    let prompt = vec![Words { column: 0, style: "bold".into(), text: format!("$ {command}") }];
    for (number, row) in std::iter::once(&prompt).chain(rows).enumerate() {
        for words in row {
            let x = MARGIN as f64 + words.column as f64 * WIDTH;
            let y = MARGIN + number * HEIGHT + 13;
            // As wide as on a terminal, whatever font there is.
            let long = words.text.chars().count() as f64 * WIDTH;
            let text = escaped(&words.text);
            write!(svg, r#"<text class="{}" x="{x:.1}" y="{y}" textLength="{long:.1}">{text}</text>"#, words.style)
                .unwrap();
        }
        svg.push_str(if row.is_empty() { "" } else { "\n" });
    }
    svg + "</svg>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// What is in a picture that [`svg`] made: all but the rows, and the rows, each as its words with their styles.
pub fn read(svg: &str) -> (String, Vec<Vec<(String, String)>>) {
    let (rows, frame): (Vec<&str>, Vec<&str>) = svg.lines().partition(|line| line.starts_with("<text "));
    let words = |row: &str| {
        let each = row.split("<text class=\"").skip(1).map(|part| {
            let (style, rest) = part.split_once('"').unwrap();
            let text = rest.split_once('>').unwrap().1.strip_suffix("</text>").unwrap();
            (style.to_owned(), text.to_owned())
        });
        each.collect()
    };
    (frame.join("\n"), rows.into_iter().map(words).collect())
}

/// Every word of the rows with its style.
pub fn styled(rows: &[Row]) -> BTreeSet<(String, String)> {
    rows.iter().flatten().map(|words| (words.style.clone(), escaped(&words.text))).collect()
}
