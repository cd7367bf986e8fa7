//! What has to hold for as long as the relay runs: schema, grants, sequence, the column `xid`, forgers, durability.
//! Looked at at start, in `check`, and every minute. Looks, judges, writes nothing.

use super::guards::Refusal;
use crate::db::migrate::{self, SchemaState};
use crate::db::{DbError, Session};
use sqlx::Row;
use sqlx::postgres::PgRow;

/// How grave a [`Finding`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The relay does not read while this holds.
    Refuse,
    /// Events may be late, or lost by somebody else's doing.
    Warn,
    /// Good to know.
    Info,
}

/// What a standing guard found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How grave it is.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// The next step.
    pub hint: Option<String>,
}

impl Finding {
    fn new(severity: Severity, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { severity, message: message.into(), hint: Some(hint.into()) }
    }

    /// As a refusal, if it is one.
    pub fn refusal(&self) -> Option<Refusal> {
        (self.severity == Severity::Refuse).then(|| Refusal { message: self.message.clone(), hint: self.hint.clone() })
    }
}

/// Checks what has to hold for as long as the relay runs: schema, grants, sequence, the column `xid`, forgers, durability.
///
/// A finding of the schema or of the grants ends the look: the others need both.
///
/// # Errors
/// Those of the server.
pub async fn look(session: &mut Session, outboxes: &[String]) -> Result<Vec<Finding>, DbError> {
    if let Some(finding) = schema(session).await? {
        return Ok(vec![finding]);
    }
    let missing = grants(session).await?;
    if !missing.is_empty() {
        return Ok(missing);
    }
    if let Some(finding) = hidden(session).await? {
        return Ok(vec![finding]); // with `row_security = off` the rest would fail, with a worse message
    }
    let statement = sqlx::query(STANDING).bind(outboxes).fetch_one(&mut session.connection);
    let row = Session::brief("checking the outbox", statement).await?;
    let facts = read_standing(&row).map_err(DbError::during("checking the outbox"))?;
    Ok(judge_standing(&facts))
}

async fn hidden(session: &mut Session) -> Result<Option<Finding>, DbError> {
    let statement =
        sqlx::query_scalar("select row_security_active('outbox.events')").fetch_one(&mut session.connection);
    let hidden: bool = Session::brief("looking for row-level security", statement).await?;
    let refusal = hidden.then(|| Refusal::hidden_rows(&session.server.role));
    Ok(refusal.map(|refusal| Finding { severity: Severity::Refuse, message: refusal.message, hint: refusal.hint }))
}

async fn schema(session: &mut Session) -> Result<Option<Finding>, DbError> {
    let usage: Option<bool> = Session::brief(
        "checking the schema",
        sqlx::query_scalar("select has_schema_privilege(oid, 'usage') from pg_namespace where nspname = 'outbox'")
            .fetch_optional(&mut session.connection),
    )
    .await?;
    if usage == Some(false) {
        let message = format!("role {} lacks usage on schema outbox", session.server.role);
        return Ok(Some(Finding::new(Severity::Refuse, message, usage_hint(&session.server.role))));
    }
    let readable: Option<bool> = Session::brief(
        "checking the schema",
        sqlx::query_scalar("select has_table_privilege(to_regclass('outbox._sqlx_migrations'), 'select')")
            .fetch_one(&mut session.connection),
    )
    .await?;
    if readable == Some(false) {
        let message = format!("role {} lacks select on outbox._sqlx_migrations", session.server.role);
        return Ok(Some(Finding::new(
            Severity::Refuse,
            message,
            format!("grant outbox_relay to {}", session.server.role),
        )));
    }
    Ok(judge_schema(migrate::state(&mut session.connection).await?))
}

fn judge_schema(state: SchemaState) -> Option<Finding> {
    let (message, hint) = match state {
        SchemaState::Current => return None,
        SchemaState::Missing => ("schema is missing".to_owned(), "run: outboxd migrate"),
        SchemaState::Older => ("schema is older".to_owned(), "run: outboxd migrate"),
        SchemaState::Newer => ("schema is newer".to_owned(), "upgrade outboxd"),
        SchemaState::Edited(version) => (
            format!("migration {version} was applied with another text than this binary carries"),
            "use the binary that applied it, or restore the migration",
        ),
    };
    Some(Finding::new(Severity::Refuse, message, hint))
}

/// The role may be a member already, of a group that has lost the grant.
fn usage_hint(role: &str) -> String {
    format!("grant usage on schema outbox to {role}, or: grant outbox_relay to {role}")
}

const GRANTS: &str = "
    select t.name, p.privilege
      from (values ('outbox.events', 'select'), ('outbox.events', 'delete'), ('outbox.streams', 'select'),
                   ('outbox.cursors', 'select'), ('outbox.cursors', 'insert'), ('outbox.cursors', 'update'), ('outbox.cursors', 'delete'),
                   ('outbox.parked', 'select'), ('outbox.parked', 'insert'), ('outbox.parked', 'update'), ('outbox.parked', 'delete'))
           as p(relation, privilege), lateral (select p.relation) as t(name)
     where not has_table_privilege(p.relation, p.privilege)
     union all
    select 'sequence outbox.events_id_seq', 'select' where not has_sequence_privilege('outbox.events_id_seq', 'select')";

async fn grants(session: &mut Session) -> Result<Vec<Finding>, DbError> {
    let role = session.server.role.clone();
    let missing: Vec<(String, String)> =
        Session::brief("checking the grants", sqlx::query_as(GRANTS).fetch_all(&mut session.connection)).await?;
    let finding = |(table, privilege): (String, String)| {
        let message = format!("role {role} lacks {privilege} on {table}");
        Finding::new(
            Severity::Refuse,
            message,
            format!("grant {privilege} on {table} to {role}, or: grant outbox_relay to {role}"),
        )
    };
    Ok(missing.into_iter().map(finding).collect())
}

/// What [`STANDING`] returns.
#[expect(clippy::struct_excessive_bools, reason = "each is one answer of the server")]
#[derive(Clone, Debug, PartialEq, Eq)]
struct Standing {
    plain_table: bool,
    own_sequence: bool,
    cache: i64,
    increment: i64,
    cycles: bool,
    sequence_at: i64,
    largest_id: i64,
    xid_default: bool,
    xid_index: bool,
    subscribed: bool,
    copied_in: bool,
    next_xid: String,
    forgers: Vec<String>,
    fsync: bool,
    monitor: bool,
}

// The column reads are spelt out for `outbox.events`; one row comes back, and each subquery is a catalogue look-up or one index probe.
const STANDING: &str = "
    select c.relkind in ('r', 'p') and c.relpersistence = 'p'
             and not exists (select from pg_partition_tree(c.oid) t join pg_class p on p.oid = t.relid and p.relpersistence <> 'p') as plain_table,
           coalesce(pg_get_serial_sequence('outbox.events', 'id')::regclass = q.seqrelid, false) as own_sequence,
           q.seqcache, q.seqincrement, q.seqcycle,
           (select last_value - (not is_called)::int from outbox.events_id_seq) as sequence_at,
           greatest(coalesce((select max(id) from outbox.events), 0),
                    coalesce((select max(newest.id) from unnest($1::text[]) as o(name) cross join lateral (
                                select id from outbox.parked where outbox = o.name order by id desc limit 1) newest), 0)) as largest_id,
           coalesce(a.attnotnull and pg_get_expr(d.adbin, d.adrelid) = 'pg_current_xact_id()', false) as xid_default,
           exists (select from pg_index i where i.indrelid = c.oid and i.indisvalid and i.indpred is null and i.indkey[0] = a.attnum) as xid_index,
           exists (select from pg_subscription_rel s
                    where s.srrelid = c.oid or s.srrelid in (select relid from pg_partition_tree(c.oid))) as subscribed,
           exists (select from (select xid from outbox.events order by xid desc limit 1) newest  -- a range would be a third of the table
                    where xid >= pg_snapshot_xmax(pg_current_snapshot())) as copied_in,
           pg_snapshot_xmax(pg_current_snapshot())::text as next_xid,
           coalesce((select array_agg(quote_ident(r.rolname) order by r.rolname) from pg_roles r
                      where not r.rolsuper and not pg_has_role(r.oid, c.relowner, 'usage') and r.rolname !~ '^pg_'
                        and has_column_privilege(r.oid, c.oid, a.attnum, 'insert, update')), '{}') as forgers,
           current_setting('fsync') = 'on' as fsync,
           pg_has_role('pg_monitor', 'usage') as monitor
      from pg_class c
      join pg_attribute a on a.attrelid = c.oid and a.attname = 'xid'
      left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
      join pg_sequence q on q.seqrelid = 'outbox.events_id_seq'::regclass
     where c.oid = 'outbox.events'::regclass";

fn read_standing(row: &PgRow) -> Result<Standing, sqlx::Error> {
    Ok(Standing {
        plain_table: row.try_get("plain_table")?,
        own_sequence: row.try_get("own_sequence")?,
        cache: row.try_get("seqcache")?,
        increment: row.try_get("seqincrement")?,
        cycles: row.try_get("seqcycle")?,
        sequence_at: row.try_get("sequence_at")?,
        largest_id: row.try_get("largest_id")?,
        xid_default: row.try_get("xid_default")?,
        xid_index: row.try_get("xid_index")?,
        subscribed: row.try_get("subscribed")?,
        copied_in: row.try_get("copied_in")?,
        next_xid: row.try_get("next_xid")?,
        forgers: row.try_get("forgers")?,
        fsync: row.try_get("fsync")?,
        monitor: row.try_get("monitor")?,
    })
}

/// New events would get ids below those of old ones, and come before them in their window.
pub(super) fn sequence_behind(largest_id: i64) -> Refusal {
    let sequence = "outbox.events_id_seq";
    Refusal {
        message: format!(
            "sequence {sequence} is behind its table (copied without setval?): new events would come before old ones"
        ),
        hint: Some(format!("run: select setval('{sequence}', {largest_id})")),
    }
}

/// One row per guard, in the order of reading. Pure.
fn judge_standing(facts: &Standing) -> Vec<Finding> {
    let sequence = "outbox.events_id_seq";
    let behind = facts.sequence_at < facts.largest_id;
    let disordered = facts.cache != 1 || facts.increment != 1 || facts.cycles;
    let disorder = match facts.cache {
        1 => format!("sequence {sequence} does not count up by one: ids are out of order"),
        cache => format!("sequence {sequence} has cache {cache}: ids are out of order"),
    };
    let guards = [
        (
            !facts.plain_table,
            Severity::Refuse,
            "outbox.events must be an ordinary logged table".to_owned(),
            "alter table outbox.events set logged".to_owned(),
        ),
        (
            !facts.own_sequence,
            Severity::Refuse,
            format!("outbox.events.id does not take its numbers from {sequence} (renamed, or another table's?)"),
            format!(
                "give the sequence of its identity that name, and its numbers: alter sequence … rename to …; select setval('{sequence}', {})",
                facts.largest_id
            ),
        ),
        (
            disordered,
            Severity::Refuse,
            disorder,
            format!("alter sequence {sequence} increment 1 cache 1 no cycle, reconnect the writers"),
        ),
        (
            behind,
            Severity::Refuse,
            sequence_behind(facts.largest_id).message,
            sequence_behind(facts.largest_id).hint.unwrap_or_default(),
        ),
        (
            facts.subscribed,
            Severity::Refuse,
            "outbox.events is the target of a subscription: its rows carry foreign transaction ids".to_owned(),
            "drop the table from the publication, then: alter subscription … refresh publication".to_owned(),
        ),
        (
            !facts.xid_default,
            Severity::Refuse,
            "outbox.events.xid is not the writer's transaction id".to_owned(),
            "alter table outbox.events alter xid set default pg_current_xact_id(), alter xid set not null".to_owned(),
        ),
        (
            !facts.xid_index,
            Severity::Refuse,
            "outbox.events has no valid index that begins with xid".to_owned(),
            "create index events_xid on outbox.events (xid, id)".to_owned(),
        ),
        (
            facts.copied_in,
            Severity::Refuse,
            format!("events carry transaction ids above the current {}: copied in", facts.next_xid),
            "run: outboxd cursor rebase".to_owned(),
        ),
        (
            !facts.fsync,
            Severity::Warn,
            "fsync is off: a crash of Postgres can undo what was published".to_owned(),
            "set fsync = on".to_owned(),
        ),
        (
            !facts.monitor,
            Severity::Info,
            "the role of the relay is not in pg_monitor: it cannot say whose open transaction holds events back"
                .to_owned(),
            "grant pg_monitor to it".to_owned(),
        ),
    ];
    let forgers = facts.forgers.iter().map(|role| {
        let message = format!("role {role} can write xid; an event with an old one is never seen");
        Finding::new(
            Severity::Warn,
            message,
            format!("revoke insert, update on outbox.events from {role}; grant outbox_writer to {role}"),
        )
    });
    let found = guards
        .into_iter()
        .filter(|(holds, ..)| *holds)
        .map(|(_, severity, message, hint)| Finding::new(severity, message, hint));
    found.chain(forgers).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_standing_guard_speaks_for_itself() {
        let good = Standing {
            plain_table: true,
            own_sequence: true,
            cache: 1,
            increment: 1,
            cycles: false,
            sequence_at: 10,
            largest_id: 10,
            xid_default: true,
            xid_index: true,
            subscribed: false,
            copied_in: false,
            next_xid: "800".into(),
            forgers: Vec::new(),
            fsync: true,
            monitor: true,
        };
        assert_eq!(judge_standing(&good), []);
        let bad: [(Standing, Severity, &str); 10] = [
            (Standing { own_sequence: false, ..good.clone() }, Severity::Refuse, "does not take its numbers from"),
            (Standing { plain_table: false, ..good.clone() }, Severity::Refuse, "ordinary logged table"),
            (Standing { cache: 20, ..good.clone() }, Severity::Refuse, "has cache 20"),
            (Standing { largest_id: 11, ..good.clone() }, Severity::Refuse, "behind its table"),
            (Standing { subscribed: true, ..good.clone() }, Severity::Refuse, "subscription"),
            (Standing { xid_default: false, ..good.clone() }, Severity::Refuse, "not the writer's"),
            (Standing { xid_index: false, ..good.clone() }, Severity::Refuse, "no valid index"),
            (Standing { copied_in: true, ..good.clone() }, Severity::Refuse, "above the current 800"),
            (Standing { fsync: false, ..good.clone() }, Severity::Warn, "fsync"),
            (Standing { forgers: vec!["shop".into()], ..good.clone() }, Severity::Warn, "role shop can write xid"),
        ];
        for (facts, severity, message) in bad {
            let findings = judge_standing(&facts);
            assert!(
                matches!(&findings[..], [only] if only.severity == severity && only.message.contains(message)),
                "{findings:?}"
            );
        }
    }
}
