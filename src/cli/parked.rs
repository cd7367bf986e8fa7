//! `outboxd parked`: look at events that wait until somebody acts, and decide. The relay that holds the lease carries it out.

use super::output::{self, Format};
use super::{Ends, Exit, block_on, migrate};
use crate::config::Config;
use crate::db::{self, DbError, Purpose, Session};
use crate::outbox::lane::LaneId;
use crate::store::decisions::{self, CAP, Decision, Filter, Standing};
use crate::store::guards;
use clap::{Args, Subcommand};
use uuid::Uuid;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List parked streams: the event at which each stands, why, and how many wait behind it
    List {
        #[command(flatten)]
        chosen: Chosen,
        /// At most so many streams
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: u32,
    },
    /// Show all that is kept of a parked event, its payload included
    Show {
        /// The event's uuid
        event: Uuid,
    },
    /// Send parked streams again, in their order; a stream whose first event is refused once more stands again
    Retry {
        #[command(flatten)]
        chosen: Chosen,
    },
    /// Give up the first event of parked streams for good; it is kept, and the others behind it are sent
    Discard {
        #[command(flatten)]
        chosen: Chosen,
        /// The parked events behind it too
        #[arg(long)]
        with_followers: bool,
        /// Do it: consumers will never see these events
        #[arg(long)]
        yes: bool,
    },
}

/// What is decided about a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Concerns {
    /// What becomes of its first event.
    First(Decision),
    /// All that is parked of it is given up.
    All,
}

#[derive(Debug, Args)]
pub(super) struct Chosen {
    /// Streams whose first parked events have these uuids
    #[arg(value_name = "EVENT")]
    events: Vec<Uuid>,
    /// The stream of an aggregate
    #[arg(long, value_name = "TYPE/ID", value_parser = stream)]
    stream: Option<(String, String)>,
    /// Streams that stand for this reason, for example `too_large`
    #[arg(long, value_name = "CODE")]
    code: Option<String>,
    /// All parked streams
    #[arg(long)]
    all: bool,
    /// Streams of this outbox only
    #[arg(long, value_name = "NAME")]
    outbox: Option<String>,
}

fn stream(text: &str) -> Result<(String, String), String> {
    let (aggregate_type, aggregate_id) = text.split_once('/').ok_or("expected TYPE/ID, such as Order/42")?;
    Ok((aggregate_type.to_owned(), aggregate_id.to_owned()))
}

pub(super) fn run(command: &Command, config: &Config, format: Format) -> anyhow::Result<Exit> {
    block_on(async {
        match command {
            Command::List { chosen, limit } => list(config, chosen, *limit, format).await,
            Command::Show { event } => show(config, *event).await,
            Command::Retry { chosen } => decide(config, chosen, Concerns::First(Decision::Retry)).await,
            Command::Discard { chosen, with_followers, yes } => {
                let concerns = if *with_followers { Concerns::All } else { Concerns::First(Decision::Discard) };
                if *yes { decide(config, chosen, concerns).await } else { ask(config, chosen, concerns).await }
            }
        }
    })
}

async fn list(config: &Config, chosen: &Chosen, limit: u32, format: Format) -> anyhow::Result<Exit> {
    let limit = usize::try_from(limit)?;
    let mut found = find(config, chosen, i64::try_from(limit.saturating_add(1))?).await?;
    let more = found.len() > limit;
    found.truncate(limit);
    match format {
        Format::Json => output::json(&found),
        Format::Text if found.is_empty() => output::note("nothing is parked"),
        Format::Text => output::data(&output::table(&HEADINGS, found.iter().map(row))),
    }
    if more {
        output::note(&format!("there are more than {limit}: --limit N shows more"));
    }
    Ok(Exit::Done)
}

const HEADINGS: [&str; 7] = ["stream", "event", "parked", "waiting", "tried", "decided", "why"];

fn row(found: &Standing) -> [String; 7] {
    let events = if found.events >= CAP { format!("{CAP} or more") } else { found.events.to_string() };
    let why = match (&found.code, &found.reason) {
        (Some(code), Some(reason)) => format!("{code}: {reason}"),
        _ => "on its way again".to_owned(),
    };
    [
        format!("{}/{}", found.aggregate_type, found.aggregate_id),
        found.event_id.to_string(),
        found.parked_at.clone(),
        events,
        found.attempts.to_string(),
        found.decision.clone().unwrap_or_default(),
        why,
    ]
}

async fn show(config: &Config, event: Uuid) -> anyhow::Result<Exit> {
    let mut session = connect(config, Purpose::Observe).await?;
    let found =
        decisions::show(&mut session, &names(config, None)?, event).await.map_err(|error| migrate::ends(&error))?;
    session.close().await;
    if found.is_empty() {
        return Err(none(&format!("event {event} is not parked")));
    }
    for text in found {
        output::json(&serde_json::from_str::<serde_json::Value>(&text)?);
    }
    Ok(Exit::Done)
}

async fn decide(config: &Config, chosen: &Chosen, concerns: Concerns) -> anyhow::Result<Exit> {
    let heads = meant(config, chosen).await?;
    let mut session = connect(config, Purpose::Read).await?; // whose settings leave the statements one plan each
    let decided_by = who(&session);
    let mut events = 0_u64;
    if let Err(error) = record(&mut session, &heads, concerns, &decided_by, &mut events).await {
        if events > 0 {
            output::note(&format!("{} will be; to go on, say it again", output::counted(events, "event")));
        }
        return Err(migrate::ends(&error));
    }
    let what = if concerns == Concerns::First(Decision::Retry) { "sent again" } else { "given up" };
    output::note(&format!(
        "{} of {} will be {what}",
        output::counted(events, "event"),
        output::counted(heads.len(), "stream")
    ));
    for outbox in names(config, chosen.outbox.as_deref())? {
        if heads.iter().any(|head| head.outbox == outbox)
            && !is_held(&mut session, &outbox).await.map_err(|error| migrate::ends(&error))?
        {
            output::note(&format!("no relay holds the lease of {outbox}: it is done when one runs"));
        }
    }
    session.close().await;
    Ok(Exit::Done)
}

/// Counts into `events` those about which it is decided, also before an error.
async fn record(
    session: &mut Session,
    heads: &[Standing],
    concerns: Concerns,
    decided_by: &str,
    events: &mut u64,
) -> Result<(), DbError> {
    match concerns {
        Concerns::First(decision) => {
            for some in heads.chunks(1_000) {
                let done = decisions::decide(session, some, decision, decided_by).await?;
                *events = events.saturating_add(done);
            }
        }
        Concerns::All => {
            for head in heads {
                decisions::give_up(session, head, decided_by, events).await?;
            }
        }
    }
    Ok(())
}

/// Says what `--yes` would do.
async fn ask(config: &Config, chosen: &Chosen, concerns: Concerns) -> anyhow::Result<Exit> {
    let heads = meant(config, chosen).await?;
    let events: i64 = match concerns {
        Concerns::All => heads.iter().map(|head| head.events).sum(),
        Concerns::First(_) => i64::try_from(heads.len())?,
    };
    let is_capped = concerns == Concerns::All && heads.iter().any(|head| head.events >= CAP);
    let message = format!(
        "{}{} of {} would be given up: consumers would never see them. Nothing was done\nhint: say --yes",
        if is_capped { "at least " } else { "" },
        output::counted(events, "event"),
        output::counted(heads.len(), "stream")
    );
    Err(Ends { exit: Exit::Failed, message }.into())
}

/// The streams that the arguments mean; each event that was named has to be the first of its stream.
async fn meant(config: &Config, chosen: &Chosen) -> anyhow::Result<Vec<Standing>> {
    let named = !chosen.events.is_empty() || chosen.stream.is_some() || chosen.code.is_some();
    if named == chosen.all {
        let message = "say which: EVENT..., --stream TYPE/ID, --code CODE, or --all".to_owned();
        return Err(Ends { exit: Exit::Usage, message }.into());
    }
    let found = find(config, chosen, i64::MAX).await?;
    if let Some(other) = chosen.events.iter().find(|event| found.iter().all(|head| head.event_id != **event)) {
        return Err(none(&format!(
            "event {other} is not the first that is parked of a stream\nhint: see: outboxd parked list"
        )));
    }
    if found.is_empty() {
        return Err(none("no parked stream is meant"));
    }
    Ok(found)
}

async fn find(config: &Config, chosen: &Chosen, most: i64) -> anyhow::Result<Vec<Standing>> {
    let filter = Filter {
        outboxes: names(config, chosen.outbox.as_deref())?,
        events: chosen.events.clone(),
        stream: chosen.stream.clone(),
        code: chosen.code.clone(),
    };
    let mut session = connect(config, Purpose::Read).await?;
    let found = decisions::list(&mut session, &filter, most).await.map_err(|error| migrate::ends(&error))?;
    session.close().await;
    Ok(found)
}

/// The outboxes of the configuration, or the one that was named.
fn names(config: &Config, named: Option<&str>) -> anyhow::Result<Vec<String>> {
    let all = config.outbox_names();
    match named {
        None => Ok(all),
        Some(name) if all.iter().any(|known| known == name) => Ok(vec![name.to_owned()]),
        Some(name) => {
            let message = format!("no outbox of the configuration is called {name}, but: {}", all.join(", "));
            Err(Ends { exit: Exit::Usage, message }.into())
        }
    }
}

async fn is_held(session: &mut Session, outbox: &str) -> Result<bool, DbError> {
    let place = guards::place(session, outbox, LaneId::FIRST).await?;
    Ok(place.cursor.is_some_and(|row| row.owner.is_some() && !row.expired))
}

async fn connect(config: &Config, purpose: Purpose) -> anyhow::Result<Session> {
    db::connect(&config.postgres.url, purpose).await.map_err(|error| migrate::ends(&error))
}

/// Who decides: the person, as far as the system tells, and the role.
fn who(session: &Session) -> String {
    let person = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_else(|_| "unknown".to_owned());
    format!("{person} as {}", session.server.role)
}

fn none(message: &str) -> anyhow::Error {
    Ends { exit: Exit::Failed, message: message.to_owned() }.into()
}
