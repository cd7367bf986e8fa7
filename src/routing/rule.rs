//! Which routes match an event. Pure.

use crate::config::route::{Pattern, When};
use crate::outbox::event::Event;

/// Whether the event has one of the listed types; an empty list stands for any.
pub fn matches(when: &When, event: &Event) -> bool {
    any(&when.aggregate_type, &event.aggregate_type) && any(&when.event_type, &event.event_type)
}

/// Whether one of the patterns matches, or there is none.
pub fn any(patterns: &[Pattern], text: &str) -> bool {
    patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(text))
}
