//! A record: what is sent to Kafka, and the names of its headers. Pure.

use super::{Rejection, rule, stored, template};
use crate::config::route::{OWN_HEADERS, Route, Timestamp, Value, is_legal_topic};
use crate::outbox::event::Event;
use std::borrow::Cow;

/// Names and values, in order; `None` is a null header.
pub type Headers<'e> = Vec<(Cow<'e, str>, Option<Cow<'e, str>>)>;

/// What is sent to Kafka. Borrows from its event where it can: the producer copies it once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<'e> {
    /// A legal topic name.
    pub topic: Cow<'e, str>,
    /// Decides the partition; `None` leaves it to chance.
    pub key: Option<Cow<'e, str>>,
    /// `None` is a tombstone.
    pub value: Option<&'e [u8]>,
    /// In the order in which they are sent.
    pub headers: Headers<'e>,
    /// Milliseconds since 1970; `None` leaves it to the producer.
    pub timestamp_ms: Option<i64>,
}

impl Record<'_> {
    /// Bytes of key, value and headers.
    pub fn size_bytes(&self) -> usize {
        let headers: usize =
            self.headers.iter().map(|(name, value)| name.len() + value.as_ref().map_or(0, |value| value.len())).sum();
        self.key.as_ref().map_or(0, |key| key.len()) + self.value.map_or(0, <[u8]>::len) + headers
    }
}

/// Makes the record that a route asks for.
///
/// # Errors
/// A template cannot be filled, the topic is not allowed, or a header's name is ours.
pub fn shape<'e>(route: &'e Route, event: &'e Event) -> Result<Record<'e>, Rejection> {
    let topic = template::fill(&route.topic, event, "topic")?;
    check_topic(&topic, route)?;
    let value = match route.value {
        Value::Payload => event.payload.as_deref(),
    };
    let timestamp_ms = match route.timestamp {
        Timestamp::CreatedAt => Some(millis(event)?),
        Timestamp::None => None,
    };
    Ok(Record {
        topic,
        key: if route.key.is_empty() { None } else { Some(template::fill(&route.key, event, "key")?) },
        value,
        headers: headers(route, event)?,
        timestamp_ms,
    })
}

/// Makes the record that goes to the dead-letter topic: the event as it is, and why it could not become the record that it should.
/// Nothing in it can fail. The event's own headers are there as they are stored, since they may be what is wrong.
pub fn dead_letter<'e>(event: &'e Event, topic: &'e str, outbox: &'e str, rejection: &'e Rejection) -> Record<'e> {
    let mut headers = Vec::with_capacity(11);
    push_own(&mut headers, event);
    let mut reason =
        |name: &'static str, value: &'e str| headers.push((Cow::Borrowed(name), Some(Cow::Borrowed(value))));
    reason("dead-letter-outbox", outbox);
    reason("dead-letter-code", &rejection.code);
    reason("dead-letter-reason", &rejection.reason);
    if let Some(stored) = &event.headers {
        reason("dead-letter-headers", stored);
    }
    Record {
        topic: Cow::Borrowed(topic),
        key: Some(Cow::Borrowed(&event.aggregate_id)),
        value: event.payload.as_deref(),
        headers,
        timestamp_ms: millis(event).ok(),
    }
}

fn push_own<'e>(headers: &mut Headers<'e>, event: &'e Event) {
    let mut own = |name: &'static str, value: Cow<'e, str>| headers.push((Cow::Borrowed(name), Some(value)));
    own("id", Cow::Owned(event.event_id.text()));
    own("type", Cow::Borrowed(&event.event_type));
    own("aggregate-type", Cow::Borrowed(&event.aggregate_type));
    own("aggregate-id", Cow::Borrowed(&event.aggregate_id));
    if let Some(sequence) = event.sequence {
        own("sequence", Cow::Owned(sequence.to_string()));
    }
    if let Some(previous) = event.previous_event_id {
        own("previous-event-id", Cow::Owned(previous.text()));
    }
}

fn headers<'e>(route: &'e Route, event: &'e Event) -> Result<Headers<'e>, Rejection> {
    let mut headers = Vec::with_capacity(6 + route.headers.len());
    push_own(&mut headers, event);
    for (name, value) in &route.headers {
        headers.push((Cow::Borrowed(name), Some(template::fill(value, event, "header")?)));
    }
    for (name, value) in stored::entries(event)? {
        if OWN_HEADERS.contains(&name.as_str()) {
            let reason = format!("the event's headers hold `{name}`, a name of the record's own");
            return Err(Rejection::new("reserved_header", reason, "rename it"));
        }
        headers.push((Cow::Owned(name), value.map(Cow::Owned)));
    }
    Ok(headers)
}

fn check_topic(topic: &str, route: &Route) -> Result<(), Rejection> {
    if !is_legal_topic(topic) {
        return Err(Rejection::new(
            "illegal_topic",
            "the topic's template gives a name that Kafka does not allow (1 to 249 of a-z A-Z 0-9 . _ -)",
            "give such events a route with a fixed topic",
        ));
    }
    if !rule::any(&route.topics, topic) {
        let reason = "the topic's template gives a name that is not among the route's `topics`";
        let hint = "add it to the list, or give such events a route of their own";
        return Err(Rejection::new("foreign_topic", reason, hint));
    }
    Ok(())
}

fn millis(event: &Event) -> Result<i64, Rejection> {
    let millis = event.created_at.0.div_euclid(1_000);
    if millis < 0 {
        let reason = "the event's created_at lies before 1970, which Kafka does not take as a timestamp";
        return Err(Rejection::new("bad_timestamp", reason, "correct the column"));
    }
    Ok(millis)
}
