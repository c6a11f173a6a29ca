//! `m365-audit validate --fluent-bit`, as an operator runs it: what is printed where, and the exit codes.

use std::path::Path;
use std::process::{Command, Output};

fn validate(file: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_m365-audit"));
    command
        .arg("validate")
        .arg("--fluent-bit")
        .arg(file)
        .env("FROM_THE_ENVIRONMENT", "s3cr3t~value")
        .env_remove("NOT_SET");
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A file of this name with this text, checked: exit code, standard output, standard error.
fn checked(name: &str, written: &str) -> (i32, String, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, written).unwrap();
    let output = validate(&path);
    let without_folder = |bytes: &[u8]| text(bytes).replace(&format!("{}/", dir.path().display()), "");
    (output.status.code().unwrap(), without_folder(&output.stdout), without_folder(&output.stderr))
}

#[test]
fn the_examples_have_no_problem_and_no_warning() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/fluent-bit");
    for name in ["fluent-bit.yaml", "fluent-bit.conf"] {
        let output = validate(&examples.join(name));
        assert!(output.status.success(), "{name}: {}", text(&output.stderr));
        assert_eq!(text(&output.stderr), "", "{name}");
        assert!(
            text(&output.stdout).ends_with(": valid, 1 input `m365_audit`, 2 outputs\n"),
            "{}",
            text(&output.stdout)
        );
    }
}

#[test]
fn problems_end_it_with_78_each_with_its_line_and_no_secret() {
    let yaml = "service:\n  storage.path: /chunks\npipeline:\n  inputs:\n    - name: m365_audit\n      threaded: off\n      storage.type: filesystem\n\
                \x20     tenant_id: 7f3c0a1e-5b1d-4a54-9a0e-2f0d6c1b8e55\n      client_id: c0ffee00-1111-4222-8333-444455556666\n\
                \x20     client_secret: ${FROM_THE_ENVIRONMENT}\n      state_path: /var/lib/state\n      cloud: ${FROM_THE_ENVIRONMENT}\n\
                \x20 outputs:\n    - name: http\n      match: '*'\n";
    let (code, out, said) = checked("fluent-bit.yaml", yaml);
    assert_eq!((code, out.as_str()), (78, ""), "{said}");
    let expected = "config-invalid: `state_path` is not a property of this input; use `data_dir` (fluent-bit.yaml, line 11)\n  hint: 1 more problem below\n\
                    `cloud` is `${FROM_THE_ENVIRONMENT}`, expected one of `enterprise`, `gcc`, `gcc_high`, `dod`, `china` (fluent-bit.yaml, line 12)\n";
    assert!(said.ends_with(expected), "{said}");
    assert!(
        said.contains("warning: output `http`: after one retry") && said.contains("(fluent-bit.yaml, line 14)"),
        "{said}"
    );
    assert!(!said.contains("s3cr3t"), "{said}");

    let classic = "[INPUT]\n  name m365_audit\n  backfil_secs 7d\n  client_secret ${NOT_SET}\n";
    let (code, _, said) = checked("fluent-bit.conf", classic);
    assert!(code == 78 && said.contains("use `backfill_secs` (fluent-bit.conf, line 3)"), "{said}");
    assert!(said.contains("the environment variable `NOT_SET` is not set here (fluent-bit.conf, line 4)"), "{said}");
    assert!(said.contains("`tenant_id` is missing"), "{said}");
}

#[test]
fn a_file_that_cannot_be_opened_ends_it_with_66_and_a_wrong_command_line_with_64() {
    let output = validate(Path::new("/not/there.yaml"));
    assert_eq!(output.status.code(), Some(66), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("cannot open `/not/there.yaml`"), "{}", text(&output.stderr));
    assert_eq!(validate(Path::new("/")).status.code(), Some(66));
    for arguments in [&["validate"][..], &["validate", "-c", "a", "--fluent-bit", "b"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_m365-audit")).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {}", text(&output.stderr));
    }
}
