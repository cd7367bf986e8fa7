//! `outboxd cursor`: shows where each outbox stands, makes a cursor fit a restored or copied database, sets one by hand.

mod rebase;
mod set;
mod show;

use super::output::{self, Format};
use super::{Ends, Exit, File, block_on, load};
use crate::config::Config;
use crate::config::outbox::OutboxName;
use crate::store::guards::Refusal;
use anyhow::Context;
use clap::Subcommand;
use std::io::{BufRead, IsTerminal};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show each cursor: position, lease, where it was saved, what the guards say, what waits behind it
    Show {
        #[command(flatten)]
        which: Which,
    },
    /// Make the cursors fit this database after a restore, a copy or an upgrade by dump; relays stopped, writers wait
    #[command(after_help = REBASE_HELP)]
    Rebase(rebase::Arguments),
    /// Set a cursor by hand, while no relay holds it: events are sent again, or left out
    #[command(after_help = SET_HELP)]
    Set(set::Arguments),
}

const REBASE_HELP: &str = "In one transaction: every event that the cursors do not settle, or that was written here under a foreign cursor, is stamped anew, \
and the cursors end there. So all of them are published, and nothing else. Needs the owner of the schema: --admin-url.";

const SET_HELP: &str = "Without a terminal --yes is needed wherever an event is sent again or left out. The old position is printed, with the command that undoes it.";

/// Which outbox is meant.
#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// Name of the outbox [default: all of the configuration]
    #[arg(long, value_name = "NAME", value_parser = OutboxName::parse)]
    outbox: Option<OutboxName>,
}

pub(super) fn run(
    command: &Command,
    file: impl FnOnce() -> anyhow::Result<File>,
    format: Format,
) -> anyhow::Result<Exit> {
    let config = || load(&file()?);
    match command {
        Command::Show { which } => {
            let config = config()?;
            block_on(show::run(&config, which, format))
        }
        Command::Rebase(how) => {
            let config = config()?;
            block_on(rebase::run(&config, how, format))
        }
        Command::Set(how) => {
            let config = config()?;
            block_on(set::run(&config, how, format))
        }
    }
}

impl Which {
    /// The outboxes that are meant: the one that is named, else all of the configuration.
    fn names(&self, config: &Config) -> Vec<String> {
        match &self.outbox {
            Some(name) => vec![name.to_string()],
            None => config.outbox_names(),
        }
    }
}

/// A name that neither the configuration nor a cursor has is a slip of the pen.
fn known(config: &Config, name: &str, saved: &[String]) -> anyhow::Result<()> {
    let mut names = config.outbox_names();
    names.extend(saved.iter().filter(|saved| !names.contains(saved)).cloned().collect::<Vec<_>>());
    if names.iter().any(|known| known == name) {
        return Ok(());
    }
    let message = format!("--outbox: expected one of {}, found {name}", names.join(", "));
    Err(Ends { exit: Exit::Usage, message }.into())
}

/// What lets a change happen.
#[derive(Debug, clap::Args)]
pub(super) struct Consent {
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

impl Consent {
    /// Asks at a terminal; elsewhere `--yes` has to say it.
    fn is_given(&self, what: &str) -> anyhow::Result<bool> {
        if self.yes {
            return Ok(true);
        }
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            let message = format!(
                "{what}: nobody can be asked, for stdin is no terminal; nothing was changed\nhint: say --yes if that is meant"
            );
            return Err(Ends { exit: Exit::Usage, message }.into());
        }
        output::note(&format!("{what}. Type yes to go on:"));
        let mut answer = String::new();
        stdin.lock().read_line(&mut answer).context("reading the answer")?;
        Ok(matches!(answer.trim(), "yes" | "y"))
    }
}

fn declined() -> Exit {
    output::note("outboxd: nothing was changed");
    Exit::Failed
}

/// A refusal as the end of a one-shot command.
fn refused(refusal: &Refusal) -> anyhow::Error {
    Ends { exit: Exit::Failed, message: words(refusal) }.into()
}

fn words(refusal: &Refusal) -> String {
    let hint = refusal.hint.as_ref().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
    format!("{refusal}{hint}")
}
