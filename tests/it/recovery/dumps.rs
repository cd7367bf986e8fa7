//! A dump that is restored: into a younger cluster, a newer version, beside its original.

use std::path::{Path, PathBuf};

use sqlx::PgConnection;
use tempfile::TempDir;
use tokio::process::Command;

use super::{REBASE, ids};
use crate::guards::copies::{age, next_xid, version_of_pg_dump};
use crate::guards::servers::{Server, run};
use crate::guards::{Scene, ask};
use crate::support::postgres::{Database, Role, connect, say};

/// Events that were published before the dump, and that were not.
const SENT: usize = 14;
const UNSENT: usize = 11;

/// A database with a history, and where dumps of it lie.
struct Source {
    scene: Scene,
    folder: TempDir,
    /// Ids of its transactions are about here.
    xid: i64,
}

impl Source {
    async fn on(server: &Server, test: &str) -> Self {
        let database = Database::create_on(&server.url, test).await;
        database.migrate().await;
        let mut scene = Scene::of(database, test).await;
        let mut admin = connect(&server.url).await;
        let xid = next_xid(&mut admin).await + 3_000;
        age(&mut admin, xid).await;
        scene.publish_and_end(SENT).await;
        scene.write(UNSENT).await;
        Self { scene, folder: tempfile::tempdir().unwrap(), xid }
    }

    async fn dump(&self, name: &str, flags: &[&str]) -> PathBuf {
        let file = self.folder.path().join(name);
        let source = self.scene.database.url(Role::Admin);
        run(Command::new("pg_dump").arg("--no-owner").args(flags).arg("--file").arg(&file).arg(source)).await;
        file
    }

    /// Goes on in another database; answers the original, which must outlive its server's end.
    async fn moves_to(&mut self, restored: Database, test: &str) -> Database {
        let original = std::mem::replace(&mut self.scene.database, restored);
        self.scene.elsewhere(test).await;
        original
    }
}

async fn restore(database: &Database, dump: &Path) {
    let owner = database.url(Role::Owner);
    let restore = ["-v", "ON_ERROR_STOP=1", "-q", "-X", "-o", "/dev/null", "-d", &owner, "-f"];
    run(Command::new("psql").args(restore).arg(dump)).await;
}

/// Three events that nobody notices, one of them under a savepoint.
async fn write_unnoticed(scene: &Scene) {
    scene.write(2).await;
    let insert = "insert into outbox.events (aggregate_type, aggregate_id, event_type) values ('order', '1', 'Saved')";
    say(&mut scene.database.connect(Role::App).await, &format!("begin; savepoint a; {insert}; release a; commit"))
        .await;
}

/// A transaction that is older than what comes, and has written nothing yet.
async fn older_transaction(scene: &Scene) -> PgConnection {
    let mut connection = scene.database.connect(Role::App).await;
    say(&mut connection, "begin; select pg_current_xact_id()").await;
    connection
}

async fn ends_with_an_event(mut connection: PgConnection) {
    let insert = "insert into outbox.events (aggregate_type, aggregate_id, event_type) values ('order', '2', 'Late')";
    say(&mut connection, &format!("{insert}; commit")).await;
}

/// Refuses, is rebased as it says, and publishes 11 that were not sent, 3 that nobody noticed, 1 of the older transaction, and nothing else.
async fn is_mended(scene: &mut Scene, refusal: &str) {
    let late = older_transaction(scene).await;
    scene.relay.start();
    scene.refuses(refusal, Some(REBASE)).await;
    let shown = scene.shown().await;
    assert_eq!((&shown["verdict"], &shown["hint"]), (&"refused".into(), &REBASE.into()), "{shown}");
    let done = scene.rebase(&[]).await;
    assert_eq!(done["restamped_events"], UNSENT + 3, "{done}");
    ends_with_an_event(late).await;
    let expected = ids(&scene.database, &format!("id > {SENT}")).await;
    assert_eq!(expected.len(), UNSENT + 3 + 1);
    scene.relay.ready().await;
    scene.publishes(&expected).await;
    assert_eq!(scene.shown().await["verdict"], "goes on");
    scene.end().await;
}

const COPIED_IN: &str = "events carry transaction ids above the current <n>: copied in";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dump_in_a_younger_cluster_goes_on_after_a_rebase_with_nothing_lost_and_nothing_twice() {
    const NAME: &str = "a_dump_in_a_younger_cluster";
    let major = version_of_pg_dump().await;
    let (old, young) = tokio::join!(Server::up(Some(major)), Server::up(Some(major)));
    let mut source = Source::on(&old, NAME).await;
    let dump = source.dump("all", &[]).await;
    let restored = Database::create_on(&young.url, NAME).await;
    restore(&restored, &dump).await;
    let original = source.moves_to(restored, NAME).await;
    write_unnoticed(&source.scene).await;

    // its new events look delivered to the cursor, its old ones are from the future
    let settled = "select bool_and(pg_visible_in_snapshot(xid, s)) from outbox.events, outbox.cursors where id > 25";
    assert!(ask::<bool>(&source.scene.database, settled).await, "the case is not what it is about");
    is_mended(&mut source.scene, COPIED_IN).await;

    // and stays so when the cluster is as old as the one that the dump came from
    let past = source.xid + 1_000;
    age(&mut connect(&young.url).await, past).await;
    source.scene.elsewhere(NAME).await;
    source.scene.relay.start();
    source.scene.publishes(&[]).await;
    source.scene.end().await;
    drop((source, original)); // before their servers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_by_dump_whose_cursor_comes_last_goes_on_after_a_rebase() {
    const NAME: &str = "an_upgrade_by_dump";
    const NEWEST: u32 = 18;
    let major = version_of_pg_dump().await;
    let (old, new) = tokio::join!(Server::up(Some(major)), Server::up(Some(NEWEST)));
    let mut source = Source::on(&old, NAME).await;
    let most = source.dump("most", &["--exclude-table-data=outbox.cursors"]).await;
    let cursor = source.dump("cursor", &["--data-only", "--table=outbox.cursors"]).await;
    let restored = Database::create_on(&new.url, NAME).await;
    restore(&restored, &most).await;
    let original = source.moves_to(restored, NAME).await;
    write_unnoticed(&source.scene).await;
    restore(&source.scene.database, &cursor).await;
    is_mended(&mut source.scene, COPIED_IN).await;
    drop((source, original));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dump_restored_beside_its_original_goes_on_after_a_rebase() {
    const NAME: &str = "a_dump_restored_beside";
    let server = Server::up(Some(version_of_pg_dump().await)).await;
    let mut source = Source::on(&server, NAME).await;
    let dump = source.dump("all", &[]).await;
    let restored = Database::create_on(&server.url, NAME).await;
    restore(&restored, &dump).await;
    let original = source.moves_to(restored, NAME).await;
    write_unnoticed(&source.scene).await;
    let column = async |column: &str| {
        ask::<String>(&source.scene.database, &format!("select {column}::text from outbox.cursors")).await
    };
    let message = format!(
        "the cursor of default was not written here (xmin {}, saved {}): restored, copied or rewritten; new events would look delivered",
        column("xmin").await,
        column("saved_xid").await
    );
    is_mended(&mut source.scene, &message).await;
    drop((source, original));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dump_without_cursors_publishes_all_of_it_after_a_rebase() {
    const NAME: &str = "a_dump_without_cursors";
    let major = version_of_pg_dump().await;
    let (old, young) = tokio::join!(Server::up(Some(major)), Server::up(Some(major)));
    let mut source = Source::on(&old, NAME).await;
    let dump = source.dump("most", &["--exclude-table-data=outbox.cursors"]).await;
    let restored = Database::create_on(&young.url, NAME).await;
    restore(&restored, &dump).await;
    let original = source.moves_to(restored, NAME).await;
    source.scene.relay.start();
    source.scene.refuses(COPIED_IN, Some(REBASE)).await;
    let done = source.scene.rebase(&[]).await;
    assert_eq!(done["cursors"], serde_json::json!([]), "{done}");
    let all = ids(&source.scene.database, "true").await;
    source.scene.relay.ready().await;
    source.scene.publishes(&all).await;
    source.scene.end().await;
    drop((source, original));
}
