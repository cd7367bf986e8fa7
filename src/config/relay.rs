//! `[relay]`: how fast we read, how much is on the way, how long others wait for us.

use std::path::PathBuf;
use std::time::Duration;

use super::key::{Fallback, Form, Key, Kind};
use super::problem::Fault;
use super::section::Section;

/// The pace and the bounds of the relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relay {
    /// How long to sleep between reads.
    pub poll: Poll,
    /// How often the cursor is saved; at most a third of the lease, which a save renews.
    pub save_every: Duration,
    /// What may be read and not yet settled.
    pub in_flight: InFlight,
    /// How long a stop waits for what is on the way.
    pub shutdown_grace: Duration,
    /// How long the right to work a lane lasts without a save.
    pub lease: Duration,
    /// The directory of the lock file.
    pub state: PathBuf,
}

/// The bounds between which the sleep between reads adapts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Poll {
    /// While there is traffic.
    pub min: Duration,
    /// When idle; never below `min`.
    pub max: Duration,
}

/// What may be read and not yet settled, per lane. The first bound that is reached stops reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// Events.
    pub events: usize,
    /// Bytes, the overhead of a record included.
    pub size_bytes: usize,
}

const MIN: Key = Key {
    name: "min",
    doc: "The sleep between two reads while there is traffic: each read costs Postgres an index probe.",
    kind: Kind::Value(POLL_RANGE, Fallback::Text("2ms")),
};

const MAX: Key = Key {
    name: "max",
    doc: "The sleep between two reads when idle: the most that an event waits after a quiet time.",
    kind: Kind::Value(POLL_RANGE, Fallback::Text("250ms")),
};

/// Below, a read takes longer; above an hour the relay looks dead.
const POLL_RANGE: Form = Form::Duration { least: Duration::from_micros(200), most: Duration::from_hours(1) };

const POLL: Key = Key {
    name: "poll",
    doc: "How long to sleep between two reads; adaptive between the two.",
    kind: Kind::Table(&[MIN, MAX]),
};

const SAVE_EVERY: Key = Key {
    name: "save_every",
    doc: "How often the cursor is saved; bounds the duplicates after a kill. At most a third of `lease`.",
    kind: Kind::Value(
        Form::Duration { least: Duration::from_millis(10), most: LONGEST_LEASE },
        Fallback::Text("200ms"),
    ),
};

const EVENTS: Key = Key {
    name: "events",
    doc: "The most events that are read and not yet settled.",
    kind: Kind::Value(Form::Integer { least: 1, most: 1_000_000 }, Fallback::Integer(16_000)),
};

const SIZE: Key = Key {
    name: "size",
    doc: "The most memory of what is read and not yet settled; counts the overhead of a record too.",
    kind: Kind::Value(
        Form::Size {
            least: 1024 * 1024,       // the largest record that a broker takes by default
            most: 1024 * 1024 * 1024, // librdkafka's own queue has 2 GiB at most
        },
        Fallback::Text("28MiB"),
    ),
};

const IN_FLIGHT: Key = Key {
    name: "in_flight",
    doc: "What may be read and not yet settled; the first bound that is reached stops reading.",
    kind: Kind::Table(&[EVENTS, SIZE]),
};

const SHUTDOWN_GRACE: Key = Key {
    name: "shutdown_grace",
    doc: "How long a stop waits for what is on the way. Keep it below the supervisor's own limit.",
    kind: Kind::Value(Form::Duration { least: Duration::ZERO, most: Duration::from_mins(10) }, Fallback::Text("20s")),
};

/// A dead relay's lane stands still for up to twice this.
const LONGEST_LEASE: Duration = Duration::from_mins(5);

const LEASE: Key = Key {
    name: "lease",
    doc: "Another machine takes over from a relay that died without a word after at most twice this and a second.",
    kind: Kind::Value(
        Form::Duration {
            least: Duration::from_secs(3), // a save may take its share of a slow second
            most: LONGEST_LEASE,
        },
        Fallback::Text("10s"),
    ),
};

const STATE: Key = Key {
    name: "state",
    doc: "The directory of a lock file: with it a killed relay goes on at once, without it waits for its own lease.",
    kind: Kind::Value(Form::Text("the path of a directory"), Fallback::Text("/var/lib/outboxd")),
};

pub(super) const KEYS: &[Key] = &[POLL, SAVE_EVERY, IN_FLIGHT, SHUTDOWN_GRACE, LEASE, STATE];

/// A lease outlives two saves that fail.
const SAVES_PER_LEASE: u32 = 3;

impl Relay {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Option<Self> {
        let poll = Poll::read(&mut section.table(&POLL));
        let save_every = section.duration(&SAVE_EVERY);
        let in_flight = InFlight::read(&mut section.table(&IN_FLIGHT));
        let shutdown_grace = section.duration(&SHUTDOWN_GRACE);
        let lease = section.duration(&LEASE);
        let state = section.parse(&STATE, directory);
        check_saves(section, save_every, lease);
        Some(Self {
            poll: poll?,
            save_every: save_every?,
            in_flight: in_flight?,
            shutdown_grace: shutdown_grace?,
            lease: lease?,
            state: state?,
        })
    }
}

fn check_saves(section: &mut Section<'_, '_>, every: Option<Duration>, lease: Option<Duration>) {
    let most = lease.map(|lease| lease / SAVES_PER_LEASE);
    if let (Some(every), Some(most)) = (every, most)
        && every > most
    {
        let most = humantime::format_duration(most);
        let expected = format!("at most {most}, a third of `relay.lease`");
        section.reject(&SAVE_EVERY, Fault::new(expected));
    }
}

impl Poll {
    fn read(section: &mut Section<'_, '_>) -> Option<Self> {
        let (min, max) = (section.duration(&MIN), section.duration(&MAX));
        let poll = Self { min: min?, max: max? };
        if poll.min > poll.max {
            let max = humantime::format_duration(poll.max);
            section.reject(&MIN, Fault::new(format!("at most {max}, which is `relay.poll.max`")));
        }
        Some(poll)
    }
}

impl InFlight {
    fn read(section: &mut Section<'_, '_>) -> Option<Self> {
        let (events, size) = (section.integer(&EVENTS), section.size(&SIZE));
        Some(Self { events: events?, size_bytes: size? })
    }
}

fn directory(text: &str) -> Result<PathBuf, Fault> {
    if text.is_empty() || text.contains('\0') {
        return Err(Fault::new(STATE.kind.form().expected()));
    }
    Ok(PathBuf::from(text))
}
