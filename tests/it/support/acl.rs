//! The user `relay` of Kafka, who may do what ACLs allow.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use toml::Table;

use super::kafka::Kafka;

/// What an ACL allows, as the protocol numbers it.
#[derive(Clone, Copy)]
pub(crate) enum Operation {
    Write = 4,
    Describe = 8,
}

/// Allows the user `relay` something on a topic. librdkafka's own call for it is not bound in Rust, so the request is
/// made by hand: `CreateAcls` (30) version 1, of one ACL.
pub(crate) async fn allow(kafka: &Kafka, topic: &str, operation: Operation) {
    let answer = ask(kafka, 30, &acl(topic, operation)).await;
    // throttled for 0 ms, one result, error 0
    assert_eq!(answer[..10], [0, 0, 0, 0, 0, 0, 0, 1, 0, 0], "{answer:?}");
}

/// Takes that back: `DeleteAcls` (31) version 1, of the ACLs that match one filter.
pub(crate) async fn remove(kafka: &Kafka, topic: &str, operation: Operation) {
    let answer = ask(kafka, 31, &acl(topic, operation)).await;
    // throttled for 0 ms, one filter, error 0, no message, one ACL that matched
    assert_eq!(answer[..16], [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 255, 255, 0, 0, 0, 1], "{answer:?}");
}

/// One ACL of the user `relay`, which is also the filter that matches it.
fn acl(topic: &str, operation: Operation) -> Vec<u8> {
    let (a_topic, literally, allowed) = ([2], [3], [3]);
    let who = [text("User:relay"), text("*"), vec![operation as u8]].concat();
    [&[0, 0, 0, 1][..], &a_topic, &text(topic), &literally, &who, &allowed].concat()
}

fn text(text: &str) -> Vec<u8> {
    [&u16::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat()
}

/// Asks in version 1 of an API, and answers what follows the correlation.
async fn ask(kafka: &Kafka, api: u8, body: &[u8]) -> Vec<u8> {
    let header = [&[0, api, 0, 1, 0, 0, 0, 7][..], &text("tests")].concat();
    let mut stream = TcpStream::connect(kafka.brokers()).await.unwrap();
    stream.write_u32(u32::try_from(header.len() + body.len()).unwrap()).await.unwrap();
    stream.write_all(&[&header, body].concat()).await.unwrap();
    let length = stream.read_u32().await.unwrap();
    let mut answer = vec![0; length as usize];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer[..4], [0, 0, 0, 7], "{answer:?}");
    answer.split_off(4)
}

/// The user `relay`, who may do what ACLs allow.
pub(crate) fn sasl(password: &str) -> Table {
    let lines = [
        r#""security.protocol" = "SASL_PLAINTEXT""#,
        r#""sasl.mechanism" = "PLAIN""#,
        r#""sasl.username" = "relay""#,
        &format!("\"sasl.password\" = \"{password}\""),
    ];
    lines.join("\n").parse().unwrap()
}
