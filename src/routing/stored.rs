//! The headers that are stored with an event: a JSON object, whose entries become headers of the record. Pure.

use super::Rejection;
use crate::outbox::event::Event;
use serde::Deserializer;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;

/// One entry of the event's headers, as text.
///
/// # Errors
/// The headers are not a JSON object.
pub fn header_text(event: &Event, name: &str) -> Result<Option<String>, Rejection> {
    Ok(entries(event)?.into_iter().find(|(found, _)| found == name).and_then(|(_, value)| value))
}

/// The entries of the event's headers in their order: text as it is, `null` as a null header, the rest as compact JSON.
///
/// # Errors
/// The headers are not a JSON object.
pub fn entries(event: &Event) -> Result<Vec<(String, Option<String>)>, Rejection> {
    let Some(text) = &event.headers else { return Ok(Vec::new()) };
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let entries = deserializer.deserialize_map(Entries).map_err(|_| bad_headers())?;
    deserializer.end().map_err(|_| bad_headers())?;
    entries.into_iter().map(|(name, value)| Ok((name, header_value(value.get())?))).collect()
}

fn header_value(json: &str) -> Result<Option<String>, Rejection> {
    match json.bytes().next() {
        Some(b'"') => serde_json::from_str(json).map(Some).map_err(|_| bad_headers()),
        Some(b'n') => Ok(None),
        _ => Ok(Some(compact(json))),
    }
}

/// Takes the blanks out that stand between the tokens of a JSON text. Numbers stay as they are: a number type would change some.
fn compact(json: &str) -> String {
    let (mut quoted, mut escaped) = (false, false);
    let keep = |c: &char| {
        let blank = !quoted && c.is_ascii_whitespace();
        if *c == '"' && !escaped {
            quoted = !quoted;
        }
        escaped = quoted && *c == '\\' && !escaped;
        !blank
    };
    json.chars().filter(keep).collect()
}

struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = Vec<(String, &'de RawValue)>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(entries)
    }
}

fn bad_headers() -> Rejection {
    Rejection::new("bad_headers", "the event's headers are not a JSON object", "write an object of names and texts")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_values_keep_their_text() {
        let table = [
            (r#""a\nb""#, Some("a\nb")),
            ("null", None),
            ("12345678901234567890.10", Some("12345678901234567890.10")),
            ("true", Some("true")),
            (r#"{"a b": [1, 2.50, "x \" y"]}"#, Some(r#"{"a b":[1,2.50,"x \" y"]}"#)),
        ];
        for (json, text) in table {
            assert_eq!(header_value(json).unwrap().as_deref(), text, "{json}");
        }
    }
}
