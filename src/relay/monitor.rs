//! Looks on, on a connection of its own: backlog and open transactions often, the standing guards every minute.

use super::desk::Desk;
use super::status::LaneState;
use crate::config::secret::Secret;
use crate::db::{self, DbError, Purpose, Session};
use crate::outbox::lane::LaneId;
use crate::source::poll::backlog;
use crate::store::guards::Refusal;
use crate::store::{holders, standing};
use crate::telemetry::changes;
use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How often backlog and open transactions are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often the standing guards are; as often as the rest while one of them forbids reading.
const GUARD_EVERY: Duration = Duration::from_mins(1);
/// After an error the lane is mostly in the same trouble, and says so. Where it is well after this time, the monitor alone is in trouble.
const AFTER_ERROR: Duration = Duration::from_secs(2);

/// One lane's monitor.
pub struct Monitor {
    /// Where Postgres is.
    pub url: Secret,
    /// Where to put what is seen.
    pub desk: Arc<Desk>,
    /// What a standing guard says that stops the lane.
    pub refusal: watch::Sender<Option<Refusal>>,
    /// The lane.
    pub lane: LaneId,
}

impl Monitor {
    /// Looks for ever; ends only by being aborted.
    pub async fn run(self) {
        let mut said = HashSet::new();
        loop {
            let Err(error) = self.watch(&mut said).await;
            tracing::debug!(outbox = self.desk.outbox(), %error, "monitor looks again");
            self.desk.look(None);
            tokio::time::sleep(AFTER_ERROR).await;
            let message = format!("nobody can see how much waits: {error}");
            if self.desk.status().ready && said.insert(message.clone()) {
                changes::finding(self.desk.outbox(), &message, error.hint());
            }
        }
    }

    async fn watch(&self, said: &mut HashSet<String>) -> Result<Infallible, DbError> {
        let mut session = db::connect(&self.url, Purpose::Observe).await?;
        let mut guarded: Option<Instant> = None;
        let mut holders_told = HashSet::new(); // at the last look: a process id comes again
        loop {
            let pause = if self.refusal.borrow().is_some() { LOOK_EVERY } else { GUARD_EVERY };
            if guarded.is_none_or(|at| at.elapsed() >= pause) {
                self.guard(&mut session, said).await?;
                guarded = Some(Instant::now());
            }
            if self.refusal.borrow().is_some() || self.desk.status().state == LaneState::Refused {
                self.desk.look(None); // what forbids to read may forbid to look, and under a foreign cursor nobody knows what waits
                self.desk.note(|status| status.open_transactions.clear());
            } else {
                self.desk.look(Some(backlog::look(&mut session, self.desk.outbox(), self.lane).await?));
                self.holders(&mut session, &mut holders_told).await?;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn guard(&self, session: &mut Session, said: &mut HashSet<String>) -> Result<(), DbError> {
        let findings = standing::look(session, &[self.desk.outbox().to_owned()]).await?;
        let refusal = findings.iter().find_map(standing::Finding::refusal);
        // Told again as long as it holds: the lane looks only at what is told after its own look.
        self.refusal.send_if_modified(|told| refusal.is_some() | (std::mem::replace(told, refusal.clone()) != refusal));
        for finding in findings.iter().filter(|finding| finding.refusal().is_none()) {
            if said.insert(finding.message.clone()) {
                changes::finding(self.desk.outbox(), &finding.message, finding.hint.as_deref());
            }
        }
        Ok(())
    }

    async fn holders(&self, session: &mut Session, told: &mut HashSet<String>) -> Result<(), DbError> {
        let holders = holders::look(session).await?;
        let long: Vec<_> = holders.iter().filter(|holder| holder.is_long()).collect();
        let before = std::mem::replace(told, long.iter().map(|holder| holder.transaction()).collect());
        for holder in long.iter().filter(|holder| !before.contains(&holder.transaction())) {
            changes::holder(self.desk.outbox(), &holder.transaction(), holder.age_seconds, &holder.remedy());
        }
        let words = |holder: &&holders::Holder| {
            let age = humantime::format_duration(Duration::from_secs_f64(holder.age_seconds.max(0.0).round()));
            format!("{}, {age}: its own events wait, no others; {}", holder.transaction(), holder.remedy())
        };
        let open = long.iter().map(words).collect();
        self.desk.note(|status| status.open_transactions = open);
        Ok(())
    }
}
