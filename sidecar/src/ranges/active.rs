//! One pattern in force, and which of its keys this sidecar has had cleared.

use std::{collections::HashMap, sync::Arc};

use caddy_remote::ranges::{Access, RESERVED, Record};
use parking_lot::Mutex;

/// So many keys are remembered; one that is forgotten is cleared once more, which changes nothing.
const MAX_REMEMBERED: usize = 1 << 16;

/// See the module.
#[derive(Debug)]
pub(crate) struct ActiveRange {
    pub(crate) record: Record,
    cleared: Mutex<HashMap<Box<[u8]>, Access>>,
}

impl ActiveRange {
    /// Of this record; the one that is known by its id, if there is one.
    pub(super) fn of(record: Record, known: &[Arc<Self>]) -> Arc<Self> {
        let same = known.iter().find(|range| range.record == record).cloned();
        same.unwrap_or_else(|| Arc::new(Self { record, cleared: Mutex::default() }))
    }

    /// Whether it has the key.
    pub(crate) fn has(&self, database: u32, key: &[u8]) -> bool {
        database == self.record.database && !key.starts_with(RESERVED) && self.record.pattern.matches(key)
    }

    /// Whether the key was cleared for this access, or a greater one.
    pub(crate) fn is_cleared(&self, key: &[u8], access: Access) -> bool {
        self.cleared.lock().get(key).is_some_and(|known| *known >= access)
    }

    /// It was.
    pub(crate) fn note_cleared(&self, key: &[u8], access: Access) {
        let mut cleared = self.cleared.lock();
        if cleared.len() >= MAX_REMEMBERED {
            cleared.clear();
        }
        let known = cleared.entry(key.into()).or_insert(access);
        *known = (*known).max(access);
    }
}
