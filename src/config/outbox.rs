//! `[[outbox]]`: what is read, under which name, and where its events go.

use std::collections::BTreeSet;
use std::fmt;

use super::key::{Fallback, Form, Key, Kind};
use super::problem::{Fault, quoted};
use super::route::{self, Policy, Route};
use super::section::{NOT_YET, Section, Word};
use crate::outbox::table::TableName;

/// One reader of a table, with a cursor of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outbox {
    /// Names the cursor, and the outbox in logs and metrics. No other has it.
    pub name: OutboxName,
    /// Where the events are.
    pub table: TableName,
    /// Where a cursor that does not exist yet begins; only some may leave it open.
    pub start: Option<Start>,
    /// Whether writers wake a relay that sleeps.
    pub doorbell: bool,
    /// What happens to an event that no route matches.
    pub on_reject: Policy,
    /// In the order of the file; never empty.
    pub routes: Vec<Route>,
}

/// The name of an outbox: 1 to 63 of `A-Z a-z 0-9 . _ -`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OutboxName(String);

/// Why a text is not an [`OutboxName`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutboxNameError {
    /// Nothing, or more than an identifier of Postgres holds.
    #[error("expected 1 to 63 characters")]
    Length,
    /// A character that a metric label or a transactional id would have to escape.
    #[error("expected letters, digits, `.`, `_` and `-` only")]
    Character,
}

/// Where a new cursor begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With the oldest event of the table.
    Earliest,
    /// With the first event after the start. An empty table begins with its first event all the same.
    Latest,
}

/// How it is known what is done. There is one way so far, so [`Outbox`] does not carry it.
#[derive(Clone, Copy)]
enum Progress {
    Cursor,
}

const NAME: Key = Key {
    name: "name",
    doc: "Names the cursor, and the outbox in logs and metrics. Another name is another cursor.",
    kind: Kind::Value(Form::Text("1 to 63 letters, digits, `.`, `_` and `-`"), Fallback::Text("default")),
};

/// The table that our migrations make.
const OWN_TABLE: &str = "outbox.events";

const TABLE: Key = Key {
    name: "table",
    doc: "Where the events are, as `schema.table`.",
    kind: Kind::Value(Form::Text("`outbox.events`"), Fallback::Text(OWN_TABLE)),
};

const START: Key = Key {
    name: "start",
    doc: "Where a new cursor begins. The first cursor of our own table needs none (earliest), any other must say.",
    kind: Kind::Value(Form::Word(&["earliest", "latest"]), Fallback::Absent),
};

const STARTS: &[Word<Start>] =
    &[("earliest", Some(Start::Earliest)), ("latest", Some(Start::Latest)), ("undelivered", None)];

const PROGRESS: Key = Key {
    name: "progress",
    doc: "How it is known what is done. A cursor costs Postgres one row per save.",
    kind: Kind::Value(Form::Word(&["cursor"]), Fallback::Text("cursor")),
};

const PROGRESSES: &[Word<Progress>] = &[("cursor", Some(Progress::Cursor)), ("delete", None), ("mark", None)];

const DOORBELL: Key = Key {
    name: "doorbell",
    doc: "An idle relay sleeps for up to `relay.poll.max`, until a writer rings. `outboxd migrate --doorbell` hangs it up.",
    kind: Kind::Value(Form::Boolean, Fallback::Boolean(false)),
};

const ON_REJECT: Key = Key {
    name: "on_reject",
    doc: "What happens to an event that no route matches; as for a route.",
    kind: Kind::Value(route::POLICIES, Fallback::Text("park")),
};

const ROUTE: Key = Key {
    name: "route",
    doc: "Where events go. An event goes through each route that matches it.",
    kind: Kind::Tables(route::KEYS),
};

pub(super) const KEYS: &[Key] = &[NAME, TABLE, START, PROGRESS, DOORBELL, ON_REJECT, ROUTE];

impl Outbox {
    /// Reads all of them: a name names one cursor, so none may come twice.
    pub(super) fn read_all(root: &mut Section<'_, '_>, key: &Key) -> Option<Vec<Self>> {
        let mut names = BTreeSet::new();
        root.each(key, |section| Self::read(section, &mut names))
    }

    fn read(section: &mut Section<'_, '_>, taken: &mut BTreeSet<OutboxName>) -> Option<Self> {
        let name = section.parse(&NAME, |text| new_name(text, taken));
        let table = section.parse(&TABLE, table);
        let start = section.word(&START, STARTS);
        let progress = section.word(&PROGRESS, PROGRESSES);
        let doorbell = section.boolean(&DOORBELL);
        let on_reject = Policy::read(section, &ON_REJECT);
        let routes = section.each(&ROUTE, Route::read);
        let Progress::Cursor = progress?;
        Some(Self { name: name?, table: table?, start, doorbell: doorbell?, on_reject: on_reject?, routes: routes? })
    }
}

impl OutboxName {
    /// Reads the name as the configuration and the command line have it.
    pub fn parse(text: &str) -> Result<Self, OutboxNameError> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if !text.bytes().all(fits) {
            return Err(OutboxNameError::Character);
        }
        if !(1..=63).contains(&text.len()) {
            return Err(OutboxNameError::Length);
        }
        Ok(Self(text.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for OutboxName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn new_name(text: &str, taken: &mut BTreeSet<OutboxName>) -> Result<OutboxName, Fault> {
    let name = OutboxName::parse(text).map_err(|_| Fault::new(NAME.kind.form().expected()))?;
    if !taken.insert(name.clone()) {
        return Err(Fault::new("a name that no other outbox has"));
    }
    Ok(name)
}

fn table(text: &str) -> Result<TableName, Fault> {
    match TableName::parse(text) {
        Ok(table) if text == OWN_TABLE => Ok(table),
        Ok(_) => Err(Fault::new(quoted(OWN_TABLE)).hint(NOT_YET)),
        Err(_) => Err(Fault::new(quoted(OWN_TABLE))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_short_and_needs_no_escape() {
        let longest = "a".repeat(63);
        let too_long = "a".repeat(64);
        let cases = [
            ("shop", Ok(())),
            ("Shop-1_b.c", Ok(())),
            (longest.as_str(), Ok(())),
            (too_long.as_str(), Err(OutboxNameError::Length)),
            ("", Err(OutboxNameError::Length)),
            ("a b", Err(OutboxNameError::Character)),
            ("é", Err(OutboxNameError::Character)),
            ("a/b", Err(OutboxNameError::Character)),
        ];
        for (text, expected) in cases {
            assert_eq!(OutboxName::parse(text).map(|_| ()), expected, "{text}");
        }
    }

    #[test]
    fn the_words_of_the_schema_are_the_words_that_work() {
        let there = |words: &[Word<Start>]| -> Vec<_> {
            let there = words.iter().filter(|(_, meaning)| meaning.is_some());
            there.map(|(word, _)| *word).collect()
        };
        assert!(matches!(START.kind.form(), Form::Word(words) if words == there(STARTS)));
    }
}
