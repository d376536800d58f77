//! Keyspaces: which keys may be kept, for how long, and whether copies answer or are only counted. The rules of the
//! configuration, first match wins.
//!
//! Asked on misses and fills only: what is in a tier carries its keyspace's [`Id`] and what a hit has to know of its
//! rule, and a change of rules kills what was kept under the old ones ([`keep_alike`]).

use std::time::Duration;

use caddy_contract::{CacheMode, Coherence, Config, Keyspace, KeyspaceMode};
use caddy_engine::{Moment, glob::Glob};
use parking_lot::RwLock;

/// The name of the keys that no rule matches; no rule can be called so.
pub(crate) const UNMATCHED: &str = "*";

/// Names a keyspace while the process lives, whatever becomes of its rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Id(u16);

impl Id {
    /// Its place in tables of keyspaces.
    pub(crate) fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// The names of all keyspaces that there ever were: counters outlive the rule that they belong to.
#[derive(Debug)]
pub(crate) struct Names(RwLock<Vec<String>>);

impl Default for Names {
    fn default() -> Self {
        Self(RwLock::new(vec![UNMATCHED.to_owned()]))
    }
}

impl Names {
    /// The id of a name. Should there ever be more than fit, the last share the one of the unmatched keys.
    pub(crate) fn id(&self, name: &str) -> Id {
        let mut names = self.0.write();
        let known = names.iter().position(|other| other == name);
        let place = known.unwrap_or_else(|| {
            names.push(name.to_owned());
            names.len() - 1
        });
        u16::try_from(place).map(Id).unwrap_or_default()
    }

    /// All of them, in the order of their ids.
    pub(crate) fn all(&self) -> Vec<String> {
        self.0.read().clone()
    }
}

/// What holds for the keys of one keyspace.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub(crate) id: Id,
    cache: CacheMode,
    mode: KeyspaceMode,
    ttl: Option<Duration>,
    negative_ttl: Option<Duration>,
}

/// When a copy expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Expiry {
    pub(crate) at: Moment,
    /// The rule's bound, earlier than the key's own expiry in L3.
    pub(crate) is_bounded: bool,
}

impl Rule {
    /// Whether copies may be kept.
    pub(crate) fn caches(&self) -> bool {
        self.cache == CacheMode::Auto
    }

    /// Whether copies are counted instead of served.
    pub(crate) fn observes(&self) -> bool {
        self.mode == KeyspaceMode::Observe
    }

    /// When a copy that was read at `read_at` expires, if its key does at `expiry`.
    pub(crate) fn bound(&self, is_absent: bool, read_at: Moment, expiry: Moment) -> Expiry {
        let bound = if is_absent { self.negative_ttl } else { self.ttl };
        match bound.map(|bound| read_at + bound) {
            Some(at) if at < expiry => Expiry { at, is_bounded: true },
            _ => Expiry { at: expiry, is_bounded: false },
        }
    }
}

/// The compiled rules.
#[derive(Debug)]
pub(crate) struct Keyspaces {
    rules: Vec<(Glob, Rule)>,
    rest: Rule,
}

impl Keyspaces {
    pub(crate) fn new(config: &Config, names: &Names) -> Self {
        let rule = |rule: &Keyspace| {
            let compiled = Rule {
                id: names.id(&rule.name),
                cache: rule.cache,
                mode: rule.mode,
                ttl: rule.ttl,
                negative_ttl: rule.negative_ttl,
            };
            (Glob::new(rule.pattern.as_bytes()), compiled)
        };
        let rest = Rule {
            id: names.id(UNMATCHED),
            cache: CacheMode::Auto,
            mode: KeyspaceMode::Serve,
            ttl: None,
            negative_ttl: None,
        };
        let mut all = Self { rules: config.keyspaces.iter().map(rule).collect(), rest };
        if config.consistency.coherence == Coherence::Ttl {
            let bound = config.consistency.max_staleness;
            let rules = all.rules.iter_mut().map(|(_, rule)| rule);
            for rule in rules.chain([&mut all.rest]) {
                for ttl in [&mut rule.ttl, &mut rule.negative_ttl] {
                    *ttl = Some(ttl.map_or(bound, |ttl| ttl.min(bound)));
                }
            }
        }
        all
    }

    /// The rule for a key.
    pub(crate) fn rule(&self, key: &[u8]) -> &Rule {
        self.rules.iter().find(|(glob, _)| glob.matches(key)).map_or(&self.rest, |(_, rule)| rule)
    }

    /// Whether copies of all these keys may be kept.
    pub(crate) fn may_cache(&self, keys: &[&[u8]]) -> bool {
        self.rules.is_empty() || keys.iter().all(|key| self.rule(key).caches())
    }
}

/// Whether a copy that one configuration's rules let in is one that the other's would keep just so, whatever its key.
pub(crate) fn keep_alike(old: &Config, new: &Config) -> bool {
    let bound = |config: &Config| (config.consistency.coherence, config.consistency.max_staleness);
    let is_bounded = [old, new].iter().any(|config| config.consistency.coherence == Coherence::Ttl);
    old.keyspaces == new.keyspaces && (!is_bounded || bound(old) == bound(new))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keyspaces(rules: &[(&str, CacheMode, Option<u64>, Option<u64>)]) -> Keyspaces {
        let keyspace = |(pattern, cache, ttl, negative_ttl): &(&str, CacheMode, Option<u64>, Option<u64>)| Keyspace {
            name: (*pattern).into(),
            pattern: (*pattern).into(),
            cache: *cache,
            mode: KeyspaceMode::Serve,
            ttl: ttl.map(Duration::from_secs),
            negative_ttl: negative_ttl.map(Duration::from_secs),
        };
        let config = Config { keyspaces: rules.iter().map(keyspace).collect(), ..Config::default() };
        Keyspaces::new(&config, &Names::default())
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let rules = keyspaces(&[("queue:hot:*", CacheMode::Auto, None, None), ("queue:*", CacheMode::Off, None, None)]);
        assert!(rules.may_cache(&[b"user:1", b"queue:hot:1"]));
        assert!(!rules.may_cache(&[b"user:1", b"queue:1"]));
        assert!(keyspaces(&[]).may_cache(&[b"anything"]));
        assert_eq!(rules.rule(b"queue:1").id, Id(2));
        assert_eq!(rules.rule(b"user:1").id, Id(0));
    }

    #[test]
    fn the_earlier_of_rule_and_key_bounds_a_copy() {
        let rules = keyspaces(&[("a*", CacheMode::Auto, Some(10), Some(1)), ("b*", CacheMode::Auto, None, None)]);
        let at = |seconds| Moment::ZERO + Duration::from_secs(seconds);
        let a = rules.rule(b"a");
        assert_eq!(a.bound(false, at(5), at(100)), Expiry { at: at(15), is_bounded: true });
        assert_eq!(a.bound(false, at(5), at(9)), Expiry { at: at(9), is_bounded: false });
        assert_eq!(a.bound(true, at(5), Moment::NEVER), Expiry { at: at(6), is_bounded: true });
        assert_eq!(rules.rule(b"b").bound(true, at(5), Moment::NEVER).at, Moment::NEVER);
    }

    #[test]
    fn a_name_keeps_its_id() {
        let names = Names::default();
        assert_eq!((names.id("a"), names.id("b"), names.id("a"), names.id(UNMATCHED)), (Id(1), Id(2), Id(1), Id(0)));
        assert_eq!(names.all(), ["*", "a", "b"]);
    }
}
