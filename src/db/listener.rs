//! A session that hears notifications.

use super::{CONNECT_TIMEOUT, DbError, Purpose, Server, options, settle};
use crate::config::secret::Secret;
use sqlx::Acquire;
use sqlx::postgres::{PgConnection, PgListener, PgPoolOptions};

/// A direct connection that hears notifications. Statements on it run on the very connection that listens.
///
/// After an error it is not to be used again: the driver would connect anew, without our settings and without our locks.
#[derive(Debug)]
pub struct Listener {
    listener: PgListener,
    /// Who answered at connect.
    pub server: Server,
}

impl Listener {
    /// Connects as [`super::connect`] does, and listens to nothing yet.
    ///
    /// # Errors
    /// As there.
    pub async fn connect(url: &Secret) -> Result<Self, DbError> {
        match tokio::time::timeout(CONNECT_TIMEOUT, Self::open(url)).await {
            Ok(result) => result,
            Err(_) => Err(DbError::silent("connecting", CONNECT_TIMEOUT)),
        }
    }

    async fn open(url: &Secret) -> Result<Self, DbError> {
        let options = options(url)?;
        let host = format!("{}:{}", options.get_host(), options.get_port());
        // The driver listens on connections of a pool only: this one has one, and is never asked for another.
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .test_before_acquire(false)
            .connect_lazy_with(options);
        let mut listener = PgListener::connect_with(&pool).await.map_err(DbError::during("connecting"))?;
        listener.eager_reconnect(false);
        let connection = listener.acquire().await.map_err(DbError::during("connecting"))?;
        let server = settle(connection, host, Purpose::Listen).await?;
        Ok(Self { listener, server })
    }

    /// The connection that listens.
    ///
    /// # Errors
    /// None on a listener that has had none.
    pub async fn connection(&mut self) -> Result<&mut PgConnection, sqlx::Error> {
        self.listener.acquire().await
    }

    /// Listens to a channel.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn listen(&mut self, channel: &str) -> Result<(), sqlx::Error> {
        self.listener.listen(channel).await
    }

    /// Waits for a notification. Cancel-safe.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn heard(&mut self) -> Result<(), DbError> {
        match self.listener.try_recv().await {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(DbError::gone("listening")),
            Err(error) => Err(DbError::from_driver("listening", &error)),
        }
    }

    /// Forgets what was received and not waited for.
    pub fn forget(&mut self) {
        while self.listener.next_buffered().is_some() {}
    }
}
