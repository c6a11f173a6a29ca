//! Links between a read of a file or message and a match of data loss prevention.
//!
//! A match names the item in which it was found, and a read names the item that was read. Both are reduced to
//! [`Link`]s; a link that both have joins them:
//!
//! | read | match |
//! | --- | --- |
//! | `ListItemUniqueId` | `SharePointMetaData.UniqueID`, an `ObjectId` that is a GUID, the id inside `SharePointMetaData.FileID` |
//! | `ObjectId`, where it is a URL | `SharePointMetaData.FilePathUrl`, an `ObjectId` that is a URL; both decoded, in lower case |
//! | `InternetMessageId` of `Folders[].FolderItems[]`, `Messages[].MessageItems[]`, `Item`, or of the event | `ExchangeMetaData.MessageID`, an `ObjectId` with an `@` |
//!
//! An item's GUID joins without its site: Microsoft gives both sides one, but not always, and the GUID is unique. A
//! message id loses its angle brackets and has its domain in lower case. Records of a `Sync` (`MailAccessType`) name
//! no messages and join nothing.

use percent_encoding::percent_decode_str;

use super::category::DLP_RECORD_TYPES;
use super::event::{Event, KnownMember};
use super::json;
use super::reach::any_at;
use crate::model::is_guid;
use crate::severity::Severity;
use crate::severity::operation;

/// The most policies and incidents remembered for one item; a file with more is flagged all the same.
const NAMED_MAX: usize = 16;
/// Longest policy name or incident id kept, in bytes.
const NAME_BYTES_MAX: usize = 256;
/// Operations of data loss prevention that are not a match: a block lifted, a false positive reported, a label read.
const NO_MATCH: &[&str] = &["dlpruleundo", "dlpinfo", "miplabel"];

/// 128 bits of a hash of an item's id, an address or a message's id, which a read and its match have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Link(u128);

impl Link {
    /// The link of a number that [`Link::as_u128`] gave.
    pub fn from_u128(number: u128) -> Link {
        Link(number)
    }

    /// The whole link as a number.
    pub fn as_u128(self) -> u128 {
        self.0
    }

    /// Its first 32 bits, for a quick look.
    pub fn prefix(self) -> u32 {
        (self.0 >> 96) as u32
    }

    /// The links that share a prefix, from the first to the last possible one.
    pub fn of_prefix(prefix: u32) -> std::ops::RangeInclusive<Link> {
        let first = u128::from(prefix) << 96;
        Link(first)..=Link(first | (u128::MAX >> 32))
    }

    fn new(domain: &str, text: &str) -> Link {
        let mut hasher = blake3::Hasher::new();
        hasher.update(domain.as_bytes());
        hasher.update(b"\0");
        hasher.update(text.as_bytes());
        let mut hash = [0; 16];
        hasher.finalize_xof().fill(&mut hash);
        Link(u128::from_be_bytes(hash))
    }

    /// The link of an item's GUID, with or without braces. The nil GUID gives none.
    fn of_item(text: &str) -> Option<Link> {
        let guid = text.trim().trim_start_matches('{').trim_end_matches('}');
        let known = is_guid(guid) && guid.bytes().any(|b| !matches!(b, b'0' | b'-'));
        known.then(|| Link::new("item", &guid.to_ascii_lowercase()))
    }

    /// The link of a file's address.
    fn of_url(text: &str) -> Option<Link> {
        let text = text.trim();
        let begins = |scheme: &str| text.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
        if !begins("https://") && !begins("http://") {
            return None;
        }
        let decoded = percent_decode_str(text).decode_utf8_lossy().to_lowercase();
        Some(Link::new("url", decoded.trim_end_matches('/')))
    }

    /// The link of a message's id.
    fn of_message(text: &str) -> Option<Link> {
        let id = text.trim().trim_start_matches('<').trim_end_matches('>').trim();
        if id.is_empty() {
            return None;
        }
        Some(match id.rsplit_once('@') {
            Some((left, domain)) => Link::new("message", &format!("{left}@{}", domain.to_lowercase())),
            None => Link::new("message", id),
        })
    }
}

/// The result of data loss prevention for an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    /// The policies that matched, by name, else by id.
    pub policies: Vec<String>,
    /// The incidents.
    pub incidents: Vec<String>,
    /// The highest severity of the rules that matched.
    pub severity: Severity,
}

impl Flag {
    /// Merges another match of the same item; returns whether it added anything.
    pub fn merge(&mut self, other: &Flag) -> bool {
        let mut changed = false;
        for (known, more) in [(&mut self.policies, &other.policies), (&mut self.incidents, &other.incidents)] {
            for name in more {
                if known.len() < NAMED_MAX && !known.contains(name) {
                    known.push(name.clone());
                    changed = true;
                }
            }
        }
        if other.severity > self.severity {
            self.severity = other.severity;
            changed = true;
        }
        changed
    }

    /// The severity of a read of the item: one step below the severity of the match, at least low.
    pub fn severity_of_read(&self) -> Severity {
        match self.severity {
            Severity::Critical => Severity::High,
            Severity::High => Severity::Medium,
            Severity::Info | Severity::Low | Severity::Medium => Severity::Low,
        }
    }
}

/// Why a read that a rule would have dropped is shipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DlpNote<'a> {
    /// A match of the same item or message is known.
    Flagged(&'a Flag),
    /// The read had to be shipped before it was known whether a match exists.
    Undetermined,
}

/// A match and what it joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DlpMatch {
    /// The items, addresses and messages in which it was found.
    pub links: Vec<Link>,
    /// Its policies, incidents and severity.
    pub flag: Flag,
}

/// The links of a read, without duplicates. If there are none, no match can be joined to it.
pub fn links_of_read(event: &Event<'_>) -> Vec<Link> {
    let mut links = Vec::new();
    if let Some(text) = event.text_of(KnownMember::ListItemUniqueId) {
        links.extend(Link::of_item(&text));
    }
    if let Some(text) = event.text_of(KnownMember::ObjectId) {
        links.extend(Link::of_url(&text));
    }
    for (member, path) in [
        (KnownMember::Folders, "FolderItems.InternetMessageId"),
        (KnownMember::Messages, "MessageItems.InternetMessageId"),
        (KnownMember::Item, "InternetMessageId"),
        (KnownMember::InternetMessageId, ""),
    ] {
        if let Some(token) = event.get(member) {
            each_at(token, path, &mut |text| links.extend(Link::of_message(text)));
        }
    }
    links.sort_unstable();
    links.dedup();
    links
}

/// The match that an event reports, if it reports one. It may have no links: endpoint matches name local files.
pub fn match_of(event: &Event<'_>) -> Option<DlpMatch> {
    let of_dlp = event.record_type().is_some_and(|t| DLP_RECORD_TYPES.contains(&t));
    let named = event.operation().trim().get(..3).is_some_and(|start| start.eq_ignore_ascii_case("dlp"));
    if !of_dlp && !named {
        return None;
    }
    let folded = operation::fold(event.operation());
    let policies = event.get(KnownMember::PolicyDetails);
    if folded != "dlprulematch" && (!of_dlp || NO_MATCH.contains(&folded.as_str()) || policies.is_none()) {
        return None;
    }
    let mut flag = Flag { policies: Vec::new(), incidents: Vec::new(), severity: Severity::Info };
    let mut known = None;
    if let Some(policies) = policies {
        for path in ["PolicyName", "PolicyId"] {
            each_at(policies, path, &mut |text| note(&mut flag.policies, text));
            if !flag.policies.is_empty() {
                break;
            }
        }
        each_at(policies, "Rules.Severity", &mut |text| known = known.max(severity_of(text)));
    }
    flag.severity = known.unwrap_or(Severity::Medium);
    if let Some(incident) = event.text_of(KnownMember::IncidentId) {
        note(&mut flag.incidents, &incident);
    }
    Some(DlpMatch { links: links_of_match(event), flag })
}

fn links_of_match(event: &Event<'_>) -> Vec<Link> {
    let mut links = Vec::new();
    if let Some(text) = event.text_of(KnownMember::ObjectId) {
        let of_message = || text.contains('@').then(|| Link::of_message(&text)).flatten();
        links.extend(Link::of_item(&text).or_else(|| Link::of_url(&text)).or_else(of_message));
    }
    if let Some(file) = event.get(KnownMember::SharePointMetaData) {
        for name in ["UniqueID", "UniqueId"] {
            each_at(file, name, &mut |text| links.extend(Link::of_item(text)));
        }
        each_at(file, "FileID", &mut |text| links.extend(item_of_file_id(text).as_deref().and_then(Link::of_item)));
        each_at(file, "FilePathUrl", &mut |text| links.extend(Link::of_url(text)));
    }
    if let Some(mail) = event.get(KnownMember::ExchangeMetaData) {
        each_at(mail, "MessageID", &mut |text| links.extend(Link::of_message(text)));
    }
    links.sort_unstable();
    links.dedup();
    links
}

/// The item's GUID inside a `FileID`: `SPO_`, base64 of three GUIDs, `_`, and a drive item id, whose last 32 characters
/// are base32 of four bytes and the GUID in little-endian order.
fn item_of_file_id(text: &str) -> Option<String> {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let id = text.trim().strip_prefix("SPO_")?.rsplit_once('_')?.1.as_bytes();
    let tail = id.get(id.len().checked_sub(32)?..)?;
    let (mut bytes, mut bits, mut held) = (Vec::with_capacity(20), 0u32, 0u32);
    for letter in tail {
        let value = LETTERS.iter().position(|known| known.eq_ignore_ascii_case(letter))?;
        held = held << 5 | u32::try_from(value).ok()?;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits) as u8);
            held &= (1 << bits) - 1;
        }
    }
    let guid: [u8; 16] = bytes.get(4..20)?.try_into().ok()?;
    let [a0, a1, a2, a3, b0, b1, c0, c1, rest @ ..] = guid;
    let mut out = format!("{a3:02x}{a2:02x}{a1:02x}{a0:02x}-{b1:02x}{b0:02x}-{c1:02x}{c0:02x}-");
    for (at, byte) in rest.iter().enumerate() {
        if at == 2 {
            out.push('-');
        }
        out.push_str(&format!("{byte:02x}"));
    }
    Some(out)
}

fn each_at(token: &str, path: &str, take: &mut dyn FnMut(&str)) {
    any_at(token, path, &mut |text| {
        take(text);
        false
    });
}

/// Adds a name, cut to the maximum length.
fn note(names: &mut Vec<String>, text: &str) {
    let name = super::cut(text.trim(), NAME_BYTES_MAX);
    if !name.is_empty() && names.len() < NAMED_MAX && !names.iter().any(|known| known == name) {
        names.push(name.to_owned());
    }
}

fn severity_of(word: &str) -> Option<Severity> {
    let word = word.trim();
    [Severity::Low, Severity::Medium, Severity::High, Severity::Critical]
        .into_iter()
        .find(|severity| severity.as_str().eq_ignore_ascii_case(word))
}

/// Appends the members of a note, without the braces around them: `flagged`, `policy`, `incident`, or `undetermined`.
pub(super) fn push_note(note: DlpNote<'_>, out: &mut Vec<u8>) {
    match note {
        DlpNote::Undetermined => out.extend_from_slice(br#""undetermined":true"#),
        DlpNote::Flagged(flag) => {
            out.extend_from_slice(br#""flagged":true"#);
            for (key, names) in [("policy", &flag.policies), ("incident", &flag.incidents)] {
                for (at, name) in names.iter().enumerate() {
                    if at == 0 {
                        out.extend_from_slice(format!(",\"{key}\":[").as_bytes());
                    } else {
                        out.push(b',');
                    }
                    json::push_string(out, name);
                }
                if !names.is_empty() {
                    out.push(b']');
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn read(event: &serde_json::Value) -> Vec<Link> {
        links_of_read(&Event::parse(event.to_string().as_bytes()).unwrap())
    }

    fn matched(event: &serde_json::Value) -> Option<DlpMatch> {
        match_of(&Event::parse(event.to_string().as_bytes()).unwrap())
    }

    #[track_caller]
    fn check(joins: bool, read_of: serde_json::Value, mut match_on: serde_json::Value) {
        match_on["Operation"] = "DLPRuleMatch".into();
        match_on["RecordType"] = 11.into();
        let links = matched(&match_on).unwrap().links;
        let common = read(&read_of).into_iter().any(|link| links.contains(&link));
        assert_eq!(common, joins, "{read_of} {match_on}");
    }

    const ITEM: &str = "9cc7be1c-dd5a-4895-b7cb-757de6d51b42";

    #[test]
    fn a_file_joins_by_its_item_or_its_address() {
        let read = json!({"ListItemUniqueId": ITEM, "Site": "eae3edad-a192-43a9-b317-98d7ea5e3939"});
        check(true, read.clone(), json!({"SharePointMetaData": {"UniqueID": ITEM}}));
        check(true, read.clone(), json!({"SharePointMetaData": {"UniqueId": format!("{{{}}}", ITEM.to_uppercase())}}));
        check(true, read.clone(), json!({"ObjectId": ITEM}));
        check(true, read.clone(), json!({"SharePointMetaData": format!("{{\"UniqueID\":\"{ITEM}\"}}")}));
        check(false, read.clone(), json!({"SharePointMetaData": {"UniqueID": ITEM.replace('9', "8")}}));
        check(false, read, json!({"SharePointMetaData": {"FileName": "x"}}));

        let read = json!({"ObjectId": "https://Contoso.sharepoint.com/sites/a/Shared Documents/Plan é.docx"});
        let url = "https://contoso.sharepoint.com/sites/a/Shared%20Documents/plan%20%C3%A9.docx";
        check(true, read.clone(), json!({"SharePointMetaData": {"FilePathUrl": url}}));
        check(true, read, json!({"ObjectId": url}));
    }

    #[test]
    fn an_empty_or_a_zero_id_joins_nothing() {
        let zero = "00000000-0000-0000-0000-000000000000";
        check(false, json!({"ListItemUniqueId": zero}), json!({"SharePointMetaData": {"UniqueID": zero}}));
        check(false, json!({"ListItemUniqueId": ""}), json!({"SharePointMetaData": {"UniqueID": ""}}));
        check(false, json!({"InternetMessageId": "<>"}), json!({"ExchangeMetaData": {"MessageID": "<>"}}));
    }

    #[test]
    fn a_message_joins_by_its_id_whatever_is_around_it() {
        let on = json!({"ObjectId": "<a.B@Mail.Example>", "ExchangeMetaData": {"MessageID": "<a.B@Mail.Example>"}});
        let folders = |id: &str| {
            json!({"Folders": [{"FolderItems": [{"InternetMessageId": "<x@y>"}]},
                               {"FolderItems": [{"InternetMessageId": id}, {"InternetMessageId": null}]}]})
        };
        check(true, folders("<a.B@mail.example>"), on.clone());
        check(true, folders(" a.B@MAIL.EXAMPLE"), on.clone());
        check(false, folders("<a.b@mail.example>"), on.clone());
        check(true, json!({"Item": {"InternetMessageId": "<a.B@mail.example>"}}), on.clone());
        check(true, json!({"Messages": [{"MessageItems": [{"InternetMessageId": "<a.B@mail.example>"}]}]}), on.clone());
        check(true, json!({"Folders": folders("<a.B@mail.example>")["Folders"].to_string()}), on);
    }

    /// The id is built like Microsoft's: the GUIDs of site, web and list, then the drive item id.
    #[test]
    fn the_item_is_found_inside_a_file_id() {
        // `01`, four bytes and the GUID 9cc7be1c-… in little-endian order, in base32.
        let guid: [u8; 16] =
            [0x1c, 0xbe, 0xc7, 0x9c, 0x5a, 0xdd, 0x95, 0x48, 0xb7, 0xcb, 0x75, 0x7d, 0xe6, 0xd5, 0x1b, 0x42];
        let mut bytes = vec![0xa3, 0x5e, 0x01, 0x7f];
        bytes.extend(guid);
        let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        let bits: Vec<u8> = bytes.iter().flat_map(|b| (0..8).rev().map(move |n| b >> n & 1)).collect();
        let tail: String =
            bits.chunks(5).map(|five| letters[five.iter().fold(0, |n, b| n << 1 | usize::from(*b))] as char).collect();
        let file_id = format!("SPO_ZWFlM2VkYWQtYTE5Mg==_01{tail}");
        assert_eq!(item_of_file_id(&file_id).as_deref(), Some(ITEM));
        check(true, json!({"ListItemUniqueId": ITEM}), json!({"SharePointMetaData": {"FileID": file_id}}));
        for bad in ["", "SPO_", "SPO__", "SPO_x_01", "SPO_x_01AAAAAAAAAAAAAAAA1AAAAAAAAAAAAAAA"] {
            assert_eq!(item_of_file_id(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_and_what_is_no_match() {
        let policy = json!([{"PolicyName": "Cards", "Rules": [{"Severity": "Low"}, {"Severity": "High"}]}]);
        let event = |operation: &str, record_type: i64| json!({"Operation": operation, "RecordType": record_type, "PolicyDetails": policy, "IncidentId": "i"});
        let flag = Flag { policies: vec!["Cards".into()], incidents: vec!["i".into()], severity: Severity::High };
        for (operation, record_type) in
            [("DlpRuleMatch", 11), ("DLPRuleMatch", 13), ("dlprulematch.", 999), ("FileUploadedToCloud", 63)]
        {
            assert_eq!(matched(&event(operation, record_type)).unwrap().flag, flag, "{operation}");
        }
        for (operation, record_type) in
            [("DlpRuleUndo", 11), ("DlpInfo", 13), ("MipLabel", 13), ("FileAccessed", 6), ("DlpSettings", 18)]
        {
            assert_eq!(matched(&event(operation, record_type)), None, "{operation}");
        }
        let bare = matched(&json!({"Operation": "DlpRuleMatch", "RecordType": 11})).unwrap();
        assert_eq!((bare.flag.severity, bare.links.len()), (Severity::Medium, 0));
        assert_eq!(matched(&json!({"Operation": "FileCopiedToRemovableMedia", "RecordType": 63})), None);
    }

    #[test]
    fn matches_of_one_item_add_up() {
        let flag = |policy: &str, severity| Flag { policies: vec![policy.into()], incidents: vec![], severity };
        let mut known = flag("a", Severity::Medium);
        assert!(!known.merge(&flag("a", Severity::Low)));
        assert!(known.merge(&flag("b", Severity::High)));
        assert_eq!(known.policies, ["a", "b"]);
        assert_eq!(known.severity_of_read(), Severity::Medium);
        assert_eq!(flag("a", Severity::Info).severity_of_read(), Severity::Low);
    }

    proptest! {
        /// For any text in the members, nothing panics, and the links are sorted and unique.
        #[test]
        fn any_text_is_read(texts in prop::collection::vec(".{0,40}", 8)) {
            let event = json!({
                "ListItemUniqueId": texts[0], "ObjectId": texts[1], "InternetMessageId": texts[2],
                "Folders": [{"FolderItems": [{"InternetMessageId": texts[3]}]}],
                "SharePointMetaData": {"UniqueID": texts[4], "FileID": format!("SPO_a_{}", texts[5]), "FilePathUrl": texts[6]},
                "ExchangeMetaData": {"MessageID": texts[7]}, "Operation": "DlpRuleMatch", "RecordType": 11,
            });
            for links in [read(&event), matched(&event).unwrap().links] {
                prop_assert!(links.windows(2).all(|pair| pair[0] < pair[1]));
            }
        }

        #[test]
        fn a_prefix_holds_its_link(number: u128) {
            let link = Link::from_u128(number);
            prop_assert!(Link::of_prefix(link.prefix()).contains(&link));
        }
    }
}
