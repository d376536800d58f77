//! Where epochs are agreed on beyond Redis, so that they grow also when nobody is left who knew the last one.

use std::{future::Future, pin::Pin, time::Duration};

/// What is asked of an [`EpochAuthority`]; an error says why there is no answer.
pub type Agreement<'a, T> = Pin<Box<dyn Future<Output = Result<T, String>> + Send + 'a>>;

/// A number that only grows, changed by compare-and-swap. Answers within a few seconds.
pub trait EpochAuthority: Send + Sync {
    /// The greatest epoch that was agreed on so far.
    fn greatest(&self) -> Agreement<'_, Agreed>;
    /// Agrees on a greater one if `seen` is still what is agreed on; whether it was.
    fn raise<'a>(&'a self, seen: &'a Agreed, epoch: u64) -> Agreement<'a, bool>;
    /// Notes that the epoch that was agreed on is in Redis, if `seen` is still what is agreed on; whether it is. Whoever
    /// saw it agreed on and not in Redis yet cannot raise it any more by what it saw.
    fn begin<'a>(&'a self, seen: &'a Agreed) -> Agreement<'a, bool>;
    /// All that need a new epoch in one moment spread their questions over so long: the first one's answer serves all.
    fn spread(&self) -> Duration;
    /// Its name, for people.
    fn name(&self) -> &str;
}

/// What an authority says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// The epoch.
    pub epoch: u64,
    /// Which version of the authority's record this is.
    pub version: String,
}
