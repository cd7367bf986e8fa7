//! The real binary as a child process: started, killed, stopped, frozen, and asked over HTTP.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use toml::{Table, Value};

use super::eventually::{PATIENCE, eventually};
use super::kafka::Kafka;
use super::postgres::{Database, Role};

/// How much of the log is printed when the test fails.
const LOG_LINES: usize = 200;

/// For one answer over HTTP.
const ANSWER: Duration = Duration::from_secs(5);

/// A relay with a config, a state folder and a log that outlive its process. Its process ends with it.
pub(crate) struct Relay {
    folder: TempDir,
    config: Table,
    variables: Vec<(String, String)>,
    listen: String,
    child: Option<Child>,
}

impl Relay {
    /// Prepares a relay for one outbox named `default`, one topic per aggregate type. Nothing runs yet.
    pub(crate) async fn new(postgres: &str, kafka: &Kafka) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let relay =
            Self { folder, config: Table::new(), variables: Vec::new(), listen: free_address().await, child: None };
        let mut route = Table::new();
        route.insert("topic".to_owned(), kafka.template().into());
        let mut outbox = Table::new();
        outbox.insert("name".to_owned(), "default".into());
        outbox.insert("route".to_owned(), vec![route].into());
        let (state, listen) = (relay.state(), relay.listen.clone());
        relay
            .set("postgres.url", postgres)
            .set("kafka.brokers", kafka.brokers())
            .set("relay.state", state)
            .set("http.listen", listen)
            .set("outbox", vec![outbox])
    }

    /// Sets a key of the config, such as `relay.save_every`. Counts from the next start.
    pub(crate) fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.configure(key, value);
        self
    }

    /// The same for a relay that is lent.
    pub(crate) fn configure(&mut self, key: &str, value: impl Into<Value>) {
        let (sections, last) = key.rsplit_once('.').map_or((None, key), |(sections, last)| (Some(sections), last));
        let mut table = &mut self.config;
        for section in sections.into_iter().flat_map(|sections| sections.split('.')) {
            let inner = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            table = inner.as_table_mut().expect("a section");
        }
        table.insert(last.to_owned(), value.into());
    }

    /// Sets an environment variable of the process. Counts from the next start.
    pub(crate) fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Writes the config and starts the process. It is not ready yet.
    pub(crate) fn start(&mut self) {
        assert!(self.child.is_none(), "the relay runs already");
        std::fs::create_dir_all(self.state()).unwrap();
        std::fs::write(self.file(), self.config.to_string()).unwrap();
        let log = File::options().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let child = command(&self.file(), &["run"])
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true)
            .spawn();
        self.child = Some(child.unwrap());
    }

    /// Writes the config anew and sends SIGHUP: the running process reads it.
    pub(crate) async fn reload(&mut self) {
        self.reload_text(&self.config.to_string()).await;
    }

    /// The same with another text in the file, valid or not.
    pub(crate) async fn reload_text(&mut self, text: &str) {
        std::fs::write(self.file(), text).unwrap();
        self.hang_up().await;
    }

    /// SIGHUP, whatever the file holds.
    pub(crate) async fn hang_up(&mut self) {
        self.signal("HUP").await;
    }

    /// What another `set` would write, for [`Self::reload_text`].
    pub(crate) fn config(&self) -> String {
        self.config.to_string()
    }

    /// The id of the running process.
    pub(crate) fn process(&mut self) -> u32 {
        self.running().id().expect("the relay has not ended")
    }

    /// Where it is asked.
    pub(crate) fn listens_at(&self) -> String {
        self.listen.clone()
    }

    /// Asks at another address, once.
    pub(crate) async fn get_at(&self, address: &str, path: &str) -> anyhow::Result<Answer> {
        timeout(ANSWER, get(address, path)).await.context("no answer")?
    }

    /// Asks at another address from now on.
    pub(crate) fn look_at(&mut self, address: &str) {
        address.clone_into(&mut self.listen);
    }

    /// Waits until `/readyz` says so.
    pub(crate) async fn ready(&mut self) {
        eventually("the relay is ready", PATIENCE, async || {
            if let Some(status) = self.running().try_wait().unwrap() {
                panic!("the relay ended before it was ready: {status}");
            }
            match self.get("/readyz").await {
                Ok(Answer { status: 200, .. }) => Ok(()),
                Ok(answer) => Err(format!("/readyz says {} {}", answer.status, answer.body)),
                Err(error) => Err(format!("/readyz: {error:#}")),
            }
        })
        .await;
    }

    /// SIGKILL. The process is gone when it returns.
    pub(crate) async fn kill(&mut self) {
        self.running().kill().await.unwrap();
        self.child = None;
    }

    /// SIGTERM: asks it to settle and to end. See [`Self::exit_code`].
    pub(crate) async fn terminate(&mut self) {
        self.signal("TERM").await;
    }

    /// SIGSTOP: nothing of it runs until [`Self::resume`].
    pub(crate) async fn freeze(&mut self) {
        self.signal("STOP").await;
    }

    /// SIGCONT.
    pub(crate) async fn resume(&mut self) {
        self.signal("CONT").await;
    }

    /// Waits for its end. A relay that was ended by a signal has no code.
    pub(crate) async fn exit_code(&mut self) -> Option<i32> {
        let ended = timeout(PATIENCE, self.running().wait()).await;
        let status = ended.unwrap_or_else(|_| panic!("the relay did not end within {PATIENCE:?}")).unwrap();
        self.child = None;
        status.code()
    }

    /// Asks over HTTP. An error is a relay that does not listen, or not yet.
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Answer> {
        self.get_at(&self.listen, path).await
    }

    /// `/status`, as JSON.
    pub(crate) async fn status(&self) -> anyhow::Result<serde_json::Value> {
        let answer = self.get("/status").await?;
        serde_json::from_str(&answer.body).with_context(|| format!("/status says {}", answer.body))
    }

    /// Runs another command under the config of this relay.
    pub(crate) async fn command(&self, arguments: &[&str]) -> Output {
        std::fs::write(self.file(), self.config.to_string()).unwrap();
        outboxd(&self.file(), arguments).await
    }

    /// The most memory that the running process has held at once.
    pub(crate) fn peak_megabytes(&mut self) -> u64 {
        self.memory_kilobytes("VmHWM:") / 1024
    }

    /// A line of what the kernel says of the process's memory, such as `VmRSS:`.
    pub(crate) fn memory_kilobytes(&mut self, line: &str) -> u64 {
        let process = self.process();
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let found = status.lines().find_map(|text| text.strip_prefix(line)).expect("a line of this name");
        found.trim().trim_end_matches("kB").trim().parse().unwrap()
    }

    /// All that its processes have written so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read(self.folder.path().join("log"))
            .map_or_else(|_| String::new(), |log| String::from_utf8_lossy(&log).into_owned())
    }

    /// Where its config lies.
    pub(crate) fn file(&self) -> PathBuf {
        self.folder.path().join("outboxd.toml")
    }

    fn state(&self) -> String {
        self.folder.path().join("state").to_str().expect("a folder in UTF-8").to_owned()
    }

    fn running(&mut self) -> &mut Child {
        self.child.as_mut().expect("the relay runs")
    }

    /// By the shell, which has `kill` built in: no dependency for three signals.
    async fn signal(&mut self, name: &str) {
        let process = self.process();
        let sent = Command::new("sh").arg("-c").arg(format!("kill -s {name} {process}")).status().await;
        assert!(sent.unwrap().success(), "SIG{name} was not sent to {process}");
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(LOG_LINES)..];
            eprintln!("--- config of the relay\n{}\n--- end of its log\n{}\n---", self.config, tail.join("\n"));
        }
    }
}

/// An answer over HTTP.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// What a command gave.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    /// -1 for an end by a signal.
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit code {}\nstdout: {}\nstderr: {}", self.code, self.stdout, self.stderr)
    }
}

/// Runs a command of the binary to its end.
pub(crate) async fn outboxd(config: &Path, arguments: &[&str]) -> Output {
    let ended = timeout(PATIENCE, command(config, arguments).stdin(Stdio::null()).kill_on_drop(true).output()).await;
    let output = ended.unwrap_or_else(|_| panic!("outboxd {arguments:?} did not end within {PATIENCE:?}")).unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Output { code: output.status.code().unwrap_or(-1), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

/// The binary, without the variables of this run: `OUTBOXD_…` would override its config.
fn command(config: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outboxd"));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("OUTBOXD_")) {
            command.env_remove(name);
        }
    }
    command.arg("--config").arg(config).args(arguments);
    command
}

/// Below the ports of servers and proxies.
const PORTS: std::ops::Range<u16> = 10_000..20_000;

/// An address for a relay: it listens there later, and again after each start.
pub(crate) async fn free_address() -> String {
    format!("127.0.0.1:{}", free_port().await)
}

/// A port on which nothing listened a moment ago, and which no other test is given.
pub(crate) async fn free_port() -> u16 {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id();
    loop {
        let next = first.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed)) % u32::from(PORTS.end - PORTS.start);
        let port = PORTS.start + u16::try_from(next).expect("less than there are ports");
        if TcpListener::bind(("127.0.0.1", port)).await.is_ok() {
            return port;
        }
    }
}

/// A GET by hand: no client library for four endpoints.
async fn get(address: &str, path: &str) -> anyhow::Result<Answer> {
    let mut stream = TcpStream::connect(address).await?;
    // HTTP/1.0 asks for an answer that ends with the connection, never in chunks.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without an end of its head")?;
    let status = head.split_whitespace().nth(1).context("an answer without a status")?.parse()?;
    Ok(Answer { status, body: body.to_owned() })
}

#[tokio::test]
async fn a_get_reads_status_and_body() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = async {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut request = [0; 64];
        let read = client.read(&mut request).await.unwrap();
        client.write_all(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 5\r\n\r\nwhy\r\n").await.unwrap();
        String::from_utf8_lossy(&request[..read]).into_owned()
    };
    let (request, answer) = tokio::join!(server, async { get(&address, "/readyz").await });
    let answer = answer.unwrap();
    assert!(request.starts_with("GET /readyz HTTP/1"), "{request}");
    assert_eq!((answer.status, answer.body.as_str()), (503, "why\r\n"));
}

#[tokio::test]
async fn a_relay_starts_answers_survives_a_freeze_and_ends_when_asked() {
    const NAME: &str = "a_relay_starts_answers_survives_a_freeze";
    let database = Database::create(NAME).await;
    let mut relay = Relay::new(&database.url(Role::Relay), &Kafka::create(NAME)).await;
    let migrated = relay.command(&["migrate", "--admin-url", &database.url(Role::Owner)]).await;
    assert_eq!(migrated.code, 0, "{migrated}");
    relay = relay.variable("OUTBOXD__RELAY__IN_FLIGHT__EVENTS", "100");
    relay.start();
    relay.ready().await;
    relay.freeze().await;
    relay.resume().await;
    assert_eq!(relay.get("/livez").await.unwrap().status, 200);
    relay.kill().await;
    assert!(relay.get("/livez").await.is_err(), "a killed relay does not listen");
    relay.start();
    relay.ready().await;
    relay.terminate().await;
    assert_eq!(relay.exit_code().await, Some(0));
}
