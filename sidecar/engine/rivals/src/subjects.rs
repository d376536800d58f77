//! Ours, as it is used for bytes and as it is used for any other type, and the others, behind one face.

use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use caddy_engine::{
    Cache, CacheConfig, Clock, Hold, KeyHash, L1Config, L2Config, Lookup, ManualClock, Moment, Packed, PackedRef,
    SourceId, SourceKind, TieringConfig, Worker,
};
use parking_lot::Mutex;

use crate::loads::Key;

const VALUE: [u8; 100] = [7; 100];

/// One thread's hold of a cache.
pub trait Opponent {
    /// Reads the value's first byte, if the key is there.
    fn get(&mut self, key: &[u8]) -> bool;
    /// Puts a value in.
    fn put(&mut self, key: &[u8]);
}

/// A cache of several threads.
pub trait Threaded: Sync {
    /// What each thread has.
    type Handle<'a>: Opponent
    where
        Self: 'a;
    /// One of them.
    fn handle(&self) -> Self::Handle<'_>;
}

fn seven(byte: u8) -> bool {
    black_box(byte) == 7
}

// === ours ===

/// Tiers and a worker of one thread.
pub struct Tiers<K: Hold<Held: Eq>, V: Hold> {
    cache: Arc<Cache<K, V>>,
    worker: Worker<K, V>,
    source: SourceId,
    now: Moment,
}

/// Key and value are in the entry's own allocation.
pub type Ours = Tiers<Packed, Packed>;
/// The types that the others hold.
pub type Bytewise = Tiers<Key, Bytes>;

/// A key's borrowed form.
pub struct KeyRef<'a>(&'a [u8]);

impl hashbrown::Equivalent<Key> for KeyRef<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        *self.0 == **key
    }
}

impl<K: Hold<Held: Eq>, V: Hold> Tiers<K, V>
where
    Self: Opponent,
{
    fn new(l1: L1Config, l2: L2Config, promote_after_hits: u16) -> Self {
        let tiering = TieringConfig { promote_after_hits, ..TieringConfig::default() };
        let cache = Cache::<K, V>::new(CacheConfig { l1, l2, tiering, ..CacheConfig::default() });
        let now = ManualClock::default().now();
        let source = cache.kernel().register(SourceKind::Tracked).expect("an empty table");
        cache.kernel().proved(&cache.kernel().sending(source, now), now);
        Self { worker: cache.worker(), cache, source, now }
    }

    fn filled(keys: &[Key], l1_entries: usize, promote_after_hits: u16) -> Self {
        let l1 = L1Config { max_entries: l1_entries, max_bytes: usize::MAX };
        let l2 = L2Config { max_bytes: 1 << 30, ..L2Config::default() };
        let mut this = Self::new(l1, l2, promote_after_hits);
        for key in keys {
            this.put(key);
            assert!(this.get(key));
        }
        this
    }

    pub fn all_in_l1(keys: &[Key]) -> Self {
        Self::filled(keys, keys.len(), 1)
    }

    pub fn all_in_l2(keys: &[Key]) -> Self {
        Self::filled(keys, 0, u16::MAX)
    }

    /// Full with that many, by the number of entries as the others are.
    pub fn with_room_for(entries: usize, keys: &[Key]) -> Self {
        let l2 = L2Config { max_bytes: 1 << 30, max_entries: entries, ..L2Config::default() };
        let mut this = Self::new(L1Config::default(), l2, TieringConfig::default().promote_after_hits);
        keys.iter().take(2 * entries).for_each(|key| this.put(key));
        this
    }
}

impl Opponent for Ours {
    #[inline]
    fn get(&mut self, key: &[u8]) -> bool {
        match self.worker.lookup(KeyHash::of(key).tier(0), &PackedRef(key), self.now) {
            Lookup::Hit(hit) => seven(hit.entry.value()[0]),
            _ => false,
        }
    }

    fn put(&mut self, key: &[u8]) {
        let key_hash = KeyHash::of(key);
        let token = self.cache.kernel().begin_fill(self.source, key_hash, self.now);
        let filled = self.cache.fill_bytes(&token, key_hash.tier(0), key, &VALUE, Moment::NEVER, self.now);
        filled.expect("it fits");
    }
}

impl Opponent for Bytewise {
    #[inline]
    fn get(&mut self, key: &[u8]) -> bool {
        match self.worker.lookup(KeyHash::of(key).tier(0), &KeyRef(key), self.now) {
            Lookup::Hit(hit) => seven(hit.entry.value()[0]),
            _ => false,
        }
    }

    fn put(&mut self, key: &[u8]) {
        let key_hash = KeyHash::of(key);
        let token = self.cache.kernel().begin_fill(self.source, key_hash, self.now);
        let (key, value) = (key.into(), Bytes::copy_from_slice(&VALUE));
        self.cache.fill(&token, key_hash.tier(0), key, value, Moment::NEVER, self.now).expect("it fits");
    }
}

impl Threaded for Ours {
    type Handle<'a> = Self;

    fn handle(&self) -> Self {
        Self { cache: self.cache.clone(), worker: self.cache.worker(), source: self.source, now: self.now }
    }
}

// === the others ===

pub struct BareLru(lru::LruCache<Key, Bytes>);

impl BareLru {
    pub fn new(keys: &[Key]) -> Self {
        let mut this = Self(lru::LruCache::unbounded());
        for key in keys {
            this.put(key);
        }
        this
    }

    pub fn with_room_for(entries: usize) -> Self {
        Self(lru::LruCache::new(entries.try_into().expect("not zero")))
    }
}

impl Opponent for BareLru {
    #[inline]
    fn get(&mut self, key: &[u8]) -> bool {
        self.0.get(key).is_some_and(|value| seven(value[0]))
    }

    fn put(&mut self, key: &[u8]) {
        self.0.put(key.into(), Bytes::copy_from_slice(&VALUE));
    }
}

pub struct LockedLru(Mutex<BareLru>);

impl LockedLru {
    pub fn with_room_for(entries: usize) -> Self {
        Self(Mutex::new(BareLru::with_room_for(entries)))
    }
}

impl Opponent for &LockedLru {
    fn get(&mut self, key: &[u8]) -> bool {
        self.0.lock().get(key)
    }

    fn put(&mut self, key: &[u8]) {
        self.0.lock().put(key);
    }
}

impl Threaded for LockedLru {
    type Handle<'a> = &'a Self;

    fn handle(&self) -> &Self {
        self
    }
}

pub struct Quick(quick_cache::sync::Cache<Key, Bytes>);

impl Quick {
    pub fn with(keys: &[Key], entries: usize) -> Self {
        let mut this = Self(quick_cache::sync::Cache::new(entries));
        for key in keys {
            this.put(key);
        }
        this
    }
}

impl Opponent for Quick {
    #[inline]
    fn get(&mut self, key: &[u8]) -> bool {
        (&mut &*self).get(key)
    }

    fn put(&mut self, key: &[u8]) {
        (&mut &*self).put(key);
    }
}

impl Opponent for &Quick {
    #[inline]
    fn get(&mut self, key: &[u8]) -> bool {
        self.0.get(key).is_some_and(|value| seven(value[0]))
    }

    fn put(&mut self, key: &[u8]) {
        self.0.insert(key.into(), Bytes::copy_from_slice(&VALUE));
    }
}

impl Threaded for Quick {
    type Handle<'a> = &'a Self;

    fn handle(&self) -> &Self {
        self
    }
}

pub struct Moka(moka::sync::Cache<Key, Bytes>);

impl Moka {
    pub fn with(keys: &[Key], entries: usize) -> Self {
        let mut this = Self(moka::sync::Cache::new(entries as u64));
        for key in keys {
            this.put(key);
        }
        this.0.run_pending_tasks();
        this
    }
}

impl Opponent for Moka {
    #[inline]
    fn get(&mut self, key: &[u8]) -> bool {
        (&mut &*self).get(key)
    }

    fn put(&mut self, key: &[u8]) {
        (&mut &*self).put(key);
    }
}

impl Opponent for &Moka {
    #[inline]
    fn get(&mut self, key: &[u8]) -> bool {
        self.0.get(key).is_some_and(|value| seven(value[0]))
    }

    fn put(&mut self, key: &[u8]) {
        self.0.insert(key.into(), Bytes::copy_from_slice(&VALUE));
    }
}

impl Threaded for Moka {
    type Handle<'a> = &'a Self;

    fn handle(&self) -> &Self {
        self
    }
}

/// As `foyer` has it in memory, with its default policy.
pub struct Foyer(foyer_memory::Cache<Key, Bytes>);

/// A key's borrowed form in foyer, whose hash is the key's.
#[derive(Hash)]
struct Slice<'a>(&'a [u8]);

impl hashbrown::Equivalent<Key> for Slice<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        *self.0 == **key
    }
}

impl Foyer {
    pub fn with(keys: &[Key], entries: usize) -> Self {
        let mut this = Self(foyer_memory::CacheBuilder::new(entries).build());
        for key in keys {
            this.put(key);
        }
        this
    }
}

impl Opponent for Foyer {
    #[inline]
    fn get(&mut self, key: &[u8]) -> bool {
        (&mut &*self).get(key)
    }

    fn put(&mut self, key: &[u8]) {
        (&mut &*self).put(key);
    }
}

impl Opponent for &Foyer {
    #[inline]
    fn get(&mut self, key: &[u8]) -> bool {
        self.0.get(&Slice(key)).is_some_and(|entry| seven(entry.value()[0]))
    }

    fn put(&mut self, key: &[u8]) {
        self.0.insert(key.into(), Bytes::copy_from_slice(&VALUE));
    }
}

impl Threaded for Foyer {
    type Handle<'a> = &'a Self;

    fn handle(&self) -> &Self {
        self
    }
}
