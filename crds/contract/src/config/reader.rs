//! Reading single values: each method notes what is wrong, so that all faults of a file are told at once.

use crate::{Budget, ByteSize, Faults, QuantityError, parse_duration};
use std::{net::IpAddr, time::Duration};

/// Reads values and notes what is wrong with them; a faulty value's stand-in never leaves [`crate::RawConfig::parse`].
#[derive(Default)]
pub(super) struct Reader {
    pub(super) faults: Faults,
}

impl Reader {
    pub(super) fn check(&mut self, holds: bool, path: &str, message: impl Into<String>) {
        if !holds {
            self.faults.add(path, message);
        }
    }

    pub(super) fn noted<T: Default>(&mut self, path: &str, value: Result<T, QuantityError>) -> T {
        value.unwrap_or_else(|error| {
            self.faults.add(path, error.to_string());
            T::default()
        })
    }

    pub(super) fn size(&mut self, path: &str, text: &str) -> ByteSize {
        self.noted(path, text.parse())
    }

    pub(super) fn size_from(&mut self, path: &str, text: &str, least: ByteSize) -> ByteSize {
        let known = self.faults.len();
        let size = self.size(path, text);
        self.check(
            size >= least || self.faults.len() > known,
            path,
            format!("{text} is too small; write at least {least}"),
        );
        size
    }

    /// A share is what the limit makes of it, however little.
    pub(super) fn budget_from(&mut self, path: &str, text: &str, least: ByteSize) -> Budget {
        match text.parse() {
            Ok(Budget::Size(_)) => Budget::Size(self.size_from(path, text, least)),
            Ok(share) => share,
            Err(error) => {
                self.faults.add(path, error.to_string());
                Budget::Size(least)
            }
        }
    }

    pub(super) fn time(&mut self, path: &str, text: &str, least_millis: u64) -> Duration {
        let known = self.faults.len();
        let time = self.noted(path, parse_duration(text));
        let least = Duration::from_millis(least_millis);
        self.check(
            (least..=Duration::from_hours(24)).contains(&time) || self.faults.len() > known,
            path,
            format!("{text} is out of range; write {least:?} to 24h"),
        );
        time
    }

    /// A time that need not be said.
    pub(super) fn bound(&mut self, path: &str, text: &str) -> Option<Duration> {
        (!text.is_empty()).then(|| self.time(path, text, 10))
    }

    pub(super) fn within(&mut self, path: &str, value: u32, least: u32, most: u32) -> u32 {
        self.check((least..=most).contains(&value), path, format!("{value} is out of range; write {least} to {most}"));
        value
    }

    pub(super) fn address(&mut self, path: &str, text: &str) -> IpAddr {
        text.parse().unwrap_or_else(|_| {
            self.faults.add(path, format!("{text:?} is not an IP address; write e.g. 127.0.0.1 or 0.0.0.0"));
            IpAddr::from([127, 0, 0, 1])
        })
    }
}

/// An empty text says nothing.
pub(super) fn named<T: for<'a> From<&'a String>>(text: &String) -> Option<T> {
    (!text.is_empty()).then(|| T::from(text))
}
