//! Servers of a test's own, which it may stop and kill.

use std::path::PathBuf;

use tempfile::TempDir;
use tokio::process::Command;

use super::proxy::Proxy;
use super::server;

/// How much of a server's log is printed when the test fails.
const LOG_LINES: usize = 40;

/// A Postgres and a Kafka that nobody else uses. They end with it.
pub(crate) struct Servers {
    script: String,
    folder: TempDir,
    variables: Vec<(String, String)>,
    /// What `deploy/servers` is told by its environment.
    told: Vec<(String, String)>,
}

impl Servers {
    /// Starts both, with more arguments for `deploy/servers up` if need be.
    pub(crate) async fn start(arguments: &[&str]) -> Self {
        Self::start_with(arguments, &[]).await
    }

    /// The same with variables of `deploy/servers`, which count for later starts as well.
    pub(crate) async fn start_with(arguments: &[&str], told: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Postgres runs as another user when this runs as root: the folder must let it through.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(folder.path(), open).unwrap();
        let told = told.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        let mut servers = Self { script: server("OUTBOXD_TEST_SERVERS"), folder, variables: Vec::new(), told };
        let up = servers.call(&[&["up"], arguments].concat()).await;
        let pair = |line: &str| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        servers.variables = up.lines().filter_map(pair).collect();
        servers
    }

    /// Starts a Kafka alone, behind a proxy: that is where the second answer of this is reached.
    pub(crate) async fn behind_proxy() -> (Self, Proxy) {
        let proxy = Proxy::first().await;
        let port = proxy.address().port().to_string();
        let servers = Self::start(&["--only", "kafka", "--advertise", &port]).await;
        proxy.forwards_to(servers.proxied());
        (servers, proxy)
    }

    /// The URL of the database, as superuser.
    pub(crate) fn postgres(&self) -> &str {
        self.variable("OUTBOXD_TEST_POSTGRES")
    }

    /// `host:port` of the broker.
    pub(crate) fn kafka(&self) -> &str {
        self.variable("OUTBOXD_TEST_KAFKA")
    }

    /// `host:port` at which a proxy reaches the broker.
    pub(crate) fn proxied(&self) -> &str {
        self.variable("OUTBOXD_TEST_KAFKA_PROXIED")
    }

    /// Where the files of a server are.
    pub(crate) fn files(&self, server: &str) -> PathBuf {
        self.folder.path().join("servers").join(server)
    }

    /// `stop`, `start`, `kill`, `pause` or `resume` of `postgres` or `kafka`; back when it is done.
    pub(crate) async fn does(&self, verb: &str, server: &str) {
        self.call(&[verb, server]).await;
    }

    fn variable(&self, name: &str) -> &str {
        let found = self.variables.iter().find(|(found, _)| found == name);
        &found.unwrap_or_else(|| panic!("deploy/servers did not print {name}")).1
    }

    async fn call(&self, arguments: &[&str]) -> String {
        let folder = self.folder.path().join("servers");
        let output = Command::new(&self.script)
            .envs(self.told.iter().map(|(name, value)| (name, value)))
            .args(arguments)
            .arg("--dir")
            .arg(folder)
            .output()
            .await
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "deploy/servers {arguments:?}: {}\n{stderr}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        let folder = self.folder.path().join("servers");
        for server in ["postgres", "kafka"].iter().filter(|_| std::thread::panicking()) {
            let log = std::fs::read(folder.join(server).join("log")).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(LOG_LINES)..];
            eprintln!("--- end of the log of {server}\n{}\n---", tail.join("\n"));
        }
        let down = std::process::Command::new(&self.script).arg("down").arg("--dir").arg(folder).output();
        if let Err(error) = down {
            eprintln!("servers in {} were not taken down: {error}", self.folder.path().display());
        }
    }
}
