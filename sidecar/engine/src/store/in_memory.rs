//! A store in this process: for tests, examples, and data that is computed rather than kept.

use std::collections::HashMap;
use std::hash::Hash;

use super::{BackingStore, StoreFuture, Stored};
use crate::sync::Mutex;

/// A [`BackingStore`] in this process, for tests, examples, and data that is computed rather than kept. Every call is one step: nobody sees half of it.
#[derive(Debug)]
pub struct InMemoryStore<K, V> {
    values: Mutex<HashMap<K, V>>,
}

impl<K, V> Default for InMemoryStore<K, V> {
    fn default() -> Self {
        Self { values: Mutex::new(HashMap::new()) }
    }
}

impl<K: Eq + Hash, V> InMemoryStore<K, V> {
    /// How many values there are.
    pub fn len(&self) -> usize {
        self.values.lock().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<K: Eq + Hash + Clone + Send + Sync, V: Clone + Send + Sync> BackingStore<K, V> for InMemoryStore<K, V> {
    fn load_many<'a>(&'a self, keys: &'a [K]) -> StoreFuture<'a, Vec<Option<Stored<V>>>> {
        Box::pin(async move {
            let values = self.values.lock();
            Ok(keys.iter().map(|key| values.get(key).cloned().map(Stored::new)).collect())
        })
    }

    fn store_many<'a>(&'a self, entries: &'a [(K, V)]) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            self.values.lock().extend(entries.iter().cloned());
            Ok(())
        })
    }

    fn delete_many<'a>(&'a self, keys: &'a [K]) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let mut values = self.values.lock();
            for key in keys {
                values.remove(key);
            }
            Ok(())
        })
    }
}
