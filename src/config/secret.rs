//! Values that are never printed, and the references that keep them out of the file.

use std::collections::BTreeMap;
use std::{fmt, fs};

use ::config::{Value, ValueKind};

use super::problem::{Fault, quoted};

/// What stands for a hidden value wherever something is printed.
pub(super) const HIDDEN: &str = "***";

/// A text that is never printed: `Debug` and `Display` show `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a text that must not appear in logs, findings or the output of a command.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the driver that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

/// Where a value is kept, if the file does not hold it: `{ env = "NAME" }` or `{ file = "PATH" }`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reference<'a> {
    Variable(&'a str),
    File(&'a str),
}

impl<'a> Reference<'a> {
    /// Recognises a reference; any other table is none.
    pub(super) fn of(value: &'a Value) -> Option<Self> {
        let ValueKind::Table(table) = &value.kind else {
            return None;
        };
        let mut entries = table.iter();
        let (Some((word, place)), None) = (entries.next(), entries.next()) else {
            return None;
        };
        match (word.as_str(), &place.kind) {
            ("env", ValueKind::String(name)) => Some(Self::Variable(name)),
            ("file", ValueKind::String(path)) => Some(Self::File(path)),
            _ => None,
        }
    }

    /// Fetches the value. Of a file, one line break at the end is not part of it: editors add one.
    pub(super) fn resolve(self, variables: &BTreeMap<String, String>) -> Result<String, Fault> {
        match self {
            Self::Variable(name) => variables.get(name).cloned().ok_or_else(|| {
                let expected = format!("the environment variable {} to be set", quoted(name));
                Fault::new(expected)
            }),
            Self::File(path) => fs::read_to_string(path).map(without_line_break).map_err(|error| {
                let expected = format!("the file {} to be readable text", quoted(path));
                Fault::part(error.to_string(), expected)
            }),
        }
    }
}

fn without_line_break(mut text: String) -> String {
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_printed() {
        let secret = Secret::new("hunter2");
        let printed = format!("{secret} {secret:?} {:?}", Some(&secret));
        assert!(!printed.contains("hunter2"), "{printed}");
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn a_file_loses_one_line_break_and_no_more() {
        let directory = tempfile::tempdir().unwrap();
        let cases = [("a", "a"), ("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), (" $a ", " $a ")];
        for (written, expected) in cases {
            let path = directory.path().join("secret");
            fs::write(&path, written).unwrap();
            let reference = Reference::File(path.to_str().unwrap());
            assert_eq!(reference.resolve(&BTreeMap::new()).unwrap(), expected);
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let none = BTreeMap::new();
        let fault = Reference::Variable("NO_SUCH").resolve(&none).unwrap_err();
        assert!(fault.expected.contains("`NO_SUCH`"));
        let fault = Reference::File("/no/such").resolve(&none).unwrap_err();
        assert!(fault.expected.contains("`/no/such`"));
    }
}
