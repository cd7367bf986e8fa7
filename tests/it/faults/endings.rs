//! The daemon is told to end in the middle of its work.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::scene::{MARGIN, Scene, Server, is};
use crate::support::eventually::PATIENCE;
use crate::support::proxy::{Direction, Flow};
use crate::support::servers::Servers;

/// How long a stop may take, by default.
const GRACE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_is_told_to_end_under_load_repeats_nothing() {
    let mut scene = Scene::new("a_relay_that_is_told_to_end_under_load", None).await;
    scene.relay.start();
    scene.relay.ready().await;
    scene.rages(1_500).await;
    let mut longest = Duration::ZERO;
    for round in 0..5 {
        if round > 0 {
            let before = scene.published().await;
            scene.relay.start(); // into the backlog of the time when none ran
            scene.flows_beyond(before).await;
        }
        let told = Instant::now();
        scene.relay.terminate().await;
        assert_eq!(scene.relay.exit_code().await, Some(0), "SIGTERM number {round}");
        longest = longest.max(told.elapsed());
    }
    assert!(longest < GRACE, "{longest:?}");
    let seen = format!("exit 0 within {:.1} s", longest.as_secs_f64());
    scene.ends_well("SIGTERM under load, 5 times", &seen, async |scene| scene.relay.start()).await;
}

/// A relay with records under way to a broker that does not answer, told to end.
async fn cannot_settle(name: &str, grace: &str) -> Scene {
    let mut scene = Scene::new(name, Some(Servers::behind_proxy().await)).await;
    scene.set("relay.shutdown_grace", grace);
    scene.relay.start();
    scene.relay.ready().await;
    scene.rages(400).await;
    scene.servers().does("pause", "kafka").await;
    scene.has_open_events(20).await; // more than were under way when it stood still
    scene.relay.terminate().await;
    scene
}

/// What was under way may come again once it runs again.
async fn goes_on(mut scene: Scene, what: &str, seen: &str) {
    scene.servers().does("resume", "kafka").await;
    scene.may_repeat().await;
    scene.ends_well(what, seen, async |scene| scene.relay.start()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_the_relay_at_once() {
    let mut scene = cannot_settle("a_second_signal_ends_the_relay_at_once", "1m").await;
    is(&scene.relay, "draining").await;
    let readiness = scene.relay.get("/readyz").await.unwrap();
    assert_eq!(readiness.status, 503, "{readiness:?}");
    let told = Instant::now();
    scene.relay.terminate().await;
    assert_eq!(scene.relay.exit_code().await, Some(1));
    let took = told.elapsed();
    assert!(took < MARGIN, "{took:?}");
    let log = scene.relay.log();
    assert!(log.contains("second SIGTERM, ending at once"), "{log}");
    let seen = format!("draining, then exit 1 within {:.1} s", took.as_secs_f64());
    goes_on(scene, "second SIGTERM while Kafka does not answer", &seen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_cannot_settle_in_time_says_so_and_ends() {
    let mut scene = cannot_settle("a_relay_that_cannot_settle_in_time", "2s").await;
    let told = Instant::now();
    assert_eq!(timeout(PATIENCE, scene.relay.exit_code()).await.unwrap(), Some(1));
    let took = told.elapsed();
    assert!(took < Duration::from_secs(2) + MARGIN, "{took:?}");
    let log = scene.relay.log();
    assert!(log.contains("the grace period was not enough; what was in flight may come twice"), "{log}");
    let seen = format!("draining, then exit 1 after {:.1} s of a grace period of 2 s", took.as_secs_f64());
    goes_on(scene, "SIGTERM while Kafka does not answer", &seen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_cannot_save_ends_all_the_same() {
    let mut scene = Scene::before(Server::Postgres, "a_relay_that_cannot_save_ends_all_the_same").await;
    both_ways(&mut scene, Flow::Hold);
    let told = Instant::now();
    scene.relay.terminate().await;
    let code = scene.relay.exit_code().await;
    assert!(matches!(code, Some(0 | 1)), "{code:?}"); // 0 if all happened to be saved
    let took = told.elapsed();
    assert!(took < GRACE, "{took:?}");
    scene.may_repeat().await;
    let seen = format!("draining, then exit after {:.1} s of a grace period of 20 s", took.as_secs_f64());
    let over = async |scene: &mut Scene| {
        both_ways(scene, Flow::Pass);
        scene.relay.start();
    };
    scene.ends_well("SIGTERM while Postgres is in a black hole", &seen, over).await;
}

fn both_ways(scene: &mut Scene, flow: Flow) {
    for direction in [Direction::Requests, Direction::Answers] {
        scene.network(Server::Postgres).flow(direction, flow);
    }
}
