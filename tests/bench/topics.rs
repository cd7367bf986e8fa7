//! The topics that are drained into: made, watched, read back and deleted.

use std::cell::Cell;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::metadata::MetadataTopic;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::time::Instant;
use uuid::Uuid;

use super::readback::{Expected, Found};

/// Partitions of each topic.
pub(crate) const PARTITIONS: i32 = 6;

/// The aggregate type of all events; the last part of a topic's name, as with the daemon's default route.
pub(crate) const AGGREGATE_TYPE: &str = "Order";

/// For one question to the broker; reading back goes on as long as something comes.
const ANSWER: Duration = Duration::from_secs(30);

/// Topics under a prefix of this run's own.
pub(crate) struct Topics {
    client: ClientConfig,
    admin: AdminClient<DefaultClientContext>,
    asker: BaseConsumer,
    prefix: String,
    made: Cell<u32>,
}

impl Topics {
    /// Connects to the broker.
    pub(crate) fn new(brokers: &str) -> anyhow::Result<Self> {
        let prefix = format!("bench-{}", &Uuid::new_v4().simple().to_string()[..8]);
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", brokers).set("allow.auto.create.topics", "false");
        let admin = client.create()?;
        client.set("group.id", &prefix).set("enable.auto.commit", "false"); // asked for, though nothing is committed
        client.set("enable.partition.eof", "true").set("auto.offset.reset", "error").set("fetch.wait.max.ms", "20");
        Ok(Self { asker: client.create()?, client, admin, prefix, made: Cell::new(0) })
    }

    /// Makes the next topic and waits until the leaders of all its partitions answer.
    pub(crate) async fn create(&self) -> anyhow::Result<String> {
        self.made.set(self.made.get() + 1);
        let name = format!("{}-{}.{AGGREGATE_TYPE}", self.prefix, self.made.get());
        let topic = NewTopic::new(&name, PARTITIONS, TopicReplication::Fixed(1));
        for made in self.admin.create_topics([&topic], &options()).await? {
            made.map_err(|(name, code)| anyhow::anyhow!("topic {name}: {code}"))?;
        }
        let deadline = Instant::now() + ANSWER;
        // The broker tells of a leader a little before it is one, so an answer from all of them is waited for, too.
        while self.led(&name)? < PARTITIONS || self.total(&name).is_err() {
            ensure!(Instant::now() < deadline, "the leaders of topic {name} do not answer");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(name)
    }

    /// How many partitions have a leader. Asks the broker, and so renews what the client remembers of the topic.
    fn led(&self, topic: &str) -> anyhow::Result<i32> {
        let metadata = self.asker.fetch_metadata(Some(topic), ANSWER)?;
        let partitions = metadata.topics().iter().flat_map(MetadataTopic::partitions);
        Ok(i32::try_from(partitions.filter(|partition| partition.leader() >= 0).count())?)
    }

    /// The template of a route that leads to this topic.
    pub(crate) fn template(topic: &str) -> String {
        topic.replace(AGGREGATE_TYPE, "{aggregate_type}")
    }

    /// How many records a new topic holds: the sum of its end offsets, by one request.
    pub(crate) fn total(&self, topic: &str) -> anyhow::Result<u64> {
        let ends = self.asker.offsets_for_times(partitions(topic, Offset::End)?, ANSWER)?;
        let mut total = 0;
        for partition in ends.elements() {
            partition.error()?;
            let Offset::Offset(end) = partition.offset() else { bail!("no end of {topic}/{}", partition.partition()) };
            total += u64::try_from(end)?;
        }
        Ok(total)
    }

    /// Reads all records and compares them with what was committed.
    pub(crate) fn read_back<'e>(&self, topic: &str, expected: &'e Expected) -> anyhow::Result<Found<'e>> {
        let consumer: BaseConsumer = self.client.create()?;
        consumer.assign(&partitions(topic, Offset::Beginning)?)?;
        let (mut open, mut found) = (PARTITIONS, Found::nothing_of(expected));
        let mut deadline = Instant::now() + ANSWER;
        while open > 0 {
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(record)) => {
                    found.see(&record);
                    deadline = Instant::now() + ANSWER;
                }
                Some(Err(KafkaError::PartitionEOF(_))) => open -= 1,
                Some(Err(error)) => return Err(error).with_context(|| format!("reading {topic} back")),
                None if Instant::now() > deadline => {
                    bail!("{topic} could not be read back: {open} partitions have no end")
                }
                None => {}
            }
        }
        Ok(found)
    }

    /// Deletes a topic, so that the next one finds the disk as this one did.
    pub(crate) async fn delete(&self, topic: &str) -> anyhow::Result<()> {
        for deleted in self.admin.delete_topics(&[topic], &options()).await? {
            deleted.map_err(|(name, code)| anyhow::anyhow!("deleting topic {name}: {code}"))?;
        }
        Ok(())
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(ANSWER)).request_timeout(Some(ANSWER))
}

fn partitions(topic: &str, at: Offset) -> anyhow::Result<TopicPartitionList> {
    let mut list = TopicPartitionList::with_capacity(usize::try_from(PARTITIONS)?);
    for partition in 0..PARTITIONS {
        list.add_partition_offset(topic, partition, at)?;
    }
    Ok(list)
}
