//! What is in the topics, as a consumer sees it.

use crate::checker::Record;
use anyhow::ensure;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::metadata::MetadataTopic;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// One topic per aggregate type: the name that outboxd gives it by default.
const TOPICS: [&str; 2] = ["outbox.event.Order", "outbox.event.Stock"];
/// For one answer of the broker.
const ANSWER: Duration = Duration::from_secs(5);
/// The longest silence before the end of every partition is reached.
const SILENCE: Duration = Duration::from_secs(20);

/// The topics of the shop.
#[derive(Clone)]
pub(crate) struct Topics {
    consumer: Arc<BaseConsumer>,
}

impl Topics {
    /// Connects in the background.
    pub(crate) fn new(brokers: &str) -> anyhow::Result<Self> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("group.id", "demo") // asked for, though nothing is committed
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "error")
            .create()?;
        Ok(Self { consumer: Arc::new(consumer) })
    }

    /// How many records there are now.
    pub(crate) async fn count(&self) -> anyhow::Result<u64> {
        self.blocking(|consumer| {
            let ends = partitions(consumer)?.into_iter().map(|(topic, partition)| {
                let (_, end) = consumer.fetch_watermarks(topic, partition, ANSWER)?;
                Ok(u64::try_from(end)?)
            });
            ends.sum()
        })
        .await
    }

    /// All records from the beginning to the end, each partition in its order.
    pub(crate) async fn read(&self) -> anyhow::Result<Vec<Record>> {
        self.blocking(read).await
    }

    /// The client of librdkafka blocks.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&BaseConsumer) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let consumer = Arc::clone(&self.consumer);
        tokio::task::spawn_blocking(move || work(&consumer)).await?
    }
}

/// Those that exist: outboxd makes a topic when its first event comes.
fn partitions(consumer: &BaseConsumer) -> anyhow::Result<Vec<(&'static str, i32)>> {
    let mut found = Vec::new();
    for topic in TOPICS {
        let metadata = consumer.fetch_metadata(Some(topic), ANSWER)?;
        let partitions = metadata.topics().iter().flat_map(MetadataTopic::partitions);
        found.extend(partitions.filter(|partition| partition.leader() >= 0).map(|partition| (topic, partition.id())));
    }
    Ok(found)
}

fn read(consumer: &BaseConsumer) -> anyhow::Result<Vec<Record>> {
    let mut assignment = TopicPartitionList::new();
    for (topic, partition) in partitions(consumer)? {
        assignment.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    consumer.assign(&assignment)?;
    let (mut records, mut open, mut heard) = (Vec::new(), assignment.count(), Instant::now());
    while open > 0 {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                records.push(record(&message));
                heard = Instant::now();
            }
            Some(Err(KafkaError::PartitionEOF(_))) => open -= 1,
            Some(Err(_)) | None => {
                ensure!(heard.elapsed() < SILENCE, "Kafka does not tell the end of {open} partitions");
            }
        }
    }
    consumer.unassign()?;
    Ok(records)
}

fn record(message: &BorrowedMessage<'_>) -> Record {
    let headers = message.headers().map_or_else(Vec::new, |headers| {
        headers.iter().map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec))).collect()
    });
    Record {
        topic: message.topic().to_owned(),
        partition: message.partition(),
        offset: message.offset(),
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers,
        timestamp: message.timestamp().to_millis(),
    }
}
