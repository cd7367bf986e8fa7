//! The doorbell on the table of events: hang it, take it down, look at it. It rings only while a relay sleeps.
//!
//! A statement that writes events tries for the shared side of an advisory lock, which it keeps until its transaction has ended. A
//! relay that is about to sleep tries for the other side, and reads once more when it has it. So a writer either
//! has the lock, then the relay does not sleep before that transaction is visible; or it finds a sleeper, and notifies it.
//!
//! Each outbox has a lock and a channel of its own, by a hash of its name: two sleepers on one table would shut each other out of one lock.

use super::migrate::{MigrationError, PAUSE, TRIES};
use super::{DbError, DbErrorKind, Session};
use crate::config::outbox::OutboxName;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor, Row};

/// The first half of each lock's key: `obox` in ASCII.
pub const LOCKS: i32 = 1_868_722_040;

/// What to do with the doorbell of an outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Let the table ring for it.
    Hang,
    /// Let the table ring for it no more.
    TakeDown,
}

/// What the operator knows of two-phase commit: a transaction that rang cannot be prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prepared {
    /// Nothing: where the server allows it, the doorbell is refused.
    Unknown,
    /// Nobody prepares a transaction that writes events.
    Unused,
}

// Security definer, so that a writer needs no privilege for it, now or later. `tg_argv` names the outboxes.
const RING: &str = "\
create or replace function outbox.ring() returns trigger language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  for i in 0 .. tg_nargs - 1 loop
    if not pg_try_advisory_xact_lock_shared(1868722040, hashtext(tg_argv[i])) then  -- kept until the transaction has ended
      perform pg_notify('outbox_' || hashtext(tg_argv[i]), '');
    end if;
  end loop;
  return null;
end $$;
revoke all on function outbox.ring() from public;
";

const REFUSE_PREPARED: &str = "\
do $$ begin
  if current_setting('max_prepared_transactions')::int > 0 then
    raise exception 'max_prepared_transactions is %, and a transaction that rings cannot be prepared', current_setting('max_prepared_transactions')
      using hint = 'if nobody prepares transactions that write events: outboxd migrate --doorbell --allow-prepared-transactions';
  end if;
end $$;
";

/// The statements of a change, re-runnable; one transaction.
pub fn script(change: Change, outbox: &OutboxName, prepared: Prepared) -> String {
    // a name has no character that a literal would have to escape
    let (lock, names) = match change {
        Change::Hang => ("share row exclusive", format!("names || array['{outbox}']")),
        Change::TakeDown => ("access exclusive", format!("array_remove(names, '{outbox}')")), // what dropping a trigger takes in the end
    };
    let before = match (change, prepared) {
        (Change::Hang, Prepared::Unknown) => format!("{REFUSE_PREPARED}{RING}"),
        (Change::Hang, Prepared::Unused) => RING.to_owned(),
        (Change::TakeDown, _) => String::new(),
    };
    format!(
        "{before}do $$
declare names text[];
begin
  lock table outbox.events in {lock} mode;  -- two that change it wait for each other
  select string_to_array(encode(tgargs, 'escape'), '\\000') into names
    from pg_trigger where tgrelid = 'outbox.events'::regclass and tgname = 'outbox_doorbell';
  names := array(select distinct name from unnest({names}) name where name <> '' order by name);
  if names = '{{}}' then
    drop trigger if exists outbox_doorbell on outbox.events;
    drop function if exists outbox.ring();
  else  -- `update`: a rebase stamps events anew; `always`: a session that replays changes rings too
    execute 'create or replace trigger outbox_doorbell after insert or update on outbox.events for each statement execute function outbox.ring('
      || (select string_agg(quote_literal(name), ', ') from unnest(names) name) || ')';
    alter table outbox.events enable always trigger outbox_doorbell;
  end if;
end $$;
"
    )
}

/// Makes a change; several may do so at once.
///
/// # Errors
/// See [`MigrationError`]; nothing is changed then.
pub async fn apply(
    session: &mut Session,
    change: Change,
    outbox: &OutboxName,
    prepared: Prepared,
) -> Result<(), MigrationError> {
    let doing = "changing the doorbell";
    if (change, prepared) == (Change::Hang, Prepared::Unknown) {
        let most: i32 = sqlx::query_scalar("select current_setting('max_prepared_transactions')::int")
            .fetch_one(&mut session.connection)
            .await
            .map_err(|error| MigrationError::Db(DbError::from_driver(doing, &error)))?;
        if most > 0 {
            return Err(MigrationError::Prepared(most));
        }
    }
    let statements = script(change, outbox, prepared);
    for _ in 0..TRIES {
        // several statements in one message are one transaction
        let changed = session.connection.execute(sqlx::raw_sql(AssertSqlSafe(statements.clone()))).await;
        let Err(error) = changed.map_err(|error| DbError::from_driver(doing, &error)) else { return Ok(()) };
        if error.kind() != DbErrorKind::Busy {
            return Err(MigrationError::Db(error));
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(MigrationError::Busy)
}

/// The doorbell as it hangs, for one outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doorbell {
    /// The second half of the lock's key, and the channel.
    pub number: i32,
    /// For whom it rings; empty if there is none.
    pub outboxes: Vec<String>,
    /// How many transactions the server allows to be prepared.
    pub max_prepared: i32,
    enabled: bool,
    ours: bool,
}

/// Why nobody rings for an outbox.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unrung {
    /// There is no trigger.
    #[error("outbox.events has no doorbell")]
    Missing,
    /// It is disabled.
    #[error("the doorbell of outbox.events is disabled")]
    Disabled,
    /// It is a trigger of another make.
    #[error("the trigger outbox_doorbell of outbox.events is not as this outboxd makes it")]
    Foreign,
    /// It rings for others.
    #[error("the doorbell of outbox.events rings for {0} only")]
    ForOthers(String),
}

impl Unrung {
    /// The next step.
    pub fn hint(&self, outbox: &str) -> String {
        match self {
            Self::Missing | Self::Foreign | Self::ForOthers(_) => format!("run: outboxd migrate --doorbell {outbox}"),
            Self::Disabled => "alter table outbox.events enable always trigger outbox_doorbell".to_owned(),
        }
    }
}

// One probe of an index of the catalogue.
const LOOK: &str = "
    select hashtext($1) as number, current_setting('max_prepared_transactions')::int as max_prepared,
           coalesce(t.tgenabled in ('O', 'A'), false) as enabled,
           coalesce(t.tgfoid = to_regprocedure('outbox.ring()') and t.tgqual is null and (t.tgtype & 4) = 4, false) as ours,  -- 4: insert
           coalesce(string_to_array(encode(t.tgargs, 'escape'), '\\000'), '{}') as outboxes
      from (values (1)) one
      left join pg_trigger t on t.tgrelid = to_regclass('outbox.events') and t.tgname = 'outbox_doorbell' and not t.tgisinternal";

/// Looks how the doorbell hangs.
///
/// # Errors
/// Those of the server.
pub async fn look(connection: &mut PgConnection, outbox: &str) -> Result<Doorbell, sqlx::Error> {
    let row = sqlx::query(LOOK).bind(outbox).fetch_one(connection).await?;
    let mut outboxes: Vec<String> = row.try_get("outboxes")?;
    outboxes.retain(|name| !name.is_empty()); // each argument ends with a NUL
    Ok(Doorbell {
        number: row.try_get("number")?,
        outboxes,
        max_prepared: row.try_get("max_prepared")?,
        enabled: row.try_get("enabled")?,
        ours: row.try_get("ours")?,
    })
}

impl Doorbell {
    /// Whether each commit of events is told to a relay of `outbox` that sleeps.
    ///
    /// # Errors
    /// Why not.
    pub fn rings_for(&self, outbox: &str) -> Result<(), Unrung> {
        if self.outboxes.is_empty() {
            Err(Unrung::Missing)
        } else if !self.ours {
            Err(Unrung::Foreign)
        } else if !self.enabled {
            Err(Unrung::Disabled)
        } else if self.outboxes.iter().all(|name| name != outbox) {
            Err(Unrung::ForOthers(self.outboxes.join(", ")))
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bell_rings_for_those_that_it_names() {
        let bell = |names: &[&str]| Doorbell {
            number: 7,
            outboxes: names.iter().map(|&name| name.to_owned()).collect(),
            max_prepared: 0,
            enabled: true,
            ours: true,
        };
        let table = [
            (bell(&["a", "b"]), Ok(())),
            (bell(&[]), Err(Unrung::Missing)),
            (bell(&["a", "c"]), Err(Unrung::ForOthers("a, c".to_owned()))),
            (Doorbell { enabled: false, ..bell(&["b"]) }, Err(Unrung::Disabled)),
            (Doorbell { ours: false, ..bell(&["b"]) }, Err(Unrung::Foreign)),
        ];
        for (bell, expected) in table {
            assert_eq!(bell.rings_for("b"), expected, "{bell:?}");
        }
    }

    #[test]
    fn the_lock_of_the_trigger_is_that_of_the_relay() {
        assert!(RING.contains(&format!("({LOCKS}, hashtext(")));
        assert_eq!(LOCKS.to_be_bytes(), *b"obox");
    }
}
