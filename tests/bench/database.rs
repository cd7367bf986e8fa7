//! A database of this run's own, with the daemon's schema, and a role for the daemon.

use std::path::Path;

use anyhow::{Context as _, ensure};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use url::Url;
use uuid::Uuid;

use super::daemon;
use super::relay::Place;

/// The database under measure.
pub(crate) struct Database {
    /// Of the superuser.
    pub(crate) connection: PgConnection,
    server: Url,
    name: String,
}

impl Database {
    /// Makes it on the server of this URL.
    pub(crate) async fn create(server: &str, binary: &Path) -> anyhow::Result<Self> {
        let server = Url::parse(server).context("OUTBOXD_TEST_POSTGRES is no URL")?;
        let name = format!("bench_{}", &Uuid::new_v4().simple().to_string()[..8]);
        let password = server.password().map_or_else(String::new, |word| format!(" password '{word}'"));
        let mut connection = connect(&server).await?;
        execute(&mut connection, &format!("create database {name}")).await?;
        execute(&mut connection, &format!("create role {name} login{password}")).await?;
        let prepared = prepare(&in_database(&server, &name), &name, binary).await;
        match prepared {
            Ok(connection) => Ok(Self { connection, server, name }),
            Err(error) => drop_all(&mut connection, &name).await.and(Err(error)),
        }
    }

    /// How it is reached.
    pub(crate) fn place(&self) -> anyhow::Result<Place> {
        let admin = in_database(&self.server, &self.name);
        let mut daemon = admin.clone();
        ensure!(daemon.set_username(&self.name).is_ok(), "OUTBOXD_TEST_POSTGRES names no host");
        Ok(Place { admin: admin.into(), daemon: daemon.into() })
    }

    /// The version of the server.
    pub(crate) async fn version(&mut self) -> anyhow::Result<String> {
        Ok(sqlx::query_scalar("show server_version").fetch_one(&mut self.connection).await?)
    }

    /// So that a checkpoint falls into no run, and each finds as little to write as the others.
    pub(crate) async fn checkpoint(&mut self) -> anyhow::Result<()> {
        self.execute("checkpoint").await
    }

    /// Runs a statement of numbers and names of our own only, so nothing has to be bound.
    pub(crate) async fn execute(&mut self, statement: &str) -> anyhow::Result<()> {
        execute(&mut self.connection, statement).await
    }

    /// Drops the database and the role.
    pub(crate) async fn remove(self) -> anyhow::Result<()> {
        self.connection.close().await?;
        drop_all(&mut connect(&self.server).await?, &self.name).await
    }
}

async fn prepare(url: &Url, role: &str, binary: &Path) -> anyhow::Result<PgConnection> {
    daemon::migrate(binary, url.as_str(), &[]).await?;
    let mut connection = connect(url).await?;
    execute(&mut connection, &format!("grant outbox_relay, pg_monitor to {role}")).await?;
    execute(&mut connection, "set max_parallel_workers_per_gather = 0").await?; // as the daemon reads
    execute(&mut connection, "set synchronize_seqscans = off").await?; // from the first row on, always
    execute(&mut connection, "set synchronous_commit = off").await?; // for loading: vacuum and checkpoint come behind it
    Ok(connection)
}

fn in_database(server: &Url, name: &str) -> Url {
    let mut url = server.clone();
    url.set_path(name);
    url
}

async fn connect(url: &Url) -> anyhow::Result<PgConnection> {
    PgConnection::connect(url.as_str()).await.context("cannot connect to OUTBOXD_TEST_POSTGRES")
}

async fn drop_all(connection: &mut PgConnection, name: &str) -> anyhow::Result<()> {
    execute(connection, &format!("drop database {name} with (force)")).await?;
    execute(connection, &format!("drop role {name}")).await
}

async fn execute(connection: &mut PgConnection, statement: &str) -> anyhow::Result<()> {
    connection.execute(AssertSqlSafe(statement)).await.with_context(|| format!("failed: {statement}"))?;
    Ok(())
}
