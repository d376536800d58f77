//! Sizes (`64Mi`, as Kubernetes writes them) and durations (`500ms`, `1s`, `5m`, `1h`). Whole numbers only.

use std::{fmt, str::FromStr, time::Duration};

/// Suffixes of sizes with their factors; the longer ones first, since `Mi` ends in no other but begins like `M`.
const SIZES: [(&str, u64); 9] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("", 1),
];

/// Suffixes of durations in milliseconds; `ms` before `s` and `m`.
const DURATIONS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];

/// Why a text is not a quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not a whole number with a known suffix, or more than 64 bits hold.
    #[error("{0:?} is not a size; write e.g. 64Mi")]
    Size(String),
    /// Not a whole number with a known suffix, or more than 64 bits of milliseconds.
    #[error("{0:?} is not a duration; write e.g. 500ms, 1s, 5m or 1h")]
    Duration(String),
    /// Neither a size nor a whole number from 1 to 75 with `%`.
    #[error("{0:?} is neither a size nor a share of the memory limit; write e.g. 64Mi, or 1% to 75%")]
    Budget(String),
}

/// A number of bytes, written as Kubernetes writes memory: `64Mi`, `1Gi`, `500k`, `1024`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

impl ByteSize {
    /// That many bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// That many mebibytes.
    pub const fn mebi(n: u64) -> Self {
        Self(n << 20)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The number of bytes as a length in memory; saturates where `usize` is narrower.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for ByteSize {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        scaled(text, &SIZES).map(Self).ok_or_else(|| QuantityError::Size(text.to_owned()))
    }
}

impl fmt::Display for ByteSize {
    /// The shortest exact form with a binary suffix.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = |(_, factor): &&(&str, u64)| self.0 != 0 && self.0.is_multiple_of(*factor);
        match SIZES[..4].iter().rev().find(exact) {
            Some((suffix, factor)) => write!(f, "{}{suffix}", self.0 / factor),
            None => write!(f, "{}", self.0),
        }
    }
}

/// How much memory something may take: a size, or a share of the memory limit that the process runs under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// So many bytes, whatever the limit is.
    Size(ByteSize),
    /// So many percent of the limit.
    Share(u8),
}

impl Budget {
    /// The greatest share; the process needs memory beside what it shares out.
    pub const MOST: u8 = 75;

    /// The budget under this limit; none if it is a share of one that does not exist.
    ///
    /// ```
    /// use caddy_contract::{Budget, ByteSize};
    ///
    /// let half: Budget = "50%".parse()?;
    /// assert_eq!(half.under(Some(ByteSize::mebi(512))), Some(ByteSize::mebi(256)));
    /// assert_eq!(half.under(None), None);
    /// # Ok::<(), caddy_contract::QuantityError>(())
    /// ```
    pub fn under(self, limit: Option<ByteSize>) -> Option<ByteSize> {
        match self {
            Self::Size(size) => Some(size),
            Self::Share(percent) => {
                limit.map(|limit| ByteSize((u128::from(limit.0) * u128::from(percent) / 100) as u64))
            }
        }
    }
}

impl FromStr for Budget {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some(percent) = text.strip_suffix('%') else {
            return text.parse().map(Self::Size).map_err(|_| QuantityError::Budget(text.to_owned()));
        };
        let share = scaled(percent, &[("", 1)]).and_then(|percent| u8::try_from(percent).ok());
        let share = share.filter(|share| (1..=Self::MOST).contains(share));
        share.map(Self::Share).ok_or_else(|| QuantityError::Budget(text.to_owned()))
    }
}

/// Reads a duration: a whole number followed by `ms`, `s`, `m` or `h`.
///
/// # Errors
/// [`QuantityError::Duration`] for everything else, a bare number included.
pub fn parse_duration(text: &str) -> Result<Duration, QuantityError> {
    scaled(text, &DURATIONS).map(Duration::from_millis).ok_or_else(|| QuantityError::Duration(text.to_owned()))
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    units.iter().find_map(|(suffix, factor)| {
        let digits = text.strip_suffix(suffix)?;
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| digits.parse::<u64>().ok()?.checked_mul(*factor)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read_as_kubernetes_reads_them() {
        for (text, bytes) in
            [("0", 0), ("1024", 1024), ("1k", 1000), ("64Mi", 64 << 20), ("2Gi", 2 << 30), ("3M", 3_000_000)]
        {
            assert_eq!(text.parse::<ByteSize>().unwrap().bytes(), bytes, "{text}");
        }
    }

    #[test]
    fn what_is_not_a_size_is_refused() {
        for text in ["", "Mi", "64Mx", "64 Mi", "-1", "+1", "1.5Gi", "64mi", "99999999999999999999", "99999999Ti"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_budget_is_a_size_or_a_share() {
        assert_eq!("64Mi".parse(), Ok(Budget::Size(ByteSize::mebi(64))));
        assert_eq!("75%".parse(), Ok(Budget::Share(75)));
        for text in ["", "%", "0%", "76%", "-5%", "50 %", "1.5%", "256%", "half", "50%%"] {
            assert_eq!(text.parse::<Budget>(), Err(QuantityError::Budget(text.to_owned())), "{text:?}");
        }
    }

    #[test]
    fn durations_have_a_unit() {
        for (text, millis) in [("500ms", 500), ("1s", 1000), ("5m", 300_000), ("1h", 3_600_000), ("0s", 0)] {
            assert_eq!(parse_duration(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
        for text in ["", "1", "s", "1d", "1.5s", "-1s", "1 s", "18446744073709551615h"] {
            assert!(parse_duration(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_size_reads_back_as_it_was_printed(bytes: u64) {
            prop_assert_eq!(ByteSize::new(bytes).to_string().parse(), Ok(ByteSize::new(bytes)));
        }

        #[test]
        fn no_text_makes_the_readers_panic(text in ".{0,24}") {
            let _ = (text.parse::<ByteSize>(), parse_duration(&text));
        }
    }
}
