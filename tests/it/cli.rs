//! The commands beside `run`: what they print, where, and how they end.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use toml::Table;

use crate::delivery::{arrive, outboxes, write, write_numbers};
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::kafka::Kafka;
use crate::support::postgres::{Database, Role, say};
use crate::support::relay::{Output, Relay, outboxd};
use crate::support::server;

/// Nobody listens there.
const NOWHERE: &str = "127.0.0.1:9";

fn json(output: &Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output}"))
}

async fn succeed(relay: &Relay, arguments: &[&str]) -> Output {
    let output = relay.command(arguments).await;
    assert_eq!(output.code, 0, "{arguments:?}: {output}");
    output
}

/// A relay that is not to be started.
async fn idle(database: &Database, test: &str) -> Relay {
    Relay::new(&database.url(Role::Relay), &Kafka::create(test)).await
}

#[tokio::test]
async fn help_version_schema_and_completions_need_no_configuration() {
    let cases: [(&[&str], &[&str]); 8] = [
        (&["--version"], &[concat!("outboxd ", env!("CARGO_PKG_VERSION"))]),
        (
            &["--help"],
            &[
                "Exit codes:",
                "0 done",
                "1 failed",
                "2 findings",
                "64 usage",
                "69 ",
                "70 a bug",
                "78 configuration",
                "migrate",
            ],
        ),
        (&["migrate", "--help"], &["--print", "--admin-url", "OUTBOXD_ADMIN_URL"]),
        (&["completions", "bash"], &["_outboxd", "migrate", "complete -F"]),
        (&["completions", "zsh"], &["#compdef outboxd", "migrate"]),
        (&["completions", "fish"], &["complete -c outboxd", "migrate"]),
        (&["config", "schema"], &["https://json-schema.org/draft/2020-12/schema"]),
        (&["migrate", "--print"], &["create table if not exists outbox.events", "grant outbox_writer to", "commit;"]),
    ];
    for (arguments, words) in cases {
        let output = outboxd(Path::new("/nowhere/outboxd.toml"), arguments).await;
        assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{arguments:?}: {output}");
        let text = output.stdout.split_whitespace().collect::<Vec<_>>().join(" "); // help is wrapped
        for word in words {
            assert!(text.contains(word), "{arguments:?}: {word}: {output}");
        }
    }
    let schema = json(&outboxd(Path::new("/nowhere/outboxd.toml"), &["config", "schema"]).await);
    for section in ["postgres", "kafka", "relay", "http", "log", "outbox"] {
        assert!(schema["properties"][section].is_object(), "{section}: {schema}");
    }
}

#[tokio::test]
async fn a_closed_pipe_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("outboxd.toml");
    std::fs::write(&file, "[postgres]\nurl = \"postgres://u@127.0.0.1/shop\"\n[kafka]\nbrokers = \"k\"\n").unwrap();
    let cases: [&[&str]; 5] =
        [&["config", "schema"], &["config", "show"], &["migrate", "--print"], &["completions", "bash"], &["--help"]];
    for arguments in cases {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_outboxd"));
        let output = command.arg("--config").arg(&file).args(arguments).stdout(writer).stderr(Stdio::piped()).output();
        let output = output.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), said.as_ref()), (Some(0), ""), "{arguments:?}");
    }
}

#[tokio::test]
async fn secrets_are_printed_nowhere() {
    const NAME: &str = "secrets_are_printed_nowhere";
    const SECRETS: [&str; 7] =
        ["admin-secret", "s3cret-url", "s3cret-token", "s3cret-file", "s3cret-key", "s3cret-payload", "s3cret-header"];
    let database = Database::migrated(NAME).await;
    let kafka = Kafka::create(NAME);
    let topic = kafka.create_topic("order", 1).await;
    let mut url = url::Url::parse(&database.url(Role::Relay)).unwrap();
    url.set_password(Some("s3cret-url")).unwrap(); // which this server does not ask for
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("password"), "admin-secret\n").unwrap();
    let properties = |password: &str| -> Table {
        let lines =
            "\"security.protocol\" = \"SASL_PLAINTEXT\"\n\"sasl.mechanism\" = \"PLAIN\"\n\"sasl.username\" = \"admin\"";
        format!("{lines}\n\"sasl.password\" = {password}\n\"ssl.key.password\" = \"s3cret-file\"\n").parse().unwrap()
    };
    let mut relay = Relay::new(url.as_str(), &kafka)
        .await
        .set("kafka.brokers", server("OUTBOXD_TEST_KAFKA_SASL"))
        .set("kafka.properties", properties("\"admin-secret\""))
        .set("http.token", "s3cret-token")
        .set("log.filter", "trace");
    let clean = |what: &str, text: &str| {
        let found: Vec<_> = SECRETS.iter().filter(|secret| text.contains(**secret)).collect();
        let lines: Vec<_> = text.lines().filter(|line| found.iter().any(|secret| line.contains(**secret))).collect();
        assert!(found.is_empty(), "{what} holds {found:?}: {:?}", lines.first());
    };

    // in what the commands print, given in the file or by reference
    for password in
        ["\"admin-secret\"".to_owned(), format!("{{ file = \"{}\" }}", folder.path().join("password").display())]
    {
        relay = relay.set("kafka.properties", properties(&password));
        for arguments in [&["config", "show"][..], &["config", "show", "--output", "json"], &["check"], &["status"]] {
            let output = relay.command(arguments).await;
            assert!(output.code == 0 || arguments == ["check"], "{arguments:?}: {output}");
            clean(&arguments.join(" "), &output.to_string());
        }
    }
    let shown = succeed(&relay, &["config", "show"]).await.stdout;
    for line in
        ["token = \"***\"", "\"ssl.key.password\" = \"***\"", ":***@", "\"sasl.username\" = \"admin\"", "{ file = "]
    {
        assert!(shown.contains(line), "{line}: {shown}");
    }

    // in the log of a daemon that says all it can, nor what events hold
    relay.start();
    relay.ready().await;
    let columns = "aggregate_type, aggregate_id, event_type, payload, headers";
    let row = r#"'order', 's3cret-key', 'Placed', '{"card": "s3cret-payload"}', '{"authorization": "s3cret-header"}'"#;
    write(&database, &format!("insert into outbox.events ({columns}) values ({row})")).await;
    arrive(&mut kafka.reader(&[&topic]), 1, &relay).await;
    for path in ["/status", "/metrics", "/readyz"] {
        clean(path, &relay.get(path).await.unwrap().body);
    }
    relay.terminate().await;
    assert_eq!(relay.exit_code().await, Some(0));
    let log = relay.log();
    assert!(log.contains("\"TRACE\"") || log.contains("\"DEBUG\""), "{log}");
    clean("the log", &log);
}

#[tokio::test]
async fn check_finds_nothing_where_all_is_well_and_says_what_to_do_where_not() {
    const NAME: &str = "check_finds_nothing_where_all_is_well";
    let database = Database::create(NAME).await;
    let kafka = Kafka::create(NAME);
    let (topic, dead) = (kafka.topic("fixed"), kafka.topic("dead"));
    let fixed =
        format!("[[outbox]]\non_reject = {{ dead_letter = \"{dead}\" }}\n[[outbox.route]]\ntopic = \"{topic}\"");
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await.set("outbox", outboxes(&fixed));
    let findings = async |relay: &Relay, words: &[&str]| {
        let output = relay.command(&["check"]).await;
        assert_eq!(output.code, 2, "{output}");
        for word in words {
            assert!(output.stdout.contains(word), "{word}: {output}");
        }
        let listed = json(&relay.command(&["check", "--output", "json"]).await);
        let bad: Vec<_> = listed.as_array().unwrap().iter().filter(|line| line["severity"] == "error").collect();
        assert!(!bad.is_empty() && bad.iter().all(|line| line["hint"].is_string()), "each with its remedy: {listed}");
    };

    let missing = [&topic, &dead].map(|topic| format!("topic {topic}: Unknown topic"));
    let [missing_topic, missing_dead] = &missing;
    findings(&relay, &["schema is missing", "hint: run: outboxd migrate", missing_topic, missing_dead, "3 findings"])
        .await;
    database.migrate().await;
    kafka.create_topic("fixed", 3).await;

    // what the relay would make is no finding, and is not made by a look
    relay = relay.set("kafka.create_topics", toml::toml! { partitions = 2 replication = 1 });
    for _ in 0..2 {
        let output = succeed(&relay, &["check"]).await;
        assert!(output.stdout.contains(&format!("topic {dead}: made at its first event")), "{output}");
    }
    let output = succeed(&relay, &["check"]).await;
    let topic = format!("topic {topic}: 3 partitions, takes 1048588 bytes");
    for words in ["no findings", "schema and grants", "has no cursor yet", &topic] {
        assert!(output.stdout.contains(words), "{words}: {output}");
    }

    let user = url::Url::parse(&database.url(Role::Relay)).unwrap().username().to_owned();
    let mut admin = database.connect(Role::Admin).await;
    say(&mut admin, &format!("revoke outbox_relay from {user}")).await;
    findings(&relay, &[&format!("role {user} lacks"), "grant outbox_relay"]).await;
    say(&mut admin, &format!("grant outbox_relay to {user}; alter sequence outbox.events_id_seq cache 20")).await;
    findings(&relay, &["has cache 20", "alter sequence", "1 finding"]).await;
    say(&mut admin, "alter sequence outbox.events_id_seq cache 1").await;
    relay.start();
    relay.ready().await;
    assert!(succeed(&relay, &["check"]).await.stdout.contains("cursor of default saved at"));
}

#[tokio::test]
async fn what_librdkafka_does_not_take_is_found_before_anything_is_started() {
    const NAME: &str = "what_librdkafka_does_not_take";
    let (database, kafka) = (Database::create(NAME).await, Kafka::create(NAME));
    for (name, value) in [("linger.ms", "soon"), ("compression.type", "lz5"), ("linger.mss", "5")] {
        let properties = toml::Value::Table([(name.to_owned(), value.into())].into_iter().collect());
        let relay = Relay::new(&database.url(Role::Relay), &kafka).await.set("kafka.properties", properties);
        for command in ["check", "run", "status"] {
            let output = relay.command(&[command]).await;
            assert_eq!(output.code, 78, "{command}: {output}");
            let said = if command == "check" { &output.stdout } else { &output.stderr };
            assert!(said.contains("kafka.properties") && said.contains(name), "{command}: {output}");
        }
    }
}

#[tokio::test]
async fn migrate_may_be_run_again_and_twice_at_once() {
    const NAME: &str = "migrate_may_be_run_again";
    let database = Database::create(NAME).await;
    let relay = idle(&database, NAME).await;
    let owner = database.url(Role::Owner);
    let migrate = ["migrate", "--admin-url", &owner];
    let (one, other) = tokio::join!(relay.command(&migrate), relay.command(&migrate));
    assert_eq!((one.code, other.code), (0, 0), "{one}\n{other}");
    let again = succeed(&relay, &migrate).await;
    assert!(again.stderr.contains("the schema is up to date"), "{again}");
    let again = json(&succeed(&relay, &["migrate", "--admin-url", &owner, "--output", "json"]).await);
    assert_eq!(again["applied"], 0, "{again}");
    succeed(&relay, &["check"]).await;

    // who may not is told who may
    let fresh = Database::create("migrate_without_the_right").await;
    let denied = relay.command(&["migrate", "--admin-url", &fresh.url(Role::Relay)]).await;
    assert_eq!(denied.code, 1, "{denied}");
    assert!(denied.stderr.contains("permission denied") && denied.stderr.contains("--admin-url"), "{denied}");

    // an address is held to the rules of the configured one
    let refused = relay.command(&["migrate", "--admin-url", "postgres://owner@db/shop?sslpassword=hunter2"]).await;
    assert_eq!(refused.code, 64, "{refused}");
    assert!(refused.stderr.contains("--admin-url: expected") && !refused.stderr.contains("hunter2"), "{refused}");
}

#[tokio::test]
async fn the_printed_schema_is_the_one_that_migrate_makes() {
    const NAME: &str = "the_printed_schema";
    let database = Database::create(NAME).await;
    let relay = idle(&database, NAME).await;
    let script = succeed(&relay, &["migrate", "--print"]).await.stdout;
    for _ in 0..2 {
        let psql = Command::new("psql").arg("--version").output();
        if psql.is_ok_and(|output| output.status.success()) {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("schema.sql");
            std::fs::write(&file, &script).unwrap();
            let mut psql = Command::new("psql");
            psql.args(["--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--file"]).arg(&file);
            let output = psql.arg(database.url(Role::Owner)).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        } else {
            say(&mut database.connect(Role::Owner).await, &script).await;
        }
    }
    let checked = succeed(&relay, &["check"]).await;
    assert!(checked.stdout.contains("no findings"), "{checked}");
    let migrated = succeed(&relay, &["migrate", "--admin-url", &database.url(Role::Owner)]).await;
    assert!(migrated.stderr.contains("the schema is up to date"), "{migrated}");
}

#[tokio::test]
async fn status_comes_from_the_daemon_else_from_the_database() {
    const NAME: &str = "status_comes_from_the_daemon";
    let database = Database::migrated(NAME).await;
    let kafka = Kafka::create(NAME);
    let topic = kafka.create_topic("order", 1).await;
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await;
    let text = async |relay: &Relay, words: &[&str]| {
        let output = succeed(relay, &["status"]).await;
        for word in words {
            assert!(output.stdout.contains(word), "{word}: {output}");
        }
        output
    };
    let lane = async |relay: &Relay| {
        let status = json(&succeed(relay, &["status", "--output", "json"]).await);
        assert_eq!(status["version"], env!("CARGO_PKG_VERSION"), "{status}");
        status["lanes"][0].clone()
    };

    // never started
    let output = text(&relay, &["default (lane 0), from the database", "stopped", "never started"]).await;
    assert!(output.stderr.contains("no daemon at"), "{output}");

    // running
    relay.start();
    relay.ready().await;
    write_numbers(&database, "order", 1..=3).await;
    arrive(&mut kafka.reader(&[&topic]), 3, &relay).await;
    eventually("all is published, and seen to be", PATIENCE, async || {
        let lane = lane(&relay).await;
        let done = lane["published_events"] == 3 && lane["lag_events"] == 0;
        if done { Ok(()) } else { Err(lane.to_string()) }
    })
    .await;
    let output = text(&relay, &["from the daemon at", "relaying", "0 events, 0.0 s", "3 events since the start"]).await;
    assert_eq!(output.stderr, "", "{output}");
    assert_eq!(lane(&relay).await["state"], "relaying");

    // down, with events that wait
    relay.terminate().await;
    assert_eq!(relay.exit_code().await, Some(0));
    write_numbers(&database, "order", 4..=5).await;
    text(&relay, &["from the database", "stopped", "nobody holds the lease", "2 events"]).await;
    let stopped = lane(&relay).await;
    assert_eq!(
        (&stopped["state"], &stopped["lag_events"], &stopped["ready"]),
        (&"stopped".into(), &2.into(), &false.into())
    );
    assert!(stopped["cursor"].is_string() && stopped["lag_seconds"].as_f64().is_some_and(|lag| lag > 0.0), "{stopped}");
}

#[tokio::test]
async fn a_command_without_its_server_has_a_code_of_its_own() {
    let kafka = Kafka::create_on(NOWHERE, "a_command_without_its_server");
    let relay = Relay::new(&format!("postgres://outboxd@{NOWHERE}/shop"), &kafka).await;
    for arguments in [&["status"][..], &["migrate"]] {
        let output = relay.command(arguments).await;
        assert_eq!(output.code, 69, "{arguments:?}: {output}");
        assert!(output.stderr.contains(NOWHERE) && output.stderr.contains("Connection refused"), "{output}");
    }
}
