//! What has to hold for the table, its sequence, its column `xid` and its writers for as long as the relay runs.

use super::{Scene, ask};
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::postgres::{Role, say};

/// A guard, what provokes it, what it says, and what mends it.
struct Case {
    breaks: &'static str,
    message: &'static str,
    hint: &'static str,
    mends: &'static str,
}

const SEQUENCE_HINT: &str = "alter sequence outbox.events_id_seq increment 1 cache 1 no cycle, reconnect the writers";
const SEQUENCE_MENDS: &str = "alter sequence outbox.events_id_seq increment 1 cache 1 no cycle";
const XID: &str = "outbox.events.xid is not the writer's transaction id";
const XID_MENDS: &str = "alter table outbox.events alter xid set default pg_current_xact_id(), alter xid set not null";
const INDEX: &str = "outbox.events has no valid index that begins with xid";
const INDEX_MENDS: &str = "create index events_xid on outbox.events (xid, id)";

const CASES: [Case; 10] = [
    Case {
        breaks: "alter sequence outbox.events_id_seq cache 20",
        message: "sequence outbox.events_id_seq has cache 20: ids are out of order",
        hint: SEQUENCE_HINT,
        mends: SEQUENCE_MENDS,
    },
    Case {
        breaks: "alter sequence outbox.events_id_seq cache 3 increment -1 minvalue -10",
        message: "sequence outbox.events_id_seq has cache 3: ids are out of order",
        hint: SEQUENCE_HINT,
        mends: SEQUENCE_MENDS,
    },
    Case {
        breaks: "alter sequence outbox.events_id_seq cache 2 cycle",
        message: "sequence outbox.events_id_seq has cache 2: ids are out of order",
        hint: SEQUENCE_HINT,
        mends: SEQUENCE_MENDS,
    },
    Case {
        breaks: "alter table outbox.events alter xid drop default",
        message: XID,
        hint: XID_MENDS,
        mends: XID_MENDS,
    },
    Case {
        breaks: "alter table outbox.events alter xid drop not null",
        message: XID,
        hint: XID_MENDS,
        mends: XID_MENDS,
    },
    Case {
        breaks: "alter table outbox.events alter xid set default '3'",
        message: XID,
        hint: XID_MENDS,
        mends: XID_MENDS,
    },
    Case { breaks: "drop index outbox.events_xid", message: INDEX, hint: INDEX_MENDS, mends: INDEX_MENDS },
    Case {
        breaks: "drop index outbox.events_xid; create index events_some on outbox.events (xid) where id > 0;
                 create index events_last on outbox.events (id, xid)",
        message: INDEX,
        hint: INDEX_MENDS,
        mends: INDEX_MENDS,
    },
    Case {
        breaks: "alter table outbox.events set unlogged",
        message: "outbox.events must be an ordinary logged table",
        hint: "alter table outbox.events set logged",
        mends: "alter table outbox.events set logged",
    },
    Case {
        breaks: "insert into outbox.events (xid, aggregate_type, aggregate_id, event_type)
                 values ('99999999999', 'order', '1', 'CopiedIn')",
        message: "events carry transaction ids above the current <n>: copied in",
        hint: "run: outboxd cursor rebase",
        mends: "delete from outbox.events where event_type = 'CopiedIn'",
    },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_does_not_keep_its_promises_is_refused_until_the_hint_is_followed() {
    let mut scene = Scene::new("a_table_that_does_not_keep_its_promises").await;
    scene.publish_and_end(3).await;
    for Case { breaks, message, hint, mends } in CASES {
        scene.owner(breaks).await;
        scene.relay.start();
        scene.refuses(message, Some(hint)).await;
        scene.check_says("error", message, Some(hint)).await;
        scene.relay.kill().await;
        scene.owner(mends).await;
        assert_eq!(scene.findings().await.len(), 0, "after `{mends}`");
    }
    scene.publish_and_end(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sequence_behind_its_table_is_refused_until_the_hint_is_run() {
    let mut scene = Scene::new("a_sequence_behind_its_table").await;
    scene.publish_and_end(5).await;
    scene
        .owner(
            "insert into outbox.events (id, aggregate_type, aggregate_id, event_type) overriding system value
             values (1000, 'order', '1', 'Copied')",
        )
        .await;
    scene.relay.start();
    let message = "sequence outbox.events_id_seq is behind its table (copied without setval?): new events would come before old ones";
    let hint = "run: select setval('outbox.events_id_seq', 1000)";
    scene.refuses(message, Some(hint)).await;
    scene.check_says("error", message, Some(hint)).await;

    // when the owner runs exactly that, the relay goes on
    scene.owner(hint.strip_prefix("run: ").unwrap()).await;
    scene.write(5).await;
    scene.everything_arrives().await;
    let ids: Vec<i64> = scene.database.committed().await.iter().map(|row| row.id).collect();
    assert_eq!(ids[ids.len() - 6..], [1000, 1001, 1002, 1003, 1004, 1005]);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_takes_its_numbers_from_another_sequence_is_refused_until_that_has_the_name() {
    let mut scene = Scene::new("a_table_that_takes_its_numbers").await;
    scene.publish_and_end(5).await;

    // given the table made anew beside the old one, as one does to partition it: its identity has a sequence of its own
    scene
        .owner(
            "alter table outbox.events rename to events_before;
             create table outbox.events (like outbox.events_before including all);
             grant select, delete on outbox.events to outbox_relay;
             grant insert (aggregate_type, aggregate_id, event_type, payload) on outbox.events to outbox_writer",
        )
        .await;
    let message = "outbox.events.id does not take its numbers from outbox.events_id_seq (renamed, or another table's?)";
    let hint = "give the sequence of its identity that name, and its numbers: alter sequence … rename to …; select setval('outbox.events_id_seq', 0)";
    scene.relay.start();
    scene.refuses(message, Some(hint)).await;
    scene.check_says("error", message, Some(hint)).await;
    scene.relay.kill().await;

    // when it has the name and goes on with the numbers, so does the relay
    scene
        .owner(
            "drop table outbox.events_before;
             alter sequence outbox.events_id_seq1 rename to events_id_seq;
             select setval('outbox.events_id_seq', 5);
             grant select on sequence outbox.events_id_seq to outbox_relay",
        )
        .await;
    scene.check_says_nothing().await;
    scene.write(2).await;
    scene.relay.start();
    eventually("the new events are published", PATIENCE, async || {
        let published = scene.published().await;
        if published == 7 { Ok(()) } else { Err(format!("{published} of 7")) }
    })
    .await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_a_subscription_fills_is_refused() {
    let mut scene = Scene::new("a_table_that_a_subscription_fills").await;
    scene.publish_and_end(3).await;
    let subscription = format!("subscription_of_{}", scene.database.name());
    let (publisher, name) = (scene.database.url(Role::Admin), scene.database.name().to_owned());
    let subscribe = format!(
        "create subscription {subscription} connection '{publisher}' publication {name}
           with (enabled = false, create_slot = false, slot_name = none)"
    );
    let mut admin = scene.database.connect(Role::Admin).await;
    say(&mut admin, &format!("create publication {name} for table outbox.events")).await;
    say(&mut admin, &subscribe).await; // to itself: what counts is that the catalogue knows it
    let message = "outbox.events is the target of a subscription: its rows carry foreign transaction ids";
    let hint = "drop the table from the publication, then: alter subscription … refresh publication";
    scene.relay.start();
    scene.refuses(message, Some(hint)).await;
    scene.check_says("error", message, Some(hint)).await;
    scene.relay.kill().await;
    say(&mut admin, &format!("drop subscription {subscription}")).await;
    scene.publish_and_end(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_can_forge_transaction_ids_is_named_and_the_relay_goes_on() {
    let mut scene = Scene::new("a_role_that_can_forge").await;
    let role = format!("{}_app", scene.database.name());
    let message = format!("role {role} can write xid; an event with an old one is never seen");
    let hint = format!("revoke insert, update on outbox.events from {role}; grant outbox_writer to {role}");
    for (grant, revoke) in [
        (format!("grant insert on outbox.events to {role}"), hint.split_once(';').unwrap().0.to_owned()),
        (format!("grant update on outbox.events to {role}"), hint.split_once(';').unwrap().0.to_owned()),
        (
            format!("grant update (xid) on outbox.events to {role}"),
            format!("revoke update (xid) on outbox.events from {role}"),
        ),
    ] {
        scene.owner(&grant).await;
        scene.check_says("warning", &message, Some(&hint)).await;
        scene.owner(&revoke).await;
        assert_eq!(scene.findings().await.len(), 0, "after `{revoke}`");
    }

    // an open door stops nothing, but is in the log
    scene.owner(&format!("grant insert on outbox.events to {role}")).await;
    scene.write(3).await;
    scene.relay.start();
    scene.everything_arrives().await;
    eventually("the log names the forger", PATIENCE, async || {
        let log = scene.relay.log();
        if log.contains(&message) && log.contains(&hint) { Ok(()) } else { Err(log) }
    })
    .await;

    // and such an event is lost for good, as it says
    let forge = "insert into outbox.events (xid, aggregate_type, aggregate_id, event_type) values ('3', 'order', '1', 'Forged')";
    say(&mut scene.database.connect(Role::App).await, forge).await;
    let nr: i64 = ask(&scene.database, "select count(*) from outbox.events").await;
    scene.write(1).await;
    eventually("the next event is published", PATIENCE, async || {
        let published = scene.published().await;
        if published == nr { Ok(()) } else { Err(format!("{published} of {nr}")) }
    })
    .await;
    scene.end().await;
}
