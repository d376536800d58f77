//! Writes that the journal could not keep: who made them is told when the store has them, refuses them, or takes too long.
//!
//! Owns the acknowledgements that are owed; never runs one itself, since that must not happen under a lock.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Done, JournalError};
use crate::clock::Moment;

/// See the module.
#[derive(Default)]
pub(super) struct Unkept {
    groups: HashMap<u64, Group>,
    /// Which groups wait for a write, by its number.
    waits: HashMap<u64, Vec<u64>>,
    next: u64,
}

/// Writes that are acknowledged together.
struct Group {
    left: usize,
    deadline: Moment,
    error: JournalError,
    done: Done,
}

/// An acknowledgement to be given.
pub(super) struct Answer(Done, Result<(), JournalError>);

impl Answer {
    pub(super) fn give(self) {
        (self.0)(self.1);
    }
}

impl Unkept {
    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Writes that are acknowledged together, by the numbers of those that bring them to the store.
    pub(super) fn add(&mut self, carriers: &[u64], deadline: Moment, error: JournalError, done: Done) {
        self.next += 1;
        for carrier in carriers {
            self.waits.entry(*carrier).or_default().push(self.next);
        }
        self.groups.insert(self.next, Group { left: carriers.len(), deadline, error, done });
    }

    /// A newer write brings it to the store now.
    pub(super) fn pass_on(&mut self, old: u64, newer: u64) {
        if let Some(groups) = self.waits.remove(&old) {
            self.waits.entry(newer).or_default().extend(groups);
        }
    }

    /// The store has these.
    pub(super) fn stored(&mut self, seqs: &[u64]) -> Vec<Answer> {
        let mut answers = Vec::new();
        if self.waits.is_empty() {
            return answers;
        }
        for id in seqs.iter().filter_map(|seq| self.waits.remove(seq)).flatten() {
            let Some(group) = self.groups.get_mut(&id) else { continue };
            group.left -= 1;
            if group.left == 0
                && let Some(group) = self.groups.remove(&id)
            {
                answers.push(Answer(group.done, Ok(())));
            }
        }
        answers
    }

    /// The store refuses these.
    pub(super) fn lost(&mut self, seqs: &[u64], reason: &Arc<str>) -> Vec<Answer> {
        let ids: Vec<u64> = seqs.iter().filter_map(|seq| self.waits.remove(seq)).flatten().collect();
        let groups = ids.into_iter().filter_map(|id| self.groups.remove(&id));
        groups.map(|group| Answer(group.done, Err(JournalError { reason: reason.clone() }))).collect()
    }

    /// When the first of them has waited for too long.
    pub(super) fn deadline(&self) -> Option<Moment> {
        self.groups.values().map(|group| group.deadline).min()
    }

    /// Those that have: they may still reach the store, but nobody can promise it.
    pub(super) fn late(&mut self, now: Moment) -> Vec<Answer> {
        let late: Vec<u64> = self.groups.iter().filter(|(_, group)| group.deadline <= now).map(|(id, _)| *id).collect();
        let groups = late.into_iter().filter_map(|id| self.groups.remove(&id));
        let answers = groups.map(|group| Answer(group.done, Err(group.error))).collect();
        if self.groups.is_empty() {
            self.waits.clear();
        }
        answers
    }
}
