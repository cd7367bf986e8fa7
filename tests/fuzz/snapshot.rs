//! Snapshots and transaction ids in the text form of Postgres.

use outboxd::outbox::snapshot::{Snapshot, Xid};

pub(crate) const WORDS: &[&str] = &[":", ",", "3:3:", "10:20:10,14,18", "18446744073709551614", "+", " ", "00"];

/// As `pg_snapshot_in` reads it, spelt out: what it refuses must not be accepted here.
struct Naive {
    xmin: u128,
    xmax: u128,
    xip: Vec<u128>,
}

impl Naive {
    fn read(text: &str) -> Option<Self> {
        let [xmin, xmax, list] = <[&str; 3]>::try_from(text.split(':').collect::<Vec<_>>()).ok()?;
        let xip = match list {
            "" => Vec::new(),
            _ => list.split(',').map(number).collect::<Option<Vec<_>>>()?,
        };
        let naive = Self { xmin: number(xmin)?, xmax: number(xmax)?, xip };
        let mut before = 0;
        for xid in &naive.xip {
            if *xid < naive.xmin || *xid >= naive.xmax || *xid <= before {
                return None;
            }
            before = *xid;
        }
        (naive.xmin >= 1 && naive.xmax >= naive.xmin).then_some(naive)
    }

    fn sees(&self, xid: u64) -> bool {
        let xid = u128::from(xid);
        if xid < self.xmin {
            return true;
        }
        if xid >= self.xmax {
            return false;
        }
        self.xip.iter().all(|running| *running != xid)
    }

    fn print(&self) -> String {
        let list: Vec<String> = self.xip.iter().map(u128::to_string).collect();
        format!("{}:{}:{}", self.xmin, self.xmax, list.join(","))
    }
}

/// Digits only, of at most 64 bits; Postgres takes signs and blanks too, which it never prints.
fn number(text: &str) -> Option<u128> {
    let mut number = 0_u128;
    for c in text.chars() {
        number = number * 10 + u128::from(c.to_digit(10)?);
        if number > u128::from(u64::MAX) {
            return None;
        }
    }
    (!text.is_empty()).then_some(number)
}

pub(crate) fn target(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let (read, naive) = (Snapshot::parse(&text), Naive::read(&text));
    let (snapshot, naive) = match (read, naive) {
        (Ok(snapshot), Some(naive)) => (snapshot, naive),
        (Err(_), None) => return,
        (read, naive) => panic!("{text:?}: read as {read:?}, and it is one: {}", naive.is_some()),
    };
    let printed = snapshot.to_string();
    assert_eq!(printed, naive.print(), "{text:?}");
    let again = Snapshot::parse(&printed);
    assert_eq!(again.as_ref(), Ok(&snapshot), "what is printed reads as the same");

    let edges = naive.xip.iter().chain([&naive.xmin, &naive.xmax]).filter_map(|edge| u64::try_from(*edge).ok());
    let around = edges.flat_map(|edge| [edge.saturating_sub(1), edge, edge.saturating_add(1)]);
    for xid in around.chain([0, 1, 2, 3, u64::from(u32::MAX), u64::MAX - 1, u64::MAX]) {
        assert_eq!(snapshot.sees(Xid::new(xid)), naive.sees(xid), "{text:?} and transaction {xid}");
    }
}
