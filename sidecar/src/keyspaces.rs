//! Which keys may be kept in the tiers: the rules of the configuration, first match wins. Asked on misses only; what is
//! in a tier was admitted once, and a change of rules flushes the tiers.

use caddy_contract::{CacheMode, Config};
use caddy_engine::glob::Glob;

/// The compiled rules.
#[derive(Debug, Default)]
pub(crate) struct Keyspaces {
    rules: Vec<(Glob, CacheMode)>,
}

impl Keyspaces {
    pub(crate) fn new(config: &Config) -> Self {
        let rule = |rule: &caddy_contract::Keyspace| (Glob::new(rule.pattern.as_bytes()), rule.cache);
        Self { rules: config.keyspaces.iter().map(rule).collect() }
    }

    /// Whether copies of all these keys may be kept.
    pub(crate) fn may_cache(&self, keys: &[&[u8]]) -> bool {
        self.rules.is_empty() || keys.iter().all(|key| self.mode(key) == CacheMode::Auto)
    }

    fn mode(&self, key: &[u8]) -> CacheMode {
        self.rules.iter().find(|(glob, _)| glob.matches(key)).map_or(CacheMode::Auto, |(_, mode)| *mode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_that_matches_decides() {
        let config = |rules: &[(&str, CacheMode)]| {
            let keyspace = |(pattern, cache): &(&str, CacheMode)| caddy_contract::Keyspace {
                name: (*pattern).into(),
                pattern: (*pattern).into(),
                cache: *cache,
            };
            let config = Config { keyspaces: rules.iter().map(keyspace).collect(), ..Config::default() };
            Keyspaces::new(&config)
        };
        let rules = config(&[("queue:hot:*", CacheMode::Auto), ("queue:*", CacheMode::Off)]);
        assert!(rules.may_cache(&[b"user:1", b"queue:hot:1"]));
        assert!(!rules.may_cache(&[b"user:1", b"queue:1"]));
        assert!(config(&[]).may_cache(&[b"anything"]));
    }
}
