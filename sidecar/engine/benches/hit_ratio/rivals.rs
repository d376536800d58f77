//! Policies to compare with: crates where there are some, small simulations of the published algorithms where not.

use std::collections::{BTreeSet, HashMap, VecDeque};

/// A cache of keys.
pub(crate) trait Rival {
    /// Reads `key`, and puts it in if it is absent. Whether it was there.
    fn read(&mut self, key: u64) -> bool;
}

/// Makes a cache of so many entries.
pub(crate) type Make = fn(usize) -> Box<dyn Rival>;

pub(crate) const RIVALS: [(&str, Make); 8] = [
    ("LRU", |size| Box::new(Lru(lru::LruCache::new(size.try_into().expect("not zero"))))),
    ("S3-FIFO", |size| Box::new(S3Fifo::new(size))),
    ("W-TinyLFU", |size| Box::new(WTinyLfu::new(size))),
    ("ARC", |size| Box::new(Arc::new(size))),
    ("LIRS", |size| Box::new(Lirs::new(size))),
    ("SIEVE", |size| Box::new(Sieve::new(size))),
    ("quick_cache", |size| Box::new(Quick(quick_cache::sync::Cache::new(size)))),
    ("moka", |size| Box::new(Moka { cache: moka::sync::Cache::new(size as u64), reads: 0 })),
];

struct Lru(lru::LruCache<u64, ()>);

impl Rival for Lru {
    fn read(&mut self, key: u64) -> bool {
        self.0.get(&key).is_some() || self.0.put(key, ()).is_some()
    }
}

struct Quick(quick_cache::sync::Cache<u64, ()>);

impl Rival for Quick {
    fn read(&mut self, key: u64) -> bool {
        let hit = self.0.get(&key).is_some();
        if !hit {
            self.0.insert(key, ());
        }
        hit
    }
}

struct Moka {
    cache: moka::sync::Cache<u64, ()>,
    reads: u32,
}

impl Rival for Moka {
    fn read(&mut self, key: u64) -> bool {
        let hit = self.cache.get(&key).is_some();
        if !hit {
            self.cache.insert(key, ());
        }
        // Its maintenance runs by the clock: in a simulation, by reads.
        self.reads += 1;
        if self.reads.is_multiple_of(32) {
            self.cache.run_pending_tasks();
        }
        hit
    }
}

/// Keys in an order, the oldest first; any of them can be taken out.
#[derive(Default)]
struct Order {
    places: HashMap<u64, u64>,
    by_age: BTreeSet<(u64, u64)>,
    next: u64,
}

impl Order {
    fn push(&mut self, key: u64) {
        self.remove(key);
        self.next += 1;
        self.places.insert(key, self.next);
        self.by_age.insert((self.next, key));
    }

    fn remove(&mut self, key: u64) -> bool {
        let place = self.places.remove(&key);
        place.is_some_and(|place| self.by_age.remove(&(place, key)))
    }

    fn oldest(&self) -> Option<u64> {
        self.by_age.first().map(|&(_, key)| key)
    }

    fn pop(&mut self) -> Option<u64> {
        let key = self.oldest()?;
        self.remove(key);
        Some(key)
    }

    fn contains(&self, key: u64) -> bool {
        self.places.contains_key(&key)
    }

    fn len(&self) -> usize {
        self.places.len()
    }
}

/// Yang et al., SOSP 2023.
struct S3Fifo {
    size: usize,
    small: VecDeque<u64>,
    main: VecDeque<u64>,
    ghost: Order,
    uses: HashMap<u64, u8>,
}

impl S3Fifo {
    fn new(size: usize) -> Self {
        Self { size, small: VecDeque::new(), main: VecDeque::new(), ghost: Order::default(), uses: HashMap::new() }
    }

    fn evict(&mut self) {
        if self.small.len() * 10 >= self.size || self.main.is_empty() {
            while let Some(key) = self.small.pop_front() {
                if self.uses[&key] > 1 {
                    self.main.push_back(key);
                } else {
                    self.uses.remove(&key);
                    self.ghost.push(key);
                    if self.ghost.len() > self.size * 9 / 10 {
                        self.ghost.pop();
                    }
                    return;
                }
            }
        }
        while let Some(key) = self.main.pop_front() {
            let uses = self.uses.entry(key).or_default();
            if *uses == 0 {
                self.uses.remove(&key);
                return;
            }
            *uses -= 1;
            self.main.push_back(key);
        }
    }
}

impl Rival for S3Fifo {
    fn read(&mut self, key: u64) -> bool {
        if let Some(uses) = self.uses.get_mut(&key) {
            *uses = (*uses + 1).min(3);
            return true;
        }
        while self.small.len() + self.main.len() >= self.size {
            self.evict();
        }
        if self.ghost.remove(key) {
            self.main.push_back(key);
        } else {
            self.small.push_back(key);
        }
        self.uses.insert(key, 0);
        false
    }
}

/// Zhang et al., "SIEVE is simpler than LRU", NSDI 2024.
struct Sieve {
    size: usize,
    order: Vec<Option<u64>>,
    visited: HashMap<u64, bool>,
    hand: usize,
}

impl Sieve {
    fn new(size: usize) -> Self {
        Self { size, order: Vec::new(), visited: HashMap::new(), hand: 0 }
    }

    fn evict(&mut self) {
        loop {
            if self.hand >= self.order.len() {
                self.hand = 0;
            }
            if let Some(key) = self.order[self.hand] {
                let visited = self.visited.get_mut(&key).expect("what is in the order is known");
                if !*visited {
                    self.order[self.hand] = None;
                    self.visited.remove(&key);
                    self.hand += 1;
                    return;
                }
                *visited = false;
            }
            self.hand += 1;
        }
    }
}

impl Rival for Sieve {
    fn read(&mut self, key: u64) -> bool {
        if let Some(visited) = self.visited.get_mut(&key) {
            *visited = true;
            return true;
        }
        if self.visited.len() >= self.size {
            self.evict();
        }
        if self.order.len() > 4 * self.size {
            // Takes the gaps out; the hand stays at its key.
            let before = self.order[..self.hand.min(self.order.len())].iter().flatten().count();
            self.order.retain(Option::is_some);
            self.hand = before;
        }
        self.order.push(Some(key));
        self.visited.insert(key, false);
        false
    }
}

/// Megiddo, Modha: "ARC: a self-tuning, low overhead replacement cache", FAST 2003.
struct Arc {
    size: usize,
    target: usize,
    recent: Order,
    frequent: Order,
    recent_ghost: Order,
    frequent_ghost: Order,
}

impl Arc {
    fn new(size: usize) -> Self {
        let order = Order::default;
        Self { size, target: 0, recent: order(), frequent: order(), recent_ghost: order(), frequent_ghost: order() }
    }

    fn replace(&mut self, was_frequent: bool) {
        let recent = self.recent.len();
        if recent > 0 && (recent > self.target || was_frequent && recent == self.target) {
            if let Some(key) = self.recent.pop() {
                self.recent_ghost.push(key);
            }
        } else if let Some(key) = self.frequent.pop() {
            self.frequent_ghost.push(key);
        }
    }
}

impl Rival for Arc {
    fn read(&mut self, key: u64) -> bool {
        if self.recent.remove(key) || self.frequent.contains(key) {
            self.frequent.push(key);
            return true;
        }
        let (recent, frequent) = (self.recent_ghost.len(), self.frequent_ghost.len());
        if self.recent_ghost.contains(key) {
            self.target = (self.target + (frequent / recent.max(1)).max(1)).min(self.size);
            self.replace(false);
            self.recent_ghost.remove(key);
            self.frequent.push(key);
            return false;
        }
        if self.frequent_ghost.contains(key) {
            self.target = self.target.saturating_sub((recent / frequent.max(1)).max(1));
            self.replace(true);
            self.frequent_ghost.remove(key);
            self.frequent.push(key);
            return false;
        }
        let first = self.recent.len() + recent;
        let all = first + self.frequent.len() + frequent;
        if first >= self.size {
            if self.recent.len() < self.size {
                self.recent_ghost.pop();
                self.replace(false);
            } else {
                self.recent.pop();
            }
        } else if all >= self.size {
            if all >= 2 * self.size {
                self.frequent_ghost.pop();
            }
            self.replace(false);
        }
        self.recent.push(key);
        false
    }
}

/// Jiang, Zhang: "LIRS: an efficient low inter-reference recency set replacement policy", SIGMETRICS 2002. The stack is at
/// most three times as long as the cache.
struct Lirs {
    size: usize,
    hot_size: usize,
    stack: Order,
    hot: std::collections::HashSet<u64>,
    cold: Order,
}

impl Lirs {
    fn new(size: usize) -> Self {
        let hot_size = size - (size / 100).max(1);
        Self { size, hot_size, stack: Order::default(), hot: std::collections::HashSet::new(), cold: Order::default() }
    }

    /// Takes what is not hot off the bottom of the stack.
    fn prune(&mut self) {
        while let Some(oldest) = self.stack.oldest() {
            if self.hot.contains(&oldest) {
                break;
            }
            self.stack.pop();
        }
    }

    /// The hot key that was not read for longest becomes a cold one.
    fn cool(&mut self) {
        if let Some(oldest) = self.stack.pop() {
            self.hot.remove(&oldest);
            self.cold.push(oldest);
        }
        self.prune();
    }
}

impl Rival for Lirs {
    fn read(&mut self, key: u64) -> bool {
        if self.hot.contains(&key) {
            self.stack.push(key);
            self.prune();
            return true;
        }
        let hit = self.cold.contains(key);
        if !hit && self.hot.len() < self.hot_size {
            self.hot.insert(key);
            self.stack.push(key);
            return false;
        }
        if !hit && self.hot.len() + self.cold.len() >= self.size {
            self.cold.pop();
        }
        if self.stack.contains(key) {
            self.cold.remove(key);
            self.hot.insert(key);
            self.stack.push(key);
            self.cool();
        } else {
            self.stack.push(key);
            self.cold.push(key);
        }
        while self.stack.len() > 3 * self.size {
            // The oldest that is not hot.
            let cold = self.stack.by_age.iter().map(|&(_, key)| key).find(|key| !self.hot.contains(key));
            let Some(cold) = cold else { break };
            self.stack.remove(cold);
        }
        hit
    }
}

/// Einziger, Friedman, Manes, 2017: a window of one hundredth, a segmented main part, and a count of everything read, which
/// is halved every ten reads per entry. The counts are exact.
struct WTinyLfu {
    size: usize,
    window: Order,
    probation: Order,
    protected: Order,
    counts: HashMap<u64, u32>,
    reads: usize,
}

impl WTinyLfu {
    fn new(size: usize) -> Self {
        let order = Order::default;
        Self { size, window: order(), probation: order(), protected: order(), counts: HashMap::new(), reads: 0 }
    }

    fn count(&self, key: u64) -> u32 {
        self.counts.get(&key).copied().unwrap_or(0)
    }
}

impl Rival for WTinyLfu {
    fn read(&mut self, key: u64) -> bool {
        let count = self.counts.entry(key).or_default();
        *count = (*count + 1).min(15);
        self.reads += 1;
        if self.reads > 10 * self.size {
            self.reads = 0;
            self.counts.retain(|_, count| {
                *count /= 2;
                *count > 0
            });
        }
        if self.window.contains(key) {
            self.window.push(key);
            return true;
        }
        if self.protected.contains(key) || self.probation.remove(key) {
            self.protected.push(key);
            if self.protected.len() * 5 > self.size * 4
                && let Some(oldest) = self.protected.pop()
            {
                self.probation.push(oldest);
            }
            return true;
        }
        self.window.push(key);
        if self.window.len() > (self.size / 100).max(1)
            && let Some(candidate) = self.window.pop()
        {
            if self.window.len() + self.probation.len() + self.protected.len() < self.size {
                self.probation.push(candidate);
            } else {
                let victim = self.probation.oldest().or_else(|| self.protected.oldest());
                if let Some(victim) = victim.filter(|&victim| self.count(candidate) > self.count(victim)) {
                    if !self.probation.remove(victim) {
                        self.protected.remove(victim);
                    }
                    self.probation.push(candidate);
                }
            }
        }
        false
    }
}

/// Hits of Belady's algorithm, which knows the future: evicts what will be read last.
pub(crate) fn belady(keys: &[u64], size: usize) -> usize {
    let mut next_read = vec![usize::MAX; keys.len()];
    let mut last = HashMap::new();
    for (place, key) in keys.iter().enumerate().rev() {
        next_read[place] = last.insert(*key, place).unwrap_or(usize::MAX);
    }
    let (mut cached, mut order, mut hits) = (HashMap::new(), BTreeSet::new(), 0);
    for (place, &key) in keys.iter().enumerate() {
        let next = (next_read[place], key);
        if let Some(before) = cached.insert(key, next) {
            order.remove(&before);
            hits += 1;
        }
        order.insert(next);
        // What is read last of all may be what was just read.
        if cached.len() > size
            && let Some((_, leaves)) = order.pop_last()
        {
            cached.remove(&leaves);
        }
    }
    hits
}
