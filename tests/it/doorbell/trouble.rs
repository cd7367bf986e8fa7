//! A doorbell that is lost: the relay polls, says so once, and hears it again when it is back.

use super::{asleep, doorbell, hang, published, scene, sleeper, sleeping, take_down};
use crate::guards::{ask, write};
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::postgres::Role;
use crate::support::proxy::{Fate, Proxy};
use crate::support::relay::Relay;
use crate::support::wire::Request;

/// How often the log says so.
fn said(relay: &Relay, words: &str) -> usize {
    relay.log().lines().filter(|line| line.contains(words)).count()
}

#[tokio::test]
async fn a_bell_whose_connection_is_killed_again_and_again_is_never_missed() {
    let scene = sleeping("a_bell_whose_connection_is_killed").await;
    let sessions: f64 = ended(&scene.relay).await;
    for nr in 1..=10 {
        let pid = sleeper(&scene.database).await;
        let killed: bool = ask(&scene.database, &format!("select pg_terminate_backend({pid})")).await;
        assert!(killed);
        write(&scene.database, 1).await;
        published(&scene.relay, "default", nr).await;
        asleep(&scene.relay, "default").await;
        eventually("another connection sleeps", PATIENCE, async || {
            let held = super::holders(&scene.database, "ExclusiveLock").await;
            if held == 1 { Ok(()) } else { Err(format!("{held} held")) }
        })
        .await;
        assert_ne!(sleeper(&scene.database).await, pid);
    }
    scene.everything_arrives().await;
    let (away, heard) = (said(&scene.relay, "\"doorbell away\""), said(&scene.relay, "\"doorbell heard\""));
    assert!((1..=10).contains(&away) && heard > 10, "once for each loss: {away}, {heard}\n{}", scene.relay.log());
    assert!(ended(&scene.relay).await <= sessions, "reading went on all the while");
}

/// Sessions of the lane that ended.
async fn ended(relay: &Relay) -> f64 {
    let metrics = relay.get("/metrics").await.unwrap().body;
    let lines = metrics.lines().filter(|line| line.starts_with("outboxd_sessions_ended_total{"));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[tokio::test]
async fn a_doorbell_taken_down_under_a_sleeper_is_missed_at_once() {
    let scene = sleeping("a_doorbell_taken_down_under_a_sleeper").await;
    let away = "outbox.events has no doorbell";
    let hint = "run: outboxd migrate --doorbell default";

    take_down(&scene, "default").await;
    write(&scene.database, 1).await; // nobody rings for it
    published(&scene.relay, "default", 1).await;
    assert_eq!(doorbell(&scene.relay, "default", "away").await, Some(format!("{away}; {hint}")));
    assert_eq!(said(&scene.relay, away), 1, "{}", scene.relay.log());
    scene.check_says("warning", &format!("outbox default polls: {away}"), Some(hint)).await;
    let status = scene.relay.command(&["status"]).await;
    assert!(status.stdout.contains("away, polling") && status.stdout.contains(hint), "{status}");

    // rings for another one, or is disabled: no better
    hang(&scene, "other").await;
    let others = "the doorbell of outbox.events rings for other only";
    eventually("the log says so", PATIENCE, async || match said(&scene.relay, others) {
        0 => Err(scene.relay.log()),
        _ => Ok(()),
    })
    .await;
    scene.check_says("warning", &format!("outbox default polls: {others}"), Some(hint)).await;
    write(&scene.database, 1).await;
    published(&scene.relay, "default", 2).await;

    hang(&scene, "default").await;
    asleep(&scene.relay, "default").await;
    write(&scene.database, 1).await;
    published(&scene.relay, "default", 3).await;
    asleep(&scene.relay, "default").await;

    scene.owner("alter table outbox.events disable trigger outbox_doorbell").await;
    write(&scene.database, 1).await;
    published(&scene.relay, "default", 4).await;
    let enable = "alter table outbox.events enable always trigger outbox_doorbell";
    scene.check_says("warning", "outbox default polls: the doorbell of outbox.events is disabled", Some(enable)).await;
    scene.owner(enable).await;
    asleep(&scene.relay, "default").await;
    scene.everything_arrives().await;
}

#[tokio::test]
async fn a_doorbell_that_was_never_hung_is_told_and_polled_without() {
    let mut scene = scene("a_doorbell_that_was_never_hung").await;
    scene.relay.start();
    scene.relay.ready().await;
    let trouble = doorbell(&scene.relay, "default", "away").await;
    write(&scene.database, 3).await;
    scene.everything_arrives().await;
    let log =
        eventually("the log says so", PATIENCE, async || match said(&scene.relay, "outbox.events has no doorbell") {
            0 => Err(scene.relay.log()),
            _ => Ok(scene.relay.log()),
        })
        .await;
    let line = log.lines().find(|line| line.contains("doorbell away")).unwrap();
    assert!(line.contains("run: outboxd migrate --doorbell default") && line.contains("polls"), "{line} {trouble:?}");

    // hung up while it runs, it is found; when the relay ends, nobody is left asleep
    hang(&scene, "default").await;
    asleep(&scene.relay, "default").await;
    scene.end().await;
    eventually("the lock is free", PATIENCE, async || match super::holders(&scene.database, "ExclusiveLock").await {
        0 => Ok(()),
        locks => Err(format!("{locks} held")),
    })
    .await;
    scene.check_says_nothing().await;
    let check = scene.relay.command(&["check"]).await.stdout;
    assert!(check.contains("a transaction that wakes default cannot be prepared"), "{check}");
}

/// What goes over the connection of the doorbell: whether it hangs, the lock, and the lock given back.
const ASK: Request = Request::Statement(&["pg_trigger"]);
const LIE_DOWN: Request = Request::Statement(&["pg_try_advisory_lock"]);
const GET_UP: Request = Request::Statement(&["pg_advisory_unlock"]);

/// As when a firewall has forgotten it: nothing is refused, and nothing is closed.
#[tokio::test]
async fn a_bell_that_falls_silent_keeps_no_event_back() {
    let mut scene = scene("a_bell_that_falls_silent").await;
    hang(&scene, "default").await;
    let (proxy, url) = Proxy::before(&scene.database.url(Role::Relay)).await;
    scene.relay.configure("postgres.url", url);
    scene.relay.start();
    scene.relay.ready().await;
    let mut nr = 0;
    for (times, request) in (1..).zip([ASK, LIE_DOWN, GET_UP]) {
        asleep(&scene.relay, "default").await;
        let trap = proxy.trap(request, Fate::Silenced);
        if request != ASK {
            nr += 1;
            write(&scene.database, 1).await; // it gets up for it, and lies down again
            published(&scene.relay, "default", nr).await;
        }
        trap.sprung().await;
        nr += 1;
        write(&scene.database, 1).await;
        published(&scene.relay, "default", nr).await;
        eventually("the loss is told", PATIENCE, async || match said(&scene.relay, "no answer within 2s") {
            count if count == times => Ok(()),
            count => Err(format!("{count} times\n{}", scene.relay.log())),
        })
        .await;
    }
    asleep(&scene.relay, "default").await;
    assert!(ended(&scene.relay).await < 1.0, "reading went on all the while");
    scene.everything_arrives().await;
}
