//! A database of its own for each test, with a role for each part: the owner, the application, the relay.

use std::io::ErrorKind;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, PgConnection};
use tokio::time::sleep;
use url::Url;
use uuid::Uuid;

use super::checker::{Kill, Row};
use super::relay::outboxd;
use super::{server, short_random};

/// Names in Postgres end after 63 bytes; the random part and the name of a role come behind the test's.
const LONGEST_TEST_NAME: usize = 44;

/// Held while roles are made: two tests that make the same role at once fail, whatever they ask first.
const ROLES_LOCK: i64 = 0x6974_726f_6c65;

/// Who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The superuser of the server.
    Admin,
    /// Owns the database and runs `migrate`.
    Owner,
    /// Writes events: granted `outbox_writer`.
    App,
    /// The daemon: granted `outbox_relay` and `pg_monitor`.
    Relay,
}

/// A database that is dropped with its roles when the test passes, and kept and named when it fails.
///
/// A test fails by panicking, not by returning an error: only a panic is seen here.
pub(crate) struct Database {
    admin: Url,
    name: String,
}

impl Database {
    /// Makes an empty database on the server of `deploy/servers`.
    pub(crate) async fn create(test: &str) -> Self {
        Self::create_on(&server("OUTBOXD_TEST_POSTGRES"), test).await
    }

    /// Makes an empty database on a server of the test's own, given by the URL of its superuser.
    pub(crate) async fn create_on(admin: &str, test: &str) -> Self {
        let admin = Url::parse(admin).expect("the URL of a superuser");
        let name = format!("{}_{}", &test[..test.len().min(LONGEST_TEST_NAME)], short_random());
        let database = Self { admin, name };
        let mut connection = connect(database.admin.as_str()).await;
        let names = [Role::Owner, Role::App, Role::Relay].map(|role| database.user(role));
        let password = database.admin.password().map_or_else(String::new, |word| format!(" password '{word}'"));
        let [owner, app, relay] = &names;
        say(&mut connection, &format!("select pg_advisory_lock({ROLES_LOCK})")).await;
        say(&mut connection, GROUPS).await;
        for name in &names {
            say(&mut connection, &format!("create role {name} login{password}")).await;
        }
        say(&mut connection, &format!("grant outbox_writer to {app}; grant outbox_relay, pg_monitor to {relay}")).await;
        say(&mut connection, &format!("select pg_advisory_unlock({ROLES_LOCK})")).await;
        say(&mut connection, &format!("create database {} owner {owner}", database.name)).await;
        database
    }

    /// Makes a database with the schema of the binary under test.
    pub(crate) async fn migrated(test: &str) -> Self {
        let database = Self::create(test).await;
        database.migrate().await;
        database
    }

    /// Runs `outboxd migrate` as the owner.
    pub(crate) async fn migrate(&self) {
        let config = format!("[postgres]\nurl = \"{}\"\n[kafka]\nbrokers = \"127.0.0.1:9\"\n", self.url(Role::Relay));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("outboxd.toml");
        std::fs::write(&file, config).unwrap();
        let output = outboxd(&file, &["migrate", "--admin-url", &self.url(Role::Owner)]).await;
        assert_eq!(output.code, 0, "migrate failed: {output}");
    }

    /// The URL under which `role` reaches this database.
    pub(crate) fn url(&self, role: Role) -> String {
        self.url_of(role, &self.name)
    }

    /// The URL under which `role` reaches another database of the same server.
    pub(crate) fn url_elsewhere(&self, role: Role) -> String {
        self.url_of(role, self.admin.path().trim_start_matches('/'))
    }

    /// The name of the database.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Opens a connection.
    pub(crate) async fn connect(&self, role: Role) -> PgConnection {
        connect(&self.url(role)).await
    }

    /// All committed events, by id. The place in the stream is `sequence`, else `nr` of the payload, else the id.
    pub(crate) async fn committed(&self) -> Vec<Row> {
        type Columns = (i64, Uuid, String, String, String, Option<Vec<u8>>, i64);
        let rows: Vec<Columns> = sqlx::query_as(COMMITTED)
            .fetch_all(&mut self.connect(Role::Owner).await)
            .await
            .expect("the committed rows");
        rows.into_iter()
            .map(|(id, event_id, aggregate_type, aggregate_id, event_type, value, nr)| Row {
                id,
                event_id,
                aggregate_type,
                aggregate_id,
                event_type,
                value,
                nr,
            })
            .collect()
    }

    /// Where the saved cursor stands and what is committed, to be asked for the unsettled events later.
    pub(crate) async fn place(&self) -> Place {
        let place = sqlx::query_as(PLACE).fetch_one(&mut self.connect(Role::Owner).await).await;
        let (s, t, after, now) = place.expect("the place of the cursor");
        Place { s, t, after, now }
    }

    /// What was committed and not settled at a place: what a relay killed there may send again.
    pub(crate) async fn unsettled(&self, place: &Place) -> Kill {
        let ids: Vec<Uuid> = sqlx::query_scalar(UNSETTLED)
            .bind(&place.s)
            .bind(&place.t)
            .bind(place.after)
            .bind(&place.now)
            .fetch_all(&mut self.connect(Role::Owner).await)
            .await
            .expect("the events that a place does not settle");
        Kill { unsettled: ids.into_iter().collect(), ..Kill::default() }
    }

    fn url_of(&self, role: Role, database: &str) -> String {
        let mut url = self.admin.clone();
        url.set_path(database);
        if role != Role::Admin {
            url.set_username(&self.user(role)).expect("a URL with a host");
        }
        url.into()
    }

    fn user(&self, role: Role) -> String {
        match role {
            Role::Admin => self.admin.username().to_owned(),
            Role::Owner => format!("{}_owner", self.name),
            Role::App => format!("{}_app", self.name),
            Role::Relay => format!("{}_relay", self.name),
        }
    }

    async fn drop_all(admin: Url, name: String) -> Result<(), sqlx::Error> {
        let mut connection = PgConnection::connect(admin.as_str()).await?;
        let database = format!("drop database if exists {name} with (force)");
        let roles = format!("drop role if exists {name}_owner, {name}_app, {name}_relay");
        for statement in [database, roles] {
            connection.execute(sqlx::raw_sql(AssertSqlSafe(statement))).await?;
        }
        Ok(())
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("kept for you: {}", self.url(Role::Admin));
            return;
        }
        // A thread of its own: the test's runtime cannot wait inside a drop.
        let (admin, name) = (self.admin.clone(), self.name.clone());
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(Self::drop_all(admin, name))
        });
        if let Ok(Err(error)) = dropped.join() {
            eprintln!("database {} was not dropped: {error}", self.name);
        }
    }
}

/// A saved cursor, as Postgres prints it, and the snapshot taken with it.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    s: String,
    t: Option<String>,
    after: Option<i64>,
    now: String,
}

impl Place {
    /// This place at the time of a later one.
    pub(crate) fn until(&self, later: Self) -> Self {
        Self { now: later.now, ..self.clone() }
    }
}

/// How often a connection is tried that breaks off: a server may just be starting, or being promoted.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(250);

/// Opens a connection; a server that does not answer fails the test.
pub(crate) async fn connect(url: &str) -> PgConnection {
    let options: PgConnectOptions = url.parse().expect("a URL of Postgres");
    for _ in 1..TRIES {
        match options.connect().await {
            Err(sqlx::Error::Protocol(_)) => sleep(PAUSE).await, // broken off: somebody listens there
            Err(sqlx::Error::Io(broken)) if broken.kind() == ErrorKind::ConnectionReset => sleep(PAUSE).await,
            other => return other.unwrap_or_else(|error| gives_up(url, &error)),
        }
    }
    options.connect().await.unwrap_or_else(|error| gives_up(url, &error))
}

fn gives_up(url: &str, error: &sqlx::Error) -> PgConnection {
    panic!("no connection to {url}: {error}\nhint: deploy/servers -- cargo test --test it")
}

/// Runs statements that bind nothing and return nothing; a refusal fails the test.
pub(crate) async fn say(connection: &mut PgConnection, statements: &str) {
    let outcome = connection.execute(sqlx::raw_sql(AssertSqlSafe(statements))).await;
    outcome.unwrap_or_else(|error| panic!("{statements}: {error}"));
}

/// As `migrate` makes them; before it, because all databases of a server share them.
const GROUPS: &str = "
do $$ begin
  if not exists (select from pg_roles where rolname = 'outbox_writer') then create role outbox_writer nologin; end if;
  if not exists (select from pg_roles where rolname = 'outbox_relay') then create role outbox_relay nologin; end if;
end $$";

const COMMITTED: &str = "
select id, event_id, aggregate_type, aggregate_id, event_type,
       coalesce(payload_bytes, convert_to(payload::text, 'UTF8')) as value,
       coalesce(sequence, (payload ->> 'nr')::bigint, id) as nr
  from outbox.events
 order by id";

const PLACE: &str = "
select coalesce(c.s::text, '3:3:') as s,            -- before the first cursor nothing is settled
       c.t::text as t, c.after, pg_current_snapshot()::text as now
  from (values (1)) one
  left join outbox.cursors c on c.outbox = 'default' and c.lane = 0";

const UNSETTLED: &str = "
select event_id
  from outbox.events
 where pg_visible_in_snapshot(xid, $4::text::pg_snapshot)
   and not pg_visible_in_snapshot(xid, $1::text::pg_snapshot)
   and not coalesce(id <= $3 and pg_visible_in_snapshot(xid, $2::text::pg_snapshot), false)";

#[tokio::test]
async fn each_role_may_do_its_part_and_no_more() {
    let database = Database::migrated("each_role_may_do_its_part_and_no_more").await;
    let insert = "insert into outbox.events (aggregate_type, aggregate_id, event_type, payload) values ('order', '1', 'Placed', '{\"nr\": 7}')";
    say(&mut database.connect(Role::App).await, insert).await;
    assert!(database.connect(Role::Relay).await.execute(insert).await.is_err(), "the relay writes no events");
    assert!(database.connect(Role::App).await.execute("delete from outbox.events").await.is_err());

    let rows = database.committed().await;
    assert_eq!(rows.iter().map(|row| row.nr).collect::<Vec<_>>(), [7]);
    let open = database.unsettled(&database.place().await).await.unsettled;
    assert!(open.contains(&rows[0].event_id), "no cursor settles it");
}
