//! Two relays of one outbox: one works, the other stands by and takes over.

use super::{Scene, ask, said, waits, write};
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::relay::Relay;

/// Starts a relay beside one that works, and waits until it stands by and names the holder.
async fn stands_by(second: &mut Relay, scene: &Scene) {
    let holder: String = ask(&scene.database, "select owner from outbox.cursors").await;
    second.start();
    let said = waits(second, "standby", &format!("another relay ({holder}) holds the lease of default/0")).await;
    assert!(said.ready && said.hint.is_none(), "standing by is what it is there for: {said:?}");
    second.ready().await;
}

async fn relays(relay: &Relay) {
    eventually("the second relay works", PATIENCE, async || {
        let said = said(relay).await.map_err(|error| format!("{error:#}"))?;
        if said.state == "relaying" { Ok(()) } else { Err(format!("{said:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_takes_over_from_a_relay_that_is_asked_to_end() {
    let mut scene = Scene::new("a_standby_takes_over_at_sigterm").await;
    let mut second = scene.beside().await;
    scene.relay.start();
    scene.relay.ready().await;
    scene.write(5).await;
    scene.everything_arrives().await;
    stands_by(&mut second, &scene).await;
    scene.end().await;
    relays(&second).await;
    assert!(!second.log().contains("vanished"), "a lease that was given back is taken at once");
    scene.write(5).await;
    scene.everything_arrives().await;
    second.terminate().await;
    assert_eq!(second.exit_code().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_takes_over_from_a_relay_that_is_killed_and_nothing_is_lost() {
    let mut scene = Scene::new("a_standby_takes_over_at_sigkill").await;
    scene.relay = scene.relay.set("relay.lease", "3s");
    let mut second = scene.beside().await.set("relay.lease", "3s");
    scene.relay.start();
    scene.relay.ready().await;
    scene.write(5).await;
    scene.everything_arrives().await;
    stands_by(&mut second, &scene).await;

    // when the first one dies in the middle of its work, and its machine with it
    let Scene { relay, database, kafka, topic } = &mut scene;
    tokio::join!(write(database, 200), async {
        eventually("some events are published", PATIENCE, async || {
            let published: i64 = kafka.ends(&[topic]).await.values().sum();
            if published > 20 { Ok(()) } else { Err(format!("{published}")) }
        })
        .await;
        relay.kill().await;
    });
    scene.write(5).await; // however fast it was, these are left for the second one

    // then the second one waits until nothing of it can be under way, and goes on
    scene.arrives().await;
    let log = second.log();
    assert!(log.contains("the relay before this one vanished; sending in 3s"), "{log}");
    relays(&second).await;
    second.terminate().await;
    assert_eq!(second.exit_code().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_relay_with_the_same_state_folder_says_that_the_lock_is_held() {
    let mut scene = Scene::new("a_second_relay_with_the_same_state").await;
    let state = tempfile::tempdir().unwrap();
    let folder = state.path().to_str().unwrap();
    let mut second = scene.beside().await.set("relay.state", folder);
    scene.relay = scene.relay.set("relay.state", folder);
    scene.relay.start();
    scene.relay.ready().await;
    stands_by(&mut second, &scene).await;

    let files: Vec<_> = state.path().read_dir().unwrap().map(|file| file.unwrap().path()).collect();
    let [file] = &files[..] else { panic!("one lock for one lane: {files:?}") };
    let warning = format!(
        "a killed relay will have to wait for its own lease: relay.state: {} is locked by another outboxd on this machine",
        file.display()
    );
    let log = second.log();
    assert!(log.contains(&warning), "{log}");
    assert!(log.contains("give each relay a writable folder of its own in relay.state"), "{log}");
    assert!(!scene.relay.log().contains("is locked"), "the first one has the lock");

    // and it takes over all the same
    scene.end().await;
    scene.write(3).await;
    scene.everything_arrives().await;
    second.terminate().await;
    assert_eq!(second.exit_code().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_relay_that_comes_back_on_its_machine_waits_for_nobody() {
    let mut scene = Scene::new("a_killed_relay_that_comes_back").await;
    // a lease that nobody could wait for here
    scene.relay = scene.relay.set("relay.lease", "5m");
    scene.relay.start();
    scene.relay.ready().await;
    scene.write(5).await;
    scene.everything_arrives().await;
    scene.relay.kill().await;
    scene.write(5).await;
    scene.relay.start();
    scene.arrives().await;
    scene.end().await;
}
