//! Waiting for a state, with a deadline.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

/// Long enough for a loaded machine, short enough that nobody waits for a hung test.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// The one permitted sleep: how often a state is looked at.
pub(crate) const INTERVAL: Duration = Duration::from_millis(20);

/// Looks until `probe` answers `Ok` and returns its value. After `within` it panics with `what` and the last thing missing.
///
/// `Err` is not a failure but what is missing still; a failure panics inside the probe. A probe that hangs is given up
/// at the deadline as well.
pub(crate) async fn eventually<T>(
    what: &str,
    within: Duration,
    mut probe: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let deadline = Instant::now() + within;
    let mut missing = String::from("nothing was looked at yet");
    loop {
        match timeout_at(deadline, probe()).await {
            Ok(Ok(value)) => return value,
            Ok(Err(still)) => missing = still,
            Err(elapsed) => panic!("{what}: not within {within:?}, the last look: {elapsed}; before it: {missing}"),
        }
        assert!(Instant::now() < deadline, "{what}: not within {within:?}; missing: {missing}");
        sleep(INTERVAL).await;
    }
}

#[tokio::test]
async fn a_state_that_comes_is_returned() {
    let mut looks = 0;
    let seen = eventually("three looks", PATIENCE, async || {
        looks += 1;
        if looks == 3 { Ok(looks) } else { Err(format!("{looks} of 3")) }
    })
    .await;
    assert_eq!(seen, 3);
}

#[tokio::test]
#[should_panic(expected = "the moon: not within 1ms; missing: still below the horizon")]
async fn a_state_that_does_not_come_is_named() {
    eventually("the moon", Duration::from_millis(1), async || Err::<(), _>("still below the horizon".to_owned())).await;
}
