//! The feed's answers as Microsoft sends them, read tolerantly: listings, subscriptions, error bodies in all their
//! shapes, dates. Pure; follows the "Office 365 Management Activity API reference" and observed answers.

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::model::{BlobRef, ContentType, Timestamp, Window, shortened};

/// How long Microsoft keeps a blob at least after it was created: the documented time.
const LISTED_LIFE: SignedDuration = SignedDuration::from_hours(7 * 24);

/// The longest id of a blob. Microsoft's have some 150 bytes; every blob pays for its id in state, records and logs.
const ID_BYTES_MAX: usize = 4 * 1024;
/// The longest address of a blob.
const URI_BYTES_MAX: usize = 8 * 1024;

/// One subscription of `GET /subscriptions/list`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// The content type's name as sent.
    pub name: String,
    /// The content type, if it is a known one, in Microsoft's spelling.
    pub content_type: Option<ContentType>,
    /// `enabled` or `disabled`; Microsoft's own sample has an entry without it.
    pub status: Option<String>,
    /// The webhook, when there is one. This client never sets any.
    pub webhook: Option<Webhook>,
}

impl Subscription {
    /// Whether it is enabled; `None` when the answer does not state it.
    pub fn is_enabled(&self) -> Option<bool> {
        self.status.as_deref().map(|status| status.eq_ignore_ascii_case("enabled"))
    }
}

/// A webhook that some client has set on a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// Its address.
    pub address: Option<String>,
    /// `enabled`, `disabled` or `expired`.
    pub status: Option<String>,
}

/// An item of a listing that does not name a fetchable blob. It must be reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkippedItem {
    /// The item as received, its beginning if it is long.
    pub json: String,
    /// What is wrong with it.
    pub why: &'static str,
}

/// The form of the body of a failed call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ErrorBody {
    /// `{"error":{"code":"AF…","message":"…"}}`, or something close enough to find the code in.
    Af { code: String, message: String },
    /// The front end's `{"Message":"…"}`.
    FrontEnd { message: String },
    /// An exception of the server, which it splits at the first colon into `code` and `message`; joined again here.
    ServerException { text: String },
    /// Another form: a proxy's page, a truncated body.
    NotJson,
    /// Nothing.
    Empty,
}

impl ErrorBody {
    pub fn parse(body: &[u8]) -> Self {
        let body = without_bom(body).trim_ascii();
        if body.is_empty() {
            return Self::Empty;
        }
        if let Ok(value) = serde_json::from_slice::<Value>(body) {
            return Self::of_json(&value);
        }
        // Microsoft's own documentation prints the AF429 body with single quotes, which is not JSON.
        let text = String::from_utf8_lossy(body);
        match loose_code(&text) {
            Some(code) => Self::Af { code, message: shortened(&text).into_owned() },
            None => Self::NotJson,
        }
    }

    pub fn of_json(value: &Value) -> Self {
        let text = |value: Option<&Value>| match value {
            Some(Value::String(text)) => shortened(text).into_owned(),
            Some(Value::Number(number)) => number.to_string(),
            _ => String::new(),
        };
        let Some(object) = value.as_object() else {
            return match value.as_str().and_then(loose_code) {
                Some(code) => Self::Af { code, message: String::new() },
                None => Self::NotJson,
            };
        };
        let get = |name: &str| object.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value);
        match get("error") {
            Some(Value::Object(error)) => {
                let get = |name: &str| error.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, v)| v);
                let (code, message) = (text(get("code")), text(get("message")));
                match af_code(code.trim()) {
                    Some(code) => Self::Af { code, message },
                    None if code.is_empty() => Self::ServerException { text: message },
                    None => Self::ServerException { text: format!("{code}:{message}") },
                }
            }
            Some(Value::String(error)) => Self::ServerException { text: shortened(error).into_owned() },
            _ => match get("message") {
                Some(Value::String(message)) => Self::FrontEnd { message: shortened(message).into_owned() },
                _ => Self::NotJson,
            },
        }
    }

    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Af { code, .. } => Some(code),
            _ => None,
        }
    }

    /// The wait a message names, as in "retry after 30 seconds" or "try again in 2 minutes".
    pub fn wait_named(&self) -> Option<Duration> {
        match self {
            Self::Af { message, .. } | Self::FrontEnd { message } => wait_in(message),
            Self::ServerException { text } => wait_in(text),
            Self::NotJson | Self::Empty => None,
        }
    }
}

/// `text` if it is `AF` and 3 to 6 digits.
fn af_code(text: &str) -> Option<String> {
    let digits = text.get(..2).filter(|prefix| prefix.eq_ignore_ascii_case("AF")).and_then(|_| text.get(2..))?;
    ((3..=6).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit())).then(|| format!("AF{digits}"))
}

/// The code of a text that is not JSON: the first word after `code`, or the first word of all.
fn loose_code(text: &str) -> Option<String> {
    let mut words = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).peekable();
    if let Some(code) = words.peek().and_then(|word| af_code(word)) {
        return Some(code);
    }
    while let Some(word) = words.next() {
        if word.eq_ignore_ascii_case("code") {
            return words.next().and_then(af_code);
        }
    }
    None
}

fn wait_in(message: &str) -> Option<Duration> {
    let lower = message.to_ascii_lowercase();
    let mut words = lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.find(|word| matches!(*word, "retry" | "again" | "wait" | "retryafter"))?;
    while let Some(word) = words.next() {
        let digits = word.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let Ok(number) = digits.parse::<u64>() else {
            continue;
        };
        let attached = word.get(digits.len()..).unwrap_or_default();
        let unit = if attached.is_empty() { words.next().unwrap_or_default() } else { attached };
        let seconds = match unit {
            "ms" | "millisecond" | "milliseconds" => return Some(Duration::from_millis(number)),
            "m" | "min" | "mins" | "minute" | "minutes" => number.saturating_mul(60),
            "h" | "hour" | "hours" => number.saturating_mul(3600),
            _ => number,
        };
        return Some(Duration::from_secs(seconds));
    }
    None
}

/// One page's items.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ListingPage {
    /// The body is `null` in place of an array.
    pub null: bool,
    pub blobs: Vec<BlobRef>,
    pub skipped: Vec<SkippedItem>,
}

/// Reads the body of a listing that was answered with 200. `null` is a page of its own kind; a body that is not an
/// array is given back as an error body to judge. An empty body is not an empty page: that is `[]`. No bytes at all may
/// be the rest of a page with blobs after a proxy or a broken connection.
pub(super) fn parse_listing(
    body: &[u8],
    content_type: ContentType,
    window: Window,
    uri_of_id: impl Fn(&str) -> String,
) -> Result<ListingPage, ErrorBody> {
    let body = without_bom(body).trim_ascii();
    let mut listing = ListingPage::default();
    if body == b"null" {
        listing.null = true;
        return Ok(listing);
    }
    let items: Vec<&RawValue> = serde_json::from_slice(body).map_err(|_| ErrorBody::parse(body))?;
    for item in items {
        match parse_item(item, content_type, window, &uri_of_id) {
            Ok(blob) => listing.blobs.push(blob),
            Err(why) => listing.skipped.push(SkippedItem { json: shortened(item.get()).into_owned(), why }),
        }
    }
    Ok(listing)
}

fn parse_item(
    item: &RawValue,
    content_type: ContentType,
    window: Window,
    uri_of_id: &impl Fn(&str) -> String,
) -> Result<BlobRef, &'static str> {
    let item: Value = serde_json::from_str(item.get()).map_err(|_| "not readable")?;
    let object = item.as_object().ok_or("not an object")?;
    let text = |name: &str| {
        object
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .and_then(|(_, value)| value.as_str())
            .map(str::trim)
            .filter(|text| !text.is_empty())
    };
    let (id, uri): (Arc<str>, Arc<str>) = match (text("contentId"), text("contentUri")) {
        (Some(id), Some(uri)) => (id.into(), uri.into()),
        // The address of a blob is its id below `/audit/` in every sample and capture.
        (Some(id), None) => (id.into(), uri_of_id(id).into()),
        (None, Some(uri)) => {
            let path = uri.split(['?', '#']).next().unwrap_or_default();
            let id = path.rsplit('/').next().filter(|id| !id.is_empty()).ok_or("neither id nor address")?;
            (id.into(), uri.into())
        }
        (None, None) => return Err("neither id nor address"),
    };
    if id.len() > ID_BYTES_MAX {
        return Err("its id is over 4 KiB");
    }
    if uri.len() > URI_BYTES_MAX {
        return Err("its address is over 8 KiB");
    }
    let stated_end = text("contentExpiration").and_then(parse_time);
    let stated = text("contentCreated").and_then(parse_time).filter(|time| *time > Timestamp::UNIX_EPOCH);
    let created = stated.unwrap_or_else(|| created_by(&id, stated_end, window));
    // A stated end before the documented one is wrong; taken at its word, it would have the blob given up too early.
    let kept_until = created.saturating_add(LISTED_LIFE).unwrap_or(Timestamp::MAX);
    let expires = stated_end.map_or(kept_until, |stated| stated.max(kept_until));
    Ok(BlobRef { content_type, id, uri, created, expires })
}

/// When a blob was created whose listing does not tell: by its id, or else by its expiry. The API lists by this time, so
/// what lies outside the window is wrong.
///
/// A blob is recognised by its id and this time, so it must be the same in every listing: one that moved with the window
/// would have the blob fetched again at each poll. Where nothing tells, it is the beginning of the window's first day:
/// the same for most of a day, and never later than the truth, which would let the position pass the blob.
fn created_by(id: &str, expires: Option<Timestamp>, window: Window) -> Timestamp {
    let by_expiry = || expires?.checked_sub(LISTED_LIFE).ok();
    let known = [time_in_id(id), by_expiry()].into_iter().flatten();
    let start = window.start.as_second();
    let day = || Timestamp::from_second(start - start.rem_euclid(86_400)).unwrap_or(window.start);
    known.into_iter().find(|time| window.start <= *time && *time < window.end).unwrap_or_else(day)
}

/// The time at the head of an id such as `20260716204500123005123$…`, to the millisecond if it has that.
fn time_in_id(id: &str) -> Option<Timestamp> {
    let digits = id.get(..id.bytes().take_while(u8::is_ascii_digit).count())?;
    let second = DateTime::strptime("%Y%m%d%H%M%S", digits.get(..14)?).ok()?;
    let millis = digits.get(14..17).and_then(|digits| digits.parse().ok()).unwrap_or(0);
    TimeZone::UTC.to_timestamp(second).ok()?.checked_add(SignedDuration::from_millis(millis)).ok()
}

/// A time as the feed writes it: RFC 3339, with or without zone (UTC then), with any number of fractional digits.
pub(super) fn parse_time(text: &str) -> Option<Timestamp> {
    let text = text.trim();
    text.parse::<Timestamp>().ok().or_else(|| {
        let whole: String = match text.split_once('.') {
            Some((whole, fraction)) => {
                let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
                let kept = fraction.get(..digits.min(9))?;
                let zone = fraction.get(digits..)?;
                if kept.is_empty() { format!("{whole}{zone}") } else { format!("{whole}.{kept}{zone}") }
            }
            None => text.to_owned(),
        };
        whole.parse::<Timestamp>().ok().or_else(|| TimeZone::UTC.to_timestamp(whole.parse::<DateTime>().ok()?).ok())
    })
}

/// A window's bounds as the API requires them: whole seconds, UTC, no zone. The start is cut down and the end is
/// rounded up, so that nothing inside is left out.
pub(super) fn window_bounds(window: Window) -> (String, String) {
    let format = |second: i64| {
        Timestamp::from_second(second).map(|time| time.strftime("%Y-%m-%dT%H:%M:%S").to_string()).unwrap_or_default()
    };
    let start = window.start.as_nanosecond().div_euclid(1_000_000_000);
    let end = -((-window.end.as_nanosecond()).div_euclid(1_000_000_000));
    (format(i64::try_from(start).unwrap_or(i64::MIN)), format(i64::try_from(end).unwrap_or(i64::MAX)))
}

/// Reads the body of a subscription list. Entries without a name (Microsoft's samples end with `{}`) are left out.
pub(super) fn parse_subscriptions(body: &[u8]) -> Result<Vec<Subscription>, ErrorBody> {
    let body = without_bom(body).trim_ascii();
    if body.is_empty() || body == b"null" {
        return Ok(Vec::new());
    }
    let items: Vec<Value> = serde_json::from_slice(body).map_err(|_| ErrorBody::parse(body))?;
    let text = |value: &Value, name: &str| Some(shortened(value.get(name)?.as_str()?).into_owned());
    Ok(items
        .iter()
        .filter_map(|item| {
            let name = text(item, "contentType")?;
            Some(Subscription {
                content_type: name.parse().ok(),
                name,
                status: text(item, "status"),
                webhook: item
                    .get("webhook")
                    .filter(|webhook| webhook.is_object())
                    .map(|webhook| Webhook { address: text(webhook, "address"), status: text(webhook, "status") }),
            })
        })
        .collect())
}

fn without_bom(body: &[u8]) -> &[u8] {
    body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_microsoft_names_is_bounded_and_refused_with_its_reason() {
        let long = "x".repeat(1 << 20);
        let blob = |id: &str, uri: &str| format!(r#"{{"contentId":"{id}","contentUri":"{uri}"}}"#);
        let body = format!("[{},{},{}]", blob(&long, "https://a/b"), blob("b", &long), blob("c", "https://a/c"));
        let listing = listing(&body).unwrap();
        assert_eq!(listing.blobs.iter().map(|blob| &*blob.id).collect::<Vec<_>>(), ["c"]);
        let skipped: Vec<&str> = listing.skipped.iter().map(|item| item.why).collect();
        assert_eq!(skipped, ["its id is over 4 KiB", "its address is over 8 KiB"]);
        assert!(listing.skipped.iter().all(|item| item.json.len() < 2000 && item.json.contains("bytes in all")));
        for body in [
            format!(r#"{{"error":{{"code":"AF50000","message":"{long}"}}}}"#),
            format!(r#"{{"error":"{long}"}}"#),
            format!(r#"{{"Message":"{long}"}}"#),
            format!(r#"{{"error":{{"code":"{long}","message":"m"}}}}"#),
            format!("AF50000 {long}"),
        ] {
            let shown = format!("{:?}", ErrorBody::parse(body.as_bytes()));
            assert!(shown.len() < 2500, "{} of {}", shown.len(), &body[..40]);
        }
        let list = format!(r#"[{{"contentType":"{long}","status":"{long}","webhook":{{"address":"{long}"}}}}]"#);
        assert!(format!("{:?}", parse_subscriptions(list.as_bytes()).unwrap()).len() < 5000);
    }

    fn window() -> Window {
        Window { start: "2026-07-16T20:00:00.9Z".parse().unwrap(), end: "2026-07-16T21:00:00.1Z".parse().unwrap() }
    }

    fn listing(body: &str) -> Result<ListingPage, ErrorBody> {
        parse_listing(body.as_bytes(), ContentType::Exchange, window(), |id| format!("made/{id}"))
    }

    #[test]
    fn bodies_of_failed_calls_are_told_apart() {
        let af = |code: &str, message: &str| ErrorBody::Af { code: code.into(), message: message.into() };
        let exception = |text: &str| ErrorBody::ServerException { text: text.into() };
        #[rustfmt::skip]
        let table = [
            (r#"{"error":{"code":"AF50000","message":"m"}}"#, af("AF50000", "m")),
            (r#"{"Error":{"Code":"af20022"}}"#, af("AF20022", "")),
            ("\u{feff}{\"error\":{\"code\":\"AF429\",\"message\":\"m\"}}", af("AF429", "m")),
            (r#"{"Message":"Authorization has been denied for this request."}"#, ErrorBody::FrontEnd { message: "Authorization has been denied for this request.".into() }),
            (r#"{"error":{"code":"StartSubscription [AppId","message":"864] failed."}}"#, exception("StartSubscription [AppId:864] failed.")),
            (r#"{"error":{"code":"AF20022x","message":"m"}}"#, exception("AF20022x:m")),
            (r#"{"error":"odd"}"#, exception("odd")),
            ("{'error':{'code':'AF429','message':'Too many'}}", af("AF429", "{'error':{'code':'AF429','message':'Too many'}}")),
            ("AF50000 happened", af("AF50000", "AF50000 happened")),
            ("<html>AF429</html>", ErrorBody::NotJson),
            ("[1]", ErrorBody::NotJson),
            ("{\"error\":{\"code\":\"AF5", ErrorBody::NotJson),
            (" \r\n", ErrorBody::Empty),
        ];
        for (body, expected) in table {
            assert_eq!(ErrorBody::parse(body.as_bytes()), expected, "{body}");
        }
    }

    #[test]
    fn a_wait_named_in_a_message_is_found_and_a_quota_is_not_taken_for_one() {
        for (message, seconds) in [
            ("Too many requests. Retry after 30 seconds.", Some(30)),
            ("please try again in 2 minutes", Some(120)),
            ("Retry-After: 5", Some(5)),
            ("wait 10s", Some(10)),
            ("over 2000 requests in 1 minute", None),
            ("Too many requests. Method=GetBlob, PublisherId=00000000-0000-0000-0000-000000000000", None),
        ] {
            let body = ErrorBody::Af { code: "AF429".into(), message: message.into() };
            assert_eq!(body.wait_named(), seconds.map(Duration::from_secs), "{message}");
        }
    }

    #[test]
    fn times_are_read_in_every_form_seen() {
        for (text, expected) in [
            ("2026-07-16T20:45:00.123Z", Some("2026-07-16T20:45:00.123Z")),
            ("2026-07-16T20:45:00", Some("2026-07-16T20:45:00Z")),
            ("2026-07-16T20:45:00.1230045123456", Some("2026-07-16T20:45:00.123004512Z")),
            ("2026-07-16T20:45:00.1230045123456Z", Some("2026-07-16T20:45:00.123004512Z")),
            ("2026-07-16T22:45:00+02:00", Some("2026-07-16T20:45:00Z")),
            ("2026-07-16 20:45:00", Some("2026-07-16T20:45:00Z")),
            ("", None),
            ("yesterday", None),
        ] {
            assert_eq!(parse_time(text), expected.map(|text| text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn a_window_is_sent_in_whole_seconds_that_cover_it() {
        assert_eq!(window_bounds(window()), ("2026-07-16T20:00:00".into(), "2026-07-16T21:00:01".into()));
    }

    #[test]
    fn a_page_is_empty_only_if_it_says_so() {
        for body in ["[]", "\u{feff}[]"] {
            assert_eq!(listing(body), Ok(ListingPage::default()), "{body:?}");
        }
        assert_eq!(listing("null"), Ok(ListingPage { null: true, ..ListingPage::default() }), "to be asked for again");
        for body in ["{}", "{\"value\":[]}", "<html>sign in</html>", "\"\""] {
            assert!(listing(body).is_err(), "{body:?}: no page at all");
        }
        assert_eq!(
            listing("[null]").map(|page| page.skipped.len()),
            Ok(1),
            "a page with something in it that is no item"
        );
        for body in ["", " \n"] {
            assert_eq!(listing(body), Err(ErrorBody::Empty), "{body:?}: no page at all");
        }
        for body in ["{}", "[", "<html>", r#"[{"contentId":"a""#, "false"] {
            assert_eq!(listing(body), Err(ErrorBody::NotJson), "{body:?}");
        }
        assert_eq!(
            listing(r#"{"error":{"code":"AF20055"}}"#),
            Err(ErrorBody::Af { code: "AF20055".into(), message: String::new() })
        );
    }

    #[test]
    fn an_item_is_taken_with_what_it_has_or_reported_with_its_json() {
        let body = r#"[
            {"contentId":"a$1","contentUri":"https://h/a$1","contentCreated":"2026-07-16T20:45:00.123Z","contentExpiration":"2026-08-05T20:45:00.123Z","new":{}},
            {"contentId":"b","contentCreated":"2026-07-16T20:45:00Z"},
            {"contentUri":"https://h/x/c?q=1","contentCreated":"odd"},
            {"contentId":"","contentUri":null}, 7, {}
        ]"#;
        let page = listing(body).unwrap();
        let shown: Vec<String> =
            page.blobs.iter().map(|b| format!("{} {} {} {}", b.id, b.uri, b.created, b.expires)).collect();
        assert_eq!(
            shown,
            [
                "a$1 https://h/a$1 2026-07-16T20:45:00.123Z 2026-08-05T20:45:00.123Z",
                "b made/b 2026-07-16T20:45:00Z 2026-07-23T20:45:00Z",
                "c https://h/x/c?q=1 2026-07-16T00:00:00Z 2026-07-23T00:00:00Z",
            ]
        );
        let skipped: Vec<&str> = page.skipped.iter().map(|item| item.json.as_str()).collect();
        assert_eq!(skipped, [r#"{"contentId":"","contentUri":null}"#, "7", "{}"]);
    }

    #[test]
    fn a_blob_without_a_creation_time_has_the_same_in_every_listing() {
        let created = |id: &str, created: &str, expires: &str, (start, end): (&str, &str)| {
            let item = serde_json::json!([{"contentId": id, "contentCreated": created, "contentExpiration": expires}]);
            let window = Window { start: start.parse().unwrap(), end: end.parse().unwrap() };
            let page = parse_listing(item.to_string().as_bytes(), ContentType::Exchange, window, str::to_owned);
            page.unwrap().blobs[0].created.to_string()
        };
        let polls = [
            ("2026-07-16T18:00:00Z", "2026-07-16T21:00:00Z"),
            ("2026-07-16T18:05:00Z", "2026-07-16T21:05:00Z"),
            ("2026-07-16T02:00:00Z", "2026-07-17T01:00:00Z"),
        ];
        let (week, other) = ("2026-07-23T20:45:00.5Z", "2026-08-05T20:45:00Z");
        #[rustfmt::skip]
        let table = [
            ("20260716204500123005123$20260716$x", "", other, "2026-07-16T20:45:00.123Z"),
            ("20260716204500$x", "odd", "", "2026-07-16T20:45:00Z"),
            ("20260716204500$x", "0001-01-01T00:00:00", week, "2026-07-16T20:45:00Z"),
            ("492638008028$x", "", week, "2026-07-16T20:45:00.5Z"),
            // Nothing tells, or what does is not in the window.
            ("492638008028$x", "", other, "2026-07-16T00:00:00Z"),
            ("20150603171415$x", "", "2015-06-10T17:14:15Z", "2026-07-16T00:00:00Z"),
            ("20269999999999$x", "", "", "2026-07-16T00:00:00Z"),
            ("x", "", "0001-01-01T00:00:00", "2026-07-16T00:00:00Z"),
        ];
        for (id, stated, expires, expected) in table {
            for window in polls {
                assert_eq!(created(id, stated, expires, window), expected, "{id} {expires} {window:?}");
            }
        }
    }

    #[test]
    fn subscriptions_are_read_without_status_and_with_foreign_names() {
        let body = r#"[{"contentType":"Audit.Exchange","status":"enabled","webhook":null},
            {"contentType":"Audit.General","webhook":{"address":"https://h","status":"expired"}},
            {"contentType":"Audit.Sharepoint","status":"disabled"}, {}]"#;
        let got = parse_subscriptions(body.as_bytes()).unwrap();
        let shown: Vec<_> = got.iter().map(|s| (s.content_type, s.is_enabled(), s.webhook.is_some())).collect();
        assert_eq!(
            shown,
            [
                (Some(ContentType::Exchange), Some(true), false),
                (Some(ContentType::General), None, true),
                (None, Some(false), false)
            ]
        );
    }

    proptest! {
        #[test]
        fn nothing_received_can_panic(text in ".*", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (parse_time(&text), wait_in(&text), loose_code(&text), af_code(&text), ErrorBody::parse(&bytes));
            let _ = parse_listing(&bytes, ContentType::General, window(), |id| id.into());
            let _ = parse_subscriptions(text.as_bytes());
            let item = serde_json::json!([{"contentId": text, "contentCreated": text}, text]).to_string();
            prop_assert!(listing(&item).is_ok());
        }

        #[test]
        fn any_wait_can_be_read(number in any::<u128>(), unit in "[a-z]{0,8}") {
            let _ = wait_in(&format!("retry {number} {unit}"));
        }
    }
}
