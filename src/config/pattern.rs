//! Patterns of names, with `*` for any run of characters. Pure.

use std::fmt;

/// A pattern; without `*` it is the name itself. Letters are compared exactly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// Takes any text: there is nothing that could be wrong with it.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// As it is written in the configuration.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// Tells whether the whole text fits, in time linear in both lengths.
    pub fn matches(&self, text: &str) -> bool {
        let Some((head, rest)) = self.0.split_once('*') else {
            return self.0 == text;
        };
        let (middle, tail) = rest.rsplit_once('*').unwrap_or(("", rest));
        let Some(mut left) = text.strip_prefix(head).and_then(|left| left.strip_suffix(tail)) else {
            return false;
        };
        // The first fit of a piece leaves the most for those after it, so no other need be tried.
        for piece in middle.split('*') {
            let Some((_, after)) = left.split_once(piece) else {
                return false;
            };
            left = after;
        }
        true
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_star_stands_for_any_run_of_characters() {
        let cases = [
            ("Order", "Order", true),
            ("Order", "Orders", false),
            ("Order*", "Order", true),
            ("Order*", "OrderPlaced", true),
            ("*Order", "PreOrder", true),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("**", "", true),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("*é*", "café au lait", true),
            ("order", "Order", false),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(Pattern::new(pattern).matches(text), expected, "{pattern} {text}");
        }
    }

    /// The definition, at exponential cost.
    fn fits(pattern: &[char], text: &[char]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some(('*', rest)), None) => fits(rest, text),
            (Some(('*', rest)), Some((_, after))) => fits(rest, text) || fits(pattern, after),
            (Some((p, rest)), Some((t, after))) => p == t && fits(rest, after),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn matches_as_defined(pattern in "[ab*]{0,8}", text in "[abé]{0,10}") {
            let (p, t): (Vec<_>, Vec<_>) = (pattern.chars().collect(), text.chars().collect());
            prop_assert_eq!(Pattern::new(pattern).matches(&text), fits(&p, &t));
        }
    }
}
