//! Invalidating by pattern in a cache of this process.
//!
//! First L3 removes what matches, then every local copy of a matching key dies, with every read of one under way. So a
//! read that begins after the call returned sees nothing from before it; one that runs beside it may see either. It
//! fails if L3 does; what L3 has removed by then stays removed, and local copies are dead all the same.

use crate::multi_tier::{CacheError, CacheKey, CacheValue, MultiTierCache};

use super::KeyPattern;

/// Invalidates the entries of a cache whose keys match a pattern.
///
/// ```
/// use caddy_engine::{MultiTierCache, TierConfig};
/// use caddy_engine::invalidation::{KeyPattern, PatternInvalidator};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// let cache = MultiTierCache::<String, String>::in_process(TierConfig::default());
/// cache.insert("user:1".into(), "Ada".into()).await?;
/// cache.insert("order:1".into(), "book".into()).await?;
///
/// let users = PatternInvalidator::new(cache.clone());
/// assert_eq!(users.invalidate(&KeyPattern::glob("user:*")?).await?, 1);
/// assert_eq!(cache.get("user:1").await?, None);
/// assert_eq!(cache.get("order:1").await?.as_deref(), Some("book"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct PatternInvalidator<K: CacheKey, V: CacheValue> {
    cache: MultiTierCache<K, V>,
}

impl<K: CacheKey, V: CacheValue> PatternInvalidator<K, V> {
    /// For this cache.
    pub fn new(cache: MultiTierCache<K, V>) -> Self {
        Self { cache }
    }

    /// Removes whatever matches from every tier, also what was kept of it for when a load fails; tells how many values
    /// L3 had.
    ///
    /// # Errors
    ///
    /// L3 failed, cannot find keys by pattern, or did not answer within
    /// [`wait_timeout`](crate::TierConfig): it may have removed some. Local copies are dead.
    pub async fn invalidate(&self, pattern: &KeyPattern) -> Result<u64, CacheError> {
        self.cache.remove_matching(pattern).await
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::multi_tier::TierConfig;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    #[derive(Debug, Clone)]
    enum Step {
        Insert(String, u8),
        Get(String),
        Invalidate(KeyPattern),
    }

    fn step() -> impl Strategy<Value = Step> {
        let key = || "[ab]{1,3}";
        prop_oneof![
            3 => (key(), any::<u8>()).prop_map(|(key, value)| Step::Insert(key, value)),
            4 => key().prop_map(Step::Get),
            1 => "[ab*?]{1,3}".prop_map(|text| Step::Invalidate(KeyPattern::glob(text.as_bytes()).unwrap())),
            1 => "\\^?[ab.]{1,2}\\$?".prop_map(|text| Step::Invalidate(KeyPattern::regex(text.as_bytes()).unwrap())),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_matches_is_gone_and_nothing_else(steps in prop::collection::vec(step(), 1..60)) {
            block_on(async {
                let cache = MultiTierCache::<String, String>::in_process(TierConfig::default());
                let invalidator = PatternInvalidator::new(cache.clone());
                let mut model: HashMap<String, String> = HashMap::new();
                for step in &steps {
                    match step {
                        Step::Insert(key, value) => {
                            cache.insert(key.clone(), value.to_string()).await.unwrap();
                            model.insert(key.clone(), value.to_string());
                        }
                        Step::Get(key) => {
                            let got = cache.get(key.as_str()).await.unwrap();
                            prop_assert_eq!(got.as_ref(), model.get(key), "{:?}", steps);
                        }
                        Step::Invalidate(pattern) => {
                            let before = model.len();
                            model.retain(|key, _| !pattern.matches(key.as_bytes()));
                            let removed = invalidator.invalidate(pattern).await.unwrap();
                            prop_assert_eq!(removed as usize, before - model.len(), "{:?}", steps);
                        }
                    }
                }
                Ok(())
            })?;
        }
    }
}
