//! Steps that are under way beside a loop, and moments in time. Nothing about events.

use std::pin::Pin;
use std::time::Duration;
use tokio::time::Instant;

/// A step under way; `None` if there is none.
pub type Pending<T> = Option<Pin<Box<dyn Future<Output = T> + Send>>>;

/// Waits for a pending step; for ever if there is none. Cancel-safe: the step stays where it is.
pub async fn pending<T>(step: &mut Pending<T>) -> T {
    match step {
        Some(step) => step.await,
        None => std::future::pending().await,
    }
}

/// A moment after another.
pub fn later(from: Instant, duration: Duration) -> Instant {
    from.checked_add(duration).unwrap_or(from)
}
