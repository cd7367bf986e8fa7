//! A consumer that notes when it has each event in its hands. It sits in `poll` on a thread of its own and does nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::time::Instant;
use uuid::Uuid;

use super::events::Ids;
use super::load::wall_micros;
use super::topics::PARTITIONS;

/// Between two looks whether it is to end, and whether all have come.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// An event that is not there when nothing has moved for so long is lost.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whoever needs longer for the rest of a run does not keep up.
const LIMIT: Duration = Duration::from_mins(1);

/// What came.
#[derive(Debug)]
pub(crate) struct Seen {
    /// By number, when the event came first.
    at_micros: Vec<Option<i64>>,
    /// Events that came again.
    pub(crate) duplicates: u32,
    /// Records that are no events of this run.
    pub(crate) unknown: u32,
}

impl Seen {
    fn none_of(events: usize) -> Self {
        Self { at_micros: vec![None; events], duplicates: 0, unknown: 0 }
    }

    /// When an event was in the consumer's hands.
    pub(crate) fn at_micros(&self, number: usize) -> Option<i64> {
        self.at_micros.get(number).copied().flatten()
    }

    fn see(&mut self, number: Option<u32>, at_micros: i64) -> bool {
        let place = number.and_then(|number| usize::try_from(number).ok()).and_then(|at| self.at_micros.get_mut(at));
        match place {
            Some(first @ None) => {
                *first = Some(at_micros);
                return true;
            }
            Some(Some(_)) => self.duplicates += 1,
            None => self.unknown += 1,
        }
        false
    }
}

/// A consumer that runs. Dropped, it ends.
pub(crate) struct Arrivals {
    stop: Arc<AtomicBool>,
    came: Arc<AtomicU32>,
    thread: Option<JoinHandle<anyhow::Result<Seen>>>,
}

impl Arrivals {
    /// Waits for events of a new topic, from its beginning on.
    pub(crate) fn of(brokers: &str, topic: &str, ids: Ids, events: usize) -> anyhow::Result<Self> {
        let consumer = consumer(brokers, topic)?;
        let (stop, came) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (stopped, coming) = (Arc::clone(&stop), Arc::clone(&came));
        let receive = move || {
            let mut seen = Seen::none_of(events);
            while !stopped.load(Ordering::Relaxed) {
                let Some(record) = consumer.poll(LOOK_EVERY) else { continue };
                let at = wall_micros();
                let record = record.context("the consumer of the measure failed")?;
                if seen.see(event_id(&record).and_then(|id| ids.number(id)), at) {
                    coming.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(seen)
        };
        Ok(Self { stop, came, thread: Some(thread::Builder::new().name("arrivals".to_owned()).spawn(receive)?) })
    }

    /// How many different events have come.
    pub(crate) fn came(&self) -> u32 {
        self.came.load(Ordering::Relaxed)
    }

    /// Waits until so many have come.
    ///
    /// # Errors
    /// If they do not come.
    pub(crate) async fn all(&self, events: u32) -> anyhow::Result<()> {
        let began = Instant::now();
        let (mut before, mut moved) = (self.came(), began);
        while self.came() < events {
            ensure!(self.thread.as_ref().is_some_and(|thread| !thread.is_finished()), "the consumer has ended");
            if self.came() > before {
                (before, moved) = (self.came(), Instant::now());
            }
            ensure!(moved.elapsed() < PATIENCE, "{before} of {events} events came, and no more for {PATIENCE:?}");
            ensure!(
                began.elapsed() < LIMIT,
                "{before} of {events} events had come {LIMIT:?} after the last was written"
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Ends it, and answers what came.
    pub(crate) fn end(mut self) -> anyhow::Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("the consumer has ended")?;
        thread.join().map_err(|_| anyhow!("the consumer died"))?
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The broker answers a fetch at the first record; only if there is none it waits, so a short wait would gain nothing
/// and cost it CPU time.
fn consumer(brokers: &str, topic: &str) -> anyhow::Result<BaseConsumer> {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", brokers).set("group.id", topic).set("enable.auto.commit", "false");
    client.set("fetch.min.bytes", "1").set("fetch.wait.max.ms", "100").set("auto.offset.reset", "error");
    let consumer: BaseConsumer = client.create()?;
    let mut list = TopicPartitionList::with_capacity(usize::try_from(PARTITIONS)?);
    for partition in 0..PARTITIONS {
        list.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    consumer.assign(&list)?;
    Ok(consumer)
}

/// The header `id`: a uuid, or a text that holds one.
fn event_id(record: &BorrowedMessage<'_>) -> Option<Uuid> {
    let id = record.headers()?.iter().find(|header| header.key == "id")?.value?;
    Uuid::try_parse_ascii(id).ok().or_else(|| {
        let mut parts = id.windows(uuid::fmt::Hyphenated::LENGTH);
        parts.find_map(|part| Uuid::try_parse_ascii(part).ok())
    })
}
