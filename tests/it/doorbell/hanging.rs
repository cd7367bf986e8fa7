//! `outboxd migrate --doorbell`: again and again, for several outboxes, under writers, and not where it would break something.

use super::{hang, insert, migrate, scene, take_down};
use crate::guards::ask;
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::postgres::{Role, say};

const TRIGGER: &str =
    "select coalesce(min(pg_get_triggerdef(oid)), 'none') from pg_trigger where tgname = 'outbox_doorbell'";
#[tokio::test]
async fn it_is_refused_where_transactions_may_be_prepared_unless_nobody_does() {
    let scene = scene("it_is_refused_where_transactions_may_be_prepared").await;
    let refused = migrate(&scene, &["--doorbell"]).await;
    assert_eq!(refused.code, 1, "{refused}");
    for words in ["max_prepared_transactions is 64", "hint:", "--allow-prepared-transactions"] {
        assert!(refused.stderr.contains(words), "{refused}");
    }
    // in print, too
    let printed = migrate(&scene, &["--print", "--doorbell"]).await.stdout;
    let mut owner = scene.database.connect(Role::Owner).await;
    let error = sqlx::raw_sql(sqlx::AssertSqlSafe(printed)).execute(&mut owner).await.unwrap_err();
    assert!(error.to_string().contains("max_prepared_transactions is 64"), "{error}");
    assert_eq!(ask::<String>(&scene.database, TRIGGER).await, "none");

    let printed = migrate(&scene, &["--print", "--doorbell", "shop", "--allow-prepared-transactions"]).await.stdout;
    scene.owner(&printed).await;
    scene.owner(&printed).await;
    let trigger: String = ask(&scene.database, TRIGGER).await;
    assert!(trigger.ends_with("EXECUTE FUNCTION outbox.ring('shop')"), "{trigger}");
}

#[tokio::test]
async fn it_hangs_for_each_outbox_that_was_named_and_comes_down_for_each() {
    let scene = scene("it_hangs_for_each_outbox_that_was_named").await;
    for (outboxes, ringing) in [
        (&["default"][..], "ring('default')"),
        (&["default", "a.b-c_D"], "ring('a.b-c_D', 'default')"),
        (&["default"], "ring('a.b-c_D', 'default')"),
    ] {
        for outbox in outboxes {
            hang(&scene, outbox).await;
        }
        let trigger: String = ask(&scene.database, TRIGGER).await;
        assert!(trigger.contains("AFTER INSERT OR UPDATE ON outbox.events FOR EACH STATEMENT"), "{trigger}");
        assert!(trigger.ends_with(ringing), "{trigger}");
    }
    let public: bool =
        ask(&scene.database, "select has_function_privilege('public', 'outbox.ring()', 'execute')").await;
    assert!(!public);
    say(&mut scene.database.connect(Role::App).await, &insert("1")).await; // needs no privilege for it
    for (outbox, ringing) in [("default", "ring('a.b-c_D')"), ("default", "ring('a.b-c_D')"), ("a.b-c_D", "none")] {
        take_down(&scene, outbox).await;
        let trigger: String = ask(&scene.database, TRIGGER).await;
        assert!(trigger.ends_with(ringing), "{trigger}");
    }
    take_down(&scene, "default").await;
    assert!(ask::<bool>(&scene.database, "select to_regproc('outbox.ring') is null").await);
    for wrong in
        [&["--doorbell", "a b"][..], &["--doorbell", "a", "--no-doorbell", "a"], &["--allow-prepared-transactions"]]
    {
        let output = migrate(&scene, wrong).await;
        assert_eq!(output.code, 64, "{wrong:?}: {output}");
    }
}

/// Behind a change of the table that waits, every writer would wait.
#[tokio::test]
async fn it_waits_for_an_open_writer_and_lets_others_write() {
    let scene = scene("it_waits_for_an_open_writer").await;
    for arguments in [&["--doorbell", "default", "--allow-prepared-transactions"][..], &["--no-doorbell", "default"]] {
        let mut open = scene.database.connect(Role::App).await;
        say(&mut open, "begin").await;
        say(&mut open, &insert("1")).await;
        let waits = "select count(*) from pg_locks where relation = 'outbox.events'::regclass and not granted";
        let others = async {
            eventually("it waits for the writer", PATIENCE, async || match ask::<i64>(&scene.database, waits).await {
                0 => Err("nobody waits".to_owned()),
                _ => Ok(()),
            })
            .await;
            say(&mut scene.database.connect(Role::App).await, &insert("1")).await;
            say(&mut open, "commit").await;
        };
        let (output, ()) = tokio::join!(migrate(&scene, arguments), others);
        assert_eq!(output.code, 0, "{output}");
    }
}
