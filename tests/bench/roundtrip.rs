//! Kafka's own part of a latency: a bare producer that sends at fixed times, with the same consumer behind it.

use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::events::{Ids, Pattern};
use super::load::{micros, sleep_until, wall_micros};
use super::schedule::Schedule;
use super::topics::AGGREGATE_TYPE;

/// For the broker to answer, and for the last delivery report.
const PATIENCE: Duration = Duration::from_mins(1);

/// For a connection to be there before the first record.
const SETTLE: Duration = Duration::from_millis(500);

/// What is to be sent, and where.
#[derive(Clone, Debug)]
pub(crate) struct Sending {
    pub(crate) properties: ClientConfig,
    pub(crate) topic: String,
    pub(crate) schedule: Schedule,
    pub(crate) pattern: Pattern,
    pub(crate) ids: Ids,
}

/// One record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    /// The wall clock when it was handed to the producer.
    pub(crate) at_micros: i64,
    /// When it should have been, since the beginning and by the wall clock.
    pub(crate) due: Duration,
    pub(crate) due_micros: i64,
    pub(crate) late: Duration,
}

impl Sending {
    /// Sends on a thread of its own. Answers when the broker has all records.
    pub(crate) async fn run(self) -> anyhow::Result<Vec<Sent>> {
        let (tell, done) = oneshot::channel();
        thread::Builder::new().name("sending".to_owned()).spawn(move || {
            // Nobody listens any more if the run was given up.
            drop(tell.send(self.send()));
        })?;
        done.await.context("the sender has ended")?
    }

    fn send(&self) -> anyhow::Result<Vec<Sent>> {
        let producer: BaseProducer = self.properties.create()?;
        producer.client().fetch_metadata(Some(&self.topic), PATIENCE).context("no answer from Kafka")?;
        producer.poll(SETTLE);
        let payloads = self.pattern.payloads();
        let (began, began_micros) = (Instant::now(), wall_micros());
        let mut all = Vec::with_capacity(self.schedule.due().len());
        for ((number, &due), payload) in (0..).zip(self.schedule.due()).zip(payloads.iter().cycle()) {
            sleep_until(began + due);
            let (at_micros, late) = (wall_micros(), began.elapsed().saturating_sub(due));
            self.send_one(&producer, number, payload)?;
            producer.poll(Duration::ZERO);
            all.push(Sent { at_micros, due, due_micros: began_micros + micros(due), late });
        }
        let deadline = Instant::now() + PATIENCE;
        while producer.in_flight_count() > 0 {
            ensure!(Instant::now() < deadline, "{} records without a report", producer.in_flight_count());
            producer.poll(Duration::from_millis(1));
        }
        Ok(all)
    }

    /// With the key and the headers that the daemon gives it. The queue has no bound that bites.
    fn send_one(&self, producer: &BaseProducer, number: u32, payload: &str) -> anyhow::Result<()> {
        let (id, key) = (self.ids.id(number).to_string(), self.pattern.key(number));
        let headers = OwnedHeaders::new_with_capacity(4)
            .insert(Header { key: "id", value: Some(&id) })
            .insert(Header { key: "type", value: Some("OrderPlaced") })
            .insert(Header { key: "aggregate-type", value: Some(AGGREGATE_TYPE) })
            .insert(Header { key: "aggregate-id", value: Some(&key) });
        let record = BaseRecord::to(&self.topic).key(&key).payload(payload).headers(headers);
        producer.send(record).map_err(|(error, _)| error).context("a record was not taken")
    }
}
