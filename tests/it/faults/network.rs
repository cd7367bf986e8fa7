//! The network between the daemon and a server cuts, delays, drips and swallows; the daemon goes on by itself.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::scene::{LEASE, MARGIN, Scene, Server};
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::proxy::{Direction, Drip, Fate, Flow};
use crate::support::wire::{ACQUIRE, PRODUCE, READ, Request, SAVE};

/// How long a slow network is slow.
const SLOW: Duration = Duration::from_secs(6);

/// Whether faults are asked to be long.
fn are_long() -> bool {
    std::env::var("OUTBOXD_FAULTS").is_ok_and(|faults| faults == "long")
}

/// How long a black hole lasts: longer than the lease in any case.
fn hole() -> Duration {
    Duration::from_secs(if are_long() { 30 } else { 8 })
}

/// Catches one request after the other in a trap; in between, events flow. The lost connection of a session makes events
/// come again, that of a producer none: it sends what was not acknowledged once more, and the broker knows it.
async fn caught(name: &str, what: &str, server: Server, fate: Fate, requests: &[Request]) {
    let times = requests.len() * if are_long() { 4 } else { 1 };
    let mut scene = Scene::before(server, name).await;
    for &request in requests.iter().cycle().take(times) {
        let trap = if request == ACQUIRE {
            let trap = scene.network(server).trap(request, fate);
            scene.network(server).welcome().await;
            trap
        } else {
            scene.network(server).welcome().await;
            scene.flows().await;
            scene.network(server).trap(request, fate)
        };
        trap.sprung().await;
        if server == Server::Postgres {
            scene.may_repeat().await;
        }
    }
    let seen = scene.says_why(LEASE + MARGIN).await;
    let what = format!("{what}, {times} times");
    scene.ends_well(&what, &seen.to_string(), async |scene| scene.network(server).welcome().await).await;
}

/// The reading connection, the one that saves, and the first thing that a new one does.
const EACH: [Request; 6] = [READ, ACQUIRE, SAVE, ACQUIRE, READ, SAVE];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_is_cut_off_before_its_answer() {
    let what = "connection to Postgres reset before the answer";
    caught("postgres_is_cut_off_before_its_answer", what, Server::Postgres, Fate::Unanswered, &EACH).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_is_cut_off_after_its_answer() {
    let what = "connection to Postgres reset after the answer";
    caught("postgres_is_cut_off_after_its_answer", what, Server::Postgres, Fate::Answered, &EACH).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_is_cut_off_before_its_answer() {
    let what = "connection to Kafka reset before the answer";
    caught("kafka_is_cut_off_before_its_answer", what, Server::Kafka, Fate::Unanswered, &[PRODUCE; 10]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_is_cut_off_after_its_answer() {
    let what = "connection to Kafka reset after the answer";
    caught("kafka_is_cut_off_after_its_answer", what, Server::Kafka, Fate::Answered, &[PRODUCE; 10]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_save_that_postgres_never_hears_of_is_made_again() {
    let what = "connection reset before the save of the cursor arrives";
    caught("a_save_that_postgres_never_hears_of", what, Server::Postgres, Fate::Unheard, &[SAVE; 10]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_save_whose_answer_is_lost_is_found_in_the_row() {
    let what = "save of the cursor done, its answer lost";
    caught("a_save_whose_answer_is_lost", what, Server::Postgres, Fate::Unanswered, &[SAVE; 10]).await;
}

/// Slow is not away: the lane goes on relaying, and says by its lag that it is late.
async fn slow(name: &str, what: &str, server: Server, slowness: impl Fn(&mut Scene, bool)) {
    let mut scene = Scene::before(server, name).await;
    slowness(&mut scene, true);
    sleep(SLOW).await; // how long it lasts is the fault
    let seen = eventually("it tells how late it is, or what it waits for", PATIENCE, async || {
        let seen = scene.said().await;
        let tells = if seen.ready { seen.lag_seconds.is_some() } else { seen.waits_for.is_some() };
        if tells { Ok(seen) } else { Err(seen.to_string()) }
    })
    .await;
    scene.ends_well(what, &seen.to_string(), async |scene| slowness(scene, false)).await;
}

async fn delayed(name: &str, server: Server) {
    let what = format!("200 ms each way to {server:?}");
    let delay = |scene: &mut Scene, on| scene.network(server).delay(Duration::from_millis(if on { 200 } else { 0 }));
    slow(name, &what, server, delay).await;
}

async fn dripping(name: &str, server: Server) {
    let drip = Drip { bytes: 20, pause: Duration::from_millis(1) };
    let what = format!("{server:?} at {} bytes a millisecond", drip.bytes);
    slow(name, &what, server, |scene, on| scene.network(server).drip(on.then_some(drip))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_is_far_away() {
    delayed("postgres_is_far_away", Server::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_is_far_away() {
    delayed("kafka_is_far_away", Server::Kafka).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_answers_drop_by_drop() {
    dripping("postgres_answers_drop_by_drop", Server::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_answers_drop_by_drop() {
    dripping("kafka_answers_drop_by_drop", Server::Kafka).await;
}

/// Nothing goes through in these directions, nothing is refused, and nothing is closed.
async fn swallowed(name: &str, what: &str, server: Server, directions: &[Direction]) {
    let mut scene = Scene::before(server, name).await;
    let flow = |scene: &mut Scene, flow| {
        for &direction in directions {
            scene.network(server).flow(direction, flow);
        }
    };
    let lasts = hole();
    let over = Instant::now() + lasts;
    flow(&mut scene, Flow::Hold);
    let seen = scene.says_why(LEASE + MARGIN).await;
    sleep_until(over).await; // how long it lasts is the fault
    let still = scene.said().await;
    assert!(!still.ready && still.waits_for.is_some(), "it does not get on, and says: {still}");
    if server == Server::Postgres {
        scene.may_repeat().await;
    }
    let what = format!("{what} for {} s", lasts.as_secs());
    scene.ends_well(&what, &seen.to_string(), async |scene| flow(scene, Flow::Pass)).await;
}

const BOTH: [Direction; 2] = [Direction::Requests, Direction::Answers];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_is_in_a_black_hole() {
    swallowed("postgres_is_in_a_black_hole", "Postgres in a black hole", Server::Postgres, &BOTH).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_is_in_a_black_hole() {
    swallowed("kafka_is_in_a_black_hole", "Kafka in a black hole", Server::Kafka, &BOTH).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_hears_and_is_not_heard() {
    let what = "answers of Postgres in a black hole";
    swallowed("postgres_hears_and_is_not_heard", what, Server::Postgres, &[Direction::Answers]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_hears_and_is_not_heard() {
    let what = "answers of Kafka in a black hole";
    swallowed("kafka_hears_and_is_not_heard", what, Server::Kafka, &[Direction::Answers]).await;
}

/// One connection says nothing more, as when a firewall has forgotten it; the others that are open go on.
async fn silenced(name: &str, what: &str, server: Server, request: Request, within: Duration) {
    let mut scene = Scene::before(server, name).await;
    let trap = scene.network(server).trap(request, Fate::Silenced);
    trap.sprung().await;
    // nobody comes back before the lane has said why it stands, and before it is known what may come again
    scene.network(server).shut();
    let seen = scene.says_why(within).await;
    if server == Server::Postgres {
        scene.may_repeat().await;
    }
    scene.ends_well(what, &seen.to_string(), async |scene| scene.network(server).welcome().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_connection_that_saves_falls_silent() {
    let what = "connection that saves the cursor silent for ever";
    silenced("the_connection_that_saves_falls_silent", what, Server::Postgres, SAVE, LEASE + MARGIN).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_to_kafka_falls_silent() {
    let what = "connection to Kafka silent for ever";
    silenced("a_connection_to_kafka_falls_silent", what, Server::Kafka, PRODUCE, LEASE + MARGIN).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_connection_that_reads_falls_silent() {
    let what = "connection that reads events silent for ever";
    silenced("the_connection_that_reads_falls_silent", what, Server::Postgres, READ, PATIENCE).await;
}
