//! `PgBouncer` between the relay and Postgres.

use std::process::Stdio;

use tempfile::TempDir;
use tokio::process::{Child, Command};
use url::Url;

use super::stage::{Stage, tell};
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::postgres::Role;
use crate::support::relay::free_port;

/// A `PgBouncer`, which ends with it.
struct Pooler {
    url: String,
    _folder: TempDir,
    child: Child,
}

impl Pooler {
    /// Starts one before a database, for the role of the relay.
    async fn start(stage: &Stage, mode: &str, settings: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("outboxd-pooler.").tempdir().unwrap();
        // it refuses to run as root: then it runs as nobody, who has to read its files.
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut url = Url::parse(&stage.database.url(Role::Relay)).unwrap();
        let port = free_port().await;
        let users = folder.path().join("users");
        std::fs::write(&users, format!("\"{}\" \"\"\n", url.username())).unwrap();
        let config = folder.path().join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host={} port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = trust\nauth_file = {}\npool_mode = {mode}\n{settings}\n",
            url.host_str().unwrap(),
            url.port().unwrap(),
            users.display()
        );
        std::fs::write(&config, text).unwrap();
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        let is_root = "[ \"$(id -u)\" != 0 ] || set -- -u nobody \"$@\"; exec pgbouncer -q \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", is_root, "sh"]).arg(&config).env("PATH", path).stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.kill_on_drop(true).spawn().unwrap();
        url.set_port(Some(port)).unwrap();
        let mut pooler = Self { url: url.into(), _folder: folder, child };
        eventually("PgBouncer listens", PATIENCE, async || {
            if let Some(status) = pooler.child.try_wait().unwrap() {
                panic!("pgbouncer ended: {status}\nhint: deploy/prerequisites --tests");
            }
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.map(drop).map_err(|error| error.to_string())
        })
        .await;
        pooler
    }
}

/// As most are set up that applications with prepared statements use.
const LENIENT: &str = "ignore_startup_parameters = extra_float_digits";

const TRANSACTION: &str = "this is a transaction pooler; give a direct connection";
const HINT: &str = "point `postgres.url` at Postgres itself, not at PgBouncer or the like";

async fn is_refused(name: &str, more: &str, sentence: &str) {
    let mut stage = Stage::shared(name).await;
    let pooler = Pooler::start(&stage, "transaction", more).await;
    stage.relay = stage.relay.set("postgres.url", pooler.url.as_str());
    stage.relay.start();
    let seen = stage.seen("refused", &[sentence, HINT]).await;
    if more.is_empty() {
        // `check` has one session: of a lenient pooler it sees something only if it meets another one's leavings
        let checked = stage.relay.command(&["check"]).await;
        assert!(checked.code != 0 && format!("{checked}").contains(sentence), "{checked}");
    }

    // with the direct address it goes on
    stage.relay.kill().await;
    stage.relay = stage.relay.set("postgres.url", stage.database.url(Role::Relay));
    let plan = stage.plan(4);
    let storm = stage.begin(plan).await;
    storm.has_committed(100).await;
    storm.stop().await;
    let verdict = stage.all_is_well().await;
    let fault =
        format!("a transaction pooler before Postgres ({})", if more.is_empty() { "strict" } else { "lenient" });
    tell(&fault, &seen, None, verdict.duplicates.count);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_pooler_is_refused() {
    is_refused("a_transaction_pooler_is_refused", LENIENT, TRANSACTION).await;
}

/// It takes none of our parameters at the start, so no session comes about.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strict_transaction_pooler_is_refused() {
    is_refused("a_strict_transaction_pooler_is_refused", "", "this is a pooler; give a direct connection").await;
}

/// In session mode each client has a server process to itself, with its settings: that is a direct connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_pooler_is_as_good_as_none() {
    let mut stage = Stage::shared("a_session_pooler_is_as_good").await;
    let pooler = Pooler::start(&stage, "session", LENIENT).await;
    stage.relay = stage.relay.set("postgres.url", pooler.url.as_str());
    let plan = stage.plan(4);
    let storm = stage.begin(plan).await;
    storm.has_committed(200).await;
    storm.stop().await;
    let verdict = stage.all_is_well().await;
    tell("a session pooler before Postgres", "relaying", None, verdict.duplicates.count);
}
