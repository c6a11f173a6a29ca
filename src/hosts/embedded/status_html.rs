//! The status as one HTML page without scripts or external resources, for a screen of any width.
//!
//! Names and reasons come from outside (an operator's file, Microsoft's answers), so each is escaped.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::completeness::Bars;
use super::status::{Sink, Source, Status};
use crate::model::{Timestamp, counted, slug_of};
use crate::receipts::merkle::sha256;
use crate::report::markup::HtmlPage;
use crate::report::model::SegmentState;
use crate::report::notes::OF_CONTENT;
use crate::report::svg::{self, Scale};

const STYLE: &str = include_str!("status.css");
/// Lines of the log shown.
const RECENT_SHOWN: usize = 12;

/// The inputs of a page.
pub struct StatusView<'a> {
    /// The status of the process.
    pub status: &'a Status,
    /// How completely tenants were read.
    pub bars: &'a Bars,
    /// Where the book is served.
    pub docs_url: &'a str,
    /// After how many seconds the page is loaded again; never by default.
    pub every: Option<u32>,
}

/// The content security policy of the pages: only this style may be applied; nothing may be loaded, sent or framed.
pub fn policy() -> String {
    format!(
        "default-src 'none'; style-src 'sha256-{}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        STANDARD.encode(sha256(STYLE.as_bytes()))
    )
}

/// A page that lists the paths served.
pub fn index(version: &str) -> String {
    let mut page = HtmlPage::default();
    head(&mut page, &format!("m365-audit {version}"), None);
    page.ours(
        "<main>\n<h1>m365-audit</h1>\n<ul>\n\
         <li><a href=\"/status.html\">/status.html</a>: the state of all tenants, to look at</li>\n\
         <li><a href=\"/status\">/status</a>: the same as JSON (schema: <code>m365-audit schema status</code>)</li>\n\
         <li><a href=\"/metrics\">/metrics</a>: metrics as Prometheus reads them</li>\n\
         <li><a href=\"/health\">/health</a>: health with reasons; 503 when a source has failed</li>\n\
         <li><a href=\"/live\">/live</a>: whether the process runs</li>\n\
         <li><a href=\"/ready\">/ready</a>: whether it takes its part in a cluster</li>\n</ul>\n",
    );
    page.element("p", &[("class", "soft")], &format!("Version {version}. Nothing here can be changed."));
    page.ours("</main>\n</body>\n</html>\n");
    page.into_text()
}

/// The page.
pub fn page(shown: &StatusView<'_>) -> String {
    let status = shown.status;
    let mut sources: Vec<&Source> = status.sources.iter().collect();
    sources.sort_by_key(|source| (source.rank(), source.troubles().is_empty()));
    let mut page = HtmlPage::default();
    let title = format!("{}: {}", sum(&sources), status.state);
    head(&mut page, &title, shown.every);
    svg::patterns(&mut page);
    page.ours("<a class=\"skip\" href=\"#tenants\">To the tenants</a>\n<header>\n<h1>m365-audit</h1>\n");
    let class = match status.state.as_str() {
        "failed" => "sum failed",
        "degraded" => "sum degraded",
        _ => "sum healthy",
    };
    page.element("p", &[("class", class), ("role", "status")], &sum(&sources));
    process(&mut page, status, shown.every);
    page.ours("</header>\n<main>\n");
    tenants(&mut page, shown, &sources);
    sinks(&mut page, status, shown.docs_url);
    recent(&mut page, status);
    page.ours("</main>\n<footer class=\"soft\">");
    page.text("All times are UTC. The same as JSON: ");
    page.ours("<a href=\"/status\">/status</a>. <a href=\"/\">What else is served</a>.</footer>\n</body>\n</html>\n");
    page.into_text()
}

fn head(page: &mut HtmlPage, title: &str, every: Option<u32>) {
    page.ours("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    page.begin("meta", &[("http-equiv", "Content-Security-Policy"), ("content", &policy_of_a_page())]);
    page.ours(
        "\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<meta name=\"referrer\" content=\"no-referrer\">\n",
    );
    if let Some(every) = every {
        page.begin("meta", &[("http-equiv", "refresh"), ("content", &every.to_string())]);
        page.ours("\n");
    }
    page.element("title", &[], title);
    page.ours("<style>");
    page.ours(STYLE);
    page.ours("</style>\n</head>\n<body>\n");
}

/// `frame-ancestors` has no effect inside a page; the header has it.
fn policy_of_a_page() -> String {
    policy().replace("; frame-ancestors 'none'", "")
}

/// How many tenants there are, and in which state.
fn sum(sources: &[&Source]) -> String {
    let words = ["failed", "degraded", "starting", "healthy"];
    let count = |rank: usize| sources.iter().filter(|source| usize::from(source.rank()) == rank).count();
    let states = words.iter().enumerate().map(|(rank, word)| (count(rank), word)).filter(|(count, _)| *count > 0);
    let states: Vec<String> = states.map(|(count, word)| format!("{count} {word}")).collect();
    format!("{}: {}", counted(sources.len() as u64, "tenant"), states.join(", "))
}

fn process(page: &mut HtmlPage, status: &Status, every: Option<u32>) {
    let process = &status.process;
    let up = span(process.now.duration_since(process.started).as_secs_f64());
    let events: f64 = status.sources.iter().flat_map(|s| &s.streams).map(|stream| stream.events_per_sec).sum();
    let mut words = format!(
        "Version {}, process {}, up {up}; {}; {events:.1} events a second.",
        process.version,
        process.pid,
        moment(process.now)
    );
    if process.waiting > 0 {
        let (waiting, reading) = (counted(process.waiting, "tenant"), counted(process.reading, "tenant"));
        words += &format!(" Of those with blobs to read {waiting} wait for a turn, {reading} read now.");
    }
    page.ours("<p class=\"soft\">");
    page.text(&words);
    match every {
        Some(_) => page.ours(" <a href=\"/status.html\">Stop loading it again</a>"),
        None => page.ours(" <a href=\"/status.html?every=30\">Load it again every 30 s</a>"),
    }
    page.end("p");
    if let Some(trouble) = &status.store {
        page.element("p", &[("class", "sum degraded")], &format!("State: {trouble}"));
    }
}

fn tenants(page: &mut HtmlPage, shown: &StatusView<'_>, sources: &[&Source]) {
    let scale = Scale::new(shown.bars.from, shown.bars.to);
    page.ours(
        "<section aria-labelledby=\"tenants\">\n<h2 id=\"tenants\" tabindex=\"-1\">Tenants</h2>\n\
         <div class=\"wide\" role=\"region\" tabindex=\"0\" aria-labelledby=\"tenants\">\n<table class=\"tenants\">\n\
         <caption>Those in trouble first. The bar is the last 7 days, by when Microsoft made content available: of each \
         moment the worst of the content types.</caption>\n<thead><tr><th scope=\"col\">state</th><th scope=\"col\">tenant\
         </th><th scope=\"col\" class=\"n\">delay</th><th scope=\"col\" class=\"n\">newest event</th><th scope=\"col\" \
         class=\"n\">requests a minute</th><th scope=\"col\">what is wrong</th><th scope=\"col\" class=\"bar-cell\">read \
         completely",
    );
    svg::axis(page, scale);
    page.ours("</th></tr></thead>\n<tbody>\n");
    for source in sources {
        tenant(page, shown, scale, source);
    }
    page.ours("</tbody></table></div>\n");
    let all = || shown.bars.of.values().flatten();
    let there = |state: SegmentState| all().any(|segment| segment.state == state);
    let meanings: Vec<_> = OF_CONTENT.into_iter().filter(|(state, _)| there(*state)).collect();
    svg::legend(page, &meanings);
    page.ours("</section>\n");
}

/// The name of a state, with a mark that distinguishes it without colour, and the class of its row.
fn state_of(state: &str) -> (&'static str, &'static str) {
    match state {
        "failed" => ("\u{2716} failed", "failed"),
        "degraded" => ("\u{25b2} degraded", "degraded"),
        "starting" => ("\u{2026} starting", "starting"),
        _ => ("\u{25cf} healthy", "healthy"),
    }
}

fn tenant(page: &mut HtmlPage, shown: &StatusView<'_>, scale: Scale, source: &Source) {
    let (word, class) = state_of(&source.state);
    page.begin("tr", &[("class", class)]);
    page.element("td", &[("class", "state")], word);
    page.begin("th", &[("scope", "row")]);
    page.text(&source.name);
    page.element("span", &[("class", "guid")], &source.tenant);
    page.end("th");
    let secs = |secs: Option<f64>| secs.map_or_else(|| "-".to_owned(), span);
    let ago = |secs: Option<f64>| secs.map_or_else(|| "-".to_owned(), |secs| format!("{} ago", span(secs)));
    let requests = match source.quota.granted() {
        Some(granted) => format!("{:.0} of {granted:.0}", source.quota.used_per_minute),
        None => format!("{:.0}", source.quota.used_per_minute),
    };
    for (name, text) in [
        ("delay", secs(source.delay_secs(shown.status.process.now))),
        ("newest event", ago(source.last_event_secs())),
        ("requests a minute", requests),
    ] {
        page.element("td", &[("class", "n"), ("data-name", name)], &text);
    }
    page.ours("<td class=\"why\">");
    for trouble in source.troubles() {
        reason(page, &trouble, shown.docs_url);
    }
    if let Some(waited) = source.turn_waiting_secs {
        page.element("p", &[("class", "soft")], &format!("waits for its turn to read for {}", span(waited)));
    }
    page.ours("</td><td class=\"bar-cell\">");
    match shown.bars.of.get(&source.name) {
        Some(bar) => svg::bar(page, scale, &source.name, bar, &[]),
        None => page.element("span", &[("class", "soft")], "nothing is known yet"),
    }
    page.ours("</td></tr>\n");
}

/// A reason whose slug leads to its page; the remedy is collapsed.
fn reason(page: &mut HtmlPage, text: &str, docs_url: &str) {
    let (text, hint) = match text.split_once(" (hint: ") {
        Some((text, hint)) => (text, Some(hint.trim_end_matches(')'))),
        None => (text, None),
    };
    page.ours("<p>");
    match slug_of(text) {
        Some(slug) => {
            let address = format!("{}/errors/{slug}.html", docs_url.trim_end_matches('/'));
            page.element("a", &[("href", &address), ("rel", "noreferrer")], slug);
            page.text(text.get(slug.len() + 1..).unwrap_or_default());
        }
        None => page.text(text),
    }
    page.end("p");
    if let Some(hint) = hint {
        page.ours("<details><summary>what to do</summary>");
        page.element("p", &[], hint);
        page.end("details");
    }
}

fn sinks(page: &mut HtmlPage, status: &Status, docs_url: &str) {
    page.ours(
        "<section aria-labelledby=\"sinks\">\n<h2 id=\"sinks\">Sinks</h2>\n<div class=\"wide\" role=\"region\" tabindex=\"0\" \
         aria-labelledby=\"sinks\">\n<table>\n<thead><tr><th scope=\"col\">state</th><th scope=\"col\">sink</th>\
         <th scope=\"col\">since</th><th scope=\"col\" class=\"n\">records a second</th><th scope=\"col\" class=\"n\">records\
         </th><th scope=\"col\" class=\"n\">failed writes</th><th scope=\"col\">what is wrong</th></tr></thead>\n<tbody>\n",
    );
    let mut sinks: Vec<&Sink> = status.sinks.iter().collect();
    sinks.sort_by_key(|sink| sink.state == "healthy");
    for sink in sinks {
        let (word, class) = state_of(&sink.state);
        page.begin("tr", &[("class", class)]);
        page.element("td", &[("class", "state")], word);
        page.element("th", &[("scope", "row")], &sink.name);
        page.element("td", &[], &moment(sink.since));
        page.element("td", &[("class", "n")], &format!("{:.1}", sink.records_per_sec));
        page.element("td", &[("class", "n")], &sink.records.to_string());
        page.element("td", &[("class", "n")], &sink.retries.to_string());
        page.ours("<td class=\"why\">");
        if let Some(text) = &sink.reason {
            reason(page, text, docs_url);
        }
        page.ours("</td></tr>\n");
    }
    page.ours("</tbody></table></div>\n</section>\n");
}

fn recent(page: &mut HtmlPage, status: &Status) {
    page.ours("<section aria-labelledby=\"recent\">\n<h2 id=\"recent\">Last warnings and errors, newest first</h2>\n");
    if status.recent.is_empty() {
        page.ours("<p>None.</p>\n</section>\n");
        return;
    }
    page.ours("<ul class=\"log\">\n");
    for line in status.recent.iter().rev().take(RECENT_SHOWN) {
        let class = if line.level == "error" { "error" } else { "warn" };
        page.ours("<li>");
        page.text(&moment(line.time));
        page.ours(" ");
        page.element("b", &[("class", class)], &line.level);
        page.text(&line.text);
        page.end("li");
    }
    page.ours("</ul>\n</section>\n");
}

fn moment(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// A number of seconds in words.
fn span(secs: f64) -> String {
    let secs = secs.max(0.0).round() as u64;
    match secs {
        0..=119 => format!("{secs} s"),
        120..=7199 => format!("{} min", secs / 60),
        7200..=172_799 => format!("{} h {} min", secs / 3600, secs % 3600 / 60),
        _ => format!("{} d {} h", secs / 86_400, secs % 86_400 / 3600),
    }
}
