//! Events that Kafka has refused: who they are, and what was said of them. Pure.
//!
//! A refusal ends the producer with all that it held. So what is learnt of an event has to outlive the session:
//! the next one reads the event again and applies its route's policy before anything is sent.

use super::ledger::{Dispatch, Form};
use crate::outbox::event::EventKey;
use crate::routing::Rejection;
use crate::sink::{Failure, SendError, SendErrorKind};
use std::borrow::Cow;
use std::collections::HashMap;

/// What is kept at most. An event that was forgotten is found once more.
const MOST: usize = 10_000;

/// The failures that are their record's own, where that is certain; the others of a batch have to be sent one by one.
///
/// Where a broker names one bad record of a batch, librdkafka says the same of all of the batch. Where it names several,
/// librdkafka gives them one code and the others another. Batches are not told apart, but records of a batch stand side by
/// side. So who alone has failed by its own fault, with nobody like that on either side in its partition, did so.
pub fn certain(failures: &[Failure]) -> Vec<&Failure> {
    let mut partitions: HashMap<(&str, i32), Vec<&Failure>> = HashMap::new();
    for failure in failures {
        partitions.entry((&failure.topic, failure.partition)).or_default().push(failure);
    }
    partitions.values().flat_map(|failures| alone(failures)).collect()
}

fn alone<'f>(failures: &[&'f Failure]) -> Vec<&'f Failure> {
    let runs = failures.split(|failure| failure.error.kind != SendErrorKind::Rejection);
    runs.filter_map(|run| if let [failure] = run { Some(*failure) } else { None }).collect()
}

/// What was said of refused events.
#[derive(Debug, Default)]
pub struct Culprits {
    found: HashMap<EventKey, Refusal>,
}

/// What is known of a refused event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What Kafka said.
    pub rejection: Rejection,
    /// Of which of its records.
    pub of: Form,
    /// How often it was refused.
    pub times: u32,
}

impl Culprits {
    /// Notes that Kafka has refused an event.
    pub fn add(&mut self, dispatch: Dispatch, error: &SendError) {
        if self.found.len() >= MOST {
            self.found.clear();
        }
        let times = self.found.get(&dispatch.key).map_or(0, |earlier| earlier.times);
        let rejection = Rejection {
            code: Cow::Owned(error.code.clone()),
            reason: error.what.clone(),
            hint: Cow::Owned(error.hint.clone().unwrap_or_default()),
        };
        let refusal = Refusal { rejection, of: dispatch.form, times: times.saturating_add(1) };
        self.found.insert(dispatch.key, refusal);
    }

    /// What was said of an event.
    pub fn of(&self, key: EventKey) -> Option<&Refusal> {
        if self.found.is_empty() { None } else { self.found.get(&key) }
    }

    /// Forgets an event: its policy was applied, or it got through.
    pub fn forget(&mut self, key: EventKey) {
        self.found.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::{Generation, Token};

    fn failure(index: usize, partition: i32, code: &str, kind: SendErrorKind) -> Failure {
        let error = SendError { kind, code: code.to_owned(), what: String::new(), hint: None };
        Failure { token: Token::new(Generation::FIRST, index), topic: "t".to_owned(), partition, error }
    }

    fn indices(failures: &[Failure]) -> Vec<usize> {
        let mut found: Vec<usize> =
            certain(failures).into_iter().filter_map(|failure| failure.token.index(Generation::FIRST)).collect();
        found.sort_unstable();
        found
    }

    #[test]
    fn who_stands_alone_is_certain_and_who_stands_beside_others_is_a_suspect() {
        use SendErrorKind::{NotMine, Rejection};
        let (bad, along) = ("InvalidRecord", "InvalidDifferentRecord");
        let two_named = [
            failure(1, 0, along, NotMine),
            failure(2, 0, bad, Rejection),
            failure(3, 1, bad, Rejection),
            failure(4, 0, along, NotMine),
            failure(5, 0, bad, Rejection),
        ];
        assert_eq!(indices(&two_named), [2, 3, 5]);
        let one_named_behind_two = [
            failure(1, 0, bad, Rejection),
            failure(2, 0, along, NotMine),
            failure(3, 0, bad, Rejection), // the last of its batch; behind it a batch of which one is bad
            failure(4, 0, bad, Rejection),
            failure(5, 0, bad, Rejection),
        ];
        assert_eq!(indices(&one_named_behind_two), [1]);
        assert!(indices(&[failure(1, 0, "PurgeQueue", NotMine)]).is_empty());
    }
}
