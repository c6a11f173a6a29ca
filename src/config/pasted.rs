//! Detects unwanted text around a value in a variable or a file: leftover quotation marks, a name in front, an unfilled
//! placeholder. The message describes it in words, because the value alone looks right at first sight.

/// Invisible characters that editors and web pages leave around a value, beside blanks.
const INVISIBLE: [char; 5] = ['\u{feff}', '\u{200b}', '\u{200c}', '\u{200d}', '\u{2060}'];

/// The value without blanks and invisible characters around it.
pub(super) fn trimmed(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || INVISIBLE.contains(&c))
}

/// One thing that is odd about a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Odd {
    /// The oddity, to follow the value: "it has quotation marks around it".
    pub what: &'static str,
    /// The remedy.
    pub hint: &'static str,
}

const QUOTES: [(char, char); 7] = [
    ('"', '"'),
    ('\'', '\''),
    ('`', '`'),
    ('\u{201c}', '\u{201d}'),
    ('\u{2018}', '\u{2019}'),
    ('\u{201e}', '\u{201c}'),
    ('«', '»'),
];

/// Checks a value of any kind.
pub(super) fn odd(text: &str) -> Option<Odd> {
    let odd = |what, hint| Some(Odd { what, hint });
    let text = trimmed(text);
    let inside = |open: char, close: char| {
        text.strip_prefix(open).and_then(|rest| rest.strip_suffix(close)).is_some_and(|inner| !inner.is_empty())
    };
    if text.is_empty() {
        return odd("it is empty", "give the variable a value where this program is started");
    }
    if QUOTES.iter().any(|(open, close)| inside(*open, *close)) {
        return odd(
            "it has quotation marks around it",
            "`docker run --env-file`, Kubernetes secrets and plain files keep quotation marks: write the value without them",
        );
    }
    if QUOTES.iter().any(|(open, close)| text.starts_with(*open) || text.ends_with(*close)) {
        return odd("it has a quotation mark at one end", "write the value without it");
    }
    if inside('<', '>') {
        return odd("it is a place holder", "put the value in its place, without the angle brackets");
    }
    let variable = |text: &str| {
        !text.is_empty()
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b':' | b' '))
    };
    let between = |open: &str, close: &str| {
        text.strip_prefix(open).and_then(|rest| rest.strip_suffix(close)).is_some_and(variable)
    };
    let unreplaced = between("${", "}")
        || between("$(", ")")
        || between("{{", "}}")
        || between("${{", "}}")
        || between("%", "%")
        || between("#{", "}#")
        || text
            .strip_prefix('$')
            .is_some_and(|name| name.starts_with(|c: char| c.is_ascii_uppercase()) && variable(name));
    if unreplaced {
        return odd(
            "it is a variable that nobody replaced",
            "whatever starts this program (compose file, unit, pipeline) must put the value in its place",
        );
    }
    if text.starts_with("export ") || text.starts_with("set ") || text.starts_with("$env:") {
        return odd(
            "it begins as a shell's command",
            "write the value alone, without the command and the variable's name",
        );
    }
    let name = text.split_once('=').map(|(name, _)| name.trim());
    let upper = |name: &str| {
        name.len() > 1 && name.bytes().all(|byte| byte.is_ascii_uppercase() || matches!(byte, b'_' | b'0'..=b'9'))
    };
    if name.is_some_and(|name| upper(name) || matches!(name, "client_secret" | "tenant_id" | "client_id" | "password"))
    {
        return odd("it begins with a name and `=`", "write the value alone");
    }
    None
}

/// Checks a value that should be a GUID.
pub(super) fn odd_guid(text: &str) -> Option<Odd> {
    let text = trimmed(text);
    if let Some(found) = odd(text) {
        return Some(found);
    }
    let odd = |what, hint| Some(Odd { what, hint });
    let bare = "write the 36 characters alone: 8-4-4-4-12 hexadecimal digits";
    let lower = text.to_ascii_lowercase();
    if text.starts_with(['{', '(']) || text.ends_with(['}', ')']) {
        return odd("it has braces around it", bare);
    }
    if ["urn:", "uuid:", "guid:", "api://", "spn:"].iter().any(|prefix| lower.starts_with(prefix)) {
        return odd("it has a prefix", bare);
    }
    if lower.starts_with("https://") || lower.starts_with("http://") {
        return odd("it is an address", bare);
    }
    if text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return odd("its hyphens are missing", bare);
    }
    if text.chars().any(|c| matches!(c, '\u{2010}'..='\u{2015}' | '\u{2212}')) {
        return odd("it has dashes in place of hyphens", bare);
    }
    None
}

/// Checks an id that need not be a GUID.
pub(super) fn odd_id(text: &str) -> Option<Odd> {
    if trimmed(text).is_empty() {
        return None;
    }
    let braces = |found: &Odd| found.what == "it has braces around it" || found.what == "it has a prefix";
    odd(text).or_else(|| odd_guid(text).filter(braces))
}

/// Checks a client secret or a token, which is one word of ASCII. The text itself is never shown.
pub(crate) fn odd_secret(text: &str) -> Option<String> {
    if let Some(found) = odd(text) {
        return Some(format!("{}: {}", found.what, found.hint));
    }
    let text = trimmed(text);
    let lines = text.lines().filter(|line| !line.trim().is_empty()).count();
    if lines > 1 {
        return Some(format!("it has {lines} lines: write the value alone, on one"));
    }
    if text.chars().any(char::is_control) {
        return Some("it holds characters that cannot be seen: write it anew".to_owned());
    }
    None
}

/// Whether a variable's value may be shown: not if it could be a secret in the wrong variable.
pub(super) fn may_be_shown(written: &str, value: &str) -> bool {
    const SECRET_NAMES: [&str; 8] = ["SECRET", "PASS", "TOKEN", "KEY", "PWD", "CRED", "AUTH_", "SAS"];
    let name = written.to_ascii_uppercase();
    if SECRET_NAMES.iter().any(|part| name.contains(part)) {
        return false;
    }
    let bare: String =
        trimmed(value).chars().filter(|c| !QUOTES.iter().any(|(open, close)| c == open || c == close)).collect();
    let hex = bare.chars().filter(|c| c.is_ascii_hexdigit()).count();
    let is_id = hex >= 24 && bare.chars().all(|c| c.is_ascii_hexdigit() || "-{}() <>:urnid".contains(c));
    if is_id || bare.starts_with("http://") || bare.starts_with("https://") || bare.starts_with('/') {
        return !bare.contains('@') || bare.starts_with('/');
    }
    // A secret of Entra has some forty characters, among them `~` or `.` and both cases and digits; a password is
    // shorter.
    let kinds = [
        bare.contains(|c: char| c.is_ascii_lowercase()),
        bare.contains(|c: char| c.is_ascii_uppercase()),
        bare.contains(|c: char| c.is_ascii_digit()),
        bare.contains(|c: char| !c.is_ascii_alphanumeric() && !"._-/ :<>${}%".contains(c)),
    ];
    bare.chars().count() <= 64 && kinds.into_iter().filter(|kind| *kind).count() <= 2 && !kinds[3]
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUID: &str = "7f3c0a1e-5b1d-4a54-9a0e-2f0d6c1b8e55";

    #[test]
    fn what_clings_to_a_value_is_named() {
        #[rustfmt::skip]
        let table: &[(String, Option<&str>)] = &[
            (GUID.into(), None),
            (format!("  {GUID}\r\n"), None),
            (format!("\u{feff}{GUID}\u{200b}"), None),
            (format!("\"{GUID}\""), Some("it has quotation marks around it")),
            (format!("'{GUID}'"), Some("it has quotation marks around it")),
            (format!("\u{201c}{GUID}\u{201d}"), Some("it has quotation marks around it")),
            (format!(" \"{GUID}\"\r"), Some("it has quotation marks around it")),
            (format!("\"{GUID}"), Some("it has a quotation mark at one end")),
            ("<tenant-id>".into(), Some("it is a place holder")),
            ("${TENANT_ID}".into(), Some("it is a variable that nobody replaced")),
            ("$(TenantId)".into(), Some("it is a variable that nobody replaced")),
            ("%TENANT_ID%".into(), Some("it is a variable that nobody replaced")),
            ("{{ tenant }}".into(), Some("it is a variable that nobody replaced")),
            ("$TENANT_ID".into(), Some("it is a variable that nobody replaced")),
            (format!("export TENANT_ID={GUID}"), Some("it begins as a shell's command")),
            (format!("TENANT_ID={GUID}"), Some("it begins with a name and `=`")),
            (String::new(), Some("it is empty")),
            (" \r\n".into(), Some("it is empty")),
            (format!("{{{GUID}}}"), Some("it has braces around it")),
            (format!("urn:uuid:{GUID}"), Some("it has a prefix")),
            (format!("api://{GUID}"), Some("it has a prefix")),
            (GUID.replace('-', ""), Some("its hyphens are missing")),
            (GUID.replace('-', "\u{2013}"), Some("it has dashes in place of hyphens")),
        ];
        for (text, expected) in table {
            assert_eq!(odd_guid(text).map(|odd| odd.what), *expected, "{text:?}");
        }
    }

    /// The report of `validate` on a source whose variables have these values.
    fn reported(lines: &str, values: &[(&str, &str)]) -> String {
        let env = |name: &str| values.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        let has = |key: &str| lines.contains(&format!("{key} ="));
        let mut text = format!("[sources.contoso]\ntype = \"m365_audit\"\n{lines}\n");
        for (key, value) in
            [("tenant_id", GUID), ("client_id", "c0ffee00-1111-4222-8333-444455556666"), ("client_secret", "s~1")]
        {
            if !has(key) && !(key == "client_secret" && (has("client_secret_file") || has("auth"))) {
                text += &format!("{key} = \"{value}\"\n");
            }
        }
        text += "[sinks.out]\ntype = \"stdout\"\ninputs = [\"contoso\"]\n";
        crate::config::Config::parse(&text, &env).map_or_else(|error| error.to_string(), |_| "valid".to_owned())
    }

    #[test]
    fn what_a_variable_holds_is_told_with_what_clings_to_it() {
        let quoted = format!("\"{GUID}\"");
        let text = reported("tenant_id = \"${TID}\"", &[("TID", &quoted)]);
        assert!(
            text.contains(&format!("`sources.contoso.tenant_id` is `{quoted}` from `${{TID}}`, expected a GUID")),
            "{text}"
        );
        assert!(text.contains("it has quotation marks around it") && text.contains("--env-file"), "{text}");
        let text = reported("client_id = \"${APP}\"", &[("APP", "'c0ffee00-1111-4222-8333-444455556666'")]);
        assert!(text.contains("it has quotation marks around it"), "{text}");
        let text = reported("tenant_id = \"${TID}\"", &[("TID", "")]);
        assert!(text.contains("it is empty"), "{text}");
        let text = reported("poll_interval_secs = \"${POLL}\"", &[("POLL", "\"60\"")]);
        assert!(text.contains("it has quotation marks around it"), "{text}");
        // Blanks, a carriage return and a byte order mark are not faults of the value.
        let padded = format!("\u{feff}{GUID} \r");
        assert_eq!(reported("tenant_id = \"${TID}\"", &[("TID", &padded)]), "valid");
    }

    #[test]
    fn a_secret_in_quotation_marks_is_told_of_and_not_shown() {
        for value in ["\"hunter2~x\"", "'hunter2~x'", "M365_CLIENT_SECRET=hunter2~x", "<hunter2>", "${HUNTER}"] {
            let text = reported("client_secret = \"${S}\"", &[("S", value)]);
            assert!(
                text.contains("`sources.contoso.client_secret` is `***`, expected the secret's value alone"),
                "{value}: {text}"
            );
            assert!(!text.contains("hunter2"), "{text}");
        }
        assert_eq!(reported("client_secret = \"${S}\"", &[("S", "hunter2~x\r\n")]), "valid");
        // A secret in the wrong variable.
        for line in ["tenant_id = \"${S}\"", "api_url = \"${S}\"", "proxy_url = \"${S}\"", "cloud = \"${S}\""] {
            let text = reported(line, &[("S", "abC8Q~hunter2xxxxxxxxxxxxxxxxxxxxxxxxxxxx")]);
            assert!(!text.contains("hunter2") && text.contains("${S}"), "{text}");
        }
    }

    #[test]
    fn an_address_without_a_scheme_gets_the_one_to_write() {
        #[rustfmt::skip]
        let table = [
            ("proxy_url = \"proxy:8080\"", "write `http://proxy:8080`"),
            ("proxy_url = \"proxy.example.com\"", "write `http://proxy.example.com`"),
            ("proxy_url = \"10.0.0.1:3128\"", "write `http://10.0.0.1:3128`"),
            ("proxy_url = \"//proxy:8080\"", "write `http://proxy:8080`"),
            ("proxy_url = \"socks5://proxy.example.com:1080\"", "SOCKS is not spoken"),
            ("proxy_url = \"socks5h://me:pw@proxy.example.com:1080\"", "before `proxy.example.com:1080`"),
            ("proxy_url = \"http://wpad.example.com/proxy.pac\"", "a PAC file is a script"),
            ("proxy_url = \"http://wpad/wpad.dat\"", "a PAC file is a script"),
            ("proxy_url = \"file:///etc/proxy.pac\"", "a PAC file is a script"),
            ("proxy_url = \"http://config.example.com/proxy?site=1\"", "if the address is that of a PAC file"),
            ("proxy_url = \"ftp://proxy.example.com\"", "not `ftp`"),
            ("api_url = \"manage.office.com\"", "write `https://manage.office.com`"),
            ("authority_url = \"gw.example:8443\"", "write `https://gw.example:8443`"),
        ];
        for (line, expected) in table {
            let text = reported(line, &[]);
            assert!(text.contains(expected) && !text.contains("pw@"), "{line}: {text}");
        }
        assert_eq!(reported("proxy_url = \"http://proxy.example.com:3128/\"", &[]), "valid");
    }

    #[test]
    fn where_only_a_platform_answers_nothing_is_sent() {
        for key in ["api_url", "authority_url"] {
            for place in [
                "http://169.254.169.254",
                "http://2852039166",
                "https://[::ffff:169.254.169.254]",
                "http://168.63.129.16",
            ] {
                let text = reported(&format!("{key} = \"{place}\"\nallow_plain_http = true"), &[]);
                assert!(text.contains("is where a cloud tells a machine about itself"), "{key} {place}: {text}");
            }
        }
        assert_eq!(
            reported(
                "auth = \"managed_identity\"\nmanaged_identity_url = \"http://169.254.169.254/metadata/identity/oauth2/token\"",
                &[]
            )
            .lines()
            .filter(|line| line.contains("managed_identity_url"))
            .count(),
            0
        );
    }

    #[test]
    fn a_configuration_is_read_in_every_encoding_of_a_windows_machine() {
        let text = "[sources.contoso]\r\ntype = \"m365_audit\"\r\ntenant_id = \"7f3c0a1e-5b1d-4a54-9a0e-2f0d6c1b8e55\"\r\n\
                    client_id = \"c0ffee00-1111-4222-8333-444455556666\"\r\nclient_secret = \"s~1\"\r\n\
                    [sinks.out]\r\ntype = \"stdout\"\r\ninputs = [\"contoso\"]\r\n";
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        for (encoding, bytes) in crate::config::text::tests::encoded(text) {
            std::fs::write(&path, bytes).unwrap();
            let read = crate::config::Config::load(&path).unwrap_or_else(|error| panic!("{encoding}: {error}"));
            assert_eq!(read.sources.len(), 1, "{encoding}");
        }
        std::fs::write(&path, b"data_dir = \"caf\xe9\"").unwrap();
        let error = crate::config::Config::load(&path).unwrap_err().to_string();
        assert!(error.contains("save it as UTF-8"), "{error}");
    }

    #[test]
    fn a_secret_file_is_read_in_every_encoding_of_a_windows_machine() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        for ending in ["", "\n", "\r\n", "  \r\n\r\n"] {
            for (encoding, bytes) in crate::config::text::tests::encoded(&format!("hunter2~x{ending}")) {
                std::fs::write(&path, bytes).unwrap();
                let read = crate::config::read_secret_file(&path).unwrap_or_else(|error| panic!("{encoding}: {error}"));
                assert_eq!(read.expose(), "hunter2~x", "{encoding}");
            }
        }
        for (content, expected) in [
            ("\"hunter2~x\"", "quotation marks"),
            ("hunter2~x\nhunter2~y\n", "2 lines"),
            ("client_secret=hunter2~x", "name and `=`"),
        ] {
            std::fs::write(&path, content).unwrap();
            let text =
                reported(&format!("client_secret_file = '{}'", path.display()), &[]).replace("client_secret = ", "");
            assert!(text.contains(expected) && !text.contains("hunter2"), "{content}: {text}");
        }
    }

    #[test]
    fn a_secret_is_one_word() {
        for good in ["abc~DEF.123-_x", "a=b", "p$ss", "  abc~def\n"] {
            assert_eq!(odd_secret(good), None, "{good}");
        }
        for bad in ["\"abc\"", "a\nb", "SECRET=abc", "client_secret = abc", "<secret>", "", "a\u{1}b"] {
            assert!(odd_secret(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn what_a_variable_holds_is_shown_unless_it_could_be_a_secret() {
        for shown in [
            "\"7f3c0a1e-5b1d-4a54-9a0e-2f0d6c1b8e55\"",
            "{7f3c0a1e-5b1d-4a54-9a0e-2f0d6c1b8e55}",
            "five",
            "300 s",
            "contoso.onmicrosoft.example",
            "<tenant-id>",
            "${X}",
            "",
            "/etc/ca.pem",
            "https://api.example",
        ] {
            assert!(may_be_shown("${TID}", shown), "{shown}");
        }
        for hidden in
            ["abC8Q~xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", "s3cr3t~value", "Passw0rd1", "https://me:pw@proxy.example"]
        {
            assert!(!may_be_shown("${TID}", hidden), "{hidden}");
        }
        assert!(!may_be_shown("${CLIENT_SECRET}", "five"));
    }
}
