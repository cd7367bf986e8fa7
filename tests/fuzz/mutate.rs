//! Changes inputs at random, from a seed.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// Inputs do not grow beyond this: a long one is slow, and no more evil than a short one.
const LONGEST: usize = 4096;

/// Numbers at the edges of what holds them.
const NUMBERS: [&str; 12] = [
    "0",
    "1",
    "-1",
    "255",
    "256",
    "65536",
    "2147483648",
    "4294967295",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "1e400",
];

/// Makes inputs of other inputs.
pub(crate) struct Mutator<'w> {
    random: StdRng,
    words: &'w [&'w str],
}

impl<'w> Mutator<'w> {
    /// `words` mean something to the target.
    pub(crate) fn new(seed: u64, words: &'w [&'w str]) -> Self {
        Self { random: StdRng::seed_from_u64(seed), words }
    }

    /// True once in `times`.
    pub(crate) fn chance(&mut self, times: u32) -> bool {
        self.random.random_ratio(1, times)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.random.random_range(0..bound)
    }

    /// The next input.
    pub(crate) fn next(&mut self, known: &[Vec<u8>]) -> Vec<u8> {
        let mut input = known[self.below(known.len())].clone();
        let changes = 1 << self.below(5);
        for _ in 0..=self.below(changes) {
            self.change(&mut input, known);
        }
        input.truncate(LONGEST);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, known: &[Vec<u8>]) {
        let at = self.below(input.len() + 1);
        let length = self.below(9).min(input.len() - at);
        match self.below(10) {
            0 => drop(input.drain(at..at + length)),
            1 => self.insert(input, at, None),
            2 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << self.random.random_range(0..8);
                }
            }
            3 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte = self.random.random();
                }
            }
            4 => {
                let piece = input[at..at + length].to_vec();
                let place = self.below(input.len() + 1);
                input.splice(place..place, piece);
            }
            5 => {
                let piece = input[at..at + length].repeat(1 << self.below(7));
                input.splice(at..at, piece);
            }
            6 => {
                let other = &known[self.below(known.len())];
                let from = self.below(other.len() + 1);
                let to = from + self.below((other.len() - from).min(64) + 1);
                input.splice(at..at + length, other[from..to].iter().copied());
            }
            7 => {
                let word = NUMBERS[self.below(NUMBERS.len())];
                input.splice(at..at + length, word.bytes());
            }
            8 if !self.words.is_empty() => {
                let word = self.words[self.below(self.words.len())];
                input.splice(at..at + length, word.bytes());
            }
            _ => self.insert(input, at, Some(length)),
        }
    }

    /// Random bytes, or one that is printed.
    fn insert(&mut self, input: &mut Vec<u8>, at: usize, length: Option<usize>) {
        match length {
            Some(length) => {
                let bytes: Vec<u8> = (0..length).map(|_| self.random.random()).collect();
                input.splice(at..at, bytes);
            }
            None => input.insert(at, self.random.random_range(b' '..=b'~')),
        }
    }
}
