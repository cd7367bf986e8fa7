//! Questions to the cluster, one at a time, beside the pump: about a topic, whether the cluster is back, and whether the producer has
//! found it again.

use super::pending::{Pending, later};
use super::verdict::Trouble;
use crate::sink::SendError;
use crate::sink::kafka::topics::{Missing, Topic, Topics};
use crate::store::guards::other_cluster;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// Between two looks whether an absent cluster is back.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// Codes of a cluster that is away for whatever reason.
const VAGUE: [&str; 4] = ["AllBrokersDown", "BrokerTransportFailure", "OperationTimedOut", "client"];

/// What the cluster answered.
pub enum Answer {
    /// About a topic.
    Topic(Learnt),
    /// Which one it is, if it is back; if not, why.
    Back(Result<String, SendError>),
    /// Whether the lane's own producer reaches it.
    Reached(Result<(), SendError>),
}

/// What was asked about a topic.
pub struct Learnt {
    /// Its name.
    pub topic: String,
    /// Its number of partitions, as it was known before; `None` also if it was told already that this is another one.
    pub partitions_before: Option<usize>,
    /// What is known now, or why it is not.
    pub answer: Result<Topic, SendError>,
}

/// See the module.
pub struct Inquiry {
    /// `None` while a question is under way.
    topics: Option<Topics>,
    /// The question under way.
    pub asking: Pending<(Topics, Answer)>,
    /// The id of the cluster into which the events go.
    cluster: String,
    /// Topics that are not what they were, and whether that was said.
    changed: HashMap<String, bool>,
    away: Option<SendError>,
    /// It has gone once more since it was asked for.
    gone_since: bool,
    probe_at: Instant,
}

impl Inquiry {
    /// Nothing is asked yet of the cluster, which has this id.
    pub fn new(topics: Topics, cluster: String) -> Self {
        let (topics, probe_at) = (Some(topics), Instant::now());
        Self { topics, asking: None, cluster, changed: HashMap::new(), away: None, gone_since: false, probe_at }
    }

    /// What is known of a topic.
    pub fn known(&self, topic: &str) -> Option<Topic> {
        if !self.changed.is_empty() && self.changed.contains_key(topic) {
            return None;
        }
        self.topics.as_ref().and_then(|topics| topics.get(topic)).copied()
    }

    /// Notes how many partitions a topic has now; 0 if it is gone. It is asked about before anything is sent to it. Whether it is known
    /// to have another number than before, and that was not said yet.
    pub fn changed(&mut self, topic: &str, partitions: usize) -> bool {
        let known = self.topics.as_ref().and_then(|topics| topics.get(topic));
        if known.is_some_and(|known| known.partitions == partitions) {
            return false;
        }
        let is_told = self.changed.entry(topic.to_owned()).or_default();
        let is_news = known.is_some() && partitions > 0 && !*is_told;
        *is_told |= is_news;
        is_news
    }

    /// A topic of which nothing was heard for this long, if there is one and no question is under way.
    pub fn older_than(&self, age: Duration) -> Option<String> {
        let (name, topic) = self.topics.as_ref()?.oldest()?;
        (topic.learnt_at.elapsed() > age).then(|| name.to_owned())
    }

    /// Whether a question is under way.
    pub fn is_busy(&self) -> bool {
        self.asking.is_some()
    }

    /// Asks about a topic, unless a question is under way.
    pub fn ask_about(&mut self, topic: String, missing: Missing) {
        let Some(mut topics) = self.topics.take() else { return };
        let is_told = self.changed.remove(&topic).unwrap_or_default();
        self.asking = Some(Box::pin(async move {
            let partitions_before = topics.get(&topic).filter(|_| !is_told).map(|known| known.partitions);
            let answer = topics.learn(&topic, missing).await;
            (topics, Answer::Topic(Learnt { topic, partitions_before, answer }))
        }));
    }

    /// Waits for the answer to a question of the lane's own producer, unless a question is under way.
    pub fn ask_producer(&mut self, question: impl Future<Output = Result<(), SendError>> + Send + 'static) {
        let Some(topics) = self.topics.take() else { return };
        self.asking = Some(Box::pin(async move { (topics, Answer::Reached(question.await)) }));
    }

    /// Notes that no broker answers.
    pub fn gone(&mut self, error: SendError) {
        self.learn_why(error);
        self.gone_since = true;
        self.probe_at = later(Instant::now(), PROBE_EVERY);
    }

    /// What tells more is kept: librdkafka says as well that all connections are down.
    fn learn_why(&mut self, error: SendError) {
        if self.away.is_none() || !VAGUE.contains(&error.code.as_str()) {
            self.away = Some(error);
        }
    }

    /// Notes that a broker has answered. Which cluster it belongs to is asked before anything else is believed.
    pub fn back(&mut self) {
        self.probe_at = Instant::now();
    }

    /// Why the cluster is thought to be away, or not yet known to be the one that it was.
    pub fn away(&self) -> Option<&SendError> {
        self.away.as_ref()
    }

    /// Looks whether an absent cluster is back: an idle lane has no record that would tell.
    pub fn probe_if_due(&mut self, now: Instant) {
        if self.away.is_none() || self.probe_at > now {
            return;
        }
        let Some(mut topics) = self.topics.take() else { return };
        self.gone_since = false;
        self.asking = Some(Box::pin(async move {
            let back = topics.cluster().await;
            (topics, Answer::Back(back))
        }));
    }

    /// When [`Inquiry::probe_if_due`] has something to do.
    pub fn next_time(&self) -> Option<Instant> {
        (self.away.is_some() && !self.is_busy()).then_some(self.probe_at)
    }

    /// Whether the topic was there in this session.
    pub fn has_known(&self, topic: &str) -> bool {
        self.topics.as_ref().is_some_and(|topics| topics.get(topic).is_some())
    }

    /// Takes an answer; hands on what it says of a topic.
    ///
    /// # Errors
    /// It is another cluster that is back, or the producer does not reach one that we reach.
    pub fn finish(&mut self, topics: Topics, answer: Answer) -> Result<Option<Learnt>, Trouble> {
        (self.topics, self.asking) = (Some(topics), None);
        match answer {
            Answer::Topic(learnt) => return Ok(Some(learnt)),
            Answer::Back(Ok(cluster)) if cluster != self.cluster => {
                return Err(Trouble::Refused(other_cluster(&self.cluster, &cluster)));
            }
            Answer::Back(Ok(_)) if self.gone_since => {} // asked once more
            Answer::Back(Ok(_)) => self.away = None,
            Answer::Back(Err(error)) => self.gone(error),
            Answer::Reached(reached) => reached.map_err(Trouble::Send)?,
        }
        Ok(None)
    }
}
