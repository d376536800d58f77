//! Who wants what: owners, modes, tickets, and what a lock looks like from outside.

use std::{fmt, hash::Hash, sync::Arc, time::Duration};

use super::FencingToken;

/// What can name a lock.
pub trait LockKey: Clone + Eq + Hash + Ord + fmt::Debug + Send + Sync + 'static {}

impl<K: Clone + Eq + Hash + Ord + fmt::Debug + Send + Sync + 'static> LockKey for K {}

/// Who holds or wants a lock: one thread of control. The same owner may take a lock that it holds again; it has to let it
/// go as often.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner(Arc<str>);

impl Owner {
    /// The owner of this name.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    /// Its name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who else may hold the lock meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum LockMode {
    /// Nobody.
    #[default]
    Exclusive,
    /// Others in this mode.
    Shared,
}

impl LockMode {
    /// Whether two owners cannot have it at the same time.
    pub const fn excludes(self, other: Self) -> bool {
        matches!(self, Self::Exclusive) || matches!(other, Self::Exclusive)
    }

    /// `SHARED` or `EXCLUSIVE`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exclusive => "EXCLUSIVE",
            Self::Shared => "SHARED",
        }
    }
}

/// One acquisition: unique over all clients of a backend. Its text is `<client>-<number>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket {
    /// Which of its client's acquisitions, in their order.
    pub number: u64,
    /// Which client; has no dash.
    pub client: Arc<str>,
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.client, self.number)
    }
}

impl Ticket {
    /// Reads `<client>-<number>`.
    pub fn parse(text: &str) -> Option<Self> {
        let (client, number) = text.rsplit_once('-')?;
        Some(Self { client: client.into(), number: number.parse().ok()? })
    }
}

/// A lock as the backend sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockStatus<K> {
    /// Its name.
    pub name: K,
    /// Who holds it; several only in mode shared.
    pub holders: Vec<HolderStatus>,
    /// Who waits for it, the next one first.
    pub waiters: Vec<WaiterStatus>,
}

/// One holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HolderStatus {
    /// Who.
    pub owner: Owner,
    /// How.
    pub mode: LockMode,
    /// Under which token.
    pub token: FencingToken,
    /// What is left of its lease.
    pub remaining: Duration,
}

/// One waiter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaiterStatus {
    /// Who.
    pub owner: Owner,
    /// What for.
    pub mode: LockMode,
    /// Which acquisition.
    pub ticket: Ticket,
    /// Its place among the arrivals at all locks of the backend: greater is younger.
    pub arrival: u64,
}
