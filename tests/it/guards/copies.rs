//! Copies of a database: a standby, a restored dump, a template. Each looks like the original and is none.

use sqlx::PgConnection;
use tokio::process::Command;
use url::Url;

use super::servers::{Server, run};
use super::{Scene, ask, write};
use crate::support::checker::check;
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::postgres::{Database, Role, connect, say};

/// Turns a server into a hot standby that streams from another. Both are stopped for the copy.
pub(crate) async fn follow(standby: &Server, primary: &Server) {
    tokio::join!(standby.act("stop"), primary.act("stop"));
    // With the owners as they are: Postgres runs as another user.
    let script = "
        cp -p \"$2/postgresql.conf\" \"$2.conf\"      # its own port and folder
        rm -rf \"$2\"
        cp -a \"$1\" \"$2\"
        mv \"$2.conf\" \"$2/postgresql.conf\"
        cp -p \"$2/PG_VERSION\" \"$2/standby.signal\" # what is in it does not matter, whose it is does
        printf \"primary_conninfo = '%s'\\n\" \"$3\" >>\"$2/postgresql.auto.conf\"";
    let mut copy = Command::new("sh");
    copy.args(["-euc", script, "sh"]).arg(primary.data()).arg(standby.data()).arg(&primary.url);
    run(&mut copy).await;
    primary.act("start").await;
    standby.act("start").await;
}

/// The URL of the same database, role and password at another server.
fn at(url: &str, server: &Server) -> String {
    let mut url = Url::parse(url).unwrap();
    url.set_port(Url::parse(&server.url).unwrap().port()).unwrap();
    url.into()
}

async fn count(connection: &mut PgConnection) -> i64 {
    sqlx::query_scalar("select count(*) from outbox.events").fetch_one(connection).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hot_standby_is_refused_until_it_is_promoted() {
    const NAME: &str = "a_hot_standby_is_refused";
    let (primary, standby) = tokio::join!(Server::up(None), Server::up(None));
    let database = Database::create_on(&primary.url, NAME).await;
    database.migrate().await;
    let mut scene = Scene::of(database, NAME).await;
    scene.publish_and_end(5).await;

    // given a standby that has everything, events that wait for the relay among it
    follow(&standby, &primary).await;
    scene.write(5).await;
    let there = at(&scene.database.url(Role::Admin), &standby);
    eventually("the standby has the events", PATIENCE, async || {
        let events = count(&mut connect(&there).await).await;
        if events == 10 { Ok(()) } else { Err(format!("{events} of 10")) }
    })
    .await;

    // then a relay that is pointed at it publishes nothing
    scene.relay = scene.relay.set("postgres.url", at(&scene.database.url(Role::Relay), &standby));
    scene.relay.start();
    let message =
        format!("connecting: {} is a hot standby: events would be skipped for ever; use the primary", standby.host());
    scene.refuses(&message, None).await;
    scene.check_says("error", &message, None).await;

    // and goes on by itself when that is the primary
    let rows = scene.database.committed().await;
    primary.act("stop").await;
    say(&mut connect(&standby.url).await, "select pg_promote()").await;
    scene.relay.ready().await;
    eventually("the topic has all events", PATIENCE, async || {
        let published = scene.published().await;
        if published == 10 { Ok(()) } else { Err(format!("{published} of 10")) }
    })
    .await;
    let verdict = check(rows, &scene.kafka.read(&scene.topic).await, &[]);
    assert!(verdict.is_sound() && verdict.is_tight(), "{verdict}");
    assert!(scene.relay.log().contains("timeline"), "a fail-over is told: {}", scene.relay.log());
    scene.end().await;
    primary.act("start").await; // or its database could not be dropped
    drop(scene);
}

/// Takes transaction ids until a cluster is past one.
pub(crate) async fn age(connection: &mut PgConnection, until: i64) {
    let take = format!(
        "do $$ begin while pg_snapshot_xmax(pg_current_snapshot())::text::bigint <= {until} loop perform pg_current_xact_id(); commit; end loop; end $$"
    );
    say(connection, &take).await;
}

pub(crate) async fn next_xid(connection: &mut PgConnection) -> i64 {
    let next = sqlx::query_scalar("select pg_snapshot_xmax(pg_current_snapshot())::text::bigint");
    next.fetch_one(connection).await.unwrap()
}

/// The major version of `pg_dump`, and so of the servers that it is used on.
pub(crate) async fn version_of_pg_dump() -> u32 {
    let told = run(Command::new("pg_dump").arg("--version")).await;
    let words = told.split_whitespace().find_map(|word| word.split('.').next()?.parse().ok());
    words.unwrap_or_else(|| panic!("no version in {told}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dump_restored_into_a_younger_cluster_is_refused() {
    const NAME: &str = "a_dump_restored_is_refused";
    let major = version_of_pg_dump().await;
    let (old, young) = tokio::join!(Server::up(Some(major)), Server::up(Some(major)));

    // given a dump with events that were published, and some that were not
    let source = Database::create_on(&old.url, NAME).await;
    source.migrate().await;
    let mut scene = Scene::of(source, NAME).await;
    let mut admin = connect(&old.url).await;
    let lead = next_xid(&mut admin).await + 3_000;
    age(&mut admin, lead).await;
    scene.publish_and_end(5).await;
    scene.write(3).await;
    let folder = tempfile::tempdir().unwrap();
    let dump = folder.path().join("dump.sql");
    let source_url = scene.database.url(Role::Admin);
    run(Command::new("pg_dump").args(["--no-owner", "--file"]).arg(&dump).arg(source_url)).await;

    // restored into a cluster whose transaction ids are behind
    let restored = Database::create_on(&young.url, NAME).await;
    let restore = ["-v", "ON_ERROR_STOP=1", "-q", "-X", "-o", "/dev/null", "-d", &restored.url(Role::Owner), "-f"];
    run(Command::new("psql").args(restore).arg(&dump)).await;
    let original = std::mem::replace(&mut scene.database, restored);
    scene.relay = scene.relay.set("postgres.url", scene.database.url(Role::Relay));
    let mut admin = connect(&young.url).await;
    assert!(next_xid(&mut admin).await < lead, "the cluster is not younger");
    write(&scene.database, 2).await;

    // then the relay publishes nothing, as long as the rows tell that they are foreign,
    scene.relay.start();
    let rebase = Some("run: outboxd cursor rebase");
    scene.refuses("events carry transaction ids above the current <n>: copied in", rebase).await;

    // and when the cluster has grown older, and its new events look delivered to the cursor
    age(&mut admin, lead + 1_000).await;
    let column =
        async |column| ask::<String>(&scene.database, &format!("select {column}::text from outbox.cursors")).await;
    let message = format!(
        "the cursor of default was not written here (xmin {}, saved {}): restored, copied or rewritten; new events would look delivered",
        column("xmin").await,
        column("saved_xid").await
    );
    scene.refuses(&message, rebase).await;
    scene.check_says("error", &message, rebase).await;
    assert_eq!(scene.published().await, 5);
    scene.relay.kill().await;
    drop((scene, original)); // before their servers
}

/// Copies a database that nobody is connected to; the copy has roles of its own beside the original's.
pub(crate) async fn copied(original: &Database, test: &str) -> Database {
    let copy = Database::create(test).await;
    let mut admin = connect(&copy.url_elsewhere(Role::Admin)).await;
    let (name, template) = (copy.name().to_owned(), original.name().to_owned());
    say(&mut admin, &format!("drop database {name}")).await;
    eventually("nobody is connected to the original", PATIENCE, async || {
        let sessions: i64 = sqlx::query_scalar("select count(*) from pg_stat_activity where datname = $1")
            .bind(&template)
            .fetch_one(&mut admin)
            .await
            .unwrap();
        if sessions == 0 { Ok(()) } else { Err(format!("{sessions} sessions")) }
    })
    .await;
    say(&mut admin, &format!("create database {name} template {template} owner {name}_owner")).await;
    write(&copy, 3).await;
    copy
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_made_from_a_template_is_refused_and_the_original_goes_on() {
    const NAME: &str = "a_database_made_from_a_template";
    let mut scene = Scene::new(NAME).await;
    scene.publish_and_end(5).await;
    let oid: String =
        ask(&scene.database, "select oid::text from pg_database where datname = current_database()").await;

    // given a copy with roles of its own
    let copy = copied(&scene.database, NAME).await;

    // then a relay that works on the copy publishes nothing,
    scene.relay = scene.relay.set("postgres.url", copy.url(Role::Relay));
    let original = std::mem::replace(&mut scene.database, copy);
    scene.relay.start();
    let message = format!("copy of database {oid}: both would publish");
    let hint = Some("if that is meant: outboxd cursor rebase");
    scene.refuses(&message, hint).await;
    scene.check_says("error", &message, hint).await;
    scene.relay.kill().await;

    // and the original goes on
    let copy = std::mem::replace(&mut scene.database, original);
    scene.relay = scene.relay.set("postgres.url", scene.database.url(Role::Relay));
    scene.publish_and_end(5).await;
    drop(copy); // first: in it are objects of the original's owner
}
