//! Servers that speak TLS and ask for a password: what is wrong is said without the secret, and is tried again until it is right.

use std::path::Path;

use tokio::process::Command;
use url::Url;

use super::stage::{Stage, is_long, tell};
use crate::guards::servers::run;
use crate::support::acl::{Operation, allow};
use crate::support::certificates::{Authority, Certificate};
use crate::support::kafka::Kafka;
use crate::support::postgres::{Database, Role, connect, say};
use crate::support::relay::free_port;
use crate::support::said::counted;
use crate::support::scram::set_password;
use crate::support::servers::Servers;
use crate::support::writer::Storm;

const SECRET: &str = "correct-horse-battery";

/// Whatever is asked or written, the password is not in it.
async fn keeps_the_secret(stage: &Stage) {
    let answers =
        [stage.relay.get("/status").await, stage.relay.get("/readyz").await, stage.relay.get("/metrics").await];
    let said: String = answers.into_iter().map(|answer| answer.unwrap().body).chain([stage.relay.log()]).collect();
    assert!(!said.contains(SECRET), "the password is told: {said}");
}

/// Waits until it has been tried again, so often.
async fn is_retried(stage: &Stage, reason: &str, times: f64) {
    counted(&stage.relay, "sessions_ended", "default", reason, times).await;
}

/// Shows a certificate. Its key has to belong to the user of the server: it takes a file of his for a pattern.
async fn show(postgres: &Path, certificate: &Certificate) {
    let script = "
        cd \"$1\"
        umask 077
        for name in server.crt server.key; do cp -p PG_VERSION \"$name\"; chmod 600 \"$name\"; done
        printf %s \"$2\" >server.crt
        printf %s \"$3\" >server.key";
    let mut shell = Command::new("sh");
    run(shell.args(["-euc", script, "sh"]).arg(postgres).arg(&certificate.certificate).arg(&certificate.key)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_over_tls_is_verified_and_a_wrong_password_waited_for() {
    const NAME: &str = "postgres_over_tls";
    let servers = Servers::start(&["--only", "postgres"]).await;
    let data = servers.files("postgres").join("data");
    let (authority, stranger) = tokio::join!(Authority::create(), Authority::create());
    let database = Database::create_on(servers.postgres(), NAME).await;
    database.migrate().await;
    let mut stage = Stage::new(database, Kafka::create(NAME)).await;
    let mut admin = connect(servers.postgres()).await;
    let role = format!("{}_relay", stage.database.name());
    let rules = format!(
        "local all all trust\nhostnossl all {role} all reject\nhostssl all {role} all scram-sha-256\nhost all all all trust\n"
    );
    std::fs::write(data.join("pg_hba.conf"), rules).unwrap();
    let mut url = Url::parse(&stage.database.url(Role::Relay)).unwrap();
    url.set_host(Some("localhost")).unwrap();
    url.set_password(Some(SECRET)).unwrap();
    let file = authority.file();
    url.query_pairs_mut().append_pair("sslmode", "verify-full").append_pair("sslrootcert", file.to_str().unwrap());
    stage.relay = stage.relay.set("postgres.url", url.as_str());

    // given the certificate of an authority that we do not trust, then that of another host, then another password
    show(&data, &stranger.sign("localhost").await).await;
    say(&mut admin, "alter system set ssl = on").await;
    say(&mut admin, "select pg_reload_conf()").await;
    say(&mut admin, &format!("alter role {role} password 'another'")).await;
    stage.relay.start();
    let unknown = stage.seen("waiting", &["connecting localhost", "UnknownIssuer", "sslrootcert"]).await;
    is_retried(&stage, "postgres", 3.0).await;
    show(&data, &authority.sign("elsewhere.example").await).await;
    say(&mut admin, "select pg_reload_conf()").await;
    let elsewhere = stage.seen("waiting", &["connecting localhost", "not valid for name", "sslmode"]).await;
    show(&data, &authority.sign("localhost").await).await;
    say(&mut admin, "select pg_reload_conf()").await;
    let refused = stage.seen("waiting", &["password authentication failed", "check user and password"]).await;
    keeps_the_secret(&stage).await;

    // then it goes on by itself when all is right
    say(&mut admin, &format!("alter role {role} password '{SECRET}'")).await;
    let recovered = stage.recovers().await;
    let plan = stage.plan(4);
    let storm = Storm::start(&stage.database, plan).await;
    storm.has_committed(200).await;
    let encrypted = "select count(*) from pg_stat_ssl join pg_stat_activity using (pid) where ssl and usename = $1";
    let encrypted: i64 = sqlx::query_scalar(encrypted).bind(&role).fetch_one(&mut admin).await.unwrap();
    assert!(encrypted >= 2, "reader and writer speak TLS: {encrypted}");
    storm.stop().await;
    keeps_the_secret(&stage).await;
    let verdict = stage.all_is_well().await;
    tell("Postgres shows the certificate of a stranger", &unknown, None, 0);
    tell("Postgres shows the certificate of another host", &elsewhere, None, 0);
    tell("Postgres refuses the password", &refused, Some(recovered), verdict.duplicates.count);
}

/// Adds a listener to the broker: TLS, and passwords that the cluster keeps. A session has to log in again every 2 s.
async fn secure(servers: &Servers, certificate: &Certificate) -> u16 {
    let port = free_port().await;
    servers.does("stop", "kafka").await;
    let pem = servers.files("kafka").join("server.pem");
    std::fs::write(&pem, format!("{}{}", certificate.key, certificate.certificate)).unwrap();
    let file = servers.files("kafka").join("kafka.properties");
    let mut lines = Vec::new();
    for line in std::fs::read_to_string(&file).unwrap().lines() {
        lines.push(match line.split_once('=').map(|(name, _)| name) {
            Some("listeners") => format!("{line},SECURE://127.0.0.1:{port}"),
            Some("advertised.listeners") => format!("{line},SECURE://localhost:{port}"),
            Some("listener.security.protocol.map") => format!("{line},SECURE:SASL_SSL"),
            _ => line.to_owned(),
        });
    }
    let ours = [
        "ssl.keystore.type=PEM",
        &format!("ssl.keystore.location={}", pem.display()),
        "sasl.enabled.mechanisms=SCRAM-SHA-512",
        "scram-sha-512.connections.max.reauth.ms=2000",
        "scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;",
    ];
    lines.extend(ours.iter().map(|setting| format!("listener.name.secure.{setting}")));
    let text = lines.join("\n");
    std::fs::write(&file, text).unwrap();
    servers.does("start", "kafka").await;
    port
}

fn scram(authority: &Authority) -> toml::Table {
    let text = format!(
        "\"security.protocol\" = \"SASL_SSL\"\n\"sasl.mechanism\" = \"SCRAM-SHA-512\"\n\"sasl.username\" = \"relay\"\n\
         \"sasl.password\" = \"{SECRET}\"\n\"ssl.ca.location\" = \"{}\"",
        authority.file().display()
    );
    text.parse().unwrap()
}

/// A broker that speaks TLS under the name `localhost`, with the user of the relay, whose password is another one still.
async fn stage_over_tls(name: &str, authority: &Authority) -> (Servers, u16, Stage) {
    let servers = Servers::start(&["--only", "kafka"]).await;
    let port = secure(&servers, &authority.sign("localhost").await).await;
    let stage = Stage::new(Database::migrated(name).await, Kafka::create_on(servers.kafka(), name)).await;
    for topic in &stage.topics {
        allow(&stage.kafka, topic, Operation::Write).await;
        allow(&stage.kafka, topic, Operation::Describe).await;
    }
    set_password(&stage.kafka, "relay", "another").await;
    (servers, port, stage)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_with_a_certificate_that_does_not_fit_is_waited_for() {
    let (authority, stranger) = tokio::join!(Authority::create(), Authority::create());
    let (_servers, port, mut stage) = stage_over_tls("kafka_with_a_certificate", &authority).await;
    let tries = if is_long() { 3.0 } else { 1.0 };
    let cases = [
        ("a stranger", format!("localhost:{port}"), &stranger),
        ("another host", format!("127.0.0.1:{port}"), &authority),
    ];
    for (whose, brokers, trusted) in cases {
        stage.relay = stage.relay.set("kafka.brokers", brokers).set("kafka.properties", scram(trusted));
        stage.relay.start();
        let words = ["SSL handshake failed", "certificate could not be verified", "ssl.ca.location", "carry the names"];
        let seen = stage.seen("waiting", &words).await;
        is_retried(&stage, "kafka", tries).await;
        keeps_the_secret(&stage).await;
        stage.relay.kill().await;
        tell(&format!("Kafka shows the certificate of {whose}"), &seen, None, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_that_refuses_the_password_is_waited_for() {
    let authority = Authority::create().await;
    let (_servers, port, mut stage) = stage_over_tls("kafka_that_refuses", &authority).await;
    let properties = scram(&authority);
    stage.relay = stage.relay.set("kafka.brokers", format!("localhost:{port}")).set("kafka.properties", properties);
    stage.relay.start();
    let wrong = stage.seen("waiting", &["invalid credentials", "sasl.password"]).await;
    keeps_the_secret(&stage).await;
    set_password(&stage.kafka, "relay", SECRET).await;
    let first = stage.recovers().await;

    // and when it is changed while events flow, and changed back
    let storm = Storm::start(&stage.database, stage.plan(8)).await;
    storm.has_committed(200).await;
    set_password(&stage.kafka, "relay", "another").await;
    let changed = stage.seen("waiting", &["invalid credentials", "sasl.password"]).await;
    stage.note_open().await;
    set_password(&stage.kafka, "relay", SECRET).await;
    let recovered = stage.recovers().await;
    storm.stop().await;
    keeps_the_secret(&stage).await;
    let verdict = stage.all_is_well().await;
    tell("Kafka refuses the password", &wrong, Some(first), 0);
    tell("Kafka's password is changed while events flow", &changed, Some(recovered), verdict.duplicates.count);
}
