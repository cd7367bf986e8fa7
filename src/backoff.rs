//! Capped exponential back-off. Pure: the attempt and a random number go in, a duration comes out.

use std::time::Duration;

/// The bounds of a back-off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// After the first failure.
    pub first: Duration,
    /// Never more than this.
    pub most: Duration,
}

impl Backoff {
    /// The pause after failure number `attempt` (from 0). `random` in `0.0..1.0` spreads it over the upper half, so that many relays do not knock at once.
    pub fn pause(self, attempt: u32, random: f64) -> Duration {
        let full = self.first.saturating_mul(1_u32.checked_shl(attempt).unwrap_or(u32::MAX)).min(self.most);
        full.mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_its_bound() {
        let backoff = Backoff { first: Duration::from_millis(50), most: Duration::from_secs(5) };
        let pauses: Vec<u128> = (0..9).map(|attempt| backoff.pause(attempt, 1.0).as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000]);
        assert_eq!(backoff.pause(u32::MAX, 0.0), Duration::from_millis(2_500));
    }
}
