//! Private servers, for faults that would hurt the tests beside.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tempfile::TempDir;
use tokio::process::Command;

use crate::support::server;

/// A Postgres of the test's own, taken down with it.
pub(crate) struct Server {
    folder: TempDir,
    /// As its superuser.
    pub(crate) url: String,
}

impl Server {
    /// Starts one; of the default version of `deploy/servers`, unless a major version is given.
    pub(crate) async fn up(major: Option<u32>) -> Self {
        // Directly in the folder for such: Postgres runs as another user, who cannot enter our private ones.
        let folder = tempfile::Builder::new().prefix("outboxd-guards.").tempdir().unwrap();
        let major = major.map(|major| major.to_string());
        let mut arguments = vec!["up", "--only", "postgres"];
        arguments.extend(major.iter().flat_map(|major| ["--postgres", major]));
        let variables = servers(folder.path(), &arguments).await;
        let url = variables.lines().find_map(|line| line.strip_prefix("OUTBOXD_TEST_POSTGRES="));
        let url = url.unwrap_or_else(|| panic!("no URL in {variables}")).to_owned();
        Self { folder, url }
    }

    /// `start` or `stop`.
    pub(crate) async fn act(&self, verb: &str) {
        servers(self.folder.path(), &[verb, "postgres"]).await;
    }

    /// `host:port`.
    pub(crate) fn host(&self) -> String {
        let url = url::Url::parse(&self.url).unwrap();
        format!("{}:{}", url.host_str().unwrap(), url.port().unwrap())
    }

    /// Its data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("postgres/data")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let script = server("OUTBOXD_TEST_SERVERS");
        let down = std::process::Command::new(script).arg("down").arg("--dir").arg(self.folder.path()).status();
        if !down.as_ref().is_ok_and(std::process::ExitStatus::success) {
            eprintln!("{} was not taken down: {down:?}", self.folder.path().display());
        }
    }
}

async fn servers(folder: &Path, arguments: &[&str]) -> String {
    run(Command::new(server("OUTBOXD_TEST_SERVERS")).args(arguments).arg("--dir").arg(folder)).await
}

/// Runs a command to its end and answers what it prints; a failure fails the test.
pub(crate) async fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().await;
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (told, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{told}{wrong}", output.status);
    told.into_owned()
}
