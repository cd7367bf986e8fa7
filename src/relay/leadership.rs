//! Take, hold and lose a lease: who we are, and for how long we may send. By our own monotonic clock; only the statement compares the server's.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;
use uuid::Uuid;

/// The times that follow from the configured `relay.lease`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How long the lease is good for without a renewal, by the server's clock.
    pub ttl: Duration,
    /// How often it is renewed if no save does so.
    pub renew_every: Duration,
    /// From the sending of the last successful renewal: after this nothing is sent any more.
    pub fence: Duration,
    /// After taking an expired lease the first send waits this long: nothing of the earlier holder is then under way.
    pub hold: Duration,
    /// The producer's limit for an answer; with the fence it bounds what a fenced holder has under way.
    pub socket_timeout: Duration,
}

impl Terms {
    /// `fence + socket_timeout + 1 % of ttl <= ttl + hold` holds for every `ttl`, and `hold <= ttl`,
    /// so another machine takes over after at most twice the lease and a second.
    pub fn of(ttl: Duration) -> Self {
        let socket_timeout = ttl.clamp(Duration::from_secs(1), Duration::from_secs(10));
        Self { ttl, renew_every: ttl.mul_f64(0.3), fence: ttl.mul_f64(0.8), hold: ttl, socket_timeout }
    }
}

/// The name under which this relay holds a lease. As long as it lives, no other process has it.
#[derive(Debug)]
pub struct Owner {
    /// A random number in text.
    pub id: String,
    /// Why a killed relay could not go on at once, if so.
    pub warning: Option<String>,
    /// Locked for as long as we live; the kernel unlocks it, however we end.
    file: Option<File>,
    /// The file knows the id, if there is one.
    is_kept: bool,
}

/// What the file must fit: the lease of one lane in one database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// `system_identifier` of the cluster.
    pub system_id: i64,
    /// The database.
    pub database_oid: u32,
    /// Name of the outbox.
    pub outbox: String,
    /// Number of the lane.
    pub lane: i16,
}

impl Owner {
    /// Reads or makes the id in `state`, under a lock that proves an earlier process gone.
    ///
    /// Anything odd (another machine or boot, no lock to be had, a folder that cannot be written) gives a new id and a warning: then the lease has to run out.
    pub fn find(state: &Path, seat: &Seat) -> Self {
        match this_boot().and_then(|boot| locked(state, seat, &boot)) {
            Ok((id, file)) => Self { id, warning: None, file: Some(file), is_kept: true },
            Err(why) => {
                let warning = format!("a killed relay will have to wait for its own lease: {why}");
                Self { id: Uuid::new_v4().to_string(), warning: Some(warning), file: None, is_kept: true }
            }
        }
    }

    /// Takes a new id under the same lock: who was fenced under its own id shares it with somebody.
    pub fn renew(&mut self) {
        self.rename();
        self.keep();
    }

    /// Takes a new id that the file does not know before [`Owner::keep`]: until then, whoever starts here is another one.
    pub fn rename(&mut self) {
        (self.id, self.is_kept) = (Uuid::new_v4().to_string(), false);
    }

    /// Writes the id into the file, so that whoever starts here has it too. Where that fails, there is no file any more.
    pub fn keep(&mut self) {
        if !std::mem::replace(&mut self.is_kept, true) {
            self.file = self.file.take().and_then(|mut file| {
                let boot = this_boot().ok()?;
                write(&mut file, &boot, &self.id).ok()?;
                Some(file)
            });
        }
    }
}

fn locked(state: &Path, seat: &Seat, boot: &str) -> Result<(String, File), String> {
    let path = path(state, seat);
    let about = |error: std::io::Error| format!("relay.state: {}: {error}", path.display());
    std::fs::create_dir_all(state).map_err(about)?;
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(about)?;
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => {
            format!("relay.state: {} is locked by another outboxd on this machine", path.display())
        }
        TryLockError::Error(error) => about(error),
    })?;
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(about)?;
    if let Some(id) = known(&text, boot) {
        return Ok((id, file));
    }
    let id = Uuid::new_v4().to_string();
    write(&mut file, boot, &id).map_err(about)?;
    Ok((id, file))
}

/// The id in the file, if it was written on this machine since it booted.
fn known(text: &str, boot: &str) -> Option<String> {
    let (written_at, id) = text.trim_end().rsplit_once(' ')?;
    (written_at == boot).then(|| Uuid::parse_str(id).ok()).flatten().map(|id| id.to_string())
}

fn write(file: &mut File, boot: &str, id: &str) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{boot} {id}")?;
    file.sync_all()
}

fn path(state: &Path, seat: &Seat) -> PathBuf {
    state.join(format!("{}.{}.{}.{}.lease", seat.outbox, seat.lane, seat.system_id, seat.database_oid))
}

/// This machine and boot. The boot id alone tells machines apart; the machine's own id is missing in many containers.
fn this_boot() -> Result<String, String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_err(|error| format!("the boot id cannot be read: {error}"))?;
    let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    Ok(format!("{}/{}", machine.trim(), boot.trim()))
}

/// What a standby has seen of a lease: one that stays the same for longer than any holder could live may be taken,
/// although the server's clock, having stepped back, says that it runs.
#[derive(Debug, Default)]
pub struct Watch {
    seen: Option<(String, Instant)>,
}

impl Watch {
    /// Notes what the row says, and answers whether it has been unchanged for `ttl + hold`.
    pub fn is_unchanged(&mut self, lease_until: Option<&str>, now: Instant, terms: Terms) -> bool {
        match (&self.seen, lease_until) {
            (Some((seen, since)), Some(until)) if seen == until => {
                now.saturating_duration_since(*since) >= terms.ttl.saturating_add(terms.hold)
            }
            (_, until) => {
                self.seen = until.map(|until| (until.to_owned(), now));
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seat(outbox: &str) -> Seat {
        Seat { system_id: 7, database_oid: 5, outbox: outbox.to_owned(), lane: 0 }
    }

    #[test]
    fn a_fenced_holder_has_nothing_under_way_when_the_next_one_sends() {
        for seconds in 3..=300 {
            let ttl = Duration::from_secs(seconds);
            let terms = Terms::of(ttl);
            assert!(terms.fence + terms.socket_timeout + ttl / 100 <= ttl + terms.hold, "{seconds} s");
            assert!(terms.hold <= ttl);
        }
        let terms = Terms::of(Duration::from_secs(10));
        assert!(terms.renew_every + crate::db::WRITER_TIMEOUT < terms.fence);
    }

    #[test]
    fn a_relay_that_starts_again_has_its_old_id_and_a_second_one_has_not() {
        let state = tempfile::tempdir().unwrap();
        let first = Owner::find(state.path(), &seat("a"));
        let beside = Owner::find(state.path(), &seat("a"));
        assert!(
            beside.warning.as_ref().is_some_and(|warning| warning.contains("locked by another outboxd")),
            "{beside:?}"
        );
        assert_ne!(first.id, beside.id);
        assert_ne!(first.id, Owner::find(state.path(), &seat("b")).id);
        let id = first.id.clone();
        drop(first);
        assert_eq!(Owner::find(state.path(), &seat("a")).id, id);
    }

    #[test]
    fn an_id_of_another_boot_or_a_damaged_file_gives_a_new_id() {
        let state = tempfile::tempdir().unwrap();
        let boot = this_boot().unwrap();
        for text in ["", "x", "machine/other 6a1bdd07-0eb1-4b23-9bd5-7ff3bb4d6a6b", &format!("{boot} nonsense")] {
            std::fs::write(path(state.path(), &seat("a")), text).unwrap();
            let owner = Owner::find(state.path(), &seat("a"));
            assert!(owner.warning.is_none() && !text.contains(&owner.id), "{text}");
        }
    }

    #[test]
    fn who_was_fenced_under_its_own_id_gets_another_and_keeps_the_lock() {
        let state = tempfile::tempdir().unwrap();
        let mut owner = Owner::find(state.path(), &seat("a"));
        let old = owner.id.clone();
        owner.renew();
        assert_ne!(owner.id, old);
        assert!(Owner::find(state.path(), &seat("a")).warning.is_some());
        let id = owner.id.clone();
        drop(owner);
        assert_eq!(Owner::find(state.path(), &seat("a")).id, id);
    }

    #[test]
    fn a_name_that_is_not_kept_ends_with_its_process() {
        let state = tempfile::tempdir().unwrap();
        let mut owner = Owner::find(state.path(), &seat("a"));
        let old = owner.id.clone();
        owner.rename();
        assert_ne!(owner.id, old);
        drop(owner);
        assert_eq!(Owner::find(state.path(), &seat("a")).id, old);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_said() {
        let owner = Owner::find(Path::new("/proc/nowhere"), &seat("a"));
        assert!(owner.warning.is_some_and(|warning| warning.contains("/proc/nowhere")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_never_changes_is_taken_although_the_clock_stepped_back() {
        let terms = Terms::of(Duration::from_secs(10));
        let mut watch = Watch::default();
        let start = Instant::now();
        let look =
            |watch: &mut Watch, until, seconds| watch.is_unchanged(until, start + Duration::from_secs(seconds), terms);
        assert!(!look(&mut watch, Some("12:00"), 0));
        assert!(!look(&mut watch, Some("12:00"), 19));
        assert!(!look(&mut watch, Some("12:01"), 20));
        assert!(!look(&mut watch, None, 41));
        assert!(!look(&mut watch, Some("12:01"), 42));
        assert!(look(&mut watch, Some("12:01"), 62));
    }
}
