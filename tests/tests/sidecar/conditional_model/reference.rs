//! What the reference of conditional writes knows, and so what each of them has to answer. It knows nothing of Redis or of
//! sidecars; keys and tags are numbers.

use std::collections::BTreeMap;

use super::KEYS;

/// What is in force of each group; absent: there is none.
pub(super) type Groups = BTreeMap<String, u64>;

/// What Redis holds under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) value: String,
    pub(super) groups: Groups,
}

/// A token that an app was given.
#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) text: String,
    pub(super) key: usize,
    pub(super) lease: u64,
    pub(super) entry: Option<Entry>,
    pub(super) groups: Groups,
}

#[derive(Debug, Default)]
pub(super) struct Reference {
    pub(super) entries: [Option<Entry>; KEYS],
    pub(super) leases: [Option<u64>; KEYS],
    pub(super) records: [Option<String>; KEYS],
    pub(super) groups: Groups,
    /// Greater than all that there was.
    pub(super) next: u64,
    pub(super) epoch: u64,
    pub(super) holder: Option<String>,
}

impl Reference {
    pub(super) fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// What a value carries that is written, or begun, now with these tags.
    pub(super) fn bind(&mut self, tags: &[usize]) -> Groups {
        let names = ["a".to_owned(), "s:*".to_owned()].into_iter().chain(tags.iter().map(|tag| format!("t:t{tag}")));
        let mut bound = Groups::new();
        for name in names.collect::<Vec<_>>() {
            let fresh = self.next();
            let value = *self.groups.entry(name.clone()).or_insert(fresh);
            bound.insert(name, value);
        }
        bound
    }

    pub(super) fn is_in_force(&self, groups: &Groups) -> bool {
        groups.iter().all(|(name, value)| self.groups.get(name) == Some(value))
    }

    /// What a read shows.
    pub(super) fn shown(&self, key: usize) -> Option<&str> {
        self.entries[key].as_ref().filter(|entry| self.is_in_force(&entry.groups)).map(|entry| &*entry.value)
    }

    /// A write through a sidecar.
    pub(super) fn write(&mut self, key: usize, entry: Option<Entry>) {
        self.entries[key] = entry;
        self.leases[key] = None;
    }

    pub(super) fn admits(&self, token: &Token) -> bool {
        self.leases[token.key] == Some(token.lease)
            && self.entries[token.key] == token.entry
            && self.is_in_force(&token.groups)
    }

    pub(super) fn admits_holder(&self, key: usize, (token, epoch): &(String, u64)) -> bool {
        *epoch == self.epoch
            && match &self.records[key] {
                Some(seen) => seen <= token,
                None => self.holder.as_ref() == Some(token),
            }
    }
}
