//! What a rebase refuses, what it changes, and what it leaves alone.

use std::time::Duration;

use serde_json::json;
use toml::{Table, Value};

use super::{done, fails, ids};
use crate::guards::{Scene, ask, evidence, waits, write};
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::postgres::{Role, say};

/// As a restore leaves the row: not written by the transaction that it names.
const FOREIGN: &str = "update outbox.cursors set s = s";

const STAMPS: &str = "select coalesce(string_agg(id || ' ' || xid, ',' order by id), '') from outbox.events";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebase_waits_for_no_relay_but_says_who_holds_the_lease() {
    let mut scene = Scene::new("a_rebase_beside_a_relay").await;
    scene.relay = scene.relay.set("relay.lease", "1m");
    scene.write(5).await;
    scene.relay.start();
    scene.everything_arrives().await;
    let owner: String = ask(&scene.database, "select owner from outbox.cursors").await;
    let admin = scene.database.url(Role::Admin);
    let stamps: String = ask(&scene.database, STAMPS).await;
    let rebase = ["cursor", "rebase", "--yes", "--admin-url", &admin];
    let beside = scene.relay.command(&rebase).await;
    fails(&beside, 1, &[&format!("a relay ({owner}) holds the lease of default/0 until 2"), "hint: stop it"]);
    let dry = scene.relay.command(&["cursor", "rebase", "--dry-run", "--admin-url", &admin]).await;
    assert!(dry.code == 0 && dry.stdout.contains("not now") && dry.stdout.contains(&owner), "{dry}");
    let set = scene.relay.command(&["cursor", "set", "--to", "earliest", "--yes"]).await;
    fails(&set, 1, &[&format!("a relay ({owner}) holds the lease of default/0 until 2"), "hint: stop it"]);
    assert_eq!(ask::<String>(&scene.database, STAMPS).await, stamps, "refused, and changed");

    // one that was killed holds it until it runs out
    scene.relay.kill().await;
    fails(&scene.relay.command(&rebase).await, 1, &["once its lease has run out"]);
    let run_out = "update outbox.cursors set lease_until = clock_timestamp(), saved_xid = pg_current_xact_id()";
    say(&mut scene.database.connect(Role::Owner).await, run_out).await;
    let output = scene.relay.command(&rebase).await;
    assert_eq!(output.code, 0, "{output}");
    scene.elsewhere("a_rebase_beside_a_relay").await;
    scene.relay.start();
    scene.relay.ready().await;
    scene.write(1).await;
    eventually("the next event is in the topic", PATIENCE, async || match scene.published().await {
        0 => Err("nothing".to_owned()),
        _ => Ok(()),
    })
    .await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_counts_and_changes_nothing() {
    let mut scene = Scene::new("a_dry_run_counts").await;
    scene.publish_and_end(5).await;
    scene.write(3).await;
    let admin = scene.database.url(Role::Admin);
    let before = (evidence(&scene.database).await, ask::<String>(&scene.database, STAMPS).await);
    for (flags, restamped, again) in [(&[][..], 3, 0), (&["--all"][..], 8, 5)] {
        let dry = ["cursor", "rebase", "--dry-run", "--output", "json", "--admin-url", &admin];
        let plan = done(&scene.relay.command(&[&dry[..], flags].concat()).await);
        assert_eq!(plan["restamped_events"], restamped, "{plan}");
        let cursors = json!([{ "outbox": "default", "lane": 0, "again_events": again }]);
        assert_eq!((&plan["cursors"], &plan["refused"]), (&cursors, &json!(null)), "{plan}");
        assert_eq!(plan["verdicts"][0]["verdict"], "fits this database", "{plan}");
    }
    let unasked = scene.relay.command(&["cursor", "rebase", "--admin-url", &admin]).await;
    fails(&unasked, 64, &["stdin is no terminal", "--yes"]);
    assert_eq!((evidence(&scene.database).await, ask::<String>(&scene.database, STAMPS).await), before);

    // and the real thing does what it said
    let rebased = scene.rebase(&["--all"]).await;
    assert_eq!(rebased["restamped_events"], 8, "{rebased}");
    let all = ids(&scene.database, "true").await;
    scene.elsewhere("a_dry_run_counts").await;
    scene.relay.start();
    scene.publishes(&all).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_rebase_is_told_who_may() {
    let scene = Scene::new("who_may_not_rebase").await;
    let role = format!("{}_relay", scene.database.name());
    for arguments in [&["cursor", "rebase", "--yes"][..], &["cursor", "rebase", "--dry-run"]] {
        let output = scene.relay.command(arguments).await;
        fails(&output, 1, &[&format!("role {role} lacks update on outbox.events"), "--admin-url", "OUTBOXD_ADMIN_URL"]);
    }
    let typo = scene.relay.command(&["cursor", "show", "--outbox", "defualt"]).await;
    fails(&typo, 64, &["--outbox: expected one of default, found defualt"]);
    let owner = scene.database.url(Role::Owner);
    let none =
        done(&scene.relay.command(&["cursor", "rebase", "--yes", "--admin-url", &owner, "--output", "json"]).await);
    assert_eq!(none["cursors"], json!([]), "the owner may; there is no cursor yet: {none}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_does_not_end_is_named_and_nothing_is_changed() {
    let mut scene = Scene::new("a_writer_that_does_not_end").await;
    scene.publish_and_end(3).await;
    scene.owner(FOREIGN).await;
    let before = evidence(&scene.database).await;
    let mut writer = scene.database.connect(Role::App).await;
    let insert = "insert into outbox.events (aggregate_type, aggregate_id, event_type) values ('order', '1', 'Slow')";
    say(&mut writer, &format!("begin; {insert}")).await;
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut writer).await.unwrap();
    let output = scene.operator("cursor rebase").await;
    let who = format!("outbox.events is locked by session {pid} of {}_app", scene.database.name());
    fails(&output, 1, &[&who, "hint: its transaction wrote events and is open: end it"]);
    assert_eq!(evidence(&scene.database).await, before);

    // prepared, it has no session to be named by
    let name = format!("slow in {}", scene.database.name());
    say(&mut writer, &format!("prepare transaction '{name}'")).await;
    let who = format!("outbox.events is locked by prepared transaction {name} of {}_app", scene.database.name());
    fails(&scene.operator("cursor rebase").await, 1, &[&who]);
    say(&mut writer, &format!("commit prepared '{name}'")).await;
    assert_eq!(scene.rebase(&[]).await["restamped_events"], 4, "written here under a foreign cursor, all four");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sequence_behind_its_table_is_mended_first() {
    let mut scene = Scene::new("a_sequence_behind_is_mended_first").await;
    scene.publish_and_end(3).await;
    let copied = "insert into outbox.events (id, aggregate_type, aggregate_id, event_type) overriding system value values (1000, 'order', '1', 'Copied')";
    scene.owner(copied).await;
    let statement = "select setval('outbox.events_id_seq', 1000)";
    fails(&scene.operator("cursor rebase").await, 1, &["is behind its table", &format!("hint: run: {statement}")]);
    scene.owner(statement).await;
    assert_eq!(scene.rebase(&[]).await["restamped_events"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_is_written_around_a_rebase_is_lost_or_comes_twice() {
    const WRITERS: usize = 4;
    const NAME: &str = "nothing_that_is_written_around_a_rebase";
    let mut scene = Scene::new(NAME).await;
    scene.publish_and_end(3).await;
    for round in 0..3 {
        let Scene { relay, database, .. } = &scene;
        let admin = database.url(Role::Admin);
        let writers = futures::future::join_all((0..WRITERS).map(|writer| async move {
            let mut app = database.connect(Role::App).await;
            for nr in 0..150 {
                let insert = format!(
                    "insert into outbox.events (aggregate_type, aggregate_id, event_type) values ('order', '{writer}', 'Placed')"
                );
                let statements = match nr % 3 {
                    0 => insert,
                    1 => format!("begin; select pg_current_xact_id(); select pg_sleep(0.01); {insert}; commit"), // its id is older than its event
                    _ => format!("begin; savepoint a; {insert}; release a; commit"),
                };
                say(&mut app, &statements).await;
            }
        }));
        let rebases = async {
            for _ in 0..4 {
                let output = relay.command(&["cursor", "rebase", "--yes", "--admin-url", &admin]).await;
                assert_eq!(output.code, 0, "{output}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::join!(writers, rebases);
        scene.relay.start();
        scene.everything_arrives().await;
        scene.end().await;
        assert_eq!(scene.published().await, 3 + 600 * (round + 1));
    }
}

/// The configuration of another outbox on the same table.
fn audit(scene: &Scene) -> Vec<Table> {
    let route = Table::from_iter([("topic".to_owned(), Value::from(scene.kafka.template()))]);
    let mut outbox = Table::from_iter([("name".to_owned(), "audit".into()), ("start".to_owned(), "earliest".into())]);
    outbox.insert("route".to_owned(), vec![route].into());
    vec![outbox]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_outbox_on_the_table_is_listed_and_reads_again_what_is_stamped_anew() {
    const NAME: &str = "another_outbox_on_the_table";
    let mut scene = Scene::new(NAME).await;
    scene.publish_and_end(5).await;
    let mut other = scene.beside().await.set("outbox", audit(&scene));
    write(&scene.database, 2).await;
    other.start();
    eventually("the other outbox has read all seven", PATIENCE, async || {
        let published = scene.published().await;
        if published == 5 + 7 { Ok(()) } else { Err(published.to_string()) }
    })
    .await;
    other.terminate().await;
    assert_eq!(other.exit_code().await, Some(0));

    let plan = scene.operator("cursor rebase --outbox default").await;
    assert_eq!(plan.code, 0, "{plan}");
    assert!(plan.stderr.contains("audit will read 2 events again that it has settled"), "{plan}");
    let shown = done(&scene.relay.command(&["cursor", "show", "--output", "json"]).await);
    let configured: Vec<_> = shown.as_array().unwrap().iter().map(|row| (&row["outbox"], &row["configured"])).collect();
    assert_eq!(configured, [(&json!("default"), &json!(true)), (&json!("audit"), &json!(false))]);

    // both had two to read, and read them
    let two = ids(&scene.database, "id > 5").await;
    scene.elsewhere(NAME).await;
    scene.relay.start();
    scene.publishes(&two).await;
    scene.end().await;
    let three = ids(&scene.database, "id > 5").await;
    scene.elsewhere(NAME).await;
    scene.relay = scene.beside().await.set("outbox", audit(&scene));
    scene.relay.start();
    scene.publishes(&three).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_outbox_has_not_settled_is_kept_for_it() {
    const NAME: &str = "what_another_outbox_has_not_settled";
    let mut scene = Scene::new(NAME).await;
    scene.publish_and_end(3).await;
    scene.relay = scene.beside().await.set("outbox", audit(&scene));
    scene.relay.start();
    scene.relay.ready().await;
    scene.end().await;

    // given an event from elsewhere, that is settled for the one outbox and not for the other
    let copy = "insert into outbox.events (xid, aggregate_type, aggregate_id, event_type) values ('99999999999', 'order', '1', 'CopiedIn')";
    scene.owner(copy).await;
    scene.owner("update outbox.cursors set s = '999999999999:999999999999:' where outbox = 'default'").await;
    let done = scene.rebase(&["--outbox", "default"]).await;
    assert_eq!((&done["restamped_events"], &done["aged_events"]), (&json!(4), &json!(0)), "{done}");
    let all = ids(&scene.database, "true").await;
    scene.elsewhere(NAME).await;
    scene.relay = scene.beside().await.set("outbox", audit(&scene));
    scene.relay.start();
    scene.publishes(&all).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_from_another_database_are_published_after_a_rebase() {
    const NAME: &str = "rows_from_another_database";
    let mut scene = Scene::new(NAME).await;
    scene.publish_and_end(3).await;
    let copy = "insert into outbox.events (xid, aggregate_type, aggregate_id, event_type) values ('99999999999', 'order', '1', 'CopiedIn')";
    scene.owner(copy).await;
    scene.elsewhere(NAME).await;
    scene.relay.start();
    scene.refuses("events carry transaction ids above the current <n>: copied in", Some(super::REBASE)).await;
    assert_eq!(scene.rebase(&[]).await["restamped_events"], 1);
    let expected = ids(&scene.database, "id > 3").await;
    scene.relay.ready().await;
    scene.publishes(&expected).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_slept_through_a_restore_does_not_find_its_own_epoch_again() {
    const NAME: &str = "a_relay_that_slept_through";
    let mut scene = Scene::new(NAME).await;
    scene.relay = scene.relay.set("relay.lease", "3s");
    scene.write(3).await;
    scene.relay.start();
    scene.everything_arrives().await;
    scene.relay.freeze().await;

    // given a cursor from before: with one epoch for the rebase and one for the next holder it would be the sleeper's
    scene.owner("update outbox.cursors set epoch = epoch - 2").await;
    scene.rebase(&[]).await;
    let mut second = scene.beside().await.set("relay.lease", "3s");
    second.start();
    second.ready().await;
    scene.relay.resume().await;
    let holder: String = ask(&scene.database, "select owner from outbox.cursors").await;
    waits(&scene.relay, "standby", &format!("another relay ({holder}) holds the lease of default/0")).await;
    scene.relay.kill().await;
    second.terminate().await;
    assert_eq!(second.exit_code().await, Some(0));
}
