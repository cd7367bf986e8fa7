//! The cursor: up to where all is settled, as snapshots and not as numbers. The heart of the product. Pure.
//!
//! A row's transaction ends in another order than ids are drawn, so no comparison of ids says what has been read.
//! What became visible between two snapshots does: rows whose transaction the later one sees and the earlier one does not.
//! Within such a window, ids ascend in the order of inserts, and an event that was committed before another of its
//! stream was inserted has the smaller id. Nothing else may compare ids: `RowId` and `Xid` have no `Ord`.

use super::event::RowId;
use super::snapshot::{Snapshot, SnapshotError};
use std::fmt;

/// A place in reading.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Cursor {
    /// Everything that `s` sees is settled.
    Closed {
        /// The end of the last window.
        s: Snapshot,
    },
    /// Everything that `s` sees is settled, and of the window from `s` to `t` the rows up to `after`.
    Open {
        /// The end of the window before.
        s: Snapshot,
        /// The fixed end of this window.
        t: Snapshot,
        /// Means something under this `t` only.
        after: RowId,
    },
}

/// What one read brought, as far as the cursor needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// The read returned all that there was to read.
    Whole,
    /// The read stopped at this row, because of its limit in rows or bytes: there may be more.
    UpTo(RowId),
}

/// Why three texts are not a [`Cursor`].
#[derive(Debug, thiserror::Error)]
pub enum CursorError {
    /// A snapshot is none.
    #[error("the cursor holds no snapshot")]
    Snapshot(#[source] SnapshotError),
    /// `t` without `after`, or the other way round.
    #[error("`t` and `after` are written together")]
    Torn,
}

impl Cursor {
    /// Before the first event: nothing is settled.
    pub fn earliest() -> Self {
        Self::Closed { s: Snapshot::before_all() }
    }

    /// Reads the three columns of a cursor row.
    pub fn parse(s: &str, t: Option<&str>, after: Option<i64>) -> Result<Self, CursorError> {
        let s = Snapshot::parse(s).map_err(CursorError::Snapshot)?;
        match (t, after) {
            (None, None) => Ok(Self::Closed { s }),
            (Some(t), Some(after)) => {
                let t = Snapshot::parse(t).map_err(CursorError::Snapshot)?;
                Ok(Self::Open { s, t, after: RowId::new(after) })
            }
            _ => Err(CursorError::Torn),
        }
    }

    /// The snapshot of which everything is settled.
    pub fn s(&self) -> &Snapshot {
        match self {
            Self::Closed { s } | Self::Open { s, .. } => s,
        }
    }

    /// The open window's end, if one is open.
    pub fn t(&self) -> Option<&Snapshot> {
        match self {
            Self::Closed { .. } => None,
            Self::Open { t, .. } => Some(t),
        }
    }

    /// The last settled row of the open window, if one is open.
    pub fn after(&self) -> Option<RowId> {
        match self {
            Self::Closed { .. } => None,
            Self::Open { after, .. } => Some(*after),
        }
    }

    /// Where reading stands after a window was opened, by a statement whose snapshot was `seen`.
    ///
    /// | read | next |
    /// |---|---|
    /// | whole | closed at `seen` |
    /// | up to a row | the window from `S` to `seen` is open behind that row |
    #[must_use]
    pub fn after_first(&self, seen: &Snapshot, extent: Extent) -> Self {
        match extent {
            Extent::Whole => Self::Closed { s: seen.clone() },
            Extent::UpTo(after) => Self::Open { s: self.s().clone(), t: seen.clone(), after },
        }
    }

    /// Where reading stands after a page of an open window, which looked at the ids up to `bound` and at none beyond `upto`, the window's last.
    ///
    /// | read | bound | next |
    /// |---|---|---|
    /// | up to a row | any | behind that row |
    /// | whole | before the end | behind the bound |
    /// | whole | at the end | closed at `T` |
    ///
    /// A closed cursor has no pages and stays as it is.
    #[must_use]
    pub fn after_page(&self, bound: RowId, upto: RowId, extent: Extent) -> Self {
        let Self::Open { s, t, .. } = self else { return self.clone() };
        match extent {
            Extent::UpTo(after) => Self::Open { s: s.clone(), t: t.clone(), after },
            Extent::Whole if bound.get() < upto.get() => Self::Open { s: s.clone(), t: t.clone(), after: bound },
            Extent::Whole => Self::Closed { s: t.clone() },
        }
    }

    /// The position that is true once the event at `id` and all before it are settled, in a window that ends at `end`.
    #[must_use]
    pub fn at(&self, end: &Snapshot, id: RowId) -> Self {
        Self::Open { s: self.s().clone(), t: end.clone(), after: id }
    }

    /// The last id that a page behind `after` looks at. Without a bound the last page of a window would filter everything newer.
    pub fn page_bound(after: RowId, upto: RowId) -> RowId {
        RowId::new(after.get().saturating_add(PAGE_SPAN).min(upto.get()))
    }

    /// Whether a row of a window comes behind another one of it.
    pub fn is_behind(row: RowId, other: RowId) -> bool {
        row.get() > other.get()
    }

    /// Behind which row to go on when nothing of the window lies up to `bound` and `next` is the first id beyond it (ids have gaps of any size).
    pub fn behind_gap(bound: RowId, next: Option<RowId>) -> RowId {
        next.map_or(bound, |next| RowId::new(bound.get().max(next.get().saturating_sub(1))))
    }
}

/// S, and T and after inside a large window.
impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed { s } => write!(f, "{s}"),
            Self::Open { s, t, after } => write!(f, "{s} {t} {after}"),
        }
    }
}

/// How many ids a page looks at: at 8 rows to a heap page this is 100 MB in the worst case, and far more than a page returns.
const PAGE_SPAN: i64 = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(text: &str) -> Snapshot {
        Snapshot::parse(text).unwrap()
    }

    fn open(s: &str, t: &str, after: i64) -> Cursor {
        Cursor::parse(s, Some(t), Some(after)).unwrap()
    }

    #[test]
    fn a_small_window_closes_at_its_snapshot() {
        let next = Cursor::earliest().after_first(&snapshot("9:12:9"), Extent::Whole);
        assert_eq!(next, Cursor::parse("9:12:9", None, None).unwrap());
    }

    #[test]
    fn a_large_window_stays_open_under_its_first_snapshot() {
        let opened = Cursor::earliest().after_first(&snapshot("9:12:9"), Extent::UpTo(RowId::new(7)));
        assert_eq!(opened, open("3:3:", "9:12:9", 7));
        let id = RowId::new;
        assert_eq!(opened.after_page(id(20), id(50), Extent::UpTo(id(15))), open("3:3:", "9:12:9", 15));
        assert_eq!(opened.after_page(id(20), id(50), Extent::Whole), open("3:3:", "9:12:9", 20));
        assert_eq!(opened.after_page(id(50), id(50), Extent::Whole), Cursor::parse("9:12:9", None, None).unwrap());
    }

    #[test]
    fn a_page_stops_at_the_end_of_its_window() {
        let bound = |after, upto| Cursor::page_bound(RowId::new(after), RowId::new(upto)).get();
        assert_eq!(bound(0, 5), 5);
        assert_eq!(bound(7, 1_000_000), 100_007);
        assert_eq!(bound(i64::MAX - 1, i64::MAX), i64::MAX);
    }

    #[test]
    fn a_gap_of_any_size_takes_one_step() {
        let behind = |bound, next: Option<i64>| Cursor::behind_gap(RowId::new(bound), next.map(RowId::new)).get();
        assert_eq!(behind(100, None), 100);
        assert_eq!(behind(100, Some(101)), 100);
        assert_eq!(behind(100, Some(9_000_000)), 8_999_999);
    }

    #[test]
    fn half_a_place_is_refused() {
        assert!(matches!(Cursor::parse("3:3:", Some("3:4:"), None), Err(CursorError::Torn)));
        assert!(matches!(Cursor::parse("3:3:", None, Some(1)), Err(CursorError::Torn)));
        assert!(matches!(Cursor::parse("3", None, None), Err(CursorError::Snapshot(_))));
    }
}
