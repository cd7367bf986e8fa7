//! Fills the templates of topics, keys and headers. Pure. They were parsed when the configuration was read.

use super::Rejection;
use super::stored::header_text;
use crate::config::route::{Field, Part, Template};
use crate::outbox::event::Event;
use std::borrow::Cow;

/// Fills a template from an event. A template that is one field of the event, or one literal, copies nothing.
///
/// # Errors
/// The event has no value for a field.
pub fn fill<'e>(template: &'e Template, event: &'e Event, what: &'static str) -> Result<Cow<'e, str>, Rejection> {
    if let [part] = &template.parts[..] {
        return piece(part, event, what);
    }
    let mut text = String::new();
    for part in &template.parts {
        text.push_str(&piece(part, event, what)?);
    }
    Ok(Cow::Owned(text))
}

fn piece<'e>(part: &'e Part, event: &'e Event, what: &'static str) -> Result<Cow<'e, str>, Rejection> {
    Ok(match part {
        Part::Literal(text) => Cow::Borrowed(text),
        Part::Field(field) => match field {
            Field::AggregateType => Cow::Borrowed(&event.aggregate_type),
            Field::AggregateId => Cow::Borrowed(&event.aggregate_id),
            Field::EventType => Cow::Borrowed(&event.event_type),
            Field::EventId => Cow::Owned(event.event_id.text()),
            Field::Sequence => Cow::Owned(event.sequence.ok_or_else(|| unfilled(what, "sequence"))?.to_string()),
            Field::Header(name) => {
                Cow::Owned(header_text(event, name)?.ok_or_else(|| unfilled(what, &format!("headers.{name}")))?)
            }
        },
    })
}

fn unfilled(what: &str, field: &str) -> Rejection {
    let reason = format!("the template of the {what} asks for {{{field}}}, which the event does not have");
    Rejection::new("unfilled_template", reason, "write the field with the event, or change the template")
}
