//! Reads `src/` and `deploy/` and keeps the house in order: who may import whom, who may name which package, which files are pure.

#![cfg(test)]

mod bench;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The level of each module. A module imports from lower levels only.
const LEVELS: [(&str, u8); 15] = [
    ("outbox", 0),
    ("config", 1),
    ("telemetry", 2),
    ("supervise", 2),
    ("backoff", 2),
    ("naps", 2),
    ("routing", 3),
    ("db", 3),
    ("source", 4),
    ("sink", 4),
    ("store", 4),
    ("relay", 5),
    ("capture", 5),
    ("http", 6),
    ("cli", 6),
];

/// Where a package may be named.
const PACKAGES: [(&str, &[&str]); 5] = [
    ("sqlx", &["db", "source", "store", "capture"]),
    ("rdkafka", &["sink"]),
    ("clap", &["cli"]),
    ("axum", &["http"]),
    ("anyhow", &["cli", "main.rs"]),
];

/// Files that hold no async, no clock and no I/O.
const PURE: [&str; 8] = [
    "outbox/",
    "routing/",
    "backoff.rs",
    "relay/ledger.rs",
    "relay/verdict.rs",
    "source/poll/pace.rs",
    "sink/kafka/error.rs",
    "sink/kafka/options.rs",
];

struct Source {
    /// Relative to `src/`.
    path: String,
    /// Without comments and without the unit tests at the foot.
    code: String,
}

impl Source {
    /// The module directly below the crate.
    fn module(&self) -> &str {
        self.path.split(['/', '.']).next().unwrap_or_default()
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}

fn sources() -> Vec<Source> {
    let (src, mut found) = (root().join("src"), Vec::new());
    files(&src, &mut found);
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let code: Vec<&str> =
            code.lines().map(|line| if line.trim_start().starts_with("//") { "" } else { line }).collect();
        Source { path: path.strip_prefix(&src).unwrap().to_string_lossy().replace('\\', "/"), code: code.join("\n") }
    };
    let sources: Vec<Source> =
        found.into_iter().filter(|path| path.extension().is_some_and(|ending| ending == "rs")).map(read).collect();
    assert!(sources.len() > 30, "only {} files were found below src", sources.len());
    sources
}

fn level(module: &str) -> Option<u8> {
    LEVELS.iter().find(|(name, _)| *name == module).map(|(_, level)| *level)
}

/// The modules that a file names after `crate::`, also in groups: `crate::{db, store::cursor}`.
fn imports(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        let group = rest
            .strip_prefix('{')
            .map_or_else(|| vec![rest], |group| group.split('}').next().unwrap_or_default().split(',').collect());
        found.extend(
            group
                .iter()
                .map(|item| item.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>()),
        );
    }
    found.retain(|name| level(name).is_some());
    found
}

fn report(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

#[test]
fn a_module_imports_from_lower_levels_only() {
    let mut found = Vec::new();
    for source in sources() {
        let Some(own) = level(source.module()) else { continue };
        for import in imports(&source.code).iter().filter(|import| *import != source.module()) {
            let allowed =
                level(import).is_some_and(|other| other < own) || (source.module(), import.as_str()) == ("cli", "http");
            if !allowed {
                found.push(format!("src/{} imports {import}", source.path));
            }
        }
    }
    report("imports that run up or sideways", &found);
}

#[test]
fn every_module_has_a_level() {
    let known =
        |source: &Source| level(source.module()).is_some() || ["lib.rs", "main.rs"].contains(&source.path.as_str());
    let found: Vec<String> =
        sources().iter().filter(|source| !known(source)).map(|source| source.path.clone()).collect();
    report("modules without a level", &found);
}

#[test]
fn a_package_is_named_only_where_it_belongs() {
    let mut found = Vec::new();
    for source in sources() {
        for (package, places) in PACKAGES {
            let at_home = places.contains(&source.module()) || places.contains(&source.path.as_str());
            if !at_home
                && (source.code.contains(&format!("{package}::")) || source.code.contains(&format!("use {package};")))
            {
                found.push(format!("src/{} names {package}", source.path));
            }
        }
    }
    report("packages away from home", &found);
}

#[test]
fn pure_files_have_no_async_no_clock_and_no_io() {
    let words =
        ["async ", ".await", "tokio::", "std::fs", "std::net", "Instant::now", "SystemTime", "rand::", "std::env"];
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| PURE.iter().any(|pure| source.path.starts_with(pure))) {
        found.extend(
            words.iter().filter(|word| source.code.contains(**word)).map(|word| format!("src/{}: {word}", source.path)),
        );
    }
    report("impure words in pure files", &found);
}

#[test]
fn only_the_cursor_compares_places() {
    let text = fs::read_to_string(root().join("src/outbox/event.rs")).unwrap();
    let row_id = text.split("pub struct RowId").next().unwrap().rsplit("#[derive(").next().unwrap();
    assert!(!row_id.contains("Ord"), "RowId has an order: then anybody can compare ids");
    let text = fs::read_to_string(root().join("src/outbox/snapshot.rs")).unwrap();
    let xid = text.split("pub struct Xid").next().unwrap().rsplit("#[derive(").next().unwrap();
    assert!(!xid.contains("Ord"), "Xid has an order: then anybody can compare transaction ids");
    let comparing: Vec<String> = sources()
        .iter()
        .filter(|source| !source.path.starts_with("outbox/"))
        .filter(|source| {
            source.code.lines().any(|line| {
                line.contains(".get()")
                    && [" < ", " > ", " <= ", " >= ", ".min(", ".max("].iter().any(|sign| line.contains(sign))
            })
        })
        .map(|source| source.path.clone())
        .collect();
    report("files that compare raw ids", &comparing);
}

#[test]
fn a_file_that_grows_past_its_concept_is_split() {
    let found: Vec<String> =
        sources().iter().filter(|source| source.code.lines().count() > 600).map(|source| source.path.clone()).collect();
    report("files over 600 lines without their tests", &found);
}

#[test]
fn metrics_have_one_home() {
    let found: Vec<String> = sources()
        .iter()
        .filter(|source| source.path != "telemetry/metrics.rs" && source.code.contains("prometheus_client"))
        .map(|source| source.path.clone())
        .collect();
    report("files that define metrics", &found);
}

#[test]
fn the_top_level_is_what_the_owner_wants() {
    let wanted = ["Cargo.toml", "Cargo.lock", "LICENSE", "README.md", "migrations", "src", "tests", "deploy", "target"];
    let names = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let found: Vec<String> = names.filter(|name| !name.starts_with('.') && !wanted.contains(&name.as_str())).collect();
    report("strangers at the top level", &found);
}
