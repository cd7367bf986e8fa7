//! Reads choices out of the bytes of an input. What is not there is zero, so every input means something.

/// The bytes that are left.
pub(crate) struct Bytes<'i>(&'i [u8]);

impl<'i> Bytes<'i> {
    pub(crate) fn new(input: &'i [u8]) -> Self {
        Self(input)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// A number below `bound`, which is not zero.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::from(self.byte()) % bound
    }
}

/// The parts of an input between separators that no text holds by chance, as text.
pub(crate) fn parts(input: &[u8]) -> Vec<String> {
    input.split(|byte| *byte == SEPARATOR).map(|part| String::from_utf8_lossy(part).into_owned()).collect()
}

/// ASCII's own record separator.
pub(crate) const SEPARATOR: u8 = 0x1e;
