//! A producer and the thread on which its reports come.
//!
//! In place of rdkafka's `ThreadedProducer`, which wakes for each report, and then wakes the lane. No record waits for a report,
//! only its place in the cursor, so they are collected: at 1,000 events a second that took the relay from 0.17 of a core to 0.14.
//! Where the lane can send no more until reports come, it says so.
//! When idle that one turns through the last millisecond of each wait: 6 ms of CPU in a second.

use super::error;
use super::report::{Context, Reports};
use crate::sink::SendError;
use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, Producer};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between a record and its report, or two collections of reports.
const NAP: Duration = Duration::from_millis(5);

/// When somebody waits for reports, each is made as it comes, for so long. A little above whole milliseconds, in which rdkafka waits:
/// for the rest of the last one it turns without a pause.
const HURRY: Duration = Duration::from_micros(5_050);

/// With nothing under way: librdkafka has an error to tell now and then.
const IDLE: Duration = Duration::from_millis(100);

/// See the module.
pub struct Polled {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    producer: BaseProducer<Context>,
    reports: Arc<Reports>,
    is_idle: AtomicBool,
    is_hurried: AtomicBool,
    is_over: AtomicBool,
}

impl Polled {
    /// Starts a producer whose reports go to `reports`. It connects by itself; nothing is awaited here.
    ///
    /// # Errors
    /// A property that librdkafka does not take, or there can be no thread more.
    pub fn start(properties: &ClientConfig, reports: &Arc<Reports>) -> Result<Self, SendError> {
        let refused = |failure| error::describe("kafka.properties", &failure);
        let producer = properties.create_with_context(Context::new(Arc::clone(reports))).map_err(refused)?;
        let shared = Shared {
            producer,
            reports: Arc::clone(reports),
            is_idle: AtomicBool::new(false),
            is_hurried: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
        };
        let shared = Arc::new(shared);
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("kafka reports".to_owned()).spawn(move || own.collect());
        let thread = thread.map_err(|failure| refused(KafkaError::ClientCreation(failure.to_string())))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// To be called after something was sent.
    pub fn expect_report(&self) {
        if self.shared.is_idle.load(Ordering::SeqCst) && self.shared.is_idle.swap(false, Ordering::SeqCst) {
            self.wake();
        }
    }

    /// Nothing can be sent until reports come.
    pub fn hurry(&self) {
        if !self.shared.is_hurried.swap(true, Ordering::SeqCst) {
            self.wake();
        }
    }

    /// The producer, for a question that takes its time.
    pub fn asker(&self) -> impl Deref<Target = BaseProducer<Context>> + Send + use<> {
        Asker(Arc::clone(&self.shared))
    }

    /// Ends its thread, which has then made every report that librdkafka had.
    pub fn end(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        self.wake();
        if let Some(thread) = self.thread.take() {
            drop(thread.join()); // a panic on it was reported when it happened
        }
    }

    fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Shared {
    fn collect(&self) {
        while !self.is_over.load(Ordering::SeqCst) {
            self.is_idle.store(true, Ordering::SeqCst);
            if self.producer.in_flight_count() == 0 {
                std::thread::park_timeout(IDLE);
            }
            self.is_idle.store(false, Ordering::SeqCst);
            if self.producer.in_flight_count() > 0 {
                self.nap();
            }
            self.drain();
        }
        self.drain();
    }

    fn nap(&self) {
        if !self.is_hurried.load(Ordering::SeqCst) {
            std::thread::park_timeout(NAP);
        }
        if self.is_hurried.swap(false, Ordering::SeqCst) {
            self.producer.poll(HURRY);
        }
    }

    /// Makes all reports that are there. A poll without waiting makes those of one answer of a broker.
    fn drain(&self) {
        loop {
            let calls = self.reports.calls();
            self.producer.poll(Duration::ZERO);
            if self.reports.calls() == calls {
                return;
            }
        }
    }
}

struct Asker(Arc<Shared>);

impl Deref for Asker {
    type Target = BaseProducer<Context>;

    fn deref(&self) -> &Self::Target {
        &self.0.producer
    }
}

impl Deref for Polled {
    type Target = BaseProducer<Context>;

    fn deref(&self) -> &Self::Target {
        &self.shared.producer
    }
}

impl Drop for Polled {
    fn drop(&mut self) {
        self.end();
    }
}
