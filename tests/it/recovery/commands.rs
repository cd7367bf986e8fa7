//! What messages tell an operator to run has to exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::support::relay::outboxd;

/// The commands in a text: what stands behind `outboxd`, as far as it can be typed.
fn commands(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for rest in text.split("outboxd ").skip(1) {
        let words = rest.split([' ', '`', '"', '\'', ',', ';', '\n', '\\']);
        let words = words
            .take_while(|word| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'));
        found.insert(words.collect::<Vec<_>>().join(" "));
    }
    found
}

fn texts(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            texts(&path, found);
        } else {
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            // in strings only: prose may say `outboxd` and go on
            let lines = code.lines().filter(|line| !line.trim_start().starts_with("//") && line.contains('"'));
            found.extend(
                lines.filter(|line| line.contains("run: outboxd") || line.contains(": outboxd ")).flat_map(commands),
            );
        }
    }
}

#[tokio::test]
async fn every_command_that_a_refusal_names_exists() {
    let mut found = BTreeSet::new();
    for folder in ["src/store", "src/db", "src/relay", "src/cli"] {
        texts(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut found);
    }
    for known in ["migrate", "cursor rebase", "cursor rebase --kafka"] {
        assert!(found.contains(known), "{known} is not found in {found:?}");
    }
    for command in found {
        let arguments: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let output = outboxd(Path::new("/nowhere/outboxd.toml"), &arguments).await;
        assert_eq!(output.code, 0, "`outboxd {command}` is named in a message: {output}");
    }
}
