//! The embedded `migrations/`: apply them, print them, and say what is pending.

use super::{DbError, DbErrorKind, Session};
use sqlx::SqlSafeStr;
use sqlx::migrate::{Migrate, MigrateError, Migration, MigrationType, Migrator};
use sqlx::postgres::PgConnection;
use std::time::Duration;

/// In the schema of the product: the application may own a table of the driver's default name.
const TABLE: &str = "outbox._sqlx_migrations";

const FILES: [(i64, &str, &str); 4] = [
    (1, "outbox", include_str!("../../migrations/0001_outbox.sql")),
    (2, "functions", include_str!("../../migrations/0002_functions.sql")),
    (3, "parked", include_str!("../../migrations/0003_parked.sql")),
    (4, "stream_names", include_str!("../../migrations/0004_stream_names.sql")),
];

/// How often a migration is tried that found its table locked for longer than `lock_timeout` (500 ms):
/// behind a DDL that waits, every writer waits, so it waits outside.
pub(super) const TRIES: u32 = 60;
pub(super) const PAUSE: Duration = Duration::from_secs(1);

/// How the schema of a database relates to this binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemaState {
    /// All migrations are applied, and they are ours.
    Current,
    /// Nothing is there.
    Missing,
    /// Migrations are pending.
    Older,
    /// Migrations are applied that this binary does not know.
    Newer,
    /// A migration was applied whose text is not ours.
    Edited(i64),
}

/// Why the schema could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// The server refused.
    #[error(transparent)]
    Db(DbError),
    /// An applied migration is not the one that this binary carries.
    #[error("migration {0} was applied with another text than this binary carries")]
    Edited(i64),
    /// The schema is ahead of this binary.
    #[error("the schema is newer (migration {0}) than this outboxd: upgrade outboxd")]
    Newer(i64),
    /// The migrator failed in another way.
    #[error("migrating")]
    Other(#[source] Box<MigrateError>),
    /// The doorbell would break two-phase commit, which this server allows.
    #[error(
        "max_prepared_transactions is {0}: while the relay sleeps, a transaction that wrote events cannot be prepared"
    )]
    Prepared(i32),
    /// The tables stayed locked.
    #[error("the outbox stayed locked by another session through {TRIES} tries")]
    Busy,
}

fn migrator() -> Migrator {
    let migration = |(version, name, sql): (i64, &'static str, &'static str)| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    let mut migrator = Migrator::with_migrations(FILES.into_iter().map(migration).collect());
    migrator.dangerous_set_table_name(TABLE);
    migrator.create_schema("outbox");
    migrator
}

/// Applies what is pending; several migrators may run at once. Returns how many were applied.
///
/// # Errors
/// See [`MigrationError`]. Each migration is one transaction: what was applied stays.
pub async fn migrate(session: &mut Session) -> Result<usize, MigrationError> {
    if state(&mut session.connection).await.map_err(MigrationError::Db)? == SchemaState::Current {
        return Ok(0); // a relay that may not make schemas can say so too
    }
    let before = applied(&mut session.connection).await.map_err(MigrationError::Db)?.len();
    for _ in 0..TRIES {
        match migrator().run_direct(None, &mut session.connection, false).await {
            Ok(()) => return Ok(FILES.len().saturating_sub(before)),
            Err(MigrateError::VersionMismatch(version)) => return Err(MigrationError::Edited(version)),
            Err(MigrateError::VersionMissing(version)) => return Err(MigrationError::Newer(version)),
            Err(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) => {
                let error = DbError::from_driver("migrating", &error);
                if error.kind() != DbErrorKind::Busy {
                    return Err(MigrationError::Db(error));
                }
            }
            Err(other) => return Err(MigrationError::Other(Box::new(other))),
        }
        // The migrator keeps its lock after an error, and would count it twice.
        session.connection.unlock().await.map_err(|error| MigrationError::Other(Box::new(error)))?;
        tokio::time::sleep(PAUSE).await;
    }
    Err(MigrationError::Busy)
}

/// Compares what is applied with what this binary carries.
///
/// # Errors
/// The server refused, for example because the table of migrations may not be read.
pub async fn state(connection: &mut PgConnection) -> Result<SchemaState, DbError> {
    Ok(compare(&applied(connection).await?))
}

fn compare(applied: &[(i64, Vec<u8>)]) -> SchemaState {
    let migrator = migrator();
    let known = |version: i64| migrator.iter().find(|migration| migration.version == version);
    for (version, checksum) in applied {
        match known(*version) {
            None => return SchemaState::Newer,
            Some(migration) if *migration.checksum != **checksum => return SchemaState::Edited(*version),
            Some(_) => {}
        }
    }
    match applied.len() {
        0 => SchemaState::Missing,
        n if n < FILES.len() => SchemaState::Older,
        _ => SchemaState::Current,
    }
}

async fn applied(connection: &mut PgConnection) -> Result<Vec<(i64, Vec<u8>)>, DbError> {
    let doing = "reading the applied migrations";
    let there: bool = sqlx::query_scalar("select to_regclass('outbox._sqlx_migrations') is not null")
        .fetch_one(&mut *connection)
        .await
        .map_err(DbError::during(doing))?;
    if !there {
        return Ok(Vec::new());
    }
    sqlx::query_as("select version, checksum from outbox._sqlx_migrations where success order by version")
        .fetch_all(connection)
        .await
        .map_err(DbError::during(doing))
}

/// The whole schema as one script for `psql`, for those whose administrator applies it. Re-runnable; it fills the table of migrations too.
pub fn script() -> String {
    let mut script = String::from(
        "-- The schema of outboxd. Run it as the owner-to-be, with: psql --set ON_ERROR_STOP=1 --file FILE\n\
         -- It creates the roles outbox_writer and outbox_relay; without the right to do so, let an administrator create them first.\n\
         -- Afterwards:\n\
         --   grant outbox_writer to <the role of the application>;\n\
         --   grant outbox_relay to <the role of the relay>;\n\
         --   grant pg_monitor to <the role of the relay>;  -- as a superuser; without it the relay cannot say whose transaction holds events back\n\
         begin;\n\
         set local lock_timeout = '500ms';\n\
         create schema if not exists outbox;\n\
         create table if not exists outbox._sqlx_migrations (\n  version bigint primary key, description text not null, installed_on timestamptz not null default now(),\n  \
         success boolean not null, checksum bytea not null, execution_time bigint not null);\n",
    );
    for migration in migrator().iter() {
        let checksum = hex(&migration.checksum);
        let record = format!(
            "insert into outbox._sqlx_migrations (version, description, success, checksum, execution_time)\n\
             values ({}, '{}', true, '\\x{checksum}', -1) on conflict (version) do nothing;",
            migration.version, migration.description
        );
        let (version, name, sql) = (migration.version, &migration.description, migration.sql.as_str());
        script = format!("{script}\n-- migration {version}: {name}\n{sql}\n{record}\n");
    }
    script.push_str("commit;\n");
    script
}

fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or_default();
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours() -> Vec<(i64, Vec<u8>)> {
        migrator().iter().map(|migration| (migration.version, migration.checksum.to_vec())).collect()
    }

    #[test]
    fn the_schema_is_missing_older_newer_edited_or_current() {
        assert_eq!(compare(&[]), SchemaState::Missing);
        assert_eq!(compare(&ours()), SchemaState::Current);
        assert_eq!(compare(&ours()[..1]), SchemaState::Older);
        let newer = [ours(), vec![(999, Vec::new())]].concat();
        assert_eq!(compare(&newer), SchemaState::Newer);
        let edited = vec![(1, vec![0])];
        assert_eq!(compare(&edited), SchemaState::Edited(1));
    }

    #[test]
    fn the_script_records_what_it_applies() {
        let script = script();
        for (version, name, sql) in FILES {
            assert!(
                script.contains(sql) && script.contains(&format!("values ({version}, '{name}', true, '\\x")),
                "{name}"
            );
        }
    }
}
