//! What the tests stand on: servers, writers, the binary under test, and the checker that judges it.
//!
//! No test sleeps to let something happen: it waits for a state with [`eventually`](eventually::eventually).

pub(crate) mod acl;
pub(crate) mod certificates;
pub(crate) mod checker;
pub(crate) mod eventually;
pub(crate) mod kafka;
pub(crate) mod postgres;
pub(crate) mod proxy;
pub(crate) mod relay;
pub(crate) mod said;
pub(crate) mod scram;
pub(crate) mod servers;
pub(crate) mod switch;
pub(crate) mod wire;
pub(crate) mod writer;

/// Reads a variable that `deploy/servers` exports; without it the test fails and says what to run.
pub(crate) fn server(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| {
        panic!("{variable} is not set: this test needs real servers\nhint: deploy/servers -- cargo test --test it")
    })
}

/// The seed of this run: `OUTBOXD_SEED`, else a new one. Printed, so that a failure can be run again.
pub(crate) fn seed() -> u64 {
    let seed = match std::env::var("OUTBOXD_SEED") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("OUTBOXD_SEED: expected a number, found `{text}`")),
        Err(_) => rand::random(),
    };
    eprintln!("OUTBOXD_SEED={seed}");
    seed
}

/// Short random text that keeps the databases and topics of two runs apart.
pub(crate) fn short_random() -> String {
    format!("{:06x}", rand::random::<u32>() & 0x00ff_ffff)
}
