//! The dictionaries that one process knows.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::{Dictionary, DictionaryError, DictionaryId, DictionaryStore};

/// Some 60 KiB each.
const DEFAULT_CAPACITY: usize = 64;

/// The dictionaries that a process knows, shared by all its keyspaces.
///
/// Bounded: the one that nobody asked for the longest goes when another comes; it is fetched again when a value names
/// it. What encodes holds its own reference.
///
/// ```
/// use std::{cell::RefCell, collections::HashMap, convert::Infallible, sync::Arc};
/// use caddy_engine::codec::{Dictionaries, Dictionary, DictionaryId, DictionaryStore};
/// use caddy_engine::codec::training::{Reservoir, TrainingConfig};
///
/// #[derive(Default)]
/// struct Store(RefCell<HashMap<DictionaryId, Vec<u8>>>);
///
/// impl DictionaryStore for Store {
///     type Error = Infallible;
///     async fn store(&self, id: DictionaryId, content: &[u8]) -> Result<(), Infallible> {
///         self.0.borrow_mut().insert(id, content.to_vec());
///         Ok(())
///     }
///     async fn load(&self, id: DictionaryId) -> Result<Option<Vec<u8>>, Infallible> {
///         Ok(self.0.borrow().get(&id).cloned())
///     }
/// }
///
/// let mut reservoir = Reservoir::new(TrainingConfig::default(), 1);
/// for user in 0..2000 {
///     reservoir.offer(format!("{{\"id\":{user},\"name\":\"user {user}\",\"plan\":\"free\"}}").as_bytes());
/// }
/// let trained = reservoir.take().train(1)?;
///
/// let (here, there) = (Dictionaries::default(), Dictionaries::default());
/// let dictionary = here.insert(trained.dictionary);
/// assert!(!here.is_stored(dictionary.id()));
///
/// // Somebody else's value names it before it is stored: unknown, and noted.
/// assert!(there.get(dictionary.id()).is_none());
///
/// let store = Store::default();
/// block_on(here.publish(&store))?;
/// assert!(here.is_stored(dictionary.id()));
/// block_on(there.fetch_wanted(&store))?;
/// assert!(there.get(dictionary.id()).is_some());
/// # fn block_on<F: Future>(future: F) -> F::Output {
/// #     let mut context = std::task::Context::from_waker(std::task::Waker::noop());
/// #     match std::pin::pin!(future).poll(&mut context) {
/// #         std::task::Poll::Ready(output) => output,
/// #         std::task::Poll::Pending => unreachable!("this store never waits"),
/// #     }
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Dictionaries {
    known: RwLock<Known>,
    /// Named by values, and not known.
    wanted: Mutex<HashSet<DictionaryId>>,
    uses: AtomicU64,
    capacity: usize,
}

#[derive(Debug, Default)]
struct Known {
    by_id: HashMap<DictionaryId, Arc<Row>>,
    /// How often L3 was emptied: what was stored before such an event is not stored.
    emptied: u64,
}

#[derive(Debug)]
struct Row {
    dictionary: Arc<Dictionary>,
    last_used: AtomicU64,
}

impl Default for Dictionaries {
    fn default() -> Self {
        Self::with_capacity(DEFAULT_CAPACITY)
    }
}

impl Dictionaries {
    /// Keeps at most `capacity` dictionaries, at least one.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { known: RwLock::default(), wanted: Mutex::default(), uses: AtomicU64::new(0), capacity: capacity.max(1) }
    }

    /// Makes a dictionary known; returns the one that counts, which is an older one with the same content if any.
    pub fn insert(&self, dictionary: Dictionary) -> Arc<Dictionary> {
        self.insert_as(dictionary, None)
    }

    /// The dictionary `id`. If it is unknown that is noted for [`Dictionaries::fetch_wanted`].
    pub fn get(&self, id: DictionaryId) -> Option<Arc<Dictionary>> {
        if let Some(row) = self.known.read().by_id.get(&id) {
            row.last_used.store(self.tick(), Ordering::Relaxed);
            return Some(row.dictionary.clone());
        }
        let mut wanted = self.wanted.lock();
        if wanted.len() < self.capacity {
            wanted.insert(id);
        }
        None
    }

    /// Whether L3 is known to hold it, so that values may be stored under it.
    pub fn is_stored(&self, id: DictionaryId) -> bool {
        self.known.read().by_id.get(&id).is_some_and(|row| row.dictionary.is_stored())
    }

    /// Whether [`Dictionaries::fetch_wanted`] has anything to do.
    pub fn has_wanted(&self) -> bool {
        !self.wanted.lock().is_empty()
    }

    /// L3 may have lost them (flushed, failed over, restarted empty): none counts as stored until published again.
    pub fn forget_stored(&self) {
        let mut known = self.known.write();
        known.emptied += 1;
        for row in known.by_id.values() {
            row.dictionary.set_stored(false);
        }
    }

    /// Stores every dictionary that L3 is not known to hold, reads each back, and only then lets values name it.
    /// How many were stored.
    ///
    /// # Errors
    ///
    /// The first that fails; call again later.
    pub async fn publish<S: DictionaryStore>(&self, store: &S) -> Result<usize, DictionaryError> {
        let (emptied, unstored) = {
            let known = self.known.read();
            let unstored = known.by_id.values().map(|row| row.dictionary.clone());
            (known.emptied, unstored.filter(|dictionary| !dictionary.is_stored()).collect::<Vec<_>>())
        };
        for dictionary in &unstored {
            let id = dictionary.id();
            store.store(id, dictionary.content()).await.map_err(failed(id, "store"))?;
            let back = store.load(id).await.map_err(failed(id, "load"))?.ok_or(DictionaryError::Vanished { id })?;
            let found = DictionaryId::of(&back);
            if found != id {
                return Err(DictionaryError::Altered { expected: id, found });
            }
            let known = self.known.write();
            if known.emptied == emptied {
                dictionary.set_stored(true);
            }
        }
        Ok(unstored.len())
    }

    /// Loads the dictionaries that values named. How many became known; one that is not stored is no error, the value
    /// that named it stays a miss.
    ///
    /// # Errors
    ///
    /// The first that fails; it is asked for again when the next value names it.
    pub async fn fetch_wanted<S: DictionaryStore>(&self, store: &S) -> Result<usize, DictionaryError> {
        let emptied = self.known.read().emptied;
        let wanted = std::mem::take(&mut *self.wanted.lock());
        let mut fetched = 0;
        for id in wanted {
            let Some(content) = store.load(id).await.map_err(failed(id, "load"))? else { continue };
            let found = DictionaryId::of(&content);
            if found != id {
                return Err(DictionaryError::Altered { expected: id, found });
            }
            self.insert_as(Dictionary::new(&content)?, Some(emptied));
            fetched += 1;
        }
        Ok(fetched)
    }

    /// `loaded`: read from L3 when that had been emptied so many times.
    fn insert_as(&self, dictionary: Dictionary, loaded: Option<u64>) -> Arc<Dictionary> {
        let id = dictionary.id();
        let mut known = self.known.write();
        if !known.by_id.contains_key(&id) && known.by_id.len() >= self.capacity {
            let oldest = known.by_id.iter().min_by_key(|(_, row)| row.last_used.load(Ordering::Relaxed));
            if let Some(oldest) = oldest.map(|(id, _)| *id) {
                known.by_id.remove(&oldest);
            }
        }
        let emptied = known.emptied;
        let row = known
            .by_id
            .entry(id)
            .or_insert_with(|| Arc::new(Row { dictionary: Arc::new(dictionary), last_used: AtomicU64::new(0) }));
        row.last_used.store(self.tick(), Ordering::Relaxed);
        if loaded == Some(emptied) {
            row.dictionary.set_stored(true);
        }
        self.wanted.lock().remove(&id);
        row.dictionary.clone()
    }

    fn tick(&self) -> u64 {
        self.uses.fetch_add(1, Ordering::Relaxed)
    }
}

fn failed<E>(id: DictionaryId, step: &'static str) -> impl FnOnce(E) -> DictionaryError
where
    E: std::error::Error + Send + Sync + 'static,
{
    move |source| DictionaryError::Store { id, step, source: Box::new(source) }
}
