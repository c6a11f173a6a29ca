//! A test that does not get what it asks of the machine is skipped, unless that is required.

use test_support::{NEEDS, allowed};

fn said(required: &str, name: &str) -> Result<(), String> {
    allowed(required, NEEDS.iter().find(|need| need.name == name).unwrap())
}

#[test]
fn what_is_required_is_not_skipped_and_the_rest_is() {
    for none in ["", " ", ",", "vector", "vector, rsyslog"] {
        assert_eq!(said(none, "fluent-bit"), Ok(()), "{none:?}");
    }
    for some in ["fluent-bit", "vector,fluent-bit", " fluent-bit ,", "all"] {
        assert!(said(some, "fluent-bit").is_err(), "{some:?}");
    }
    assert!(NEEDS.iter().all(|need| said("all", need.name).is_err()));
}

/// Else a slip would require nothing, and nobody would see it.
#[test]
fn a_name_that_no_test_asks_for_is_a_failure_that_lists_the_names() {
    let error = said("fluentbit", "vector").unwrap_err();
    assert!(error.contains("`fluentbit`") && error.contains("fluent-bit, vector, "), "{error}");
}
