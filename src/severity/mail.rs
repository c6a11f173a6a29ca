//! What makes a mail rule suspicious: folders nobody reads, names that say nothing.

/// Folders nobody reads, in the languages mailboxes have been seen in; compared folded, as the beginning of the last
/// segment of a path, at a word's end. After the list that `Microsoft-Analyzer-Suite` publishes for the same purpose.
const HIDDEN_FOLDERS: &[&str] = &[
    "rss feeds",
    "rss subscriptions",
    "archive",
    "conversation history",
    "junk email",
    "junk e-mail",
    "deleted items",
    "calendar",
    "notes",
    "sync issues",
    "archiv",
    "archiveren",
    "archivio",
    "archivo",
    "arkiv",
    "arkiver",
    "arquivo",
    "historique des conversations",
    "verlauf der unterhaltung",
    "historial de conversaciones",
    "gesprekgeschiedenis",
    "cronologia delle conversazioni",
    "historico de conversacoes",
    "konversationshistorik",
    "samtalehistorik",
    "samtalelogg",
    "courrier indesirable",
    "correo no deseado",
    "ongewenste e-mail",
    "posta indesiderata",
    "e-mail de lixo",
    "skrappost",
    "søppelpost",
    "uønsket mail",
    "rss-feeds",
    "rss-abonnements",
    "rss-feeder",
    "rss-syotteet",
    "rss-подписки",
    "sottoscrizioni rss",
];

/// Whether a folder is one nobody reads: one of the built-in ones or of `more` (folded).
pub fn is_hidden_folder(path: &str, more: &[String]) -> bool {
    let last = path.trim().trim_end_matches(['\\', '/']).rsplit(['\\', '/', ':']).next().unwrap_or_default();
    let name = fold_name(last);
    let begins = |folder: &str| {
        name.strip_prefix(folder).is_some_and(|rest| rest.chars().next().is_none_or(|c| !c.is_alphanumeric()))
    };
    HIDDEN_FOLDERS.iter().any(|folder| begins(folder)) || more.iter().any(|folder| !folder.is_empty() && begins(folder))
}

/// A folder's name in lower case, the accents of Latin letters taken off.
pub fn fold_name(name: &str) -> String {
    let plain = |c: char| match c {
        'à'..='å' => 'a',
        'ç' => 'c',
        'è'..='ë' => 'e',
        'ì'..='ï' => 'i',
        'ñ' => 'n',
        'ò'..='ö' => 'o',
        'ù'..='ü' => 'u',
        'ý' | 'ÿ' => 'y',
        other => other,
    };
    // Combining accents are what a decomposed text has instead.
    name.trim().to_lowercase().chars().filter(|c| !('\u{300}'..='\u{36f}').contains(c)).map(plain).collect()
}

/// Characters at or below which a rule's name says nothing.
const SHORT_NAME_CHARS: usize = 3;

/// Whether a rule's name is empty, only punctuation, or at most three characters.
pub fn is_odd_name(name: &str) -> bool {
    let name = name.trim();
    name.chars().count() <= SHORT_NAME_CHARS || !name.chars().any(char::is_alphanumeric)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_nobody_reads_are_known_in_local_languages() {
        for path in [
            "RSS Feeds",
            ":\\RSS Subscriptions",
            "joe:\\Conversation History\\",
            "Courrier indésirable",
            "Histórico de Conversações",
            "Skräppost",
            "Søppelpost",
            "Archive",
            "Archive 2024",
            "joe\\Inbox\\Notes",
            "RSS-syötteet",
        ] {
            assert!(is_hidden_folder(path, &[]), "{path}");
        }
        for path in ["Inbox", "Archivist", "Projects", "", "\\", "Newsletters"] {
            assert!(!is_hidden_folder(path, &[]), "{path}");
        }
        assert!(is_hidden_folder("Nieuwsbrieven", &["nieuwsbrieven".to_owned()]));
    }

    #[test]
    fn names_that_say_nothing_are_odd() {
        assert!(["", ".", "...", "....", "abc", " a ", "_-_-_"].iter().all(|name| is_odd_name(name)));
        assert!(!["Invoices", "abcd"].iter().any(|name| is_odd_name(name)));
    }
}
