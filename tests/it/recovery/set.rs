//! A cursor that is set by hand: what comes again, what is left out, and how that is undone.

use serde_json::json;

use super::{done, fails, ids};
use crate::guards::{Scene, ask, evidence};

async fn set(scene: &Scene, to: &str) -> serde_json::Value {
    done(&scene.relay.command(&["cursor", "set", "--to", to, "--yes", "--output", "json"]).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_set_to_the_beginning_sends_all_again() {
    const NAME: &str = "a_cursor_set_to_the_beginning";
    let mut scene = Scene::new(NAME).await;
    scene.publish_and_end(5).await;
    scene.write(2).await;
    let unasked = scene.relay.command(&["cursor", "set", "--to", "earliest"]).await;
    fails(&unasked, 64, &["send 5 events again", "--yes"]);
    let answer = set(&scene, "earliest").await;
    assert_eq!((&answer["again_events"], &answer["left_out_events"]), (&json!(5), &json!(0)), "{answer}");
    let all = ids(&scene.database, "true").await;
    scene.elsewhere(NAME).await;
    scene.relay.start();
    scene.publishes(&all).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_set_to_the_present_leaves_events_out_until_it_is_undone() {
    const NAME: &str = "a_cursor_set_to_the_present";
    let mut scene = Scene::new(NAME).await;
    scene.publish_and_end(5).await;
    scene.write(3).await;
    let left_out = ids(&scene.database, "id > 5").await;
    let before = evidence(&scene.database).await;
    let unasked = scene.relay.command(&["cursor", "set", "--to", "latest"]).await;
    fails(&unasked, 64, &["leave out 3 events, which then are published by nobody", "--yes"]);
    assert_eq!(evidence(&scene.database).await, before);
    let answer = set(&scene, "latest").await;
    assert_eq!((&answer["again_events"], &answer["left_out_events"]), (&json!(0), &json!(3)), "{answer}");
    scene.elsewhere(NAME).await;
    scene.relay.start();
    scene.publishes(&[]).await;
    scene.end().await;

    // the command that it printed undoes it
    let undo = answer["undo"].as_str().unwrap();
    let (command, position) = undo.strip_prefix("outboxd ").unwrap().split_once(" --to ").unwrap();
    let words: Vec<&str> = command.split(' ').collect();
    let undone = scene.relay.command(&[&words[..], &["--to", position.trim_matches('\''), "--yes"]].concat()).await;
    assert!(undone.code == 0 && undone.stdout.contains("undo: outboxd cursor set"), "{undone}");
    let mut expected = left_out;
    expected.extend(ids(&scene.database, "id > 8").await);
    scene.elsewhere(NAME).await;
    scene.relay.start();
    scene.publishes(&expected).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_in_the_middle_of_a_window_comes_back_to_where_it_was() {
    const NAME: &str = "a_cursor_in_the_middle";
    let mut scene = Scene::new(NAME).await;
    scene.publish_and_end(5).await;
    let s: String = ask(&scene.database, "select s::text from outbox.cursors").await;
    let place = format!("3:3: {s} 2");
    let answer = set(&scene, &place).await;
    assert_eq!((&answer["again_events"], &answer["to"]), (&json!(3), &json!(place)), "{answer}");
    let shown = scene.shown().await;
    assert_eq!((&shown["cursor"]["position"], &shown["backlog_events"]), (&json!(place), &json!(3)), "{shown}");
    let expected = ids(&scene.database, "id > 2").await;
    scene.elsewhere(NAME).await;
    scene.relay.start();
    scene.publishes(&expected).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_is_not_set_where_that_would_hide_events() {
    let mut scene = Scene::new("a_cursor_is_not_set").await;
    let none = scene.relay.command(&["cursor", "set", "--to", "latest", "--yes"]).await;
    fails(&none, 1, &["outbox default has no cursor yet", "hint: `start`"]);
    scene.publish_and_end(2).await;
    let before = evidence(&scene.database).await;
    let ahead = scene.relay.command(&["cursor", "set", "--to", "99999999999:99999999999:", "--yes"]).await;
    fails(&ahead, 1, &["the snapshot is ahead of this database", "hint: "]);
    for nonsense in ["now", "5:4:", "3:3: 3:4:"] {
        let output = scene.relay.command(&["cursor", "set", "--to", nonsense, "--yes"]).await;
        fails(&output, 64, &["expected `earliest`, `latest`, or a position"]);
    }
    assert_eq!(evidence(&scene.database).await, before);

    // nor where it would destroy the evidence of a restore
    scene.owner("update outbox.cursors set s = s").await;
    let foreign = scene.relay.command(&["cursor", "set", "--to", "latest", "--yes"]).await;
    fails(&foreign, 1, &["was not written here", "run: outboxd cursor rebase"]);
}
