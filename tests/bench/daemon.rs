//! The daemon under measure: a process with a config of its own, an outbox that nobody has read before, and a log.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use outboxd::relay::leadership::Terms;
use outboxd::sink::kafka::options::{self, BATCH_BYTES, Care, Tuning};
use rdkafka::ClientConfig;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::meter::{self, Servers};

/// For its end after SIGTERM: its own grace period and some more.
const END: Duration = Duration::from_secs(30);

/// Lines of its log that are shown when something is wrong.
const LOG_LINES: usize = 20;

/// The binary and what all its runs have in common.
pub(crate) struct Daemon {
    binary: PathBuf,
    postgres: String,
    kafka: String,
    folder: TempDir,
}

impl Daemon {
    /// Prepares the daemon; nothing runs yet.
    pub(crate) fn new(binary: &Path, postgres: &str, servers: &Servers) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir_in(&servers.folder)?;
        Ok(Self { binary: binary.to_owned(), postgres: postgres.to_owned(), kafka: servers.kafka.clone(), folder })
    }

    /// What it calls itself.
    pub(crate) async fn version(&self) -> anyhow::Result<String> {
        let output = command(&self.binary).arg("--version").output().await?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// The settings of its producer: the floors use them too.
    pub(crate) fn producer_settings(&self) -> anyhow::Result<ClientConfig> {
        let config = outboxd::config::load(&self.config("bench", "bench"), &BTreeMap::new());
        let config = config.map_err(|problems| anyhow::anyhow!("the daemon's config is wrong: {problems:?}"))?;
        let tuning = Tuning {
            batch_bytes: BATCH_BYTES,
            care: Care::Batched,
            socket_timeout: Terms::of(config.relay.lease).socket_timeout,
        };
        Ok(options::producer(&config.kafka, tuning))
    }

    /// Starts it on an outbox that begins at the earliest event. All is as the daemon has it by default.
    pub(crate) fn start(&self, template: &str, outbox: &str) -> anyhow::Result<Running> {
        let (file, log) = (self.folder.path().join("outboxd.toml"), self.folder.path().join("log"));
        fs::write(&file, self.config(template, outbox))?;
        let output = File::create(&log)?;
        let mut command = command(&self.binary);
        command
            .arg("--config")
            .arg(&file)
            .arg("run")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("cannot start {}", self.binary.display()))?;
        let pid = child.id().context("the daemon ended at once")?;
        Ok(Running { child, pid, log })
    }

    fn config(&self, template: &str, outbox: &str) -> String {
        let quoted = |text: &str| toml::Value::from(text).to_string();
        let state = self.folder.path().to_string_lossy();
        format!(
            "[postgres]\nurl = {}\n[kafka]\nbrokers = {}\n[relay]\nstate = {}\n[http]\nlisten = \"127.0.0.1:0\"\n\
             [[outbox]]\nname = {}\nstart = \"earliest\"\n[[outbox.route]]\ntopic = {}\n",
            quoted(&self.postgres),
            quoted(&self.kafka),
            quoted(&state),
            quoted(outbox),
            quoted(template),
        )
    }
}

/// Runs `outboxd migrate` on a database.
pub(crate) async fn migrate(binary: &Path, admin_url: &str) -> anyhow::Result<()> {
    let output = command(binary).arg("migrate").env("OUTBOXD_ADMIN_URL", admin_url).output().await;
    let output = output.with_context(|| format!("cannot start {}", binary.display()))?;
    ensure!(output.status.success(), "outboxd migrate failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The binary without the variables of this run: `OUTBOXD_…` would override its config.
fn command(binary: &Path) -> Command {
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("OUTBOXD_")) {
        command.env_remove(name);
    }
    command
}

/// A daemon that runs. Dropped, it is killed.
pub(crate) struct Running {
    child: Child,
    pid: u32,
    log: PathBuf,
}

impl Running {
    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// The most memory that it has had resident.
    pub(crate) fn peak_memory_bytes(&self) -> anyhow::Result<u64> {
        meter::peak_memory_bytes(self.pid).with_context(|| format!("end of the daemon's log:\n{}", self.log_end()))
    }

    /// Whether it has not ended.
    pub(crate) fn still_runs(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("the daemon ended: {status}; end of its log:\n{}", self.log_end()),
            None => Ok(()),
        }
    }

    /// SIGTERM. It has to end with 0: all that was sent is settled and saved.
    pub(crate) async fn stop(&mut self) -> anyhow::Result<()> {
        // By the shell, which has `kill` built in: no dependency for one signal.
        let sent = Command::new("sh").arg("-c").arg(format!("kill -s TERM {}", self.pid)).status().await?;
        ensure!(sent.success(), "SIGTERM was not sent");
        let ended = timeout(END, self.child.wait()).await.context("the daemon did not end")??;
        ensure!(ended.success(), "the daemon ended with {ended}; end of its log:\n{}", self.log_end());
        Ok(())
    }

    /// The last lines of its log.
    pub(crate) fn log_end(&self) -> String {
        let log = fs::read(&self.log).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}
