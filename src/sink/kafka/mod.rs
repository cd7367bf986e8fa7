//! The producers of a lane's session: send in the order of the calls, are purged, dropped and rebuilt. Never retry a record by themselves.

pub mod error;
pub mod options;
pub mod partition;
pub mod polled;
pub mod report;
pub mod topics;

use super::{Generation, Report, SendError, SendErrorKind, Sent, Token};
use crate::config::kafka::Kafka;
use crate::routing::Rejection;
use crate::routing::record::Record;
use options::{Haste, Tuning};
use polled::Polled;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, PurgeConfig};
use report::Reports;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Sends records with one idempotent producer at a time: one for events that come as they are written, one for a backlog.
pub struct KafkaSink {
    soon: Polled,
    /// Of the producer for backlogs, if there is to be one.
    bulk_properties: Option<ClientConfig>,
    /// Made at the first backlog.
    bulk: Option<Polled>,
    haste: Haste,
    reports: Arc<Reports>,
    tuning: Tuning,
    generation: Generation,
}

impl std::fmt::Debug for KafkaSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaSink")
            .field("generation", &self.generation)
            .field("tuning", &self.tuning)
            .finish_non_exhaustive()
    }
}

/// librdkafka's count of a record beside key, value and headers; a batch adds 61 more.
const RECORD_OVERHEAD_BYTES: usize = 36;
const BATCH_OVERHEAD_BYTES: usize = 61;

/// What was purged is reported at once; nobody waits longer for that.
const PURGING: Duration = Duration::from_secs(1);

/// Refuses a record that the topic cannot take, before it travels: in flight its failure would let later records of its stream pass.
///
/// # Errors
/// The record is larger than the topic's limit for a batch, has no key where the topic is compacted, or a timestamp that the topic refuses.
pub fn fits(record: &Record<'_>, topic: topics::Topic, now_ms: i64) -> Result<(), Rejection> {
    if topic.is_compacted && record.key.is_none() {
        let reason = format!("topic {} is compacted (cleanup.policy), and the record has no key", record.topic);
        return Err(Rejection::new("no_key", reason, "give the route a `key`, or the topic another cleanup.policy"));
    }
    if let Some(age_ms) = record.timestamp_ms.map(|timestamp_ms| now_ms.saturating_sub(timestamp_ms)) {
        let limit = |way: &str, name: &str, most_ms: i64| {
            let (most_s, topic) = (most_ms / 1_000, &record.topic);
            let reason = format!(
                "the record's timestamp lies {} s in the {way}, topic {topic} takes {most_s} s ({name})",
                age_ms.abs() / 1_000
            );
            Rejection::new(
                "bad_timestamp",
                reason,
                "change the topic's limit, or set `timestamp = \"none\"` in the route",
            )
        };
        if age_ms > topic.oldest_ms {
            return Err(limit("past", "message.timestamp.before.max.ms", topic.oldest_ms));
        }
        if age_ms.saturating_neg() > topic.newest_ms {
            return Err(limit("future", "message.timestamp.after.max.ms", topic.newest_ms));
        }
    }
    let size = RECORD_OVERHEAD_BYTES.saturating_add(record.size_bytes()).saturating_add(BATCH_OVERHEAD_BYTES);
    if size <= topic.limit_bytes {
        return Ok(());
    }
    let reason =
        format!("the record has {size} bytes, topic {} takes {} (max.message.bytes)", record.topic, topic.limit_bytes);
    Err(Rejection::new("too_large", reason, "raise `max.message.bytes` of the topic, or write smaller events"))
}

impl KafkaSink {
    /// Starts a producer. It connects by itself; nothing is awaited here.
    ///
    /// # Errors
    /// A property that librdkafka does not take.
    pub fn new(config: &Kafka, tuning: Tuning, generation: Generation) -> Result<Self, SendError> {
        let reports = Arc::new(Reports::default());
        let soon = Polled::start(&options::producer(config, tuning), &reports)?;
        let bulk_properties = options::bulk_producer(config, tuning);
        Ok(Self { soon, bulk_properties, bulk: None, haste: Haste::Soon, reports, tuning, generation })
    }

    /// Under which its tokens are made.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// How it was set up.
    pub fn tuning(&self) -> Tuning {
        self.tuning
    }

    /// With which producer it sends.
    pub fn haste(&self) -> Haste {
        self.haste
    }

    /// Whether records of a batch should travel with another producer than those before.
    pub fn should_switch(&self, haste: Haste) -> bool {
        self.haste != haste && self.bulk_properties.is_some()
    }

    /// Sends with the other producer from now on. Nothing may be under way: the two know nothing of each other's order.
    ///
    /// # Errors
    /// A property that librdkafka does not take.
    pub fn switch(&mut self, haste: Haste) -> Result<(), SendError> {
        if haste == Haste::Bulk
            && self.bulk.is_none()
            && let Some(properties) = &self.bulk_properties
        {
            self.bulk = Some(Polled::start(properties, &self.reports)?);
        }
        self.haste = haste;
        Ok(())
    }

    fn producer(&self) -> &Polled {
        self.bulk.as_ref().filter(|_| self.haste == Haste::Bulk).unwrap_or(&self.soon)
    }

    /// Queues a record behind all that were queued before. The producer copies it.
    ///
    /// # Errors
    /// The producer will not take this record, or none at all any more: see [`KafkaSink::explain`].
    pub fn send(&self, record: &Record<'_>, token: Token) -> Result<Sent, SendError> {
        let mut base: BaseRecord<'_, [u8], [u8], usize> =
            BaseRecord::with_opaque_to(&record.topic, token.0).headers(headers(record));
        base.key = record.key.as_ref().map(|key| key.as_bytes());
        base.payload = record.value;
        base.timestamp = record.timestamp_ms;
        let producer = self.producer();
        match producer.send(base) {
            Ok(()) => {
                producer.expect_report();
                Ok(Sent::Queued)
            }
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => Ok(Sent::Full),
            Err((failure, _)) => Err(error::describe(&format!("topic {}", record.topic), &failure)),
        }
    }

    /// Nothing can be sent until reports come: they are made as soon as they are there.
    pub fn hurry(&self) {
        self.producer().hurry();
    }

    /// Waits until there are reports. Cancel-safe.
    pub async fn rung(&self) {
        self.reports.rung().await;
    }

    /// Moves the reports that have come into `reports`, which it empties first.
    pub fn take(&self, reports: &mut Vec<Report>) {
        self.reports.take(reports);
    }

    /// Asks for a topic with the producer that sends. A client that is told of a topic while the cluster counts no broker drops those that it
    /// knows, and sometimes looks for none any more ([librdkafka#5301](https://github.com/confluentinc/librdkafka/issues/5301)): a broker
    /// that was frozen is listed again only when it has said that it lives. Records then wait for ever, and none of them fails.
    ///
    /// The question fails if it found no broker within [`topics::ANSWER_TIMEOUT`]; that a broker is slow is no reason to begin anew.
    pub fn reaches(&self, topic: String) -> impl Future<Output = Result<(), SendError>> + Send + use<> {
        let asked = self.producer().asker();
        topics::blocking(move || match asked.client().fetch_metadata(Some(&topic), topics::ANSWER_TIMEOUT) {
            Err(failure) if failure.rdkafka_error_code() == Some(RDKafkaErrorCode::BrokerTransportFailure) => {
                Err(error::describe("the producer has lost the cluster", &failure))
            }
            Ok(_) | Err(_) => Ok(()),
        })
    }

    /// The cause behind an error that is only its consequence: what made the producer fatal, if something did.
    pub fn explain(&self, error: SendError) -> SendError {
        let consequence = matches!(error.kind, SendErrorKind::Fatal | SendErrorKind::NotMine);
        let fatal = consequence.then(|| self.producer().client().fatal_error()).flatten();
        fatal.and_then(|(_, text)| error::describe_fatal(&text)).unwrap_or(error)
    }

    /// Ends the producer: takes what is queued back, waits up to `patience` for what is under way, and returns the last reports.
    /// That its threads end is not awaited: they may be looking for an address that no server tells.
    pub async fn close(self, patience: Duration) -> Vec<Report> {
        let Self { soon, bulk, reports, .. } = self;
        let deadline = Instant::now().checked_add(patience);
        let (all_reported, reported) = oneshot::channel();
        let joined = tokio::task::spawn_blocking(move || {
            let mut producers: Vec<Polled> = std::iter::once(soon).chain(bulk).collect();
            for producer in &mut producers {
                producer.purge(PurgeConfig::default().queue());
                let rest = deadline.map_or(patience, |deadline| deadline.saturating_duration_since(Instant::now()));
                if producer.flush(rest).is_err() {
                    producer.purge(PurgeConfig::default().queue().inflight());
                    drop(producer.flush(PURGING)); // waits for the reports of what was purged
                }
                producer.end();
            }
            all_reported.send(()).ok(); // before they are dropped
        });
        if reported.await.is_err()
            && let Err(broken) = joined.await
            && let Ok(payload) = broken.try_into_panic()
        {
            std::panic::resume_unwind(payload);
        }
        let mut last = Vec::new();
        reports.take(&mut last);
        last
    }
}

fn headers(record: &Record<'_>) -> OwnedHeaders {
    let empty = OwnedHeaders::new_with_capacity(record.headers.len());
    record.headers.iter().fold(empty, |headers, (key, value)| headers.insert(Header { key, value: value.as_deref() }))
}

impl SendError {
    /// Whether the cause lies with one record.
    pub fn is_rejection(&self) -> bool {
        self.kind == SendErrorKind::Rejection
    }
}
