//! What a relayed command does beyond its reply: to local copies, and to what ends in the same step.

use bytes::Bytes;
use caddy_engine::{FlushCause, KeyHash};
use smallvec::SmallVec;

use crate::{shared::Shared, shown::Shown};

/// What a reply says about local copies, applied before the reply is handed on.
#[expect(clippy::struct_excessive_bools, reason = "a command may do any of these, each by itself")]
#[derive(Debug, Clone, Default)]
pub(crate) struct Effect {
    /// The keys that the command read or wrote.
    pub(crate) keys: SmallVec<[KeyHash; 2]>,
    /// It may have touched keys that nobody can name.
    pub(crate) barrier: bool,
    /// It emptied a whole database.
    pub(crate) flush: bool,
    /// It changes nothing.
    pub(crate) is_read: bool,
    /// What ends in the same step, each with the key that it belongs to: fill leases, generations of parents.
    pub(crate) leases: Vec<(Bytes, Bytes)>,
    /// A generation that is made anew in the same step.
    pub(crate) renews: Option<Box<Renewal>>,
    /// It may end generations: what is written behind it is bound to those that it leaves, and so waits for its answer.
    pub(crate) ends_groups: bool,
    /// How what ends in the same step goes along.
    pub(crate) along: Along,
    /// The string values that its reply shows.
    pub(crate) shows: Vec<Shown>,
}

/// Where what ends with a command is executed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Along {
    /// In a transaction around the command.
    #[default]
    Around,
    /// In the app's own transaction, of which the command is the EXEC.
    Within,
    /// Behind it, before it is answered: the command may wait, and in a transaction it would not.
    Behind,
}

/// A generation's key, what it is to be, and for how long.
#[derive(Debug, Clone)]
pub(crate) struct Renewal {
    pub(crate) key: Bytes,
    pub(crate) value: Bytes,
    pub(crate) life: std::time::Duration,
}

impl Effect {
    /// Whether anything else is done in the same step.
    pub(crate) fn has_more(&self) -> bool {
        !self.leases.is_empty() || self.renews.is_some()
    }

    /// Adds another command's effect, for what is executed together.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.keys.extend_from_slice(&other.keys);
        self.barrier |= other.barrier;
        self.flush |= other.flush;
        self.is_read &= other.is_read;
        self.ends_groups |= other.ends_groups;
        self.leases.extend_from_slice(&other.leases);
    }

    /// Adds what is executed as the `at`th command of a transaction.
    pub(crate) fn merge_queued(&mut self, other: &Self, at: usize) {
        self.merge(other);
        self.shows.extend(other.shows.iter().map(|shown| shown.clone().within(at)));
    }

    /// What must have happened before the reply is handed on.
    pub(crate) fn apply(&self, shared: &Shared) {
        for key in &self.keys {
            shared.kernel().bump(*key);
        }
        if self.flush {
            shared.kernel().flush_all(FlushCause::Overwritten);
        }
    }
}
