//! Which topics exist, how many partitions they have, and how large a batch they take. Asked at the first use of a topic.

use super::{error, options, report};
use crate::config::kafka::{CreateTopics, Kafka};
use crate::sink::{SendError, SendErrorKind};
use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Kafka's default for `max.message.bytes`; assumed where we may not ask.
const ASSUMED_LIMIT_BYTES: usize = 1_048_588;

/// How long a topic may take to be known everywhere: a second.
const SPREADING_TRIES: u32 = 10;
const SPREADING_PAUSE: Duration = Duration::from_millis(100);

/// A cluster that is slower than this counts as away.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What is known of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Its number of partitions.
    pub partitions: usize,
    /// Its `max.message.bytes`: the limit of a batch.
    pub limit_bytes: usize,
}

/// Asks the cluster about itself and its topics.
pub struct Topics {
    admin: Arc<AdminClient<Quiet>>,
    create: Option<CreateTopics>,
    known: HashMap<String, Topic>,
}

impl std::fmt::Debug for Topics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Topics").field("known", &self.known).finish_non_exhaustive()
    }
}

struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        report::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka reports");
    }
}

impl Topics {
    /// Prepares a client; nothing is asked yet.
    ///
    /// # Errors
    /// A property that librdkafka does not take.
    pub fn new(config: &Kafka, socket_timeout: Duration) -> Result<Self, SendError> {
        let properties = options::client(config, socket_timeout);
        let admin =
            properties.create_with_context(Quiet).map_err(|failure| error::describe("kafka.properties", &failure))?;
        Ok(Self { admin: Arc::new(admin), create: config.create_topics, known: HashMap::new() })
    }

    /// The id of the cluster: events that went into another one never were in this.
    ///
    /// # Errors
    /// No broker answers.
    pub async fn cluster(&self) -> Result<String, SendError> {
        let admin = Arc::clone(&self.admin);
        let asked = move || {
            admin.inner().fetch_metadata(None, ANSWER_TIMEOUT)?; // tells why, where the call below only says no
            Ok(admin.inner().fetch_cluster_id(ANSWER_TIMEOUT))
        };
        match blocking(asked).await {
            Ok(Some(id)) => Ok(id),
            Ok(None) => Err(away("the cluster does not say its id")),
            Err(failure) => Err(error::describe("kafka", &failure)),
        }
    }

    /// What is known of a topic, without asking.
    pub fn get(&self, topic: &str) -> Option<&Topic> {
        self.known.get(topic)
    }

    /// Asks about a topic, and makes it if that is configured.
    ///
    /// # Errors
    /// It does not exist, may not be seen, or could not be made.
    pub async fn learn(&mut self, topic: &str) -> Result<Topic, SendError> {
        let partitions = match self.partitions(topic).await {
            Err(missing) if is_missing(&missing) && self.create.is_some() => self.make(topic).await?,
            other => other.map_err(|failure| error::describe(&format!("topic {topic}"), &failure))?,
        };
        let learnt = Topic { partitions, limit_bytes: self.limit(topic).await? };
        self.known.insert(topic.to_owned(), learnt);
        Ok(learnt)
    }

    async fn partitions(&self, topic: &str) -> Result<usize, KafkaError> {
        let (admin, name) = (Arc::clone(&self.admin), topic.to_owned());
        blocking(move || {
            let metadata = admin.inner().fetch_metadata(Some(&name), ANSWER_TIMEOUT)?;
            let Some(found) = metadata.topics().iter().find(|found| found.name() == name) else {
                return Err(KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopic));
            };
            match found.error() {
                Some(code) => Err(KafkaError::MetadataFetch(code.into())),
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
        let results =
            self.admin.create_topics([&new], &options).await.map_err(|failure| error::describe(&about, &failure))?;
        for result in results {
            match result {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
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
    async fn limit(&self, topic: &str) -> Result<usize, SendError> {
        for _ in 0..SPREADING_TRIES {
            match self.ask_limit(topic).await {
                Err(RDKafkaErrorCode::UnknownTopicOrPartition) => tokio::time::sleep(SPREADING_PAUSE).await,
                Err(RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::ClusterAuthorizationFailed) => {
                    let assumed_bytes = ASSUMED_LIMIT_BYTES;
                    tracing::warn!(
                        topic,
                        assumed_bytes,
                        "the limit of the topic may not be read (DescribeConfigs): assuming Kafka's default"
                    );
                    return Ok(assumed_bytes);
                }
                other => return other.map_err(|code| refused(topic, code)),
            }
        }
        Err(refused(topic, RDKafkaErrorCode::UnknownTopicOrPartition))
    }

    async fn ask_limit(&self, topic: &str) -> Result<usize, RDKafkaErrorCode> {
        let options = AdminOptions::new().request_timeout(Some(ANSWER_TIMEOUT));
        let asked = self.admin.describe_configs([&ResourceSpecifier::Topic(topic)], &options).await;
        let unknown = |failure: KafkaError| failure.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
        let found = asked.map_err(unknown)?.pop().ok_or(RDKafkaErrorCode::Fail)??;
        let limit = found.get("max.message.bytes").and_then(|entry| entry.value.as_ref()?.parse().ok());
        limit.ok_or(RDKafkaErrorCode::Fail)
    }
}

fn refused(topic: &str, code: RDKafkaErrorCode) -> SendError {
    error::describe(&format!("the limit of topic {topic}"), &KafkaError::AdminOp(code))
}

/// librdkafka's look-ups block their thread.
async fn blocking<T: Send + 'static>(
    ask: impl FnOnce() -> Result<T, KafkaError> + Send + 'static,
) -> Result<T, KafkaError> {
    match tokio::task::spawn_blocking(ask).await {
        Ok(answer) => answer,
        Err(broken) => match broken.try_into_panic() {
            Ok(payload) => std::panic::resume_unwind(payload),
            Err(_) => Err(KafkaError::Canceled), // the runtime ends
        },
    }
}

fn is_missing(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic)
    )
}

fn away(what: &str) -> SendError {
    SendError {
        kind: SendErrorKind::Environment,
        code: "client".to_owned(),
        what: format!("kafka: {what}"),
        hint: None,
    }
}
