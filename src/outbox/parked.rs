//! A parked event: taken out of the way, with the later ones of its stream, until somebody acts. Pure.

use super::event::EventKey;
use super::stream::Stream;

/// Why an event is parked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// It cannot become a record, or Kafka will never take it. It is the first of its stream that is parked.
    Rejection {
        /// One word for labels.
        code: String,
        /// The sentence for the operator.
        reason: String,
    },
    /// An earlier event of its stream is parked.
    Follows,
}

/// An event that is to be parked: written by the save that moves the cursor over it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Parking {
    /// Which event.
    pub key: EventKey,
    /// Its stream.
    pub stream: Stream,
    /// Why.
    pub cause: Cause,
}

/// A parked event that is sent after all. Once it is acknowledged, its row goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Release {
    /// Which event.
    pub key: EventKey,
    /// Its stream.
    pub stream: Stream,
}
