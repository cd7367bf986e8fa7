//! Places in the write-ahead log. Pure.
//!
//! Postgres prints two hexadecimal halves without padding, so the texts do not sort:
//! `1/10` lies after `0/FFFFFFFF`. Parse, then compare.

use std::fmt;

/// A byte position in the WAL. Comparable within one timeline of one cluster only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lsn(u64);

/// Why a text is not an [`Lsn`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LsnError {
    /// Without `/` there are no halves.
    #[error("expected two halves with `/` between them")]
    NoSlash,
    /// A half is empty, signed, above 32 bits or not hexadecimal.
    #[error("expected a hexadecimal number of at most 32 bits, found `{0}`")]
    BadHalf(String),
}

impl Lsn {
    /// Reads the form in which Postgres prints a `pg_lsn`.
    pub fn parse(text: &str) -> Result<Self, LsnError> {
        let half = |digits: &str| match u32::from_str_radix(digits, 16) {
            Ok(half) if !digits.starts_with('+') => Ok(u64::from(half)), // the radix parser takes `+1`
            _ => Err(LsnError::BadHalf(digits.to_owned())),
        };
        let (high, low) = text.split_once('/').ok_or(LsnError::NoSlash)?;
        Ok(Self((half(high)? << 32) | half(low)?))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_past_four_gibibytes_sorts_after_one_before_it() {
        let lsn = |text| Lsn::parse(text).unwrap();
        assert!(lsn("1/10") > lsn("0/FFFFFFFF"));
    }

    #[test]
    fn prints_what_postgres_prints() {
        for text in ["0/0", "16/B374D848", "1/10", "FFFFFFFF/FFFFFFFF"] {
            assert_eq!(Lsn::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn refuses_what_is_no_place() {
        assert_eq!(Lsn::parse("10"), Err(LsnError::NoSlash));
        for half in ["", "+1", "g", "100000000", "-1"] {
            assert_eq!(Lsn::parse(&format!("{half}/0")), Err(LsnError::BadHalf(half.to_owned())));
        }
    }
}
