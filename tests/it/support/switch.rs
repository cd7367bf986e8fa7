//! A TCP address that leads to one server now and to another later, as a name or a virtual address does at a fail-over.

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use url::Url;

/// Forwards to the server that it points to, until it is dropped.
pub(crate) struct Switch {
    target: watch::Sender<String>,
    _running: JoinSet<()>,
}

impl Switch {
    /// Points to the server of a Postgres URL, and answers with that URL through the switch.
    pub(crate) async fn before(url: &str) -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (target, seen) = watch::channel(host_of(url));
        let mut running = JoinSet::new();
        running.spawn(accept(listener, seen));
        let mut url = Url::parse(url).expect("a URL of Postgres");
        url.set_port(Some(address.port())).expect("a URL with a host");
        (Self { target, _running: running }, url.into())
    }

    /// Points to another server. Connections to the one before end.
    pub(crate) fn points_to(&self, url: &str) {
        self.target.send_replace(host_of(url));
    }
}

fn host_of(url: &str) -> String {
    let url = Url::parse(url).expect("a URL of Postgres");
    format!("{}:{}", url.host_str().expect("a URL with a host"), url.port().expect("a URL with a port"))
}

async fn accept(listener: TcpListener, mut target: watch::Receiver<String>) {
    let mut connections = JoinSet::new();
    loop {
        let server = target.borrow_and_update().clone();
        tokio::select! {
            changed = target.changed() => {
                if changed.is_err() {
                    return;
                }
                connections.shutdown().await;
            }
            client = listener.accept() => {
                let Ok((mut client, _)) = client else { continue };
                connections.spawn(async move {
                    if let Ok(mut server) = TcpStream::connect(server).await {
                        copy_bidirectional(&mut client, &mut server).await.ok(); // either side may end it
                    }
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}
