//! A producer and the thread on which its reports come.
//!
//! In place of rdkafka's `ThreadedProducer`: that one asks for exactly 100 ms and waits in whole milliseconds, so for the rest of the last
//! one it turns without a pause. That was 6 ms of CPU in each idle second, three quarters of what an idle relay took.

use super::error;
use super::report::{Context, Reports};
use crate::sink::SendError;
use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::producer::BaseProducer;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a wait for reports is at most, and so the end. A little above whole milliseconds: less than a wait is late by.
const WAIT: Duration = Duration::from_micros(100_050);

/// See the module. When it is dropped, its thread has made every report.
pub struct Polled {
    producer: Arc<BaseProducer<Context>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Polled {
    /// Starts a producer whose reports go to `reports`. It connects by itself; nothing is awaited here.
    ///
    /// # Errors
    /// A property that librdkafka does not take, or there can be no thread more.
    pub fn start(properties: &ClientConfig, reports: &Arc<Reports>) -> Result<Self, SendError> {
        let refused = |failure| error::describe("kafka.properties", &failure);
        let producer: BaseProducer<Context> =
            properties.create_with_context(Context::new(Arc::clone(reports))).map_err(refused)?;
        let (producer, is_over) = (Arc::new(producer), Arc::new(AtomicBool::new(false)));
        let (polled, told) = (Arc::clone(&producer), Arc::clone(&is_over));
        let thread = std::thread::Builder::new().name("kafka reports".to_owned()).spawn(move || {
            while !told.load(Ordering::Relaxed) {
                polled.poll(WAIT);
            }
        });
        let thread = thread.map_err(|failure| refused(KafkaError::ClientCreation(failure.to_string())))?;
        Ok(Self { producer, is_over, thread: Some(thread) })
    }
}

impl Deref for Polled {
    type Target = BaseProducer<Context>;

    fn deref(&self) -> &Self::Target {
        &self.producer
    }
}

impl Drop for Polled {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join()); // a panic on it was reported when it happened
        }
    }
}
