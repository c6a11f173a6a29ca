//! What records of the field mean: cases that users reported, and what must not depend on a record type's number.

use std::fs;
use std::path::Path;

use m365_audit::config::{EcsProfile, Format, OcsfVersion, RawForm};
use m365_audit::model::ContentType;
use m365_audit::normalise::{Event, Normaliser, NormaliserSettings, Origin, Rendered};
use serde_json::{Value, json};

fn in_format(format: Format, event: &str) -> Value {
    let settings = NormaliserSettings {
        format,
        ocsf_version: OcsfVersion::V1_8_0,
        raw: RawForm::None,
        ..NormaliserSettings::default()
    };
    let mut out = Vec::new();
    let event = Event::parse(event.as_bytes()).expect("an event");
    let origin = Origin { content_type: Some(ContentType::General), ..Origin::default() };
    let rendered = Normaliser::new(settings).render_from(&event, &origin, &mut out);
    assert!(matches!(rendered, Rendered::Record { .. }));
    serde_json::from_slice(&out).unwrap()
}

fn native(event: &str) -> Value {
    in_format(Format::Native, event)
}

fn ecs(event: &str) -> Value {
    in_format(Format::Ecs, event)
}

fn ocsf(event: &str) -> Value {
    in_format(Format::Ocsf, event)
}

/// Every event of the fixtures.
fn events() -> Vec<Value> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut events = Vec::new();
    for name in ["catalogue", "entra", "exchange", "general", "rules", "sharepoint"] {
        let text = fs::read_to_string(dir.join(format!("records/{name}.ndjson"))).unwrap();
        events.extend(text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));
    }
    for name in ["cases", "rules"] {
        let text = fs::read_to_string(dir.join(format!("severity/{name}.ndjson"))).unwrap();
        events.extend(text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["event"].take()));
    }
    events
}

/// What an event is, in every format, as far as no number is quoted in it.
fn essence(event: &Value) -> Value {
    let text = event.to_string();
    let (native, ecs, ocsf) = (native(&text), ecs(&text), ocsf(&text));
    json!({
        "rules": native["severity_rule"], "severity": native["severity"], "outcome": native["outcome"],
        "category": native["category"], "kind": ecs["event"]["kind"], "ecs_category": ecs["event"]["category"],
        "class": ocsf["class_uid"], "activity": ocsf["activity_id"], "target": native["target"],
    })
}

/// Operations that say nothing: made up for rules that go by the record type alone.
const SAY_NOTHING: &[&str] = &["Anything", "Zzqz"];

/// Operations whose records tell what they are by nothing but the number, and why.
const ONLY_BY_NUMBER: &[(&str, &[i64])] = &[
    (
        "the operation is the name of the alert or of what was detected, and may be any",
        &[40, 41, 47, 51, 64, 78, 98, 113],
    ),
    ("roles, incidents and insider risk have the operations of others", &[61, 62, 87, 106, 232, 294, 302, 306, 307]),
    ("searches and settings of the audit log are called as others are", &[295, 296, 297]),
    ("data policies of the Power Platform have operations that are not documented", &[187]),
    ("plug-ins, workspaces and prompt books of Copilot have operations that are not documented", &[310, 315, 325]),
];

#[test]
fn a_record_type_that_is_missing_or_unknown_changes_nothing_of_what_an_event_is() {
    let mut changed = Vec::new();
    let mut held = 0;
    for event in events() {
        let number = event["RecordType"].as_i64().unwrap_or_default();
        // Without an operation, or without a workload and anything that tells where data loss prevention looked.
        let operation = event["Operation"].as_str().unwrap_or_default();
        let nowhere = operation.eq_ignore_ascii_case("DlpRuleMatch") && event["Workload"].is_null();
        let says_nothing = operation.is_empty() || nowhere || SAY_NOTHING.contains(&operation);
        if says_nothing || ONLY_BY_NUMBER.iter().any(|(_, numbers)| numbers.contains(&number)) {
            continue;
        }
        let expected = essence(&event);
        for unknown in [None, Some(json!(99_999)), Some(json!("unknownFutureValue"))] {
            let mut other = event.clone();
            match unknown {
                Some(number) => other["RecordType"] = number,
                None => drop(other.as_object_mut().unwrap().remove("RecordType")),
            }
            let found = essence(&other);
            if found == expected {
                held += 1;
            } else {
                changed.push(format!("{found}\n    not {expected}\n    {other}"));
            }
        }
    }
    assert!(changed.is_empty(), "{} changed, {held} held:\n{}", changed.len(), changed.join("\n"));
    assert!(held > 1_000, "{held}");
}

#[test]
fn a_match_of_an_unknown_record_type_is_a_match() {
    let event = |number: &str| {
        format!(
            r#"{{"CreationTime":"2026-03-02T10:15:00","Id":"a","Operation":"DLPRuleMatch","RecordType":{number},"Workload":"ExtendedApplications","UserId":"alex@contoso.example","PolicyDetails":[{{"PolicyName":"Cards","Rules":[{{"RuleName":"Block cards","RuleMode":"Enforce","Severity":"High","Actions":["BlockAccess"]}}]}}]}}"#
        )
    };
    let record = native(&event("263"));
    assert_eq!(
        (&record["category"], &record["outcome"], &record["record_type"]),
        (&json!("dlp"), &json!("failure"), &json!(263))
    );
    assert_eq!(
        record["title"],
        "Data loss prevention matched policy Cards, rule Block cards by alex@contoso.example (blocked)"
    );
    let record = ecs(&event("263"));
    assert_eq!((&record["event"]["kind"], &record["rule"]["name"]), (&json!("alert"), &json!("Block cards")));
    assert_eq!(record["message"], "Data loss prevention matched policy Cards, rule Block cards (blocked)");
    let record = ocsf(&event("263"));
    assert_eq!(
        (&record["class_uid"], &record["action"], &record["disposition"]),
        (&json!(2006), &json!("Denied"), &json!("Blocked"))
    );
    assert_eq!(
        essence(&serde_json::from_str(&event("263")).unwrap()),
        essence(&serde_json::from_str(&event("13")).unwrap())
    );
}

#[test]
fn what_a_device_did_about_a_match_is_the_outcome() {
    for (mode, outcome, action, disposition) in [
        (1, "success", "Allowed", "Allowed"),
        (2, "unknown", "Observed", "Alert"),
        (3, "success", "Allowed", "Allowed"),
        (4, "failure", "Denied", "Blocked"),
        (5, "success", "Allowed", "Allowed"),
    ] {
        let event = format!(
            r#"{{"CreationTime":"2026-03-02T10:15:00","Id":"a","Operation":"DLPRuleMatch","RecordType":63,"Workload":"Endpoint","UserId":"alex@contoso.example","ObjectId":"C:\\x.docx","EnforcementMode":{mode},"PolicyMatchInfo":{{"PolicyName":"Cards","RuleName":"Block cards to web"}}}}"#
        );
        assert_eq!(native(&event)["outcome"], outcome, "{mode}");
        let record = ocsf(&event);
        assert_eq!((&record["action"], &record["disposition"]), (&json!(action), &json!(disposition)), "{mode}");
        assert_eq!(ecs(&event)["rule"]["name"], "Block cards to web");
    }
    let test = r#"{"Operation":"DLPRuleMatch","RecordType":11,"PolicyDetails":[{"Rules":[{"RuleMode":"TestWithNotifyUser","Actions":["BlockAccess"]}]}]}"#;
    assert_eq!((&native(test)["outcome"], &ocsf(test)["action"]), (&json!("success"), &json!("Allowed")));
}

#[test]
fn a_change_inside_the_details_is_read_and_a_persons_act_is_no_synchronisation() {
    let event = r#"{"CreationTime":"2026-03-02T10:15:00","Id":"a","Operation":"Update user.","RecordType":8,"Workload":"AzureActiveDirectory","UserId":"adm@contoso.example","UserType":0,"ModifiedProperties":[],"ExtendedProperties":[{"Name":"additionalDetails","Value":"{\"id\":\"1\",\"seq\":\"1\",\"b\":\"{\\\"targetUpdatedProperties\\\":\\\"[{\\\\\\\"Name\\\\\\\":\\\\\\\"AssignedLicense\\\\\\\",\\\\\\\"OldValue\\\\\\\":[\\\\\\\"[DisabledPlans=[]]\\\\\\\"],\\\\\\\"NewValue\\\\\\\":[\\\\\\\"[DisabledPlans=[M365_ADVANCED_AUDITING]]\\\\\\\"]}]\\\"}\",\"c\":\"1\"}"}]}"#;
    let record = native(event);
    assert_eq!((&record["severity"], &record["severity_rule"]), (&json!("medium"), &json!(["AU-07"])));
    assert_eq!(ecs(event)["m365"]["audit"]["modified_properties"][0]["name"], "AssignedLicense");
    // The first part of several, cut anywhere.
    let part = r#"{"Operation":"Update user.","RecordType":8,"UserId":"adm@contoso.example","ExtendedProperties":[{"Name":"additionalDetails","Value":"{\"id\":\"1\",\"seq\":\"2\",\"b\":\"ue\\\\\\\":[\\\\\\\"[DisabledPlans=[M365_ADVANCED_AUDITING]]\",\"c\":\"3\"}"}]}"#;
    assert_eq!(native(part)["severity_rule"], json!(["AU-07"]));
    let plain = r#"{"Operation":"Update user.","RecordType":8,"UserId":"adm@contoso.example","UserType":0}"#;
    assert!(!native(plain)["severity_reason"].as_str().unwrap().contains("synchronisation"));
}

#[test]
fn cases_of_the_field_get_the_severity_they_are_worth() {
    for (event, severity, rules) in [
        (
            r#"{"RecordType":1,"Operation":"New-RoleGroup","Workload":"Exchange","Parameters":[{"Name":"Roles","Value":"ApplicationImpersonation"}]}"#,
            "high",
            "EX-30",
        ),
        (
            r#"{"RecordType":1,"Operation":"Set-Mailbox","Workload":"Exchange","UserId":"a@contoso.example","Parameters":[{"Name":"AuditLogAgeLimit","Value":"00:00:00"}]}"#,
            "high",
            "AU-10",
        ),
        (
            r#"{"RecordType":1,"Operation":"Set-Mailbox","Workload":"Exchange","UserId":"a@contoso.example","Parameters":[{"Name":"AuditLogAgeLimit","Value":"90.00:00:00"}]}"#,
            "low",
            "EX-52",
        ),
        (
            r#"{"Operation":"TeamCopilotInteraction","RecordType":334,"CopilotEventData":{"Messages":[{"Id":"1","isPrompt":true,"JailbreakDetected":true}]}}"#,
            "medium",
            "DF-14",
        ),
        (
            r#"{"RecordType":14,"Operation":"SharingSet","Workload":"SharePoint","UserId":"alex@contoso.example","TargetUserOrGroupName":"c:0-.f|rolemanager|spo-grid-all-users/1111"}"#,
            "medium",
            "SP-06",
        ),
        (
            r#"{"RecordType":14,"Operation":"SharingSet","Workload":"SharePoint","UserId":"alex@contoso.example","TargetUserOrGroupType":" ","TargetUserOrGroupName":"kim_fabrikam.example#ext#@contoso.onmicrosoft.example"}"#,
            "medium",
            "SP-06",
        ),
        (
            r#"{"RecordType":15,"Operation":"UserLoginFailed","UserId":"a@contoso.example","ErrorNumber":"70043"}"#,
            "info",
            "ID-43i",
        ),
        (
            r#"{"RecordType":15,"Operation":"UserLoggedIn","UserId":"a@contoso.example","ErrorNumber":"50126","LogonError":"InvalidUserNameOrPassword"}"#,
            "low",
            "ID-43u",
        ),
        (
            r#"{"RecordType":29,"Operation":"UserSubmission","UserId":"a@contoso.example","RescanResult":{"RescanVerdict":"NotSpam"}}"#,
            "info",
            "DF-12",
        ),
        (
            r#"{"RecordType":29,"Operation":"AdminSubmission","UserId":"a@contoso.example","ExtendedProperties":[{"Name":"RescanResult","Value":"{\"RescanVerdict\":\"Phish\"}"}]}"#,
            "medium",
            "DF-12a",
        ),
        (r#"{"RecordType":232,"Operation":"IncidentSeverityChanged","UserId":"a@contoso.example"}"#, "medium", "DF-17"),
        (
            r#"{"RecordType":25,"Operation":"CallEnded","UserId":"a@contoso.example","ImpersonationType":"Brand"}"#,
            "high",
            "TM-10i",
        ),
    ] {
        let record = native(event);
        assert_eq!((&record["severity"], &record["severity_rule"]), (&json!(severity), &json!([rules])), "{event}");
    }
}

#[test]
fn a_sign_in_with_an_error_failed_and_the_formats_agree() {
    let event = r#"{"RecordType":15,"Operation":"UserLoggedIn","UserId":"a@contoso.example","ResultStatus":"Success","ErrorNumber":"50126","LogonError":"InvalidUserNameOrPassword","ApplicationId":"1b730954-1685-4b74-9bfd-dac224a7b894"}"#;
    let record = native(event);
    assert_eq!(record["outcome"], "failure");
    assert_eq!(record["error"], json!({"code": "50126", "message": "the user name or the password is wrong"}));
    assert_eq!(record["application"]["name"], "Azure Active Directory PowerShell");
    let record = ocsf(event);
    assert_eq!(
        (&record["status"], &record["service"]["name"]),
        (&json!("Failure"), &json!("Azure Active Directory PowerShell"))
    );
    assert_eq!(ecs(event)["error"]["code"], "50126");
    let interrupted =
        r#"{"RecordType":15,"Operation":"UserLoggedIn","UserId":"a@contoso.example","ErrorNumber":"50140"}"#;
    assert_eq!(native(interrupted)["outcome"], "success");
}

#[test]
fn a_claim_of_sharepoint_is_the_person_it_claims() {
    let event = r#"{"RecordType":6,"Operation":"FileDownloaded","Workload":"SharePoint","UserId":"i:0#.f|membership|alex@contoso.example"}"#;
    let record = native(event);
    assert_eq!(
        record["actor"],
        json!({"id": "i:0#.f|membership|alex@contoso.example", "name": "alex", "email": "alex@contoso.example"})
    );
    let record = ecs(event);
    assert_eq!((&record["user"]["name"], &record["user"]["domain"]), (&json!("alex"), &json!("contoso.example")));
    assert!(record["related"]["user"].as_array().unwrap().contains(&json!("alex@contoso.example")));
    assert!(ocsf(event)["observables"].as_array().unwrap().iter().any(|one| one["value"] == "alex@contoso.example"));
}

/// Follows a path into lists, too.
fn reaches(value: &Value, path: &str) -> bool {
    let (first, rest) = path.split_once('.').unwrap_or((path, ""));
    if let Some(items) = value.as_array() {
        return items.iter().any(|item| reaches(item, path));
    }
    let below = &value[first];
    !below.is_null() && (rest.is_empty() || reaches(below, rest))
}

#[test]
fn every_observable_names_an_attribute_that_the_record_has() {
    let mut seen = 0;
    for event in events() {
        let record = ocsf(&event.to_string());
        for observable in record["observables"].as_array().into_iter().flatten() {
            let name = observable["name"].as_str().unwrap();
            assert!(reaches(&record, name), "{name}: {record}");
            seen += 1;
        }
    }
    assert!(seen > 500, "{seen}");
}

#[test]
fn a_blocked_copy_an_agent_and_malware_are_told_in_every_format() {
    let sha = "a".repeat(64);
    let malware = format!(
        r#"{{"RecordType":6,"Operation":"FileMalwareDetected","Workload":"SharePoint","UserId":"a@contoso.example","SourceFileName":"x.zip","VirusInfo":"Trojan.Evil","SHA256Hash":"{sha}"}}"#
    );
    let record = ecs(&malware);
    assert_eq!(
        (&record["threat"]["software"]["name"], &record["file"]["hash"]["sha256"]),
        (&json!("Trojan.Evil"), &json!(sha))
    );
    assert_eq!((&record["related"]["hash"], &record["event"]["kind"]), (&json!([sha]), &json!("alert")));
    let record = ocsf(&malware);
    assert_eq!((&record["class_uid"], &record["malware"][0]["name"]), (&json!(2004), &json!("Trojan.Evil")));
    assert_eq!(record["evidences"][0]["file"]["hashes"][0]["value"], json!(sha));
    let asked = r#"{"RecordType":261,"Operation":"CopilotInteraction","Workload":"Copilot","UserId":"a@contoso.example","AgentId":"agent-1","AgentName":"Helper","CopilotEventData":{"AppHost":"Teams","ThreadId":"t","ModelTransparencyDetails":[{"ModelName":"M"}],"Messages":[{"Id":"1","isPrompt":true}],"AccessedResources":[{"Name":"plan.docx","Type":"docx","SensitivityLabelId":"f41ab342-8706-4188-bd11-ebb85995028c","XPIADetected":true}]}}"#;
    let record = native(asked);
    assert_eq!(
        (&record["object"], &record["application"]),
        (&json!("plan.docx"), &json!({"id": "agent-1", "name": "Helper"}))
    );
    assert_eq!(
        record["resources"],
        json!([{"name": "plan.docx", "type": "docx", "label": "f41ab342-8706-4188-bd11-ebb85995028c"}])
    );
    assert_eq!(record["severity_rule"], json!(["DF-14", "AI-01"]));
    let record = ecs(asked);
    assert_eq!(
        (&record["gen_ai"]["agent"]["name"], &record["gen_ai"]["response"]["model"]),
        (&json!("Helper"), &json!("M"))
    );
    assert_eq!(record["m365"]["audit"]["ai"]["signals"], json!(["xpia", "labelled"]));
    let record = ocsf(asked);
    assert_eq!(
        (&record["ai_model"]["name"], &record["message_context"]["application"]["name"]),
        (&json!("M"), &json!("Helper"))
    );
    assert!(record["metadata"]["profiles"].as_array().unwrap().contains(&json!("ai_operation")));
}

/// Values at a path of a record, as text, lists looked through.
fn values(value: &Value, path: &str) -> Vec<String> {
    if let Some(items) = value.as_array() {
        return items.iter().flat_map(|item| values(item, path)).collect();
    }
    if path.is_empty() {
        return value
            .as_str()
            .map(str::to_owned)
            .or_else(|| (!value.is_null()).then(|| value.to_string()))
            .into_iter()
            .collect();
    }
    let (first, rest) = path.split_once('.').unwrap_or((path, ""));
    values(&value[first], rest)
}

/// Whether a text is of a form, `*` standing for any run, without case.
fn is_like(form: &str, text: &str) -> bool {
    let (form, text) = (form.to_lowercase(), text.to_lowercase());
    match form.split_once('*') {
        None => form == text,
        Some((start, rest)) => match text.strip_prefix(start) {
            Some(after) => {
                rest.is_empty() || (0..=after.len()).any(|at| after.is_char_boundary(at) && is_like(rest, &after[at..]))
            }
            None => false,
        },
    }
}

/// The fields that each of Elastic's public rules for this integration asks for, with the values, and an event that the rule
/// is about (`tests/fixtures/elastic/rules.ndjson`); docs/formats.md has the numbers.
#[test]
fn elastics_rules_find_the_fields_they_ask_for_in_their_profile_and_none_without() {
    let text =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/elastic/rules.ndjson")).unwrap();
    let rules: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut matched = [0, 0];
    let mut missed = Vec::new();
    for rule in &rules {
        for (place, ecs_profile) in [EcsProfile::Ecs, EcsProfile::ElasticO365].into_iter().enumerate() {
            let settings = NormaliserSettings {
                format: Format::Ecs,
                ecs_profile,
                raw: RawForm::None,
                ..NormaliserSettings::default()
            };
            let (text, mut out) = (rule["event"].to_string(), Vec::new());
            let event = Event::parse(text.as_bytes()).unwrap();
            Normaliser::new(settings).render_from(&event, &Origin::default(), &mut out);
            let record: Value = serde_json::from_slice(&out).unwrap();
            let lacks = rule["needs"].as_object().unwrap().iter().find(|(path, forms)| {
                let found = values(&record, path);
                let fits =
                    |text: &String| forms.as_array().unwrap().iter().any(|form| is_like(form.as_str().unwrap(), text));
                !found.iter().any(fits)
            });
            match lacks {
                None => matched[place] += 1,
                Some((path, _)) if ecs_profile == EcsProfile::ElasticO365 => {
                    missed.push(format!("{}: {path}", rule["rule"]))
                }
                Some(_) => {}
            }
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
    let counting = rules.iter().filter(|rule| rule["counts"] == true).count();
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/formats.md")).unwrap();
    let claim =
        format!("{} of {} match with it and {} without; {counting} of them", matched[1], rules.len(), matched[0]);
    assert!(page.contains(&claim), "docs/formats.md does not say: {claim}");
}
