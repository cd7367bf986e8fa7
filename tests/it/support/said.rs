//! What the daemon says: in `/status`, in `/readyz`, in its metrics and in its log.

use serde_json::Value;

use super::eventually::{PATIENCE, eventually};
use super::relay::Relay;
use crate::delivery::metric;

/// More lines than a daemon writes that starts, waits for one thing and goes on; fewer than one per try.
const FEW_LINES: usize = 25;

/// Waits until a lane is in a state and its reason and hint say all of `words`; meanwhile `/readyz` says the same with 503,
/// and `/livez` 200.
pub(crate) async fn says(relay: &Relay, outbox: &str, state: &str, words: &[&str]) -> String {
    eventually(&format!("{outbox} is {state} and says {words:?}"), PATIENCE, async || {
        let status = relay.status().await.map_err(|error| format!("{error:#}"))?;
        let lanes = status["lanes"].as_array().unwrap();
        let lane = lanes.iter().find(|lane| lane["outbox"] == outbox).expect("a lane of this outbox");
        let (reason, hint) = (lane["waits_for"].as_str().unwrap_or(""), lane["hint"].as_str().unwrap_or(""));
        let missing: Vec<_> = words.iter().filter(|word| !format!("{reason}; {hint}").contains(**word)).collect();
        if lane["state"] != state || !missing.is_empty() {
            return Err(format!("{missing:?} in {status}"));
        }
        let ready = relay.get("/readyz").await.map_err(|error| format!("{error:#}"))?;
        if ready.status != 503 || !ready.body.contains(&format!("lane {outbox}/0 {state}: {reason}")) {
            return Err(format!("/readyz says {} {}", ready.status, ready.body));
        }
        assert_eq!(relay.get("/livez").await.unwrap().status, 200, "alive, whatever the servers do");
        Ok(reason.to_owned())
    })
    .await
}

/// Waits until a counter says so. With `reason` and the like: `sessions_ended`, `reason="kafka"`.
pub(crate) async fn counted(relay: &Relay, name: &str, outbox: &str, reason: &str, least: f64) {
    let name = format!("outboxd_{name}_total{{outbox=\"{outbox}\",lane=\"0\",reason=\"{reason}\"}}");
    eventually(&format!("{name} is {least}"), PATIENCE, async || {
        let found = metric(relay, &name).await;
        if found >= Some(least) { Ok(()) } else { Err(format!("{found:?}; {:?}", relay.status().await)) }
    })
    .await;
}

/// The lines of the log in which a lane enters a state.
pub(crate) fn entered(relay: &Relay, outbox: &str, state: &str) -> Vec<Value> {
    let log = relay.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["outbox"] == outbox && line["state"] == state).collect()
}

/// The log says once that the lane waits, and why, and does not repeat itself with every try.
pub(crate) fn said_once(relay: &Relay, outbox: &str, state: &str, reason: &str) {
    let lines = entered(relay, outbox, state);
    assert!(matches!(&lines[..], [line] if line["reason"] == reason), "expected once {reason}: {lines:#?}");
    let log = relay.log();
    assert!(log.lines().count() <= FEW_LINES, "{} lines:\n{log}", log.lines().count());
}
