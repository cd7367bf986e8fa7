//! Writes records. Knows Kafka and not Postgres. The only place that names rdkafka.

pub mod kafka;

/// Which event a delivery report is about: a place in the ledger of one producer. Reports of another producer are only counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(usize);

/// Which producer of a lane sent a record. It wraps after 65,536 producers, when no report of the first can be under way any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Generation(u16);

/// Bits of a token that are the index in the ledger.
const INDEX_BITS: u32 = usize::BITS - u16::BITS;

impl Generation {
    /// That of a lane's first producer.
    pub const FIRST: Self = Self(0);

    /// That of the producer after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

impl Token {
    /// The token of entry `index` under a producer.
    pub fn new(generation: Generation, index: usize) -> Self {
        Self((usize::from(generation.0) << INDEX_BITS) | (index & (usize::MAX >> u16::BITS)))
    }

    /// The index in the ledger, if the report is of this producer.
    pub fn index(self, generation: Generation) -> Option<usize> {
        (self.0 >> INDEX_BITS == usize::from(generation.0)).then_some(self.0 & (usize::MAX >> u16::BITS))
    }
}

/// What the producer has to say, in any order. Small: one comes for each record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The record is in the topic, on all in-sync replicas.
    Delivered(Token),
    /// The record is not, or nobody knows.
    Failed(Box<Failure>),
    /// The producer as a whole has failed; no record can be sent with it any more.
    Broken(Box<SendError>),
    /// No broker answers. Records wait; this is no failure of any of them.
    Away(Box<SendError>),
    /// A topic has this number of partitions, where the producer knew another one; 0 if it is gone.
    Changed(String, usize),
}

/// A record that did not get into its topic, as far as is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which record.
    pub token: Token,
    /// Where it was to go. What fails together in a partition was in one batch.
    pub topic: String,
    /// The partition, negative where none was chosen yet.
    pub partition: i32,
    /// Why.
    pub error: SendError,
}

/// What became of handing a record to the producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is in the queue; a report will come.
    Queued,
    /// The queue is full: keep the record, send it again later, and nothing before it.
    Full,
}

/// What can be done about a [`SendError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendErrorKind {
    /// Nothing of the event is wrong: wait, and try again for ever.
    Environment,
    /// Kafka will never take this record.
    Rejection,
    /// Another record's failure took this one along: no verdict about it.
    NotMine,
    /// The producer must be replaced.
    Fatal,
    /// A newer producer has taken our place.
    Fenced,
}

/// Why a record, or all of them, could not be sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct SendError {
    /// What can be done about it.
    pub kind: SendErrorKind,
    /// Name of the error code, for labels.
    pub code: String,
    /// The sentence for the operator.
    pub what: String,
    /// The next step.
    pub hint: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_of_an_earlier_producer_is_not_taken_for_ours() {
        let (first, second) = (Generation::FIRST, Generation::FIRST.next());
        assert_eq!(Token::new(second, 7).index(second), Some(7));
        assert_eq!(Token::new(first, 7).index(second), None);
        assert_eq!(Token::new(Generation(u16::MAX), 7).index(Generation(u16::MAX)), Some(7));
        assert_eq!(Generation(u16::MAX).next(), first);
    }
}
