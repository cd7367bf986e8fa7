//! A disk that is full, and has room again.

use std::path::PathBuf;

use sqlx::AssertSqlSafe;
use sqlx::Executor as _;
use sqlx::error::DatabaseError;
use tempfile::TempDir;
use tokio::process::Command;

use super::stage::{Stage, tell};
use crate::guards::servers::run;
use crate::support::kafka::Kafka;
use crate::support::postgres::{Database, Role, connect, say};
use crate::support::servers::Servers;

/// The library that says no. A small file system would need root, a limit of the process another error than a full disk gives.
const LIBRARY: &str = include_str!("../support/full_disk.c");

/// The disk of one server, which loads the library.
struct Disk {
    folder: TempDir,
}

impl Disk {
    /// For `postgres` or `kafka`. Needs the compiler that builds librdkafka, too.
    async fn of(server: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("outboxd-disk.").tempdir().unwrap();
        // Postgres may run as another user, who has to read the library and see the file.
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let disk = Self { folder };
        let source = disk.folder.path().join("full_disk.c");
        std::fs::write(&source, LIBRARY).unwrap();
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror"]);
        compiler.arg(format!("-DFLAG=\"{}\"", disk.flag().display()));
        compiler.arg(format!("-DFOLDER=\"/{server}/data/\""));
        run(compiler.arg("-o").arg(disk.library()).arg(source).arg("-ldl")).await;
        disk
    }

    fn library(&self) -> PathBuf {
        self.folder.path().join("full_disk.so")
    }

    fn flag(&self) -> PathBuf {
        self.folder.path().join("full")
    }

    fn fills(&self) {
        std::fs::write(self.flag(), "").unwrap();
    }

    fn has_room(&self) {
        std::fs::remove_file(self.flag()).unwrap();
    }
}

async fn servers_on(disk: &Disk) -> Servers {
    Servers::start_with(&[], &[("OUTBOXD_PRELOAD", disk.library().to_str().unwrap())]).await
}

async fn stage_on(servers: &Servers, name: &str) -> Stage {
    let database = Database::create_on(servers.postgres(), name).await;
    database.migrate().await;
    Stage::new(database, Kafka::create_on(servers.kafka(), name)).await
}

/// A broker whose only folder fails ends by itself; who makes room starts it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_of_kafka_is_waited_for() {
    let disk = Disk::of("kafka").await;
    let servers = servers_on(&disk).await;
    let mut stage = stage_on(&servers, "a_full_disk_of_kafka").await;
    let plan = stage.plan(12);
    let storm = stage.begin(plan).await;
    storm.has_committed(300).await;
    disk.fills();
    let seen = stage.seen("waiting", &["the brokers and the network"]).await;
    stage.note_open().await;
    let log = std::fs::read_to_string(servers.files("kafka").join("log")).unwrap();
    assert!(log.contains("No space left on device"), "the broker did not notice: {log}");
    disk.has_room();
    servers.does("stop", "kafka").await;
    servers.does("start", "kafka").await;
    let recovered = stage.recovers().await;
    eprintln!("{}", storm.stop().await);
    let verdict = stage.all_is_well().await;
    tell("the disk of Kafka is full", &seen, Some(recovered), verdict.duplicates.count);
}

/// Every save makes a version of the cursor's row; what a long snapshot may see stays, and in the end a save needs a page.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_of_postgres_is_waited_for() {
    let disk = Disk::of("postgres").await;
    let servers = servers_on(&disk).await;
    let mut stage = stage_on(&servers, "a_full_disk_of_postgres").await;
    let plan = stage.plan(12);
    let storm = stage.begin(plan).await;
    storm.has_committed(300).await;
    let mut holder = stage.database.connect(Role::Admin).await;
    say(&mut holder, "begin isolation level repeatable read; select count(*) from outbox.cursors").await;
    // room in the WAL, without which Postgres would not say no but crash
    say(&mut connect(servers.postgres()).await, "select pg_switch_wal(); checkpoint").await;

    disk.fills();
    let mut other = stage.database.connect(Role::Admin).await;
    let touch = "update outbox.cursors set saved_xid = pg_current_xact_id()";
    let full = loop {
        if let Err(error) = other.execute(sqlx::raw_sql(AssertSqlSafe(touch))).await {
            break error;
        }
    };
    assert_eq!(full.as_database_error().and_then(DatabaseError::code).as_deref(), Some("53100"), "{full}");
    let seen = stage.seen("waiting", &["No space left on device", "the disk of the Postgres server is full"]).await;
    stage.relay.freeze().await;
    disk.has_room();
    stage.note_unsaved().await;
    stage.relay.resume().await;
    say(&mut holder, "rollback").await;
    let recovered = stage.recovers().await;
    eprintln!("{}", storm.stop().await);
    let verdict = stage.all_is_well().await;
    tell("the disk of Postgres is full", &seen, Some(recovered), verdict.duplicates.count);
}
