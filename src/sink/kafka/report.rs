//! Delivery callback to the lane. Runs on the producer's own thread and never blocks: it appends to a list that the lane takes whole.
//!
//! The list is bounded by the ledger: there is at most one report per record under way.

use super::error;
use crate::sink::{Failure, Report, SendError, SendErrorKind, Token};
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{NoCustomPartitioner, ProducerContext};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

/// The list and the bell beside it.
#[derive(Debug, Default)]
pub struct Reports {
    list: Mutex<Vec<Report>>,
    bell: Notify,
    calls: AtomicUsize,
}

impl Reports {
    fn push(&self, report: Report) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let first = list.is_empty();
        list.push(report);
        drop(list);
        if first {
            self.bell.notify_one(); // one ring for all that come until the lane looks
        }
    }

    /// Moves what has come into `reports`, which it empties first.
    pub fn take(&self, reports: &mut Vec<Report>) {
        reports.clear();
        std::mem::swap(&mut *self.list.lock().unwrap_or_else(PoisonError::into_inner), reports);
    }

    /// How often librdkafka has called back.
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    /// Waits until something has come. Cancel-safe.
    pub async fn rung(&self) {
        self.bell.notified().await;
    }
}

/// Held by each callback: a panic in one ends the producer's thread, and then no report would come any more.
struct Alarm<'r>(&'r Reports);

impl<'r> Alarm<'r> {
    fn over(reports: &'r Reports) -> Self {
        reports.calls.fetch_add(1, Ordering::Relaxed);
        Self(reports)
    }
}

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.push(Report::Broken(Box::new(SendError {
                kind: SendErrorKind::Fatal,
                code: "panic".to_owned(),
                what: "kafka: the thread of the producer ended by a panic".to_owned(),
                hint: None,
            })));
        }
    }
}

/// What librdkafka calls back.
#[derive(Clone, Debug)]
pub struct Context {
    reports: Arc<Reports>,
}

impl Context {
    /// Calls back into `reports`.
    pub fn new(reports: Arc<Reports>) -> Self {
        Self { reports }
    }
}

impl ProducerContext<NoCustomPartitioner> for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, token: usize) {
        let _alarm = Alarm::over(&self.reports);
        let token = Token(token);
        self.reports.push(match result {
            Ok(_) => Report::Delivered(token),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::DuplicateSequenceNumber), _)) => {
                Report::Delivered(token)
            } // stored by an earlier try
            Err((failure, message)) => Report::Failed(Box::new(Failure {
                token,
                topic: message.topic().to_owned(),
                partition: message.partition(),
                error: error::describe(&format!("topic {}", message.topic()), failure),
            })),
        });
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        let _alarm = Alarm::over(&self.reports);
        if let Some((topic, partitions)) = changed_topic(facility, message) {
            self.reports.push(Report::Changed(topic.to_owned(), partitions));
        }
        if facility == "CLUSTERID" && !matches!(level, RDKafkaLogLevel::Debug) {
            let other = error::other_cluster(message); // `rdkafka_metadata.c`
            self.reports.push(Report::Away(Box::new(other.clone()))); // what comes now is not believed
            self.reports.push(Report::Broken(Box::new(other)));
        }
        log(level, facility, message);
    }

    fn error(&self, failure: KafkaError, reason: &str) {
        let _alarm = Alarm::over(&self.reports);
        let described = error::describe("kafka", &failure);
        match (described.kind, failure.rdkafka_error_code()) {
            (SendErrorKind::Fatal, _) => {
                self.reports.push(Report::Broken(Box::new(error::describe_fatal(reason).unwrap_or(described))));
            }
            (SendErrorKind::Fenced, _) => self.reports.push(Report::Broken(Box::new(described))),
            (_, Some(RDKafkaErrorCode::Resolve | RDKafkaErrorCode::SSL | RDKafkaErrorCode::Authentication)) => {
                self.reports.push(Report::Away(Box::new(described.because(reason))));
            }
            (_, Some(RDKafkaErrorCode::AllBrokersDown)) => self.reports.push(Report::Away(Box::new(described))),
            _ => tracing::debug!(code = described.code, reason, "librdkafka reports"),
        }
    }
}

/// The topic whose number of partitions is another one now, and that number. librdkafka tells it by a line of its log only (`rdkafka_topic.c`).
/// 0: it is gone, or may not be seen.
fn changed_topic<'m>(facility: &str, message: &'m str) -> Option<(&'m str, usize)> {
    let (_, rest) = message.split_once("Topic ").filter(|_| facility == "PARTCNT")?;
    let (topic, counts) = rest.split_once(" partition count changed from ")?;
    Some((topic, counts.split_once(" to ")?.1.parse().ok()?))
}

/// librdkafka's own lines. They repeat with each try to connect, so all but the gravest are for `debug`; the lane says once what they mean.
pub fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            tracing::warn!(target: "librdkafka", facility, "{message}");
        }
        _ => tracing::debug!(target: "librdkafka", facility, "{message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_with_other_partitions_is_found_in_the_line_that_tells_of_it() {
        let line = "[thrd:main]: Topic shop.order partition count changed from 3 to 6";
        assert_eq!(changed_topic("PARTCNT", line), Some(("shop.order", 6)));
        let gone = "[thrd:main]: Topic shop.order partition count changed from 3 to 0";
        assert_eq!(changed_topic("PARTCNT", gone), Some(("shop.order", 0)));
        assert_eq!(changed_topic("METADATA", line), None);
        assert_eq!(changed_topic("PARTCNT", "[thrd:main]: something else"), None);
    }
}
