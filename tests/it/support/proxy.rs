//! A TCP proxy between the daemon and a server: the network as a test wants it.
//!
//! A client of Kafka connects to what the broker advertises, past a proxy that it was told of. So the proxy comes first
//! ([`Proxy::first`]), and a broker of the test's own is told to advertise it
//! ([`Servers::behind_proxy`](super::servers::Servers::behind_proxy)).

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::Rng as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use url::Url;

use super::eventually::PATIENCE;
use super::wire::{Answered, Answers, Protocol, Request, Requests, Seen};

/// Below the ports that the kernel gives to outgoing connections: while the listener is closed, none of those takes it.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// What is read and waits for its turn, in one direction of a connection.
const PIECES_WAITING: usize = 64;

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

/// What becomes of the request in a trap. Then its connection is reset, and nobody is let in until [`Proxy::welcome`];
/// but not one that was silenced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It does not reach the server.
    Unheard,
    /// The server does it, and its answer is lost.
    Unanswered,
    /// The server does it, and its answer arrives.
    Answered,
    /// It is gone, as is all that comes behind it: the connection stays open, and others go on.
    Silenced,
}

/// So many bytes at once, with a pause before the next ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Drip {
    pub(crate) bytes: usize,
    pub(crate) pause: Duration,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum End {
    /// After what was sent, as when a process ends.
    #[default]
    Closed,
    /// At once, as when a firewall has forgotten it.
    Reset,
}

/// The state of the network, seen by every connection.
#[derive(Clone, Debug, Default)]
struct Weather {
    /// Where the server is, once there is one.
    server: Option<String>,
    requests: Flow,
    answers: Flow,
    delay: Duration,
    drip: Option<Drip>,
    refusing: bool,
    shut: bool,
    /// A connection lives as long as this stays what it was when it came.
    cuts: u64,
    end: End,
    /// How many traps have had their request.
    sprung: u64,
    /// How many requests of Kafka the server has had whole and has not answered.
    unanswered: usize,
}

/// What all connections share.
struct Sky {
    weather: watch::Sender<Weather>,
    protocol: Protocol,
    trap: Mutex<Option<(Request, Fate)>>,
}

/// Forwards to one server until it is dropped.
pub(crate) struct Proxy {
    address: SocketAddr,
    sky: Arc<Sky>,
    refused: watch::Receiver<bool>,
    _running: JoinSet<()>,
}

impl Proxy {
    /// Listens on a free port and forwards to `server`, a `host:port`.
    pub(crate) async fn start(server: &str) -> Self {
        let proxy = Self::speaking(Protocol::Kafka).await;
        proxy.forwards_to(server);
        proxy
    }

    /// Listens on a free port before there is a broker: see [`Self::forwards_to`].
    pub(crate) async fn first() -> Self {
        Self::speaking(Protocol::Kafka).await
    }

    /// Forwards to the server of a Postgres URL, and answers with that URL through the proxy.
    pub(crate) async fn before(url: &str) -> (Self, String) {
        let mut url = Url::parse(url).expect("a URL of Postgres");
        let server = format!("{}:{}", url.host_str().unwrap_or("127.0.0.1"), url.port().unwrap_or(5432));
        let proxy = Self::speaking(Protocol::Postgres).await;
        proxy.forwards_to(&server);
        url.set_host(Some("127.0.0.1")).expect("a URL with a host");
        url.set_port(Some(proxy.address.port())).expect("a URL with a host");
        (proxy, url.into())
    }

    async fn speaking(protocol: Protocol) -> Self {
        let listener = loop {
            let port = rand::rng().random_range(PORTS);
            if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)).await {
                break listener;
            }
        };
        let address = listener.local_addr().unwrap();
        let sky = Arc::new(Sky { weather: watch::Sender::new(Weather::default()), protocol, trap: Mutex::new(None) });
        let (refusing, refused) = watch::channel(false);
        let mut running = JoinSet::new();
        running.spawn(accept(listener, Arc::clone(&sky), refusing));
        Self { address, sky, refused, _running: running }
    }

    /// From now on there is a server. Whoever came before was sent away.
    pub(crate) fn forwards_to(&self, server: &str) {
        self.sky.weather.send_modify(|weather| weather.server = Some(server.to_owned()));
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends all connections; new ones are welcome.
    pub(crate) fn cut(&self) {
        self.cut_by(End::Closed);
    }

    /// Resets all connections: what is under way is gone. New ones are welcome.
    pub(crate) fn reset(&self) {
        self.cut_by(End::Reset);
    }

    fn cut_by(&self, end: End) {
        self.sky.weather.send_modify(|weather| (weather.cuts, weather.end) = (weather.cuts + 1, end));
    }

    /// Refuses new connections, from when it returns. Those that are open go on.
    pub(crate) async fn refuse(&mut self) {
        self.sky.weather.send_modify(|weather| weather.refusing = true);
        self.refused.wait_for(|refused| *refused).await.expect("the proxy runs");
    }

    /// Resets new connections, from now on. Those that are open go on.
    pub(crate) fn shut(&self) {
        self.sky.weather.send_modify(|weather| weather.shut = true);
    }

    /// Takes new connections again, from when it returns.
    pub(crate) async fn welcome(&mut self) {
        self.sky.weather.send_modify(|weather| (weather.refusing, weather.shut) = (false, false));
        self.refused.wait_for(|refused| !*refused).await.expect("the proxy runs");
    }

    /// Sets the fate of what is sent in one direction, on all connections, from now on.
    pub(crate) fn flow(&self, direction: Direction, flow: Flow) {
        self.sky.weather.send_modify(|weather| match direction {
            Direction::Requests => weather.requests = flow,
            Direction::Answers => weather.answers = flow,
        });
    }

    /// Lets everything take this much longer, each way.
    pub(crate) fn delay(&self, delay: Duration) {
        self.sky.weather.send_modify(|weather| weather.delay = delay);
    }

    /// Lets few bytes through at a time, on each connection, each way; `None` ends it.
    pub(crate) fn drip(&self, drip: Option<Drip>) {
        self.sky.weather.send_modify(|weather| weather.drip = drip);
    }

    /// Waits until the server has answered every request of Kafka that it has had. While requests are held, it does nothing
    /// more from then on.
    pub(crate) async fn is_quiet(&self) {
        let mut weather = self.sky.weather.subscribe();
        let quiet = timeout(PATIENCE, weather.wait_for(|weather| weather.unanswered == 0)).await.is_ok();
        assert!(quiet, "{} requests without an answer after {PATIENCE:?}", weather.borrow().unanswered);
    }

    /// Lays a trap for the next such request, on whichever connection it comes.
    pub(crate) fn trap(&self, request: Request, fate: Fate) -> Trap {
        let weather = self.sky.weather.subscribe();
        let before = weather.borrow().sprung;
        *self.sky.trap() = Some((request, fate));
        Trap { weather, before }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- proxy {}: {:?}", self.address, self.sky.weather.borrow());
        }
    }
}

/// A trap that was laid.
pub(crate) struct Trap {
    weather: watch::Receiver<Weather>,
    before: u64,
}

impl Trap {
    /// Waits until it has had its request, and that has met its fate.
    pub(crate) async fn sprung(mut self) {
        let sprung = self.weather.wait_for(|weather| weather.sprung > self.before);
        assert!(timeout(PATIENCE, sprung).await.is_ok(), "no such request came within {PATIENCE:?}");
    }
}

impl Sky {
    fn trap(&self) -> MutexGuard<'_, Option<(Request, Fate)>> {
        lock(&self.trap)
    }

    /// The request among these for which the trap was laid; it is laid no more.
    fn caught(&self, seen: &[Seen]) -> Option<(Seen, Fate)> {
        let mut trap = self.trap();
        let (request, fate) = (*trap)?;
        let seen = seen.iter().find(|seen| seen.is(request))?.clone();
        *trap = None;
        Some((seen, fate))
    }

    /// The connection says nothing more, until it is cut.
    async fn silence(&self) -> End {
        self.weather.send_modify(|weather| weather.sprung += 1);
        std::future::pending().await
    }

    /// Before the connection ends: so nobody comes in between.
    fn spring(&self) -> End {
        self.weather.send_modify(|weather| (weather.shut, weather.sprung) = (true, weather.sprung + 1));
        End::Reset
    }
}

/// Takes connections while they are welcome. Refusing closes the listener, so that the kernel says no.
async fn accept(listener: TcpListener, sky: Arc<Sky>, refusing: watch::Sender<bool>) {
    let address = listener.local_addr().unwrap();
    let mut weather = sky.weather.subscribe();
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
            changed = weather.changed() => changed.expect("the sender is ours"),
            client = next => {
                let Ok((client, _)) = client else { continue };
                let now = weather.borrow().clone();
                match now.server {
                    Some(server) if !now.shut => drop(connections.spawn(forward(client, server, now.cuts, Arc::clone(&sky)))),
                    _ => client.set_zero_linger().unwrap(),
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Serves one connection until either side ends it or it is cut.
async fn forward(mut client: TcpStream, server: String, born: u64, sky: Arc<Sky>) {
    let Ok(mut server) = TcpStream::connect(&server).await else { return };
    let mut weather = sky.weather.subscribe();
    let waiting = Mutex::new(None);
    let unanswered = Unanswered { sky: &sky, count: Mutex::new(0) };
    let end = {
        let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
        let requests = Way {
            sky: &sky,
            flow: |weather| weather.requests,
            tap: Tap::Requests(Requests::new(sky.protocol), &sky, &waiting, &unanswered),
        };
        let answers = Way {
            sky: &sky,
            flow: |weather| weather.answers,
            tap: Tap::Answers(Answers::new(sky.protocol), sky.protocol, &waiting, &unanswered),
        };
        tokio::select! {
            end = requests.carry(from_client, to_server) => end,
            end = answers.carry(from_server, to_client) => end,
            now = weather.wait_for(|weather| weather.cuts != born) => now.map_or(End::Closed, |now| now.end),
        }
    };
    if end == End::Reset {
        for stream in [&client, &server] {
            drop(stream.set_zero_linger()); // refused only where the other side was faster
        }
    }
}

/// Requests of one connection that the server has had whole and has not answered; it answers none that outlives its connection.
struct Unanswered<'s> {
    sky: &'s Sky,
    count: Mutex<usize>,
}

impl Unanswered<'_> {
    fn asked(&self, requests: usize) {
        *lock(&self.count) += requests;
        self.sky.weather.send_if_modified(|weather| {
            weather.unanswered += requests;
            false // nobody waits for more of them
        });
    }

    fn answered(&self, answers: usize) {
        let mut count = lock(&self.count);
        let known = answers.min(*count);
        *count -= known;
        self.sky.weather.send_if_modified(|weather| {
            weather.unanswered -= known;
            known > 0 && weather.unanswered == 0
        });
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        self.answered(usize::MAX);
    }
}

/// A request that was let into a trap and has no answer yet.
type Waiting = Mutex<Option<(Seen, Fate)>>;

/// One direction of a connection.
struct Way<'s> {
    sky: &'s Sky,
    flow: fn(&Weather) -> Flow,
    tap: Tap<'s>,
}

impl Way<'_> {
    /// Carries until there is no more, or until a trap ends it.
    async fn carry(self, from: ReadHalf<'_>, to: WriteHalf<'_>) -> End {
        let (pieces, next) = mpsc::channel(PIECES_WAITING);
        let weather = self.sky.weather.subscribe();
        let mut give = pin!(self.give(next, to));
        tokio::select! {
            end = &mut give => end,
            () = take(from, pieces, weather) => give.await,
        }
    }

    /// Looks at the weather just before it writes: what was read before a hold waits, too.
    async fn give(mut self, mut pieces: mpsc::Receiver<(Instant, Vec<u8>)>, mut to: WriteHalf<'_>) -> End {
        let (flow, mut weather) = (self.flow, self.sky.weather.subscribe());
        while let Some((due, piece)) = pieces.recv().await {
            sleep_until(due).await; // the slowness is what was asked for
            let Ok(now) = weather.wait_for(|weather| flow(weather) != Flow::Hold).await.map(|now| flow(&now)) else {
                break;
            };
            if now == Flow::Swallow {
                continue;
            }
            let what = self.tap.see(&piece);
            if matches!(what, Piece::Passes | Piece::IsLast) && write(&mut to, &piece, &weather).await.is_err() {
                break;
            }
            match what {
                Piece::IsLast | Piece::IsLost => return self.sky.spring(),
                Piece::IsTheEnd => return self.sky.silence().await,
                Piece::Passes | Piece::IsSwallowed => {}
            }
        }
        End::Closed
    }
}

async fn take(mut from: ReadHalf<'_>, pieces: mpsc::Sender<(Instant, Vec<u8>)>, weather: watch::Receiver<Weather>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let due = Instant::now() + weather.borrow().delay;
        if pieces.send((due, buffer[..read].to_vec())).await.is_err() {
            return;
        }
    }
}

/// Writes at once, or drop by drop for as long as the weather is so.
async fn write(to: &mut WriteHalf<'_>, mut piece: &[u8], weather: &watch::Receiver<Weather>) -> std::io::Result<()> {
    while !piece.is_empty() {
        let drip = weather.borrow().drip;
        let (now, later) = piece.split_at(drip.map_or(piece.len(), |drip| drip.bytes.min(piece.len())));
        to.write_all(now).await?;
        if let Some(drip) = drip {
            sleep(drip.pause).await; // the slowness is what was asked for
        }
        piece = later;
    }
    Ok(())
}

/// What becomes of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    Passes,
    /// It is gone, the connection goes on.
    IsSwallowed,
    /// It goes on, and the connection ends.
    IsLast,
    /// It is gone, and the connection ends.
    IsLost,
    /// It is gone, and nothing comes behind it.
    IsTheEnd,
}

/// Reads along, for the sake of traps and to know what is unanswered.
enum Tap<'s> {
    Requests(Requests, &'s Sky, &'s Waiting, &'s Unanswered<'s>),
    Answers(Answers, Protocol, &'s Waiting, &'s Unanswered<'s>),
}

impl Tap<'_> {
    fn see(&mut self, piece: &[u8]) -> Piece {
        match self {
            Self::Requests(requests, sky, waiting, unanswered) => {
                let seen = requests.take(piece);
                if sky.protocol == Protocol::Kafka {
                    unanswered.asked(seen.len());
                }
                let Some(caught) = sky.caught(&seen) else { return Piece::Passes };
                let fate = caught.1;
                *lock(waiting) = Some(caught);
                match fate {
                    Fate::Unheard => Piece::IsLost,
                    Fate::Silenced => Piece::IsTheEnd,
                    Fate::Unanswered | Fate::Answered => Piece::Passes,
                }
            }
            Self::Answers(answers, protocol, waiting, unanswered) => {
                let waiting = lock(waiting);
                let Answered { whole, complete } = answers.take(piece, waiting.as_ref().map(|(seen, _)| seen));
                unanswered.answered(whole);
                match waiting.as_ref().map(|(_, fate)| fate) {
                    None => Piece::Passes,
                    Some(Fate::Answered) => {
                        if complete {
                            Piece::IsLast
                        } else {
                            Piece::Passes
                        }
                    }
                    Some(Fate::Silenced) => Piece::IsSwallowed,
                    Some(_) if complete => Piece::IsLost,
                    Some(_) if *protocol == Protocol::Kafka => Piece::Passes, // of earlier requests
                    Some(_) => Piece::IsSwallowed,
                }
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[tokio::test]
    async fn a_proxy_without_a_server_and_one_that_is_shut_reset_who_comes() {
        let mut proxy = Proxy::first().await;
        let mut early = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(answer(&mut early).await, None);
        let (other, mut client, _last, _server) = counting().await;
        proxy.forwards_to(&other.address().to_string());
        let mut through = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(ask(&mut through, 1).await, Some(2));
        proxy.shut();
        let mut late = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(ask(&mut late, 1).await, None);
        assert_eq!(ask(&mut through, 1).await, Some(2), "open connections go on");
        proxy.reset();
        assert_eq!(answer(&mut through).await, None);
        proxy.welcome().await;
        let mut again = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(ask(&mut again, 3).await, Some(4));
        assert_eq!(ask(&mut client, 5).await, Some(6));
    }

    #[tokio::test]
    async fn a_drip_lets_few_bytes_through_until_it_ends() {
        let (proxy, mut client, _last, _server) = counting().await;
        proxy.drip(Some(Drip { bytes: 2, pause: Duration::from_millis(5) }));
        let started = Instant::now();
        client.write_all(&[1; 20]).await.unwrap();
        for _ in 0..20 {
            assert_eq!(answer(&mut client).await, Some(2));
        }
        assert!(started.elapsed() >= Duration::from_millis(45));
        proxy.drip(Some(Drip { bytes: 1, pause: PATIENCE / 2 }));
        assert_eq!(ask(&mut client, 3).await, Some(4));
    }

    /// A broker that notes which requests it had, and answers each with its number.
    async fn broker() -> (String, watch::Receiver<Vec<i32>>, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (had, all) = watch::channel(Vec::new());
        let mut server = JoinSet::new();
        server.spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut request = [0; 12];
                while client.read_exact(&mut request).await.is_ok() {
                    let number = i32::from_be_bytes(request[8..].try_into().unwrap());
                    had.send_modify(|had| had.push(number));
                    let answer = [&4_i32.to_be_bytes()[..], &number.to_be_bytes()].concat();
                    if client.write_all(&answer).await.is_err() {
                        break;
                    }
                }
            }
        });
        (address, all, server)
    }

    #[tokio::test]
    async fn a_silenced_connection_stays_open_and_others_go_on() {
        let (address, had, _server) = broker().await;
        let proxy = Proxy::start(&address).await;
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        let trap = proxy.trap(Request::Api(0), Fate::Silenced);
        client.write_all(&request(0, 1)).await.unwrap();
        trap.sprung().await;
        assert!(timeout(Duration::from_millis(50), client.read_u8()).await.is_err(), "neither an answer nor an end");
        assert!(had.borrow().is_empty());
        proxy.cut();
        assert_eq!(answer(&mut client).await, None);

        let mut other = TcpStream::connect(proxy.address()).await.unwrap();
        other.write_all(&request(0, 2)).await.unwrap();
        other.read_exact(&mut [0; 8]).await.unwrap();
    }

    fn request(api: i16, number: i32) -> Vec<u8> {
        [&8_i32.to_be_bytes()[..], &api.to_be_bytes(), &[0, 0], &number.to_be_bytes()].concat()
    }

    #[tokio::test]
    async fn a_request_meets_its_fate_in_a_trap() {
        for (fate, heard, answered) in
            [(Fate::Unheard, false, false), (Fate::Unanswered, true, false), (Fate::Answered, true, true)]
        {
            let (address, had, _server) = broker().await;
            let mut proxy = Proxy::start(&address).await;
            let mut client = TcpStream::connect(proxy.address()).await.unwrap();
            let trap = proxy.trap(Request::Api(0), fate);
            client.write_all(&request(3, 1)).await.unwrap();
            let mut answer = [0; 8];
            client.read_exact(&mut answer).await.unwrap();
            client.write_all(&request(0, 2)).await.unwrap();
            trap.sprung().await;
            assert_eq!(had.borrow().contains(&2), heard, "{fate:?}");
            assert_eq!(client.read_exact(&mut answer).await.is_ok(), answered, "{fate:?}");
            assert!(client.read_u8().await.is_err(), "{fate:?}: reset");

            let mut shut_out = TcpStream::connect(proxy.address()).await.unwrap();
            assert!(shut_out.read_u8().await.is_err(), "{fate:?}: nobody is let in");
            proxy.welcome().await;
            let mut client = TcpStream::connect(proxy.address()).await.unwrap();
            client.write_all(&request(0, 3)).await.unwrap();
            client.read_exact(&mut answer).await.unwrap();
        }
    }
}
