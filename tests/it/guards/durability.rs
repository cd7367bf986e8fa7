//! A server that may forget what it said.

use super::Scene;
use super::servers::Server;
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::postgres::{Database, connect, say};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_fsync_is_named_and_the_relay_goes_on() {
    const NAME: &str = "a_server_without_fsync_is_named";
    let server = Server::up(None).await;
    let database = Database::create_on(&server.url, NAME).await;
    database.migrate().await;
    let mut scene = Scene::of(database, NAME).await;
    assert_eq!(scene.findings().await.len(), 0);
    let mut admin = connect(&server.url).await;
    say(&mut admin, "alter system set fsync = off").await;
    say(&mut admin, "select pg_reload_conf()").await;
    eventually("a new session has no fsync", PATIENCE, async || {
        let fsync: String = super::ask(&scene.database, "show fsync").await;
        if fsync == "off" { Ok(()) } else { Err(fsync) }
    })
    .await;

    let message = "fsync is off: a crash of Postgres can undo what was published";
    scene.check_says("warning", message, Some("set fsync = on")).await;
    scene.write(3).await;
    scene.relay.start();
    scene.everything_arrives().await;
    eventually("the log says so", PATIENCE, async || {
        let log = scene.relay.log();
        if log.contains(message) { Ok(()) } else { Err(log) }
    })
    .await;
    scene.end().await;
    drop(scene); // before its server
}
