//! The daemon under measure: a process with a config of its own, an outbox that nobody has read before, and a log.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use outboxd::relay::leadership::Terms;
use outboxd::sink::kafka::options::{self, BATCH_BYTES, Care, Haste, Tuning};
use rdkafka::ClientConfig;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::meter::Servers;
use super::topics::Topics;

/// For its end after SIGTERM: its own grace period and some more.
const END: Duration = Duration::from_secs(30);

/// Lines of its log that are shown when something is wrong.
const LOG_LINES: usize = 20;

/// Where a new cursor begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    Earliest,
    Latest,
}

/// What is done to a doorbell.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Hang {
    Up,
    Down,
}

/// Settings that are laid over those that each run has, and what the daemon is called with them. By default none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Variant {
    name: Option<String>,
    settings: toml::Table,
}

impl Variant {
    /// With some lines of configuration more. `[outbox]` in them means the one outbox that there is.
    pub(crate) fn with(name: &str, lines: &str) -> anyhow::Result<Self> {
        let settings: toml::Table = lines.parse().with_context(|| format!("the settings of {name} are no TOML"))?;
        let lists_outboxes = settings.get("outbox").is_some_and(toml::Value::is_array);
        ensure!(!lists_outboxes, "{name}: write [outbox] for [[outbox]]: it means the one outbox that there is");
        Ok(Self { name: Some(format!("outboxd {name}")), settings })
    }

    /// From a file, which gives it its name.
    pub(crate) fn read(file: &Path) -> anyhow::Result<Self> {
        let lines = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        Self::with(&file.file_stem().context("a file without a name")?.to_string_lossy(), &lines)
    }
}

/// The binary and what all its runs have in common.
pub(crate) struct Daemon {
    binary: PathBuf,
    variant: Variant,
    postgres: String,
    kafka: String,
    folder: TempDir,
}

impl Daemon {
    /// Prepares the daemon; nothing runs yet.
    pub(crate) fn new(binary: &Path, variant: Variant, postgres: &str, servers: &Servers) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir_in(&servers.folder)?;
        let (postgres, kafka) = (postgres.to_owned(), servers.kafka.clone());
        Ok(Self { binary: binary.to_owned(), variant, postgres, kafka, folder })
    }

    /// What it is called in tables.
    pub(crate) fn name(&self) -> &str {
        self.variant.name.as_deref().unwrap_or("outboxd")
    }

    /// Hangs the doorbell of an outbox up, or takes it down; nothing to do unless the variant has one.
    pub(crate) async fn doorbell(&self, admin_url: &str, outbox: &str, hang: Hang) -> anyhow::Result<()> {
        let outboxes = self.variant.settings.get("outbox").and_then(|outbox| outbox.get("doorbell"));
        if outboxes.and_then(toml::Value::as_bool) != Some(true) {
            return Ok(());
        }
        let options: &[&str] = match hang {
            Hang::Up => &["--doorbell", outbox, "--allow-prepared-transactions"], // the server allows them, nobody makes one
            Hang::Down => &["--no-doorbell", outbox],
        };
        migrate(&self.binary, admin_url, options).await
    }

    /// What it calls itself.
    pub(crate) async fn version(&self) -> anyhow::Result<String> {
        let output = command(&self.binary).arg("--version").output().await?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// The settings of its producer, as it sends a backlog or events that come as they are written: the floors use them too.
    pub(crate) fn producer_settings(&self, haste: Haste) -> anyhow::Result<ClientConfig> {
        let config = outboxd::config::load(&self.config("bench", "bench", Start::Earliest)?, &BTreeMap::new());
        let config = config.map_err(|problems| anyhow::anyhow!("the daemon's config is wrong: {problems:?}"))?;
        let tuning = Tuning {
            batch_bytes: BATCH_BYTES,
            care: Care::Batched,
            socket_timeout: Terms::of(config.relay.lease).socket_timeout,
        };
        let bulk = if haste == Haste::Bulk { options::bulk_producer(&config.kafka, tuning) } else { None };
        Ok(bulk.unwrap_or_else(|| options::producer(&config.kafka, tuning)))
    }

    /// Starts it on an outbox, whose cursor begins there if it is new.
    pub(crate) fn start(&self, topic: &str, outbox: &str, start: Start) -> anyhow::Result<Running> {
        let (file, log) = (self.folder.path().join("outboxd.toml"), self.folder.path().join("log"));
        fs::write(&file, self.config(topic, outbox, start)?)?;
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

    fn config(&self, topic: &str, outbox: &str, start: Start) -> anyhow::Result<String> {
        let quoted = |text: &str| toml::Value::from(text).to_string();
        let state = self.folder.path().to_string_lossy();
        let start = match start {
            Start::Earliest => "earliest",
            Start::Latest => "latest",
        };
        let mut config: toml::Table = format!(
            "[postgres]\nurl = {}\n[kafka]\nbrokers = {}\n[relay]\nstate = {}\n[http]\nlisten = \"127.0.0.1:0\"\n\
             [[outbox]]\nname = {}\nstart = \"{start}\"\n[[outbox.route]]\ntopic = {}\n",
            quoted(&self.postgres),
            quoted(&self.kafka),
            quoted(&state),
            quoted(outbox),
            quoted(&Topics::template(topic)),
        )
        .parse()?;
        lay_over(&mut config, &self.variant.settings);
        Ok(config.to_string())
    }
}

/// Tables key by key; into a list of tables, each of which gets it; all else is replaced.
fn lay_over(under: &mut toml::Table, over: &toml::Table) {
    for (key, value) in over {
        match (under.get_mut(key), value) {
            (Some(toml::Value::Table(under)), toml::Value::Table(over)) => lay_over(under, over),
            (Some(toml::Value::Array(list)), toml::Value::Table(over)) => {
                list.iter_mut().filter_map(toml::Value::as_table_mut).for_each(|under| lay_over(under, over));
            }
            (_, value) => drop(under.insert(key.clone(), value.clone())),
        }
    }
}

/// Runs `outboxd migrate` on a database.
pub(crate) async fn migrate(binary: &Path, admin_url: &str, options: &[&str]) -> anyhow::Result<()> {
    let output = command(binary).arg("migrate").args(options).env("OUTBOXD_ADMIN_URL", admin_url).output().await;
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

    /// Whether it has not ended.
    pub(crate) fn still_runs(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("the daemon ended: {status}; end of its log:\n{}", self.log_end()),
            None => Ok(()),
        }
    }

    /// Waits until it ends by itself, which is an error.
    pub(crate) async fn ended(&mut self) -> anyhow::Result<()> {
        let status = self.child.wait().await?;
        bail!("it ended: {status}")
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
