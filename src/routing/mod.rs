//! Event to records. Pure: no async, no clock, no randomness, no I/O. Same event, same bytes, on every machine.

pub mod record;
pub mod rule;
pub mod stored;
pub mod template;

use crate::config::outbox::Outbox;
use crate::config::route::Route;
use crate::outbox::event::Event;
use record::Record;

/// The routes of one outbox, in the order of the configuration.
#[derive(Clone, Debug)]
pub struct Router {
    routes: Vec<Route>,
}

/// Why an event cannot become a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Rejection {
    /// One word for labels and for the parked row.
    pub code: &'static str,
    /// The sentence for the operator. Names fields, never their values.
    pub reason: String,
    /// The next step.
    pub hint: &'static str,
}

impl Router {
    /// Compiles the routes; the configuration has checked them.
    pub fn compile(outbox: &Outbox) -> Self {
        Self { routes: outbox.routes.clone() }
    }

    /// Makes all records of an event, before any of them is sent. An empty answer means that a route leaves the event out.
    ///
    /// # Errors
    /// No route matches, or one that does cannot be filled.
    pub fn route<'e>(&'e self, event: &'e Event, records: &mut Vec<Record<'e>>) -> Result<(), Rejection> {
        records.clear();
        let mut matched = false;
        for route in self.routes.iter().filter(|route| rule::matches(&route.when, event)) {
            matched = true;
            if route.publish {
                records.push(record::shape(route, event)?);
            }
        }
        if matched { Ok(()) } else { Err(no_route()) }
    }
}

fn no_route() -> Rejection {
    Rejection {
        code: "no_route",
        reason: "no route matches the event's aggregate_type and event_type".to_owned(),
        hint: "add an [[outbox.route]] for it; with `publish = false` to leave such events out",
    }
}
