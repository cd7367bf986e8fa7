//! `outboxd cursor rebase`: counts, asks, does it in one transaction, and says what it did.

use super::super::output::{self, Format, counted};
use super::super::owner::Owner;
use super::super::{Ends, Exit, migrate};
use super::{Consent, Which, declined, known, refused, words};
use crate::config::Config;
use crate::db::{self, DbErrorKind, Purpose, Session};
use crate::outbox::lane::LaneId;
use crate::store::guards::{self, Note};
use crate::store::rebase::{self, Effect, Plan, Rebase, RebaseError, Rebased};
use serde_json::json;

#[derive(Debug, clap::Args)]
pub(in super::super) struct Arguments {
    #[command(flatten)]
    which: Which,
    /// Publish every event of the table again: in doubt, after two restores without a rebase between them, and for a table older than
    /// 2^32 transactions
    #[arg(long)]
    all: bool,
    /// Forget into which Kafka cluster the events went: the next one that the relay reaches is theirs
    #[arg(long)]
    kafka: bool,
    /// Count and change nothing
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    #[command(flatten)]
    consent: Consent,
    #[command(flatten)]
    owner: Owner,
}

pub(super) async fn run(config: &Config, how: &Arguments, format: Format) -> anyhow::Result<Exit> {
    let url = how.owner.url(|| Ok(config.postgres.url.clone()))?;
    let mut session = db::connect(&url, Purpose::Own).await.map_err(|error| migrate::ends(&error))?;
    let wanted = Rebase { outboxes: how.which.names(config), all: how.all, kafka: how.kafka };
    if let Some(name) = &how.which.outbox {
        let saved = rebase::outboxes(&mut session).await.map_err(|error| ends(RebaseError::Db(error)))?;
        known(config, name.as_str(), &saved)?;
    }
    let plan = rebase::plan(&mut session, &wanted).await.map_err(ends)?;
    let verdicts = verdicts(&mut session, &wanted).await?;
    if how.dry_run {
        match format {
            Format::Json => output::json(&planned(&plan, &verdicts)),
            Format::Text => output::data(&text(&plan, &verdicts)),
        }
        return Ok(Exit::Done);
    }
    if let Some(refusal) = &plan.refusal {
        return Err(refused(refusal));
    }
    output::note(&text(&plan, &verdicts));
    if !how.consent.is_given("rebase these cursors; writers of the table wait meanwhile")? {
        return Ok(declined());
    }
    let done = rebase::rebase(&mut session, &wanted).await.map_err(ends)?;
    session.close().await;
    match format {
        Format::Json => output::json(&told(&done)),
        Format::Text => output::data(&report(&done, &wanted)),
    }
    Ok(Exit::Done)
}

/// Name of an outbox and what the guards say of its cursor.
type Verdict = (String, String);

async fn verdicts(session: &mut Session, wanted: &Rebase) -> anyhow::Result<Vec<Verdict>> {
    let mut verdicts = Vec::new();
    for outbox in &wanted.outboxes {
        let place =
            guards::place(session, outbox, LaneId::FIRST).await.map_err(|error| ends(RebaseError::Db(error)))?;
        let cluster = place.cursor.as_ref().and_then(|row| row.kafka_cluster.clone()).unwrap_or_default();
        let words = match guards::judge_place(&place, outbox, &session.server.role, &cluster) {
            Err(refusal) => refusal.message,
            Ok(_) if place.cursor.is_none() => "no cursor yet: none is made".to_owned(),
            Ok(Note::AsBefore) => "fits this database".to_owned(),
            Ok(Note::Moved { .. } | Note::FailedOver { .. }) => {
                "fits this database, which was upgraded, moved or failed over".to_owned()
            }
        };
        verdicts.push((outbox.clone(), words));
    }
    Ok(verdicts)
}

fn text(plan: &Plan, verdicts: &[Verdict]) -> String {
    let mut rows = Vec::new();
    let mut row = |name: &str, value: String| rows.push((name.to_owned(), value));
    for (outbox, verdict) in verdicts {
        row("outbox", format!("{outbox}: {verdict}"));
    }
    row("to be published", counted(plan.restamped_events, "event"));
    for effect in plan.effects.iter().filter(|effect| effect.again_events > 0) {
        let Effect { outbox, again_events: again, .. } = effect;
        if effect.chosen {
            row(
                "of them",
                format!(
                    "{} look settled to {outbox}: sent already, or written here unnoticed",
                    counted(*again, "event")
                ),
            );
        } else {
            row("other outbox", format!("{outbox} will read {} again that it has settled", counted(*again, "event")));
        }
    }
    if plan.aged_events > 0 {
        row(
            "stay settled",
            format!(
                "{} with transaction ids from elsewhere, which are made harmless",
                counted(plan.aged_events, "event")
            ),
        );
    }
    if let Some(refusal) = &plan.refusal {
        row("not now", words(refusal));
    }
    output::pairs(rows)
}

fn planned(plan: &Plan, verdicts: &[Verdict]) -> serde_json::Value {
    let effects = |chosen: bool| -> Vec<_> {
        let effects = plan.effects.iter().filter(|effect| effect.chosen == chosen);
        effects.map(|e| json!({ "outbox": e.outbox, "lane": e.lane, "again_events": e.again_events })).collect()
    };
    let verdicts: Vec<_> = verdicts.iter().map(|(outbox, says)| json!({ "outbox": outbox, "verdict": says })).collect();
    json!({
        "restamped_events": plan.restamped_events,
        "aged_events": plan.aged_events,
        "verdicts": verdicts,
        "cursors": effects(true),
        "others": effects(false),
        "refused": plan.refusal.as_ref().map(|refusal| json!({ "message": refusal.message, "hint": refusal.hint })),
    })
}

fn told(done: &Rebased) -> serde_json::Value {
    let cursors = done.cursors.iter();
    let cursors: Vec<_> = cursors
        .map(|c| json!({ "outbox": c.outbox, "lane": c.lane, "from": c.from, "to": c.to, "epoch": c.epoch }))
        .collect();
    json!({ "restamped_events": done.restamped_events, "aged_events": done.aged_events, "cursors": cursors })
}

fn report(done: &Rebased, wanted: &Rebase) -> String {
    let mut lines: Vec<String> = done
        .cursors
        .iter()
        .map(|c| format!("rebased {}/{}: was {}, is {}, epoch {}", c.outbox, c.lane, c.from, c.to, c.epoch))
        .collect();
    if lines.is_empty() {
        lines.push("no cursor to rebase: the relay makes it at its first start".to_owned());
    }
    lines.push(format!(
        "{} stamped anew, {} made harmless",
        counted(done.restamped_events, "event"),
        counted(done.aged_events, "event")
    ));
    if wanted.kafka {
        lines.push("the Kafka cluster is forgotten: the next one that the relay reaches is taken".to_owned());
    }
    lines.push("a relay that waits goes on by itself; otherwise: outboxd run".to_owned());
    lines.join("\n")
}

fn ends(error: RebaseError) -> anyhow::Error {
    match error {
        RebaseError::Refused(refusal) => refused(&refusal),
        RebaseError::Db(error) if error.kind() == DbErrorKind::Denied => {
            let hint = "connect as the owner of the schema, with --admin-url URL or OUTBOXD_ADMIN_URL";
            Ends { exit: Exit::Failed, message: format!("{error}\nhint: {hint}") }.into()
        }
        RebaseError::Db(error) => migrate::ends(&error),
    }
}
