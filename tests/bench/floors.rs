//! What Postgres and Kafka can do without a relay: reading alone, sending alone, and a pump of the two.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use futures::TryStreamExt as _;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, NoCustomPartitioner, Producer as _, ProducerContext};
use sqlx::PgConnection;
use tokio::time::Instant;
use uuid::Uuid;

use super::database::Database;
use super::rows::{self, Row, Rows};

/// Records kept in memory for the bare producer; a longer backlog is sent by going through them again.
const MEMORY_BYTES: usize = 256 << 20;

/// Records between two looks for delivery reports.
const POLL_EVERY: u32 = 256;

/// How long a full queue is waited for before the next try.
const QUEUE_FULL: Duration = Duration::from_millis(1);

/// For a connection to be there before the clock starts: the daemon's rate counts from its first record, too.
const SETTLE: Duration = Duration::from_millis(500);

/// No delivery for so long is a failure.
const PATIENCE: Duration = Duration::from_mins(1);

/// Reads all rows and throws them away. Answers how many bytes they were.
pub(crate) async fn copy(connection: &mut PgConnection) -> anyhow::Result<u64> {
    let mut pieces = connection.copy_out_raw(&rows::copy()).await?;
    let mut bytes = 0;
    while let Some(piece) = pieces.try_next().await? {
        bytes += u64::try_from(piece.len())?;
    }
    Ok(bytes)
}

/// The producer's settings, and the records for it.
pub(crate) struct Floors {
    properties: ClientConfig,
    records: Vec<Record>,
}

/// A record with what it is made of, as the pump finds it in a row.
struct Record {
    created_at_ms: i64,
    event_id: Uuid,
    aggregate_type: Box<[u8]>,
    aggregate_id: Box<[u8]>,
    event_type: Box<[u8]>,
    payload: Box<[u8]>,
}

impl Record {
    fn of(row: &Row<'_>) -> Self {
        Self {
            created_at_ms: row.created_at_ms,
            event_id: row.event_id,
            aggregate_type: row.aggregate_type.into(),
            aggregate_id: row.aggregate_id.into(),
            event_type: row.event_type.into(),
            payload: row.payload.into(),
        }
    }

    fn row(&self) -> Row<'_> {
        Row {
            created_at_ms: self.created_at_ms,
            event_id: self.event_id,
            aggregate_type: &self.aggregate_type,
            aggregate_id: &self.aggregate_id,
            event_type: &self.event_type,
            payload: &self.payload,
        }
    }
}

impl Floors {
    /// Reads the records for the producer from the backlog.
    pub(crate) async fn new(database: &mut Database, properties: ClientConfig) -> anyhow::Result<Self> {
        let (mut records, mut bytes, mut rows) = (Vec::new(), 0_usize, Rows::default());
        let mut pieces = database.connection.copy_out_raw(&rows::copy()).await?;
        while let Some(piece) = pieces.try_next().await? {
            rows.feed(&piece, |row| {
                if bytes < MEMORY_BYTES {
                    bytes += size_of::<Record>() + row.payload.len();
                    records.push(Record::of(&row));
                }
                Ok(())
            })?;
        }
        rows.finish()?;
        ensure!(!records.is_empty(), "the backlog is empty");
        Ok(Self { properties, records })
    }

    /// Sends that many records from memory. Answers the time from the first to the last delivery report.
    pub(crate) fn produce(&self, topic: &str, events: u32) -> anyhow::Result<Duration> {
        let mut sender = Sender::connect(&self.properties, topic)?;
        let began = Instant::now();
        for record in self.records.iter().cycle().take(usize::try_from(events)?) {
            sender.send(&record.row())?;
        }
        sender.finish()?;
        Ok(began.elapsed())
    }

    /// Sends all rows as they are read. Answers the time from asking for them to the last delivery report.
    pub(crate) async fn pump(&self, topic: &str, connection: &mut PgConnection) -> anyhow::Result<Duration> {
        let (mut sender, mut rows) = (Sender::connect(&self.properties, topic)?, Rows::default());
        let began = Instant::now();
        let mut pieces = connection.copy_out_raw(&rows::copy()).await?;
        while let Some(piece) = pieces.try_next().await? {
            rows.feed(&piece, |row| sender.send(&row))?;
        }
        rows.finish()?;
        sender.finish()?;
        Ok(began.elapsed())
    }
}

/// A producer with nothing around it but a count of what failed.
struct Sender<'t> {
    producer: BaseProducer<Failures>,
    topic: &'t str,
    sent: u32,
}

#[derive(Default)]
struct Failures(AtomicU64);

impl rdkafka::ClientContext for Failures {}

impl ProducerContext<NoCustomPartitioner> for Failures {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if result.is_err() {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl<'t> Sender<'t> {
    fn connect(properties: &ClientConfig, topic: &'t str) -> anyhow::Result<Self> {
        let producer: BaseProducer<Failures> = properties.create_with_context(Failures::default())?;
        producer.client().fetch_metadata(Some(topic), PATIENCE).context("no answer from Kafka")?;
        producer.poll(SETTLE);
        Ok(Self { producer, topic, sent: 0 })
    }

    /// Queues the record that the daemon makes of the row.
    fn send(&mut self, row: &Row<'_>) -> anyhow::Result<()> {
        let mut id = [0; uuid::fmt::Hyphenated::LENGTH];
        let id: &[u8] = row.event_id.hyphenated().encode_lower(&mut id).as_bytes();
        let headers = OwnedHeaders::new_with_capacity(4)
            .insert(Header { key: "id", value: Some(id) })
            .insert(Header { key: "type", value: Some(row.event_type) })
            .insert(Header { key: "aggregate-type", value: Some(row.aggregate_type) })
            .insert(Header { key: "aggregate-id", value: Some(row.aggregate_id) });
        let mut record = BaseRecord::to(self.topic)
            .key(row.aggregate_id)
            .payload(row.payload)
            .timestamp(row.created_at_ms)
            .headers(headers);
        loop {
            match self.producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => record = back,
                Err((error, _)) => bail!(error),
            }
            self.producer.poll(QUEUE_FULL);
        }
        self.sent += 1;
        if self.sent.is_multiple_of(POLL_EVERY) {
            self.producer.poll(Duration::ZERO);
        }
        Ok(())
    }

    /// Waits for all reports. Not by `flush`, which looks only ten times a second.
    fn finish(self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.producer.in_flight_count() > 0 {
            ensure!(Instant::now() < deadline, "{} records without a report", self.producer.in_flight_count());
            self.producer.poll(QUEUE_FULL);
        }
        let failed = self.producer.context().0.load(Ordering::Relaxed);
        ensure!(failed == 0, "{failed} of {} records failed", self.sent);
        Ok(())
    }
}
