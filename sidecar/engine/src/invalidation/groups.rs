//! Groups in a cache of this process: values that depend on tags, or on other keys.
//!
//! [`TagInvalidator`] and [`CascadeInvalidator`] are caches of their own, since what is written through them carries the
//! generations that were in force before: see [`generations`](crate::generations). Invalidating a group is one bump,
//! however many values are in it; nothing looks for them. It never waits for L3 and cannot fail. Values of a dead group
//! stay in L3 until they are overwritten or expire, and are never served.
//!
//! This process only: between processes a group lives where they share an L3, as the sidecar has it; or tell others with
//! [`PubSubInvalidator`](super::PubSubInvalidator), which is as good as its messages are delivered.

mod cascade;
mod tags;

pub use cascade::CascadeInvalidator;
pub use tags::TagInvalidator;

use std::marker::PhantomData;
use std::sync::Arc;

use bytes::Bytes;
use hashbrown::Equivalent;

use crate::clock::Moment;
use crate::codec::envelope::GenerationValue;
use crate::generations::{Dependency, Generations};
use crate::hash::KeyHash;
use crate::kernel::Verdict;
use crate::multi_tier::{CacheError, CacheKey, CacheValue, MultiTierCache, TierConfig};
use crate::name::Name;
use crate::sync::Mutex;
use crate::weigh::Weigh;

/// Generations of one cache, at most; beyond that values are not kept.
const MAX_GENERATIONS: usize = 1 << 20;

/// A value with what it depends on.
#[derive(Debug)]
pub struct TaggedEntry<K, V> {
    value: V,
    dependencies: Arc<[Dependency]>,
    of: PhantomData<fn(K)>,
}

impl<K, V: Clone> Clone for TaggedEntry<K, V> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), dependencies: self.dependencies.clone(), of: PhantomData }
    }
}

impl<K, V> TaggedEntry<K, V> {
    /// The value.
    pub fn value(&self) -> &V {
        &self.value
    }
}

impl<K, V: Weigh> Weigh for TaggedEntry<K, V> {
    fn heap_bytes(&self) -> usize {
        self.value.heap_bytes() + size_of_val(&*self.dependencies) + 2 * size_of::<usize>()
    }

    #[inline]
    fn dependencies(&self) -> &[Dependency] {
        &self.dependencies
    }
}

/// What was in force before a value was computed.
#[derive(Clone, Debug)]
#[must_use = "take it before the value is computed, and write the value under it"]
pub struct GroupToken(Vec<Dependency>);

struct Groups<K: CacheKey, V: CacheValue> {
    cache: MultiTierCache<K, TaggedEntry<K, V>>,
    generations: Generations,
    /// How many values of generations there were; held while one is made.
    made: Mutex<u128>,
}

impl<K: CacheKey, V: CacheValue> Groups<K, V> {
    fn in_process(config: TierConfig) -> Self {
        let generations = Generations::new(MAX_GENERATIONS);
        Self { cache: MultiTierCache::in_process(config), generations, made: Mutex::new(0) }
    }

    /// What is in force of a generation; makes it if there is none.
    fn dependency(&self, name: &[u8]) -> Option<Dependency> {
        let (kernel, source, now) = self.cache.coherence();
        let cell = self.generations.cell(kernel, source, name);
        if !cell.is_shared() {
            return None;
        }
        let mut made = self.made.lock();
        let reading = cell.in_force(kernel, now).unwrap_or_else(|| {
            let token = cell.begin_read(kernel, now);
            *made += 1;
            let value = GenerationValue(made.to_le_bytes());
            cell.report(kernel, &token, Some((value, Bytes::new())), Moment::NEVER)
        });
        reading.dependency(&cell)
    }

    /// `None`: there are too many generations.
    fn token<'a>(&self, names: impl Iterator<Item = &'a [u8]>) -> Option<GroupToken> {
        names.map(|name| self.dependency(name)).collect::<Option<Vec<_>>>().map(GroupToken)
    }

    fn is_in_force(&self, dependencies: &[Dependency]) -> bool {
        let (kernel, _, now) = self.cache.coherence();
        dependencies.iter().all(|dependency| matches!(dependency.verdict(kernel, now), Verdict::Valid(_)))
    }

    fn renew(&self, name: &[u8]) {
        self.cache.coherence().0.bump(KeyHash::of(name));
    }

    async fn insert(&self, key: K, value: V, token: Option<GroupToken>) -> Result<bool, CacheError> {
        let Some(GroupToken(dependencies)) = token.filter(|token| self.is_in_force(&token.0)) else {
            return Ok(false);
        };
        self.cache.insert(key, TaggedEntry { value, dependencies: dependencies.into(), of: PhantomData }).await?;
        Ok(true)
    }

    async fn get<Q>(&self, key: &Q) -> Result<Option<V>, CacheError>
    where
        Q: Name + Equivalent<K> + ToOwned<Owned = K> + ?Sized,
    {
        let found = self.cache.get(key).await?;
        Ok(found.filter(|entry| self.is_in_force(&entry.dependencies)).map(|entry| entry.value))
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::invalidation::{InvalidationEvent, InvalidationSubject};

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u8, Vec<u8>),
        Get(u8),
        Invalidate(u8),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (0..6_u8, prop::collection::vec(0..6_u8, 0..3)).prop_map(|(key, of)| Step::Insert(key, of)),
            4 => (0..6_u8).prop_map(Step::Get),
            1 => (0..6_u8).prop_map(Step::Invalidate),
        ];
        prop::collection::vec(step, 1..80)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn tags_are_as_a_naive_cache_has_them(steps in steps()) {
            block_on(async {
                let cache = TagInvalidator::<String, usize>::in_process(TierConfig::default());
                let mut model: HashMap<u8, (usize, Vec<u8>)> = HashMap::new();
                for (at, step) in steps.iter().enumerate() {
                    match step {
                        Step::Insert(key, tags) => {
                            let names: Vec<String> = tags.iter().map(|tag| format!("t{tag}")).collect();
                            let names: Vec<&str> = names.iter().map(String::as_str).collect();
                            cache.insert(format!("k{key}"), at, &names).await.unwrap();
                            model.insert(*key, (at, tags.clone()));
                        }
                        Step::Get(key) => {
                            let got = cache.get(format!("k{key}").as_str()).await.unwrap();
                            prop_assert_eq!(got, model.get(key).map(|(value, _)| *value), "{:?}", steps);
                        }
                        Step::Invalidate(tag) => {
                            cache.invalidate(&format!("t{tag}"));
                            model.retain(|_, (_, tags)| !tags.contains(tag));
                        }
                    }
                }
                Ok(())
            })?;
        }

        #[test]
        fn a_cascade_leaves_nothing_that_a_naive_walk_reaches(steps in steps()) {
            block_on(async {
                let cache = CascadeInvalidator::<String, usize>::in_process(TierConfig::default());
                let mut model: HashMap<u8, (usize, Vec<u8>)> = HashMap::new();
                let name = |key: &u8| format!("k{key}");
                for (at, step) in steps.iter().enumerate() {
                    match step {
                        Step::Insert(key, parents) => {
                            let names: Vec<String> = parents.iter().map(name).collect();
                            cache.insert(name(key), at, &names).await.unwrap();
                            model.insert(*key, (at, parents.clone()));
                        }
                        Step::Get(key) => {
                            // More may be dead than has to be, and nothing is ever another value.
                            if let Some(got) = cache.get(name(key).as_str()).await.unwrap() {
                                prop_assert_eq!(Some(got), model.get(key).map(|(value, _)| *value), "{:?}", steps);
                            }
                        }
                        Step::Invalidate(key) => {
                            cache.invalidate(name(key).as_str()).await.unwrap();
                            let mut dead = vec![*key];
                            while let Some(next) = dead.pop() {
                                model.remove(&next);
                                let children = model.iter().filter(|(_, (_, of))| of.contains(&next));
                                dead.extend(children.map(|(child, _)| *child));
                            }
                        }
                    }
                }
                Ok(())
            })?;
        }
    }

    #[test]
    fn a_value_without_an_invalidation_is_served() {
        block_on(async {
            let cache = CascadeInvalidator::<String, u32>::in_process(TierConfig::default());
            assert!(!cache.insert("a".into(), 1, &["b".into()]).await.unwrap());
            assert!(!cache.insert("c".into(), 3, &["a".into()]).await.unwrap());
            assert!(cache.insert("b".into(), 2, &["c".into()]).await.unwrap(), "a circle");
            assert_eq!(cache.get("b").await.unwrap(), Some(2));
            cache.insert("a".into(), 1, &["b".into()]).await.unwrap();
            cache.insert("c".into(), 3, &["a".into()]).await.unwrap();
            assert_eq!((cache.get("a").await.unwrap(), cache.get("c").await.unwrap()), (Some(1), Some(3)));
            cache.invalidate("b").await.unwrap();
            assert_eq!((cache.get("a").await.unwrap(), cache.get("c").await.unwrap()), (None, None));
        });
    }

    #[test]
    fn events_of_others_are_applied() {
        use crate::invalidation::{InvalidationMetadata, InvalidationReason};
        block_on(async {
            let cache = TagInvalidator::<String, u32>::in_process(TierConfig::default());
            cache.insert("a".into(), 1, &["x"]).await.unwrap();
            cache.insert("b".into(), 2, &["y"]).await.unwrap();
            let event = |subject| InvalidationEvent {
                subject,
                metadata: InvalidationMetadata::now(InvalidationReason::Call, "another"),
            };
            cache.apply(&event(InvalidationSubject::Tags(vec!["x".into()])));
            assert_eq!((cache.get("a").await.unwrap(), cache.get("b").await.unwrap()), (None, Some(2)));
            cache.apply(&event(InvalidationSubject::All));
            assert_eq!(cache.get("b").await.unwrap(), None);
        });
    }
}
