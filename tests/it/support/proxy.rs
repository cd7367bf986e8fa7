//! A TCP proxy between the daemon and Postgres: the network as a test wants it.
//!
//! For Kafka it is no use: after the first answer a client connects to the listeners that the broker advertises, past
//! the proxy. A test that wants Kafka away stops, pauses or kills a broker of its own by `deploy/servers`.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use url::Url;

/// What happens to the bytes of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Flow {
    /// They go on.
    #[default]
    Pass,
    /// They wait until the flow is another; the connection stays open. A black hole that ends.
    Hold,
    /// They are gone; what comes later goes on again.
    Swallow,
}

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the daemon to the server.
    Requests,
    /// From the server to the daemon.
    Answers,
}

/// The state of the network, seen by every connection.
#[derive(Clone, Copy, Debug, Default)]
struct Weather {
    requests: Flow,
    answers: Flow,
    delay: Duration,
    refusing: bool,
    /// A connection lives as long as this stays what it was when it came.
    cuts: u64,
}

/// Forwards to one server until it is dropped.
pub(crate) struct Proxy {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    refused: watch::Receiver<bool>,
    _running: JoinSet<()>,
}

impl Proxy {
    /// Listens on a free port and forwards to `server`, a `host:port`.
    pub(crate) async fn start(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (weather, seen) = watch::channel(Weather::default());
        let (refusing, refused) = watch::channel(false);
        let mut running = JoinSet::new();
        running.spawn(accept(listener, server.to_owned(), seen, refusing));
        Self { address, weather, refused, _running: running }
    }

    /// Forwards to the server of a Postgres URL, and answers with that URL through the proxy.
    pub(crate) async fn before(url: &str) -> (Self, String) {
        let mut url = Url::parse(url).expect("a URL of Postgres");
        let server = format!("{}:{}", url.host_str().unwrap_or("127.0.0.1"), url.port().unwrap_or(5432));
        let proxy = Self::start(&server).await;
        url.set_host(Some("127.0.0.1")).expect("a URL with a host");
        url.set_port(Some(proxy.address.port())).expect("a URL with a host");
        (proxy, url.into())
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends all connections; new ones are welcome.
    pub(crate) fn cut(&self) {
        self.weather.send_modify(|weather| weather.cuts += 1);
    }

    /// Refuses new connections, from when it returns. Those that are open go on.
    pub(crate) async fn refuse(&mut self) {
        self.weather.send_modify(|weather| weather.refusing = true);
        self.refused.wait_for(|refused| *refused).await.expect("the proxy runs");
    }

    /// Takes new connections again, from when it returns.
    pub(crate) async fn welcome(&mut self) {
        self.weather.send_modify(|weather| weather.refusing = false);
        self.refused.wait_for(|refused| !*refused).await.expect("the proxy runs");
    }

    /// Sets the fate of what is sent in one direction, on all connections, from now on.
    pub(crate) fn flow(&self, direction: Direction, flow: Flow) {
        self.weather.send_modify(|weather| match direction {
            Direction::Requests => weather.requests = flow,
            Direction::Answers => weather.answers = flow,
        });
    }

    /// Lets everything take this much longer, each way.
    pub(crate) fn delay(&self, delay: Duration) {
        self.weather.send_modify(|weather| weather.delay = delay);
    }
}

/// Takes connections while they are welcome. Refusing closes the listener, so that the kernel says no.
async fn accept(
    listener: TcpListener,
    server: String,
    mut weather: watch::Receiver<Weather>,
    refusing: watch::Sender<bool>,
) {
    let address = listener.local_addr().unwrap();
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        let refuse = weather.borrow_and_update().refusing;
        if refuse {
            listener = None;
        } else if listener.is_none() {
            listener = Some(TcpListener::bind(address).await.expect("the port is still ours"));
        }
        refusing.send_replace(refuse);
        let next = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = weather.changed() => if changed.is_err() { return },
            client = next => {
                let Ok((client, _)) = client else { continue };
                connections.spawn(forward(client, server.clone(), weather.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Serves one connection until either side ends it or it is cut.
async fn forward(client: TcpStream, server: String, mut weather: watch::Receiver<Weather>) {
    let born = weather.borrow().cuts;
    let Ok(server) = TcpStream::connect(&server).await else { return };
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let requests = pump(from_client, to_server, weather.clone(), |weather| weather.requests);
    let answers = pump(from_server, to_client, weather.clone(), |weather| weather.answers);
    tokio::select! {
        () = requests => {}
        () = answers => {}
        _ = weather.wait_for(|weather| weather.cuts != born) => {}
    }
}

/// Carries one direction. Looks at the weather after it has read: what was read before a hold waits, too.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
    flow: fn(&Weather) -> Flow,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let delay = weather.borrow().delay;
        if !delay.is_zero() {
            sleep(delay).await; // the slowness is what was asked for
        }
        let Ok(now) = weather.wait_for(|weather| flow(weather) != Flow::Hold).await.map(|now| flow(&now)) else {
            return;
        };
        if now == Flow::Pass && to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::eventually::PATIENCE;
    use super::*;
    use tokio::time::{Instant, timeout};

    /// A server that answers each byte with the next one and tells which it had, the proxy before it, and a client.
    async fn counting() -> (Proxy, TcpStream, watch::Receiver<u8>, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (had, last) = watch::channel(0);
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut clients = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                let had = had.clone();
                clients.spawn(async move {
                    while let Ok(byte) = client.read_u8().await {
                        had.send_replace(byte);
                        if client.write_u8(byte + 1).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        let proxy = Proxy::start(&address).await;
        let client = TcpStream::connect(proxy.address()).await.unwrap();
        (proxy, client, last, server)
    }

    async fn ask(client: &mut TcpStream, byte: u8) -> Option<u8> {
        client.write_u8(byte).await.ok()?;
        answer(client).await
    }

    async fn answer(client: &mut TcpStream) -> Option<u8> {
        timeout(PATIENCE, client.read_u8()).await.expect("an answer or an end").ok()
    }

    #[tokio::test]
    async fn a_cut_ends_what_is_open_and_a_refusal_what_would_come() {
        let (mut proxy, mut client, _last, _server) = counting().await;
        assert_eq!(ask(&mut client, 1).await, Some(2));
        proxy.refuse().await;
        assert!(TcpStream::connect(proxy.address()).await.is_err());
        assert_eq!(ask(&mut client, 3).await, Some(4), "open connections go on");
        proxy.cut();
        assert_eq!(answer(&mut client).await, None);
        proxy.welcome().await;
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(ask(&mut client, 5).await, Some(6));
    }

    #[tokio::test]
    async fn held_bytes_arrive_in_the_end() {
        let (proxy, mut client, mut last, _server) = counting().await;
        proxy.flow(Direction::Answers, Flow::Hold);
        client.write_u8(1).await.unwrap();
        last.wait_for(|last| *last == 1).await.unwrap();
        proxy.flow(Direction::Requests, Flow::Hold);
        proxy.flow(Direction::Answers, Flow::Pass);
        assert_eq!(answer(&mut client).await, Some(2));
        client.write_u8(5).await.unwrap();
        proxy.flow(Direction::Requests, Flow::Pass);
        assert_eq!(answer(&mut client).await, Some(6));
    }

    #[tokio::test]
    async fn an_answer_can_be_lost_after_the_work_was_done() {
        let (proxy, mut client, mut last, _server) = counting().await;
        assert_eq!(ask(&mut client, 1).await, Some(2));
        proxy.flow(Direction::Answers, Flow::Swallow);
        client.write_u8(3).await.unwrap();
        last.wait_for(|last| *last == 3).await.unwrap();
        proxy.cut();
        assert_eq!(answer(&mut client).await, None);
    }

    #[tokio::test]
    async fn a_delay_makes_both_ways_longer() {
        let (proxy, mut client, _last, _server) = counting().await;
        proxy.delay(Duration::from_millis(20));
        let started = Instant::now();
        assert_eq!(ask(&mut client, 1).await, Some(2));
        assert!(started.elapsed() >= Duration::from_millis(40));
    }

    #[tokio::test]
    async fn a_postgres_url_leads_through_the_proxy() {
        let (proxy, url) = Proxy::before("postgres://app@localhost:6000/shop").await;
        let url = Url::parse(&url).unwrap();
        assert_eq!((url.host_str(), url.path(), url.username()), (Some("127.0.0.1"), "/shop", "app"));
        assert_eq!(url.port(), Some(proxy.address().port()));
    }
}
