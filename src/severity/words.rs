//! Describes rules in words, for people.

use std::fmt::Write as _;

use super::engine::{Condition, Rule, Test};

/// The operations and conditions of a rule, in words.
pub fn about(rule: &Rule) -> String {
    let mut parts = Vec::new();
    if !rule.operations.is_empty() {
        parts.push(format!("the operation is {}", rule.operations.join(" or ")));
    }
    if !rule.record_types.is_empty() {
        let types: Vec<String> = rule.record_types.iter().map(i64::to_string).collect();
        parts.push(format!("the record type is {}", types.join(" or ")));
    }
    parts.extend(rule.when.iter().map(condition));
    parts.extend(rule.unless.iter().map(|c| format!("not: {}", condition(c))));
    if rule.fallback {
        parts.push("no other rule matched".to_owned());
    }
    parts.join(", and ")
}

/// A condition in words.
pub fn condition(c: &Condition) -> String {
    let list = |words: &[String]| words.join(" or ");
    let numbers = |numbers: &[i64]| numbers.iter().map(i64::to_string).collect::<Vec<_>>().join(" or ");
    let subject = if !c.parameter.is_empty() {
        format!("parameter {}", list(&c.parameter))
    } else if !c.inbox_rule.is_empty() {
        format!("the inbox rule's {}", list(&c.inbox_rule))
    } else if !c.property.is_empty() {
        format!("property {}", list(&c.property))
    } else if !c.modified.is_empty() {
        format!("modified property {}", list(&c.modified))
    } else if !c.field.is_empty() {
        list(&c.field)
    } else if !c.user.is_empty() {
        format!("the user is {}", list(&c.user))
    } else if !c.user_type.is_empty() {
        format!("the user type is {}", numbers(&c.user_type))
    } else if !c.record_type.is_empty() {
        format!("the record type is {}", numbers(&c.record_type))
    } else if !c.user_agent.is_empty() {
        format!("the user agent is {}", list(&c.user_agent))
    } else if !c.address.is_empty() {
        format!("the address is in {}", list(&c.address))
    } else if let Some(kind) = c.actor {
        format!("the actor is {}", word(&kind))
    } else if !c.fact.is_empty() {
        format!("its {}", c.fact.iter().map(word).collect::<Vec<_>>().join(" or "))
    } else if !c.ai.is_empty() {
        format!("the AI application's signal is {}", c.ai.iter().map(word).collect::<Vec<_>>().join(" or "))
    } else if !c.any.is_empty() {
        let one: Vec<String> = c.any.iter().map(condition).collect();
        format!("({})", one.join(", or "))
    } else {
        let all: Vec<String> = c.all.iter().map(condition).collect();
        format!("({})", all.join(", and "))
    };
    let mut text = subject;
    if let Some(test) = c.is {
        let _ = write!(text, " {}", tested(test));
    }
    if let Some(change) = c.change {
        let _ = write!(text, " changed ({})", word(&change));
    }
    if !c.old.is_empty() {
        let _ = write!(text, " was {}", list(&c.old));
    }
    if !c.like.is_empty() {
        let _ = write!(text, " is like {}", list(&c.like));
    }
    if let Some(least) = c.at_least {
        let _ = write!(text, " is at least {least}");
    }
    if let Some(most) = c.at_most {
        let _ = write!(text, " is at most {most}");
    }
    if c.not { format!("not ({text})") } else { text }
}

fn tested(test: Test) -> &'static str {
    match test {
        Test::Set => "holds something",
        Test::Blank => "holds nothing",
        Test::True => "is true",
        Test::False => "is false",
        Test::External => "names somebody outside",
        Test::Internal => "names people inside only",
        Test::Undecided => "names somebody who can be shown neither inside nor outside",
        Test::HiddenFolder => "is a folder nobody reads",
        Test::OddName => "says nothing",
        Test::Actor => "is who acted",
    }
}

/// The word for a value in a table.
fn word(value: &impl serde::Serialize) -> String {
    let word = serde_json::to_value(value).ok();
    word.as_ref().and_then(serde_json::Value::as_str).unwrap_or_default().replace('_', " ")
}
