//! Whose open transactions hold events back. Looks, writes nothing.

use crate::db::{DbError, Session};

/// A transaction that is open for long: its own events wait, no others.
#[derive(Clone, Debug, PartialEq)]
pub struct Holder {
    /// Process id, or name of a prepared transaction.
    pub who: String,
    /// Its database.
    pub database: String,
    /// Its role.
    pub role: String,
    /// Whether it was prepared (two-phase commit).
    pub prepared: bool,
    /// How long it has been open, in seconds.
    pub age_seconds: f64,
}

impl Holder {
    /// Which transaction it is, and whose.
    pub fn transaction(&self) -> String {
        let Self { who, database, role, .. } = self;
        let kind = if self.prepared { "prepared transaction" } else { "transaction of process" };
        format!("{kind} {who} of {role} in {database}")
    }

    /// The statement that ends it.
    pub fn remedy(&self) -> String {
        match (self.prepared, &self.who) {
            (true, gid) => format!("in {}: rollback prepared '{}'", self.database, gid.replace('\'', "''")),
            (false, process) => format!("end it, or: select pg_terminate_backend({process})"),
        }
    }

    /// Whether it has been open for so long that somebody should look: a prepared one for a minute, another for five.
    pub fn is_long(&self) -> bool {
        self.age_seconds > if self.prepared { 60.0 } else { 300.0 }
    }
}

type Columns = (String, Option<String>, Option<String>, bool, f64);

const HOLDERS: &str = "
    select pid::text as who, datname::text as database, usename::text as role, false as prepared, extract(epoch from now() - xact_start)::float8 as age
      from pg_stat_activity where backend_xid is not null and xact_start is not null
     union all
    select gid, database::text, owner::text, true, extract(epoch from now() - prepared)::float8 from pg_prepared_xacts
     order by age desc limit 10";

/// Lists whose events wait because their transactions are open, oldest first. Without `pg_monitor` only our own role's are seen.
///
/// # Errors
/// Those of the server.
pub async fn look(session: &mut Session) -> Result<Vec<Holder>, DbError> {
    let rows: Vec<Columns> =
        Session::brief("looking for open transactions", sqlx::query_as(HOLDERS).fetch_all(&mut session.connection))
            .await?;
    let holder = |(who, database, role, prepared, age_seconds): Columns| Holder {
        who,
        database: database.unwrap_or_default(),
        role: role.unwrap_or_default(),
        prepared,
        age_seconds,
    };
    Ok(rows.into_iter().map(holder).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_says_which_it_is_and_how_it_ends() {
        let holder = |who: &str, prepared| Holder {
            who: who.to_owned(),
            database: "shop".to_owned(),
            role: "till".to_owned(),
            prepared,
            age_seconds: 301.0,
        };
        let (open, prepared) = (holder("4711", false), holder("it's", true));
        assert_eq!(open.transaction(), "transaction of process 4711 of till in shop");
        assert_eq!(open.remedy(), "end it, or: select pg_terminate_backend(4711)");
        assert_eq!(prepared.transaction(), "prepared transaction it's of till in shop");
        assert_eq!(prepared.remedy(), "in shop: rollback prepared 'it''s'");
    }
}
