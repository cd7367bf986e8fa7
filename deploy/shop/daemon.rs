//! outboxd as a child process: started, killed, asked how far it is, stopped.

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

/// It is ready within a second; more is a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// For one answer.
const ANSWER: Duration = Duration::from_secs(2);

/// Where outboxd is, and what it runs with.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Daemon {
    /// Binary of outboxd
    #[arg(long, value_name = "FILE")]
    outboxd: PathBuf,
    /// Its configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Where its log goes
    #[arg(long, value_name = "FILE")]
    log: PathBuf,
    /// Where it listens: `http.listen` of its configuration
    #[arg(long, value_name = "ADDRESS")]
    listen: SocketAddr,
}

/// A running outboxd. It ends with this value, whatever happens.
pub(crate) struct Running {
    daemon: Daemon,
    child: Child,
}

impl Daemon {
    /// Starts it and waits until it relays.
    pub(crate) async fn start(&self) -> anyhow::Result<Running> {
        let log = File::options().create(true).append(true).open(&self.log).context("opening the log of outboxd")?;
        let mut command = Command::new(&self.outboxd);
        command.arg("--config").arg(&self.config).arg("run").stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        command.process_group(0); // the interrupt of a terminal is for us
        let child = command.spawn().with_context(|| format!("starting {}", self.outboxd.display()))?;
        let mut running = Running { daemon: self.clone(), child };
        running.ready().await?;
        Ok(running)
    }

    /// What `/status` says of the only lane. `None` while nobody answers.
    pub(crate) async fn status(&self) -> Option<Value> {
        let body = timeout(ANSWER, self.get("/status")).await.ok()?.ok()?;
        let mut status: Value = serde_json::from_str(&body).ok()?;
        status.pointer_mut("/lanes/0").map(Value::take)
    }

    /// The daemon closes the connection after its answer, so this needs no HTTP client.
    async fn get(&self, path: &str) -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(self.listen).await?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nhost: {}\r\n\r\n", self.listen).as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (_, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
        Ok(body.to_owned())
    }
}

impl Running {
    async fn ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.lives()?;
            let status = self.daemon.status().await;
            if status.as_ref().is_some_and(|lane| lane["ready"] == true) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("outboxd is not ready after {PATIENCE:?}: {}", status.unwrap_or_default());
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Fails if it has ended by itself.
    pub(crate) fn lives(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("outboxd has ended by itself: {status}");
        }
        Ok(())
    }

    /// SIGKILL.
    pub(crate) async fn kill(mut self) -> anyhow::Result<()> {
        self.lives()?;
        self.child.kill().await.context("killing outboxd")
    }

    /// SIGTERM: it publishes what is in flight, saves its cursor and ends with 0. The shell has `kill` built in.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        self.lives()?;
        let process = self.child.id().context("outboxd has ended")?;
        let sent = Command::new("sh").arg("-c").arg(format!("kill -s TERM {process}")).status().await?;
        ensure!(sent.success(), "SIGTERM could not be sent to outboxd");
        let status = timeout(PATIENCE, self.child.wait()).await.context("outboxd does not end on SIGTERM")??;
        ensure!(status.success(), "outboxd ended with {status} on SIGTERM");
        Ok(())
    }
}
