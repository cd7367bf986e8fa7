//! The command line: one file per command. Here are their list and the exit codes.

mod check;
mod client;
mod config;
mod cursor;
mod migrate;
mod output;
mod owner;
mod parked;
mod reload;
mod run;
mod status;

use crate::config::Config;
use crate::config::problem::Problem;
use crate::sink::kafka::options;
use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use output::Format;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// How a process ends. Numbers from 64 on are those of `sysexits.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Done = 0,
    Failed = 1,
    Findings = 2,
    Usage = 64,
    Unavailable = 69,
    Bug = 70,
    Configuration = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error that decides the exit code; without one it is 1.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Ends {
    exit: Exit,
    message: String,
}

/// Transactional outbox relay: tails an outbox table in Postgres and publishes each event to Kafka, at least once and in order per stream.
#[derive(Debug, Parser)]
#[command(name = "outboxd", version, max_term_width = 100, after_help = EXIT_CODES)]
struct Arguments {
    /// Configuration file [default: ./outboxd.toml, else /etc/outboxd/outboxd.toml]
    #[arg(long, value_name = "FILE", env = "OUTBOXD_CONFIG", global = true)]
    config: Option<PathBuf>,
    /// Form of what is printed on stdout
    #[arg(long, value_name = "FORM", default_value = "text", global = true)]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str =
    "Exit codes: 0 done, 1 failed, 2 findings, 64 usage, 69 a server is unavailable, 70 a bug, 78 configuration";

#[derive(Debug, Subcommand)]
enum Command {
    /// Publish events until told to stop (SIGTERM or SIGINT; a second one ends at once); SIGHUP reads the configuration again
    Run,
    /// Check configuration, servers, schema, grants and the topics whose names no event decides; each finding with its remedy
    Check,
    /// Create or update the schema in Postgres
    Migrate(migrate::Arguments),
    /// Say where the relay is and what it waits for; from the daemon, else from the database
    Status,
    /// Look at events that wait because one of their stream cannot be published, and decide about them
    Parked {
        #[command(subcommand)]
        command: parked::Command,
    },
    /// Show where each outbox stands, make a cursor fit a restored database, or set one by hand
    Cursor {
        #[command(subcommand)]
        command: cursor::Command,
    },
    /// Show the effective configuration, or its JSON Schema
    Config {
        #[command(subcommand)]
        command: config::Command,
    },
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error).into(),
    };
    let done = std::panic::catch_unwind(|| dispatch(&arguments));
    match done {
        Ok(Ok(exit)) => exit.into(),
        Ok(Err(error)) => {
            output::error(&error);
            error.downcast_ref::<Ends>().map_or(Exit::Failed, |ends| ends.exit).into()
        }
        Err(_) => Exit::Bug.into(), // the panic hook has said what happened
    }
}

/// clap would end with 2 on wrong usage; here that means findings.
fn usage(error: &clap::Error) -> Exit {
    drop(error.print());
    if error.use_stderr() { Exit::Usage } else { Exit::Done }
}

fn dispatch(arguments: &Arguments) -> anyhow::Result<Exit> {
    let file = || find(arguments.config.as_deref());
    match &arguments.command {
        Command::Run => run::run(&file()?),
        Command::Check => check::run(&file()?, arguments.output),
        Command::Migrate(how) => migrate::run(how, || load(&file()?), arguments.output),
        Command::Status => status::run(&load(&file()?)?, arguments.output),
        Command::Parked { command } => parked::run(command, &load(&file()?)?, arguments.output),
        Command::Cursor { command } => cursor::run(command, file, arguments.output),
        Command::Config { command } => config::run(command, file, arguments.output),
        Command::Completions { shell } => {
            output::completions(*shell, &mut Arguments::command());
            Ok(Exit::Done)
        }
    }
}

/// The configuration file's text and where it lies.
struct File {
    path: PathBuf,
    text: String,
}

fn find(given: Option<&Path>) -> anyhow::Result<File> {
    let usual = [Path::new("outboxd.toml"), Path::new("/etc/outboxd/outboxd.toml")];
    let path = given.or_else(|| usual.into_iter().find(|path| path.exists())).ok_or_else(|| Ends {
        exit: Exit::Configuration,
        message: "no configuration: neither ./outboxd.toml nor /etc/outboxd/outboxd.toml exists\nhint: name one with --config FILE".to_owned(),
    })?;
    Ok(read(path)?)
}

fn read(path: &Path) -> Result<File, Ends> {
    let text = std::fs::read_to_string(path).map_err(|error| Ends {
        exit: Exit::Configuration,
        message: format!("the configuration {} cannot be read: {error}", path.display()),
    })?;
    Ok(File { path: path.to_owned(), text })
}

fn load(file: &File) -> anyhow::Result<Config> {
    Ok(valid(&file.text).map_err(|problems| {
        let list: Vec<String> = problems.iter().map(|problem| format!("{}: {problem}", file.path.display())).collect();
        let count = if list.len() == 1 { "1 problem".to_owned() } else { format!("{} problems", list.len()) };
        Ends { exit: Exit::Configuration, message: format!("{}\n{count} in the configuration", list.join("\n")) }
    })?)
}

/// A configuration that librdkafka takes, too; or what is wrong with it.
fn valid(text: &str) -> Result<Config, Vec<String>> {
    let problems = |list: Vec<Problem>| list.iter().map(Problem::to_string).collect::<Vec<_>>();
    let config = crate::config::load(text, &variables()).map_err(problems)?;
    options::verify(&config.kafka).map_err(|refused| vec![refused.what])?;
    Ok(config)
}

/// The environment; a variable that is not text cannot be ours.
fn variables() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// A runtime for a command that asks servers and is done.
fn block_on<T>(task: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?.block_on(task)
}

impl ValueEnum for Format {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Text, Self::Json]
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(match self {
            Self::Text => clap::builder::PossibleValue::new("text"),
            Self::Json => clap::builder::PossibleValue::new("json"),
        })
    }
}
