#![cfg(test)]
#![expect(clippy::print_stderr, reason = "a fuzzer tells its seed, its speed and the input that failed")]
//! Hostile input for what is pure: each target is a function over bytes that panics when a promise does not hold.
//!
//! `cargo test --test fuzz` replays what is kept in `corpus/<target>/`, then changes it at random for a few seconds:
//! `OUTBOXD_FUZZ_SECONDS` of them for each target, and `OUTBOXD_SEED` repeats a run. An input that fails is made smaller,
//! printed, and belongs into the corpus: then it is replayed for ever.

mod bytes;
mod config;
mod headers;
mod ledger;
mod mutate;
mod snapshot;
mod template;

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use mutate::Mutator;
use tokio::time::Instant;

/// How long each target runs, unless told otherwise: enough for some thousand inputs of the slowest one.
const SECONDS: u64 = 3;

/// For making a failed input smaller.
const SHRINKING: Duration = Duration::from_secs(2);

/// Inputs that are kept in memory beside the corpus, so that changes add up.
const MOST_KEPT: usize = 256;

thread_local! {
    /// Whether a panic of this thread is a finding, which is told once it is small.
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
    static SAID: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Replays the corpus of a target, then looks for an input that it does not take.
fn fuzz(name: &str, words: &[&str], target: fn(&[u8])) {
    hush();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
    let corpus = corpus(&folder);
    for (path, input) in &corpus {
        if let Some(said) = failure(target, input) {
            panic!("{} fails: {said}", path.display());
        }
    }
    let seed = seed();
    eprintln!("OUTBOXD_SEED={seed} ({name})");
    let mut mutator = Mutator::new(seed, words);
    let mut kept: Vec<Vec<u8>> = corpus.iter().map(|(_, input)| input.clone()).collect();
    let (begun, time, mut runs) = (Instant::now(), Duration::from_secs(seconds()), 0_u64);
    while begun.elapsed() < time {
        let input = mutator.next(&kept);
        runs += 1;
        if let Some(said) = failure(target, &input) {
            report(name, &folder, target, input, &said);
        }
        if mutator.chance(50) {
            let place = if kept.len() < corpus.len() + MOST_KEPT { kept.len() } else { mutator.below(kept.len()) };
            if place == kept.len() { kept.push(input) } else { kept[place] = input }
        }
    }
    let spent = begun.elapsed().as_secs_f64().max(0.001);
    #[expect(clippy::cast_precision_loss, reason = "a speed for the eye")]
    let a_second = runs as f64 / spent;
    eprintln!(
        "fuzz {name}: {} kept inputs replayed, {runs} tried in {spent:.1} s, {a_second:.0} a second",
        corpus.len()
    );
}

/// In the order of their names, so that a seed means the same everywhere.
fn corpus(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", folder.display());
    paths.into_iter().map(|path| (path.clone(), std::fs::read(&path).unwrap())).collect()
}

fn seed() -> u64 {
    match std::env::var("OUTBOXD_SEED") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("OUTBOXD_SEED: expected a number, found `{text}`")),
        Err(_) => rand::random(),
    }
}

fn seconds() -> u64 {
    std::env::var("OUTBOXD_FUZZ_SECONDS").map_or(SECONDS, |text| text.parse().expect("a number of seconds"))
}

/// What a target says when it does not take the input.
fn failure(target: fn(&[u8]), input: &[u8]) -> Option<String> {
    IS_QUIET.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(|| target(input)));
    IS_QUIET.set(false);
    outcome.err().map(|_| SAID.take())
}

/// A panic inside a target is kept, not printed: making an input smaller causes hundreds.
fn hush() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if IS_QUIET.get() {
                SAID.set(panic.to_string());
            } else {
                usual(panic);
            }
        }));
    });
}

fn report(name: &str, folder: &Path, target: fn(&[u8]), input: Vec<u8>, said: &str) -> ! {
    let small = smaller(target, input);
    let said = failure(target, &small).unwrap_or_else(|| said.to_owned());
    let hex = small.iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    });
    let place = folder.join(format!("found_{:08x}", checksum(&small)));
    panic!(
        "{name}: {said}\ninput: {}\nhex: {hex}\nkeep it: echo {hex} | xxd -r -p > {}",
        small.escape_ascii(),
        place.display()
    );
}

/// Takes pieces out for as long as the input still fails.
fn smaller(target: fn(&[u8]), mut input: Vec<u8>) -> Vec<u8> {
    let begun = Instant::now();
    let mut size = input.len() / 2;
    while size > 0 && begun.elapsed() < SHRINKING {
        let (mut at, mut is_smaller) = (0, false);
        while at < input.len() && begun.elapsed() < SHRINKING {
            let end = (at + size).min(input.len());
            let without = [&input[..at], &input[end..]].concat();
            if failure(target, &without).is_some() {
                (input, is_smaller) = (without, true);
            } else {
                at = end;
            }
        }
        if !is_smaller {
            size /= 2;
        }
    }
    input
}

/// FNV-1a: the name of a finding is the same for everybody.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |sum: u32, byte| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[test]
fn a_snapshot_is_what_postgres_says_it_is() {
    fuzz("snapshot", snapshot::WORDS, snapshot::target);
}

#[test]
fn a_row_cannot_leave_the_template_of_its_topic() {
    fuzz("template", template::WORDS, template::target);
}

#[test]
fn every_stored_header_arrives_as_it_is() {
    fuzz("headers", headers::WORDS, headers::target);
}

#[test]
fn any_configuration_is_valid_or_says_why_and_tells_no_secret() {
    fuzz("config", config::WORDS, config::target);
}

#[test]
fn every_event_is_accounted_for_once_whatever_happens_in_which_order() {
    fuzz("ledger", ledger::WORDS, ledger::target);
}

/// A fuzzer that finds nothing is worth nothing: each change has to be reachable.
#[test]
fn a_planted_fault_is_found_and_made_small() {
    fn faulty(input: &[u8]) {
        assert!(!input.windows(2).any(|pair| pair == b"ab"), "planted");
    }
    hush();
    let mut mutator = Mutator::new(7, &["b"]);
    let seeds = vec![b"xxxxaxxxxx".to_vec()];
    let found = (0..200_000).map(|_| mutator.next(&seeds)).find(|input| failure(faulty, input).is_some());
    let small = smaller(faulty, found.expect("the planted fault"));
    assert_eq!(small, b"ab");
}
