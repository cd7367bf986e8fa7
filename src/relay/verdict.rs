//! Trouble to verdict: what to do next, how long to wait, what to say. Pure.

use super::status::LaneState;
use crate::backoff::Backoff;
use crate::db::{DbError, DbErrorKind};
use crate::sink::{SendError, SendErrorKind};
use crate::source::SourceError;
use crate::store::cursor::{CursorRowError, Saved};
use crate::store::guards::Refusal;
use std::time::Duration;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// Postgres.
    #[error(transparent)]
    Db(DbError),
    /// The reader.
    #[error(transparent)]
    Source(SourceError),
    /// The cursor row.
    #[error(transparent)]
    Row(CursorRowError),
    /// A guard.
    #[error(transparent)]
    Refused(Refusal),
    /// Kafka.
    #[error(transparent)]
    Send(SendError),
    /// A newer holder has the lease.
    #[error("another relay has taken the lease")]
    Fenced,
    /// The lease could not be renewed in time.
    #[error("the lease could not be renewed within {}", humantime::format_duration(*.0))]
    LeaseLost(Duration),
    /// The row was written where it should not have been.
    #[error("cursor saved in a sub-transaction or on another timeline: a fail-over under the connection, or a defect")]
    Displaced,
    /// An event that was to be parked is not in the table any more.
    #[error(
        "an event that was to be parked is no longer in the outbox: somebody deletes events that are not delivered"
    )]
    EventGone,
    /// Kafka refuses events, and it is known which: the next session parks them, or stands at them.
    #[error("Kafka refuses an event: {0}")]
    Found(SendError),
    /// A topic's limit is below the size of the producer's batches.
    #[error("a topic takes batches of {0} bytes at most")]
    BatchTooLarge(usize),
    /// The event that Kafka refused among others passed alone, or all of them did.
    #[error("every event passed alone")]
    CarefulDone,
}

/// What a save says, as far as it ends a session.
pub fn saved(saved: Saved) -> Result<(), Trouble> {
    match saved {
        Saved::Renewed => Ok(()),
        Saved::Fenced => Err(Trouble::Fenced),
        Saved::Displaced => Err(Trouble::Displaced),
        Saved::EventGone => Err(Trouble::EventGone),
    }
}

/// How the next session goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Like this one.
    Again,
    /// With one event at a time, to find the one that fails.
    Carefully,
    /// With smaller batches.
    Smaller(usize),
    /// At full speed again.
    Normally,
}

/// What to do about [`Trouble`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// How the next session goes.
    pub next: Next,
    /// How long to wait before it; `None` is not at all.
    pub wait: Option<Backoff>,
    /// What the lane is, meanwhile.
    pub state: LaneState,
    /// One word for the metric.
    pub kind: &'static str,
    /// The next step, for the operator.
    pub hint: Option<String>,
}

/// Databases come back within seconds.
const DATABASE: Backoff = Backoff { first: Duration::from_millis(50), most: Duration::from_secs(5) };
/// A broker's troubles take longer, and each try makes a producer.
const ENVIRONMENT: Backoff = Backoff { first: Duration::from_secs(1), most: Duration::from_mins(1) };
/// Somebody has to act; a look is cheap.
const OPERATOR: Backoff = Backoff { first: Duration::from_secs(1), most: Duration::from_secs(10) };

/// Judges.
///
/// | trouble | next | wait |
/// |---|---|---|
/// | Postgres away | again | 50 ms to 5 s |
/// | Postgres refuses us, or a guard does | again | 1 s to 10 s |
/// | Kafka's environment, or unknown | again | 1 s to 60 s |
/// | Kafka refuses a record among others | carefully | none |
/// | Kafka refuses a record, and it is known which | again: the policy of its route decides | none |
/// | an event to be parked was deleted by somebody | again | 1 s to 10 s |
/// | the producer is fatally broken | again | 50 ms to 5 s |
/// | fenced, or the lease was lost | again, as a standby | 50 ms to 5 s |
pub fn judge(trouble: &Trouble) -> Verdict {
    let verdict = |next, wait, state, kind, hint: Option<&str>| Verdict {
        next,
        wait,
        state,
        kind,
        hint: hint.map(str::to_owned),
    };
    match trouble {
        Trouble::Db(error) | Trouble::Source(SourceError::Db(error)) | Trouble::Row(CursorRowError::Db(error)) => {
            let (wait, state) = match error.kind() {
                DbErrorKind::Unavailable | DbErrorKind::Busy => (DATABASE, LaneState::Waiting),
                DbErrorKind::WrongServer | DbErrorKind::Schema | DbErrorKind::Denied => (OPERATOR, LaneState::Refused),
                DbErrorKind::Rejected | DbErrorKind::Other => (OPERATOR, LaneState::Waiting),
            };
            verdict(Next::Again, Some(wait), state, "postgres", error.hint())
        }
        Trouble::Source(SourceError::OwnTransaction | SourceError::Disorder | SourceError::Snapshot(_))
        | Trouble::Row(CursorRowError::Cursor { .. })
        | Trouble::Displaced => verdict(Next::Again, Some(OPERATOR), LaneState::Refused, "defect", None),
        Trouble::Refused(refusal) => {
            verdict(Next::Again, Some(OPERATOR), LaneState::Refused, "guard", refusal.hint.as_deref())
        }
        Trouble::Send(error) => match error.kind {
            SendErrorKind::Environment | SendErrorKind::NotMine => {
                verdict(Next::Again, Some(ENVIRONMENT), LaneState::Waiting, "kafka", error.hint.as_deref())
            }
            SendErrorKind::Rejection => {
                verdict(Next::Carefully, None, LaneState::Starting, "rejection", error.hint.as_deref())
            }
            SendErrorKind::Fatal => {
                verdict(Next::Again, Some(DATABASE), LaneState::Waiting, "producer", error.hint.as_deref())
            }
            SendErrorKind::Fenced => {
                verdict(Next::Again, Some(ENVIRONMENT), LaneState::Waiting, "fenced", error.hint.as_deref())
            }
        },
        Trouble::Found(_) => verdict(Next::Again, None, LaneState::Starting, "rejection", None),
        Trouble::EventGone => {
            let hint = "stop whoever cleans up outbox.events; outboxd goes on behind the missing event";
            verdict(Next::Again, Some(OPERATOR), LaneState::Refused, "event_gone", Some(hint))
        }
        Trouble::Fenced => verdict(Next::Again, Some(DATABASE), LaneState::Starting, "fenced", None),
        Trouble::LeaseLost(_) => {
            verdict(Next::Again, Some(DATABASE), LaneState::Waiting, "lease", Some("check Postgres and the way to it"))
        }
        Trouble::BatchTooLarge(bytes) => verdict(Next::Smaller(*bytes), None, LaneState::Starting, "batch_size", None),
        Trouble::CarefulDone => verdict(Next::Normally, None, LaneState::Starting, "careful_done", None),
    }
}

/// Trouble and its causes, in one line.
pub fn reason(trouble: &Trouble) -> String {
    let error: &dyn std::error::Error = trouble;
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let words = next.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(kind: SendErrorKind) -> SendError {
        SendError { kind, code: "X".into(), what: "x".into(), hint: None }
    }

    #[test]
    fn what_is_not_the_events_fault_waits_and_what_is_does_not() {
        let table = [
            (Trouble::Send(send(SendErrorKind::Environment)), Next::Again, LaneState::Waiting, Some(ENVIRONMENT)),
            (Trouble::Send(send(SendErrorKind::NotMine)), Next::Again, LaneState::Waiting, Some(ENVIRONMENT)),
            (Trouble::Send(send(SendErrorKind::Rejection)), Next::Carefully, LaneState::Starting, None),
            (Trouble::Send(send(SendErrorKind::Fatal)), Next::Again, LaneState::Waiting, Some(DATABASE)),
            (Trouble::Found(send(SendErrorKind::Rejection)), Next::Again, LaneState::Starting, None),
            (Trouble::EventGone, Next::Again, LaneState::Refused, Some(OPERATOR)),
            (Trouble::Fenced, Next::Again, LaneState::Starting, Some(DATABASE)),
            (Trouble::LeaseLost(Duration::from_secs(8)), Next::Again, LaneState::Waiting, Some(DATABASE)),
            (Trouble::BatchTooLarge(5_000), Next::Smaller(5_000), LaneState::Starting, None),
            (Trouble::CarefulDone, Next::Normally, LaneState::Starting, None),
            (Trouble::Source(SourceError::OwnTransaction), Next::Again, LaneState::Refused, Some(OPERATOR)),
            (Trouble::Displaced, Next::Again, LaneState::Refused, Some(OPERATOR)),
        ];
        for (trouble, next, state, wait) in table {
            let verdict = judge(&trouble);
            assert_eq!((verdict.next, verdict.state, verdict.wait), (next, state, wait), "{trouble}");
        }
    }
}
