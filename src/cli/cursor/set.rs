//! `outboxd cursor set`: counts what it would mean, asks, and says how to undo it.

use super::super::output::{self, Format, counted};
use super::super::{Ends, Exit, migrate};
use super::{Consent, Which, declined, known, refused};
use crate::config::Config;
use crate::config::outbox::OutboxName;
use crate::db::{self, Purpose};
use crate::outbox::cursor::Cursor;
use crate::outbox::lane::LaneId;
use crate::store::guards;
use crate::store::rebase::{self, RebaseError, Weighed};
use anyhow::Context;
use serde_json::json;

#[derive(Debug, clap::Args)]
pub(in super::super) struct Arguments {
    /// Name of the outbox [default: the only one of the configuration]
    #[arg(long, value_name = "NAME", value_parser = OutboxName::parse)]
    outbox: Option<OutboxName>,
    /// `earliest`, `latest`, or a position as `cursor show` prints it: S, or 'S T AFTER'
    #[arg(long, value_name = "POSITION", value_parser = read)]
    to: To,
    #[command(flatten)]
    consent: Consent,
}

/// Where to.
#[derive(Clone, Debug)]
enum To {
    /// Behind all that is committed now.
    Latest,
    /// A place.
    Cursor(Cursor),
}

fn read(text: &str) -> Result<To, String> {
    match text {
        "latest" => return Ok(To::Latest),
        "earliest" => return Ok(To::Cursor(Cursor::earliest())),
        _ => {}
    }
    let expected = "expected `earliest`, `latest`, or a position `S` or `S T AFTER`";
    let parts: Vec<&str> = text.split_whitespace().collect();
    let cursor = match parts[..] {
        [s] => Cursor::parse(s, None, None),
        [s, t, after] => {
            let after = after.parse().map_err(|_| format!("{expected}, found `{after}` for AFTER"))?;
            Cursor::parse(s, Some(t), Some(after))
        }
        _ => return Err(expected.to_owned()),
    };
    cursor.map(To::Cursor).map_err(|error| {
        let cause = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
        format!("{expected}; {error}{cause}")
    })
}

pub(super) async fn run(config: &Config, how: &Arguments, format: Format) -> anyhow::Result<Exit> {
    let names = Which { outbox: how.outbox.clone() }.names(config);
    let [name] = &names[..] else {
        let message = format!("--outbox: expected one of {}, for a cursor is set alone", names.join(", "));
        return Err(Ends { exit: Exit::Usage, message }.into());
    };
    let lane = LaneId::FIRST;
    let mut session = db::connect(&config.postgres.url, Purpose::Own).await.map_err(|error| migrate::ends(&error))?;
    known(config, name, &rebase::outboxes(&mut session).await.map_err(|error| migrate::ends(&error))?)?;

    // A cursor that does not belong here must keep its evidence: a rebase needs it.
    let place = guards::place(&mut session, name, lane).await.map_err(|error| migrate::ends(&error))?;
    let cluster = place.cursor.as_ref().and_then(|row| row.kafka_cluster.clone()).unwrap_or_default();
    guards::judge_place(&place, name, &session.server.role, &cluster).map_err(|refusal| refused(&refusal))?;

    let to = match &how.to {
        To::Latest => None,
        To::Cursor(cursor) => Some(cursor),
    };
    let weighed = rebase::weigh(&mut session, name, lane, to).await.map_err(ends)?.ok_or_else(|| Ends {
        exit: Exit::Failed,
        message: format!(
            "outbox {name} has no cursor yet: there is nothing to set\nhint: `start` in its [[outbox]] says where the first one begins"
        ),
    })?;
    if let Some(refusal) = &weighed.refusal {
        return Err(refused(refusal));
    }
    let target = cursor(&weighed.to)?;
    output::note(&meaning(name, &weighed));
    let harmless = weighed.again_events == 0 && weighed.left_out_events == 0;
    if !harmless && !how.consent.is_given(&question(&weighed))? {
        return Ok(declined());
    }
    let done =
        rebase::set(&mut session, name, lane, weighed.epoch, &target).await.map_err(|error| migrate::ends(&error))?;
    let Some(epoch) = done else {
        let message = format!(
            "a relay took the lease of {name}/{lane} meanwhile: nothing was changed\nhint: stop it, and run this again"
        );
        return Err(Ends { exit: Exit::Failed, message }.into());
    };
    session.close().await;
    let undo = format!("outboxd cursor set --outbox {name} --to '{}'", weighed.from);
    match format {
        Format::Json => output::json(&json!({
            "outbox": name, "lane": lane.get(), "from": weighed.from, "to": weighed.to, "epoch": epoch.get(),
            "again_events": weighed.again_events, "left_out_events": weighed.left_out_events, "undo": undo,
        })),
        Format::Text => {
            output::data(&format!(
                "set {name}/{lane}: was {}, is {}, epoch {epoch}\nundo: {undo}",
                weighed.from, weighed.to
            ));
        }
    }
    Ok(Exit::Done)
}

/// The position as the server printed it.
fn cursor(text: &str) -> anyhow::Result<Cursor> {
    match read(text) {
        Ok(To::Cursor(cursor)) => Ok(cursor),
        Ok(To::Latest) | Err(_) => Err(anyhow::anyhow!("{text}")).context("the server printed a position that is none"),
    }
}

fn meaning(name: &str, weighed: &Weighed) -> String {
    output::pairs([
        ("outbox".to_owned(), name.to_owned()),
        ("from".to_owned(), weighed.from.clone()),
        ("to".to_owned(), weighed.to.clone()),
        ("sent again".to_owned(), counted(weighed.again_events, "event")),
        ("left out".to_owned(), counted(weighed.left_out_events, "event")),
    ])
}

fn question(weighed: &Weighed) -> String {
    match (weighed.again_events, weighed.left_out_events) {
        (again, 0) => format!("send {} again", counted(again, "event")),
        (0, left_out) => format!("leave out {}, which then are published by nobody", counted(left_out, "event")),
        (again, left_out) => {
            format!(
                "send {} again and leave out {}, which then are published by nobody",
                counted(again, "event"),
                counted(left_out, "event")
            )
        }
    }
}

fn ends(error: RebaseError) -> anyhow::Error {
    match error {
        RebaseError::Refused(refusal) => refused(&refusal),
        RebaseError::Db(error) => migrate::ends(&error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_as_it_is_printed() {
        for text in ["3:3:", "812:815:812,814", "3:3: 9:12:9 77"] {
            assert_eq!(cursor(text).unwrap().to_string(), text);
        }
        assert!(matches!(read("latest"), Ok(To::Latest)));
        assert!(matches!(read("earliest"), Ok(To::Cursor(cursor)) if cursor == Cursor::earliest()));
        for text in ["", "now", "3:3: 3:4:", "3:3: 3:4: x", "5:4:", "3:3: 3:4: 1 2"] {
            assert!(read(text).is_err_and(|error| error.contains("expected `earliest`")), "{text}");
        }
    }
}
