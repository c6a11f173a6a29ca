//! Signs of a suspicious mail rule: folders that nobody reads, names without meaning.

/// Folders nobody reads, in the languages mailboxes have been seen in; compared folded, as the beginning of the last
/// segment of a path, at a word's end. After the list that `Microsoft-Analyzer-Suite` publishes for the same purpose, and
/// the names that Outlook gives its own folders in other languages.
const HIDDEN_FOLDERS: &[&str] = &[
    // Deleted items.
    "deleted items",
    "geloschte elemente",
    "geloschte objekte",
    "elements supprimes",
    "elementos eliminados",
    "posta eliminata",
    "verwijderde items",
    "itens excluidos",
    "itens eliminados",
    "borttagna objekt",
    "slettede elementer",
    "slettet post",
    "poistetut",
    "elementy usunięte",
    "odstraněna pošta",
    "torolt elemek",
    "silinmiş oğeler",
    "удаленные",
    "видалені",
    "削除済みアイテム",
    "已删除邮件",
    "刪除的郵件",
    "지운 편지함",
    // Junk.
    "junk email",
    "junk e-mail",
    "junk-e-mail",
    "courrier indesirable",
    "correo no deseado",
    "ongewenste e-mail",
    "posta indesiderata",
    "e-mail de lixo",
    "lixo eletronico",
    "skrappost",
    "søppelpost",
    "søppel-e-post",
    "uønsket mail",
    "uønsket e-mail",
    "roskaposti",
    "wiadomości-śmieci",
    "nevyžadana pošta",
    "levelszemet",
    "gereksiz",
    "нежелательная почта",
    "небажана пошта",
    "迷惑メール",
    "垃圾邮件",
    "垃圾郵件",
    "정크 메일",
    // RSS.
    "rss feeds",
    "rss subscriptions",
    "rss-feeds",
    "rss-abonnements",
    "rss-feeder",
    "rss-syotteet",
    "rss-подписки",
    "rss-каналы",
    "sottoscrizioni rss",
    "flux rss",
    "fuentes rss",
    "feed rss",
    "feeds rss",
    "kanały informacyjne rss",
    "informačni kanaly rss",
    "rss-hircsatornak",
    "rss フィード",
    "rss 源",
    "rss 摘要",
    "rss 피드",
    // Archive.
    "archive",
    "archives",
    "archiv",
    "archiveren",
    "archivio",
    "archivo",
    "archivo local",
    "arkiv",
    "arkiver",
    "arquivo",
    "arquivo morto",
    "arkisto",
    "archiwum",
    "архив",
    "архів",
    "アーカイブ",
    "存档",
    "封存",
    "보관",
    // Conversation history.
    "conversation history",
    "historique des conversations",
    "verlauf der unterhaltung",
    "unterhaltungsverlauf",
    "aufgezeichnete unterhaltungen",
    "historial de conversaciones",
    "gesprekgeschiedenis",
    "gespreksgeschiedenis",
    "cronologia delle conversazioni",
    "cronologia conversazioni",
    "historico de conversacoes",
    "historico de conversas",
    "konversationshistorik",
    "samtalehistorik",
    "samtalelogg",
    "keskusteluhistoria",
    "historia konwersacji",
    "historie konverzaci",
    "журнал бесед",
    "会話の履歴",
    "对话历史记录",
    "交談記錄",
    "대화 내용",
    // Calendar, notes.
    "calendar",
    "kalender",
    "calendrier",
    "calendario",
    "kalenteri",
    "kalendarz",
    "kalendař",
    "naptar",
    "takvim",
    "календарь",
    "予定表",
    "日历",
    "行事曆",
    "notes",
    "notizen",
    "notities",
    "anteckningar",
    "muistiinpanot",
    "notatki",
    "poznamky",
    "jegyzetek",
    "заметки",
    // Sync issues.
    "sync issues",
    "synchronisierungsprobleme",
    "problemes de synchronisation",
    "problemas de sincronizacion",
    "problemas de sincronizacao",
    "problemi di sincronizzazione",
    "synchronisatieproblemen",
    "synkroniseringsproblem",
    "synkroniseringsproblemer",
    "ошибки синхронизации",
    "同期の失敗",
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

/// A rule's name with at most this many characters has no meaning.
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
        for folder in HIDDEN_FOLDERS {
            assert_eq!(fold_name(folder), *folder);
        }
        assert!(is_hidden_folder("Gelöschte Elemente", &[]) && is_hidden_folder("受信トレイ\\迷惑メール", &[]));
        assert!(is_hidden_folder("Nieuwsbrieven", &["nieuwsbrieven".to_owned()]));
    }

    #[test]
    fn names_that_say_nothing_are_odd() {
        assert!(["", ".", "...", "....", "abc", " a ", "_-_-_"].iter().all(|name| is_odd_name(name)));
        assert!(!["Invoices", "abcd"].iter().any(|name| is_odd_name(name)));
    }
}
