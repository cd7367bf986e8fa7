//! What the reader waits for between two reads: the clock, or, when its outbox has a doorbell, a writer that rings.
//!
//! The doorbell spares reads and never decides what is read. Its statements run beside the reading, never in its way, and without it
//! the reader polls. Awake, it polls too: with traffic, and while a writer's transaction is open, a ring would only cost.

use super::desk::Desk;
use super::pending::{Pending, later, pending};
use super::status::DoorbellState;
use crate::backoff::Backoff;
use crate::config::relay::Poll;
use crate::config::secret::Secret;
use crate::db::Server;
use crate::naps::nap;
use crate::source::poll::doorbell::{Deaf, LaidDown, Sleeper, Woken};
use crate::source::poll::pace::{Pace, Traffic};
use crate::telemetry::changes;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// So many reads without an event, and it is time to sleep: with the default pauses, 6 ms.
const EMPTY_READS: u32 = 3;
/// While a writer's transaction is open its events may come at any moment; at first they are looked for this often.
const WRITER_ACTIVE: Duration = Duration::from_millis(5);
/// Longest pause of one who is to be woken and is not asleep: `poll.max` is long where a doorbell hangs, and nobody rings now.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// How long the reader waits until writers have been told that it is up: they answer at once, or it goes on without.
const GETTING_UP: Duration = Duration::from_millis(20);
/// Between two tries to hear the bell.
const RETRY: Backoff = Backoff { first: Duration::from_millis(50), most: Duration::from_secs(5) };
const POLLING: &str = "the relay polls until it hears the doorbell, at most every 250 ms";

/// See the module.
pub struct Waker {
    pace: Pace,
    bell: Option<Bell>,
}

/// Whose doorbell it is, and where.
pub struct Door {
    /// Where Postgres is.
    pub url: Secret,
    /// The server that the events are read from.
    pub reader: Server,
    /// Where to say how it goes; of the lane that reads.
    pub desk: Arc<Desk>,
}

struct Bell {
    door: Door,
    longest_sleep: Duration,
    /// The connection, when it is not at work. Neither: it is away.
    stage: Option<Stage>,
    working: Pending<Result<Stage, Deaf>>,
    /// How often a writer was found active, one time after the other.
    refusals: u32,
    failures: u32,
    retry_at: Instant,
    /// Why it is away, as it was told.
    said: Option<String>,
}

enum Stage {
    /// Writers do not ring.
    Up(Sleeper),
    /// A writer was active when it was tried.
    Refused(Sleeper),
    /// Writers ring; what was written before is still to be read.
    Down(Sleeper),
}

impl Waker {
    /// Waits as `bounds` say; with a door, for its bell.
    pub fn new(bounds: Poll, door: Option<Door>) -> Self {
        Self { pace: Pace::new(bounds), bell: door.map(|door| Bell::new(door, bounds.max)) }
    }

    /// Waits until it is time for the next read, when the last one `took` so long.
    pub async fn wait(&mut self, traffic: Traffic, took: Duration) {
        let pause = self.pace.after(traffic, took);
        match &mut self.bell {
            Some(bell) => bell.wait(traffic, self.pace.empty_reads(), pause).await,
            None => nap(pause).await,
        }
    }

    /// Nobody has to ring for the reader, which is busy: or will be, with handing over what it has read.
    pub async fn stay_up(&mut self) {
        if let Some(bell) = &mut self.bell {
            bell.get_up().await;
        }
    }
}

impl Bell {
    fn new(door: Door, longest_sleep: Duration) -> Self {
        door.desk.doorbell(Some(DoorbellState::Away), None);
        Self {
            door,
            longest_sleep,
            stage: None,
            working: None,
            refusals: 0,
            failures: 0,
            retry_at: Instant::now(),
            said: None,
        }
    }

    async fn wait(&mut self, traffic: Traffic, empty_reads: u32, pause: Duration) {
        if traffic != Traffic::None {
            self.refusals = 0;
        }
        match self.stage.take() {
            Some(Stage::Down(sleeper)) if traffic == Traffic::None => return self.sleep(sleeper).await,
            Some(Stage::Up(sleeper) | Stage::Refused(sleeper)) if empty_reads >= EMPTY_READS => {
                self.working = Some(Box::pin(lie_down(sleeper)));
            }
            None if self.working.is_none() && Instant::now() >= self.retry_at => self.connect(),
            stage => self.stage = stage,
        }
        self.pass(pause.min(LONGEST_PAUSE)).await;
    }

    /// Lets time pass, and the doorbell do what it is at. Back earlier, to read, when it has laid down.
    async fn pass(&mut self, pause: Duration) {
        let mut time = std::pin::pin!(nap(pause));
        loop {
            tokio::select! {
                biased;
                done = pending(&mut self.working) => self.done(done),
                () = &mut time => return,
            }
            match self.stage {
                Some(Stage::Down(_)) => return,
                Some(Stage::Refused(_)) => time.set(nap(self.writer_active())),
                Some(Stage::Up(_)) | None => {}
            }
        }
    }

    fn writer_active(&mut self) -> Duration {
        let doubled = WRITER_ACTIVE.saturating_mul(1_u32.checked_shl(self.refusals).unwrap_or(u32::MAX));
        self.refusals = self.refusals.saturating_add(1);
        doubled.min(LONGEST_PAUSE).min(self.longest_sleep)
    }

    async fn sleep(&mut self, mut sleeper: Sleeper) {
        self.door.desk.doorbell(Some(DoorbellState::Asleep), None);
        let woken = sleeper.sleep(self.longest_sleep).await;
        self.door.desk.doorbell(Some(DoorbellState::Awake), None);
        if woken.is_ok() {
            self.failures = 0;
        }
        match woken {
            Ok(Woken::Rung) => {
                self.door.desk.metrics.doorbell_rings.inc();
                self.stage = Some(Stage::Down(sleeper));
                self.get_up().await;
            }
            // Writers ring all the while: to look, it need not get up.
            Ok(Woken::Time) => self.stage = Some(Stage::Down(sleeper)),
            Err(deaf) => self.lost(&deaf),
        }
    }

    async fn get_up(&mut self) {
        match self.stage.take() {
            Some(Stage::Down(sleeper)) => {
                self.working = Some(Box::pin(get_up(sleeper)));
                tokio::select! {
                    biased;
                    done = pending(&mut self.working) => self.done(done),
                    () = tokio::time::sleep(GETTING_UP) => {}
                }
            }
            stage => self.stage = stage,
        }
    }

    fn connect(&mut self) {
        let (url, reader, outbox) =
            (self.door.url.clone(), self.door.reader.clone(), self.door.desk.outbox().to_owned());
        self.working = Some(Box::pin(async move { Sleeper::listen(&url, &outbox, &reader).await.map(Stage::Up) }));
    }

    /// A statement of it, or a try to connect, has ended.
    fn done(&mut self, done: Result<Stage, Deaf>) {
        self.working = None;
        match done {
            Ok(stage) => {
                self.stage = Some(stage);
                self.said = None;
                let desk = &self.door.desk;
                if desk.doorbell(Some(DoorbellState::Awake), None) == Some(DoorbellState::Away) {
                    changes::doorbell_heard(desk.outbox(), desk.lane());
                }
            }
            Err(deaf) => self.lost(&deaf),
        }
    }

    /// Says it once for each reason; how a connection broke, or was not made, is no other reason.
    fn lost(&mut self, deaf: &Deaf) {
        self.retry_at = later(Instant::now(), RETRY.pause(self.failures, rand::random()));
        self.failures = self.failures.saturating_add(1);
        let desk = &self.door.desk;
        let (reason, hint) = match deaf {
            Deaf::Db(_) => ("no connection".to_owned(), None),
            Deaf::Unrung(unrung) => (unrung.to_string(), Some(unrung.hint(desk.outbox()))),
        };
        let trouble = hint.as_ref().map_or_else(|| deaf.to_string(), |hint| format!("{deaf}; {hint}"));
        desk.doorbell(Some(DoorbellState::Away), Some(trouble));
        if self.said.replace(reason.clone()) != Some(reason) {
            changes::doorbell_away(desk.outbox(), desk.lane(), &deaf.to_string(), hint.as_deref(), POLLING);
        }
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        self.door.desk.doorbell(None, None); // nobody reads now
    }
}

async fn lie_down(sleeper: Sleeper) -> Result<Stage, Deaf> {
    Ok(match sleeper.lie_down().await? {
        LaidDown::Down(sleeper) => Stage::Down(sleeper),
        LaidDown::WriterActive(sleeper) => Stage::Refused(sleeper),
    })
}

async fn get_up(sleeper: Sleeper) -> Result<Stage, Deaf> {
    sleeper.get_up().await.map(Stage::Up)
}
