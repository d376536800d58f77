//! A [`WriteBehind`] is a store itself: one that has a write when it is acknowledged, and shows it to readers at once.

use std::hash::Hash;

use futures::channel::oneshot;

use super::{BehindError, JournalError, Record, Room, Write, WriteBehind};
use crate::store::{BackingStore, StoreError, StoreFuture, Stored, load};
use crate::weigh::Weigh;

impl<K, V> BackingStore<K, V> for WriteBehind<K, V>
where
    K: Eq + Hash + Clone + Weigh + Send + Sync + 'static,
    V: Clone + Weigh + Send + Sync + 'static,
{
    /// What the store has, or will have. A write of another process that the store does not have yet is not seen.
    fn load_many<'a>(&'a self, keys: &'a [K]) -> StoreFuture<'a, Vec<Option<Stored<V>>>> {
        Box::pin(async move {
            // Looked at before the store is asked: what is on its way now may have arrived when the store answers, and is
            // then what the store answers, or older.
            let pending: Vec<Option<Write<V>>> = keys.iter().map(|key| self.pending(key)).collect();
            let asked: Vec<K> =
                keys.iter().zip(&pending).filter(|(_, write)| write.is_none()).map(|(key, _)| key.clone()).collect();
            let loaded = if asked.is_empty() { Vec::new() } else { load(&**self.store(), &asked).await? };
            let mut loaded = loaded.into_iter();
            // What was written meanwhile is newer than what the store answered.
            let newest = |key, write: Option<Write<V>>| self.pending(key).or(write);
            let mut found = Vec::with_capacity(keys.len());
            for (key, write) in keys.iter().zip(pending) {
                let stored = if write.is_none() { loaded.next().flatten() } else { None };
                found.push(match newest(key, write) {
                    Some(write) => write.value().cloned().map(Stored::new),
                    None => stored,
                });
            }
            Ok(found)
        })
    }

    fn store_many<'a>(&'a self, entries: &'a [(K, V)]) -> StoreFuture<'a, ()> {
        let writes = entries.iter().map(|(key, value)| (key.clone(), Write::Put(value.clone()))).collect();
        Box::pin(async move { self.keep(writes).await.map_err(StoreError::from) })
    }

    fn delete_many<'a>(&'a self, keys: &'a [K]) -> StoreFuture<'a, ()> {
        let writes = keys.iter().map(|key| (key.clone(), Write::Delete)).collect();
        Box::pin(async move { self.keep(writes).await.map_err(StoreError::from) })
    }
}

impl<K, V> WriteBehind<K, V>
where
    K: Eq + Hash + Clone + Weigh + Send + Sync + 'static,
    V: Clone + Weigh + Send + Sync + 'static,
{
    /// Takes writes of different keys and waits until they are kept.
    pub async fn keep(&self, writes: Vec<(K, Write<V>)>) -> Result<(), BehindError> {
        let bytes = writes.iter().map(|(key, write)| Record::weight(key, write)).sum();
        let room = self.room(writes.len(), bytes).await?;
        self.keep_in(room, writes).await
    }

    /// Takes writes of different keys at once; the future is done when they are kept.
    pub fn keep_in(
        &self,
        room: Room<K, V>,
        writes: Vec<(K, Write<V>)>,
    ) -> impl Future<Output = Result<(), BehindError>> + use<K, V> {
        let (told, kept) = oneshot::channel();
        self.write(room, writes, Box::new(move |result| drop(told.send(result))));
        async move {
            let lost = || JournalError { reason: "write-behind has ended: it has to be run".into() };
            kept.await.unwrap_or_else(|_| Err(lost())).map_err(BehindError::Unkept)
        }
    }
}

impl From<BehindError> for StoreError {
    fn from(error: BehindError) -> Self {
        Self::Unavailable { reason: error.to_string().into() }
    }
}
