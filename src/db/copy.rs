//! Takes apart what `copy … to stdout (format binary)` sends. Pure.
//!
//! Beside a statement that returns rows it saves, for each of them, what the driver makes of a row: a list of places, a
//! copy of the columns' description, a check of each type. Format: "Binary Format" on the page of `COPY` in the manual
//! of Postgres.

use sqlx::Error;

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
/// Behind the signature stand flags and the length of an extension, which is empty.
const HEADER_BYTES: usize = SIGNATURE.len() + 8;

/// The pieces of one answer, put together: a server sends a row in a piece, but nothing promises that.
#[derive(Debug, Default)]
pub struct Tuples {
    has_begun: bool,
    has_ended: bool,
    /// The beginning of a row whose end is not there.
    rest: Vec<u8>,
}

impl Tuples {
    /// Hands each whole row of `N` columns to `each`: the bytes of a column, `None` for a null.
    ///
    /// # Errors
    /// What is sent is not in this format, or what `each` says.
    pub fn feed<const N: usize, E: From<Error>>(
        &mut self,
        piece: &[u8],
        mut each: impl FnMut(&[Option<&[u8]>; N]) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.rest.is_empty() {
            let left = self.parse(piece, &mut each)?;
            self.rest.extend_from_slice(left);
            return Ok(());
        }
        let mut whole = std::mem::take(&mut self.rest);
        whole.extend_from_slice(piece);
        let parsed = whole.len().saturating_sub(self.parse(&whole, &mut each)?.len());
        whole.drain(..parsed);
        self.rest = whole;
        Ok(())
    }

    /// Whether the end has come, and nothing is left over.
    pub fn is_whole(&self) -> bool {
        self.has_ended && self.rest.is_empty()
    }

    fn parse<'a, const N: usize, E: From<Error>>(
        &mut self,
        mut bytes: &'a [u8],
        each: &mut impl FnMut(&[Option<&[u8]>; N]) -> Result<(), E>,
    ) -> Result<&'a [u8], E> {
        if !self.has_begun {
            let Some((header, rows)) = bytes.split_at_checked(HEADER_BYTES) else { return Ok(bytes) };
            if !header.starts_with(SIGNATURE) {
                return Err(unexpected("expected the signature of the binary format").into());
            }
            (self.has_begun, bytes) = (true, rows);
        }
        let mut columns = [None; N];
        loop {
            let mut ahead = bytes;
            match tuple(&mut ahead, &mut columns)? {
                Tuple::Row => each(&columns)?,
                Tuple::End => self.has_ended = true,
                Tuple::Cut => return Ok(bytes),
            }
            bytes = ahead;
        }
    }
}

enum Tuple {
    Row,
    End,
    /// There has to come more of it.
    Cut,
}

fn tuple<'a, const N: usize>(bytes: &mut &'a [u8], columns: &mut [Option<&'a [u8]>; N]) -> Result<Tuple, Error> {
    let Some(count) = take(bytes).map(i16::from_be_bytes) else { return Ok(Tuple::Cut) };
    if count == -1 {
        return Ok(Tuple::End);
    }
    if !usize::try_from(count).is_ok_and(|count| count == N) {
        return Err(unexpected("a row has another number of columns"));
    }
    for column in columns {
        let Some(length) = take(bytes).map(i32::from_be_bytes) else { return Ok(Tuple::Cut) };
        let Ok(length) = usize::try_from(length) else {
            *column = None; // -1
            continue;
        };
        let Some((value, rest)) = bytes.split_at_checked(length) else { return Ok(Tuple::Cut) };
        (*column, *bytes) = (Some(value), rest);
    }
    Ok(Tuple::Row)
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*head)
}

fn unexpected(what: &'static str) -> Error {
    Error::Protocol(format!("the answer to copy: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Rows = Vec<[Option<Vec<u8>>; 2]>;

    fn sent(rows: &Rows) -> Vec<u8> {
        let mut bytes = [SIGNATURE, &[0; 8]].concat();
        for row in rows {
            bytes.extend(2_i16.to_be_bytes());
            for column in row {
                let length = column.as_ref().map_or(-1, |value| i32::try_from(value.len()).unwrap());
                bytes.extend(length.to_be_bytes());
                bytes.extend(column.iter().flatten());
            }
        }
        bytes.extend((-1_i16).to_be_bytes());
        bytes
    }

    fn received(pieces: &[&[u8]]) -> (Rows, bool) {
        let (mut tuples, mut rows) = (Tuples::default(), Rows::new());
        for piece in pieces {
            tuples
                .feed::<2, Error>(piece, |row| {
                    rows.push(row.map(|column| column.map(<[u8]>::to_vec)));
                    Ok(())
                })
                .unwrap();
        }
        (rows, tuples.is_whole())
    }

    proptest! {
        /// Rows come out as they went in, wherever the server cuts.
        #[test]
        fn rows_come_whole(rows in proptest::collection::vec(proptest::array::uniform2(proptest::option::of(proptest::collection::vec(any::<u8>(), 0..9))), 0..9), cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..9)) {
            let bytes = sent(&rows);
            let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).chain([0, bytes.len()]).collect();
            places.sort_unstable();
            let pieces: Vec<&[u8]> = places.windows(2).map(|ends| &bytes[ends[0]..ends[1]]).collect();
            prop_assert_eq!(received(&pieces), (rows, true));
        }
    }

    #[test]
    fn an_answer_without_its_end_is_not_whole() {
        let bytes = sent(&vec![[None, Some(vec![1])]]);
        assert_eq!(received(&[&bytes[..bytes.len() - 1]]), (vec![[None, Some(vec![1])]], false));
    }

    #[test]
    fn what_is_in_another_format_is_refused() {
        let another_count = [&sent(&Rows::new())[..HEADER_BYTES], &3_i16.to_be_bytes()].concat();
        for bytes in [&b"PGCOPY\n\xff\r\r\0 and so on"[..], &another_count] {
            assert!(Tuples::default().feed::<2, Error>(bytes, |_| Ok(())).is_err(), "{bytes:?}");
        }
    }
}
