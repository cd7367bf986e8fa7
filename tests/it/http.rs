//! What the daemon says over HTTP: health, readiness, status, metrics.

use std::collections::{BTreeMap, BTreeSet};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::delivery::{arrive, metric, numbers, values, write_numbers};
use crate::guards;
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::kafka::Kafka;
use crate::support::postgres::{Database, Role, say};
use crate::support::relay::Relay;

const LAG: &str = r#"outboxd_lag_seconds{outbox="default",lane="0"}"#;
const BACKLOG: &str = r#"outboxd_backlog_events{outbox="default",lane="0"}"#;
const PUBLISHED: &str = r#"outboxd_events_published_total{outbox="default",lane="0"}"#;
const READY: &str = r#"outboxd_ready{outbox="default",lane="0"}"#;

/// Where the relay listens, as its configuration says.
async fn listen(relay: &Relay) -> String {
    let shown = relay.command(&["config", "show", "--output", "json"]).await;
    let shown: serde_json::Value =
        serde_json::from_str(&shown.stdout).unwrap_or_else(|error| panic!("{shown}: {error}"));
    shown["http"]["listen"].as_str().expect("an address").to_owned()
}

/// Status, head in lower case, body.
async fn ask(address: &str, method: &str, path: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{method} {path} HTTP/1.0\r\nhost: {address}\r\ncontent-length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer with a head");
    (head[9..12].parse().unwrap(), head.to_lowercase(), body.to_owned())
}

#[tokio::test]
async fn each_path_has_its_shape_and_others_are_refused() {
    const NAME: &str = "each_path_has_its_shape";
    let database = Database::migrated(NAME).await;
    let kafka = Kafka::create(NAME);
    let topic = kafka.create_topic("order", 1).await;
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await;
    relay.start();
    relay.ready().await;
    write_numbers(&database, "order", 1..=5).await;
    arrive(&mut kafka.reader(&[&topic]), 5, &relay).await;
    eventually("all five are counted", PATIENCE, async || {
        let (published, backlog) = (metric(&relay, PUBLISHED).await, metric(&relay, BACKLOG).await);
        if (published, backlog) == (Some(5.0), Some(0.0)) { Ok(()) } else { Err(format!("{published:?}, {backlog:?}")) }
    })
    .await;

    let address = listen(&relay).await;
    let cases = [
        ("GET", "/livez", 200, "text/plain", Some("ok\n")),
        ("GET", "/readyz", 200, "text/plain", Some("ok\n")),
        ("GET", "/status", 200, "application/json", None),
        ("GET", "/metrics", 200, "application/openmetrics-text; version=1.0.0; charset=utf-8", None),
        ("GET", "/", 404, "", None),
        ("GET", "/livez/", 404, "", None),
        ("GET", "/../etc/passwd", 404, "", None),
        ("POST", "/livez", 405, "", None),
        ("POST", "/status", 405, "", None),
        ("DELETE", "/metrics", 405, "", None),
        ("POST", "/nowhere", 404, "", None),
    ];
    for (method, path, code, kind, body) in cases {
        let (answered, head, said) = ask(&address, method, path).await;
        assert_eq!(answered, code, "{method} {path}: {head}\n{said}");
        assert!(kind.is_empty() || head.contains(&format!("content-type: {kind}")), "{method} {path}: {head}");
        assert!(body.is_none_or(|body| body == said), "{method} {path}: {said}");
    }

    let status = relay.status().await.unwrap();
    assert_eq!((&status["version"], &status["ready"]), (&env!("CARGO_PKG_VERSION").into(), &true.into()));
    let lane = &status["lanes"][0];
    for (key, expected) in [
        ("outbox", serde_json::json!("default")),
        ("lane", 0.into()),
        ("state", "relaying".into()),
        ("ready", true.into()),
        ("waits_for", serde_json::Value::Null),
        ("hint", serde_json::Value::Null),
        ("published_events", 5.into()),
        ("in_flight_events", 0.into()),
        ("lag_events", 0.into()),
        ("lag_seconds", 0.0.into()),
    ] {
        assert_eq!(lane[key], expected, "{key}: {status}");
    }
    assert!(lane["epoch"].is_i64() && lane["cursor"].is_string(), "{status}");
    assert!(status["lanes"].as_array().is_some_and(|lanes| lanes.len() == 1), "{status}");

    assert_is_open_metrics(&relay.get("/metrics").await.unwrap().body);
}

/// Every sample belongs to a family that has a type and a help, once; counters end in `_total`; the text has an end.
fn assert_is_open_metrics(text: &str) {
    assert!(text.ends_with("# EOF\n"), "{text}");
    let mut kinds: BTreeMap<&str, &str> = BTreeMap::new();
    let mut helped = BTreeSet::new();
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            assert!(kinds.insert(name, kind).is_none(), "{name} comes twice: {text}");
        } else if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            assert!(helped.insert(name) && !help.is_empty(), "{line}");
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            let family = [name, name.trim_end_matches("_total"), name.trim_end_matches("_info")];
            let kind = family.iter().find_map(|family| kinds.get(family));
            let kind = kind.unwrap_or_else(|| panic!("a sample without a type: {line}"));
            assert!(name.starts_with("outboxd_"), "{line}");
            assert_eq!(*kind == "counter", name.ends_with("_total"), "{line}");
            let is_of_process = ["outboxd_build_info", "outboxd_config_reloads_total"].contains(&name);
            assert!(is_of_process || line.contains("{outbox=\"default\",lane=\"0\""), "{line}");
        }
    }
    let missing: Vec<_> = kinds.keys().filter(|name| !helped.contains(**name)).collect();
    assert!(missing.is_empty(), "without a help: {missing:?}");
    for name in ["outboxd_events_published", "outboxd_lag_seconds", "outboxd_ready", "outboxd_cursor_saves"] {
        assert!(kinds.contains_key(name), "{name}: {text}");
    }
}

#[tokio::test]
async fn the_lag_grows_while_events_wait_and_returns_to_nothing() {
    const NAME: &str = "the_lag_grows_while_events_wait";
    let database = Database::migrated(NAME).await;
    let kafka = Kafka::create(NAME);
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await;
    relay.start();
    relay.ready().await;
    write_numbers(&database, "late", 1..=3).await;
    let lag = async |more_than: f64| {
        eventually("the lag grows", PATIENCE, async || {
            let lag = metric(&relay, LAG).await;
            lag.filter(|lag| *lag > more_than).ok_or_else(|| format!("{lag:?}, not more than {more_than}"))
        })
        .await
    };
    let first = lag(0.0).await;
    lag(first).await;
    assert_eq!((metric(&relay, BACKLOG).await, metric(&relay, READY).await), (Some(3.0), Some(0.0)));
    let status = relay.status().await.unwrap();
    assert!(status["lanes"][0]["lag_seconds"].as_f64().is_some_and(|lag| lag > 0.0), "{status}");
    assert_eq!((&status["lanes"][0]["lag_events"], &status["ready"]), (&3.into(), &false.into()), "{status}");

    let topic = kafka.create_topic("late", 1).await;
    assert_eq!(values(&arrive(&mut kafka.reader(&[&topic]), 3, &relay).await), numbers(1..=3));
    eventually("the lag is nothing", PATIENCE, async || {
        let (lag, backlog) = (metric(&relay, LAG).await, metric(&relay, BACKLOG).await);
        if (lag, backlog) == (Some(0.0), Some(0.0)) { Ok(()) } else { Err(format!("{lag:?} s, {backlog:?} events")) }
    })
    .await;
    assert_eq!((metric(&relay, PUBLISHED).await, metric(&relay, READY).await), (Some(3.0), Some(1.0)));
}

/// What was seen before is not taken for what is.
#[tokio::test]
async fn a_lag_that_nobody_can_see_is_no_number_and_the_log_says_why() {
    const NAME: &str = "a_lag_that_nobody_can_see";
    let database = Database::migrated(NAME).await;
    let kafka = Kafka::create(NAME);
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await;
    relay.start();
    relay.ready().await;
    let user = url::Url::parse(&database.url(Role::Relay)).unwrap().username().to_owned();
    let limit = async |most: i32| {
        say(&mut database.connect(Role::Admin).await, &format!("alter role {user} connection limit {most}")).await;
    };
    limit(2).await; // the lane itself has two, and they live
    eventually("the lag is no number", PATIENCE, async || {
        let monitor = format!(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity where usename = '{user}' and query like '%pg_prepared_xacts%'"
        );
        let _: i64 = guards::ask(&database, &monitor).await;
        let (lag, backlog) = (metric(&relay, LAG).await, metric(&relay, BACKLOG).await);
        if lag.is_some_and(f64::is_nan) && backlog.is_some_and(f64::is_nan) { Ok(()) } else { Err(format!("{lag:?}, {backlog:?}")) }
    })
    .await;
    eventually("the log says why", PATIENCE, async || {
        let log = relay.log();
        if log.contains("nobody can see how much waits: ") && log.contains("too many connections for role") {
            Ok(())
        } else {
            Err(log)
        }
    })
    .await;
    let status = relay.status().await.unwrap();
    assert_eq!(
        (&status["lanes"][0]["state"], &status["lanes"][0]["lag_seconds"]),
        (&"relaying".into(), &serde_json::Value::Null)
    );

    limit(-1).await;
    eventually("the lag is nothing", PATIENCE, async || {
        let lag = metric(&relay, LAG).await;
        if lag == Some(0.0) { Ok(()) } else { Err(format!("{lag:?}")) }
    })
    .await;
}
