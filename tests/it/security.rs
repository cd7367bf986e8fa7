//! Who may do what, what is told to whom, and that neither a row nor a name gets further than it should.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::metadata::MetadataTopic;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Executor as _, PgConnection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;
use toml::Table;

use crate::delivery::{arrive, outboxes, write};
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::kafka::Kafka;
use crate::support::postgres::{Database, Role, connect, say};
use crate::support::relay::{Output, Relay, outboxd};
use crate::support::said::says;
use crate::support::servers::Servers;
use crate::support::{server, short_random};

// ---- roles

/// All that a role may do with what is ours, by grant, by membership, or as one of the public.
const PRIVILEGES: &str = "
    with ours as (
      select c.oid, c.relkind, n.nspname || '.' || c.relname as name
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
       where n.nspname = 'outbox' and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S'))
    select p || ' on ' || name from ours, unnest(array['select', 'insert', 'update', 'delete', 'truncate', 'references', 'trigger']) p
     where relkind <> 'S' and has_table_privilege($1, oid, p)
     union all
    select p || ' (' || a.attname || ') on ' || name
      from ours join pg_attribute a on a.attrelid = oid and a.attnum > 0 and not a.attisdropped,
           unnest(array['select', 'insert', 'update', 'references']) p
     where relkind <> 'S' and not has_table_privilege($1, oid, p) and has_column_privilege($1, oid, a.attnum, p)
     union all
    select p || ' on sequence ' || name from ours, unnest(array['usage', 'select', 'update']) p
     where relkind = 'S' and has_sequence_privilege($1, oid, p)
     union all
    select 'execute on function outbox.' || f.proname from pg_proc f
     where f.pronamespace = 'outbox'::regnamespace and has_function_privilege($1, f.oid, 'execute')
     union all
    select p || ' on schema outbox' from unnest(array['usage', 'create']) p where has_schema_privilege($1, 'outbox', p)
     union all
    select 'create on the database' where has_database_privilege($1, current_database(), 'create')
     union all
    select a.name from pg_roles r, lateral (values ('superuser', r.rolsuper), ('createrole', r.rolcreaterole), ('createdb', r.rolcreatedb),
                                                   ('replication', r.rolreplication), ('bypassrls', r.rolbypassrls)) as a(name, has)
     where r.rolname = $1 and a.has";

const RELAY_MAY: [&str; 14] = [
    "delete on outbox.cursors",
    "delete on outbox.events",
    "delete on outbox.parked",
    "insert on outbox.cursors",
    "insert on outbox.parked",
    "select on outbox._sqlx_migrations",
    "select on outbox.cursors",
    "select on outbox.events",
    "select on outbox.parked",
    "select on outbox.streams",
    "select on sequence outbox.events_id_seq",
    "update on outbox.cursors",
    "update on outbox.parked",
    "usage on schema outbox",
];

const APPLICATION_MAY: [&str; 13] = [
    "execute on function outbox.emit",
    "insert (aggregate_id) on outbox.events",
    "insert (aggregate_type) on outbox.events",
    "insert (event_id) on outbox.events",
    "insert (event_type) on outbox.events",
    "insert (headers) on outbox.events",
    "insert (payload) on outbox.events",
    "insert (payload_bytes) on outbox.events",
    "select (created_at) on outbox.events",
    "select (event_id) on outbox.events",
    "select (id) on outbox.events",
    "select on outbox.streams",
    "usage on schema outbox",
];

#[tokio::test]
async fn each_role_has_the_privileges_of_this_list_and_no_other() {
    let database = Database::migrated("each_role_has_the_privileges_of_this_list").await;
    let mut admin = database.connect(Role::Admin).await;
    let (relay, application) = (format!("{}_relay", database.name()), format!("{}_app", database.name()));
    let cases = [
        (relay.as_str(), RELAY_MAY.as_slice()),
        ("outbox_relay", &RELAY_MAY),
        (&application, &APPLICATION_MAY),
        ("outbox_writer", &APPLICATION_MAY),
        ("pg_monitor", &[]), // anybody else
    ];
    for (role, expected) in cases {
        let found: BTreeSet<String> =
            sqlx::query_scalar(PRIVILEGES).bind(role).fetch_all(&mut admin).await.unwrap().into_iter().collect();
        let expected: BTreeSet<String> = expected.iter().map(|&may| may.to_owned()).collect();
        let (more, less) = (found.difference(&expected), expected.difference(&found));
        let (more, less): (Vec<_>, Vec<_>) = (more.collect(), less.collect());
        assert!(more.is_empty() && less.is_empty(), "{role} may also {more:?}, and may not {less:?}");
    }
}

/// The SQLSTATE of a refusal.
async fn refusal(connection: &mut PgConnection, statement: &str) -> String {
    match connection.execute(sqlx::raw_sql(AssertSqlSafe(statement))).await {
        Ok(_) => panic!("not refused: {statement}"),
        Err(error) => match error.as_database_error() {
            Some(refused) => refused.code().unwrap_or_default().into_owned(),
            None => panic!("{statement}: {error}"),
        },
    }
}

/// What an application must not do. Denied is 42501; the column `id` is refused before anybody asks for a right.
const DENIED: [&str; 44] = [
    // other's payloads
    "select payload from outbox.events",
    "select payload_bytes from outbox.events",
    "select headers from outbox.events",
    "select aggregate_id from outbox.events",
    "select * from outbox.events",
    "select events from outbox.events",
    "select id from outbox.events where payload is not null",
    "select id from outbox.events order by aggregate_id",
    "copy outbox.events to stdout",
    "insert into outbox.events (aggregate_type, aggregate_id, event_type) values ('a', '1', 'b') returning payload",
    "select count(payload) from outbox.parked",
    "select from outbox.parked",
    "table outbox.parked",
    // what the database and the relay write
    "insert into outbox.events (id, aggregate_type, aggregate_id, event_type) overriding system value values (1, 'a', '1', 'b')",
    "insert into outbox.events (xid, aggregate_type, aggregate_id, event_type) values ('3', 'a', '1', 'b')",
    "insert into outbox.events (sequence, aggregate_type, aggregate_id, event_type) values (1, 'a', '1', 'b')",
    "insert into outbox.events (previous_event_id, aggregate_type, aggregate_id, event_type) values (gen_random_uuid(), 'a', '1', 'b')",
    "insert into outbox.events (created_at, aggregate_type, aggregate_id, event_type) values (now(), 'a', '1', 'b')",
    "update outbox.events set payload = null",
    "update outbox.events set xid = '3'",
    "insert into outbox.events (aggregate_type, aggregate_id, event_type) values ('a', '1', 'b') on conflict (id) do update set event_type = 'c'",
    "delete from outbox.events",
    "truncate outbox.events",
    "do $$ begin lock table outbox.events in access exclusive mode; end $$",
    "select from outbox.events for update",
    "select nextval('outbox.events_id_seq')",
    "select setval('outbox.events_id_seq', 1)",
    "insert into outbox.streams values ('a', '1', 1, gen_random_uuid())",
    "update outbox.streams set sequence = 7",
    "delete from outbox.streams",
    // the cursor, the lease, and decisions
    "select from outbox.cursors",
    "update outbox.cursors set s = '3:3:'",
    "update outbox.cursors set owner = 'me'",
    "insert into outbox.cursors (outbox, lane, lanes, s, system_id, database_oid, timeline) values ('x', 0, 1, '3:3:', 1, 1, '1')",
    "delete from outbox.cursors",
    "update outbox.parked set decision = 'discard'",
    "update outbox.parked set payload = '1'",
    "delete from outbox.parked",
    // what is ours
    "select from outbox._sqlx_migrations",
    "create table outbox.mine ()",
    "create trigger t before insert on outbox.events for each row execute function suppress_redundant_updates_trigger()",
    "alter table outbox.events disable trigger all",
    "create or replace function outbox.emit() returns bigint language sql as 'select 1'",
    "set role outbox_relay",
];

#[tokio::test]
async fn an_application_writes_its_events_and_nothing_else() {
    let database = Database::migrated("an_application_writes_its_events").await;
    let mut owner = database.connect(Role::Owner).await;
    let insert = "insert into outbox.events (aggregate_type, aggregate_id, event_type, payload) values ('Order', 'of-another', 'Placed', '\"private\"')";
    for _ in 0..3 {
        say(&mut owner, insert).await;
    }
    say(&mut owner, "analyze outbox.events").await;
    let mut application = database.connect(Role::App).await;
    let statement = "insert into outbox.events (event_id, aggregate_type, aggregate_id, event_type, payload, headers)
        values (gen_random_uuid(), 'Order', '1', 'Placed', '{}', '{}') returning id, event_id, created_at";
    say(&mut application, statement).await;
    say(&mut application, "select outbox.emit('Order', '2', 'Placed', payload_bytes => 'x')").await;
    for statement in DENIED {
        assert_eq!(refusal(&mut application, statement).await, "42501", "{statement}");
    }
    let chosen = "insert into outbox.events (id, aggregate_type, aggregate_id, event_type) values (1, 'a', '1', 'b')";
    assert_eq!(refusal(&mut application, chosen).await, "428C9", "{chosen}");

    // the planner's statistics are made of rows, and are told of readable columns only
    let known = "select coalesce(string_agg(attname, ' ' order by attname), '') from pg_stats where schemaname = 'outbox' and tablename = 'events'";
    let known: String = sqlx::query_scalar(known).fetch_one(&mut application).await.unwrap();
    assert_eq!(known, "created_at event_id id");
    let events: i64 = sqlx::query_scalar("select count(*) from outbox.events").fetch_one(&mut owner).await.unwrap();
    assert_eq!(events, 5, "nothing of it has left a trace");
}

/// What a command says that lacks a grant: which, of what, and what to do.
#[tokio::test]
async fn a_command_without_its_grant_says_so_and_changes_nothing() {
    const NAME: &str = "a_command_without_its_grant";
    let (database, kafka) = (Database::migrated(NAME).await, Kafka::create(NAME));
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await;
    relay = relay.set("outbox", outboxes("[[outbox]]\n[[outbox.route]]\nwhen.event_type = 'none'\ntopic = 'none'"));
    write(
        &database,
        "insert into outbox.events (aggregate_type, aggregate_id, event_type) values ('Order', '1', 'Odd')",
    )
    .await;
    relay.start();
    let event = eventually("the event is parked", PATIENCE, async || {
        let output = relay.command(&["parked", "list", "--output", "json"]).await;
        let found: Value = serde_json::from_str(&output.stdout).map_err(|error| format!("{error}: {output}"))?;
        found[0]["event_id"].as_str().map(str::to_owned).ok_or_else(|| found.to_string())
    })
    .await;
    relay.terminate().await;
    assert_eq!(relay.exit_code().await, Some(0));

    let mut owner = database.connect(Role::Owner).await;
    let cases: [(&str, &str, &[&str]); 6] = [
        ("select", "parked", &["parked", "list"]),
        ("select", "parked", &["parked", "show", &event]),
        ("update", "parked", &["parked", "retry", &event]),
        ("update", "parked", &["parked", "discard", &event, "--yes"]),
        ("select", "cursors", &["cursor", "show"]),
        ("update", "cursors", &["cursor", "set", "--to", "earliest", "--yes"]),
    ];
    for (privilege, table, arguments) in cases {
        say(&mut owner, &format!("revoke {privilege} on outbox.{table} from outbox_relay")).await;
        let output = relay.command(arguments).await;
        assert!(output.code != 0, "{arguments:?} without {privilege} on {table}: {output}");
        let told =
            output.stderr.contains(&format!("table {table}")) || output.stderr.contains(&format!("outbox.{table}"));
        assert!(told && output.stderr.contains("hint: "), "{arguments:?}: {output}");
        say(&mut owner, &format!("grant {privilege} on outbox.{table} to outbox_relay")).await;
    }
    let decided: Option<String> =
        sqlx::query_scalar("select decision from outbox.parked").fetch_one(&mut owner).await.unwrap();
    assert_eq!(decided, None);
    for arguments in [&["parked", "show", &event][..], &["parked", "retry", &event], &["cursor", "show"]] {
        let output = relay.command(arguments).await;
        assert_eq!(output.code, 0, "{arguments:?}: {output}");
    }
}

// ---- what is told

/// Values that nobody may read in a log, in a metric or in what a command prints.
const PLANTED: [&str; 10] = [
    "planted-payload",
    "planted-bytes",
    "planted-header-name",
    "planted-header-value",
    "planted-key",
    "planted-url-password",
    "planted-sasl-password",
    "planted-ssl-password",
    "planted-token",
    "planted-keystore-password",
];

/// The forms in which a value would be seen: as text, as hexadecimal digits, as a list of bytes.
fn forms(planted: &str) -> [String; 4] {
    let bytes = planted.as_bytes();
    let hex = |digits: fn(&u8) -> String| bytes.iter().map(digits).collect::<String>();
    let listed: Vec<String> = bytes.iter().map(u8::to_string).collect();
    [planted.to_owned(), hex(|byte| format!("{byte:02x}")), hex(|byte| format!("{byte:02X}")), listed.join(", ")]
}

/// Asserts that none of the values is told.
fn tells_nothing(what: &str, text: &str) {
    assert!(!text.is_empty(), "{what} says nothing at all");
    for planted in PLANTED {
        for form in forms(planted) {
            let line = text.lines().find(|line| line.contains(&form));
            assert_eq!(line, None, "{what} tells {planted}");
        }
    }
}

/// A configuration with secrets, some of them elsewhere, and the variables that hold those.
struct Settings {
    folder: tempfile::TempDir,
    file: String,
}

const VARIABLES: [(&str, &str); 2] =
    [("SSL_PASSWORD", "planted-ssl-password"), ("OUTBOXD__HTTP__TOKEN", "planted-token")];

impl Settings {
    /// Runs a command to its end, at the noisiest.
    async fn command(&self, arguments: &[&str]) -> Output {
        let path = self.folder.path().join("outboxd.toml");
        std::fs::write(&path, &self.file).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_outboxd"));
        command.env_clear().envs(VARIABLES).arg("--config").arg(&path).args(arguments).stdin(Stdio::null());
        let output = tokio::time::timeout(PATIENCE, command.kill_on_drop(true).output()).await.unwrap().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Output { code: output.status.code().unwrap_or(-1), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }
}

/// Properties for the user `relay` of Kafka, in the noisiest manner.
fn properties(password: &str) -> Table {
    let lines = [
        "\"security.protocol\" = 'SASL_PLAINTEXT'",
        "\"sasl.mechanism\" = 'PLAIN'",
        "\"sasl.username\" = 'admin'",
        &format!("\"sasl.password\" = {password}"),
        "\"ssl.key.password\" = { env = 'SSL_PASSWORD' }",
        "\"ssl.keystore.password\" = 'planted-keystore-password'",
        "debug = 'all'",
    ];
    lines.join("\n").parse().unwrap()
}

/// Every event is of the planted stream, with planted values.
fn planted(event_type: &str, payload: &str) -> String {
    format!(
        "insert into outbox.events (aggregate_type, aggregate_id, event_type, {payload}, headers)
         values ('order', 'planted-key-{event_type}', '{event_type}', {}, '{{\"planted-header-name\": \"planted-header-value\"}}');",
        if payload == "payload" { "'{\"card\": \"planted-payload\"}'" } else { "'planted-bytes'" }
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_payload_key_or_secret_is_told_whatever_happens() {
    const NAME: &str = "no_payload_key_or_secret_is_told";
    let servers = Servers::start(&["--only", "postgres"]).await; // whose rules of access may be changed
    let (database, kafka) = (Database::create_on(servers.postgres(), NAME).await, Kafka::create(NAME));
    database.migrate().await;
    let topic = kafka.create_topic("order", 1).await;
    let dead = kafka.create_topic("dead", 1).await;
    let mut admin = database.connect(Role::Admin).await;
    let role = format!("{}_relay", database.name());
    say(&mut admin, &format!("alter role {role} password 'another'")).await;
    let file: String = sqlx::query_scalar("show hba_file").fetch_one(&mut admin).await.unwrap();
    let rules = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("host all {role} 127.0.0.1/32 scram-sha-256\n{rules}")).unwrap();
    say(&mut admin, "select pg_reload_conf()").await;

    let mut url = url::Url::parse(&database.url(Role::Relay)).unwrap();
    url.set_password(Some("planted-url-password")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    std::fs::write(&password, "admin-secret\n").unwrap();
    let right = properties(&format!("{{ file = '{}' }}", password.display()));
    let routes = format!(
        "[[outbox]]
         [[outbox.route]]\nwhen.event_type = 'Good'\ntopic = '{topic}'
         [[outbox.route]]\nwhen.event_type = 'to a b'\ntopic = '{topic}{{event_type}}'
         [[outbox.route]]\nwhen.event_type = 'Unfilled'\ntopic = '{topic}'\nkey = '{{headers.absent}}'
         [[outbox.route]]\nwhen.event_type = 'Nowhere'\ntopic = '{topic}-is-missing'
         [[outbox.route]]\nwhen.event_type = 'Dead'\ntopic = '{topic}'\nkey = '{{headers.absent}}'\non_reject = {{ dead_letter = '{dead}' }}"
    );
    let mut relay = Relay::new(url.as_str(), &kafka)
        .await
        .set("kafka.brokers", server("OUTBOXD_TEST_KAFKA_SASL"))
        .set("kafka.properties", right.clone())
        .set("outbox", outboxes(&routes))
        .variable("OUTBOXD__LOG__FILTER", "trace");
    for (name, value) in VARIABLES {
        relay = relay.variable(name, value);
    }
    let mut file: Table = routes.parse().unwrap();
    file.insert("postgres".into(), format!("url = '{url}'").parse::<Table>().unwrap().into());
    let mut section: Table = format!("brokers = '{}'", server("OUTBOXD_TEST_KAFKA_SASL")).parse().unwrap();
    section.insert("properties".into(), right.clone().into());
    file.insert("kafka".into(), section.into());
    let settings = Settings { folder, file: file.to_string() };
    for event in [planted("Good", "payload"), planted("Good", "payload_bytes"), planted("Dead", "payload")] {
        write(&database, &event).await;
    }

    // a wrong password for Postgres, then the right one
    relay.start();
    says(&relay, "default", "waiting", &["password authentication failed"]).await;
    let output = settings.command(&["check"]).await;
    assert!(output.stdout.contains("password authentication failed"), "{output}");
    tells_nothing("check without a connection", &output.to_string());
    say(&mut admin, &format!("alter role {role} password 'planted-url-password'")).await;
    arrive(&mut kafka.reader(&[&topic]), 2, &relay).await;
    arrive(&mut kafka.reader(&[&dead]), 1, &relay).await;

    // rejected and parked, sent again and refused again, given up
    for kind in ["Odd", "to a b", "Unfilled"] {
        write(&database, &planted(kind, "payload")).await;
        write(&database, &planted(kind, "payload_bytes")).await;
    }
    parked(&settings, 3).await;
    let output = settings.command(&["parked", "retry", "--all"]).await;
    assert_eq!(output.code, 0, "{output}");
    eventually("all are refused again", PATIENCE, async || {
        let again = "select count(*) from outbox.parked where attempts = 2 and decision is null";
        let count: i64 = sqlx::query_scalar(again).fetch_one(&mut admin).await.unwrap();
        if count == 3 { Ok(()) } else { Err(format!("{count} of 3")) }
    })
    .await;
    let output = settings.command(&["parked", "discard", "--code", "no_route", "--yes"]).await;
    assert_eq!(output.code, 0, "{output}");

    // an error of Postgres that quotes the row, one that cuts the connection, and a grant that is gone
    say(&mut admin, "alter table outbox.parked add constraint narrow check (event_type <> 'Forbidden')").await;
    write(&database, &planted("Forbidden", "payload")).await;
    says(&relay, "default", "waiting", &["narrow"]).await;
    tells_all_nothing(&relay, &settings).await;
    say(&mut admin, "alter table outbox.parked drop constraint narrow").await;
    say(&mut admin, &format!("select pg_terminate_backend(pid) from pg_stat_activity where usename = '{role}'")).await;
    parked(&settings, 4).await; // the one that was refused, and not the one that was given up: what followed that stands
    say(&mut admin, "revoke select on outbox.events from outbox_relay").await;
    say(&mut admin, &format!("select pg_terminate_backend(pid) from pg_stat_activity where usename = '{role}'")).await;
    says(&relay, "default", "refused", &["lacks select on outbox.events"]).await;
    say(&mut admin, "grant select on outbox.events to outbox_relay").await;

    // an error of Kafka: no such topic
    write(&database, &planted("Nowhere", "payload")).await;
    says(&relay, "default", "waiting", &["-is-missing"]).await;
    tells_all_nothing(&relay, &settings).await;
    relay.terminate().await;
    assert_eq!(relay.exit_code().await, Some(0));

    // a wrong password for Kafka
    relay = relay.set("kafka.properties", properties("'planted-sasl-password'"));
    relay.start();
    says(&relay, "default", "waiting", &["uthentication"]).await;
    relay.terminate().await;
    relay.exit_code().await;
    let log = relay.log();
    for level in ["\"TRACE\"", "\"DEBUG\"", "\"INFO\"", "\"WARN\"", "\"target\":\"rdkafka", "\"target\":\"librdkafka"] {
        assert!(log.contains(level), "{level} is not in the log: then this proves little");
    }
    tells_nothing("the log", &log);
}

/// Waits until so many streams are parked.
async fn parked(settings: &Settings, streams: usize) {
    eventually(&format!("{streams} streams are parked"), PATIENCE, async || {
        let output = settings.command(&["parked", "list", "--output", "json"]).await;
        let found: Vec<Value> = serde_json::from_str(&output.stdout).map_err(|_| output.to_string())?;
        if found.len() == streams { Ok(()) } else { Err(output.stdout) }
    })
    .await;
}

/// Asks a daemon, and the commands beside it, for all that they tell without being asked for events.
async fn tells_all_nothing(relay: &Relay, settings: &Settings) {
    for path in ["/status", "/metrics", "/readyz", "/livez", "/nowhere"] {
        tells_nothing(path, &format!("{:?}", relay.get(path).await.unwrap()));
    }
    let commands: [&[&str]; 6] = [
        &["config", "show"],
        &["config", "show", "--output", "json"],
        &["check"],
        &["check", "--output", "json"],
        &["status"],
        &["cursor", "show"],
    ];
    for arguments in commands {
        tells_nothing(&arguments.join(" "), &settings.command(arguments).await.to_string());
    }
    tells_nothing("the log so far", &relay.log());
}

/// The driver would log the value of a parameter that it does not know.
#[tokio::test]
async fn a_secret_in_a_parameter_that_nobody_reads_is_not_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("outboxd.toml");
    for parameter in ["sslpassword", "pasword", "passfile", "planted-token"] {
        let url = format!("postgres://u@127.0.0.1:9/shop?{parameter}=planted-url-password");
        std::fs::write(&path, format!("postgres.url = '{url}'\nkafka.brokers = '127.0.0.1:9'\n")).unwrap();
        for arguments in [&["run"][..], &["check"], &["config", "show"], &["status"]] {
            let output = outboxd(&path, arguments).await;
            assert_eq!(output.code, 78, "{parameter}: {output}");
            tells_nothing(parameter, &output.to_string());
        }
    }
}

// ---- names

/// A name as it stands in a statement.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A name as it stands in a URL.
fn escaped(name: &str) -> String {
    name.bytes().fold(String::new(), |escaped, byte| format!("{escaped}%{byte:02X}"))
}

#[tokio::test]
async fn odd_names_of_database_and_roles_are_only_names() {
    const NAME: &str = "odd_names_of_database_and_roles";
    let (usual, kafka) = (Database::migrated(NAME).await, Kafka::create(NAME));
    let topic = kafka.create_topic("order", 1).await;
    let odd = |part: &str| format!("a;b'c\"d\\e {part} {}", short_random());
    let (name, owner, daemon, application) = (odd("db"), odd("owner"), odd("relay"), odd("app"));
    let server = url::Url::parse(&usual.url_elsewhere(Role::Admin)).unwrap();
    let password = server.password().map_or_else(String::new, |word| format!(" password '{word}'"));
    let mut admin = connect(server.as_str()).await;
    for role in [&owner, &daemon, &application] {
        say(&mut admin, &format!("create role {} login{password}", quoted(role))).await;
    }
    say(&mut admin, &format!("grant outbox_relay, pg_monitor to {}", quoted(&daemon))).await;
    say(&mut admin, &format!("create database {} owner {}", quoted(&name), quoted(&owner))).await;
    let url = |role: &str| {
        let secret = server.password().map_or_else(String::new, |word| format!(":{word}"));
        let (host, port) = (server.host_str().unwrap(), server.port().unwrap_or(5432));
        format!("postgres://{}{secret}@{host}:{port}/{}", escaped(role), escaped(&name))
    };

    let routes = format!("[[outbox]]\n[[outbox.route]]\nwhen.event_type = 'Good'\ntopic = '{topic}'");
    let mut relay = Relay::new(&url(&daemon), &kafka).await.set("outbox", outboxes(&routes));
    let succeeds = async |relay: &Relay, arguments: &[&str]| {
        let output = relay.command(arguments).await;
        assert_eq!(output.code, 0, "{arguments:?}: {output}");
        output.stdout
    };
    succeeds(&relay, &["migrate", "--admin-url", &url(&owner)]).await;
    assert!(succeeds(&relay, &["check"]).await.contains(&quoted(&daemon)));
    let mut own = connect(&url(&owner)).await;
    for kind in ["Good", "Odd"] {
        let columns = "aggregate_type, aggregate_id, event_type";
        say(&mut own, &format!("insert into outbox.events ({columns}) values ('order', '{kind}', '{kind}')")).await;
    }
    relay.start();
    arrive(&mut kafka.reader(&[&topic]), 1, &relay).await;
    eventually("the other is parked", PATIENCE, async || {
        let list = succeeds(&relay, &["parked", "list"]).await;
        if list.contains("order/Odd") { Ok(()) } else { Err(list) }
    })
    .await;
    let discard = &["parked", "discard", "--all", "--yes"];
    for arguments in [&["status"][..], &["cursor", "show"], &["parked", "retry", "--all"], discard] {
        succeeds(&relay, arguments).await;
    }
    eventually("nothing is parked", PATIENCE, async || {
        let list = succeeds(&relay, &["parked", "list"]).await;
        if list.contains("order/Odd") { Err(list) } else { Ok(()) }
    })
    .await;
    succeeds(&relay, &["check"]).await;
    relay.terminate().await;
    assert_eq!(relay.exit_code().await, Some(0));

    // a hint is a statement, and does what it says
    let mut inside = server.clone();
    inside.set_path(&escaped(&name));
    let mut inside = connect(inside.as_str()).await;
    let application = quoted(&application);
    for breaks in [
        &format!("grant insert, update on outbox.events to {application}"),
        &format!("revoke outbox_relay from {}", quoted(&daemon)),
        "revoke insert on outbox.cursors from outbox_relay",
        "revoke select on sequence outbox.events_id_seq from outbox_relay",
        "alter table outbox.events enable row level security",
    ] {
        say(&mut inside, breaks).await;
    }
    let mut hints = Vec::new();
    while let Some(hint) = hint(&relay).await {
        assert!(!hints.contains(&hint), "{hint} does not help: {hints:#?}");
        say(&mut inside, hint.split(", or: ").next().unwrap()).await;
        hints.push(hint);
    }
    assert_eq!(hints.len(), 6, "{hints:#?}");

    drop((own, inside));
    say(&mut admin, &format!("drop database {} with (force)", quoted(&name))).await;
    for role in [&owner, &daemon] {
        say(&mut admin, &format!("drop role {}", quoted(role))).await;
    }
    say(&mut admin, &format!("drop role {application}")).await;
}

/// The remedy of the first finding of `check`.
async fn hint(relay: &Relay) -> Option<String> {
    let output = relay.command(&["check", "--output", "json"]).await;
    let lines: Vec<Value> = serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output}"));
    let finding = lines.iter().find(|line| line["severity"] == "error" || line["severity"] == "warning")?;
    finding["hint"].as_str().map(str::to_owned)
}

#[tokio::test]
async fn a_name_that_would_need_quotes_is_no_name_of_an_outbox_or_a_table() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("outboxd.toml");
    let names = ["a;b", "a'b", "a\"b", "a\\b", "a b", "a\nb", "$1", "--", "é", "", "a%b", "a\u{1b}[2Jb"];
    for name in names.into_iter().filter(|name| *name != "--") {
        refuses_as(&path, "name", name).await;
    }
    for table in names.into_iter().chain([
        "outbox.events; drop table x",
        "outbox.\"events\"",
        "outbox.events--",
        "public.events",
    ]) {
        refuses_as(&path, "table", table).await;
    }
    let base = "postgres.url = 'postgres://u@127.0.0.1:9/shop'\nkafka.brokers = '127.0.0.1:9'\n";
    std::fs::write(&path, base).unwrap();
    for name in ["a;b", "a'b", "a\"b", "x' or true --"] {
        for arguments in [&["cursor", "show", "--outbox", name][..], &["parked", "list", "--outbox", name]] {
            let output = outboxd(&path, arguments).await;
            assert_eq!(output.code, 64, "{arguments:?}: {output}");
        }
    }
}

async fn refuses_as(path: &std::path::Path, key: &str, value: &str) {
    let value = toml::Value::String(value.to_owned());
    let base = "postgres.url = 'postgres://u@127.0.0.1:9/shop'\nkafka.brokers = '127.0.0.1:9'\n";
    std::fs::write(path, format!("{base}[[outbox]]\n{key} = {value}\n")).unwrap();
    let output = outboxd(path, &["run"]).await;
    assert_eq!(output.code, 78, "{key} = {value}: {output}");
    assert!(output.stderr.contains(&format!("outbox[0].{key}: ")), "{key} = {value}: {output}");
    assert!(!output.stderr.contains('\u{1b}'), "a control character reaches the terminal: {output}");
}

// ---- topics

/// What a row may hold for a type, and whether its topic is a legal one.
fn hostile_types() -> Vec<(String, bool)> {
    let legal = ["a.b", "", ".", "..", "__consumer_offsets", "-"];
    let illegal = [
        "../../x",
        "x/y",
        "a\nb",
        "a\r\nb",
        "a b",
        "Zoë",
        "\u{202e}x",
        "%2e%2e",
        "{aggregate_id}",
        "a,b",
        "a:b",
        "*",
        "'; drop table outbox.events; --",
        "\u{1f5dd}",
        "a\tb",
        "\u{7f}",
    ];
    let long = [("x".repeat(300), false), ("y".repeat(2_499), false)];
    let named = |names: &[&str], legal| names.iter().map(|name| ((*name).to_owned(), legal)).collect::<Vec<_>>();
    [named(&legal, true), named(&illegal, false), long.to_vec()].concat()
}

#[tokio::test]
async fn a_row_cannot_name_a_topic_outside_its_template() {
    const NAME: &str = "a_row_cannot_name_a_topic";
    let (database, kafka) = (Database::migrated(NAME).await, Kafka::create(NAME));
    let shape: Table = "partitions = 1\nreplication = 1".parse().unwrap();
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await.set("kafka.create_topics", shape);
    let mut application = database.connect(Role::App).await;
    let insert = "insert into outbox.events (aggregate_type, aggregate_id, event_type) values ($1, '1', 'Named')";
    for (name, _) in hostile_types() {
        sqlx::query(insert).bind(&name).execute(&mut application).await.unwrap();
    }
    let nul = sqlx::query(insert).bind("a\0b").execute(&mut application).await;
    assert!(nul.is_err(), "Postgres takes a NUL in a text");
    relay.start();
    relay.ready().await;

    let expected: BTreeSet<String> =
        hostile_types().iter().filter(|(_, legal)| *legal).map(|(name, _)| kafka.topic(name)).collect();
    let topics: Vec<&str> = expected.iter().map(String::as_str).collect();
    eventually("each legal topic has its record", PATIENCE, async || {
        let (known, ends) = (names_of_topics(&kafka).await, kafka.ends(&topics).await);
        if expected.is_subset(&known) && ends.values().sum::<i64>() == 6 && ends.values().all(|end| *end == 1) {
            return Ok(());
        }
        Err(format!("{ends:?}; {:?}", relay.status().await))
    })
    .await;
    let bad: BTreeSet<String> = hostile_types().into_iter().filter(|(_, legal)| !legal).map(|(name, _)| name).collect();
    eventually("the others are parked", PATIENCE, async || {
        let list = relay.command(&["parked", "list", "--code", "illegal_topic", "--output", "json"]).await;
        let found: Vec<Value> = serde_json::from_str(&list.stdout).map_err(|error| format!("{error}: {list}"))?;
        let found: BTreeSet<String> =
            found.iter().map(|head| head["aggregate_type"].as_str().unwrap().to_owned()).collect();
        if found == bad { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;

    let known = names_of_topics(&kafka).await;
    let ours: BTreeSet<String> = known.iter().filter(|name| name.starts_with(&kafka.topic(""))).cloned().collect();
    assert_eq!(ours, expected);
    let strays: Vec<_> = hostile_types().into_iter().filter(|(name, _)| known.contains(name)).collect();
    assert!(strays.iter().all(|(name, _)| name == "__consumer_offsets"), "{strays:?}"); // Kafka's own
    relay.terminate().await;
    assert_eq!(relay.exit_code().await, Some(0));
}

/// All topics of the cluster.
async fn names_of_topics(kafka: &Kafka) -> BTreeSet<String> {
    let mut config = ClientConfig::new();
    let consumer: BaseConsumer = config.set("bootstrap.servers", kafka.brokers()).create().unwrap();
    let asked = tokio::task::spawn_blocking(move || consumer.fetch_metadata(None, Duration::from_secs(10)));
    let metadata = asked.await.unwrap().unwrap();
    metadata.topics().iter().map(MetadataTopic::name).map(str::to_owned).collect()
}

// ---- HTTP

#[tokio::test]
async fn nothing_over_http_changes_state_and_only_this_machine_is_listened_to() {
    const NAME: &str = "nothing_over_http_changes_state";
    let (database, kafka) = (Database::migrated(NAME).await, Kafka::create(NAME));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("outboxd.toml");
    std::fs::write(&path, "postgres.url = 'postgres://u@127.0.0.1/shop'\nkafka.brokers = 'k'\n").unwrap();
    let shown = outboxd(&path, &["config", "show"]).await;
    assert!(shown.stdout.contains("listen = \"127.0.0.1:9464\""), "{shown}");

    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await.set("http.token", "a-token");
    relay = relay.set("relay.lease", "5m"); // a renewal, which moves the cursor over what was empty, is far
    relay = relay.set("outbox", outboxes("[[outbox]]\n[[outbox.route]]\nwhen.event_type = 'none'\ntopic = 'none'"));
    write(
        &database,
        "insert into outbox.events (aggregate_type, aggregate_id, event_type) values ('Order', '1', 'Odd')",
    )
    .await;
    relay.start();
    relay.ready().await;
    let mut admin = database.connect(Role::Admin).await;
    let state = "select concat_ws(' ', (select string_agg(concat_ws(' ', epoch, owner, s, t, after), ',') from outbox.cursors),
                                       (select string_agg(concat_ws(' ', id, decision, attempts, settled_at), ',') from outbox.parked),
                                       (select count(*) from outbox.events))";
    let before: String = eventually("the event is parked, and the cursor behind it", PATIENCE, async || {
        let parked: i64 = sqlx::query_scalar("select count(*) from outbox.parked").fetch_one(&mut admin).await.unwrap();
        let open = database.unsettled(&database.place().await).await.unsettled.len();
        let said: String = sqlx::query_scalar(state).fetch_one(&mut admin).await.unwrap();
        if parked == 1 && open == 0 { Ok(said) } else { Err(said) }
    })
    .await;

    let shown = relay.command(&["config", "show", "--output", "json"]).await;
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
    let address = shown["http"]["listen"].as_str().unwrap().to_owned();
    let paths = [
        "/livez",
        "/readyz",
        "/status",
        "/metrics",
        "/",
        "/parked",
        "/stop",
        "/quit",
        "/config",
        "/cursor",
        "/reload",
        "/debug/pprof",
    ];
    for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "MOVE"] {
        for path in paths {
            let code = ask(&address, method, path).await;
            assert!((400..500).contains(&code), "{method} {path}: {code}");
        }
    }
    let after: String = sqlx::query_scalar(state).fetch_one(&mut admin).await.unwrap();
    assert_eq!(after, before);
    assert_eq!(relay.get("/livez").await.unwrap().status, 200);

    let port = address.rsplit(':').next().unwrap().parse::<u16>().unwrap();
    let listeners: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .flat_map(|table| table.lines().map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|line| {
            let mut words = line.split_whitespace().skip(1).map(str::to_owned);
            let (local, _, state) = (words.next()?, words.next()?, words.next()?);
            (state == "0A" && local.ends_with(&format!(":{port:04X}"))).then_some(local)
        })
        .collect();
    assert_eq!(listeners, [format!("0100007F:{port:04X}")], "127.0.0.1 and nothing else");
    relay.terminate().await;
    assert_eq!(relay.exit_code().await, Some(0));
}

/// The status of an answer to a request that carries the token, and asks for all it can.
async fn ask(address: &str, method: &str, path: &str) -> u16 {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let body = "{\"decision\": \"discard\"}";
    let head = format!("{method} {path} HTTP/1.0\r\nhost: {address}\r\nauthorization: Bearer a-token\r\n");
    let request = format!("{head}content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    answer.get(9..12).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{method} {path}: {answer:?}"))
}

/// Functions of the schema `public` that fit a call of ours better than Postgres's own do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_lends_the_relay_a_function() {
    const NAME: &str = "nobody_lends_the_relay";
    let (database, kafka) = (Database::migrated(NAME).await, Kafka::create(NAME));
    let topic = kafka.create_topic("order", 1).await;
    let mut admin = database.connect(Role::Admin).await;
    let lends = ["quote_ident(name) returns text", "concat_ws(text, text, text, text) returns text"];
    for function in lends {
        let body = "language plpgsql as $$ begin raise exception 'lent to %', current_user; end $$";
        say(&mut admin, &format!("create function public.{function} {body}")).await;
    }
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await;
    relay.start();
    write(
        &database,
        "insert into outbox.events (aggregate_type, aggregate_id, event_type) values ('order', '7', 'Placed')",
    )
    .await;
    arrive(&mut kafka.reader(&[&topic]), 1, &relay).await;
    for command in [&["check"][..], &["cursor", "show"], &["status"], &["parked", "list"]] {
        let output = relay.command(command).await;
        assert!(output.code == 0 && !output.to_string().contains("lent to"), "{command:?}: {output}");
    }
    relay.terminate().await;
    assert_eq!(relay.exit_code().await, Some(0));
    let url = database.url(Role::Admin);
    let output = relay.command(&["cursor", "rebase", "--yes", "--admin-url", &url]).await;
    assert!(output.code == 0 && !output.to_string().contains("lent to"), "{output}");
}

/// A limit for the application's statements is none for ours: to open a window takes as long as it takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_limit_of_the_database_does_not_cut_a_large_window() {
    const NAME: &str = "a_time_limit_of_the_database";
    let (database, kafka) = (Database::migrated(NAME).await, Kafka::create(NAME));
    let topic = kafka.create_topic("order", 1).await;
    write(
        &database,
        "insert into outbox.events (aggregate_type, aggregate_id, event_type) select 'order', '7', 'Placed' from generate_series(1, 30000)",
    )
    .await;
    let name = database.name().to_owned();
    say(&mut database.connect(Role::Admin).await, &format!("alter database {name} set statement_timeout = '3ms'"))
        .await;
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await;
    relay.start();
    arrive(&mut kafka.reader(&[&topic]), 30_000, &relay).await;
    relay.terminate().await;
    assert_eq!(relay.exit_code().await, Some(0));
}
