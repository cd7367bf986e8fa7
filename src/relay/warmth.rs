//! Partitions of which the broker knows our producer. Pure.
//!
//! A broker refuses a batch whose sequence does not follow the last one of the producer in that partition, so nothing
//! passes a batch that it has refused. But of a producer that it does not know there it takes any sequence (since
//! Kafka 2.5, KIP-360): when the very first batch is refused, the second one, already in flight, would be stored, and
//! with it later events of the same stream. So the first record of a producer in each partition travels alone.

use crate::sink::Token;
use std::collections::HashMap;

/// See the module. Of one producer.
#[derive(Debug, Default)]
pub struct Warmth {
    /// By topic, for each partition: whether a record of this producer is stored there.
    topics: HashMap<String, Vec<bool>>,
    /// First records that are under way.
    first: Vec<(Token, String, usize)>,
}

impl Warmth {
    /// Whether any first record is under way.
    pub fn is_waiting(&self) -> bool {
        !self.first.is_empty()
    }

    /// Whether a record may be sent to a partition, as far as this rule goes.
    pub fn allows(&self, topic: &str, partition: usize) -> bool {
        self.first.iter().all(|(_, other, place)| other != topic || *place != partition)
    }

    /// Notes that a record is sent to a partition.
    pub fn sent(&mut self, token: Token, topic: &str, partition: usize) {
        if !self.topics.get(topic).and_then(|warm| warm.get(partition)).is_some_and(|is_warm| *is_warm) {
            self.first.push((token, topic.to_owned(), partition));
        }
    }

    /// Notes that all records of an event are stored.
    pub fn stored(&mut self, token: Token) {
        if self.first.is_empty() {
            return;
        }
        for (_, topic, partition) in self.first.extract_if(.., |(first, ..)| *first == token) {
            let warm = self.topics.entry(topic).or_default();
            if warm.len() <= partition {
                warm.resize(partition.saturating_add(1), false);
            }
            if let Some(is_warm) = warm.get_mut(partition) {
                *is_warm = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::Generation;

    #[test]
    fn the_first_record_in_each_partition_travels_alone() {
        let token = |index| Token::new(Generation::FIRST, index);
        let mut warmth = Warmth::default();
        assert!(warmth.allows("a", 1));
        warmth.sent(token(1), "a", 1);
        assert!(!warmth.allows("a", 1) && warmth.allows("a", 0) && warmth.allows("b", 1));
        warmth.sent(token(2), "a", 0);
        warmth.stored(token(1));
        assert!(warmth.allows("a", 1) && !warmth.allows("a", 0));
        warmth.sent(token(3), "a", 1);
        assert!(warmth.allows("a", 1), "it is known there");
    }
}
