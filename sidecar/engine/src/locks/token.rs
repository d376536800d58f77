//! The fencing token: which of two holders of a lock came later. Pure data.

use std::{fmt, str::FromStr};

/// Digits of a field: the longest `u64`.
const DIGITS: usize = 20;

/// Proof of one acquisition: of two tokens of the same lock the later one is greater, over lease ends, restarts and lost
/// data. Its text is two decimal fields of 20 digits, `epoch-counter`, which sort as text just as the tokens do, and pass
/// through languages whose numbers are doubles.
///
/// ```
/// use caddy_engine::locks::FencingToken;
/// let token = FencingToken::new(7, 42);
/// assert_eq!(token.to_string(), "00000000000000000007-00000000000000000042");
/// assert_eq!(token.to_string().parse(), Ok(token));
/// assert!(FencingToken::new(8, 1) > token);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FencingToken {
    epoch: u64,
    counter: u64,
}

impl FencingToken {
    /// The token with this counter, of this incarnation of the backend's data.
    pub const fn new(epoch: u64, counter: u64) -> Self {
        Self { epoch, counter }
    }

    /// Which incarnation of the data issued it.
    pub const fn epoch(self) -> u64 {
        self.epoch
    }

    /// Its place within the epoch.
    pub const fn counter(self) -> u64 {
        self.counter
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:020}-{:020}", self.epoch, self.counter)
    }
}

/// The text is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a fencing token; pass the one that the acquisition returned, two fields of 20 digits with a dash between")]
pub struct ParseTokenError;

impl FromStr for FencingToken {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, ParseTokenError> {
        let field = |text: &str| {
            let plain = text.len() == DIGITS && text.bytes().all(|byte| byte.is_ascii_digit());
            if plain { text.parse().map_err(|_| ParseTokenError) } else { Err(ParseTokenError) }
        };
        let (epoch, counter) = text.split_once('-').ok_or(ParseTokenError)?;
        Ok(Self { epoch: field(epoch)?, counter: field(counter)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn tokens_sort_as_text_and_come_back(a: (u64, u64), b: (u64, u64)) {
            let (a, b) = (FencingToken::new(a.0, a.1), FencingToken::new(b.0, b.1));
            prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
            prop_assert_eq!(a.to_string().parse(), Ok(a));
        }
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for text in
            ["", "-", "7-42", "00000000000000000007-0000000000000000004x", "+0000000000000000007-00000000000000000042"]
        {
            assert_eq!(text.parse::<FencingToken>(), Err(ParseTokenError), "{text}");
        }
        assert!("99999999999999999999-00000000000000000001".parse::<FencingToken>().is_err(), "beyond u64");
    }
}
