//! A daemon that stands still for longer than its lease, and does not know it when it goes on.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::scene::{LEASE, MARGIN, Scene, Server, is};
use crate::support::servers::Servers;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_relay_moves_nothing_when_it_thaws() {
    let broker = Servers::behind_proxy().await;
    let mut scene = Scene::new("a_frozen_relay_moves_nothing_when_it_thaws", Some(broker)).await;
    scene.stands_by().await;
    scene.rages(400).await;
    let (epoch, frozen) = scene.holder().await;
    scene.network(Server::Kafka).delay(Duration::from_millis(300)); // so that there is much under way
    scene.has_open_events(100).await;

    // when it stands still in the middle of its work, and another one takes over
    scene.relay.freeze().await;
    let froze = Instant::now();
    scene.may_repeat().await;
    let before = scene.published().await;
    is(scene.second.as_ref().unwrap(), "relaying").await;
    scene.flows_beyond(before).await;
    let taken_over = froze.elapsed();
    assert!(taken_over > LEASE, "before the lease had run out: {taken_over:?}");
    let taken = scene.holder().await;
    assert!(taken.0 > epoch && taken.1 != frozen, "{taken:?} after {frozen:?}");
    scene.flows().await;

    // then it stops when it goes on, and stands by
    scene.relay.resume().await;
    let seen = is(&scene.relay, "standby").await;
    let holder = taken.1.as_deref().unwrap();
    assert!(seen.waits_for.as_ref().is_some_and(|reason| reason.contains(holder)), "{seen}");
    let log = scene.relay.log();
    let stopped = ["the lease could not be renewed", "another relay has taken the lease"];
    assert!(stopped.iter().any(|reason| log.contains(reason)), "{log}");
    scene.flows().await;
    assert_eq!(scene.holder().await, taken, "the lease is where it was");
    let parked: i64 = scene.ask("select count(*) from outbox.parked").await;
    assert_eq!(parked, 0, "nothing is wrong with any event");
    assert!(taken_over <= 2 * LEASE + MARGIN, "{taken_over:?}");

    scene.recovered = Some(taken_over);
    scene.ends_well("SIGSTOP for longer than the lease, SIGCONT", &seen.state, async |_| {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_relay_that_nobody_replaces_goes_on_by_itself() {
    let mut scene = Scene::before(Server::Postgres, "a_frozen_relay_that_nobody_replaces").await;
    scene.relay.freeze().await;
    scene.may_repeat().await;
    sleep(2 * LEASE).await; // how long it stands still is the fault
    let thaw = async |scene: &mut Scene| scene.relay.resume().await;
    scene.ends_well("SIGSTOP for twice the lease, SIGCONT, no other relay", "no answer", thaw).await;
}
