//! Short pauses, kept. tokio's timer counts whole milliseconds and rounds up twice: 1.6 ms take 2.7 in the median, and 1 µs takes 1.1 ms.

use std::time::Duration;

/// Whoever waits for longer does not mind a millisecond.
const SHORT: Duration = Duration::from_millis(10);

/// Waits for `pause`, by a timer of the kernel where that is short. Cancel-safe.
pub async fn nap(pause: Duration) {
    if pause.is_zero() {
        return;
    }
    if pause >= SHORT || kernel::sleep(pause).await.is_err() {
        tokio::time::sleep(pause).await; // without a file descriptor to spare, too
    }
}

#[cfg(target_os = "linux")]
mod kernel {
    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
    };
    use std::io;
    use std::time::Duration;
    use tokio::io::Interest;
    use tokio::io::unix::AsyncFd;

    /// One that is never zero: that would disarm the timer.
    pub(super) async fn sleep(pause: Duration) -> io::Result<()> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        let once = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec::try_from(pause).map_err(io::Error::other)?,
        };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &once)?;
        #[expect(
            deprecated,
            reason = "what followed it is unsafe for the sake of descriptors that are not owned; this one is"
        )]
        let timer = AsyncFd::with_interest(timer, Interest::READABLE)?;
        timer.readable().await.map(drop)
    }
}

#[cfg(not(target_os = "linux"))]
mod kernel {
    use std::io;
    use std::time::Duration;

    pub(super) async fn sleep(_: Duration) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use tokio::time::Instant;

    #[test]
    fn no_pause_takes_no_time() {
        assert_eq!(nap(Duration::ZERO).now_or_never(), Some(()));
    }

    #[tokio::test]
    async fn a_pause_is_no_shorter_than_it_was_asked_for() {
        for pause in [Duration::from_nanos(1), Duration::from_micros(250), Duration::from_millis(2), SHORT] {
            let began = Instant::now();
            nap(pause).await;
            assert!(began.elapsed() >= pause, "{:?} for {pause:?}", began.elapsed());
        }
    }
}
