//! Is this the database in which the cursor was saved, and may we read it? Looks, judges, writes nothing.
//!
//! Looked at at every connect, before anything is read. What has to hold all the time is in `standing.rs`.

use crate::config::outbox::Start;
use crate::db::{DbError, Session};
use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::postgres::types::Oid;

/// A guard's verdict that stops the lane: do not read, stay up, not ready, say why, look again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What is wrong.
    pub message: String,
    /// The next step.
    pub hint: Option<String>,
}

impl Refusal {
    /// Rows that a policy hides would be passed by the cursor, and never be seen again.
    pub fn hidden_rows(role: &str) -> Self {
        let hint = format!("alter role {role} bypassrls");
        Self::new(format!("row-level security hides events from {role}"), hint)
    }

    fn new(message: String, hint: impl Into<String>) -> Self {
        Self { message, hint: Some(hint.into()) }
    }
}

/// What the server says of itself and of the cursor row, in one look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// First eight digits of the WAL file's name.
    pub timeline: String,
    /// Of the cluster.
    pub system_id: i64,
    /// Of the database.
    pub database_oid: Oid,
    /// Row-level security would hide events from us.
    pub hidden: bool,
    /// The transaction that is next, for messages.
    pub next_xid: String,
    /// `None` before the first start of this outbox.
    pub cursor: Option<CursorRow>,
    /// Whether any outbox has a cursor here.
    pub any_cursor: bool,
}

/// The evidence in a cursor row.
#[expect(clippy::struct_excessive_bools, reason = "each is one answer of the server")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CursorRow {
    /// The row was written by this incarnation of the database.
    pub ours: bool,
    /// `xmin` and `saved_xid`, for messages.
    pub xmin: String,
    /// See `xmin`.
    pub saved_xid: String,
    /// The WAL has not gone back since the save.
    pub wal_forward: bool,
    /// Transaction ids have not gone back since the save.
    pub xid_forward: bool,
    /// The largest transaction id that the cursor knows, for messages.
    pub known_xid: String,
    /// As saved.
    pub system_id: i64,
    /// As saved.
    pub database_oid: Oid,
    /// As saved.
    pub timeline: String,
    /// Number of the last right to move it.
    pub epoch: i64,
    /// Number of lanes of the outbox.
    pub lanes: i16,
    /// Into which Kafka cluster the events went.
    pub kafka_cluster: Option<String>,
    /// Who holds the lease.
    pub owner: Option<String>,
    /// Until when, in the server's words.
    pub lease_until: Option<String>,
    /// By the server's clock.
    pub expired: bool,
    /// The cursor as text, for status.
    pub position: String,
    /// When it was saved, in the server's words.
    pub saved_at: String,
}

const PLACE: &str = "
    select substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) as timeline, i.system_identifier, d.oid,
           row_security_active('outbox.events') as hidden, pg_snapshot_xmax(pg_current_snapshot())::text as next_xid,
           exists (select from outbox.cursors) as any_cursor,
           c.outbox, c.xmin = c.saved_xid::xid as ours, c.xmin::text as xmin, c.saved_xid::text as saved_xid,
           pg_current_wal_insert_lsn() >= c.saved_lsn as wal_forward,
           pg_snapshot_xmax(pg_current_snapshot()) >= greatest(pg_snapshot_xmax(c.s), pg_snapshot_xmax(c.t)) as xid_forward,
           greatest(pg_snapshot_xmax(c.s), pg_snapshot_xmax(c.t))::text as known_xid,
           c.system_id, c.database_oid, c.timeline as saved_timeline, c.epoch, c.lanes, c.kafka_cluster,
           c.owner, c.lease_until::text as lease_until, coalesce(c.lease_until < clock_timestamp(), false) as expired,
           concat_ws(' ', c.s::text, c.t::text, c.after::text) as position, c.saved_at::text as saved_at
      from pg_control_system() i join pg_database d on d.datname = current_database()
      left join outbox.cursors c on c.outbox = $1 and c.lane = $2";

/// Looks at the server and at the cursor row.
///
/// # Errors
/// Those of the server; a missing schema among them.
pub async fn place(session: &mut Session, outbox: &str, lane: crate::outbox::lane::LaneId) -> Result<Place, DbError> {
    let doing = "looking at the cursor";
    let statement = sqlx::query(PLACE).bind(outbox).bind(lane.get()).fetch_one(&mut session.connection);
    let row = Session::brief(doing, statement).await?;
    read_place(&row).map_err(DbError::during(doing))
}

fn read_place(row: &PgRow) -> Result<Place, sqlx::Error> {
    let there: Option<&str> = row.try_get("outbox")?;
    Ok(Place {
        timeline: row.try_get("timeline")?,
        system_id: row.try_get("system_identifier")?,
        database_oid: row.try_get("oid")?,
        hidden: row.try_get("hidden")?,
        next_xid: row.try_get("next_xid")?,
        any_cursor: row.try_get("any_cursor")?,
        cursor: there.map(|_| read_cursor_row(row)).transpose()?,
    })
}

fn read_cursor_row(row: &PgRow) -> Result<CursorRow, sqlx::Error> {
    Ok(CursorRow {
        ours: row.try_get("ours")?,
        xmin: row.try_get("xmin")?,
        saved_xid: row.try_get("saved_xid")?,
        wal_forward: row.try_get("wal_forward")?,
        xid_forward: row.try_get("xid_forward")?,
        known_xid: row.try_get("known_xid")?,
        system_id: row.try_get("system_id")?,
        database_oid: row.try_get("database_oid")?,
        timeline: row.try_get("saved_timeline")?,
        epoch: row.try_get("epoch")?,
        lanes: row.try_get("lanes")?,
        kafka_cluster: row.try_get("kafka_cluster")?,
        owner: row.try_get("owner")?,
        lease_until: row.try_get("lease_until")?,
        expired: row.try_get("expired")?,
        position: row.try_get("position")?,
        saved_at: row.try_get("saved_at")?,
    })
}

/// What an operator should know although the relay goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// Nothing.
    AsBefore,
    /// The cluster is another one, the cursor intact: `pg_upgrade`, or a move.
    Moved {
        /// Saved system identifier.
        from: i64,
        /// That of this cluster.
        to: i64,
    },
    /// The timeline is another one: a fail-over.
    FailedOver {
        /// Saved timeline.
        from: String,
        /// The one now.
        to: String,
    },
}

/// Judges whether the cursor fits this database. Pure.
///
/// | cursor row | verdict |
/// |---|---|
/// | rows are hidden from us | refuse |
/// | none yet | go |
/// | not written by this incarnation | refuse: restored or copied |
/// | transaction ids went back, or the WAL of the same cluster and timeline did | refuse |
/// | same cluster, other database | refuse: a copy |
/// | other Kafka cluster | refuse |
/// | more than one lane | refuse: not in this version |
/// | other cluster | go, moved |
/// | other timeline | go, failed over |
///
/// # Errors
/// The [`Refusal`], with the command that mends it.
pub fn judge_place(place: &Place, outbox: &str, role: &str, kafka_cluster: &str) -> Result<Note, Refusal> {
    if place.hidden {
        return Err(Refusal::hidden_rows(role));
    }
    let Some(row) = &place.cursor else { return Ok(Note::AsBefore) };
    if let Some(refusal) = foreign(place, row, outbox) {
        return Err(refusal);
    }
    if let Some(saved) = row.kafka_cluster.as_deref().filter(|saved| *saved != kafka_cluster) {
        return Err(other_cluster(saved, kafka_cluster));
    }
    if row.lanes != 1 {
        return Err(Refusal::new(
            format!("the cursor has {} lanes, this outboxd works outboxes of one lane only", row.lanes),
            "use the version of outboxd that made them",
        ));
    }
    Ok(match (row.system_id == place.system_id, row.timeline == place.timeline) {
        (false, _) => Note::Moved { from: row.system_id, to: place.system_id },
        (true, false) => Note::FailedOver { from: row.timeline.clone(), to: place.timeline.clone() },
        (true, true) => Note::AsBefore,
    })
}

/// Where the first cursor of an outbox begins. The first one on the table needs no `start`: nothing was published yet.
///
/// # Errors
/// There are others, and nobody says where this one begins.
pub fn beginning(outbox: &str, start: Option<Start>) -> Result<Start, Refusal> {
    start.ok_or_else(|| {
        Refusal::new(
            format!("outbox {outbox} has no cursor, and others have: a new one, or a renamed one?"),
            "say `start = \"earliest\"` or `start = \"latest\"` in its [[outbox]], or give it the old name",
        )
    })
}

/// Whether an outbox has a cursor, or may begin.
///
/// # Errors
/// See [`beginning`].
pub fn may_begin(place: &Place, outbox: &str, start: Option<Start>) -> Result<(), Refusal> {
    if place.cursor.is_some() || !place.any_cursor { Ok(()) } else { beginning(outbox, start).map(drop) }
}

/// The events went into the Kafka cluster `saved`.
pub fn other_cluster(saved: &str, connected: &str) -> Refusal {
    let message =
        format!("cursor belongs to Kafka cluster {saved}, connected to {connected}, where these events never were");
    Refusal::new(message, "if that is meant: outboxd cursor rebase --kafka")
}

fn foreign(place: &Place, row: &CursorRow, outbox: &str) -> Option<Refusal> {
    let same_cluster = row.system_id == place.system_id;
    let same_timeline = same_cluster && row.timeline == place.timeline;
    let rebase = "run: outboxd cursor rebase";
    if !row.ours {
        let message = format!(
            "the cursor of {outbox} was not written here (xmin {}, saved {}): restored, copied or rewritten; new events would look delivered",
            row.xmin, row.saved_xid
        );
        return Some(Refusal::new(message, rebase));
    }
    if !row.xid_forward {
        let message = format!("transaction ids went back (database {}, cursor {})", place.next_xid, row.known_xid);
        return Some(Refusal::new(message, rebase));
    }
    if same_timeline && !row.wal_forward {
        let message =
            "the WAL went back behind the saved cursor: an older state of this database was put back".to_owned();
        return Some(Refusal::new(message, rebase));
    }
    if same_cluster && row.database_oid != place.database_oid {
        let message = format!("copy of database {}: both would publish", row.database_oid.0);
        return Some(Refusal::new(message, "if that is meant: outboxd cursor rebase"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> CursorRow {
        CursorRow {
            ours: true,
            xmin: "700".into(),
            saved_xid: "700".into(),
            wal_forward: true,
            xid_forward: true,
            known_xid: "701".into(),
            system_id: 1,
            database_oid: Oid(5),
            timeline: "00000001".into(),
            epoch: 1,
            lanes: 1,
            kafka_cluster: Some("k1".into()),
            owner: None,
            lease_until: None,
            expired: false,
            position: String::new(),
            saved_at: String::new(),
        }
    }

    fn judge(change: impl FnOnce(&mut Place, &mut CursorRow)) -> Result<Note, String> {
        let mut row = row();
        let mut place = Place {
            timeline: "00000001".into(),
            system_id: 1,
            database_oid: Oid(5),
            hidden: false,
            next_xid: "800".into(),
            cursor: None,
            any_cursor: true,
        };
        change(&mut place, &mut row);
        place.cursor = Some(row);
        judge_place(&place, "shop", "outboxd", "k1")
            .map_err(|refusal| format!("{refusal}; {}", refusal.hint.as_deref().unwrap_or_default()))
    }

    #[test]
    fn a_cursor_goes_on_only_where_it_was_saved() {
        let failed_over = Note::FailedOver { from: "00000001".into(), to: "00000002".into() };
        assert_eq!(judge(|_, _| ()), Ok(Note::AsBefore));
        assert_eq!(judge(|place, _| place.system_id = 2), Ok(Note::Moved { from: 1, to: 2 }));
        assert_eq!(judge(|place, _| place.timeline = "00000002".into()), Ok(failed_over.clone()));
        assert_eq!(judge(|_, row| row.kafka_cluster = None), Ok(Note::AsBefore));
        let refused = [
            (judge(|_, row| row.ours = false), "was not written here (xmin 700, saved 700)"),
            (judge(|_, row| row.xid_forward = false), "transaction ids went back (database 800, cursor 701)"),
            (judge(|_, row| row.wal_forward = false), "the WAL went back behind the saved cursor"),
            (judge(|place, _| place.database_oid = Oid(6)), "copy of database 5: both would publish"),
            (
                judge(|_, row| row.kafka_cluster = Some("k0".into())),
                "cursor belongs to Kafka cluster k0, connected to k1",
            ),
            (judge(|_, row| row.lanes = 4), "the cursor has 4 lanes, this outboxd works outboxes of one lane only"),
            (
                judge(|place, _| place.hidden = true),
                "row-level security hides events from outboxd; alter role outboxd bypassrls",
            ),
        ];
        for (verdict, message) in refused {
            assert!(verdict.as_ref().is_err_and(|text| text.contains(message)), "{verdict:?} does not say {message}");
        }
    }

    #[test]
    fn a_wal_that_went_back_elsewhere_says_nothing() {
        let failed_over = Note::FailedOver { from: "00000001".into(), to: "00000002".into() };
        assert_eq!(
            judge(|place, row| (place.timeline = "00000002".into(), row.wal_forward = false).0),
            Ok(failed_over.clone())
        );
        assert_eq!(
            judge(|place, row| (place.system_id = 2, row.wal_forward = false).0),
            Ok(Note::Moved { from: 1, to: 2 })
        );
    }
}
