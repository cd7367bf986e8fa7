//! `[postgres]`: the database that holds the outbox.

use std::net::IpAddr;

use url::Url;

use super::key::{Fallback, Form, Key, Kind};
use super::problem::{Fault, Problem, listed, nearest, quoted};
use super::secret::{HIDDEN, Secret};
use super::section::Section;

/// Where the database is, and as whom we come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Postgres {
    /// Has a user and a database, and, where the host is another one, an `sslmode`.
    pub url: Secret,
}

const URL: Key = Key {
    name: "url",
    doc: "A direct connection to the primary, not a pooler. TLS by the parameters `sslmode` and `sslrootcert`.",
    kind: Kind::Value(Form::Url, Fallback::Required),
};

pub(super) const KEYS: &[Key] = &[URL];

/// The modes of libpq.
const SSL_MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

/// The parameters that the driver reads. Of another one it would log the value and go on without it, and that value may be a secret.
const PARAMETERS: [&str; 18] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

impl Postgres {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Option<Self> {
        let url = section.parse(&URL, complete)?;
        Some(Self { url: Secret::new(url) })
    }
}

/// Checks an address that does not stand in the file, under the name of what gave it. It is completed as `postgres.url` is.
///
/// # Errors
/// What is wrong with it, which does not repeat it.
pub fn address(name: &str, text: &str) -> Result<Secret, Problem> {
    complete(text).map(Secret::new).map_err(|fault| fault.at(None, name.to_owned()))
}

/// The address with its password hidden, as `show` prints it.
pub(super) fn shown(text: &str) -> String {
    complete(text).map_or_else(|_| HIDDEN.to_owned(), |url| without_password(url).into())
}

/// What a URL that does not parse usually lacks.
const ESCAPES: &str = "in user and password, write @ : / ? # % as %40 %3A %2F %3F %23 %25";

/// Checks an address and says in it what the driver is to do about TLS: an unprotected way to another
/// host has to be asked for by name.
fn complete(text: &str) -> Result<Url, Fault> {
    complete_beside(text, ["PGHOSTADDR", "PGHOST"].into_iter().find_map(|name| std::env::var(name).ok()).as_deref())
}

/// Where a URL without a host leads is the environment's choice, which the driver takes.
fn complete_beside(text: &str, host: Option<&str>) -> Result<Url, Fault> {
    let mut url = Url::parse(text).map_err(|error| {
        let fault = Fault::new(format!("{} ({error})", Form::Url.expected()));
        Fault { hint: text.contains("://").then(|| ESCAPES.to_owned()), ..fault }
    })?;
    if !matches!(url.scheme(), "postgres" | "postgresql") {
        return Err(Fault::new("a URL that begins with `postgres://` or `postgresql://`"));
    }
    if url.username().is_empty() && parameter(&url, &["user"]).is_none() {
        return Err(Fault::new("a URL with a user").hint("postgres://USER@host:5432/database"));
    }
    let names_database = !url.path().trim_matches('/').is_empty();
    if !names_database && parameter(&url, &["dbname"]).is_none() {
        return Err(Fault::new("a URL with a database").hint("postgres://user@host:5432/DATABASE"));
    }
    let host = host_of(&url).or(host.map(str::to_owned)).unwrap_or_default();
    if host.contains(',') {
        return Err(Fault::new("a URL with one host").hint("name the address that follows the primary"));
    }
    check_parameters(&url)?;
    match parameter(&url, &["sslmode", "ssl-mode"]) {
        Some(mode) => check_ssl_mode(&mode)?,
        None if is_local(&host) => (),
        None => {
            url.query_pairs_mut().append_pair("sslmode", "verify-full");
        }
    }
    Ok(url)
}

/// Neither name nor value is repeated: a `?` in a password makes parameters of its rest.
fn check_parameters(url: &Url) -> Result<(), Fault> {
    let is_known = |name: &str| PARAMETERS.contains(&name) || name.starts_with("options[");
    let Some((name, _)) = url.query_pairs().find(|(name, _)| !is_known(name)) else { return check_values(url) };
    let near = nearest(&name, PARAMETERS).map(|near| format!("did you mean {}?", quoted(near)));
    Err(Fault { hint: near.or(Some(ESCAPES.to_owned())), ..Fault::new("a URL with parameters that the driver knows") })
}

/// What the driver could not read it would say at each try to connect, without a name.
fn check_values(url: &Url) -> Result<(), Fault> {
    let all = |name: &str, fits: fn(&str) -> bool| {
        url.query_pairs().filter(|(found, _)| found == name).all(|(_, value)| fits(&value))
    };
    if !all("port", |port| port.parse::<u16>().is_ok()) {
        return Err(Fault::new("`port` to be a number up to 65535"));
    }
    if !all("hostaddr", |address| address.parse::<IpAddr>().is_ok()) {
        return Err(Fault::new("`hostaddr` to be an IP address"));
    }
    if !all("statement-cache-capacity", |number| number.parse::<usize>().is_ok()) {
        return Err(Fault::new("`statement-cache-capacity` to be a number"));
    }
    Ok(())
}

fn check_ssl_mode(mode: &str) -> Result<(), Fault> {
    let expected = || format!("`sslmode` to be one of {}", listed(SSL_MODES));
    SSL_MODES.contains(&mode).then_some(()).ok_or_else(|| Fault::new(expected()))
}

/// The last of several, as the driver has it.
fn parameter(url: &Url, names: &[&str]) -> Option<String> {
    url.query_pairs().filter(|(name, _)| names.contains(&name.as_ref())).map(|(_, value)| value.into_owned()).last()
}

fn host_of(url: &Url) -> Option<String> {
    let written = url.host_str().filter(|host| !host.is_empty());
    parameter(url, &["host", "hostaddr"]).or_else(|| written.map(str::to_owned))
}

/// No host at all means the driver's own choice, which is a socket or this machine.
fn is_local(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let is_socket = host.starts_with('/') || host.to_ascii_lowercase().starts_with("%2f");
    let is_loopback = bare.parse().is_ok_and(|address: IpAddr| address.is_loopback());
    host.is_empty() || host.eq_ignore_ascii_case("localhost") || is_socket || is_loopback
}

fn without_password(mut url: Url) -> Url {
    if url.password().is_some() && url.set_password(Some(HIDDEN)).is_err() {
        return url; // no host, so no place for a password either
    }
    if parameter(&url, &["password"]).is_some() {
        let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        url.query_pairs_mut().clear().extend_pairs(pairs.iter().map(|(name, value)| match name.as_str() {
            "password" => (name, HIDDEN),
            _ => (name, value.as_str()),
        }));
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_host_is_verified_unless_the_url_says_otherwise() {
        let verified = "?sslmode=verify-full";
        let cases = [
            ("postgres://u@127.0.0.1:5432/shop", ""),
            ("postgres://u@localhost/shop", ""),
            ("postgres://u@[::1]/shop", ""),
            ("postgresql://u@%2Fvar%2Frun%2Fpostgresql/shop", ""),
            ("postgres:///shop?user=u", ""),
            ("postgres:///shop?user=u&host=/tmp", ""),
            ("postgres://u@db.example/shop", verified),
            ("postgres://u@10.0.0.1/shop", verified),
            ("postgres://u@[2001:db8::1]:5432/shop", verified),
            ("postgres://u@db.example/shop?sslmode=require", ""),
            ("postgres://u@localhost/shop?host=db.example", "&sslmode=verify-full"),
        ];
        for (text, added) in cases {
            let complete = complete_beside(text, None).map(String::from);
            assert_eq!(complete, Ok(format!("{text}{added}")), "{text}");
        }
        for (host, added) in [("db.example", "&sslmode=verify-full"), ("/tmp", ""), ("127.0.0.1", "")] {
            let text = "postgres:///shop?user=u";
            let complete = complete_beside(text, Some(host)).map(String::from);
            assert_eq!(complete, Ok(format!("{text}{added}")), "beside PGHOST={host}");
        }
    }

    #[test]
    fn an_address_that_cannot_work_is_refused_without_repeating_it() {
        let cases = [
            ("shop", "a URL such as"),
            ("mysql://u@h/shop", "begins with `postgres://`"),
            ("postgres://h/shop", "with a user"),
            ("postgres://u@h", "with a database"),
            ("postgres://u@h/", "with a database"),
            ("postgres://u@h1,h2/shop", "with one host"),
            ("postgres://u@h/shop?sslmode=on", "`sslmode` to be one of"),
            ("postgres://u@h/shop?port=hunter2", "`port` to be"),
            ("postgres://u@h/shop?hostaddr=hunter2", "`hostaddr` to be"),
            ("postgres://u@h/shop?statement-cache-capacity=hunter2", "`statement-cache-capacity` to be"),
            ("postgres://u@h/shop?sslpassword=hunter2", "parameters that the driver knows"),
            ("postgres://u@h/shop?hunter2=1", "parameters that the driver knows"),
            ("postgres://u:hunter2/@h/shop", "a URL such as"),
        ];
        for (text, expected) in cases {
            let fault = complete(text).unwrap_err();
            assert!(fault.expected.contains(expected), "{text}: {fault:?}");
            assert!(!format!("{fault:?}").contains("hunter2"), "{fault:?}");
        }
    }

    #[test]
    fn a_password_is_hidden_wherever_it_stands() {
        let cases = [
            ("postgres://u:p@127.0.0.1/shop", "postgres://u:***@127.0.0.1/shop"),
            ("postgres://u@127.0.0.1/shop", "postgres://u@127.0.0.1/shop"),
            ("postgres://u@127.0.0.1/shop?password=p&port=5433", "postgres://u@127.0.0.1/shop?password=***&port=5433"),
            ("p", "***"),
        ];
        for (text, expected) in cases {
            assert_eq!(shown(text), expected);
        }
    }
}
