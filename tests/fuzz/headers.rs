//! Headers as they are stored, a JSON object, and what arrives of them.

use std::fmt;

use outboxd::config::{self, route::Route};
use outboxd::outbox::event::{Event, EventId, Micros, RowId};
use outboxd::outbox::stream::Sequence;
use outboxd::routing::{record, stored};
use serde::Deserializer as _;
use serde::de::{MapAccess, Visitor};
use serde_json::Value;
use uuid::Uuid;

pub(crate) const WORDS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"",
    "\\",
    "null",
    "true",
    "false",
    "\\u0000",
    "\\ud800",
    "\\udc00",
    "\\ud83d\\ude00",
    "1.50",
    "12345678901234567890.10",
    "-0",
    "1E+2",
    " ",
    "\t",
    "\\\"",
    "\\\\",
    "\"id\":\"x\",",
    "\"sequence\":1,",
    "\"a\":\"b\",",
];

/// What the record says of itself; nothing stored may bear these names.
const OWN: [&str; 6] = ["id", "type", "aggregate-type", "aggregate-id", "sequence", "previous-event-id"];

/// An event with these headers.
pub(crate) fn event(headers: Option<String>) -> Event {
    Event {
        id: RowId::new(7),
        event_id: EventId::new(Uuid::from_u128(7)),
        previous_event_id: Some(EventId::new(Uuid::from_u128(6))),
        sequence: Sequence::new(2),
        created_at: Micros(1_700_000_000_000_000),
        aggregate_type: "Order".to_owned(),
        aggregate_id: "42".to_owned(),
        event_type: "Placed".to_owned(),
        payload: Some(b"{}".to_vec()),
        headers,
    }
}

/// All entries in their order, those with the same name too: what a `Value` would forget.
struct Pairs;

impl<'de> Visitor<'de> for Pairs {
    type Value = Vec<(String, Value)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(pairs)
    }
}

fn pairs(text: &str) -> Result<Vec<(String, Value)>, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let pairs = deserializer.deserialize_map(Pairs)?;
    deserializer.end()?;
    Ok(pairs)
}

/// Nothing of a value is read but where it ends, so what only its meaning forbids passes. jsonb holds none of it.
fn is_of_meaning(error: &serde_json::Error) -> bool {
    let said = error.to_string();
    ["recursion limit", "number out of range", "surrogate", "unexpected end of hex escape"]
        .iter()
        .any(|word| said.contains(word))
}

/// The numbers of a JSON text, as they are written.
fn numbers(text: &str) -> Vec<String> {
    let (mut numbers, mut number, mut chars) = (Vec::new(), String::new(), text.chars());
    while let Some(c) = chars.next() {
        if c.is_ascii_digit() || matches!(c, '-' | '+' | '.') || (matches!(c, 'e' | 'E') && !number.is_empty()) {
            number.push(c);
            continue;
        }
        if !number.is_empty() {
            numbers.push(std::mem::take(&mut number));
        }
        if c == '"' {
            while let Some(inside) = chars.next() {
                match inside {
                    '\\' => drop(chars.next()),
                    '"' => break,
                    _ => {}
                }
            }
        }
    }
    numbers.extend((!number.is_empty()).then_some(number));
    numbers
}

/// What is sent for a value.
fn check(name: &str, value: &Value, sent: Option<&str>) {
    match (value, sent) {
        (Value::Null, None) => {}
        (Value::String(text), Some(sent)) => assert_eq!(text, sent, "{name}"),
        (Value::Null | Value::String(_), _) | (_, None) => panic!("{name}: {value} was sent as {sent:?}"),
        (value, Some(sent)) => {
            let read: Value = serde_json::from_str(sent).unwrap_or_else(|error| panic!("{name}: {sent}: {error}"));
            assert_eq!(&read, value, "{name}");
            // without a number in it there is but one compact text
            if numbers(sent).is_empty() && !sent.contains('\\') {
                assert_eq!(sent, value.to_string(), "{name}");
            }
            let blanks = |text: &str| text.chars().filter(|c| matches!(c, ' ' | '\t' | '\n' | '\r')).count();
            let inside = blanks(&value.to_string());
            assert!(blanks(sent) <= inside, "{name}: {sent} holds a blank between its tokens");
        }
    }
}

thread_local! {
    static ROUTE: Route = route();
}

/// The default route, with a header of its own.
fn route() -> Route {
    let text = "postgres.url = 'postgres://u@127.0.0.1/d'\nkafka.brokers = 'k'\n[[outbox]]\n[[outbox.route]]\nheaders.kind = '{event_type}'";
    let mut config = config::load(text, &std::collections::BTreeMap::new()).unwrap();
    config.outboxes.remove(0).routes.remove(0)
}

pub(crate) fn target(input: &[u8]) {
    let text = String::from_utf8_lossy(input).into_owned();
    let event = event(Some(text.clone()));
    let (entries, expected) = (stored::entries(&event), pairs(&text));
    let entries = match (entries, expected) {
        (Ok(entries), Ok(expected)) => {
            let names = |(name, _): &(String, Value)| name.clone();
            let sent: Vec<String> = entries.iter().map(|(name, _)| name.clone()).collect();
            assert_eq!(sent, expected.iter().map(names).collect::<Vec<_>>(), "each entry, in its order");
            for ((name, value), (_, sent)) in expected.iter().zip(&entries) {
                check(name, value, sent.as_deref());
            }
            let all: Vec<String> = entries
                .iter()
                .zip(&expected)
                .filter(|(_, (_, value))| !value.is_string())
                .flat_map(|((_, sent), _)| numbers(sent.as_deref().unwrap_or("")))
                .collect();
            let written = numbers(&text);
            assert_eq!(all, written, "numbers stay as they are written");
            entries
        }
        (Ok(entries), Err(error)) if is_of_meaning(&error) => entries,
        (Ok(entries), Err(error)) => panic!("{text:?} is no JSON object ({error}), and gave {entries:?}"),
        (Err(rejection), expected) => {
            assert!(expected.is_err(), "{text:?} is a JSON object, and was refused: {rejection}");
            assert_eq!(rejection.code, "bad_headers");
            return;
        }
    };
    for (name, _) in &entries {
        let first = entries.iter().find(|(found, _)| found == name).and_then(|(_, value)| value.clone());
        assert_eq!(stored::header_text(&event, name), Ok(first), "{name}: the first of a name");
    }
    ROUTE.with(|route| shaped(route, &event, &entries));
}

/// The record holds what it says of itself, then what its route adds, then what was stored; or it is refused for a name.
fn shaped(route: &Route, event: &Event, entries: &[(String, Option<String>)]) {
    let reserved = entries.iter().any(|(name, _)| OWN.contains(&name.as_str()));
    let record = match record::shape(route, event) {
        Ok(record) => record,
        Err(rejection) => {
            assert!(reserved && rejection.code == "reserved_header", "{rejection:?}");
            return;
        }
    };
    assert!(!reserved, "a name of the record's own: {entries:?}");
    let sent: Vec<(&str, Option<&str>)> =
        record.headers.iter().map(|(name, value)| (name.as_ref(), value.as_deref())).collect();
    let names: Vec<&str> = sent.iter().take(7).map(|(name, _)| *name).collect();
    assert_eq!(names, ["id", "type", "aggregate-type", "aggregate-id", "sequence", "previous-event-id", "kind"]);
    let stored: Vec<(&str, Option<&str>)> =
        entries.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
    assert_eq!(sent[7..], stored);
}
