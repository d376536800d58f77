//! Where writes are kept until the store has them, so that they survive the process.

use std::sync::Arc;

use thiserror::Error;

use super::Record;

/// Runs once, when it is known whether a write is kept.
pub type Done = Box<dyn FnOnce(Result<(), JournalError>) + Send>;

/// Why a write is not kept.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the write could not be kept: {reason}")]
pub struct JournalError {
    /// What went wrong.
    pub reason: Arc<str>,
}

/// Keeps writes. All calls return at once, and take effect in the order in which they were made.
///
/// After the process has died, of each key the record with the highest number is to be restored, unless that number was
/// settled; a journal may also give back some that were settled just before.
pub trait Journal<K, V>: Ledger {
    /// Keeps `records`; `done` runs, never within this call, when they would survive what the journal is for, or cannot be
    /// kept.
    fn append(&self, records: Vec<Record<K, V>>, done: Done);
}

/// Is told what became of writes, by their numbers. All calls return at once.
pub trait Ledger: Send + Sync {
    /// The store has these, or they were given up.
    fn settled(&self, seqs: &[u64]);

    /// Of each key the first of these, by a newer one, the second. While nobody keeps that one, the older is still what is
    /// to be stored after the process has died.
    fn replaced(&self, pairs: &[(u64, u64)]);

    /// What a write is called wherever it is repeated, by this process or a later one; no other write is called so.
    fn name(&self, seq: u64) -> String;
}
