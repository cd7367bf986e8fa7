//! `outboxd migrate`: brings the schema up to date, or prints it for whoever may.

use super::output::{self, Format};
use super::owner::Owner;
use super::{Ends, Exit, block_on};
use crate::config::Config;
use crate::config::outbox::OutboxName;
use crate::config::secret::Secret;
use crate::db::doorbell::{self, Change, Prepared};
use crate::db::migrate::{self, MigrationError};
use crate::db::{self, DbErrorKind, Purpose};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print the SQL instead of applying it: schema, functions, roles and grants
    #[arg(long)]
    print: bool,
    #[command(flatten)]
    owner: Owner,
    /// Also hang the doorbell up: writers wake the relay of this outbox [without NAME: default]
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "default", value_parser = OutboxName::parse)]
    doorbell: Option<OutboxName>,
    /// Also take the doorbell of this outbox down [without NAME: default]
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "default", value_parser = OutboxName::parse)]
    #[arg(conflicts_with = "doorbell")]
    no_doorbell: Option<OutboxName>,
    /// Although the server allows them, nobody prepares transactions (two-phase commit) that write events
    #[arg(long, requires = "doorbell")]
    allow_prepared_transactions: bool,
}

/// What is to be done about a doorbell.
struct Errand {
    change: Change,
    outbox: OutboxName,
    prepared: Prepared,
}

impl Arguments {
    fn errand(&self) -> Option<Errand> {
        let prepared = if self.allow_prepared_transactions { Prepared::Unused } else { Prepared::Unknown };
        let of = |change: Change, outbox: &OutboxName| Errand { change, outbox: outbox.clone(), prepared };
        let hang = self.doorbell.as_ref().map(|outbox| of(Change::Hang, outbox));
        hang.or_else(|| self.no_doorbell.as_ref().map(|outbox| of(Change::TakeDown, outbox)))
    }
}

pub(super) fn run(
    how: &Arguments,
    config: impl FnOnce() -> anyhow::Result<Config>,
    format: Format,
) -> anyhow::Result<Exit> {
    let errand = how.errand();
    if how.print {
        output::data(&script(errand.as_ref()));
        return Ok(Exit::Done);
    }
    let url = how.owner.url(|| Ok(config()?.postgres.url))?;
    let (applied, role) = block_on(apply(&url, errand.as_ref()))?;
    match format {
        Format::Json => {
            let (word, outbox) = (errand.as_ref().map(word), errand.as_ref().map(|errand| errand.outbox.as_str()));
            let bell = errand.as_ref().map(|_| serde_json::json!({ "outbox": outbox, "state": word }));
            output::json(&serde_json::json!({ "applied": applied, "role": role, "doorbell": bell }));
        }
        Format::Text => {
            output::note(&report(applied));
            if let Some(errand) = &errand {
                output::note(&format!("the doorbell of outbox {} is {}", errand.outbox, word(errand)));
            }
        }
    }
    Ok(Exit::Done)
}

fn script(errand: Option<&Errand>) -> String {
    let Some(Errand { change, outbox, prepared }) = errand else { return migrate::script() };
    let bell = doorbell::script(*change, outbox, *prepared);
    format!("{}\n-- the doorbell\nbegin;\nset local lock_timeout = '500ms';\n{bell}commit;\n", migrate::script())
}

fn word(errand: &Errand) -> &'static str {
    match errand.change {
        Change::Hang => "hung up",
        Change::TakeDown => "taken down",
    }
}

async fn apply(url: &Secret, errand: Option<&Errand>) -> anyhow::Result<(usize, String)> {
    let mut session = db::connect(url, Purpose::Own).await.map_err(|error| ends(&error))?;
    let applied = migrate::migrate(&mut session).await.map_err(|error| refused(error, ""))?;
    if let Some(Errand { change, outbox, prepared }) = errand {
        let changed = doorbell::apply(&mut session, *change, outbox, *prepared).await;
        changed.map_err(|error| refused(error, &format!(" --doorbell {outbox}")))?;
    }
    let role = session.server.role.clone();
    session.close().await;
    Ok((applied, role))
}

fn refused(error: MigrationError, more: &str) -> anyhow::Error {
    match error {
        MigrationError::Db(error) if error.kind() == DbErrorKind::Denied => {
            let hint = "connect as an owner with --admin-url, or let an administrator apply: outboxd migrate --print";
            anyhow::anyhow!("{error}\nhint: {hint}{more}")
        }
        MigrationError::Db(error) => ends(&error),
        MigrationError::Prepared(_) => {
            let hint = "if nobody prepares transactions that write events, say so: --allow-prepared-transactions";
            anyhow::anyhow!("{error}\nhint: {hint}")
        }
        other => other.into(),
    }
}

fn report(applied: usize) -> String {
    let done = match applied {
        0 => "the schema is up to date".to_owned(),
        1 => "1 migration applied".to_owned(),
        n => format!("{n} migrations applied"),
    };
    let next = "next, unless done:\n  grant outbox_writer to <the role of your application>;\n  grant outbox_relay to <the role of outboxd>;\n  grant pg_monitor to <the role of outboxd>;  -- as a superuser; without it outboxd cannot say whose transaction holds events back";
    if applied == 0 { done } else { format!("{done}\n{next}") }
}

/// An error of Postgres as the end of a one-shot command.
pub(super) fn ends(error: &crate::db::DbError) -> anyhow::Error {
    let exit = if error.kind() == DbErrorKind::Unavailable { Exit::Unavailable } else { Exit::Failed };
    let hint = error.hint().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
    Ends { exit, message: format!("{error}{hint}") }.into()
}
