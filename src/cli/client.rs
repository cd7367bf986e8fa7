//! Asks a running daemon. A request of one line and an answer that ends with the connection need no HTTP client.

use anyhow::{Context, bail};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A daemon on the same machine answers within milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);

/// Gets the body of a path from the daemon that listens at `listen`.
pub(super) async fn get(listen: SocketAddr, path: &str) -> anyhow::Result<String> {
    tokio::time::timeout(PATIENCE, ask(reachable(listen), path)).await.context("the daemon does not answer in time")?
}

async fn ask(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nhost: {address}\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the daemon's answer is not HTTP")?;
    if !head.lines().next().unwrap_or_default().contains(" 200 ") {
        bail!("the daemon answers: {}", head.lines().next().unwrap_or_default());
    }
    Ok(body.to_owned())
}

/// Who listens everywhere is asked here.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen {
        SocketAddr::V4(_) if listen.ip().is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) if listen.ip().is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        _ => listen.ip(),
    };
    SocketAddr::new(ip, listen.port())
}
