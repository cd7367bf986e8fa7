//! Templates, and topics made of rows.
//!
//! An input is a template, the patterns of `topics`, and the texts of a row, in this order, with a separator between them.

use std::collections::BTreeMap;

use outboxd::config::{self, route::Route, route::Template};
use outboxd::outbox::event::Event;
use outboxd::outbox::stream::Sequence;
use outboxd::routing::record;

use crate::bytes::parts;
use crate::headers;

pub(crate) const WORDS: &[&str] = &[
    "{",
    "}",
    "{{",
    "}}",
    "{aggregate_type}",
    "{aggregate_id}",
    "{event_type}",
    "{event_id}",
    "{sequence}",
    "{headers.",
    "{headers.a}",
    "../../x",
    "..",
    ".",
    "/",
    "\n",
    "\u{0}",
    "é",
    "\u{1e}",
    "*",
    "a.*",
    "outbox.event.",
    "{\"a\": \"b\"}",
    "\u{202e}",
];

/// What a template means, spelt out: `None` where it means nothing.
enum Piece {
    Text(char),
    Field(String),
}

fn pieces(template: &str) -> Option<Vec<Piece>> {
    let (mut pieces, mut chars) = (Vec::new(), template.chars().peekable());
    while let Some(c) = chars.next() {
        match c {
            '{' if chars.next_if_eq(&'{').is_some() => pieces.push(Piece::Text('{')),
            '}' if chars.next_if_eq(&'}').is_some() => pieces.push(Piece::Text('}')),
            '}' => return None,
            '{' => {
                let mut name = String::new();
                loop {
                    match chars.next()? {
                        '}' => break,
                        c => name.push(c),
                    }
                }
                let known = ["aggregate_type", "aggregate_id", "event_type", "event_id", "sequence"];
                let is_header = name.strip_prefix("headers.").is_some_and(|header| !header.is_empty());
                if !known.contains(&name.as_str()) && !is_header {
                    return None;
                }
                pieces.push(Piece::Field(name));
            }
            c => pieces.push(Piece::Text(c)),
        }
    }
    Some(pieces)
}

/// The text before the first field.
fn prefix(pieces: &[Piece]) -> String {
    let text = |piece: &Piece| if let Piece::Text(c) = piece { Some(*c) } else { None };
    pieces.iter().map_while(text).collect()
}

/// The template with the fields of the row put in; `None` where the row has none.
fn fill(pieces: &[Piece], event: &Event) -> Option<String> {
    let stored: serde_json::Value = serde_json::from_str(event.headers.as_deref().unwrap_or("{}")).ok()?;
    let mut text = String::new();
    for piece in pieces {
        match piece {
            Piece::Text(c) => text.push(*c),
            Piece::Field(name) => text.push_str(&match name.as_str() {
                "aggregate_type" => event.aggregate_type.clone(),
                "aggregate_id" => event.aggregate_id.clone(),
                "event_type" => event.event_type.clone(),
                "event_id" => event.event_id.get().to_string(),
                "sequence" => event.sequence?.to_string(),
                header => stored.get(header.strip_prefix("headers.")?)?.as_str()?.to_owned(),
            }),
        }
    }
    Some(text)
}

/// `*` stands for any run of characters: by a table of what fits so far.
fn fits(pattern: &str, text: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    let mut reached = vec![false; text.len() + 1];
    reached[0] = true;
    for p in pattern.chars() {
        let mut next = vec![false; text.len() + 1];
        let mut any = false;
        for at in 0..=text.len() {
            any |= reached[at];
            next[at] = if p == '*' { any } else { at > 0 && reached[at - 1] && text[at - 1] == p };
        }
        reached = next;
    }
    reached[text.len()]
}

fn is_legal(topic: &str) -> bool {
    let legal = |c: char| matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '_' | '-');
    (1..=249).contains(&topic.len()) && topic != "." && topic != ".." && topic.chars().all(legal)
}

/// The route as the configuration has it, if it takes it.
fn route(topic: &str, topics: &str, key: &str) -> Option<Route> {
    let text = |text: &str| toml::Value::String(text.to_owned());
    let list: Vec<toml::Value> = topics.split(',').filter(|pattern| !pattern.is_empty()).map(text).collect();
    let mut route = toml::Table::new();
    route.insert("topic".to_owned(), text(topic));
    route.insert("topics".to_owned(), list.into());
    route.insert("key".to_owned(), text(key));
    let file = format!(
        "postgres.url = 'postgres://u@127.0.0.1/d'\nkafka.brokers = 'k'\n[[outbox]]\n[[outbox.route]]\n{route}"
    );
    let mut config = config::load(&file, &BTreeMap::new()).ok()?;
    Some(config.outboxes.remove(0).routes.remove(0))
}

/// What must not be told in a reason, for it is the row's.
const PLANTED: &str = "planted-in-the-row";

pub(crate) fn target(input: &[u8]) {
    let mut texts = parts(input).into_iter();
    let mut next = || texts.next().unwrap_or_default();
    let (template, topics) = (next(), next());
    let (aggregate_type, event_type, aggregate_id, stored) = (next(), next(), next(), next());
    let event = Event {
        aggregate_type,
        event_type,
        aggregate_id,
        sequence: Sequence::new(i64::try_from(input.len()).unwrap() - 20),
        ..headers::event((!stored.is_empty()).then_some(stored))
    };

    let (read, meant) = (Template::parse(&template), pieces(&template));
    assert_eq!(read.is_ok(), meant.is_some(), "{template:?}");
    let (Ok(read), Some(meant)) = (read, meant) else {
        assert!(route(&template, &topics, "").is_none(), "a topic that is no template: {template:?}");
        return;
    };
    assert_eq!(read.literal_prefix(), prefix(&meant), "{template:?}");
    let has_fields = meant.iter().any(|piece| matches!(piece, Piece::Field(_)));
    assert_eq!(read.as_literal().is_some(), !has_fields, "{template:?}");

    // as a key it takes any text
    if let Some(route) = route("fixed", "", &template) {
        let filled = fill(&meant, &event);
        match record::shape(&route, &event) {
            Ok(record) => {
                let key = record.key.as_deref();
                assert!(filled.is_none() || template.is_empty() || key == filled.as_deref(), "{key:?} for {filled:?}");
            }
            Err(rejection) => {
                let is_headers = ["bad_headers", "reserved_header"].contains(&rejection.code.as_ref());
                assert!(filled.is_none() || is_headers, "{rejection:?}");
            }
        }
    }
    if let Some(route) = route(&template, &topics, "{aggregate_id}") {
        topic(&route, &template, &topics, &meant, &event);
    }
}

/// Whatever the row holds, a topic keeps what stands before the first field, or is among the listed ones.
fn topic(route: &Route, template: &str, topics: &str, meant: &[Piece], event: &Event) {
    let listed: Vec<&str> = topics.split(',').filter(|pattern| !pattern.is_empty()).collect();
    let prefix = prefix(meant);
    assert!(!prefix.is_empty() || !listed.is_empty(), "{template:?} lets a row choose any topic");
    assert!(listed.iter().all(|pattern| pattern.chars().any(|c| c != '*')), "{listed:?} lets a row choose any topic");
    match record::shape(route, event) {
        Ok(record) => {
            assert!(is_legal(&record.topic), "{:?}", record.topic);
            assert!(record.topic.starts_with(&prefix), "{:?} without {prefix:?}", record.topic);
            assert!(
                listed.is_empty() || listed.iter().any(|pattern| fits(pattern, &record.topic)),
                "{:?}",
                record.topic
            );
            if let Some(filled) = fill(meant, event) {
                assert_eq!(record.topic, filled, "{template:?}");
            }
            assert_eq!(record.key.as_deref(), Some(event.aggregate_id.as_str()));
        }
        Err(rejection) => {
            // the name of a topic that is not listed is told, for it is what to add to the list
            let told = rejection.code != "foreign_topic" && rejection.reason.contains(PLANTED);
            assert!(!told || template.contains(PLANTED), "{rejection:?}");
            let letter = record::dead_letter(event, "dead", "default", &rejection);
            assert_eq!((letter.topic.as_ref(), letter.key.as_deref()), ("dead", Some(event.aggregate_id.as_str())));
        }
    }
}
