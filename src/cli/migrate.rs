//! `outboxd migrate`: brings the schema up to date, or prints it for whoever may.

use super::output::{self, Format};
use super::{Ends, Exit, block_on};
use crate::config::Config;
use crate::config::secret::Secret;
use crate::db::migrate::{self, MigrationError};
use crate::db::{self, DbErrorKind, Purpose};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print the SQL instead of applying it: schema, functions, roles and grants
    #[arg(long)]
    print: bool,
    /// Connect as the owner of the schema [default: postgres.url]
    #[arg(long, value_name = "URL", env = "OUTBOXD_ADMIN_URL", hide_env_values = true)]
    admin_url: Option<String>,
}

pub(super) fn run(
    how: &Arguments,
    config: impl FnOnce() -> anyhow::Result<Config>,
    format: Format,
) -> anyhow::Result<Exit> {
    if how.print {
        output::data(&migrate::script());
        return Ok(Exit::Done);
    }
    let url = match &how.admin_url {
        Some(url) => Secret::new(url.clone()),
        None => config()?.postgres.url,
    };
    let (applied, role) = block_on(apply(&url))?;
    match format {
        Format::Json => output::json(&serde_json::json!({ "applied": applied, "role": role })),
        Format::Text => output::note(&report(applied)),
    }
    Ok(Exit::Done)
}

async fn apply(url: &Secret) -> anyhow::Result<(usize, String)> {
    let mut session = db::connect(url, Purpose::Own).await.map_err(|error| ends(&error))?;
    let applied = migrate::migrate(&mut session).await.map_err(|error| match error {
        MigrationError::Db(error) if error.kind() == DbErrorKind::Denied => {
            let hint = "connect as an owner with --admin-url, or let an administrator apply: outboxd migrate --print";
            anyhow::anyhow!("{error}\nhint: {hint}")
        }
        MigrationError::Db(error) => ends(&error),
        other => other.into(),
    })?;
    let role = session.server.role.clone();
    session.close().await;
    Ok((applied, role))
}

fn report(applied: usize) -> String {
    let done = match applied {
        0 => "the schema is up to date".to_owned(),
        1 => "1 migration applied".to_owned(),
        n => format!("{n} migrations applied"),
    };
    let next = "next, unless done:\n  grant outbox_writer to <the role of your application>;\n  grant outbox_relay, pg_monitor to <the role of outboxd>;";
    if applied == 0 { done } else { format!("{done}\n{next}") }
}

/// An error of Postgres as the end of a one-shot command.
pub(super) fn ends(error: &crate::db::DbError) -> anyhow::Error {
    let exit = if error.kind() == DbErrorKind::Unavailable { Exit::Unavailable } else { Exit::Failed };
    let hint = error.hint().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
    Ends { exit, message: format!("{error}{hint}") }.into()
}
