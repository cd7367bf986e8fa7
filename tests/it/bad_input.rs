//! What is wrong outside the daemon: a wrong address, password or right, a missing topic, a wrong configuration.
//!
//! Each ends in a clear message, said once, and nothing is lost: when the cause is gone the same daemon goes on by
//! itself, or after a restart where only another configuration helps.

use std::process::Command;

use tokio::net::TcpListener;
use toml::Table;

use crate::delivery::{arrive, numbers, stop, values, write_numbers};
use crate::support::acl::{Operation, allow, sasl};
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::kafka::Kafka;
use crate::support::postgres::{Database, Role, connect, say};
use crate::support::proxy::Proxy;
use crate::support::relay::{Relay, outboxd};
use crate::support::said::{counted, entered, said_once, says};
use crate::support::server;
use crate::support::servers::Servers;

/// A database with three events, and a topic for them.
pub(crate) async fn given(test: &str) -> (Database, Kafka, String) {
    let (database, kafka) = (Database::migrated(test).await, Kafka::create(test));
    write_numbers(&database, "order", 1..=3).await;
    let topic = kafka.create_topic("order", 1).await;
    (database, kafka, topic)
}

/// All three events are there, once and in order.
async fn delivers(relay: &mut Relay, kafka: &Kafka, topic: &str) {
    let mut reader = kafka.reader(&[topic]);
    assert_eq!(values(&arrive(&mut reader, 3, relay).await), numbers(1..=3));
    relay.ready().await;
    stop(relay).await;
    assert_eq!(reader.read_on().await.len(), 0, "more came than was written");
}

// ---- Postgres

#[tokio::test]
async fn a_port_where_no_postgres_listens_is_said_and_waited_for() {
    let (database, kafka, topic) = given("a_port_where_no_postgres_listens").await;
    let (mut proxy, url) = Proxy::before(&database.url(Role::Relay)).await;
    proxy.refuse().await;
    let mut relay = Relay::new(&url, &kafka).await;
    relay.start();
    let reason = says(&relay, "default", "waiting", &[&proxy.address().to_string(), "Connection refused"]).await;
    counted(&relay, "sessions_ended", "default", "postgres", 3.0).await;
    proxy.welcome().await;
    delivers(&mut relay, &kafka, &topic).await;
    said_once(&relay, "default", "waiting", &reason);
}

#[tokio::test]
async fn a_database_that_is_not_there_is_said_and_waited_for() {
    let (database, kafka, topic) = given("a_database_that_is_not_there").await;
    let mut admin = connect(&database.url_elsewhere(Role::Admin)).await;
    let rename = async |admin: &mut _, from: &str, to: &str| {
        eventually("nobody is in the database", PATIENCE, async || {
            let rename = format!("alter database {from} rename to {to}");
            sqlx::raw_sql(sqlx::AssertSqlSafe(rename)).execute(&mut *admin).await.map_err(|error| error.to_string())
        })
        .await;
    };
    let (name, away) = (database.name().to_owned(), format!("{}_away", database.name()));
    rename(&mut admin, &name, &away).await;
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await;
    relay.start();
    let words = [&format!("database \"{name}\" does not exist"), "check the name of the database in `postgres.url`"];
    let reason = says(&relay, "default", "waiting", &words).await;
    counted(&relay, "sessions_ended", "default", "postgres", 2.0).await;
    rename(&mut admin, &away, &name).await;
    delivers(&mut relay, &kafka, &topic).await;
    said_once(&relay, "default", "waiting", &reason);
}

#[tokio::test]
async fn a_host_that_nobody_knows_is_said() {
    let (database, kafka, topic) = given("a_host_that_nobody_knows").await;
    let mut relay = Relay::new("postgres://outboxd@postgres.invalid/shop?sslmode=disable", &kafka).await;
    relay.start();
    says(&relay, "default", "waiting", &["postgres.invalid:5432"]).await;
    stop(&mut relay).await;
    relay = relay.set("postgres.url", database.url(Role::Relay));
    relay.start();
    delivers(&mut relay, &kafka, &topic).await;
}

#[tokio::test]
async fn a_wrong_password_is_said_without_it_and_waited_for() {
    const NAME: &str = "a_wrong_password";
    let servers = Servers::start(&["--only", "postgres"]).await; // whose rules of access may be changed
    let database = Database::create_on(servers.postgres(), NAME).await;
    let kafka = Kafka::create(NAME);
    let topic = kafka.create_topic("order", 1).await;
    database.migrate().await;
    write_numbers(&database, "order", 1..=3).await;
    let mut url = url::Url::parse(&database.url(Role::Relay)).unwrap();
    let role = url.username().to_owned();
    let mut admin = database.connect(Role::Admin).await;
    say(&mut admin, &format!("alter role {role} password 'the-right-one'")).await;
    let file: String = sqlx::query_scalar("show hba_file").fetch_one(&mut admin).await.unwrap();
    let rules = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("host all {role} 127.0.0.1/32 scram-sha-256\n{rules}")).unwrap();
    say(&mut admin, "select pg_reload_conf()").await;
    url.set_password(Some("of-no-use")).unwrap();

    let mut relay = Relay::new(url.as_str(), &kafka).await;
    relay.start();
    let words = [&format!("password authentication failed for user \"{role}\""), "check user and password"];
    let reason = says(&relay, "default", "waiting", &words).await;
    counted(&relay, "sessions_ended", "default", "postgres", 2.0).await;
    assert!(!relay.status().await.unwrap().to_string().contains("of-no-use"));
    say(&mut admin, &format!("alter role {role} password 'of-no-use'")).await;
    delivers(&mut relay, &kafka, &topic).await;
    said_once(&relay, "default", "waiting", &reason);
    assert!(!relay.log().contains("of-no-use"), "{}", relay.log());
}

// ---- Kafka

#[tokio::test]
async fn brokers_that_do_not_listen_are_said_and_waited_for() {
    let (database, kafka, topic) = given("brokers_that_do_not_listen").await;
    let mut proxy = Proxy::start(kafka.brokers()).await; // only the first contact goes through it
    proxy.refuse().await;
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await;
    relay = relay.set("kafka.brokers", proxy.address().to_string());
    relay.start();
    let reason = says(&relay, "default", "waiting", &["kafka", "check `kafka.brokers`"]).await;
    proxy.welcome().await;
    delivers(&mut relay, &kafka, &topic).await;
    said_once(&relay, "default", "waiting", &reason);
}

#[tokio::test]
async fn a_missing_topic_is_said_and_waited_for() {
    const NAME: &str = "a_missing_topic";
    let (database, kafka) = (Database::migrated(NAME).await, Kafka::create(NAME));
    write_numbers(&database, "order", 1..=3).await;
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await;
    relay.start();
    let topic = kafka.topic("order");
    let words = [
        &format!("topic {topic}: "),
        "Unknown topic",
        "create the topic, or leave it to outboxd with `kafka.create_topics`",
    ];
    let reason = says(&relay, "default", "waiting", &words).await;
    assert_eq!(reason, format!("topic {topic}: Unknown topic or partition (UnknownTopicOrPartition)"));
    kafka.create_topic("order", 1).await;
    delivers(&mut relay, &kafka, &topic).await;
    said_once(&relay, "default", "waiting", &reason);
}

#[tokio::test]
async fn a_topic_is_made_where_that_is_asked_for() {
    const NAME: &str = "a_topic_is_made";
    let (database, kafka) = (Database::migrated(NAME).await, Kafka::create(NAME));
    write_numbers(&database, "order", 1..=3).await;
    let shape: Table = "partitions = 4\nreplication = 1".parse().unwrap();
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await.set("kafka.create_topics", shape);
    relay.start();
    let topic = kafka.topic("order");
    eventually("the topic is made", PATIENCE, async || {
        let partitions = kafka.ends(&[&topic]).await.len();
        if partitions == 4 { Ok(()) } else { Err(format!("{partitions} of 4 partitions")) }
    })
    .await;
    delivers(&mut relay, &kafka, &topic).await;
    assert_eq!(entered(&relay, "default", "waiting").len(), 0, "{}", relay.log());
}

#[tokio::test]
async fn a_topic_that_cannot_be_made_is_said_and_waited_for() {
    const NAME: &str = "a_topic_that_cannot_be_made";
    let (database, kafka) = (Database::migrated(NAME).await, Kafka::create(NAME));
    write_numbers(&database, "order", 1..=3).await;
    let shape: Table = "partitions = 2\nreplication = 3".parse().unwrap(); // there is one broker
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await.set("kafka.create_topics", shape);
    relay.start();
    let topic = kafka.topic("order");
    let words =
        [&format!("making topic {topic} with 2 partitions and replication 3: "), "replication factor", "by hand"];
    let reason = says(&relay, "default", "waiting", &words).await;
    kafka.create_topic("order", 1).await;
    delivers(&mut relay, &kafka, &topic).await;
    said_once(&relay, "default", "waiting", &reason);
}

#[tokio::test]
async fn a_topic_that_may_not_be_written_is_said_and_waited_for() {
    let (database, kafka, topic) = given("a_topic_that_may_not_be_written").await;
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await;
    relay = relay.set("kafka.brokers", server("OUTBOXD_TEST_KAFKA_SASL"));
    relay = relay.set("kafka.properties", sasl("relay-secret"));
    relay.start();
    let words = [&format!("topic {topic}: "), "authorization failed", "allow the user of outboxd Write and Describe"];
    let unseen = says(&relay, "default", "waiting", &words).await;
    assert!(matches!(&entered(&relay, "default", "waiting")[..], [line] if line["reason"] == unseen.as_str()));

    // may be seen, but not written: what the producer says of it
    allow(&kafka, &topic, Operation::Describe).await;
    counted(&relay, "sessions_ended", "default", "kafka", 3.0).await;
    let words = ["uthorization failed", "allow the user of outboxd Write"]; // of the topic, or of the cluster's producer ids
    let reason = says(&relay, "default", "waiting", &words).await;
    let tries = entered(&relay, "default", "relaying");
    assert!(tries.len() <= 2, "a try is no success: {tries:#?}"); // before the first, and when the topic was seen
    let lines = entered(&relay, "default", "waiting");
    // not seen, then not written; the producer may find another word for that at first
    let last = lines.last().is_some_and(|line| line["reason"] == reason.as_str());
    assert!(last && lines.len() <= 3, "the same is said with every try: {lines:#?}");

    allow(&kafka, &topic, Operation::Write).await;
    delivers(&mut relay, &kafka, &topic).await;
}

#[tokio::test]
async fn a_wrong_password_for_kafka_is_said_without_it() {
    let (database, kafka, topic) = given("a_wrong_password_for_kafka").await;
    allow(&kafka, &topic, Operation::Write).await;
    allow(&kafka, &topic, Operation::Describe).await;
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await;
    relay = relay.set("kafka.brokers", server("OUTBOXD_TEST_KAFKA_SASL"));
    relay = relay.set("kafka.properties", sasl("of-no-use"));
    relay.start();
    let reason = says(&relay, "default", "waiting", &["uthentication", "`sasl.password`"]).await;
    said_once(&relay, "default", "waiting", &reason);
    stop(&mut relay).await;
    assert!(!relay.log().contains("of-no-use"), "{}", relay.log());
    relay = relay.set("kafka.properties", sasl("relay-secret"));
    relay.start();
    delivers(&mut relay, &kafka, &topic).await;
}

// ---- configuration and command line

/// A mark behind a mistake says what its finding holds.
const MISTAKES: &str = r#"[postgres]
url = "postgres://127.0.0.1"            #! with a user
[kafka]
brokers = "k1:no"                       #! expected `host:port`
brokerz = "k1"                          #! did you mean `kafka.brokers`?
[kafka.properties]
acks = "1"                              #! it is all
"linger.ms" = 2.5                       #! a string, an integer or a boolean
[relay]
pool = { min = "1s" }                   #! did you mean `relay.poll`?
poll = { min = "2s", max = "1s" }       #! at most 1s
save_every = "5s"                       #! a third of `relay.lease`
in_flight = { events = "many", size = "1KiB" } #! `many` #! `1KiB`
shutdown_grace = 20                     #! with its unit
[http]
listen = "localhost:9464"               #! an IP address
token = { env = "NO_SUCH_VARIABLE" }    #! `NO_SUCH_VARIABLE`
[log]
format = "jsno"                         #! did you mean `json`?
[[outbox]]
name = "a b"                            #! outbox[0].name
start = "erliest"                       #! did you mean `earliest`?
[[outbox.route]]
topic = "{agregate_type}"               #! did you mean `{aggregate_type}`?
key = "{aggregate_id"                   #! a `}` for each
headers = { id = "x" }                  #! sets itself
value = "json"                          #! `payload`
"#;

#[tokio::test]
async fn twenty_mistakes_are_twenty_findings_each_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("outboxd.toml");
    std::fs::write(&file, MISTAKES).unwrap();
    let marks = |(line, text): (usize, &'static str)| text.split("#!").skip(1).map(move |mark| (line, mark.trim()));
    let expected: Vec<(usize, &str)> = (1..).zip(MISTAKES.lines()).flat_map(marks).collect();
    assert_eq!(expected.len(), 20, "the mistakes of this test");
    for arguments in [&["run"][..], &["check"], &["status"], &["config", "show"], &["migrate"]] {
        let output = outboxd(&file, arguments).await;
        assert_eq!(output.code, 78, "{arguments:?}: {output}");
        let said = if arguments == ["check"] { &output.stdout } else { &output.stderr };
        for (line, mark) in &expected {
            let place = format!("line {line}: ");
            let found = said
                .split("line ")
                .any(|finding| finding.starts_with(place.trim_start_matches("line ")) && finding.contains(mark));
            assert!(found, "{arguments:?}: line {line} {mark}: {said}");
        }
        assert_eq!(said.matches("line ").count(), 20, "{arguments:?}: {said}");
        let total = if arguments == ["check"] { "20 findings" } else { "20 problems in the configuration" };
        assert!(said.trim_end().ends_with(total), "{arguments:?}: {said}");
    }
}

#[tokio::test]
async fn a_configuration_that_is_not_there_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let cases = [("nowhere.toml", "No such file or directory"), (".", "Is a directory")];
    for (name, words) in cases {
        let path = folder.path().join(name);
        let output = outboxd(&path, &["run"]).await;
        assert_eq!(output.code, 78, "{output}");
        assert!(output.stderr.contains(words) && output.stderr.contains(path.to_str().unwrap()), "{output}");
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_outboxd"));
    let output = command.arg("run").env_remove("OUTBOXD_CONFIG").current_dir(folder.path()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("no configuration") && said.contains("--config FILE"), "{said}");
}

#[tokio::test]
async fn a_reference_to_what_is_not_there_is_a_finding() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("outboxd.toml");
    let text = "[postgres]\nurl = { file = \"/nowhere/url\" }\n[kafka]\nbrokers = { env = \"NO_SUCH_BROKERS\" }\n";
    std::fs::write(&file, text).unwrap();
    let output = outboxd(&file, &["run"]).await;
    assert_eq!(output.code, 78, "{output}");
    for words in ["line 2: postgres.url", "`/nowhere/url`", "line 4: kafka.brokers", "`NO_SUCH_BROKERS`", "2 problems"]
    {
        assert!(output.stderr.contains(words), "{words}: {output}");
    }
}

#[tokio::test]
async fn wrong_usage_has_a_code_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("outboxd.toml");
    let cases: [&[&str]; 7] = [
        &[],
        &["frobnicate"],
        &["run", "--nonsense"],
        &["run", "twice"],
        &["status", "--output", "yaml"],
        &["completions", "tcsh"],
        &["config"],
    ];
    for arguments in cases {
        let output = outboxd(&file, arguments).await;
        assert_eq!((output.code, output.stdout.as_str()), (64, ""), "{arguments:?}: {output}");
        let says_how = ["Usage: outboxd", "try '--help'"].iter().any(|words| output.stderr.contains(words));
        assert!(says_how, "{arguments:?}: {output}");
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_said() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let kafka = Kafka::create_on("127.0.0.1:9", "a_port_that_is_taken");
    let relay = Relay::new("postgres://outboxd@127.0.0.1:9/shop", &kafka).await.set("http.listen", address.as_str());
    let output = relay.command(&["run"]).await;
    assert_eq!(output.code, 78, "{output}");
    for words in [&format!("http.listen: {address}: Address already in use"), "choose another port"] {
        assert!(output.stderr.contains(words), "{output}");
    }
}
