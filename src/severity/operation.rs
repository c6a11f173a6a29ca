//! The folded form of operation names, by which they are compared; what is shipped is the name as received.

/// Folds an operation name: blanks at both ends trimmed, one trailing full stop dropped, lower case, en and em dashes
/// made `-`, runs of blanks made one.
///
/// Microsoft writes most directory operations with a trailing full stop, one with an en dash and a trailing blank,
/// and some in two casings (`DlpRuleMatch`, `DLPRuleMatch`).
pub fn fold(name: &str) -> String {
    let name = name.trim();
    let name = name.strip_suffix('.').unwrap_or(name).trim_end();
    // Nearly every name is ASCII with single blanks. A loop without an early exit tests many bytes at a time.
    let bytes = name.as_bytes();
    let is_plain = bytes.iter().fold(true, |plain, byte| plain & matches!(byte, b' '..=b'~'));
    if is_plain && (memchr::memchr(b' ', bytes).is_none() || !bytes.windows(2).any(|two| two == b"  ")) {
        return name.to_ascii_lowercase();
    }
    let mut folded = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '\u{2013}' | '\u{2014}' => folded.push('-'),
            c if c.is_ascii_graphic() => folded.push(c.to_ascii_lowercase()),
            c if c.is_whitespace() => {
                if !folded.ends_with(' ') {
                    folded.push(' ');
                }
            }
            c => folded.extend(c.to_lowercase()),
        }
    }
    folded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_operation_fold_to_one_form() {
        for (name, folded) in [
            ("Add member to role.", "add member to role"),
            ("Add member to role", "add member to role"),
            ("set-InboxRule", "set-inboxrule"),
            ("DLPRuleMatch", "dlprulematch"),
            (
                "Update application \u{2013} Certificates and secrets  management ",
                "update application - certificates and secrets management",
            ),
            (" A..", "a."),
            ("Été\u{a0}\tx", "été x"),
            (".", ""),
        ] {
            assert_eq!(fold(name), folded);
        }
    }
}
