//! Enough of two protocols to know a request when it goes by, and its answer.

use std::collections::HashMap;

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Of Postgres, version 3, without TLS.
    Postgres,
    /// Of Kafka, without TLS.
    Kafka,
}

/// A request that can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// The run of a statement whose text has all these words, prepared earlier or not.
    Statement(&'static [&'static str]),
    /// A request of Kafka, by its number in the protocol.
    Api(i16),
}

/// Records for Kafka.
pub(crate) const PRODUCE: Request = Request::Api(0);

/// The save of a cursor: no other statement stamps the row with the WAL position.
pub(crate) const SAVE: Request = Request::Statement(&["update outbox.cursors", "saved_lsn"]);

/// The taking of the lease.
pub(crate) const ACQUIRE: Request = Request::Statement(&["update outbox.cursors", "epoch = epoch + 1"]);

/// The read of events: a window or a page.
pub(crate) const READ: Request = Request::Statement(&["outbox.events", "needs_wal"]);

/// A request that went by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    what: What,
    /// What its answer carries, in Kafka; Postgres answers one after the other.
    pub(crate) number: Option<i32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    Statement(String),
    Api(i16),
}

impl Seen {
    /// Whether it is the one that is waited for.
    pub(crate) fn is(&self, request: Request) -> bool {
        match (&self.what, request) {
            (What::Statement(text), Request::Statement(words)) => words.iter().all(|word| text.contains(word)),
            (What::Api(api), Request::Api(wanted)) => *api == wanted,
            _ => false,
        }
    }
}

/// Reads the requests of one connection along.
pub(crate) struct Requests {
    protocol: Protocol,
    buffer: Vec<u8>,
    /// Postgres: the first messages have no type.
    started: bool,
    /// Postgres: the texts of the statements, by the names under which they were prepared.
    statements: HashMap<Vec<u8>, String>,
}

impl Requests {
    pub(crate) fn new(protocol: Protocol) -> Self {
        Self { protocol, buffer: Vec::new(), started: false, statements: HashMap::new() }
    }

    /// Takes bytes that go by, and answers with the requests that they complete.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Vec<Seen> {
        self.buffer.extend_from_slice(bytes);
        let mut seen = Vec::new();
        while let Some(message) = self.message() {
            seen.extend(match self.protocol {
                Protocol::Kafka => api(&message),
                Protocol::Postgres => self.statement(&message),
            });
        }
        seen
    }

    /// The next whole message, from its type, or from its length where it has no type.
    fn message(&mut self) -> Option<Vec<u8>> {
        let (typed, counted) = match self.protocol {
            Protocol::Kafka => (0, 4), // the length does not count itself
            Protocol::Postgres => (usize::from(self.started), 0),
        };
        let length = usize::try_from(number(&self.buffer, typed)?).expect("a length");
        let whole = typed + counted + length;
        (self.buffer.len() >= whole).then(|| self.buffer.drain(..whole).collect())
    }

    fn statement(&mut self, message: &[u8]) -> Option<Seen> {
        const VERSION_3: i32 = 3 << 16;
        if !self.started {
            self.started = number(message, 4) == Some(VERSION_3); // before it, a client may ask for TLS
            return None;
        }
        let (kind, mut texts) = (message[0], message[5..].split(|&byte| byte == 0));
        let mut text = || String::from_utf8_lossy(texts.next().unwrap_or_default()).into_owned();
        let run = match kind {
            b'P' => {
                let (name, statement) = (text(), text());
                self.statements.insert(name.into_bytes(), statement);
                None
            }
            b'B' => {
                let (_portal, name) = (text(), text());
                self.statements.get(name.as_bytes()).cloned()
            }
            b'Q' => Some(text()),
            _ => None,
        };
        run.map(|statement| Seen { what: What::Statement(statement), number: None })
    }
}

/// What bytes completed of the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answered {
    /// So many messages; of Kafka each is an answer.
    pub(crate) whole: usize,
    /// The answer to the request that is waited for.
    pub(crate) complete: bool,
}

/// Reads the answers of one connection along.
pub(crate) struct Answers {
    protocol: Protocol,
    buffer: Vec<u8>,
}

impl Answers {
    pub(crate) fn new(protocol: Protocol) -> Self {
        Self { protocol, buffer: Vec::new() }
    }

    /// Takes bytes that go by, and says what they complete; with the request that is waited for.
    pub(crate) fn take(&mut self, bytes: &[u8], request: Option<&Seen>) -> Answered {
        let mut answered = Answered { whole: 0, complete: false };
        if self.protocol == Protocol::Postgres && request.is_none() {
            return answered; // answers come one after the other: what comes from now on belongs to the next request
        }
        self.buffer.extend_from_slice(bytes);
        // a message of either: length, then what tells; of Postgres the type comes first
        let typed = usize::from(self.protocol == Protocol::Postgres);
        let counted = if self.protocol == Protocol::Kafka { 4 } else { 1 };
        while let Some(length) = number(&self.buffer, typed).and_then(|length| usize::try_from(length).ok()) {
            if self.buffer.len() < counted + length {
                break;
            }
            let message: Vec<u8> = self.buffer.drain(..counted + length).collect();
            answered.whole += 1;
            answered.complete |= match self.protocol {
                Protocol::Postgres => message[0] == b'Z', // ready for the next one
                Protocol::Kafka => request.is_some_and(|request| number(&message, 4) == request.number),
            };
        }
        answered
    }
}

fn api(message: &[u8]) -> Option<Seen> {
    let api = i16::from_be_bytes([*message.get(4)?, *message.get(5)?]);
    Some(Seen { what: What::Api(api), number: number(message, 8) })
}

fn number(bytes: &[u8], at: usize) -> Option<i32> {
    bytes.get(at..at + 4).map(|four| i32::from_be_bytes(four.try_into().expect("four bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: Option<u8>, body: &[u8]) -> Vec<u8> {
        let length = i32::try_from(body.len() + 4).unwrap().to_be_bytes();
        kind.into_iter().chain(length).chain(body.iter().copied()).collect()
    }

    #[test]
    fn a_prepared_statement_is_known_when_it_runs() {
        let mut requests = Requests::new(Protocol::Postgres);
        let session = [
            message(None, &80_877_103_i32.to_be_bytes()), // asks for TLS
            message(None, b"\x00\x03\x00\x00user\x00me\x00\x00"),
            message(Some(b'Q'), b"set jit = off\0"),
            message(Some(b'P'), b"s1\0update outbox.cursors set saved_lsn = 1\0\0\0"),
            message(Some(b'D'), b"Ss1\0"),
            message(Some(b'S'), b""),
            message(Some(b'B'), b"\0s1\0\0\0\0\0\0\0"),
            message(Some(b'E'), b"\0\0\0\0\0"),
        ]
        .concat();
        // however the bytes are cut
        let seen: Vec<Seen> = session.chunks(3).flat_map(|bytes| requests.take(bytes)).collect();
        assert_eq!(seen.iter().map(|seen| seen.is(SAVE)).collect::<Vec<_>>(), [false, true], "{seen:?}");
        assert!(!seen[1].is(ACQUIRE) && !seen[1].is(PRODUCE));
        assert_eq!(requests.take(&message(Some(b'B'), b"\0s1\0\0\0\0\0\0\0")).len(), 1);

        let mut answers = Answers::new(Protocol::Postgres);
        assert!(!answers.take(&message(Some(b'2'), b""), Some(&seen[1])).complete);
        assert!(!answers.take(&message(Some(b'Z'), b"I")[..4], Some(&seen[1])).complete);
        assert!(answers.take(b"\x05I", Some(&seen[1])).complete);
    }

    #[test]
    fn a_request_of_kafka_has_a_number_that_its_answer_carries() {
        let mut requests = Requests::new(Protocol::Kafka);
        let request = |api: i16, number: i32| {
            let body = [&api.to_be_bytes()[..], &[0, 1], &number.to_be_bytes(), b"rest"].concat();
            [&i32::try_from(body.len()).unwrap().to_be_bytes()[..], &body].concat()
        };
        let bytes = [request(3, 7), request(0, 8)].concat();
        let seen: Vec<Seen> = bytes.chunks(5).flat_map(|bytes| requests.take(bytes)).collect();
        assert_eq!(seen.iter().map(|seen| seen.is(PRODUCE)).collect::<Vec<_>>(), [false, true], "{seen:?}");

        let mut answers = Answers::new(Protocol::Kafka);
        let answer = |number: i32| [&6_i32.to_be_bytes()[..], &number.to_be_bytes(), &[0, 0]].concat();
        assert_eq!(answers.take(&answer(7)[..5], Some(&seen[1])), Answered { whole: 0, complete: false });
        assert_eq!(answers.take(&answer(7)[5..], Some(&seen[1])), Answered { whole: 1, complete: false });
        assert_eq!(answers.take(&answer(8), Some(&seen[1])), Answered { whole: 1, complete: true });
    }
}
