//! Names of tables: checked once, quoted once. Pure.

use std::fmt;

/// A table, with its schema. Its `Display` is the quoted form that may stand in a statement.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TableName {
    schema: String,
    table: String,
}

/// Why a text is not a [`TableName`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableNameError {
    /// A schema and a table are needed; relying on `search_path` would let a role redirect us.
    #[error("expected `schema.table`, found `{0}`")]
    Shape(String),
    /// A part is empty, longer than 63 bytes, or holds a NUL or a quotation mark.
    #[error("expected 1 to 63 bytes without quotation marks, found `{0}`")]
    Part(String),
}

impl TableName {
    /// Reads `schema.table`, as written in the configuration: neither folded nor quoted.
    pub fn parse(text: &str) -> Result<Self, TableNameError> {
        let (schema, table) = text.split_once('.').ok_or_else(|| TableNameError::Shape(text.to_owned()))?;
        for part in [schema, table] {
            if part.is_empty() || part.len() > 63 || part.contains(['\0', '"', '.']) {
                return Err(TableNameError::Part(part.to_owned()));
            }
        }
        Ok(Self { schema: schema.to_owned(), table: table.to_owned() })
    }

    /// As it is written in the configuration, for messages.
    pub fn text(&self) -> String {
        format!("{}.{}", self.schema, self.table)
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\".\"{}\"", self.schema, self.table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_quoted_whatever_stands_in_it() {
        assert_eq!(TableName::parse("outbox.events").unwrap().to_string(), r#""outbox"."events""#);
        assert_eq!(TableName::parse("a; drop.Order").unwrap().to_string(), r#""a; drop"."Order""#);
    }

    #[test]
    fn refuses_what_cannot_be_quoted() {
        for text in ["events", "", ".events", "outbox.", "a.b.c", "a.\"b", "a.b\0"] {
            assert!(TableName::parse(text).is_err(), "{text}");
        }
        assert!(TableName::parse(&format!("a.{}", "b".repeat(64))).is_err());
    }
}
