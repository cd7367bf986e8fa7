//! `dead_letter`: the event goes to another topic with the reason in headers, and its stream goes on without it.

use super::are_parked;
use crate::delivery::{arrive, metric, outboxes, stop, values, write};
use crate::support::kafka::Kafka;
use crate::support::postgres::{Database, Role};
use crate::support::relay::Relay;

#[tokio::test]
async fn an_event_goes_to_the_dead_letter_topic_with_the_reason_and_its_stream_goes_on() {
    const NAME: &str = "an_event_goes_to_the_dead_letter_topic";
    let (database, kafka) = (Database::migrated(NAME).await, Kafka::create(NAME));
    let topic = kafka.create_topic_with("order", 1, &[("max.message.bytes", "20000")]).await;
    let dead = kafka.create_topic_with("dead", 1, &[("max.message.bytes", "100000")]).await;
    let config = format!(
        "[[outbox]]\nname = 'default'\non_reject = {{ dead_letter = '{dead}' }}
         [[outbox.route]]\nwhen.event_type = 'Good'\ntopic = '{topic}'\non_reject = {{ dead_letter = '{dead}' }}"
    );
    write(&database, "insert into outbox.events (aggregate_type, aggregate_id, event_type, payload, headers) values
        ('order', '7', 'Good', '1', '{}'), ('order', '7', 'Odd', '2', '{\"tenant\": \"a\"}'), ('order', '7', 'Good', '3', '{}'),
        ('order', '7', 'Good', to_jsonb(repeat('x', 40000)), '{}'), ('order', '7', 'Good', '5', '{}'),
        ('order', '8', 'Good', to_jsonb(repeat('x', 200000)), '{}'), ('order', '8', 'Good', '7', '{}'), ('order', '7', 'Good', '8', '{}')").await;
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await.set("outbox", outboxes(&config));
    relay.start();

    let records = arrive(&mut kafka.reader(&[&topic]), 4, &relay).await;
    assert_eq!(values(&records), ["1", "3", "5", "8"]);
    let letters = arrive(&mut kafka.reader(&[&dead]), 2, &relay).await;
    let header = |letter: usize, name: &str| letters[letter].header(name).map(str::to_owned);
    assert_eq!(letters[0].value.as_deref(), Some(&b"2"[..]));
    assert_eq!(letters[0].key.as_deref(), Some(&b"7"[..]));
    assert_eq!(header(0, "dead-letter-code").as_deref(), Some("no_route"));
    assert_eq!(header(0, "dead-letter-outbox").as_deref(), Some("default"));
    assert_eq!(header(0, "dead-letter-headers").as_deref(), Some("{\"tenant\": \"a\"}"));
    assert_eq!(header(0, "type").as_deref(), Some("Odd"));
    assert_eq!(header(1, "dead-letter-code").as_deref(), Some("too_large"));
    assert!(
        header(1, "dead-letter-reason").unwrap().contains("max.message.bytes"),
        "{:?}",
        header(1, "dead-letter-reason")
    );

    // what the dead-letter topic does not take either is parked, and lost to nobody
    let found = are_parked(&relay, 1).await;
    assert_eq!(
        (&found[0]["aggregate_id"], &found[0]["events"], &found[0]["code"]),
        (&"8".into(), &2.into(), &"too_large".into())
    );
    assert!(found[0]["reason"].as_str().unwrap().contains("dead letter"), "{found:?}");
    let counted = metric(&relay, "outboxd_events_dead_lettered_total{outbox=\"default\",lane=\"0\"}").await;
    assert_eq!(counted, Some(2.0));
    for (code, times) in [("no_route", 1.0), ("too_large", 2.0)] {
        let name = format!("outboxd_rejections_total{{outbox=\"default\",lane=\"0\",reason=\"{code}\"}}");
        assert_eq!(metric(&relay, &name).await, Some(times), "{code}");
    }
    stop(&mut relay).await;
}
