//! How a key of the file is described. Each section describes its keys beside its struct; what is known,
//! what the environment reaches, the defaults, the schema and `show` all come from there.

use std::time::Duration;

use super::problem::{listed, quoted};

/// One key of the file, or one table of keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    /// One sentence for an editor that reads the schema.
    pub(super) doc: &'static str,
    pub(super) kind: Kind,
}

/// What stands behind a name.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// One value.
    Value(Form, Fallback),
    /// A table of known keys; not written, it is there with their defaults.
    Table(&'static [Key]),
    /// A table of known keys; not written, it is not there.
    OptionalTable(&'static [Key]),
    /// A list of tables; not written, it is one table with the defaults.
    Tables(&'static [Key]),
    /// A table with names of the operator's choice.
    Entries(Form),
}

impl Kind {
    /// The keys of a table.
    pub(super) fn keys(self) -> &'static [Key] {
        match self {
            Self::Table(keys) | Self::OptionalTable(keys) | Self::Tables(keys) => keys,
            Self::Value(..) | Self::Entries(_) => &[],
        }
    }

    /// What the value, or each value of free name, looks like.
    pub(super) fn form(self) -> Form {
        match self {
            Self::Value(form, _) | Self::Entries(form) => form,
            Self::Table(_) | Self::OptionalTable(_) | Self::Tables(_) => Form::Text("a table"),
        }
    }
}

/// What happens when a value is not given.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fallback {
    Required,
    /// It may be missing, and that means something.
    Absent,
    Text(&'static str),
    Integer(i64),
    Boolean(bool),
}

/// What a value looks like. Every string may also be a reference.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
    /// A string, and what is expected in it.
    Text(&'static str),
    /// A string of which nothing is ever printed, and what is expected in it.
    Secret(&'static str),
    /// The address of a database; the password in it is never printed.
    Url,
    /// A property of librdkafka: string, integer or boolean; its name says whether it is printed.
    Property,
    /// One of these words.
    Word(&'static [&'static str]),
    /// One of these words, or a table with one string under this name.
    WordOr(&'static [&'static str], &'static str),
    /// One string or a list of strings.
    Texts(&'static str),
    Duration {
        least: Duration,
        most: Duration,
    },
    /// Bytes, with a unit.
    Size {
        least: u64,
        most: u64,
    },
    Integer {
        least: i64,
        most: i64,
    },
    Boolean,
}

impl Form {
    /// Says what would do, for a finding.
    pub(super) fn expected(self) -> String {
        match self {
            Self::Text(what) | Self::Secret(what) => what.to_owned(),
            Self::Texts(what) => format!("{what}, or a list of them"),
            Self::Url => "a URL such as `postgres://user@host:5432/database`".to_owned(),
            Self::Property => "a string, an integer or a boolean".to_owned(),
            Self::Word(words) => match words {
                [word] => quoted(word),
                _ => format!("one of {}", listed(words.iter().copied())),
            },
            Self::WordOr(words, name) => {
                format!("one of {}, or `{{ {name} = \"...\" }}`", listed(words.iter().copied()))
            }
            Self::Duration { least, most } => format!(
                "a duration with its unit such as \"10s\", from {} to {}",
                humantime::format_duration(least),
                humantime::format_duration(most)
            ),
            Self::Size { least, most } => format!(
                "a size with its unit such as \"32MiB\", from {} to {}",
                bytesize::ByteSize(least).display().iec(),
                bytesize::ByteSize(most).display().iec()
            ),
            Self::Integer { least, most } => format!("an integer from {least} to {most}"),
            Self::Boolean => "`true` or `false`".to_owned(),
        }
    }

    /// May an inline value stand in a finding?
    pub(super) fn is_printable(self) -> bool {
        !matches!(self, Self::Secret(_) | Self::Url | Self::Property)
    }
}

/// The paths of all keys that one environment variable each can set: those outside lists and free names.
pub(super) fn plain_paths(keys: &[Key]) -> Vec<String> {
    keys.iter()
        .flat_map(|key| match key.kind {
            Kind::Value(Form::Texts(_), _) | Kind::Tables(_) | Kind::Entries(_) => Vec::new(),
            Kind::Value(..) => vec![key.name.to_owned()],
            Kind::Table(inner) | Kind::OptionalTable(inner) => {
                plain_paths(inner).iter().map(|path| format!("{}.{path}", key.name)).collect()
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_reaches_keys_outside_lists_only() {
        let text = Kind::Value(Form::Text("a word"), Fallback::Absent);
        let leaf = |name, kind| Key { name, doc: "", kind };
        let inner: &'static [Key] =
            Box::leak(Box::new([leaf("b", text), leaf("c", Kind::Value(Form::Texts("words"), Fallback::Absent))]));
        let keys = [
            leaf("a", Kind::Table(inner)),
            leaf("d", Kind::OptionalTable(inner)),
            leaf("e", Kind::Tables(inner)),
            leaf("f", Kind::Entries(Form::Property)),
            leaf("g", text),
        ];
        assert_eq!(plain_paths(&keys), ["a.b", "d.b", "g"]);
    }
}
