//! `--admin-url`: for commands that need the owner of the schema.

use super::{Ends, Exit};
use crate::config::postgres;
use crate::config::secret::Secret;
use std::convert::Infallible;

#[derive(Debug, clap::Args)]
pub(super) struct Owner {
    /// Connect as the owner of the schema [default: postgres.url]
    #[arg(long, value_name = "URL", env = "OUTBOXD_ADMIN_URL", hide_env_values = true)]
    #[arg(value_parser = |url: &str| Ok::<Secret, Infallible>(Secret::new(url)))]
    admin_url: Option<Secret>,
}

impl Owner {
    /// The address that was given, held to the rules of `postgres.url` (TLS too), else the configured one.
    pub(super) fn url(&self, configured: impl FnOnce() -> anyhow::Result<Secret>) -> anyhow::Result<Secret> {
        let Some(given) = &self.admin_url else { return configured() };
        postgres::address("--admin-url", given.expose())
            .map_err(|problem| Ends { exit: Exit::Usage, message: problem.to_string() }.into())
    }
}
