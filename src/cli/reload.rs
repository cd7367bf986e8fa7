//! SIGHUP: reads file and environment again, and says what of it holds from now on. Changes nothing itself.

use super::{read, valid};
use crate::config::Config;
use std::path::Path;

/// What the file and the environment say now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// The same as before.
    Unchanged,
    /// Something that cannot be run; the findings, each in one line.
    Refused(Vec<String>),
    /// Another configuration, for which the lanes go on as they are: what they use is the same.
    Beside(Box<Config>),
    /// Another configuration of the lanes.
    Lanes(Box<Config>),
}

/// Reads the configuration that is at `path` now.
pub(super) fn look(path: &Path, before: &Config) -> Reading {
    let file = match read(path) {
        Ok(file) => file,
        Err(error) => return Reading::Refused(vec![error.to_string()]),
    };
    match valid(&file.text) {
        Ok(config) => compare(before, config),
        Err(problems) => Reading::Refused(problems.iter().map(|problem| one_line(problem)).collect()),
    }
}

fn compare(before: &Config, now: Config) -> Reading {
    if now == *before {
        return Reading::Unchanged;
    }
    let beside = Config { http: before.http.clone(), log: before.log.clone(), ..now.clone() };
    if beside == *before { Reading::Beside(Box::new(now)) } else { Reading::Lanes(Box::new(now)) }
}

/// A finding without its line breaks, for the log.
pub(super) fn one_line(text: &str) -> String {
    text.replace('\n', "; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "[postgres]\nurl = \"postgres://u@127.0.0.1/shop\"\n[kafka]\nbrokers = \"k\"\n";

    #[test]
    fn a_reading_says_what_has_to_change() {
        let before = valid(BEFORE).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("outboxd.toml");
        let read = |more: &str| {
            std::fs::write(&file, format!("{BEFORE}{more}")).unwrap();
            look(&file, &before)
        };
        assert_eq!(read("# a comment"), Reading::Unchanged);
        assert_eq!(read("[relay]\nlease = \"10s\" # the default"), Reading::Unchanged);
        assert!(matches!(read("[log]\nfilter = \"debug\""), Reading::Beside(_)));
        assert!(matches!(read("[http]\nlisten = \"127.0.0.1:1\""), Reading::Beside(_)));
        assert!(matches!(read("[relay]\nlease = \"11s\""), Reading::Lanes(_)));
        assert!(matches!(read("[log]\nfilter = \"debug\"\n[relay]\nlease = \"11s\""), Reading::Lanes(_)));

        let cases = [
            ("[relay]\nlease = 11\n[http]\nlistem = 1", &["line 6: ", "line 8: "][..]),
            ("[kafka.properties]\n\"sasl.pasword\" = \"hunter2\"", &["sasl.pasword"]),
        ];
        for (text, words) in cases {
            let Reading::Refused(findings) = read(text) else { panic!("{text} was taken") };
            assert_eq!(findings.len(), words.len(), "{findings:?}");
            for (finding, word) in findings.iter().zip(words) {
                assert!(finding.contains(word) && !finding.contains("hunter2") && !finding.contains('\n'), "{finding}");
            }
        }
        std::fs::remove_file(&file).unwrap();
        assert!(matches!(look(&file, &before), Reading::Refused(findings) if findings[0].contains("No such file")));
    }
}
