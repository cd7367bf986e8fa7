//! Certificates for servers that speak TLS, made by `openssl`.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tempfile::TempDir;
use tokio::process::Command;

use super::short_random;

/// An authority of a test's own, and what it has signed.
pub(crate) struct Authority {
    folder: TempDir,
}

/// What a server shows, and the key to it, as PEM.
pub(crate) struct Certificate {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) async fn create() -> Self {
        let authority = Self { folder: tempfile::tempdir().unwrap() };
        let name = format!("/CN=outboxd tests {}", short_random()); // two of one name are taken for each other
        let what = ["-x509", "-days", "2", "-keyout", "ca.key", "-out", "ca.pem", "-subj", &name];
        openssl(authority.folder.path(), &[&NEW_KEY[..], &what].concat()).await;
        authority
    }

    /// What clients have to trust.
    pub(crate) fn file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Signs a certificate for a server of this name.
    pub(crate) async fn sign(&self, name: &str) -> Certificate {
        let folder = self.folder.path();
        let names =
            format!("subjectAltName = DNS:{name}\nbasicConstraints = CA:FALSE\nextendedKeyUsage = serverAuth\n");
        std::fs::write(folder.join("names"), names).unwrap();
        let request = ["-keyout", "server.key", "-out", "request", "-subj", "/CN=server"];
        openssl(folder, &[&NEW_KEY[..], &request].concat()).await;
        let sign = ["x509", "-req", "-days", "2", "-in", "request", "-CA", "ca.pem", "-CAkey", "ca.key"];
        let into = ["-CAcreateserial", "-extfile", "names", "-out", "server.pem"];
        openssl(folder, &[&sign[..], &into].concat()).await;
        let read = |name| std::fs::read_to_string(folder.join(name)).unwrap();
        Certificate { certificate: read("server.pem"), key: read("server.key") }
    }
}

const NEW_KEY: [&str; 6] = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];

/// Runs it in a folder and answers what it prints.
pub(crate) async fn openssl(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("openssl").args(arguments).current_dir(folder).stdin(Stdio::null()).output().await;
    let output = output.unwrap_or_else(|error| panic!("openssl: {error}\nhint: deploy/prerequisites --tests"));
    assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
