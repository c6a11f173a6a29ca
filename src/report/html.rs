//! A report as one HTML page without scripts or external resources, for a screen of any width and for paper.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::markup::HtmlPage;
use super::model::{
    AuditReport, Chain, Compared, Completeness, Day, ReceiptSummary, Reconcile, ReportedStream, Segment, SegmentState,
    Spread, Tenant,
};
use super::notes::{GLOSSARY, NOT_PROVEN, OF_CONTENT, OF_RECEIPTS, STANDARDS};
use super::svg::{self, Scale};
use super::tables::Holds::{Numbers, Times, Words};
use super::tables::{TableColumn, TableRow, table, terms};
use super::words::{
    CLASSES, NOT_KNOWN, answer, at_least, bound, chain, delay, kind, number, reasons, span, time, time_or, verdict,
};
use crate::receipts::merkle::sha256;
use crate::receipts::statement::Counts;

const STYLE: &str = include_str!("report.css");

/// The page.
pub fn page(report: &AuditReport) -> String {
    let mut page = HtmlPage::default();
    head(&mut page, report);
    page.ours("<main>\n");
    summary(&mut page, report);
    found(&mut page, report);
    if report.tenants.len() > 1 {
        at_a_glance(&mut page, report);
    }
    let scale = Scale::new(report.from, report.to);
    for (at, tenant) in report.tenants.iter().enumerate() {
        of_tenant(&mut page, tenant, report, scale, &anchor(at));
    }
    for tenant in &report.tenants {
        annex(&mut page, tenant);
    }
    notes(&mut page);
    page.ours("</main>\n");
    page.begin("footer", &[("class", "soft")]);
    page.text(&format!("Made {} (UTC) by {}. All times are UTC.", time(report.generated), report.program));
    page.end("footer");
    page.ours("</body>\n</html>\n");
    page.into_text()
}

fn anchor(at: usize) -> String {
    format!("t{}", at + 1)
}

fn head(page: &mut HtmlPage, report: &AuditReport) {
    // Only this style may be applied, and nothing may be loaded.
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{}'; base-uri 'none'; form-action 'none'",
        STANDARD.encode(sha256(STYLE.as_bytes()))
    );
    page.ours("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    page.begin("meta", &[("http-equiv", "Content-Security-Policy"), ("content", &policy)]);
    page.ours(
        "\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<meta name=\"referrer\" content=\"no-referrer\">\n",
    );
    page.begin("meta", &[("name", "generator"), ("content", &report.program)]);
    let title = format!("Completeness of the Microsoft 365 audit log, {} to {}", time(report.from), time(report.to));
    page.element("title", &[], &title);
    page.ours("<style>");
    page.ours(STYLE);
    page.ours("</style>\n</head>\n<body>\n");
    svg::patterns(page);
}

fn summary(page: &mut HtmlPage, report: &AuditReport) {
    page.ours("<header>\n<h1>Completeness of the Microsoft 365 audit log</h1>\n");
    page.element("p", &[("class", "lead")], &answer(report).join(" "));
    let class = match report.completeness {
        Completeness::Complete => "answer good",
        Completeness::Incomplete => "answer bad",
        Completeness::Open | Completeness::NotCovered => "answer",
    };
    page.element("div", &[("class", class)], &format!("Answer: {}", verdict(report.completeness)));
    let tenant = |tenant: &Tenant| format!("{} ({})", tenant.source, tenant.tenant);
    let tenants: Vec<String> = report.tenants.iter().take(10).map(tenant).collect();
    let more = report.tenants.len().saturating_sub(tenants.len());
    let more = if more > 0 { format!(", and {more} more") } else { String::new() };
    let chosen = if report.default_from { "; the last 30 days, or as far as state and receipts reach" } else { "" };
    let facts = [
        ("Period", format!("{} to {}{chosen}", time(report.from), time(report.to))),
        ("Tenants", format!("{}{more}", tenants.join(", "))),
        ("Made", format!("{} by {}", time(report.generated), report.program)),
        ("Times", "UTC everywhere".to_owned()),
        ("Made from", "the collector's state and its signed receipts alone; neither was changed".to_owned()),
    ];
    terms(page, "facts", facts);
    page.ours("</header>\n");
}

fn found(page: &mut HtmlPage, report: &AuditReport) {
    page.ours("<section aria-labelledby=\"found\">\n<h2 id=\"found\">Missing, open or not known</h2>\n");
    if report.findings.is_empty() {
        page.ours("<p>Nothing.</p>\n");
    } else {
        let row = |finding: &super::model::ReportFinding| {
            let content_types = match finding.content_types.as_slice() {
                [] => "all".to_owned(),
                some => some.join(", "),
            };
            TableRow::Cells(vec![
                kind(finding.kind).to_owned(),
                finding.source.clone(),
                content_types,
                finding.text.clone(),
            ])
        };
        page.ours("<div class=\"long\">\n");
        let caption = "What a reader has to know, the worst first. “Missing” cannot be read any more, “open” can still be read \
                       or delivered, “not known” means that nobody can tell.";
        let columns = [("kind", Words), ("tenant", Words), ("content type", Words), ("what", Words)];
        table(page, caption, &columns, report.findings.iter().map(row).collect());
        page.ours("</div>\n");
    }
    page.ours("</section>\n");
}

fn at_a_glance(page: &mut HtmlPage, report: &AuditReport) {
    page.ours("<section aria-labelledby=\"tenants\">\n<h2 id=\"tenants\">Tenants at a glance</h2>\n");
    let row = |tenant: &Tenant| {
        let until = tenant.streams.iter().map(|s| s.position.as_ref().and_then(|p| p.complete_until)).min().flatten();
        let missing = match &tenant.reconcile {
            Reconcile::Made(compared) => {
                format!("{} of {}", number(compared.class("missing")), number(compared.rows))
            }
            Reconcile::None | Reconcile::Unreadable { .. } => NOT_KNOWN.to_owned(),
        };
        TableRow::Cells(vec![
            tenant.source.clone(),
            verdict(tenant.completeness).to_owned(),
            time_or(until, NOT_KNOWN),
            chain(&tenant.receipts.chain),
            missing,
        ])
    };
    let columns = [
        ("tenant", Words),
        ("answer", Words),
        ("every content type complete until", Times),
        ("receipts", Words),
        ("missing by comparison", Numbers),
    ];
    table(page, "One line for each tenant; its section follows.", &columns, report.tenants.iter().map(row).collect());
    page.ours("</section>\n");
}

fn of_tenant(page: &mut HtmlPage, tenant: &Tenant, report: &AuditReport, scale: Scale, id: &str) {
    page.begin("section", &[("class", "tenant"), ("aria-labelledby", id)]);
    page.element("h2", &[("id", id)], &format!("Tenant {}", tenant.source));
    let facts = [
        ("GUID", tenant.tenant.clone()),
        ("Answer", verdict(tenant.completeness).to_owned()),
        ("Receipts", chain(&tenant.receipts.chain)),
    ];
    terms(page, "facts", facts);
    let marks = bars(page, tenant, scale);
    gaps(page, tenant, &marks);
    positions(page, tenant);
    events(page, tenant, scale);
    rules(page, tenant);
    late(page, tenant, &report.lateness_bounds_secs);
    receipts(page, &tenant.receipts);
    comparison(page, &tenant.reconcile);
    page.end("section");
}

/// The marks of each content type's gaps.
fn bars(page: &mut HtmlPage, tenant: &Tenant, scale: Scale) -> Vec<Vec<String>> {
    page.ours(
        "<h3>What was read</h3>\n<p class=\"soft\">By when Microsoft made content available, not by when events \
               happened. Marks G1, G2 … name the gaps in the table below.</p>\n<div class=\"bars\">\n",
    );
    let (mut marks, mut count) = (Vec::new(), 0);
    for stream in &tenant.streams {
        let gaps = stream.bar.iter().filter(|segment| segment.state == SegmentState::Gap).count();
        let of_stream: Vec<String> = (count + 1..=count + gaps).map(|n| format!("G{n}")).collect();
        count += gaps;
        let until = stream.position.as_ref().map(|position| time_or(position.complete_until, "no time yet"));
        let stands = until.map_or_else(|| NOT_KNOWN.to_owned(), |until| format!("complete until {until}"));
        labelled(page, scale, (&stream.content_type, &stands), &stream.bar, &of_stream);
        marks.push(of_stream);
    }
    let hours = &tenant.receipts.hours;
    let reach = format!("{} of {} hours", number(hours.known), number(hours.all));
    labelled(page, scale, ("Receipts", &reach), &tenant.receipts.bar, &[]);
    svg::axis(page, scale);
    page.ours("</div>\n");
    let shown = |state| {
        let bars = tenant.streams.iter().map(|stream| &stream.bar);
        bars.flatten().any(|segment: &Segment| segment.state == state)
    };
    let meanings = OF_CONTENT.into_iter().filter(|(state, _)| shown(*state));
    let of_receipts = tenant.receipts.bar.iter().map(|segment| segment.state);
    let reached: Vec<SegmentState> = of_receipts.collect();
    let meanings = meanings.chain(OF_RECEIPTS.into_iter().filter(|(state, _)| reached.contains(state)));
    svg::legend(page, &meanings.collect::<Vec<_>>());
    marks
}

fn labelled(page: &mut HtmlPage, scale: Scale, (name, stands): (&str, &str), bar: &[Segment], gaps: &[String]) {
    page.ours("<div><h4>");
    page.element("b", &[], name);
    page.element("span", &[], stands);
    page.ours("</h4>\n");
    svg::bar(page, scale, name, bar, gaps);
    page.ours("</div>\n");
}

fn gaps(page: &mut HtmlPage, tenant: &Tenant, marks: &[Vec<String>]) {
    let mut rows = Vec::new();
    for (stream, marks) in tenant.streams.iter().zip(marks) {
        let gaps = stream.bar.iter().filter(|segment| segment.state == SegmentState::Gap);
        rows.extend(gaps.zip(marks).map(|(gap, mark)| {
            let long = span(gap.to.duration_since(gap.from).as_secs());
            let why = reasons(gap.reason.as_deref().unwrap_or_default());
            TableRow::Cells(vec![mark.clone(), stream.content_type.clone(), time(gap.from), time(gap.to), long, why])
        }));
    }
    if rows.is_empty() {
        page.ours("<p>No gap is known in this period.</p>\n");
        return;
    }
    let columns: [TableColumn; 6] =
        [("gap", Words), ("content type", Words), ("from", Times), ("to", Times), ("long", Words), ("why", Words)];
    page.ours("<div class=\"long\">\n");
    table(page, "Gaps: content made available then can no longer be read from the feed.", &columns, rows);
    page.ours("</div>\n");
}

fn positions(page: &mut HtmlPage, tenant: &Tenant) {
    page.ours("<h3>How far it was read, and what is left</h3>\n");
    let row = |stream: &ReportedStream| {
        let time_of = |of: fn(&super::model::PositionSummary) -> Option<crate::model::Timestamp>| {
            time_or(stream.position.as_ref().and_then(of), NOT_KNOWN)
        };
        TableRow::Cells(vec![
            stream.content_type.clone(),
            time_of(|position| Some(position.origin)),
            time_of(|position| position.complete_until),
            time_of(|position| position.last_listing),
            number(stream.owed.blobs),
            number(stream.set_aside.records),
            number(stream.on_hold.reads),
        ])
    };
    let columns = [
        ("content type", Words),
        ("origin", Times),
        ("complete until", Times),
        ("last listing", Times),
        ("blobs owed", Numbers),
        ("records set aside", Numbers),
        ("reads on hold", Numbers),
    ];
    table(page, "As it stands now.", &columns, tenant.streams.iter().map(row).collect());
    let mut rows = Vec::new();
    for stream in &tenant.streams {
        let why = |reason: &super::model::Reason| {
            TableRow::Cells(vec![stream.content_type.clone(), reason.why.clone(), number(reason.records)])
        };
        rows.extend(stream.set_aside.reasons.iter().map(why));
    }
    if !rows.is_empty() {
        let columns = [("content type", Words), ("why receivers refused them", Words), ("records", Numbers)];
        table(page, "Records set aside, by the receiver's reason.", &columns, rows);
    }
}

const OUTCOMES: [TableColumn; 6] = [
    ("delivered", Numbers),
    ("dropped", Numbers),
    ("set aside", Numbers),
    ("on hold", Numbers),
    ("repeated", Numbers),
    ("without id", Numbers),
];

fn cells(counts: Option<&Counts>, is_whole: bool) -> Vec<String> {
    let Some(counts) = counts else { return vec![NOT_KNOWN.to_owned(); OUTCOMES.len()] };
    let Counts { delivered, set_aside, held, dropped, repeated, without_id } = *counts;
    [delivered, dropped, set_aside, held, repeated, without_id].map(|count| at_least(count, is_whole)).to_vec()
}

fn day_name(day: &Day) -> String {
    day.until.as_ref().map_or_else(|| day.day.clone(), |until| format!("{} to {until}", day.day))
}

fn events(page: &mut HtmlPage, tenant: &Tenant, scale: Scale) {
    page.ours("<h3>What became of the events</h3>\n");
    let row = |stream: &ReportedStream| {
        let cells = cells(stream.counts.as_ref(), stream.counts_are_whole);
        TableRow::Cells([vec![stream.content_type.clone()], cells].concat())
    };
    let columns: Vec<TableColumn> = [("content type", Words)].into_iter().chain(OUTCOMES).collect();
    let caption = "By content type, over the whole period, from receipts. “≥” means at least: receipts do not reach all of it; “none seen” likewise.";
    table(page, caption, &columns, tenant.streams.iter().map(row).collect());
    page.ours("<div class=\"bars\"><div><h4>");
    page.element("b", &[], "Delivered by day");
    let most = tenant.days.iter().filter_map(|day| day.counts.as_ref()).map(|counts| counts.delivered).max();
    let most = most.map_or_else(|| NOT_KNOWN.to_owned(), |most| format!("at most {} on one day", number(most)));
    page.element("span", &[], &most);
    page.ours("</h4>\n");
    svg::days(page, &tenant.days);
    svg::axis(page, scale);
    page.ours("</div></div>\n");
    let row = |day: &Day| {
        let known = format!("{} of {}", day.hours.known, day.hours.all);
        let cells = cells(day.counts.as_ref(), day.hours.is_whole());
        TableRow::Cells([vec![day_name(day)], cells, vec![known]].concat())
    };
    let columns: Vec<TableColumn> =
        [("day", Words)].into_iter().chain(OUTCOMES).chain([("hours known", Numbers)]).collect();
    let caption = "By the day on which the collector settled the events, in hours of UTC; not by when they happened. The annex \
                   has each content type.";
    table(page, caption, &columns, tenant.days.iter().map(row).collect());
}

fn rules(page: &mut HtmlPage, tenant: &Tenant) {
    page.ours("<h3>Dropped by rule</h3>\n");
    match &tenant.dropped_by_rule {
        None => page.element("p", &[], "Not known: receipts say nothing of this period."),
        Some(rules) if rules.is_empty() => page.element("p", &[], "None."),
        Some(rules) => {
            let name =
                |rule: &Option<String>| rule.clone().unwrap_or_else(|| "rules that receipts do not name".to_owned());
            let row = |rule: &super::model::DroppingRule| TableRow::Cells(vec![name(&rule.rule), number(rule.events)]);
            let caption = "Events that a rule of the configuration left out, by the rule's id.";
            table(page, caption, &[("rule", Words), ("events", Numbers)], rules.iter().map(row).collect());
        }
    }
}

/// One of the two delays, and its name.
type DelayKind = (&'static str, fn(&ReportedStream) -> Option<&Spread>);

const DELAYS: [DelayKind; 2] = [
    ("from an event to the content it is in (Microsoft's part)", |stream| stream.lateness.events.as_ref()),
    ("from there to when it was read (the collector's part)", |stream| stream.lateness.content.as_ref()),
];

fn spread(spread: Option<&Spread>) -> Vec<String> {
    let Some(spread) = spread else { return vec![NOT_KNOWN.to_owned(); 4] };
    let times = [spread.median_secs, spread.p99_secs, spread.longest_secs].map(delay);
    [vec![number(spread.counted)], times.to_vec()].concat()
}

fn late(page: &mut HtmlPage, tenant: &Tenant, bounds: &[u64]) {
    page.ours("<h3>How late content came</h3>\n");
    let mut rows = Vec::new();
    for (name, of) in DELAYS {
        rows.push(TableRow::Group(name.to_owned()));
        rows.extend(
            tenant.streams.iter().map(|s| TableRow::Cells([vec![s.content_type.clone()], spread(of(s))].concat())),
        );
    }
    let columns = [
        ("content type", Words),
        ("counted", Numbers),
        ("half within", Numbers),
        ("99 % within", Numbers),
        ("longest", Numbers),
    ];
    table(page, "Delays of events and of content that was read in the period.", &columns, rows);
    let mut rows = Vec::new();
    for (name, of) in DELAYS {
        rows.push(TableRow::Group(name.to_owned()));
        for stream in tenant.streams.iter().filter(|stream| of(stream).is_some()) {
            let counts = of(stream).map(|spread| spread.counts.iter().map(|count| number(*count)).collect());
            rows.push(TableRow::Cells([vec![stream.content_type.clone()], counts.unwrap_or_default()].concat()));
        }
    }
    if tenant.streams.iter().any(|stream| DELAYS.iter().any(|(_, of)| of(stream).is_some())) {
        const HEADS: [&str; 13] =
            ["≤ 1 min", "5 min", "15 min", "30 min", "1 h", "2 h", "6 h", "12 h", "1 d", "2 d", "3 d", "7 d", "more"];
        debug_assert!(bounds.iter().zip(HEADS).all(|(secs, head)| head.ends_with(&bound(*secs))), "{bounds:?}");
        let columns: Vec<TableColumn> =
            [("content type", Words)].into_iter().chain(HEADS.map(|head| (head, Numbers))).collect();
        table(page, "How many were so late: each count has those beyond the bound before it.", &columns, rows);
    }
}

fn receipts(page: &mut HtmlPage, receipts: &ReceiptSummary) {
    page.ours("<h3>Receipts</h3>\n");
    let hours = &receipts.hours;
    let mut facts = vec![("State", chain(&receipts.chain))];
    if matches!(receipts.chain, Chain::Verified | Chain::NotVerified) {
        let or = |text: &Option<String>| text.clone().unwrap_or_else(|| NOT_KNOWN.to_owned());
        facts.push(("Key", or(&receipts.key)));
        facts.push(("Sealed", format!("{} parts with {} receipts", number(receipts.parts), number(receipts.entries))));
        let (first, last) = (time_or(receipts.first_hour, NOT_KNOWN), time_or(receipts.last_hour, NOT_KNOWN));
        facts.push(("Hours sealed", format!("{first} to {last}, each named by its beginning")));
        if receipts.removed_as_too_old > 0 {
            facts.push(("Older parts", format!("{} were removed as too old", number(receipts.removed_as_too_old))));
        }
        facts.push(("Last hash", or(&receipts.last_hash)));
    }
    let reach = format!(
        "{} of {} hours of the period are known, {} in part, {} not known",
        number(hours.known),
        number(hours.all),
        number(hours.in_part),
        number(hours.not_known())
    );
    facts.push(("Reach", reach));
    terms(page, "facts", facts);
    let lacking = receipts.bar.iter().filter(|segment| segment.state != SegmentState::Complete);
    let row = |segment: &Segment| {
        let what = if segment.state == SegmentState::InPart { "some may be lacking" } else { NOT_KNOWN };
        TableRow::Cells(vec![time(segment.from), time(segment.to), what.to_owned()])
    };
    let rows: Vec<TableRow> = lacking.map(row).collect();
    if !rows.is_empty() {
        let columns = [("from", Times), ("to", Times), ("receipts", Words)];
        table(page, "Hours of the period without receipts, or with some.", &columns, rows);
    }
    if !receipts.faults.is_empty() {
        let row = |(at, fault): (usize, &String)| TableRow::Cells(vec![(at + 1).to_string(), fault.clone()]);
        let caption = format!("What is wrong with them: {} in all.", number(receipts.faults_in_all));
        let rows = receipts.faults.iter().enumerate().map(row).collect();
        table(page, &caption, &[("fault", Numbers), ("what", Words)], rows);
    }
}

fn comparison(page: &mut HtmlPage, reconcile: &Reconcile) {
    page.ours("<h3>Comparison with Microsoft’s audit search</h3>\n");
    let compared: &Compared = match reconcile {
        Reconcile::None => {
            let text = "None was made. `m365-audit reconcile` compares an export of Microsoft's audit search with what was \
                        delivered, row by row.";
            return page.element("p", &[], text);
        }
        Reconcile::Unreadable { why } => {
            return page.element("p", &[], &format!("Not known: the verdict of the last one cannot be read: {why}."));
        }
        Reconcile::Made(compared) => compared,
    };
    let between = compared
        .between
        .map_or_else(|| NOT_KNOWN.to_owned(), |(first, last)| format!("{} to {}", time(first), time(last)));
    let witness = match compared.looks_cut {
        true => format!("it looks cut: {}", compared.why.join("; ")),
        false => "it does not look cut".to_owned(),
    };
    let facts = [
        ("Made", time(compared.made)),
        ("Events of", between),
        ("Rows", number(compared.rows)),
        ("The export", witness),
        ("Rests on", compared.evidence.join("; ")),
    ];
    terms(page, "facts", facts);
    let row = |(class, meaning): &(&str, &str)| {
        TableRow::Cells(vec![class.replace('_', " "), number(compared.class(class)), (*meaning).to_owned()])
    };
    let mut rows: Vec<TableRow> = CLASSES.iter().map(row).collect();
    let ours = compared.only_ours.map_or_else(|| NOT_KNOWN.to_owned(), number);
    rows.push(TableRow::Cells(vec!["only ours".into(), ours, "delivered here, and not a row of the export".into()]));
    let columns = [("class", Words), ("rows", Numbers), ("meaning", Words)];
    table(page, "Each row of the export is in one class; “only ours” are no rows.", &columns, rows);
    if !compared.missing.is_empty() {
        let row = |event: &super::model::MissingEvent| {
            TableRow::Cells(vec![event.id.clone(), event.time.clone(), event.operation.clone()])
        };
        let caption = format!(
            "Missing events: {} of {}. `m365-audit reconcile --json` lists all.",
            number(compared.missing.len() as u64),
            number(compared.class("missing"))
        );
        let columns = [("id", Words), ("time", Times), ("operation", Words)];
        table(page, &caption, &columns, compared.missing.iter().map(row).collect());
    }
}

/// The tables that are too long for the tenant's section: each day by content type.
fn annex(page: &mut HtmlPage, tenant: &Tenant) {
    page.ours("<section>\n");
    page.element("h2", &[], &format!("Annex: days of {}", tenant.source));
    let types: std::collections::BTreeSet<&String> = tenant.days.iter().flat_map(|day| day.by_type.keys()).collect();
    let mut rows = Vec::new();
    for content_type in types {
        rows.push(TableRow::Group(content_type.clone()));
        rows.extend(tenant.days.iter().map(|day| {
            let cells = cells(day.by_type.get(content_type), day.hours.is_whole());
            TableRow::Cells([vec![day_name(day)], cells].concat())
        }));
    }
    if rows.is_empty() {
        page.element("p", &[], "Events by day and content type: not known, receipts say nothing of this period.");
    } else {
        let columns: Vec<TableColumn> = [("day", Words)].into_iter().chain(OUTCOMES).collect();
        table(page, "Events by content type and by the day on which they were settled.", &columns, rows);
    }
    let mut rows = Vec::new();
    for stream in tenant.streams.iter().filter(|stream| !stream.lateness.days.is_empty()) {
        rows.push(TableRow::Group(stream.content_type.clone()));
        rows.extend(stream.lateness.days.iter().map(|day| {
            let cells = [vec![day.day.clone()], spread(day.events.as_ref()), spread(day.content.as_ref())];
            TableRow::Cells(cells.concat())
        }));
    }
    if !rows.is_empty() {
        let columns = [
            ("day", Words),
            ("events", Numbers),
            ("half within", Numbers),
            ("99 % within", Numbers),
            ("longest", Numbers),
            ("blobs", Numbers),
            ("half read within", Numbers),
            ("99 % read within", Numbers),
            ("longest", Numbers),
        ];
        let caption = "How late content came, by the day on which it was read; of other days it is not known.";
        table(page, caption, &columns, rows);
    }
    page.ours("</section>\n");
}

fn notes(page: &mut HtmlPage) {
    page.ours("<section aria-labelledby=\"standards\">\n<h2 id=\"standards\">Which line answers which standard</h2>\n");
    let row = |(standard, asks, line): &(&str, &str, &str)| {
        TableRow::Cells([standard, asks, line].map(|text| (*text).to_owned()).to_vec())
    };
    let columns = [("standard", Words), ("asks for", Words), ("see", Words)];
    page.ours("<div class=\"standards\">\n");
    table(
        page,
        "A report is evidence; whether it is enough is the auditor's judgement.",
        &columns,
        STANDARDS.iter().map(row).collect(),
    );
    page.ours("</div>\n</section>\n<section aria-labelledby=\"not-proven\">\n<h2 id=\"not-proven\">What this report does not prove</h2>\n<ul>\n");
    for text in NOT_PROVEN {
        page.element("li", &[], text);
    }
    page.ours("</ul>\n</section>\n<section aria-labelledby=\"glossary\">\n<h2 id=\"glossary\">Glossary</h2>\n");
    terms(page, "words", GLOSSARY.map(|(term, meaning)| (term, meaning.to_owned())));
    page.ours("</section>\n");
}
