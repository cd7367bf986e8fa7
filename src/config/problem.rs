//! One finding: where, what was found, what was expected, what to do. `check` reports the same type for servers.

use std::fmt;

/// A finding that an operator can act on, about one key. `Display` is one line, or two with the hint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The line of the file, from 1. A value of the environment, or a key that is not there, has none.
    pub line: Option<usize>,
    /// The key as in the file (`relay.poll.min`), or the name of the environment variable that set it.
    pub key: String,
    /// What was found. Never a secret, nor what a reference stands for.
    pub found: Option<String>,
    /// What would do.
    pub expected: String,
    /// The next step, where there is a better one than to read `expected`.
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", one_line(&self.key))?;
        }
        if let Some(found) = &self.found {
            write!(f, "found {}, ", one_line(found))?;
        }
        write!(f, "expected {}", one_line(&self.expected))?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {}", one_line(hint)),
            None => Ok(()),
        }
    }
}

/// What is wrong with a value, before its place in the file is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// The offending part, if it is not the whole value.
    pub(super) found: Option<String>,
    pub(super) expected: String,
    pub(super) hint: Option<String>,
}

impl Fault {
    /// The whole value is not what was expected.
    pub(super) fn new(expected: impl Into<String>) -> Self {
        Self { found: None, expected: expected.into(), hint: None }
    }

    /// A part of the value is not what was expected.
    pub(super) fn part(found: impl Into<String>, expected: impl Into<String>) -> Self {
        Self { found: Some(found.into()), ..Self::new(expected) }
    }

    /// The finding, once its place is known.
    pub(super) fn at(self, line: Option<usize>, key: String) -> Problem {
        Problem { line, key, found: self.found, expected: self.expected, hint: self.hint }
    }

    /// The same with a next step.
    pub(super) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

/// The known name that was probably meant, if one is near.
///
/// Three letters of five must agree: below that, advice misleads more often than it helps.
pub(super) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const LEAST_LIKENESS: f64 = 0.6;
    known
        .into_iter()
        .map(|candidate| {
            let likeness = strsim::normalized_damerau_levenshtein(name, candidate);
            (likeness, candidate)
        })
        .filter(|(likeness, _)| *likeness >= LEAST_LIKENESS)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// Words as a list for the eye: `a`, `b`.
pub(super) fn listed<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = words.into_iter().map(quoted).collect();
    quoted.join(", ")
}

/// A value as it stands in a finding.
pub(super) fn quoted(text: &str) -> String {
    format!("`{text}`")
}

/// A value with a line break must not look like a second finding.
fn one_line(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            let plain = escaped.is_none().then_some(c);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line_and_its_hint_another() {
        let problem = Problem {
            line: Some(12),
            key: "relay.lease".to_owned(),
            found: Some(quoted("10\nm")),
            expected: "a duration".to_owned(),
            hint: Some("write \"10s\"".to_owned()),
        };
        assert_eq!(
            problem.to_string(),
            "line 12: relay.lease: found `10\\nm`, expected a duration\nhint: write \"10s\""
        );
        let bare = Problem { line: None, found: None, hint: None, ..problem };
        assert_eq!(bare.to_string(), "relay.lease: expected a duration");
    }

    #[test]
    fn the_nearest_name_is_offered_and_a_far_one_is_not() {
        let cases = [
            ("pool", Some("poll")),
            ("laese", Some("lease")),
            ("in_fligth", Some("in_flight")),
            ("colour", None),
            ("", None),
        ];
        for (name, expected) in cases {
            let known = ["poll", "lease", "in_flight"];
            assert_eq!(nearest(name, known), expected, "{name}");
        }
    }
}
