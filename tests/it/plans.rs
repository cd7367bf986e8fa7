//! The reading statements keep their one good plan on large, mostly delivered tables, whatever the statistics say.

use std::fmt::Write as _;

use outboxd::config::secret::Secret;
use outboxd::db::{Purpose, Session};
use outboxd::outbox::event::RowId;
use outboxd::outbox::lane::LaneId;
use outboxd::outbox::snapshot::Snapshot;
use outboxd::source::poll::backlog::{BACKLOG, CAP, look};
use outboxd::source::poll::window::{Cut, Page, beyond, first, newest, page, upto};
use sqlx::postgres::PgArguments;
use sqlx::query::QueryScalar;
use sqlx::{AssertSqlSafe, Postgres};

use crate::support::postgres::{Database, Role, say};

const DELIVERED: i64 = 300_000;
const BUDGET: usize = 8 << 20;

/// How the delivered rows came to be, and what the planner knows of them.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// A thousand rows a transaction, analysed.
    Usual,
    /// As after an upgrade.
    NoStatistics,
    /// An adopted or backfilled table: four transactions wrote it all.
    FewTransactions,
    /// The heap lies in another order than the ids.
    Uncorrelated,
}

impl Shape {
    /// Rows of one transaction.
    fn rows_each(self) -> i64 {
        if matches!(self, Self::FewTransactions) { DELIVERED / 4 } else { 1_000 }
    }

    /// Buffers of a look that meets only settled rows near the cursor: less than the whole table has, and than it has rows where each is
    /// on another page than the one before.
    fn far_look(self) -> u64 {
        if matches!(self, Self::Uncorrelated) { 25_000 } else { 4_000 }
    }
}

/// Fills a table; answers the snapshot that has settled all of it.
async fn delivered(shape: Shape, database: &Database) -> String {
    let mut owner = database.connect(Role::Owner).await;
    for _ in 0..DELIVERED / shape.rows_each() {
        insert(database, shape.rows_each()).await;
    }
    match shape {
        Shape::Usual | Shape::FewTransactions => say(&mut owner, "vacuum analyze outbox.events").await,
        Shape::Uncorrelated => {
            say(&mut owner, "create index shuffled on outbox.events (event_id)").await;
            say(&mut owner, "cluster outbox.events using shuffled").await;
            say(&mut owner, "drop index outbox.shuffled").await;
            say(&mut owner, "vacuum analyze outbox.events").await;
        }
        Shape::NoStatistics => {
            say(&mut owner, "vacuum outbox.events").await;
            let forget = "delete from pg_statistic where starelid = 'outbox.events'::regclass";
            say(&mut database.connect(Role::Admin).await, forget).await;
        }
    }
    sqlx::query_scalar("select pg_current_snapshot()::text").fetch_one(&mut owner).await.unwrap()
}

/// One transaction.
async fn insert(database: &Database, rows: i64) {
    let insert = format!(
        "insert into outbox.events (aggregate_type, aggregate_id, event_type, payload)
         select 'Order', (i % 1000)::text, 'Placed', '{{\"total\": 10}}' from generate_series(1, {rows}) i"
    );
    say(&mut database.connect(Role::Owner).await, &insert).await;
}

/// What the server did, as `explain (analyze, buffers)` prints it.
struct Done {
    text: String,
}

type Explained = QueryScalar<'static, Postgres, String, PgArguments>;

/// Explains `statement`; the caller binds its arguments.
fn explain(statement: &str) -> Explained {
    let options = "analyze, buffers, costs off, timing off, summary off";
    sqlx::query_scalar(AssertSqlSafe(format!("explain ({options}) {statement}")))
}

async fn run(reader: &mut Session, explained: Explained) -> Done {
    let lines: Vec<String> = explained.fetch_all(&mut reader.connection).await.unwrap();
    Done { text: lines.join("\n") }
}

impl Done {
    /// Buffers of the whole statement: those of its top node, planning left out.
    fn buffers(&self) -> u64 {
        let line = self.text.lines().find(|line| line.trim_start().starts_with("Buffers:")).unwrap_or_default();
        line.split([' ', ','])
            .filter_map(|word| word.strip_prefix("hit=").or_else(|| word.strip_prefix("read=")))
            .map(|number| number.parse::<u64>().unwrap())
            .sum()
    }

    /// What is wrong with the plan: `must` is missing, `must_not` is there, or it touched more than `buffers`.
    fn faults(&self, what: &str, must: &[&str], must_not: &[&str], buffers: u64) -> String {
        let mut faults = String::new();
        for missing in must.iter().filter(|part| !self.text.contains(**part)) {
            writeln!(faults, "{what}: no `{missing}`").unwrap();
        }
        for found in must_not.iter().filter(|part| self.text.contains(**part)) {
            writeln!(faults, "{what}: `{found}`").unwrap();
        }
        if self.buffers() > buffers {
            writeln!(faults, "{what}: {} buffers, more than {buffers}", self.buffers()).unwrap();
        }
        if !faults.is_empty() {
            writeln!(faults, "{}", self.text).unwrap();
        }
        faults
    }
}

const IDS: &str = "Index Only Scan using events_xid on events";
const ROWS: &str = "Index Scan using events_pkey on events";
/// What waits, looked at no further than it is counted.
const WALKS: [&str; 3] = [
    "Index Scan using events_xid on events late (",
    "Index Scan Backward using events_xid on events newest (",
    "Index Scan using events_xid on events newer (",
];
const SCANS: [&str; 4] = ["Seq Scan on events", "Bitmap", "Hash Join", "Merge Join"];

async fn check(shape: Shape, name: &str) {
    let database = Database::migrated(name).await;
    let s = delivered(shape, &database).await;
    let url = Secret::new(database.url(Role::Relay));
    let mut reader = outboxd::db::connect(&url, Purpose::Read).await.unwrap();
    let mut faults = String::new();
    let mut monitor = outboxd::db::connect(&url, Purpose::Observe).await.unwrap();
    let mut owner = database.connect(Role::Owner).await;

    // idle: nothing is new
    for cut in [Cut::Never, Cut::AtBytes] {
        let done = opened(&mut reader, cut, &s, 1_000).await;
        faults += &done.faults(&format!("{shape:?}, idle first, {cut:?}"), &[IDS, ROWS], &SCANS, 10);
    }
    say(&mut owner, &cursor(&s, "null", "null")).await;
    faults += &looked(&mut monitor, &format!("{shape:?}, idle look"), 0, 30).await;

    // settled but for the last delivery, which was still open
    let last = "select xid::text from outbox.events where id = $1";
    let x: String = sqlx::query_scalar(last).bind(DELIVERED).fetch_one(&mut owner).await.unwrap();
    let xmax = s.split(':').nth(1).unwrap();
    say(&mut owner, &cursor(&format!("{x}:{xmax}:{x}"), &format!("'{s}'"), "1")).await;
    let what = format!("{shape:?}, look for what was late");
    faults += &looked(&mut monitor, &what, shape.rows_each().min(CAP), shape.far_look()).await;
    say(&mut owner, &cursor(&s, "null", "null")).await;

    // a small window behind all that was delivered
    insert(&database, 5).await;
    for cut in [Cut::Never, Cut::AtBytes] {
        let done = opened(&mut reader, cut, &s, 10_000).await;
        faults += &done.faults(&format!("{shape:?}, small first, {cut:?}"), &[IDS, ROWS], &SCANS, 60);
    }
    let small = now(&mut reader).await;
    // pages of a large window, at its start and near its end
    insert(&database, 50_000).await;
    let t = now(&mut reader).await;
    for after in [DELIVERED, DELIVERED + 45_000] {
        for (cut, n) in [(Cut::Never, 1_000), (Cut::AtBytes, 1_000), (Cut::Never, 10_000)] {
            let what = format!("{shape:?}, page of {n} behind {after}, {cut:?}");
            let done = run(&mut reader, paged(cut, after, &s, &t, n, DELIVERED + 50_005)).await;
            // two buffers a row at the most, were every row on a heap page of its own
            let most = u64::try_from(n).unwrap() * 2 + 60;
            faults += &done.faults(&what, &[ROWS], &[&SCANS[..], &["Sort"]].concat(), most);
        }
    }
    let most = 11_000; // a look counts up to 10,000
    faults += &looked(&mut monitor, &format!("{shape:?}, look at 50,000"), CAP, most).await;
    say(&mut owner, &cursor(&s, &format!("'{t}'"), &(DELIVERED + 40_000).to_string())).await;
    faults += &looked(&mut monitor, &format!("{shape:?}, look inside a window"), CAP, most).await;
    // a window that goes on far behind `after`: what lies between is settled
    say(&mut owner, &cursor(&s, &format!("'{t}'"), "1")).await;
    faults += &looked(&mut monitor, &format!("{shape:?}, look far ahead"), CAP, shape.far_look()).await;
    let done = run(&mut reader, explain(&newest())).await;
    faults += &done.faults(&format!("{shape:?}, newest"), &["using events_pkey"], &SCANS, 10);
    let done = run(&mut reader, explain(&upto()).bind(s.clone()).bind(t.clone())).await;
    faults += &done.faults(&format!("{shape:?}, upto"), &[IDS], &SCANS, 3_000);
    let done = run(&mut reader, explain(&upto()).bind(s.clone()).bind(small.clone())).await;
    faults += &done.faults(&format!("{shape:?}, upto of a small window before 50,000 events"), &[IDS], &SCANS, 20);
    let done = run(&mut reader, explain(&beyond()).bind(DELIVERED)).await;
    faults += &done.faults(&format!("{shape:?}, beyond"), &["using events_pkey"], &SCANS, 20);
    assert!(faults.is_empty(), "{faults}");
}

async fn now(reader: &mut Session) -> String {
    sqlx::query_scalar("select pg_current_snapshot()::text").fetch_one(&mut reader.connection).await.unwrap()
}

/// A cursor that has settled all that `s` sees.
fn cursor(s: &str, t: &str, after: &str) -> String {
    format!(
        "insert into outbox.cursors (outbox, lane, lanes, s, t, after, system_id, database_oid, timeline)
         values ('default', 0, 1, '{s}', {t}, {after}, 0, 0, '')
         on conflict (outbox, lane) do update set s = excluded.s, t = excluded.t, after = excluded.after"
    )
}

/// What is wrong with what the monitor does every second: it has to count `waiting`.
async fn looked(monitor: &mut Session, what: &str, waiting: i64, buffers: u64) -> String {
    let found = look(monitor, "default", LaneId::FIRST).await.unwrap().events;
    let done = run(monitor, explain(BACKLOG).bind("default").bind(LaneId::FIRST.get()).bind(CAP)).await;
    let faults = done.faults(what, &WALKS, &["Seq Scan on events"], buffers);
    if found == waiting { faults } else { format!("{faults}{what}: {found} instead of {waiting}\n") }
}

/// Runs the statement that opens a window as the reader does: prepared, planned without its arguments.
async fn opened(reader: &mut Session, cut: Cut, s: &str, n: i64) -> Done {
    let (types, budget) = if cut == Cut::AtBytes { (", bigint", format!(", {BUDGET}")) } else { ("", String::new()) };
    say(&mut reader.connection, &format!("prepare opened (text, bigint{types}) as {}", first(cut))).await;
    let done = run(reader, explain(&format!("execute opened ('{s}', {n}{budget})"))).await;
    say(&mut reader.connection, "deallocate opened").await;
    done
}

fn paged(cut: Cut, after: i64, s: &str, t: &str, n: usize, bound: i64) -> Explained {
    let (s, t) = (Snapshot::parse(s).unwrap(), Snapshot::parse(t).unwrap());
    let cut_bytes = (cut == Cut::AtBytes).then_some(BUDGET);
    let (after, bound) = (RowId::new(after), RowId::new(bound));
    explain(&page(&Page { after, bound, s: &s, t: &t, rows: n, cut_bytes }))
}

#[tokio::test]
async fn reading_costs_the_same_on_the_usual_table() {
    check(Shape::Usual, "reading_costs_usual").await;
}

#[tokio::test]
async fn reading_costs_the_same_without_statistics() {
    check(Shape::NoStatistics, "reading_costs_no_statistics").await;
}

#[tokio::test]
async fn reading_costs_the_same_where_few_transactions_wrote_all() {
    check(Shape::FewTransactions, "reading_costs_few_transactions").await;
}

#[tokio::test]
async fn reading_costs_the_same_where_the_heap_is_shuffled() {
    check(Shape::Uncorrelated, "reading_costs_shuffled").await;
}
