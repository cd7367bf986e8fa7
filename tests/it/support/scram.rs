//! Users of Kafka whose passwords the cluster keeps: SCRAM-SHA-512.

use std::path::Path;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::certificates::openssl;
use super::kafka::Kafka;

const ITERATIONS: u32 = 4096;
const SALT: &str = "73616c7420666f7220746573747321";

/// Makes a user, or gives it another password: `AlterUserScramCredentials` (51) version 0, by hand, since librdkafka's own call
/// is not bound in Rust. For new log-ins only.
pub(crate) async fn set_password(kafka: &Kafka, user: &str, password: &str) {
    let text = |bytes: &[u8]| [&[u8::try_from(bytes.len() + 1).unwrap()][..], bytes].concat(); // a short one
    let iterations = ITERATIONS.to_be_bytes();
    let sha_512 = [2];
    let upsertion =
        [&text(user.as_bytes())[..], &sha_512, &iterations, &text(&hex(SALT)), &text(&salted(password).await), &[0]]
            .concat();
    // API, version, correlation, no client, no tags; no deletion, one upsertion, no tags
    let request = [&[0, 51, 0, 0, 0, 0, 0, 7, 255, 255, 0][..], &[1, 2], &upsertion, &[0]].concat();
    let mut stream = TcpStream::connect(kafka.brokers()).await.unwrap();
    stream.write_u32(u32::try_from(request.len()).unwrap()).await.unwrap();
    stream.write_all(&request).await.unwrap();
    let length = stream.read_u32().await.unwrap();
    let mut answer = vec![0; length as usize];
    stream.read_exact(&mut answer).await.unwrap();
    // correlation 7, no tags, throttled for 0 ms, one result: the user, error 0
    let expected = [&[0, 0, 0, 7, 0, 0, 0, 0, 0, 2][..], &text(user.as_bytes()), &[0, 0]].concat();
    assert_eq!(answer[..expected.len()], expected, "{answer:?}");
}

/// PBKDF2, which is SCRAM's `Hi`.
async fn salted(password: &str) -> Vec<u8> {
    let options = [
        "digest:SHA512".to_owned(),
        format!("pass:{password}"),
        format!("hexsalt:{SALT}"),
        format!("iter:{ITERATIONS}"),
    ];
    let options: Vec<&str> = options.iter().flat_map(|option| ["-kdfopt", option.as_str()]).collect();
    let printed = openssl(Path::new("/"), &[&["kdf", "-keylen", "64"][..], &options, &["PBKDF2"]].concat()).await;
    hex(printed.trim().replace(':', "").as_str())
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}
