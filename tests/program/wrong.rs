//! Configurations that people write, one fault in each: `validate` names the key and says what to write instead.

use std::fs;
use std::process::Command;

/// What each row of `tests/fixtures/wrong-configurations.toml` changes one thing in.
const RIGHT: &str = r#"data_dir = "DIR/state"

[sources.contoso]
type = "m365_audit"
tenant_id = "7f3c0a1e-5b1d-4a54-9a0e-2f0d6c1b8e55"
client_id = "c0ffee00-1111-4222-8333-444455556666"
client_secret = "kX48Q~0123456789abcdefghijklmnopqrstuvwx"

[sinks.out]
type = "file"
path = "DIR/audit.ndjson"
inputs = ["contoso"]
"#;

const SECRET: &str = "kX48Q~0123456789abcdefghijklmnopqrstuvwx";

#[derive(serde::Deserialize)]
struct Rows {
    wrong: Vec<Row>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    name: String,
    /// What is replaced: a text that stands there once, or `*` for all.
    find: Option<String>,
    #[serde(default)]
    put: String,
    /// The section at whose end `put` stands, where it replaces nothing.
    r#in: Option<String>,
    /// The whole file, in hexadecimal digits.
    bytes: Option<String>,
    #[serde(default)]
    files: std::collections::BTreeMap<String, String>,
    key: String,
    remedy: String,
}

impl Row {
    fn bytes(&self, dir: &str) -> Vec<u8> {
        if let Some(digits) = &self.bytes {
            let pair = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
            return (0..digits.len()).step_by(2).map(pair).collect();
        }
        let text = match (self.find.as_deref(), self.r#in.as_deref()) {
            (Some("*"), _) => self.put.clone(),
            (Some(find), _) => {
                assert_eq!(RIGHT.matches(find).count(), 1, "{}: {find}", self.name);
                RIGHT.replace(find, &self.put)
            }
            (None, Some("sources.contoso")) => {
                RIGHT.replace("\n\n[sinks.out]", &format!("\n{}\n\n[sinks.out]", self.put))
            }
            (None, Some(section)) => panic!("{}: {section}", self.name),
            (None, None) => format!("{RIGHT}{}\n", self.put),
        };
        text.replace("DIR", dir).into_bytes()
    }

    /// The exit code, and what is said, without the name of the test's folder.
    fn validated(&self) -> (i32, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        for (name, text) in &self.files {
            let file = dir.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        fs::write(&path, self.bytes(dir.path().to_str().unwrap())).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_m365-audit"));
        let output = command.args(["validate", "-c"]).arg(&path).env_remove("M365_CLIENT_SECRT").output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), said.replace(&format!("{}/", dir.path().display()), ""))
    }
}

#[test]
fn each_of_ninety_wrong_configurations_is_told_with_its_key_and_the_remedy() {
    let Rows { wrong } = toml::from_str(include_str!("../fixtures/wrong-configurations.toml")).unwrap();
    assert!(wrong.len() >= 90, "{} rows", wrong.len());
    let mut poor = Vec::new();
    for row in &wrong {
        let (code, said) = row.validated();
        let is_told = code == 78 || said.starts_with("warning: ");
        let is_named =
            said.contains(&format!("`{}`", row.key)) || (row.key == "agent.toml" && said.contains("agent.toml"));
        if !(is_told && is_named && said.contains(&row.remedy)) {
            poor.push(format!("{}: `{}`, {:?}, exit code {code}\n{said}", row.name, row.key, row.remedy));
        }
        assert!(!said.contains(SECRET), "{}: {said}", row.name);
    }
    assert!(poor.is_empty(), "{} of {}:\n{}", poor.len(), wrong.len(), poor.join("\n"));
}

/// Else every row would be told whatever is wrong.
#[test]
fn the_configuration_they_are_made_of_is_right() {
    let row = Row {
        name: "right".into(),
        find: Some("*".into()),
        put: RIGHT.into(),
        r#in: None,
        bytes: None,
        files: Default::default(),
        key: String::new(),
        remedy: String::new(),
    };
    assert_eq!(row.validated(), (0, String::new()));
}
