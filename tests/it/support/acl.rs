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
    let text = |text: &str| [&u16::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat();
    let header = [&[0, 30, 0, 1, 0, 0, 0, 7][..], &text("tests")].concat();
    let (a_topic, literally, allowed) = ([2], [3], [3]);
    let who = [text("User:relay"), text("*"), vec![operation as u8]].concat();
    let body = [&[0, 0, 0, 1][..], &a_topic, &text(topic), &literally, &who, &allowed].concat();
    let request = [header, body].concat();
    let mut stream = TcpStream::connect(kafka.brokers()).await.unwrap();
    stream.write_u32(u32::try_from(request.len()).unwrap()).await.unwrap();
    stream.write_all(&request).await.unwrap();
    let length = stream.read_u32().await.unwrap();
    let mut answer = vec![0; length as usize];
    stream.read_exact(&mut answer).await.unwrap();
    // correlation 7, throttled for 0 ms, one result, error 0
    assert_eq!(answer[..14], [0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0], "{answer:?}");
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
