//! `[http]`: health, metrics and status.

use std::net::SocketAddr;

use super::key::{Fallback, Form, Key, Kind};
use super::problem::Fault;
use super::secret::Secret;
use super::section::Section;

/// Where we listen, and what it takes to change something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    /// Port 0 lets the system choose.
    pub listen: SocketAddr,
    /// For requests that change state; none does in this version.
    pub token: Option<Secret>,
}

const LISTEN: Key = Key {
    name: "listen",
    doc: "An IP address and a port. On another than loopback, everybody can read health, metrics and status.",
    kind: Kind::Value(
        Form::Text("an IP address and a port such as `127.0.0.1:9464`"),
        Fallback::Text("127.0.0.1:9464"),
    ),
};

const TOKEN: Key = Key {
    name: "token",
    doc: "What a request has to carry to change state. No request changes any in this version.",
    kind: Kind::Value(Form::Secret("a token of visible ASCII characters, without spaces"), Fallback::Absent),
};

pub(super) const KEYS: &[Key] = &[LISTEN, TOKEN];

impl Http {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Option<Self> {
        let listen = section.parse(&LISTEN, |text| text.parse().map_err(|_| Fault::new(LISTEN.kind.form().expected())));
        let token = section.parse(&TOKEN, token);
        Some(Self { listen: listen?, token })
    }
}

/// A token travels in a header. An empty one would let everybody in.
fn token(text: &str) -> Result<Secret, Fault> {
    let fits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    fits.then(|| Secret::new(text)).ok_or_else(|| Fault::new(TOKEN.kind.form().expected()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_lets_everybody_in_or_nobody_is_refused() {
        for text in ["", " ", "a b", "a\n", "é"] {
            assert!(token(text).is_err(), "{text:?}");
        }
        assert_eq!(token("a-B_1=").unwrap().expose(), "a-B_1=");
    }
}
