//! `[[outbox.route]]`: which events, to which topic, in which form.

use super::key::{Fallback, Form, Key, Kind};
use super::problem::{Fault, listed, nearest, quoted};
use super::section::{Named, Section, Word};

pub use super::pattern::Pattern;
pub use super::template::{Field, Part, Template, TemplateError};

/// What becomes of the events that match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Which events.
    pub when: When,
    /// `false` leaves the events out, and counts them.
    pub publish: bool,
    /// Where the record goes. Has a literal prefix, or `topics` bounds it.
    pub topic: Template,
    /// The topics that `topic` may name; empty for any that it can.
    pub topics: Vec<Pattern>,
    /// The key of the record, which decides its partition. Empty: none, and the partition is left to chance.
    pub key: Template,
    /// Headers besides ours, in the order of their names. None has a name of ours.
    pub headers: Vec<(String, Template)>,
    /// The timestamp of the record.
    pub timestamp: Timestamp,
    /// The value of the record.
    pub value: Value,
    /// What happens to an event that cannot become a record, or that Kafka will never take.
    pub on_reject: Policy,
}

/// Which events a route matches: those that fit each list. An empty list fits all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct When {
    /// One of these has to match the type of the aggregate.
    pub aggregate_type: Vec<Pattern>,
    /// One of these has to match the type of the event.
    pub event_type: Vec<Pattern>,
}

/// Where the timestamp of a record comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timestamp {
    /// The event's `created_at`.
    CreatedAt,
    /// The producer's clock when the record is sent.
    None,
}

/// What the value of a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// As stored: `payload_bytes` byte for byte, `payload` as Postgres prints it.
    Payload,
}

/// What happens to a rejection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The event and the later ones of its stream wait in `outbox.parked`; other streams flow.
    Park,
    /// The lane stands at the event, tries again with capped back-off and says why.
    Halt,
    /// The event goes to this topic with the reason in headers, and its stream goes on without it.
    DeadLetter(String),
}

const AGGREGATE_TYPE: Key = Key {
    name: "aggregate_type",
    doc: "The types of aggregate, one or a list. Nothing matches any.",
    kind: Kind::Value(NAMES, Fallback::Absent),
};

const EVENT_TYPE: Key = Key {
    name: "event_type",
    doc: "The types of event, one or a list. Nothing matches any.",
    kind: Kind::Value(NAMES, Fallback::Absent),
};

const NAMES: Form = Form::Texts("a name, in which `*` matches any run of characters");

const WHEN: Key = Key {
    name: "when",
    doc: "Which events the route matches. Nothing matches all.",
    kind: Kind::Table(&[AGGREGATE_TYPE, EVENT_TYPE]),
};

const PUBLISH: Key = Key {
    name: "publish",
    doc: "Whether the events that match are published. `false` leaves them out on purpose; they are counted.",
    kind: Kind::Value(Form::Boolean, Fallback::Boolean(true)),
};

const TOPIC: Key = Key {
    name: "topic",
    doc: "The topic, with fields of the event. It begins with literal text, or `topics` bounds it.",
    kind: Kind::Value(
        Form::Text("a topic such as `outbox.event.{aggregate_type}`"),
        Fallback::Text("outbox.event.{aggregate_type}"),
    ),
};

const TOPICS: Key = Key {
    name: "topics",
    doc: "The topics that `topic` may name: a row must not choose any topic.",
    kind: Kind::Value(Form::Texts("the name of a topic, in which `*` matches any run of characters"), Fallback::Absent),
};

const KEY: Key = Key {
    name: "key",
    doc: "The key of the record. Only what is the same for a whole stream keeps its order; an empty text is no key, and no order.",
    kind: Kind::Value(Form::Text("a key such as `{aggregate_id}`"), Fallback::Text("{aggregate_id}")),
};

const HEADERS: Key = Key {
    name: "headers",
    doc: "Headers by name, besides those that outboxd and the event set.",
    kind: Kind::Entries(Form::Text("a text such as `{event_type}`")),
};

const TIMESTAMP: Key = Key {
    name: "timestamp",
    doc: "The timestamp of the record: when the event was written, or none of ours (when it was sent).",
    kind: Kind::Value(Form::Word(&["created_at", "none"]), Fallback::Text("created_at")),
};

const TIMESTAMPS: &[Word<Timestamp>] = &[("created_at", Some(Timestamp::CreatedAt)), ("none", Some(Timestamp::None))];

const VALUE: Key = Key {
    name: "value",
    doc: "The value of the record: the payload as stored.",
    kind: Kind::Value(Form::Word(&["payload"]), Fallback::Text("payload")),
};

const VALUES: &[Word<Value>] = &[("payload", Some(Value::Payload))];

const ON_REJECT: Key = Key {
    name: "on_reject",
    doc: "What happens to an event that cannot become a record or that Kafka will never take: with `park` it and the later ones of its stream wait in outbox.parked, with `halt` the lane stands at it, with `{ dead_letter = \"topic\" }` it goes there and its stream goes on without it.",
    kind: Kind::Value(POLICIES, Fallback::Text("park")),
};

/// What a policy looks like.
pub(super) const POLICIES: Form = Form::WordOr(&["park", "halt"], DEAD_LETTER);

/// The one policy with a parameter: `{ dead_letter = "topic" }`.
const DEAD_LETTER: &str = "dead_letter";

pub(super) const KEYS: &[Key] = &[WHEN, PUBLISH, TOPIC, TOPICS, KEY, HEADERS, TIMESTAMP, VALUE, ON_REJECT];

/// The headers that every record has, or may have: nothing else may bear these names.
pub const OWN_HEADERS: [&str; 6] = ["id", "type", "aggregate-type", "aggregate-id", "sequence", "previous-event-id"];

/// The longest name that Kafka takes for a topic.
const LONGEST_TOPIC: usize = 249;

impl Route {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Option<Self> {
        let when = When::read(&mut section.table(&WHEN));
        let publish = section.boolean(&PUBLISH);
        let topics = section.parse_each(&TOPICS, topic_pattern);
        let topic = section.parse(&TOPIC, |text| topic(text, topics.as_deref()));
        let key = section.parse(&KEY, |text| Ok(Template::parse(text)?));
        let headers = section.entries(&HEADERS, header);
        let timestamp = section.word(&TIMESTAMP, TIMESTAMPS);
        let value = section.word(&VALUE, VALUES);
        let on_reject = Policy::read(section, &ON_REJECT);
        Some(Self {
            when: when?,
            publish: publish?,
            topic: topic?,
            topics: topics?,
            key: key?,
            headers: headers?,
            timestamp: timestamp?,
            value: value?,
            on_reject: on_reject?,
        })
    }
}

impl When {
    fn read(section: &mut Section<'_, '_>) -> Option<Self> {
        let aggregate_type = section.parse_each(&AGGREGATE_TYPE, |text| Ok(Pattern::new(text)));
        let event_type = section.parse_each(&EVENT_TYPE, |text| Ok(Pattern::new(text)));
        Some(Self { aggregate_type: aggregate_type?, event_type: event_type? })
    }
}

impl Policy {
    pub(super) fn read(section: &mut Section<'_, '_>, key: &Key) -> Option<Self> {
        section.parse_or_named(key, DEAD_LETTER, |named| match named {
            Named::Plain("park") => Ok(Self::Park),
            Named::Plain("halt") => Ok(Self::Halt),
            Named::Plain(other) => {
                let hint = nearest(other, ["park", "halt"]).map(|near| format!("did you mean {}?", quoted(near)));
                Err(Fault { hint, ..Fault::new(key.kind.form().expected()) })
            }
            Named::Inside(topic) if is_legal_topic(topic) => Ok(Self::DeadLetter(topic.to_owned())),
            Named::Inside(_) => Err(Fault::new("the name of a topic")),
        })
    }

    /// The strictest policy has the smallest number: it counts where an event goes through several routes.
    pub fn leniency(&self) -> u8 {
        match self {
            Self::Halt => 0,
            Self::Park => 1,
            Self::DeadLetter(_) => 2,
        }
    }
}

/// Kafka's rule for names: `[a-zA-Z0-9._-]`, 1 to 249 of them, not `.` or `..`.
pub fn is_legal_topic(name: &str) -> bool {
    !["", ".", ".."].contains(&name) && name.len() <= LONGEST_TOPIC && is_of_topic(name)
}

/// Reads the template of a topic; `topics` is `None` where the list itself is wrong.
fn topic(text: &str, topics: Option<&[Pattern]>) -> Result<Template, Fault> {
    let template = Template::parse(text)?;
    let literals = template.parts.iter().filter_map(|part| match part {
        Part::Literal(literal) => Some(literal.as_str()),
        Part::Field(_) => None,
    });
    if !literals.clone().all(is_of_topic) {
        return Err(Fault::new("letters, digits, `.`, `_` and `-` only"));
    }
    if literals.map(str::len).sum::<usize>() > LONGEST_TOPIC {
        return Err(Fault::new(format!("at most {LONGEST_TOPIC} characters")));
    }
    match (template.as_literal(), topics) {
        (Some("" | "." | ".."), _) => Err(Fault::new("the name of a topic")),
        (Some(name), Some([_, ..])) if !topics.is_some_and(|list| fits(name, list)) => {
            Err(Fault::new("a topic of the list `topics`"))
        }
        (None, Some([])) if template.literal_prefix().is_empty() => {
            Err(Fault::new("literal text before the first field, or a list `topics`")
                .hint("a row must not be able to choose any topic of the cluster"))
        }
        _ => Ok(template),
    }
}

fn fits(name: &str, topics: &[Pattern]) -> bool {
    topics.iter().any(|pattern| pattern.matches(name))
}

/// A pattern of stars alone would let a row choose any topic.
fn topic_pattern(text: &str) -> Result<Pattern, Fault> {
    let literal = text.replace('*', "");
    if literal.is_empty() || literal.len() > LONGEST_TOPIC || !is_of_topic(&literal) {
        return Err(Fault::new("letters, digits, `.`, `_` and `-` of a topic's name, and `*` between them"));
    }
    Ok(Pattern::new(text))
}

/// Whether Kafka takes all of these characters in the name of a topic.
fn is_of_topic(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

fn header(name: &str, text: &str) -> Result<Template, Fault> {
    if OWN_HEADERS.contains(&name) {
        return Err(Fault::part(
            "a header that outboxd sets itself",
            format!("another name than {}", listed(OWN_HEADERS)),
        ));
    }
    if name.is_empty() || name.chars().any(char::is_control) {
        return Err(Fault::part(quoted(name), "a name without control characters"));
    }
    Ok(Template::parse(text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_cannot_choose_any_topic() {
        let none: &[&str] = &[];
        let longest = "a".repeat(249);
        let too_long = "a".repeat(250);
        let cases = [
            ("orders", none, true),
            ("orders.{event_type}", none, true),
            ("{aggregate_type}", none, false),
            ("{aggregate_type}.events", none, false),
            ("{aggregate_type}", &["a", "b.*"], true),
            ("orders", &["orders", "b.*"], true),
            ("orders", &["b.*"], false),
            ("", none, false),
            (".", none, false),
            ("..", none, false),
            ("a b", none, false),
            ("a/{event_type}", none, false),
            ("{{a", none, false),
            (longest.as_str(), none, true),
            (too_long.as_str(), none, false),
        ];
        for (text, topics, expected) in cases {
            let topics: Vec<_> = topics.iter().copied().map(Pattern::new).collect();
            assert_eq!(topic(text, Some(&topics)).is_ok(), expected, "{text}");
        }
        assert!(topic("{aggregate_type}", None).is_ok());
    }

    #[test]
    fn kafka_decides_which_topic_names_are_legal() {
        for good in ["a", "outbox.event.Order", "A-1_b", &"x".repeat(249)] {
            assert!(is_legal_topic(good), "{good}");
        }
        for bad in ["", ".", "..", "a b", "é", "a/b", &"x".repeat(250)] {
            assert!(!is_legal_topic(bad), "{bad}");
        }
    }

    #[test]
    fn a_list_of_topics_is_a_bound() {
        for text in ["*", "**", "", "a b", "é*"] {
            assert!(topic_pattern(text).is_err(), "{text}");
        }
        for text in ["a", "b.*", "*.events"] {
            assert!(topic_pattern(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn a_header_of_ours_is_not_replaced() {
        for name in OWN_HEADERS {
            assert!(header(name, "x").is_err(), "{name}");
        }
        assert!(header("tenant", "{headers.tenant}").is_ok());
        assert!(header("tenant", "{tenant}").is_err());
    }
}
