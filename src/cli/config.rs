//! `outboxd config`: the effective configuration, and its JSON Schema.

use super::output::{self, Format};
use super::{Ends, Exit, File, load, variables};
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print the effective configuration: defaults filled in, secrets hidden
    Show,
    /// Print the JSON Schema of the configuration file
    Schema,
}

pub(super) fn run(
    command: &Command,
    file: impl FnOnce() -> anyhow::Result<File>,
    format: Format,
) -> anyhow::Result<Exit> {
    match command {
        Command::Schema => output::json(&crate::config::schema()),
        Command::Show => {
            let file = file()?;
            load(&file)?;
            let shown = crate::config::show(&file.text, &variables()).map_err(|_| Ends {
                exit: Exit::Configuration,
                message: "the configuration cannot be shown".to_owned(),
            })?;
            match format {
                Format::Text => output::data(&shown),
                Format::Json => output::json(&toml::from_str::<toml::Table>(&shown)?),
            }
        }
    }
    Ok(Exit::Done)
}
