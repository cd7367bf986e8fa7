//! A database of this run's own and the events in it, loaded once and drained again and again.

use std::path::Path;

use anyhow::{Context as _, ensure};
use futures::TryStreamExt as _;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};
use tokio::time::Instant;
use url::Url;
use uuid::Uuid;

use super::Arguments;
use super::daemon;
use super::readback::Expected;
use super::topics::AGGREGATE_TYPE;

/// Loaded between two steps of the progress bar.
const STEP_EVENTS: u32 = 20_000;

/// What a payload `{"nr": N, "fill": "…"}` holds beside the number and the filling.
const FRAME_BYTES: u32 = 20;

/// The filling comes in blocks of so many hexadecimal digits, none like another: nothing for a compression to find.
const BLOCK_BYTES: u32 = 128;

/// The outbox under measure.
pub(crate) struct Backlog {
    /// Of the superuser, to the database.
    pub(crate) connection: PgConnection,
    admin: Url,
    name: String,
    payload_bytes: u32,
}

/// What was loaded.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Loaded {
    seconds: f64,
    table_bytes: i64,
    indexes_bytes: i64,
}

impl Backlog {
    /// Makes a database with the daemon's schema and a role for the daemon.
    pub(crate) async fn create(admin: &str, binary: &Path) -> anyhow::Result<Self> {
        let admin = Url::parse(admin).context("OUTBOXD_TEST_POSTGRES is no URL")?;
        let name = format!("bench_{}", &Uuid::new_v4().simple().to_string()[..8]);
        let password = admin.password().map_or_else(String::new, |word| format!(" password '{word}'"));
        let mut connection = connect(&admin).await?;
        execute(&mut connection, &format!("create database {name}")).await?;
        execute(&mut connection, &format!("create role {name} login{password}")).await?;
        let prepared = prepare(&in_database(&admin, &name), &name, binary).await;
        match prepared {
            Ok(connection) => Ok(Self { connection, admin, name, payload_bytes: 0 }),
            Err(error) => drop_all(&mut connection, &name).await.and(Err(error)),
        }
    }

    /// How the daemon reaches it.
    pub(crate) fn relay_url(&self) -> anyhow::Result<String> {
        let mut url = in_database(&self.admin, &self.name);
        ensure!(url.set_username(&self.name).is_ok(), "OUTBOXD_TEST_POSTGRES names no host");
        Ok(url.into())
    }

    /// The version of the server.
    pub(crate) async fn version(&mut self) -> anyhow::Result<String> {
        Ok(sqlx::query_scalar("show server_version").fetch_one(&mut self.connection).await?)
    }

    /// Writes the events and brings the table to rest: what the first reader would do for all later ones, vacuum does.
    pub(crate) async fn load(&mut self, arguments: &Arguments) -> anyhow::Result<Loaded> {
        let began = Instant::now();
        self.payload_bytes = arguments.size;
        execute(&mut self.connection, "set synchronous_commit = off").await?; // vacuum and checkpoint come behind it
        let bar = ProgressBar::new(arguments.events.into());
        bar.set_style(ProgressStyle::with_template(
            "bench: loading {bar:30} {human_pos} of {human_len} events, {eta} left",
        )?);
        let step = STEP_EVENTS.div_ceil(arguments.per_transaction).saturating_mul(arguments.per_transaction);
        let mut first = 1_u32;
        while first <= arguments.events {
            let last = first.saturating_add(step - 1).min(arguments.events);
            execute(&mut self.connection, &insert(arguments, first, last)).await?;
            bar.set_position(last.into());
            first = last.saturating_add(1);
        }
        bar.finish_and_clear();
        execute(&mut self.connection, "vacuum (analyze) outbox.events").await?;
        self.weigh(arguments, began.elapsed().as_secs_f64()).await
    }

    async fn weigh(&mut self, arguments: &Arguments, seconds: f64) -> anyhow::Result<Loaded> {
        let row = sqlx::query(WEIGHT).fetch_one(&mut self.connection).await?;
        let (events, least, most): (i64, i32, i32) =
            (row.try_get("events")?, row.try_get("least")?, row.try_get("most")?);
        let (size, count) = (i32::try_from(arguments.size)?, i64::from(arguments.events));
        ensure!(
            (events, least, most) == (count, size, size),
            "loaded {events} events of {least} to {most} bytes, not {count} of {size}"
        );
        Ok(Loaded { seconds, table_bytes: row.try_get("table_bytes")?, indexes_bytes: row.try_get("indexes_bytes")? })
    }

    /// What is committed, in order.
    pub(crate) async fn expected(&mut self) -> anyhow::Result<Expected> {
        let mut expected = Expected::of(usize::try_from(self.payload_bytes)?);
        let mut rows =
            sqlx::query("select event_id, aggregate_id from outbox.events order by id").fetch(&mut self.connection);
        while let Some(row) = rows.try_next().await? {
            expected.push(row.try_get(0)?, row.try_get(1)?)?;
        }
        Ok(expected)
    }

    /// So that a checkpoint falls into no run, and each finds as little to write as the others.
    pub(crate) async fn checkpoint(&mut self) -> anyhow::Result<()> {
        execute(&mut self.connection, "checkpoint").await
    }

    /// Drops the database and the role.
    pub(crate) async fn remove(self) -> anyhow::Result<()> {
        self.connection.close().await?;
        drop_all(&mut connect(&self.admin).await?, &self.name).await
    }
}

async fn prepare(url: &Url, role: &str, binary: &Path) -> anyhow::Result<PgConnection> {
    daemon::migrate(binary, url.as_str()).await?;
    let mut connection = connect(url).await?;
    execute(&mut connection, &format!("grant outbox_relay, pg_monitor to {role}")).await?;
    execute(&mut connection, "set max_parallel_workers_per_gather = 0").await?; // as the daemon reads
    execute(&mut connection, "set synchronize_seqscans = off").await?; // from the first row on, always
    Ok(connection)
}

const WEIGHT: &str = "
    select count(*) as events, min(octet_length(payload::text)) as least, max(octet_length(payload::text)) as most,
           pg_table_size('outbox.events') as table_bytes, pg_indexes_size('outbox.events') as indexes_bytes
      from outbox.events";

/// Events `first` to `last` in transactions of the size that was asked for; the server commits by itself.
fn insert(arguments: &Arguments, first: u32, last: u32) -> String {
    let Arguments { size, per_transaction, streams, .. } = arguments;
    let blocks = size.div_ceil(BLOCK_BYTES);
    format!(
        "do $$ begin
  for i in {first}..{last} by {per_transaction} loop
    insert into outbox.events (aggregate_type, aggregate_id, event_type, payload)
    select '{AGGREGATE_TYPE}', 'order-' || n % {streams}, 'OrderPlaced',
           ('{{\"nr\": ' || n || ', \"fill\": \"' || left(fill, {size} - {FRAME_BYTES} - length(n::text)) || '\"}}')::jsonb
      from generate_series(i, least(i + {per_transaction} - 1, {last})) n,
           lateral (select string_agg(encode(sha512(convert_to(n || ' ' || block, 'UTF8')), 'hex'), '') as fill
                      from generate_series(1, {blocks}) block) filled;
    commit;
  end loop;
end $$"
    )
}

fn in_database(server: &Url, name: &str) -> Url {
    let mut url = server.clone();
    url.set_path(name);
    url
}

async fn connect(url: &Url) -> anyhow::Result<PgConnection> {
    PgConnection::connect(url.as_str()).await.context("cannot connect to OUTBOXD_TEST_POSTGRES")
}

async fn drop_all(connection: &mut PgConnection, name: &str) -> anyhow::Result<()> {
    execute(connection, &format!("drop database {name} with (force)")).await?;
    execute(connection, &format!("drop role {name}")).await
}

/// Numbers and names of our own only, so nothing has to be bound.
async fn execute(connection: &mut PgConnection, statement: &str) -> anyhow::Result<()> {
    connection.execute(AssertSqlSafe(statement)).await.with_context(|| format!("failed: {statement}"))?;
    Ok(())
}
