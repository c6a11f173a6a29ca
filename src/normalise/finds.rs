//! The findings of a detection: malware, hashes, files, addresses, mail; and the device of a sign-in or of a match on a
//! device.
//!
//! Detections put these in many places: a list of attachments, an object, JSON in the text of an investigation. The
//! module collects them by the names of their members, wherever these occur.

use std::borrow::Cow;

use super::event::{Event, KnownMember};
use super::json;
use super::reach::{each_scalar, inner, is_address};
use crate::severity::is_true;

/// The most findings of one kind that are kept; the original event has all of them.
const KEPT_MAX: usize = 50;

/// The findings in an event.
#[derive(Debug, Default)]
pub(crate) struct Finds {
    /// Names of malware, or of its family.
    pub malware: Vec<String>,
    /// Hashes in lower case: of 32 digits MD5, of 40 SHA-1, of 64 SHA-256.
    pub hashes: Vec<String>,
    /// Names of files.
    pub files: Vec<String>,
    /// Addresses.
    pub urls: Vec<String>,
    /// Senders of the mail.
    pub senders: Vec<String>,
    /// Its recipients.
    pub recipients: Vec<String>,
    /// Its subjects.
    pub subjects: Vec<String>,
    /// Its message ids.
    pub message_ids: Vec<String>,
    /// Addresses of machines.
    pub ips: Vec<String>,
    /// The name of the alert.
    pub alert: Option<String>,
    /// The mailboxes and people it is about.
    pub people: Vec<String>,
}

/// Whether records of this type, or of this folded operation, say that something was found.
pub(crate) fn is_finding(kin: Option<i64>, operation: &str) -> bool {
    matches!(kin, Some(28 | 29 | 41 | 47 | 63 | 64 | 65 | 78 | 98 | 113)) || operation == "filemalwaredetected"
}

fn keep(list: &mut Vec<String>, text: &str) {
    let text = text.trim();
    if !text.is_empty() && list.len() < KEPT_MAX && !list.iter().any(|known| known == text) {
        list.push(text.to_owned());
    }
}

/// A hash, or `None` if the text is not one.
fn hash(text: &str) -> Option<String> {
    let text = text.trim();
    let is_hash = matches!(text.len(), 32 | 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hash.then(|| text.to_ascii_lowercase())
}

impl Finds {
    /// Collects the findings of an event; none if the event is not a finding.
    pub fn of(event: &Event<'_>, kin: Option<i64>, operation: &str) -> Finds {
        let mut finds = Finds::default();
        if !is_finding(kin, operation) {
            return finds;
        }
        // In these record types only the top-level members are findings; deeper members may be anything.
        let is_deep = kin == Some(64);
        each_scalar(event.text(), &mut |key, value| finds.take(key, value, is_deep));
        finds
    }

    fn take(&mut self, key: &str, value: &str, is_deep: bool) {
        let is = |names: &[&str]| names.iter().any(|name| key.eq_ignore_ascii_case(name));
        if is(&["MalwareFamily", "MalwareName", "VirusInfo", "ThreatName"]) {
            keep(&mut self.malware, value);
        } else if is(&["SHA256", "SHA256Hash", "MD5", "MD5Hash", "SHA1", "SHA1Hash", "FileHash", "Hash"])
            || (is_deep && is(&["Value"]))
        {
            if let Some(hash) = hash(value) {
                keep(&mut self.hashes, &hash);
            }
        } else if is(&["FileName"]) {
            keep(&mut self.files, value);
        } else if is_deep {
            self.take_of_investigation(key, value);
        }
    }

    fn take_of_investigation(&mut self, key: &str, value: &str) {
        let is = |names: &[&str]| names.iter().any(|name| key.eq_ignore_ascii_case(name));
        let has_scheme = |text: &str| text.contains("://");
        if is(&["Urls", "Url"]) && has_scheme(value) {
            keep(&mut self.urls, value);
        } else if is(&["Sender", "P1Sender", "P2Sender", "SenderAddress"]) && is_address(value) {
            keep(&mut self.senders, value);
        } else if is(&["Recipient", "Recipients", "RecipientAddress"]) && is_address(value) {
            keep(&mut self.recipients, value);
        } else if is(&["MailboxPrimaryAddress", "Upn", "UserPrincipalName"]) && is_address(value) {
            keep(&mut self.people, value);
        } else if is(&["Subject"]) {
            keep(&mut self.subjects, value);
        } else if is(&["InternetMessageId"]) {
            keep(&mut self.message_ids, value);
        } else if is(&["SenderIP", "Address"]) && value.trim().parse::<std::net::IpAddr>().is_ok() {
            keep(&mut self.ips, value);
        } else if is(&["AlertDisplayName", "AlertType"]) && self.alert.is_none() {
            self.alert = Some(value.trim().to_owned());
        }
    }

    /// The first hash of so many digits.
    pub fn hash_of(&self, digits: usize) -> Option<&str> {
        self.hashes.iter().map(String::as_str).find(|hash| hash.len() == digits)
    }
}

/// The device from which somebody signed in, or on which DLP found a match.
#[derive(Debug, Default)]
pub(crate) struct Device<'a> {
    /// Its id in the directory.
    pub id: Option<Cow<'a, str>>,
    /// Its name.
    pub name: Option<Cow<'a, str>>,
    /// Its operating system, as Microsoft calls it (`Windows10`).
    pub os: Option<Cow<'a, str>>,
    /// The browser.
    pub browser: Option<Cow<'a, str>>,
    /// Whether it complies with the tenant's policy.
    pub compliant: Option<bool>,
    /// Whether the tenant manages it.
    pub managed: Option<bool>,
    /// The session.
    pub session: Option<Cow<'a, str>>,
}

impl<'a> Device<'a> {
    /// The device in an event that resembles record type `kin`.
    pub fn of(event: &Event<'a>, kin: Option<i64>) -> Device<'a> {
        let mut device = Device::default();
        match kin {
            Some(9 | 15) => {
                let mut name = None;
                json::objects(
                    event.get(KnownMember::DeviceProperties).unwrap_or_default(),
                    |_, key, value| {
                        if key.eq_ignore_ascii_case("Name") {
                            name = json::scalar(value);
                        } else if key.eq_ignore_ascii_case("Value") {
                            device.take(name.as_deref().unwrap_or_default(), value);
                        }
                    },
                    |_, _| {},
                );
            }
            Some(63) => {
                let within = event.get(KnownMember::EndpointMetaData);
                let of = |name: &str| {
                    event
                        .find(name)
                        .and_then(json::scalar)
                        .or_else(|| inner(within?, name))
                        .filter(|text| !text.is_empty())
                };
                device.name = of("DeviceName");
                device.id = of("MDATPDeviceId").or_else(|| of("DeviceId"));
                device.os = of("Platform").filter(|platform| platform.parse::<i64>().is_err());
            }
            _ => {}
        }
        device
    }

    fn take(&mut self, name: &str, value: &'a str) {
        let text = json::scalar(value).filter(|text| !text.trim().is_empty());
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        let flag = |text: Option<Cow<'a, str>>| text.map(|text| is_true(&text));
        if is("OS") {
            self.os = text;
        } else if is("Id") {
            self.id = text;
        } else if is("DisplayName") {
            self.name = text;
        } else if is("BrowserType") {
            self.browser = text;
        } else if is("SessionId") {
            self.session = text;
        } else if is("IsCompliant") {
            self.compliant = flag(text);
        } else if is("IsManaged") {
            self.managed = flag(text);
        } else if is("IsCompliantAndManaged") {
            let both = flag(text);
            self.compliant = self.compliant.or(both);
            self.managed = self.managed.or(both);
        }
    }

    /// Whether nothing is known about it.
    pub fn is_empty(&self) -> bool {
        self.id.is_none() && self.name.is_none() && self.os.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finds(json: &str, operation: &str) -> Finds {
        let event = Event::parse(json.as_bytes()).unwrap();
        Finds::of(&event, event.record_type(), operation)
    }

    #[test]
    fn every_hash_and_name_of_malware_is_found_wherever_it_stands() {
        let sha = "A".repeat(64);
        for (json, operation) in [
            (
                format!(r#"{{"RecordType":6,"VirusInfo":"Evil","SHA256Hash":"{sha}","SourceFileName":"x"}}"#),
                "filemalwaredetected",
            ),
            (format!(r#"{{"RecordType":47,"FileData":{{"SHA256":"{sha}","MalwareFamily":"Evil"}}}}"#), "atpdetection"),
            (
                format!(r#"{{"RecordType":28,"AttachmentData":[{{"SHA256":"{sha}","MalwareFamily":"Evil"}}]}}"#),
                "timaildata",
            ),
            (
                format!(
                    r#"{{"RecordType":64,"Data":"{{\"Entities\":[{{\"FileHashes\":[{{\"Value\":\"{sha}\"}}],\"MalwareName\":\"Evil\"}}]}}"}}"#
                ),
                "airinvestigationdata",
            ),
        ] {
            let finds = finds(&json, operation);
            assert_eq!(
                (finds.malware.as_slice(), finds.hash_of(64)),
                (&["Evil".to_owned()][..], Some(&*"a".repeat(64))),
                "{json}"
            );
        }
        assert!(finds(&format!(r#"{{"RecordType":1,"SHA256":"{sha}"}}"#), "x").hashes.is_empty());
    }

    #[test]
    fn the_device_of_a_sign_in_is_read_from_its_properties() {
        let json = r#"{"DeviceProperties":[{"Name":"OS","Value":"Windows10"},{"Name":"IsCompliantAndManaged","Value":"True"},{"Name":"Id","Value":"d"},{"Name":"SessionId","Value":"s"}]}"#;
        let event = Event::parse(json.as_bytes()).unwrap();
        let device = Device::of(&event, Some(15));
        assert_eq!(
            (device.os.as_deref(), device.id.as_deref(), device.session.as_deref()),
            (Some("Windows10"), Some("d"), Some("s"))
        );
        assert_eq!((device.compliant, device.managed), (Some(true), Some(true)));
        assert!(Device::of(&event, Some(1)).is_empty());
    }
}
