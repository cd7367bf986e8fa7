//! How long a lane stands still until the next relay works it: measured to the first record of the next one.

use std::time::Duration;

use tokio::time::Instant;

use super::scene::{LEASE, MARGIN, Scene, is};

/// What is promised where nobody has to wait for a lease.
const AT_ONCE: Duration = Duration::from_secs(1);

async fn within(mut scene: Scene, what: &str, since: Instant, before: i64, promised: Duration) {
    scene.flows_beyond(before).await;
    let took = since.elapsed();
    assert!(took <= promised + MARGIN, "{what}: promised {promised:?}, took {took:?}");
    let seen = match &scene.second {
        Some(second) => is(second, "relaying").await.state,
        None => is(&scene.relay, "relaying").await.state,
    };
    scene.recovered = Some(took);
    scene
        .ends_well(what, &format!("{seen} after at most {promised:?}"), async |scene| {
            if scene.second.is_some() {
                scene.relay.start(); // as a standby: it ends as well as the other one
            }
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_takes_over_from_a_machine_that_died_within_two_leases() {
    let mut scene = Scene::new("a_standby_takes_over_from_a_dead_machine", None).await;
    scene.stands_by().await;
    scene.rages(400).await;
    scene.second.as_mut().expect("a second relay").freeze().await; // no record is its own before it is told from the other's
    scene.relay.kill().await;
    let killed = Instant::now();
    scene.may_repeat().await;
    let before = scene.published().await;
    scene.second.as_mut().expect("a second relay").resume().await;
    within(scene, "SIGKILL, a standby on another machine", killed, before, 2 * LEASE + AT_ONCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_takes_over_at_once_from_a_relay_that_ends() {
    let mut scene = Scene::new("a_standby_takes_over_from_one_that_ends", None).await;
    scene.stands_by().await;
    scene.rages(400).await;
    let told = Instant::now();
    scene.relay.terminate().await;
    assert_eq!(scene.relay.exit_code().await, Some(0));
    let before = scene.published().await;
    within(scene, "SIGTERM, a standby on another machine", told, before, AT_ONCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_is_started_again_waits_for_nobody() {
    let mut scene = Scene::new("a_relay_that_is_started_again", None).await;
    scene.relay.start();
    scene.relay.ready().await;
    scene.rages(400).await;
    scene.relay.kill().await;
    scene.may_repeat().await;
    let before = scene.published().await;
    let started = Instant::now();
    scene.relay.start();
    within(scene, "SIGKILL, started again on its machine", started, before, AT_ONCE).await;
}

/// Records of the one that vanished can be under way until the hold is over, whoever holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_killed_while_it_holds_holds_again() {
    let mut scene = Scene::new("who_is_killed_while_it_holds", None).await;
    scene.stands_by().await;
    scene.rages(400).await;
    scene.relay.kill().await;
    scene.may_repeat().await;
    let before = scene.published().await;
    let second = scene.second.as_mut().expect("a second relay");
    is(second, "holding").await;
    second.kill().await;
    second.start();
    is(second, "standby").await; // the lease of its former self is not its own
    is(second, "holding").await;
    scene.flows_beyond(before).await;
    scene.ends_well("SIGKILL while it holds", "`standby`, then `holding`", async |scene| scene.relay.start()).await;
}
