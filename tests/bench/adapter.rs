//! Another relay, behind a command that knows how to run it. `deploy/bench --help` says what such an adapter has to do.
//!
//! The adapter needs no client of Postgres: it describes its table and what is to be asked in SQL, and this asks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::timeout;

use super::meter::Servers;
use super::relay::{Answer, Target, execute, until};

/// For a verb to be done. The first one may fetch what the relay is made of.
const DONE: Duration = Duration::from_mins(10);

/// Lines of its log that are shown when something is wrong.
const LOG_LINES: usize = 30;

/// Another relay.
pub(crate) struct Adapter {
    /// The executable and its arguments, in front of the verb.
    command: Vec<String>,
    described: Described,
    target: Target,
    postgres: String,
    kafka: String,
    folder: TempDir,
    pids: Vec<u32>,
}

/// What `describe` prints, as TOML.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Described {
    name: String,
    table: String,
    event_id: String,
    aggregate_type: String,
    aggregate_id: String,
    event_type: String,
    payload: String,
    create: String,
    #[serde(default)]
    relaying: Option<String>,
    forget: String,
}

impl Adapter {
    /// Asks the adapter what it is. The command is split at blanks.
    pub(crate) async fn new(command: &str, postgres: &str, servers: &Servers) -> anyhow::Result<Self> {
        let mut words: Vec<String> = command.split_ascii_whitespace().map(str::to_owned).collect();
        let program = words.first_mut().context("--against needs a command")?;
        if program.contains('/') {
            let path = fs::canonicalize(&*program).with_context(|| format!("cannot find {program}"))?;
            *program = path.to_string_lossy().into_owned();
        }
        let folder = tempfile::tempdir_in(&servers.folder)?;
        let environment = Environment { postgres, kafka: &servers.kafka, folder: folder.path(), topic: "" };
        let text = call(&words, "describe", environment).await?;
        let described: Described =
            toml::from_str(&text).with_context(|| format!("{command} describe printed no description"))?;
        let target = Target {
            table: described.table.clone(),
            event_id: described.event_id.clone(),
            aggregate_type: described.aggregate_type.clone(),
            aggregate_id: described.aggregate_id.clone(),
            event_type: described.event_type.clone(),
            payload: described.payload.clone(),
        };
        Ok(Self {
            command: words,
            described,
            target,
            postgres: postgres.to_owned(),
            kafka: servers.kafka.clone(),
            folder,
            pids: Vec::new(),
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.described.name
    }

    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// Makes its table, too. What a drain that failed has left is removed first.
    pub(crate) async fn attach(&mut self, topic: &str) -> anyhow::Result<()> {
        execute(&self.postgres, &self.described.forget).await?;
        execute(&self.postgres, &self.described.create).await?;
        self.call("attach", topic).await?;
        self.relays(Answer::Yes).await?;
        self.find().await
    }

    pub(crate) async fn pause(&mut self) -> anyhow::Result<()> {
        self.call("pause", "").await?;
        self.relays(Answer::No).await
    }

    pub(crate) async fn resume(&mut self) -> anyhow::Result<()> {
        self.call("resume", "").await?;
        self.find().await
    }

    /// Asks for its processes: not all relays have one that outlives a pause.
    async fn find(&mut self) -> anyhow::Result<()> {
        let pids = self.call("pid", "").await?;
        let pids: Result<Vec<u32>, _> = pids.split_ascii_whitespace().map(str::parse).collect();
        self.pids = pids.with_context(|| format!("{} pid printed no pids", self.name()))?;
        ensure!(!self.pids.is_empty(), "{} has no process", self.name());
        Ok(())
    }

    /// Drops its table, too.
    pub(crate) async fn detach(&mut self) -> anyhow::Result<()> {
        self.call("detach", "").await?;
        self.relays(Answer::No).await?;
        execute(&self.postgres, &self.described.forget).await
    }

    pub(crate) fn processes(&self) -> Vec<u32> {
        self.pids.clone()
    }

    pub(crate) fn still_runs(&self) -> anyhow::Result<()> {
        for pid in &self.pids {
            let there = Path::new("/proc").join(pid.to_string()).exists();
            ensure!(there, "{} ended; end of its log:\n{}", self.name(), self.log_end());
        }
        Ok(())
    }

    /// Of the file `log` in its folder, if it writes one.
    pub(crate) fn log_end(&self) -> String {
        let log = fs::read(self.log()).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default().join("\n")
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    async fn relays(&self, wanted: Answer) -> anyhow::Result<()> {
        let Some(question) = &self.described.relaying else { return Ok(()) };
        let answered = until(&self.postgres, question, wanted).await;
        answered.with_context(|| format!("{}; end of its log:\n{}", self.name(), self.log_end()))
    }

    async fn call(&self, verb: &str, topic: &str) -> anyhow::Result<String> {
        let environment =
            Environment { postgres: &self.postgres, kafka: &self.kafka, folder: self.folder.path(), topic };
        let done = call(&self.command, verb, environment).await;
        done.with_context(|| format!("{}; end of its log:\n{}", self.name(), self.log_end()))
    }
}

/// A run that ends, in whatever way, leaves no process behind.
impl Drop for Adapter {
    fn drop(&mut self) {
        let environment =
            Environment { postgres: &self.postgres, kafka: &self.kafka, folder: self.folder.path(), topic: "" };
        if let Some(mut command) = prepared(&self.command, "end", environment) {
            // Nobody is left who could be told that it failed.
            drop(command.stdout(Stdio::null()).status());
        }
    }
}

/// What the adapter is told.
#[derive(Clone, Copy)]
struct Environment<'e> {
    postgres: &'e str,
    kafka: &'e str,
    folder: &'e Path,
    topic: &'e str,
}

fn prepared(words: &[String], verb: &str, environment: Environment<'_>) -> Option<std::process::Command> {
    let (program, arguments) = words.split_first()?;
    let mut command = std::process::Command::new(program);
    command.args(arguments).arg(verb).stdin(Stdio::null());
    command.env("BENCH_POSTGRES", environment.postgres).env("BENCH_KAFKA", environment.kafka);
    command.env("BENCH_FOLDER", environment.folder).env("BENCH_TOPIC", environment.topic);
    Some(command)
}

/// Answers what the verb printed. What it has to say to the reader goes to stderr, which is ours.
async fn call(words: &[String], verb: &str, environment: Environment<'_>) -> anyhow::Result<String> {
    let command = prepared(words, verb, environment).context("no command")?;
    let what = format!("{} {verb}", words.join(" "));
    let mut command = Command::from(command);
    command.stderr(Stdio::inherit()).kill_on_drop(true);
    let output = timeout(DONE, command.output()).await.with_context(|| format!("{what} did not end"))?;
    let output = output.with_context(|| format!("cannot start {what}"))?;
    ensure!(output.status.success(), "{what} failed: {}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}
