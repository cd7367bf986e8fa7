//! Topics under a prefix of the test's own, and all that they hold.
//!
//! Topics are not deleted: their names do not meet again, and `deploy/servers` throws the broker away.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::metadata::MetadataTopic;
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::checker::Record;
use super::eventually::{PATIENCE, eventually};
use super::{server, short_random};

/// For one question to the broker.
const ANSWER: Duration = Duration::from_secs(10);

/// A broker, and the prefix under which a test's topics live.
#[derive(Clone)]
pub(crate) struct Kafka {
    brokers: String,
    prefix: String,
}

impl Kafka {
    /// The broker of `deploy/servers`.
    pub(crate) fn create(test: &str) -> Self {
        Self::create_on(&server("OUTBOXD_TEST_KAFKA"), test)
    }

    /// A broker of the test's own.
    pub(crate) fn create_on(brokers: &str, test: &str) -> Self {
        Self { brokers: brokers.to_owned(), prefix: format!("{test}-{}", short_random()) }
    }

    /// The same topics on another broker.
    pub(crate) fn on(&self, brokers: &str) -> Self {
        Self { brokers: brokers.to_owned(), ..self.clone() }
    }

    /// `host:port` of the broker.
    pub(crate) fn brokers(&self) -> &str {
        &self.brokers
    }

    /// The topic template for the daemon: one topic per aggregate type.
    pub(crate) fn template(&self) -> String {
        self.topic("{aggregate_type}")
    }

    /// The topic of an aggregate type.
    pub(crate) fn topic(&self, aggregate_type: &str) -> String {
        format!("{}.{aggregate_type}", self.prefix)
    }

    /// Makes the topic of an aggregate type and waits until the broker knows its leaders. Answers its name.
    pub(crate) async fn create_topic(&self, aggregate_type: &str, partitions: i32) -> String {
        self.create_topic_with(aggregate_type, partitions, &[]).await
    }

    /// The same with settings such as `max.message.bytes`.
    pub(crate) async fn create_topic_with(
        &self,
        aggregate_type: &str,
        partitions: i32,
        settings: &[(&str, &str)],
    ) -> String {
        let name = self.topic(aggregate_type);
        let admin: AdminClient<DefaultClientContext> = self.client().create().unwrap();
        let mut topic = NewTopic::new(&name, partitions, TopicReplication::Fixed(1));
        topic.config.extend_from_slice(settings);
        let options = AdminOptions::new().operation_timeout(Some(ANSWER)).request_timeout(Some(ANSWER));
        let made = admin.create_topics([&topic], &options).await;
        let made = made.unwrap_or_else(|error| {
            panic!("no answer from {}: {error}\nhint: deploy/servers -- cargo test --test it", self.brokers)
        });
        made.into_iter().next().unwrap().unwrap_or_else(|(topic, code)| panic!("topic {topic}: {code}"));
        eventually(&format!("topic {name} has leaders"), PATIENCE, async || {
            let led = self.led_partitions(&name).await.len();
            if led == usize::try_from(partitions).unwrap() { Ok(()) } else { Err(format!("{led} of {partitions}")) }
        })
        .await;
        name
    }

    /// Gives a topic more partitions.
    pub(crate) async fn add_partitions(&self, topic: &str, to: usize) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().unwrap();
        let options = AdminOptions::new().operation_timeout(Some(ANSWER)).request_timeout(Some(ANSWER));
        let more = [NewPartitions::new(topic, to)];
        let made = admin.create_partitions(&more, &options).await.unwrap();
        made.into_iter().next().unwrap().unwrap_or_else(|(topic, code)| panic!("topic {topic}: {code}"));
    }

    /// Deletes a topic and waits until the broker takes no record for it any more. It says that it does not know the topic
    /// before that: so another topic is made, and waited for. A broker does one thing after the other.
    pub(crate) async fn delete_topic(&self, name: &str) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().unwrap();
        let options = AdminOptions::new().operation_timeout(Some(ANSWER)).request_timeout(Some(ANSWER));
        let deleted = admin.delete_topics(&[name], &options).await.unwrap();
        deleted.into_iter().next().unwrap().unwrap_or_else(|(topic, code)| panic!("topic {topic}: {code}"));
        eventually(&format!("topic {name} is gone"), PATIENCE, async || {
            let left = self.all_partitions(name).await.len();
            if left == 0 { Ok(()) } else { Err(format!("{left} partitions")) }
        })
        .await;
        let later = self.create_topic(&format!("after-{}", short_random()), 1).await;
        let mut reader = self.reader(&[&later]);
        assert!(reader.read_on().await.is_empty(), "{later} has an end once the broker takes records for it");
    }

    /// Takes the one broker off the list of the cluster, as if it were gone. It goes on, and registers again when it is started anew.
    /// The request has the number 64 in the protocol; no client that we have knows it.
    pub(crate) async fn unregister_broker(&self) {
        const REQUEST: &[u8] = b"\0\0\0\x14\0\x40\0\0\0\0\0\x07\0\x04test\0\0\0\0\x01\0"; // version 0; correlation 7; broker 1
        let mut broker = TcpStream::connect(&self.brokers).await.unwrap();
        broker.write_all(REQUEST).await.unwrap();
        let length = usize::try_from(broker.read_i32().await.unwrap()).unwrap();
        let mut answer = vec![0; length];
        broker.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer[9..11], [0, 0], "no error: {answer:?}"); // behind correlation, tags and throttling
        eventually("no broker is listed", PATIENCE, async || {
            let consumer = self.consumer();
            let listed = blocking(move || consumer.fetch_metadata(None, ANSWER)).await.unwrap().brokers().len();
            if listed == 0 { Ok(()) } else { Err(format!("{listed} are")) }
        })
        .await;
    }

    /// All records of a topic from its beginning to its end, each partition in offset order.
    pub(crate) async fn read(&self, topic: &str) -> Vec<Record> {
        self.reader(&[topic]).read_on().await
    }

    /// Reads topics bit by bit.
    pub(crate) fn reader(&self, topics: &[&str]) -> Reader {
        let topics = topics.iter().map(|&topic| topic.to_owned()).collect();
        Reader { kafka: self.clone(), topics, positions: HashMap::new() }
    }

    /// The end offset of each partition.
    pub(crate) async fn ends(&self, topics: &[&str]) -> HashMap<(String, i32), i64> {
        let mut ends = HashMap::new();
        let consumer = self.consumer();
        for &topic in topics {
            for partition in self.led_partitions(topic).await {
                let end = eventually(&format!("{topic}/{partition} has an end"), PATIENCE, async || {
                    let (name, consumer) = (topic.to_owned(), Arc::clone(&consumer));
                    let marks = blocking(move || consumer.fetch_watermarks(&name, partition, ANSWER)).await;
                    marks.map(|(_, end)| end).map_err(|error| error.to_string()) // it has just lost its leader
                })
                .await;
                ends.insert((topic.to_owned(), partition), end);
            }
        }
        ends
    }

    /// All partitions of a topic, once each has a leader; none if there is no such topic.
    async fn led_partitions(&self, topic: &str) -> Vec<i32> {
        eventually(&format!("each partition of {topic} has a leader"), PATIENCE, async || {
            let all = self.all_partitions(topic).await;
            let led = all.iter().all(|(_, leader)| *leader >= 0);
            if led { Ok(all.into_iter().map(|(id, _)| id).collect()) } else { Err(format!("{all:?}")) }
        })
        .await
    }

    /// With their leaders; a negative one is none.
    async fn all_partitions(&self, topic: &str) -> Vec<(i32, i32)> {
        let (name, consumer) = (topic.to_owned(), self.consumer());
        let metadata = blocking(move || consumer.fetch_metadata(Some(&name), ANSWER)).await;
        let metadata = metadata.unwrap_or_else(|error| panic!("metadata of {topic}: {error}"));
        let partitions = metadata.topics().iter().flat_map(MetadataTopic::partitions);
        partitions.map(|partition| (partition.id(), partition.leader())).collect()
    }

    fn consumer(&self) -> Arc<BaseConsumer> {
        Arc::new(self.client().create().unwrap())
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            .set("group.id", &self.prefix) // asked for, though nothing is committed
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_uncommitted")
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", "20") // the end of a partition is told when a fetch comes back
            .set("auto.offset.reset", "error")
            .set("allow.auto.create.topics", "false");
        config
    }
}

/// Reads topics to their end, again and again, without reading a record twice.
pub(crate) struct Reader {
    kafka: Kafka,
    topics: Vec<String>,
    positions: HashMap<(String, i32), i64>,
}

impl Reader {
    /// All that came since the last call, to the end of each partition. Panics when the end is not reached in time.
    pub(crate) async fn read_on(&mut self) -> Vec<Record> {
        let mut records = Vec::new();
        for topic in &self.topics {
            let mut assignment = TopicPartitionList::new();
            for partition in self.kafka.led_partitions(topic).await {
                let from =
                    self.positions.get(&(topic.clone(), partition)).map_or(Offset::Beginning, |&at| Offset::Offset(at));
                assignment.add_partition_offset(topic, partition, from).unwrap();
            }
            let (name, consumer) = (topic.clone(), self.kafka.consumer());
            let fresh = blocking(move || read_to_end(&name, &consumer, &assignment)).await;
            for record in &fresh {
                self.positions.insert((topic.clone(), record.partition), record.offset + 1);
            }
            records.extend(fresh);
        }
        records
    }
}

/// Reads the assigned partitions of one topic until the broker has said of each that this is the end.
fn read_to_end(topic: &str, consumer: &BaseConsumer, assignment: &TopicPartitionList) -> Vec<Record> {
    let mut open: HashSet<i32> = assignment.elements().iter().map(TopicPartitionListElem::partition).collect();
    let mut records = Vec::new();
    let mut deadline = Instant::now() + PATIENCE;
    consumer.assign(assignment).unwrap();
    while !open.is_empty() {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                records.push(record(&message));
                deadline = Instant::now() + PATIENCE; // of silence: a long topic may take long
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(open.remove(&partition)),
            Some(Err(error)) => eprintln!("reading {topic}: {error}"), // librdkafka goes on by itself
            None => {}
        }
        assert!(Instant::now() < deadline, "{topic}: no end of partitions {open:?} within {PATIENCE:?}");
    }
    records
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

/// The client of librdkafka blocks: off the runtime with it.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[tokio::test]
async fn a_topic_is_read_to_its_end_and_then_on_from_there() {
    use rdkafka::message::{Header, OwnedHeaders};
    use rdkafka::producer::{BaseRecord, Producer as _, ThreadedProducer};

    let kafka = Kafka::create("a_topic_is_read_to_its_end");
    let topic = kafka.create_topic_with("order", 3, &[("max.message.bytes", "100000")]).await;
    let producer: ThreadedProducer<rdkafka::producer::DefaultProducerContext> = kafka.client().create().unwrap();
    let send = async |numbers: std::ops::Range<i32>| {
        for nr in numbers {
            let (key, value) = (format!("k{}", nr % 7), nr.to_string());
            let headers = OwnedHeaders::new().insert(Header { key: "id", value: Some(&value) });
            let record = BaseRecord::to(&topic).key(&key).payload(&value).headers(headers).timestamp(i64::from(nr));
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        let producer = producer.clone();
        blocking(move || producer.flush(PATIENCE).unwrap()).await;
    };

    let mut reader = kafka.reader(&[&topic]);
    assert!(reader.read_on().await.is_empty(), "an empty topic has an end, too");
    send(0..100).await;
    assert_eq!(reader.read_on().await.len(), 100);
    send(100..103).await;
    let mut rest: Vec<_> =
        reader.read_on().await.iter().map(|record| record.header("id").unwrap().to_owned()).collect();
    rest.sort();
    assert_eq!(rest, ["100", "101", "102"]);
    assert_eq!(kafka.ends(&[&topic]).await.values().sum::<i64>(), 103);
    let all = kafka.read(&topic).await;
    assert_eq!(all.len(), 103);
    let last = all.iter().find(|record| record.value.as_deref() == Some(b"102")).unwrap();
    assert_eq!((last.key.as_deref(), last.timestamp), (Some(b"k4".as_slice()), Some(102)));
}
