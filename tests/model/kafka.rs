//! Kafka: a log per partition, and what is on its way there. A record that comes again changes nothing that is asked
//! here, so the log keeps first appearances only.

use crate::setup::{Seed, Setup};
use outboxd::sink::Token;

/// A record between a producer and its report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Record {
    pub(crate) event: usize,
    pub(crate) token: Token,
}

/// One generation of a relay's producer. Idempotent: within a partition, records land in the order of sending, or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Producer {
    pub(crate) waiting: Vec<Record>,
    /// In the log, and the report is still to come.
    pub(crate) landed: Vec<Record>,
}

impl Producer {
    /// The records that may land next: the first of each partition.
    pub(crate) fn heads<'a>(&'a self, setup: &'a Setup) -> impl Iterator<Item = &'a Record> {
        let any = setup.is_sown(Seed::LandsOutOfOrder);
        (0..self.waiting.len())
            .filter(move |place| any || is_first(&self.waiting, *place, setup))
            .map(|place| &self.waiting[place])
    }

    /// The records that may be reported next.
    pub(crate) fn reports<'a>(&'a self, setup: &'a Setup) -> impl Iterator<Item = &'a Record> {
        (0..self.landed.len())
            .filter(move |place| is_first(&self.landed, *place, setup))
            .map(|place| &self.landed[place])
    }

    /// A record that Kafka does not take leaves a gap that nothing behind it in its partition can pass.
    pub(crate) fn refuse(&mut self, event: usize, setup: &Setup) {
        self.waiting.retain(|record| setup.partition_of(record.event) != setup.partition_of(event));
    }

    /// A record that failed is queued once more, behind the others.
    pub(crate) fn retry(&mut self, event: usize) {
        let place = self.waiting.iter().position(|record| record.event == event).unwrap();
        let record = self.waiting.remove(place);
        self.waiting.push(record);
    }
}

fn is_first(records: &[Record], place: usize, setup: &Setup) -> bool {
    let partition = |record: &Record| setup.partition_of(record.event);
    !records[..place].iter().any(|before| partition(before) == partition(&records[place]))
}

/// The cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kafka {
    /// Per stream, the order of first appearances.
    pub(crate) log: Vec<Vec<usize>>,
    /// Events of which a relay got a report, one bit each.
    acknowledged: u32,
    /// What producers of earlier generations left on its way, per partition; it may still land.
    old: Vec<Vec<usize>>,
}

impl Kafka {
    pub(crate) fn new(setup: &Setup) -> Self {
        Self { log: vec![Vec::new(); setup.streams()], acknowledged: 0, old: Vec::new() }
    }

    pub(crate) fn append(&mut self, event: usize, setup: &Setup) {
        let log = &mut self.log[setup.stream_of(event)];
        if !log.contains(&event) {
            log.push(event);
            self.old.iter_mut().for_each(|queue| queue.retain(|waiting| *waiting != event));
            self.tidy();
        }
    }

    pub(crate) fn acknowledge(&mut self, event: usize) {
        self.acknowledged |= 1 << event;
    }

    pub(crate) fn is_acknowledged(&self, event: usize) -> bool {
        self.acknowledged & 1 << event != 0
    }

    pub(crate) fn has(&self, event: usize) -> bool {
        self.log.iter().any(|log| log.contains(&event))
    }

    /// The producer is gone; what it has handed to the network is not.
    pub(crate) fn abandon(&mut self, producer: &Producer, setup: &Setup) {
        for partition in 0..setup.partitions {
            let of_it = producer.waiting.iter().map(|record| record.event);
            let of_it = of_it.filter(|event| setup.partition_of(*event) == partition);
            let lands = of_it.take_while(|event| setup.refused != Some(*event));
            let queue: Vec<usize> = lands.filter(|event| !self.has(*event)).collect();
            self.old.push(queue);
        }
        self.tidy();
    }

    pub(crate) fn olds(&self) -> usize {
        self.old.len()
    }

    /// The first record of an abandoned queue lands.
    pub(crate) fn land_late(&mut self, queue: usize, setup: &Setup) {
        self.append(self.old[queue][0], setup);
    }

    /// Queues that say the same are one.
    fn tidy(&mut self) {
        self.old.retain(|queue| !queue.is_empty());
        self.old.sort_unstable();
        self.old.dedup();
    }
}
