//! Event to records. Pure: no async, no clock, no randomness, no I/O. Same event, same bytes, on every machine.

pub mod record;
pub mod rule;
pub mod stored;
pub mod template;

use crate::config::outbox::Outbox;
use crate::config::route::{Policy, Route};
use crate::outbox::event::Event;
use record::Record;
use std::borrow::Cow;

/// The routes of one outbox, in the order of the configuration.
#[derive(Clone, Debug)]
pub struct Router {
    outbox: String,
    routes: Vec<Route>,
    unmatched: Policy,
}

/// Why an event cannot become a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Rejection {
    /// One word for labels and for the parked row.
    pub code: Cow<'static, str>,
    /// The sentence for the operator. Names fields, never their values.
    pub reason: String,
    /// The next step.
    pub hint: Cow<'static, str>,
}

impl Rejection {
    /// A rejection with fixed code and advice.
    pub fn new(code: &'static str, reason: impl Into<String>, hint: &'static str) -> Self {
        Self { code: Cow::Borrowed(code), reason: reason.into(), hint: Cow::Borrowed(hint) }
    }
}

impl Router {
    /// Compiles the routes; the configuration has checked them.
    pub fn compile(outbox: &Outbox) -> Self {
        Self {
            outbox: outbox.name.as_str().to_owned(),
            routes: outbox.routes.clone(),
            unmatched: outbox.on_reject.clone(),
        }
    }

    /// Makes all records of an event, before any of them is sent. An empty answer means that a route leaves the event out.
    ///
    /// # Errors
    /// No route matches, or one that does cannot be filled.
    pub fn route<'e>(&'e self, event: &'e Event, records: &mut Vec<Record<'e>>) -> Result<(), Rejection> {
        records.clear();
        let mut matched = false;
        for route in self.matching(event) {
            matched = true;
            if route.publish {
                records.push(record::shape(route, event)?);
            }
        }
        if matched { Ok(()) } else { Err(no_route()) }
    }

    /// What becomes of the event if it is rejected: the strictest policy of its routes, or that of the outbox if none matches.
    pub fn policy<'r>(&'r self, event: &Event) -> &'r Policy {
        let policies = self.matching(event).filter(|route| route.publish).map(|route| &route.on_reject);
        policies.min_by_key(|policy| policy.leniency()).unwrap_or(&self.unmatched)
    }

    /// The record for the dead-letter topic, with the reason in its headers. It is made of what cannot fail.
    pub fn dead_letter<'e>(&'e self, event: &'e Event, topic: &'e str, rejection: &'e Rejection) -> Record<'e> {
        record::dead_letter(event, topic, &self.outbox, rejection)
    }

    fn matching<'r>(&'r self, event: &Event) -> impl Iterator<Item = &'r Route> {
        self.routes.iter().filter(move |route| rule::matches(&route.when, event))
    }
}

fn no_route() -> Rejection {
    Rejection::new(
        "no_route",
        "no route matches the event's aggregate_type and event_type",
        "add an [[outbox.route]] for it; with `publish = false` to leave such events out",
    )
}
