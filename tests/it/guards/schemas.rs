//! The schema and the grants.

use super::{Scene, ask, waits};
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::postgres::{Database, Role, say};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_without_its_schema_waits_for_the_migration() {
    const NAME: &str = "a_relay_without_its_schema_waits";
    let mut scene = Scene::of(Database::create(NAME).await, NAME).await;
    scene.relay.start();
    scene.refuses("schema is missing", Some("run: outboxd migrate")).await;
    scene.check_says("error", "schema is missing", Some("run: outboxd migrate")).await;

    // when the owner does what it says, the relay goes on
    let migrated = scene.relay.command(&["migrate", "--admin-url", &scene.database.url(Role::Owner)]).await;
    assert_eq!(migrated.code, 0, "{migrated}");
    scene.write(5).await;
    scene.everything_arrives().await;
    assert_eq!(scene.findings().await.len(), 0);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_of_another_version_is_refused_by_name() {
    let mut scene = Scene::new("a_schema_of_another_version").await;
    scene.publish_and_end(1).await;
    let keep = "create table outbox.kept as table outbox._sqlx_migrations";
    scene.owner(keep).await;
    let cases = [
        (
            "delete from outbox._sqlx_migrations where version = (select max(version) from outbox._sqlx_migrations)",
            "schema is older",
            "run: outboxd migrate",
        ),
        (
            "insert into outbox._sqlx_migrations (version, description, success, checksum, execution_time) values (9999, 'of tomorrow', true, '', 0)",
            "schema is newer",
            "upgrade outboxd",
        ),
        (
            "update outbox._sqlx_migrations set checksum = 'another' where version = 2",
            "migration 2 was applied with another text than this binary carries",
            "use the binary that applied it, or restore the migration",
        ),
    ];
    for (breaks, message, hint) in cases {
        scene.owner(breaks).await;
        scene.write(1).await;
        scene.relay.start();
        scene.refuses(message, Some(hint)).await;
        scene.check_says("error", message, Some(hint)).await;
        scene.relay.kill().await;
        scene.owner("delete from outbox._sqlx_migrations").await;
        scene.owner("insert into outbox._sqlx_migrations table outbox.kept").await;
    }
    scene.publish_and_end(1).await;
}

/// All that the migrations grant to `outbox_relay`.
const GRANTS: [(&str, &str); 14] = [
    ("usage", "schema outbox"),
    ("select", "outbox._sqlx_migrations"),
    ("select", "outbox.events"),
    ("delete", "outbox.events"),
    ("select", "outbox.streams"),
    ("select", "sequence outbox.events_id_seq"),
    ("select", "outbox.cursors"),
    ("insert", "outbox.cursors"),
    ("update", "outbox.cursors"),
    ("delete", "outbox.cursors"),
    ("select", "outbox.parked"),
    ("insert", "outbox.parked"),
    ("update", "outbox.parked"),
    ("delete", "outbox.parked"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_missing_grant_is_named_with_its_table() {
    let scene = Scene::new("each_missing_grant_is_named").await;
    let role = format!("{}_relay", scene.database.name());
    for (privilege, object) in GRANTS {
        scene.owner(&format!("revoke {privilege} on {object} from outbox_relay")).await;
        let message = format!("role {role} lacks {privilege} on {object}");
        let findings = scene.findings().await;
        assert!(
            matches!(&findings[..], [only] if only.severity == "error" && only.message == message),
            "`check` does not say `{message}`, and only that, but {findings:#?}"
        );
        let hint = findings[0].hint.clone().unwrap_or_default();
        assert!(hint.ends_with(&format!("grant outbox_relay to {role}")), "{hint}");
        scene.owner(&format!("grant {privilege} on {object} to outbox_relay")).await;
    }
    assert_eq!(scene.findings().await.len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_without_a_grant_goes_on_by_itself_once_it_has_it() {
    let mut scene = Scene::new("a_relay_without_a_grant_goes_on").await;
    let role = format!("{}_relay", scene.database.name());
    scene.write(5).await;
    scene.owner("revoke update on outbox.cursors from outbox_relay").await;
    scene.relay.start();
    let hint = format!("grant update on outbox.cursors to {role}, or: grant outbox_relay to {role}");
    scene.refuses(&format!("role {role} lacks update on outbox.cursors"), Some(&hint)).await;

    // when it gets exactly what the hint says
    let (grant, _) = hint.split_once(", or: ").unwrap();
    scene.owner(grant).await;
    scene.everything_arrives().await;
    scene.relay.ready().await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_at_work_stops_when_a_grant_is_taken_away_and_goes_on_when_it_is_back() {
    let mut scene = Scene::new("a_relay_at_work_stops").await;
    let role = format!("{}_relay", scene.database.name());
    scene.write(5).await;
    scene.relay.start();
    scene.everything_arrives().await;

    // when one is taken that it does not use now; its monitor looks at once in a new session, else within a minute
    scene.owner("revoke delete on outbox.parked from outbox_relay").await;
    let cut = format!(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity where usename = '{role}' and query ~ 'pg_prepared_xacts'"
    );
    eventually("the session of the monitor is cut", PATIENCE, async || match ask::<i64>(&scene.database, &cut).await {
        1 => Ok(()),
        n => Err(format!("{n} sessions look for open transactions")),
    })
    .await;
    let hint = format!("grant delete on outbox.parked to {role}, or: grant outbox_relay to {role}");
    waits(&scene.relay, "refused", &format!("role {role} lacks delete on outbox.parked")).await;
    scene.write(5).await;
    scene.refuses(&format!("role {role} lacks delete on outbox.parked"), Some(&hint)).await;
    assert_eq!(scene.published().await, 5);

    // then it goes on when it is back
    scene.owner("grant delete on outbox.parked to outbox_relay").await;
    scene.everything_arrives().await;
    scene.relay.ready().await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_level_security_that_would_hide_events_is_refused_until_it_does_not() {
    let mut scene = Scene::new("row_level_security_that_would_hide").await;
    let role = format!("{}_relay", scene.database.name());
    scene.publish_and_end(5).await;
    scene.owner("alter table outbox.events enable row level security").await;
    scene.write_hidden().await;
    scene.relay.start();
    let (message, hint) =
        (format!("row-level security hides events from {role}"), format!("alter role {role} bypassrls"));
    scene.refuses(&message, Some(&hint)).await;
    scene.check_says("error", &message, Some(&hint)).await;

    // when an administrator does what it says
    scene.admin(&hint).await;
    scene.everything_arrives().await;
    scene.end().await;
}

impl Scene {
    /// An event whose row the relay may not see; the owner of the table is not bound by its policies.
    async fn write_hidden(&self) {
        let insert =
            "insert into outbox.events (aggregate_type, aggregate_id, event_type) values ('order', '1', 'Hidden')";
        self.owner(insert).await;
    }

    async fn admin(&self, statement: &str) {
        say(&mut self.database.connect(Role::Admin).await, statement).await;
    }
}
