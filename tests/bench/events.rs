//! The events of a load: their ids, streams and payloads. Pure.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use uuid::Uuid;

/// Payloads that are made beforehand and written in turn.
pub(crate) const PAYLOADS: u32 = 1_000;

/// What a payload `{"nr": N, "fill": "…"}` holds beside the number and the filling.
const FRAME_BYTES: usize = 20;

/// What the events look like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pattern {
    /// Of a payload as Postgres prints it.
    pub(crate) payload_bytes: u32,
    pub(crate) streams: u32,
}

impl Pattern {
    /// Payloads that a compression finds nothing in.
    pub(crate) fn payloads(self) -> Vec<String> {
        let mut random = StdRng::seed_from_u64(u64::from(self.payload_bytes));
        let payload = |number: u32| {
            let number = number.to_string();
            let room =
                usize::try_from(self.payload_bytes).unwrap_or_default().saturating_sub(FRAME_BYTES + number.len());
            let fill: String = (0..room).filter_map(|_| char::from_digit(random.random_range(0..16), 16)).collect();
            format!("{{\"nr\": {number}, \"fill\": \"{fill}\"}}")
        };
        (0..PAYLOADS).map(payload).collect()
    }

    /// The stream of an event.
    pub(crate) fn key(self, number: u32) -> String {
        format!("order-{}", number % self.streams.max(1))
    }
}

/// Event ids in which the number of the event can be read, and which otherwise look as random as those of an application.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ids {
    run: u32,
}

impl Ids {
    /// Those of a new run: none of them was ever in a table.
    pub(crate) fn fresh() -> Self {
        Self::of(rand::random())
    }

    /// Those of one run.
    pub(crate) fn of(run: u32) -> Self {
        Self { run }
    }

    /// The id of an event.
    pub(crate) fn id(self, number: u32) -> Uuid {
        let place = (u64::from(self.run) << 32) | u64::from(number);
        Uuid::from_u64_pair(scattered(place), place)
    }

    /// The number of an event of this run.
    pub(crate) fn number(self, id: Uuid) -> Option<u32> {
        let (high, place) = id.as_u64_pair();
        let number = u32::try_from(place & u64::from(u32::MAX)).ok()?;
        (place >> 32 == u64::from(self.run) && high == scattered(place)).then_some(number)
    }
}

/// The finalizer of `SplitMix64`: neighbours lie far apart.
fn scattered(number: u64) -> u64 {
    let mixed = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
