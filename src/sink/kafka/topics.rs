//! Which topics exist, how many partitions they have, and how large a batch they take. Asked at the first use of a topic.

use super::{error, options, report};
use crate::config::kafka::{CreateTopics, Kafka};
use crate::sink::{SendError, SendErrorKind};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::metadata::Metadata;
use rdkafka::producer::{BaseProducer, NoCustomPartitioner, Producer, ProducerContext};
use rdkafka::{ClientConfig, ClientContext};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::Instant;

/// Kafka's default for `max.message.bytes`; assumed where we may not ask.
const ASSUMED_LIMIT_BYTES: usize = 1_048_588;

/// Long enough to take all errors that wait in a queue.
const REASON_PAUSE: Duration = Duration::from_millis(50);

/// How long a topic may take to be known everywhere: a second.
const SPREADING_TRIES: u32 = 10;
const SPREADING_PAUSE: Duration = Duration::from_millis(100);

/// A cluster that is slower than this counts as away.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What is known of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Which topic it is among those that are known, for lists beside them.
    pub slot: usize,
    /// Its number of partitions.
    pub partitions: usize,
    /// Its `max.message.bytes`: the limit of a batch.
    pub limit_bytes: usize,
    /// Whether its `cleanup.policy` compacts: then it takes no record without a key.
    pub is_compacted: bool,
    /// Its `message.timestamp.before.max.ms`: how old a record may be.
    pub oldest_ms: i64,
    /// Its `message.timestamp.after.max.ms`: how far in the future a record may be.
    pub newest_ms: i64,
    /// When that was learnt: it can change.
    pub learnt_at: Instant,
}

/// What becomes of a topic that is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// It is made, if that is configured.
    Make,
    /// It stays so, as it has to while records are under way to one that was there before: in a partition that does not know their producer,
    /// later ones can be stored before earlier ones are tried again; these then count as duplicates, and are lost. Other outboxes and
    /// operators do not know of those records.
    Stays,
}

/// Asks the cluster about itself and its topics.
pub struct Topics {
    /// `None` while it is dropped, and after a failure: see [`super::KafkaSink::reaches`].
    clients: Option<Arc<Clients>>,
    properties: ClientConfig,
    create: Option<CreateTopics>,
    known: HashMap<String, Topic>,
}

struct Clients {
    /// For metadata: a producer's queue can be polled for what is behind a silence, an admin client's cannot.
    asker: BaseProducer<Quiet>,
    admin: AdminClient<Quiet>,
}

impl Clients {
    fn new(properties: &ClientConfig) -> Result<Self, SendError> {
        let refused = |failure| error::describe("kafka.properties", &failure);
        let asker = properties.create_with_context(Quiet::default()).map_err(refused)?;
        let admin = properties.create_with_context(Quiet::default()).map_err(refused)?;
        Ok(Self { asker, admin })
    }
}

/// To end a client is to wait for its threads, which may be looking for an address that no server tells: not on a thread of ours.
impl Drop for Topics {
    fn drop(&mut self) {
        self.end_clients();
    }
}

impl Topics {
    fn end_clients(&mut self) {
        if let (Some(clients), Ok(runtime)) = (self.clients.take(), Handle::try_current()) {
            runtime.spawn_blocking(move || drop(clients));
        }
    }
}

impl std::fmt::Debug for Topics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Topics").field("known", &self.known).finish_non_exhaustive()
    }
}

/// Remembers why no broker answers.
#[derive(Default)]
struct Quiet {
    reason: Mutex<Option<(KafkaError, String)>>,
}

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        report::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka reports");
        let telling = [RDKafkaErrorCode::Authentication, RDKafkaErrorCode::SSL, RDKafkaErrorCode::Resolve];
        if error.rdkafka_error_code().is_some_and(|code| telling.contains(&code)) {
            *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = Some((error, reason.to_owned()));
        }
    }
}

impl ProducerContext<NoCustomPartitioner> for Quiet {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {} // it sends nothing
}

/// Asks for metadata; of an absent cluster it says why, where librdkafka knows.
fn metadata(asker: &BaseProducer<Quiet>, about: &str, topic: Option<&str>) -> Result<Metadata, SendError> {
    asker.client().fetch_metadata(topic, ANSWER_TIMEOUT).map_err(|failure| {
        asker.poll(REASON_PAUSE); // hands the errors to the context
        match asker.context().reason.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some((cause, reason)) => error::describe(about, &cause).because(&reason),
            None => error::describe(about, &failure),
        }
    })
}

impl Topic {
    /// A topic that takes everything, learnt now.
    pub(crate) fn unlimited() -> Self {
        Self {
            slot: 0,
            partitions: 0,
            limit_bytes: usize::MAX,
            is_compacted: false,
            oldest_ms: i64::MAX,
            newest_ms: i64::MAX,
            learnt_at: Instant::now(),
        }
    }
}

impl Topics {
    /// Prepares a client; nothing is asked yet.
    ///
    /// # Errors
    /// A property that librdkafka does not take.
    pub fn new(config: &Kafka, socket_timeout: Duration) -> Result<Self, SendError> {
        let properties = options::client(config, socket_timeout);
        let clients = Some(Arc::new(Clients::new(&properties)?));
        Ok(Self { clients, properties, create: config.create_topics, known: HashMap::new() })
    }

    fn clients(&self) -> Result<Arc<Clients>, SendError> {
        self.clients.clone().ok_or_else(|| away("the client ends"))
    }

    /// Those for the next question.
    fn renew_clients(&mut self) -> Result<(), SendError> {
        if self.clients.is_none() {
            self.clients = Some(Arc::new(Clients::new(&self.properties)?));
        }
        Ok(())
    }

    /// The id of the cluster: events that went into another one never were in this.
    ///
    /// # Errors
    /// No broker answers.
    pub async fn cluster(&mut self) -> Result<String, SendError> {
        self.renew_clients()?;
        let answer = self.ask_cluster().await;
        if answer.is_err() {
            self.end_clients();
        }
        answer
    }

    async fn ask_cluster(&self) -> Result<String, SendError> {
        let clients = self.clients()?;
        let question = move || {
            metadata(&clients.asker, "kafka", None)?; // tells why, where the call below only says no
            Ok(clients.asker.client().fetch_cluster_id(ANSWER_TIMEOUT))
        };
        blocking(question).await?.ok_or_else(|| away("the cluster does not say its id"))
    }

    /// What is known of a topic, without asking.
    pub fn get(&self, topic: &str) -> Option<&Topic> {
        self.known.get(topic)
    }

    /// The topic of which nothing was heard for longest.
    pub fn oldest(&self) -> Option<(&str, &Topic)> {
        self.known.iter().min_by_key(|(_, topic)| topic.learnt_at).map(|(name, topic)| (name.as_str(), topic))
    }

    /// Asks about a topic.
    ///
    /// # Errors
    /// It does not exist, may not be seen, or could not be made.
    pub async fn learn(&mut self, topic: &str, missing: Missing) -> Result<Topic, SendError> {
        self.renew_clients()?;
        let answer = self.ask_topic(topic, missing).await;
        if answer.is_err() {
            self.end_clients();
        }
        answer
    }

    async fn ask_topic(&mut self, topic: &str, missing: Missing) -> Result<Topic, SendError> {
        let partitions = match self.partitions(topic).await {
            Err(error) if is_missing(&error) && self.create.is_some() && missing == Missing::Make => {
                self.make(topic).await?
            }
            other => other?,
        };
        let slot = self.known.get(topic).map_or(self.known.len(), |known| known.slot);
        let learnt = Topic { slot, partitions, ..self.limits(topic).await? };
        self.known.insert(topic.to_owned(), learnt);
        Ok(learnt)
    }

    async fn partitions(&self, topic: &str) -> Result<usize, SendError> {
        let (clients, name) = (self.clients()?, topic.to_owned());
        blocking(move || {
            let about = format!("topic {name}");
            let refused = |code| error::describe(&about, &KafkaError::MetadataFetch(code));
            let metadata = metadata(&clients.asker, &about, Some(&name))?;
            let Some(found) = metadata.topics().iter().find(|found| found.name() == name) else {
                return Err(refused(RDKafkaErrorCode::UnknownTopic));
            };
            match found.error() {
                Some(code) => Err(refused(code.into())),
                None => Ok(found.partitions().len()),
            }
        })
        .await
    }

    async fn make(&self, topic: &str) -> Result<usize, SendError> {
        let Some(create) = self.create else { return Err(away("topics are not made here")) };
        let new = NewTopic::new(topic, create.partitions, TopicReplication::Fixed(create.replication));
        let options = AdminOptions::new().request_timeout(Some(ANSWER_TIMEOUT)).operation_timeout(Some(ANSWER_TIMEOUT));
        let about = format!(
            "making topic {topic} with {} partitions and replication {}",
            create.partitions, create.replication
        );
        let clients = self.clients()?;
        let results =
            clients.admin.create_topics([&new], &options).await.map_err(|failure| error::describe(&about, &failure))?;
        for result in results {
            match result {
                Ok(_) => {}
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => return self.partitions(topic).await, // somebody else was faster
                Err((_, code)) => {
                    let refused = error::describe(&about, &KafkaError::AdminOp(code));
                    let hint = Some(
                        "correct `kafka.create_topics`, allow it, or make the topic by hand; outboxd goes on by itself"
                            .to_owned(),
                    );
                    return Err(SendError { kind: SendErrorKind::Environment, hint, ..refused });
                }
            }
        }
        tracing::info!(topic, partitions = create.partitions, replication = create.replication, "topic made");
        Ok(usize::try_from(create.partitions).unwrap_or_default())
    }

    /// A topic that was just made is known to the brokers one after the other.
    async fn limits(&self, topic: &str) -> Result<Topic, SendError> {
        for _ in 0..SPREADING_TRIES {
            match self.ask_limits(topic).await {
                Err(RDKafkaErrorCode::UnknownTopicOrPartition) => tokio::time::sleep(SPREADING_PAUSE).await,
                Err(code) if is_silence(code) => return Err(refused(topic, code)),
                Err(code) => {
                    let (assumed_bytes, why) = (ASSUMED_LIMIT_BYTES, format!("{code:?}"));
                    tracing::info!(
                        topic,
                        assumed_bytes,
                        why,
                        "the limit of the topic is not told (DescribeConfigs): assuming Kafka's default"
                    );
                    return Ok(Topic { limit_bytes: assumed_bytes, ..Topic::unlimited() });
                }
                Ok(limits) => return Ok(limits),
            }
        }
        Err(refused(topic, RDKafkaErrorCode::UnknownTopicOrPartition))
    }

    async fn ask_limits(&self, topic: &str) -> Result<Topic, RDKafkaErrorCode> {
        let options = AdminOptions::new().request_timeout(Some(ANSWER_TIMEOUT));
        let clients = self.clients().map_err(|_| RDKafkaErrorCode::Fail)?;
        let asked = clients.admin.describe_configs([&ResourceSpecifier::Topic(topic)], &options).await;
        let unknown = |failure: KafkaError| failure.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
        let found = asked.map_err(unknown)?.pop().ok_or(RDKafkaErrorCode::Fail)??;
        let value = |name: &str| found.get(name).and_then(|entry| entry.value.clone());
        let limit = value("max.message.bytes").and_then(|text| text.parse().ok()).ok_or(RDKafkaErrorCode::Fail)?;
        let is_ours = value("message.timestamp.type").is_none_or(|kind| kind == "CreateTime"); // else the broker sets it
        let millis =
            |name: &str| value(name).filter(|_| is_ours).and_then(|text| text.parse().ok()).unwrap_or(i64::MAX);
        Ok(Topic {
            limit_bytes: limit,
            is_compacted: value("cleanup.policy").is_some_and(|policies| policies.contains("compact")),
            oldest_ms: millis("message.timestamp.before.max.ms"),
            newest_ms: millis("message.timestamp.after.max.ms"),
            ..Topic::unlimited()
        })
    }
}

fn refused(topic: &str, code: RDKafkaErrorCode) -> SendError {
    error::describe(&format!("the limit of topic {topic}"), &KafkaError::AdminOp(code))
}

/// librdkafka's look-ups block their thread. They begin at once: what is never begun would be dropped where it lies, and to drop a client blocks too.
pub(super) fn blocking<T: Send + 'static>(
    ask: impl FnOnce() -> Result<T, SendError> + Send + 'static,
) -> impl Future<Output = Result<T, SendError>> + Send {
    let asking = tokio::task::spawn_blocking(ask);
    async {
        match asking.await {
            Ok(answer) => answer,
            Err(broken) => match broken.try_into_panic() {
                Ok(payload) => std::panic::resume_unwind(payload),
                Err(_) => Err(away("the client ends")), // the runtime does
            },
        }
    }
}

/// Nobody answers, so nothing may be assumed.
fn is_silence(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::OperationTimedOut
            | Code::RequestTimedOut
            | Code::DestroyBroker // the client has dropped it while it was asked
            | Code::BrokerDestroy
    )
}

/// Whether there is no such topic, or, as librdkafka says of records, none any more.
pub fn is_missing(error: &SendError) -> bool {
    ["UnknownTopicOrPartition", "UnknownTopic", "UnknownPartition"].contains(&error.code.as_str())
}

fn away(what: &str) -> SendError {
    SendError {
        kind: SendErrorKind::Environment,
        code: "client".to_owned(),
        what: format!("kafka: {what}"),
        hint: None,
    }
}
