//! Partitions of which the broker knows our producer. Pure.
//!
//! A broker refuses a batch whose sequence does not follow the last one of the producer in that partition, so nothing
//! passes a batch that it has refused. But of a producer that it does not know there it takes any sequence (since
//! Kafka 2.5, KIP-360): when the very first batch is refused, the second one, already in flight, would be stored, and
//! with it later events of the same stream. So the first record of a producer in each partition travels alone.
//! A broker forgets a producer that has not written to a partition for `producer.id.expiration.ms`, by default a day. So
//! every hour a first record travels alone once more.

use crate::sink::Token;
use crate::sink::kafka::options::Haste;
use crate::sink::kafka::partition;
use crate::sink::kafka::topics::Topic;
use std::time::Duration;
use tokio::time::Instant;

/// How long a partition counts as one in which the broker knows us.
const WARM_FOR: Duration = Duration::from_hours(1);

/// See the module. Of one producer.
#[derive(Debug, Default)]
pub struct Warmth {
    /// By the topic's slot.
    topics: Vec<Partitions>,
    /// First records that are under way.
    first: Vec<(Token, Landing)>,
}

/// Of which partitions a record of this producer is stored.
#[derive(Debug, Default)]
struct Partitions {
    warm: Vec<bool>,
    count: usize,
}

/// A partition in which a record lands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Landing {
    slot: usize,
    partition: usize,
}

impl Warmth {
    /// Where a record lands, if that matters: not where all partitions are known, nor where it is left to chance.
    pub fn landing(&self, topic: &Topic, key: Option<&str>) -> Option<Landing> {
        let is_warm = self.topics.get(topic.slot).is_some_and(|partitions| partitions.count >= topic.partitions);
        let key = key.filter(|_| !is_warm)?;
        Some(Landing { slot: topic.slot, partition: partition::of_key(key.as_bytes(), topic.partitions) })
    }

    /// Whether a record may be sent to a partition, as far as this rule goes.
    pub fn allows(&self, landing: Landing) -> bool {
        self.first.iter().all(|(_, other)| *other != landing)
    }

    /// Notes that a record is sent to a partition.
    pub fn sent(&mut self, token: Token, landing: Landing) {
        let warm = self.topics.get(landing.slot).and_then(|partitions| partitions.warm.get(landing.partition));
        if !warm.is_some_and(|is_warm| *is_warm) {
            self.first.push((token, landing));
        }
    }

    /// Notes that all records of an event are stored.
    pub fn stored(&mut self, token: Token) {
        if self.first.is_empty() {
            return;
        }
        for (_, Landing { slot, partition }) in self.first.extract_if(.., |(first, _)| *first == token) {
            if self.topics.len() <= slot {
                self.topics.resize_with(slot.saturating_add(1), Partitions::default);
            }
            let Some(partitions) = self.topics.get_mut(slot) else { continue };
            if partitions.warm.len() <= partition {
                partitions.warm.resize(partition.saturating_add(1), false);
            }
            if let Some(is_warm) = partitions.warm.get_mut(partition)
                && !std::mem::replace(is_warm, true)
            {
                partitions.count = partitions.count.saturating_add(1);
            }
        }
    }
}

/// Of the producers of a lane.
#[derive(Debug, Default)]
pub struct Warmths {
    soon: Warmth,
    bulk: Warmth,
    /// When all partitions counted as unknown last.
    cooled_at: Option<Instant>,
}

impl Warmths {
    /// Takes all partitions for unknown, when it is time. What is under way does not matter: it went to partitions that were known until now.
    pub fn cool_if_due(&mut self, now: Instant) {
        if now.saturating_duration_since(*self.cooled_at.get_or_insert(now)) >= WARM_FOR {
            self.cooled_at = Some(now);
            self.cool();
        }
    }

    /// Takes all partitions for unknown: a topic may have others now.
    pub fn cool(&mut self) {
        self.soon.topics.clear();
        self.bulk.topics.clear();
    }

    /// That of one of them.
    pub fn of(&mut self, haste: Haste) -> &mut Warmth {
        match haste {
            Haste::Soon => &mut self.soon,
            Haste::Bulk => &mut self.bulk,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::Generation;

    fn topic(slot: usize) -> Topic {
        Topic { slot, partitions: 2, ..Topic::unlimited() }
    }

    /// A key in each of two partitions.
    const KEYS: [&str; 2] = ["21", "a-little-bit-longer-string"];

    #[test]
    fn the_first_record_in_each_partition_travels_alone() {
        let token = |index| Token::new(Generation::FIRST, index);
        let mut warmth = Warmth::default();
        let lands = |warmth: &Warmth, slot, key| warmth.landing(&topic(slot), Some(key));
        let [a0, a1] = KEYS.map(|key| lands(&warmth, 0, key).unwrap());
        let b1 = lands(&warmth, 1, KEYS[1]).unwrap();
        assert_ne!(a0, a1);
        assert_eq!(warmth.landing(&topic(0), None), None);
        assert!(warmth.allows(a1));
        warmth.sent(token(1), a1);
        assert!(!warmth.allows(a1) && warmth.allows(a0) && warmth.allows(b1));
        warmth.sent(token(2), a0);
        warmth.stored(token(1));
        assert!(warmth.allows(a1) && !warmth.allows(a0));
        warmth.sent(token(3), a1);
        assert!(warmth.allows(a1), "it is known there");
        assert!(lands(&warmth, 0, KEYS[0]).is_some());
        warmth.stored(token(2));
        assert_eq!(KEYS.map(|key| lands(&warmth, 0, key)), [None, None], "no need to know any more");
        assert!(lands(&warmth, 1, KEYS[0]).is_some());
    }

    #[test]
    fn after_an_hour_the_broker_may_have_forgotten_us() {
        let token = |index| Token::new(Generation::FIRST, index);
        let (start, minute) = (Instant::now(), Duration::from_mins(1));
        let mut warmths = Warmths::default();
        let lands = |warmths: &mut Warmths, key| warmths.of(Haste::Soon).landing(&topic(0), Some(key));
        for (index, key) in (1..).zip(KEYS) {
            warmths.cool_if_due(start);
            let landing = lands(&mut warmths, key).unwrap();
            warmths.of(Haste::Soon).sent(token(index), landing);
            warmths.of(Haste::Soon).stored(token(index));
        }
        warmths.cool_if_due(start + 59 * minute);
        assert_eq!(lands(&mut warmths, KEYS[0]), None);
        warmths.cool_if_due(start + 60 * minute);
        let landing = lands(&mut warmths, KEYS[0]).unwrap();
        warmths.of(Haste::Soon).sent(token(3), landing);
        assert!(!warmths.of(Haste::Soon).allows(landing), "it travels alone");
    }
}
