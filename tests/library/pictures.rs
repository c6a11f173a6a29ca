//! Pictures in the documents that no test draws, because a browser or minutes of a run do: each script that makes some keeps
//! in `tests/fixtures/pictures/` the checksums of what it made them from, and of them. When one differs, they are stale.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Fails when `list` does not fit the files it names, or names no picture. `made` are those that are not in the
/// repository, by the names that the list gives them.
pub fn are_of_today(list: &str, script: &str, made: &BTreeMap<&str, &[u8]>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join("tests/fixtures/pictures").join(list);
    let lines = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}: run {script}", path.display()));
    let mut pictures = 0;
    for line in lines.lines() {
        let (sum, name) = line.split_once("  ").unwrap();
        pictures += usize::from(name.starts_with("docs/"));
        let bytes = match made.get(name) {
            Some(bytes) => bytes.to_vec(),
            None => fs::read(root.join(name)).unwrap_or_else(|error| panic!("{name}: {error}")),
        };
        let digest = ring::digest::digest(&ring::digest::SHA256, &bytes);
        let found: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(found, sum, "{name} is not what the pictures were made with: run {script}, look at them and commit");
    }
    assert!(pictures > 0, "{list} names no picture");
    for name in made.keys() {
        assert!(lines.contains(&format!("  {name}\n")), "{list} does not name {name}");
    }
}

#[test]
fn the_picture_of_the_dashboard_has_the_panels_of_today() {
    are_of_today("dashboard.sha256", ".ci/dashboard-picture", &BTreeMap::new());
    // The list says that nothing changed since it was written; this, that the two belong together.
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dashboard: serde_json::Value =
        serde_json::from_slice(&fs::read(root.join("packaging/grafana/m365-audit.json")).unwrap()).unwrap();
    let picture = fs::read_to_string(root.join("docs/images/dashboard.svg")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 10);
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        assert!(picture.contains(&format!(">{title}</text>")), "{title}");
    }
}
