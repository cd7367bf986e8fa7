//! Compares what was committed with what the topics hold: lost, phantom, order, duplicates.
//!
//! Plain rows and records in, a verdict out. It must not know Postgres, Kafka or another module of the tests: sample
//! programs include it by `#[path = …] mod checker;`. One record per event: with two routes, check one topic at a time.

use std::collections::{HashMap, HashSet};
use std::fmt;

use uuid::Uuid;

/// How many cases of each kind a verdict names.
const EXAMPLES: usize = 10;

/// A committed event.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) id: i64,
    pub(crate) event_id: Uuid,
    pub(crate) aggregate_type: String,
    pub(crate) aggregate_id: String,
    pub(crate) event_type: String,
    /// The bytes that a record of it must carry; none for a tombstone.
    pub(crate) value: Option<Vec<u8>>,
    /// Its place in its stream: rises in the order of the commits.
    pub(crate) nr: i64,
}

/// What a topic holds.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
    /// Milliseconds since 1970.
    pub(crate) timestamp: Option<i64>,
}

impl Record {
    /// The text of the first header of this name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(key, _)| key == name)?;
        std::str::from_utf8(value.as_deref()?).ok()
    }
}

/// What was true when the relay was killed, or its session broken otherwise. It explains the duplicates that come after.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kill {
    /// Events that were committed then and that the saved cursor did not settle.
    pub(crate) unsettled: HashSet<Uuid>,
    /// End offsets of the topics just after it.
    pub(crate) ends: HashMap<(String, i32), i64>,
    /// Events that may have been on their way to the broker, so beyond the end offsets.
    pub(crate) in_flight: usize,
}

/// Sees records, in offset order within each partition, and remembers what they prove.
pub(crate) struct Checker {
    rows: Vec<Row>,
    by_event: HashMap<Uuid, usize>,
    stream_of: Vec<usize>,
    streams: Vec<Stream>,
    seen: Vec<Seen>,
    topics: Vec<String>,
    published: usize,
    distinct: usize,
    phantom: Finding,
    out_of_order: Finding,
    wrong_partition: Finding,
    altered: Finding,
}

/// What is known of a stream: where it lives and how far it has come.
#[derive(Clone, Default)]
struct Stream {
    place: Option<(usize, i32)>,
    highest: Option<i64>,
}

/// What is known of an event: how often it came and where first.
#[derive(Clone, Copy, Default)]
struct Seen {
    times: usize,
    topic: usize,
    partition: i32,
    offset: i64,
}

impl Checker {
    /// Starts from the committed rows. All rows must be there: what is not among them counts as a phantom.
    pub(crate) fn new(rows: Vec<Row>) -> Self {
        let mut by_event = HashMap::with_capacity(rows.len());
        let mut numbers = HashMap::new();
        let mut stream_of = Vec::with_capacity(rows.len());
        for (index, row) in rows.iter().enumerate() {
            let before = by_event.insert(row.event_id, index);
            assert!(before.is_none(), "event id {} is in the table twice", row.event_id);
            let next = numbers.len();
            stream_of.push(*numbers.entry((row.aggregate_type.clone(), row.aggregate_id.clone())).or_insert(next));
        }
        Self {
            by_event,
            stream_of,
            streams: vec![Stream::default(); numbers.len()],
            seen: vec![Seen::default(); rows.len()],
            topics: Vec::new(),
            published: 0,
            distinct: 0,
            phantom: Finding::default(),
            out_of_order: Finding::default(),
            wrong_partition: Finding::default(),
            altered: Finding::default(),
            rows,
        }
    }

    /// Takes the next record of its partition.
    pub(crate) fn see(&mut self, record: &Record) {
        self.published += 1;
        let at = || format!("{}/{}@{}", record.topic, record.partition, record.offset);
        let event = record.header("id").and_then(|id| Uuid::parse_str(id).ok());
        let Some(&index) = event.and_then(|event| self.by_event.get(&event)) else {
            self.phantom.add(|| format!("{} has event id {:?}, which no row has", at(), record.header("id")));
            return;
        };
        let row = &self.rows[index];
        if let Some(difference) = difference(row, record) {
            self.altered.add(|| format!("{} at {}: {difference}", name(row), at()));
        }

        let topic = self.topics.iter().position(|known| *known == record.topic).unwrap_or_else(|| {
            self.topics.push(record.topic.clone());
            self.topics.len() - 1
        });
        let stream = &mut self.streams[self.stream_of[index]];
        let home = *stream.place.get_or_insert((topic, record.partition));
        if home != (topic, record.partition) {
            let (topic, partition) = (&self.topics[home.0], home.1);
            self.wrong_partition.add(|| format!("{} at {}, its stream began in {topic}/{partition}", name(row), at()));
        }

        let seen = &mut self.seen[index];
        seen.times += 1;
        if seen.times > 1 {
            return;
        }
        *seen = Seen { times: 1, topic, partition: record.partition, offset: record.offset };
        self.distinct += 1;
        match stream.highest {
            Some(highest) if row.nr < highest => {
                self.out_of_order.add(|| format!("{} at {} first came after nr {highest}", name(row), at()));
            }
            _ => stream.highest = Some(row.nr),
        }
    }

    /// How many committed events have not been seen yet.
    pub(crate) fn missing(&self) -> usize {
        self.rows.len() - self.distinct
    }

    /// Sums up. Duplicates are explained by `kills` only.
    pub(crate) fn verdict(&self, kills: &[Kill]) -> Verdict {
        let mut lost = Finding::default();
        let mut duplicates = Finding::default();
        let mut unexplained = Finding::default();
        for (row, seen) in self.rows.iter().zip(&self.seen) {
            if seen.times == 0 {
                lost.add(|| format!("{} is in no topic", name(row)));
            }
            if seen.times > 1 {
                duplicates.add_many(seen.times - 1, || format!("{} came {} times", name(row), seen.times));
                let open = kills.iter().filter(|kill| kill.unsettled.contains(&row.event_id)).count();
                let beyond = (seen.times - 1).saturating_sub(open);
                unexplained.add_many(beyond, || {
                    format!("{} came {} times and was open at {open} kills", name(row), seen.times)
                });
            }
        }
        Verdict {
            committed: self.rows.len(),
            published: self.published,
            lost,
            phantom: self.phantom.clone(),
            out_of_order: self.out_of_order.clone(),
            wrong_partition: self.wrong_partition.clone(),
            altered: self.altered.clone(),
            duplicates,
            unexplained,
            most_duplicates: kills.iter().map(|kill| self.most_duplicates(kill)).sum(),
        }
    }

    /// What a kill may send again: what had been published and was not settled, and what was on its way.
    fn most_duplicates(&self, kill: &Kill) -> usize {
        let published = |event: &&Uuid| {
            let Some(&index) = self.by_event.get(event) else { return false };
            let seen = &self.seen[index];
            let Some(topic) = self.topics.get(seen.topic) else { return false };
            seen.times > 0 && kill.ends.get(&(topic.clone(), seen.partition)).is_some_and(|&end| seen.offset < end)
        };
        let published = kill.unsettled.iter().filter(published).count();
        (published + kill.in_flight).min(kill.unsettled.len())
    }
}

/// Compares all at once.
pub(crate) fn check(rows: Vec<Row>, records: &[Record], kills: &[Kill]) -> Verdict {
    let mut checker = Checker::new(rows);
    for record in records {
        checker.see(record);
    }
    checker.verdict(kills)
}

/// The first thing in which a record differs from its row.
fn difference(row: &Row, record: &Record) -> Option<String> {
    let headers =
        [("type", &row.event_type), ("aggregate-type", &row.aggregate_type), ("aggregate-id", &row.aggregate_id)];
    for (header, expected) in headers {
        if record.header(header) != Some(expected.as_str()) {
            return Some(format!("header {header} is {:?}, not {expected:?}", record.header(header)));
        }
    }
    if record.key.as_deref() != Some(row.aggregate_id.as_bytes()) {
        return Some(format!("key is {}", readable(record.key.as_deref())));
    }
    if record.value != row.value {
        return Some(format!("value is {}, not {}", readable(record.value.as_deref()), readable(row.value.as_deref())));
    }
    None
}

fn name(row: &Row) -> String {
    let Row { id, event_id, aggregate_type, aggregate_id, nr, .. } = row;
    format!("{aggregate_type}/{aggregate_id} nr {nr} (id {id}, {event_id})")
}

fn readable(bytes: Option<&[u8]>) -> String {
    bytes.map_or_else(|| "none".to_owned(), |bytes| format!("`{}`", bytes.escape_ascii()))
}

/// How often something was found, and its first cases.
#[derive(Clone, Debug, Default)]
pub(crate) struct Finding {
    pub(crate) count: usize,
    pub(crate) examples: Vec<String>,
}

impl Finding {
    fn add(&mut self, example: impl FnOnce() -> String) {
        self.add_many(1, example);
    }

    fn add_many(&mut self, times: usize, example: impl FnOnce() -> String) {
        self.count += times;
        if times > 0 && self.examples.len() < EXAMPLES {
            self.examples.push(example());
        }
    }
}

/// What the checker found.
#[derive(Clone, Debug)]
pub(crate) struct Verdict {
    pub(crate) committed: usize,
    pub(crate) published: usize,
    /// Committed and in no topic.
    pub(crate) lost: Finding,
    /// In a topic and in no row.
    pub(crate) phantom: Finding,
    /// First came after a later event of its stream.
    pub(crate) out_of_order: Finding,
    /// Not in the partition in which its stream began.
    pub(crate) wrong_partition: Finding,
    /// Another key, value or header than its row says.
    pub(crate) altered: Finding,
    /// Came again.
    pub(crate) duplicates: Finding,
    /// Came again more often than it was open at a kill.
    pub(crate) unexplained: Finding,
    /// The most duplicates that the kills allow.
    pub(crate) most_duplicates: usize,
}

impl Verdict {
    /// Nothing lost, invented, out of order, astray or altered. Duplicates are judged by [`Self::is_tight`].
    pub(crate) fn is_sound(&self) -> bool {
        let Self { lost, phantom, out_of_order, wrong_partition, altered, .. } = self;
        [lost, phantom, out_of_order, wrong_partition, altered].iter().all(|finding| finding.count == 0)
    }

    /// Duplicates come from kills only, and no more than those allow.
    pub(crate) fn is_tight(&self) -> bool {
        self.unexplained.count == 0 && self.duplicates.count <= self.most_duplicates
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let findings = [
            ("lost", &self.lost),
            ("phantom", &self.phantom),
            ("out of order", &self.out_of_order),
            ("wrong partition", &self.wrong_partition),
            ("altered", &self.altered),
            ("duplicates", &self.duplicates),
            ("unexplained", &self.unexplained),
        ];
        write!(f, "committed {}, published {}", self.committed, self.published)?;
        for (what, finding) in findings {
            write!(f, ", {what} {}", finding.count)?;
        }
        write!(f, ", the kills allow {} duplicates", self.most_duplicates)?;
        for (what, finding) in findings.iter().filter(|(_, finding)| finding.count > 0) {
            for example in &finding.examples {
                write!(f, "\n  {what}: {example}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Kill, Record, Row, Uuid, Verdict, check};

    /// Ten events of each of two streams, and the records that a faultless relay makes of them.
    fn faultless() -> (Vec<Row>, Vec<Record>) {
        let row = |id: i64, stream: &str, nr| Row {
            id,
            event_id: Uuid::new_v4(),
            aggregate_type: "order".to_owned(),
            aggregate_id: stream.to_owned(),
            event_type: "Changed".to_owned(),
            value: Some(format!(r#"{{"nr": {nr}}}"#).into_bytes()),
            nr,
        };
        let rows: Vec<Row> = (1..=10).flat_map(|nr| [row(2 * nr, "a", nr), row(2 * nr + 1, "b", nr)]).collect();
        let records = rows.iter().map(record).collect();
        (rows, records)
    }

    fn record(row: &Row) -> Record {
        let header = |name: &str, value: &str| (name.to_owned(), Some(value.as_bytes().to_vec()));
        Record {
            topic: "topic".to_owned(),
            partition: i32::from(row.aggregate_id == "b"),
            offset: row.nr - 1,
            key: Some(row.aggregate_id.clone().into_bytes()),
            value: row.value.clone(),
            headers: vec![
                header("id", &row.event_id.to_string()),
                header("type", &row.event_type),
                header("aggregate-type", &row.aggregate_type),
                header("aggregate-id", &row.aggregate_id),
            ],
            timestamp: None,
        }
    }

    /// lost, phantom, out of order, wrong partition, altered, duplicates, unexplained
    fn counts(verdict: &Verdict) -> [usize; 7] {
        [
            verdict.lost.count,
            verdict.phantom.count,
            verdict.out_of_order.count,
            verdict.wrong_partition.count,
            verdict.altered.count,
            verdict.duplicates.count,
            verdict.unexplained.count,
        ]
    }

    #[test]
    fn a_faultless_run_is_sound() {
        let (rows, records) = faultless();
        let verdict = check(rows, &records, &[]);
        assert!(verdict.is_sound() && verdict.is_tight(), "{verdict}");
        assert_eq!(counts(&verdict), [0; 7]);
    }

    #[test]
    fn each_fault_is_found_and_named() {
        type Break = fn(&mut Vec<Record>);
        let cases: [(&str, Break, [usize; 7]); 9] = [
            ("a record too few", |records| drop(records.remove(7)), [1, 0, 0, 0, 0, 0, 0]),
            ("two of a stream swapped", |records| records.swap(4, 6), [0, 0, 1, 0, 0, 0, 0]),
            ("two of different streams swapped", |records| records.swap(4, 5), [0; 7]),
            ("a record twice", |records| records.push(records[3].clone()), [0, 0, 0, 0, 0, 1, 1]),
            (
                "an unknown event",
                |records| records[0].headers[0].1 = Some(Uuid::nil().to_string().into()),
                [1, 1, 0, 0, 0, 0, 0],
            ),
            ("no event id", |records| drop(records[0].headers.remove(0)), [1, 1, 0, 0, 0, 0, 0]),
            ("another partition", |records| records[8].partition = 3, [0, 0, 0, 1, 0, 0, 0]),
            ("another value", |records| records[8].value = None, [0, 0, 0, 0, 1, 0, 0]),
            ("another type", |records| records[8].headers[1].1 = None, [0, 0, 0, 0, 1, 0, 0]),
        ];
        for (case, break_it, expected) in cases {
            let (rows, mut records) = faultless();
            break_it(&mut records);
            let verdict = check(rows, &records, &[]);
            assert_eq!(counts(&verdict), expected, "{case}: {verdict}");
            let named = verdict.to_string().lines().count() > 1;
            assert_eq!(named, expected != [0; 7], "{case}: {verdict}");
        }
    }

    #[test]
    fn an_event_of_the_past_that_comes_late_is_out_of_order_once() {
        let (rows, mut records) = faultless();
        let first = records.remove(0);
        records.push(first);
        let verdict = check(rows, &records, &[]);
        assert_eq!(counts(&verdict), [0, 0, 1, 0, 0, 0, 0], "{verdict}");
    }

    #[test]
    fn a_repetition_after_a_kill_is_explained_by_what_was_open_then() {
        let (rows, mut records) = faultless();
        let again = records[16..].to_vec(); // nr 9 and 10 of both streams
        records.extend(again);
        let ends = [(("topic".to_owned(), 0), 10), (("topic".to_owned(), 1), 10)];
        let kill = |open: &[Row], in_flight| Kill {
            unsettled: open.iter().map(|row| row.event_id).collect(),
            ends: ends.clone().into(),
            in_flight,
        };

        let verdict = check(rows.clone(), &records, &[kill(&rows[16..], 0)]);
        assert!(verdict.is_tight(), "{verdict}");
        assert_eq!((verdict.duplicates.count, verdict.most_duplicates), (4, 4));

        let verdict = check(rows.clone(), &records, &[kill(&rows[18..], 0)]);
        assert!(!verdict.is_tight(), "two of them were settled: {verdict}");
        assert_eq!(verdict.unexplained.count, 2);

        // ends before the records: only what was in flight explains them
        let mut early = kill(&rows[16..], 3);
        early.ends.values_mut().for_each(|end| *end = 8);
        let verdict = check(rows, &records, &[early]);
        assert_eq!((verdict.is_tight(), verdict.most_duplicates), (false, 3), "{verdict}");
    }
}
