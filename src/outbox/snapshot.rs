//! Transaction ids and snapshots as Postgres prints them (`xid8`, `pg_snapshot`). Pure.
//!
//! Source: the manual of Postgres, "Transaction ID and Snapshot Information Functions": a snapshot is
//! `xmin:xmax:xip_list`; every id below `xmin` has ended, none at or above `xmax` had, and `xip` lists those between that had not.

use std::fmt;
use std::sync::Arc;

/// A 64-bit transaction id (`xid8`). Ids are compared by [`Snapshot::sees`] and nowhere else, so there is no order on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Xid(u64);

impl Xid {
    /// Wraps the number that Postgres prints for an `xid8`.
    pub fn new(number: u64) -> Self {
        Self(number)
    }
}

impl fmt::Display for Xid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which transactions had ended at one moment. Cheap to clone: each event's position shares it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Snapshot(Arc<Parts>);

#[derive(Debug, PartialEq, Eq, Hash)]
struct Parts {
    xmin: u64,
    xmax: u64,
    /// Ascending, without repetition, each in `xmin..xmax`.
    xip: Vec<u64>,
}

/// Why a text is not a [`Snapshot`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// There are not three parts.
    #[error("expected `xmin:xmax:xip_list`, found `{0}`")]
    Shape(String),
    /// A part is no transaction id.
    #[error("expected a transaction id, found `{0}`")]
    Number(String),
    /// `xmin <= xip < xmax`, ascending, does not hold.
    #[error("expected xmin <= xip < xmax in ascending order, found `{0}`")]
    Order(String),
}

impl Snapshot {
    /// The snapshot that sees no transaction of a client: 3 is the first normal transaction id.
    pub fn before_all() -> Self {
        Self(Arc::new(Parts { xmin: 3, xmax: 3, xip: Vec::new() }))
    }

    /// Reads the form in which Postgres prints a `pg_snapshot`.
    pub fn parse(text: &str) -> Result<Self, SnapshotError> {
        let shape = || SnapshotError::Shape(text.to_owned());
        let (xmin, rest) = text.split_once(':').ok_or_else(shape)?;
        let (xmax, list) = rest.split_once(':').ok_or_else(shape)?;
        let xip =
            if list.is_empty() { Vec::new() } else { list.split(',').map(number).collect::<Result<Vec<_>, _>>()? };
        let parts = Parts { xmin: number(xmin)?, xmax: number(xmax)?, xip };
        if parts.is_ordered() { Ok(Self(Arc::new(parts))) } else { Err(SnapshotError::Order(text.to_owned())) }
    }

    /// Whether the transaction had ended when the snapshot was taken.
    ///
    /// | xid | seen |
    /// |---|---|
    /// | `< xmin` | yes |
    /// | `>= xmax` | no |
    /// | between | unless in `xip` |
    pub fn sees(&self, xid: Xid) -> bool {
        xid.0 < self.0.xmin || xid.0 < self.0.xmax && self.0.xip.binary_search(&xid.0).is_err()
    }

    /// How many transactions have got an id since another snapshot was taken, with their subtransactions.
    pub fn began_since(&self, earlier: &Self) -> u64 {
        self.0.xmax.saturating_sub(earlier.0.xmax)
    }
}

impl Parts {
    fn is_ordered(&self) -> bool {
        let inside = self.xip.iter().all(|xid| (self.xmin..self.xmax).contains(xid));
        self.xmin > 0 && self.xmin <= self.xmax && inside && self.xip.is_sorted_by(|a, b| a < b)
    }
}

fn number(text: &str) -> Result<u64, SnapshotError> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()); // `parse` takes `+1`
    text.parse().ok().filter(|_| digits).ok_or_else(|| SnapshotError::Number(text.to_owned()))
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.0.xmin, self.0.xmax)?;
        for (i, xid) in self.0.xip.iter().enumerate() {
            write!(f, "{}{xid}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sees_what_had_ended() {
        let snapshot = Snapshot::parse("10:20:10,14,18").unwrap();
        let seen: Vec<u64> = (8..22).filter(|xid| snapshot.sees(Xid::new(*xid))).collect();
        assert_eq!(seen, [8, 9, 11, 12, 13, 15, 16, 17, 19]);
    }

    #[test]
    fn counts_what_has_begun_since() {
        let [earlier, later] = ["10:20:10,14", "15:27:15"].map(|text| Snapshot::parse(text).unwrap());
        assert_eq!((later.began_since(&earlier), earlier.began_since(&later)), (7, 0));
    }

    #[test]
    fn refuses_what_is_no_snapshot() {
        for text in [
            "", "3", "3:3", "a:3:", "3:+4:", "0:3:", "5:4:", "3:9:9", "3:9:2", "3:9:5,4", "3:9:4,4", "3:9:4,", "3:9:,4",
        ] {
            assert!(Snapshot::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn prints_what_it_read(xmin in 1_u64..1_000, width in 0_u64..50, picks in proptest::collection::vec(any::<bool>(), 50)) {
            let xip: Vec<String> = (xmin..xmin + width).zip(&picks).filter(|(_, pick)| **pick).map(|(xid, _)| xid.to_string()).collect();
            let text = format!("{xmin}:{}:{}", xmin + width, xip.join(","));
            prop_assert_eq!(Snapshot::parse(&text).unwrap().to_string(), text);
        }

        #[test]
        fn any_text_gives_a_snapshot_or_an_error(text in ".{0,40}") {
            if let Ok(snapshot) = Snapshot::parse(&text) {
                prop_assert_eq!(Snapshot::parse(&snapshot.to_string()).unwrap(), snapshot);
            }
        }
    }
}
