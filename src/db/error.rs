//! What went wrong in Postgres: SQLSTATE to kind, here and nowhere else.

use sqlx::error::DatabaseError;
use sqlx::postgres::PgDatabaseError;
use std::time::Duration;

/// What can be done about a [`DbError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DbErrorKind {
    /// The server is away, starting, stopping, full, or cut the statement: look again later.
    Unavailable,
    /// User, password or database are not accepted.
    Rejected,
    /// A privilege is missing, or row-level security hides rows.
    Denied,
    /// A table, column or function of ours is missing: the schema is not there, or older.
    Schema,
    /// The address is a standby, another server than before, or a pooler.
    WrongServer,
    /// A lock was not to be had in time.
    Busy,
    /// None of the above. Treated as the environment's: it waits and says so.
    Other,
}

/// An error of Postgres or of the way to it. It says what the driver said, once; there is no source behind it.
#[derive(Debug, thiserror::Error)]
#[error("{doing}{}: {what}", .host.as_ref().map(|host| format!(" {host}")).unwrap_or_default())]
pub struct DbError {
    kind: DbErrorKind,
    doing: &'static str,
    host: Option<String>,
    what: String,
    hint: Option<String>,
}

impl DbError {
    /// What can be done about it.
    pub fn kind(&self) -> DbErrorKind {
        self.kind
    }

    /// The next step, for the operator.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Classifies what the driver returned while `doing` something.
    pub fn from_driver(doing: &'static str, error: &sqlx::Error) -> Self {
        let (kind, what, hint) = match error {
            sqlx::Error::Database(database) => classify_database(database.as_ref()),
            // what TLS has to say of a certificate comes as a fault of the stream
            sqlx::Error::Io(io) if io.kind() == std::io::ErrorKind::InvalidData => {
                (DbErrorKind::Rejected, format!("TLS: {io}"), Some(TLS_HINT.to_owned()))
            }
            sqlx::Error::Io(io) => (DbErrorKind::Unavailable, io.to_string(), None),
            sqlx::Error::Tls(tls) => (DbErrorKind::Rejected, format!("TLS: {tls}"), Some(TLS_HINT.to_owned())),
            sqlx::Error::Configuration(why) => (DbErrorKind::Rejected, why.to_string(), None),
            sqlx::Error::Protocol(what) => {
                (DbErrorKind::Unavailable, format!("the connection ended before the answer did ({what})"), None)
            }
            other => (DbErrorKind::Other, other.to_string(), None),
        };
        Self { kind, doing, host: None, what, hint }
    }

    /// [`DbError::from_driver`] as a closure for `map_err`.
    pub fn during(doing: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |error| Self::from_driver(doing, &error)
    }

    /// Adds the server's address.
    #[must_use]
    pub fn at(mut self, host: &str) -> Self {
        self.host = Some(host.to_owned());
        self
    }

    /// The server, or the network before it, did not answer in time.
    pub fn silent(doing: &'static str, limit: Duration) -> Self {
        let what = format!("no answer within {}", humantime::format_duration(limit));
        Self::plain(DbErrorKind::Unavailable, doing, what, None)
    }

    /// The connection broke, and nobody said why.
    pub(super) fn gone(doing: &'static str) -> Self {
        Self::plain(DbErrorKind::Unavailable, doing, "the server closed the connection".to_owned(), None)
    }

    pub(super) fn standby(host: &str) -> Self {
        let what = format!("{host} is a hot standby: events would be skipped for ever; use the primary");
        Self::plain(DbErrorKind::WrongServer, "connecting", what, None)
    }

    /// Another server answers than the one that was connected to before.
    pub fn other_server(host: &str) -> Self {
        let what = format!("another server than before answers at {host} (a fail-over, or a proxy that spreads reads)");
        Self::plain(DbErrorKind::WrongServer, "reading", what, None)
    }

    /// Two sessions, or two statements of one, met in a server process.
    pub fn pooler(host: &str) -> Self {
        let what = format!("{host}: this is a transaction pooler; give a direct connection");
        Self::plain(DbErrorKind::WrongServer, "connecting", what, Some(POOLER_HINT.to_owned()))
    }

    fn plain(kind: DbErrorKind, doing: &'static str, what: String, hint: Option<String>) -> Self {
        Self { kind, doing, host: None, what, hint }
    }
}

const POOLER_HINT: &str = "point `postgres.url` at Postgres itself, not at PgBouncer or the like";

const TLS_HINT: &str = "the server does not offer TLS, or its certificate does not match; see `sslmode` and `sslrootcert` in `postgres.url`";

const SCHEMA_HINT: &str = "run: outboxd migrate; if it finds nothing to do, an object was dropped: outboxd migrate --print | psql makes it again";

type Classified = (DbErrorKind, String, Option<String>);

fn classify_database(error: &dyn DatabaseError) -> Classified {
    let code = error.code().unwrap_or_default().into_owned();
    if let Some(pooler) = pooler(&code, error.message()) {
        let what = format!("{}: {pooler}; give a direct connection", error.message());
        return (DbErrorKind::WrongServer, what, Some(POOLER_HINT.to_owned()));
    }
    let (kind, hint) = classify(&code);
    let detail = error.try_downcast_ref::<PgDatabaseError>().and_then(PgDatabaseError::detail);
    let what = match detail {
        Some(detail) if kind != DbErrorKind::Other => format!("{} ({detail})", error.message()),
        _ => error.message().to_owned(), // an unclassified detail could quote a row
    };
    (kind, what, hint.map(str::to_owned))
}

/// Only a pooler gives a session the prepared statements of another, or none of its own, and knows fewer parameters than Postgres.
fn pooler(code: &str, message: &str) -> Option<&'static str> {
    match code {
        "42P05" | "26000" => Some("this is a transaction pooler"),
        "08P01" if message.starts_with("unsupported startup parameter") => Some("this is a pooler"),
        _ => None,
    }
}

/// SQLSTATE to kind and advice. Source: the manual of Postgres, appendix A.
fn classify(code: &str) -> (DbErrorKind, Option<&'static str>) {
    match code {
        "28P01" | "28000" => {
            (DbErrorKind::Rejected, Some("check user and password in `postgres.url`, and pg_hba.conf on the server"))
        }
        "3D000" => (DbErrorKind::Rejected, Some("check the name of the database in `postgres.url`, or create it")),
        "42501" => (
            DbErrorKind::Denied,
            Some("grant outbox_relay to the role of the relay: `outboxd migrate --print` shows the grants"),
        ),
        "42P01" | "42703" | "42883" | "3F000" => (DbErrorKind::Schema, Some(SCHEMA_HINT)),
        "22021" | "22P05" => (
            DbErrorKind::Other,
            Some(
                "a row holds text that is not UTF-8, as a database with encoding SQL_ASCII allows: find it, write it in UTF-8",
            ),
        ),
        "23514" | "54000" => (
            DbErrorKind::Other,
            Some(
                "is there an old row whose aggregate type and id have more than 2,500 bytes together? select id from outbox.events where octet_length(aggregate_type) + octet_length(aggregate_id) > 2500",
            ),
        ),
        "55P03" => (DbErrorKind::Busy, None),
        "53100" => (DbErrorKind::Unavailable, Some("the disk of the Postgres server is full")),
        "53300" => (
            DbErrorKind::Unavailable,
            Some("no connection is free: raise max_connections, or lower what the applications take"),
        ),
        _ if ["08", "53", "57", "58", "40"].iter().any(|class| code.starts_with(class)) => {
            (DbErrorKind::Unavailable, None)
        }
        _ => (DbErrorKind::Other, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_of_sqlstate_has_its_kind() {
        let table = [
            ("28P01", DbErrorKind::Rejected),
            ("3D000", DbErrorKind::Rejected),
            ("42501", DbErrorKind::Denied),
            ("42P01", DbErrorKind::Schema),
            ("55P03", DbErrorKind::Busy),
            ("57P01", DbErrorKind::Unavailable), // the server stops
            ("57014", DbErrorKind::Unavailable), // statement time-out
            ("53100", DbErrorKind::Unavailable), // disk full
            ("08006", DbErrorKind::Unavailable),
            ("23505", DbErrorKind::Other),
            ("XX000", DbErrorKind::Other),
            ("", DbErrorKind::Other),
        ];
        for (code, kind) in table {
            assert_eq!(classify(code).0, kind, "{code}");
        }
    }
}
