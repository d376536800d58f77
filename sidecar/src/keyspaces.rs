//! Keyspaces: which keys may be kept, for how long, and whether copies answer or are only counted. The rules of the
//! configuration, first match wins.
//!
//! Asked on misses and fills only: what is in a tier carries its keyspace's [`Id`] and what a hit has to know of its
//! rule, and a change of rules kills what was kept under the old ones ([`keep_alike`]).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use caddy_contract::{
    Algorithm, CacheMode, Coherence, Compression, Config, Keyspace, KeyspaceMode, Loading, Strategy, TagTemplate,
};
use caddy_engine::{
    Moment,
    codec::{
        CodecConfig, CompressionAlgorithm, Dictionaries, KeyspaceCodec,
        training::{MIN_SAMPLES, TrainingConfig},
    },
    glob::Glob,
};
use parking_lot::RwLock;

use crate::{
    absence::KeyspaceFilter,
    behind::{Behind, Behinds},
    cache::Cached,
    loading::{Store, Stores},
};

/// The name of the keys that no rule matches; no rule can be called so.
pub(crate) const UNMATCHED: &str = "*";

/// Samples for training that all keyspaces together may hold, of at most 2 KiB each.
const MAX_SAMPLES: usize = 4096;

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

    pub(crate) fn count(&self) -> usize {
        self.0.read().len()
    }

    /// The name that has this id.
    pub(crate) fn name(&self, id: Id) -> String {
        self.0.read().get(id.index()).cloned().unwrap_or_default()
    }

    /// All of them, in the order of their ids.
    pub(crate) fn all(&self) -> Vec<String> {
        self.0.read().clone()
    }
}

/// What holds for the keys of one keyspace.
#[derive(Clone)]
pub(crate) struct Rule {
    pub(crate) id: Id,
    cache: CacheMode,
    mode: KeyspaceMode,
    ttl: Option<Duration>,
    negative_ttl: Option<Duration>,
    /// What its absent keys are loaded from.
    pub(crate) source: Option<Arc<Source>>,
    /// Which of its keys L3 does not have.
    pub(crate) filter: Option<Arc<KeyspaceFilter>>,
    /// The tags that its rule gives to values.
    tags: Vec<TagTemplate>,
    /// A write of a key invalidates what depends on it.
    parents: bool,
    /// How its values are packed; `None`: they are not.
    pub(crate) codec: Option<Arc<KeyspaceCodec>>,
    training: Arc<Schedule>,
}

/// Where and how a keyspace's values are loaded.
pub(crate) struct Source {
    pub(crate) store: Arc<Store>,
    pub(crate) settings: Loading,
    /// What writes wait in, with the strategy `WriteBehind`.
    pub(crate) behind: Option<Arc<Behind>>,
}

impl Source {
    /// Whether writes go to the store.
    pub(crate) fn is_written(&self) -> bool {
        matches!(self.settings.strategy, Strategy::WriteThrough | Strategy::WriteBehind)
    }
}

/// When a keyspace's dictionary is to be trained next.
#[derive(Debug, Default)]
pub(crate) struct Schedule(AtomicU64);

impl Schedule {
    pub(crate) fn is_due(&self, now: Moment) -> bool {
        now.as_nanos() >= self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn next_at(&self, moment: Moment) {
        self.0.store(moment.as_nanos(), Ordering::Relaxed);
    }
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

    /// A hit on a copy asks for a new value if it is fresh for no longer than so many milliseconds; 0: never. A part of the
    /// life that the copy had when it was read: whoever loaded the value comes first.
    pub(crate) fn refresh_within(&self, value: &Cached, read_at: Moment, expiry: Expiry) -> u32 {
        let percent = self.source.as_ref().and_then(|source| source.settings.refresh_at_percent);
        match percent {
            Some(percent) if value.exists() && expiry.at != Moment::NEVER => {
                let life = expiry.at.since(read_at).as_millis() * u128::from(100 - percent.min(100)) / 100;
                u32::try_from(life).unwrap_or(u32::MAX).max(1)
            }
            _ => 0,
        }
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
pub(crate) struct Keyspaces {
    rules: Vec<(Glob, Rule)>,
    rest: Rule,
    filters: Vec<Arc<KeyspaceFilter>>,
    loads: bool,
    writes: bool,
    /// The first rules that give tags to values, and that have keys which others depend on.
    tags: Option<usize>,
    parents: Option<usize>,
}

impl Keyspaces {
    /// The rules of `config`; codecs of `previous` ones that are as before are taken over with what they have learned.
    pub(crate) fn new(
        config: &Config,
        names: &Names,
        stores: &Stores,
        behinds: &Behinds,
        previous: Option<&Self>,
    ) -> Self {
        let zstd = |compression: &Compression| compression.algorithm == Algorithm::Zstd;
        let trained = config.keyspaces.iter().filter(|rule| zstd(&rule.compression)).count();
        let sampling = TrainingConfig {
            max_samples: (MAX_SAMPLES / trained.max(1)).clamp(MIN_SAMPLES, MAX_SAMPLES / 8),
            ..TrainingConfig::default()
        };
        let packing = |id: Id, compression: &Compression| {
            let wanted = codec_config(config, compression);
            let kept = previous.and_then(|previous| previous.by_id(id)).filter(|rule| {
                rule.codec.as_ref().map_or(CompressionAlgorithm::None, |codec| codec.config().algorithm)
                    == wanted.algorithm
                    && rule.codec.as_ref().is_none_or(|codec| *codec.config() == wanted)
            });
            match kept {
                Some(rule) => (rule.codec.clone(), rule.training.clone()),
                None if wanted.algorithm == CompressionAlgorithm::None => (None, Arc::default()),
                None => {
                    // Only values in L2 name them, and those keep their own.
                    let dictionaries = Arc::new(Dictionaries::with_capacity(1));
                    let seed = u64::from(id.0);
                    let codec = KeyspaceCodec::with_training(wanted, dictionaries, sampling, seed);
                    (Some(Arc::new(codec)), Arc::default())
                }
            }
        };
        let rule = |rule: &Keyspace| {
            let id = names.id(&rule.name);
            let (codec, training) = packing(id, &rule.compression);
            let source = rule.loading.as_ref().and_then(|settings| {
                let store = stores.get(&settings.store)?.clone();
                let behind = behinds.get(&rule.name);
                Some(Arc::new(Source { store, settings: settings.clone(), behind }))
            });
            let negative_ttl = source.as_ref().map(|source| source.settings.negative_ttl).or(rule.negative_ttl);
            let (cache, mode, ttl) = (rule.cache, rule.mode, rule.ttl);
            let filter = rule.negative_filter.as_ref().map(|wanted| {
                let filter = KeyspaceFilter::new(id, wanted.prefix.clone(), wanted.max_keys);
                let known = previous.and_then(|previous| previous.by_id(id)?.filter.clone());
                known.filter(|known| known.is_alike(&filter)).unwrap_or_else(|| Arc::new(filter))
            });
            let (tags, parents) = (rule.tags.clone(), rule.parents);
            let compiled = Rule { id, cache, mode, ttl, negative_ttl, source, filter, tags, parents, codec, training };
            (Glob::new(rule.pattern.as_bytes()), compiled)
        };
        let id = names.id(UNMATCHED);
        let (codec, training) = packing(id, &config.l2.compression);
        let (cache, mode) = (CacheMode::Auto, KeyspaceMode::Serve);
        let rest = Rule {
            id,
            cache,
            mode,
            ttl: None,
            negative_ttl: None,
            source: None,
            filter: None,
            tags: Vec::new(),
            parents: false,
            codec,
            training,
        };
        let rules: Vec<_> = config.keyspaces.iter().map(rule).collect();
        let loads = rules.iter().any(|(_, rule)| rule.source.is_some());
        let writes = rules.iter().any(|(_, rule)| rule.source.as_ref().is_some_and(|source| source.is_written()));
        let tags = rules.iter().position(|(_, rule)| !rule.tags.is_empty());
        let parents = rules.iter().position(|(_, rule)| rule.parents);
        let filters = rules.iter().filter_map(|(_, rule)| rule.filter.clone()).collect();
        let mut all = Self { rules, rest, filters, loads, writes, tags, parents };
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

    fn all(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().map(|(_, rule)| rule).chain([&self.rest])
    }

    fn by_id(&self, id: Id) -> Option<&Rule> {
        self.all().find(|rule| rule.id == id)
    }

    /// The codecs that dictionaries are trained for.
    pub(crate) fn training(&self) -> impl Iterator<Item = (&KeyspaceCodec, &Schedule)> {
        self.all().filter_map(|rule| Some((rule.codec.as_deref()?, &*rule.training)))
    }

    /// The rule for a key.
    pub(crate) fn rule(&self, key: &[u8]) -> &Rule {
        self.rules.iter().find(|(glob, _)| glob.matches(key)).map_or(&self.rest, |(_, rule)| rule)
    }

    /// Whether any rule gives tags to values.
    pub(crate) fn tags(&self) -> bool {
        self.tags.is_some()
    }

    /// The tags that a key's rule gives to its value. One that comes out empty can be named by nobody, and is left out.
    pub(crate) fn tags_of(&self, key: &[u8]) -> Vec<Vec<u8>> {
        if self.tags.is_none() {
            return Vec::new();
        }
        let Some((glob, rule)) = self.rules.iter().find(|(glob, _)| glob.matches(key)) else { return Vec::new() };
        if rule.tags.is_empty() {
            return Vec::new();
        }
        let taken = glob.captures(key).unwrap_or_default();
        rule.tags.iter().map(|tag| tag.fill(&taken)).filter(|tag| !tag.is_empty()).collect()
    }

    /// Whether any rule has values kept as envelopes.
    pub(crate) fn seals(&self) -> bool {
        let is_kept_stale =
            |rule: &Rule| rule.source.as_ref().is_some_and(|source| !source.settings.stale_if_error.is_zero());
        self.tags() || self.all().any(is_kept_stale)
    }

    /// Whether a write of the key invalidates what depends on it.
    pub(crate) fn is_parent(&self, key: &[u8]) -> bool {
        self.parents() && self.rule(key).parents
    }

    /// Whether a write of any key does.
    pub(crate) fn parents(&self) -> bool {
        self.parents.is_some()
    }

    /// Where a key is loaded from when it is absent.
    pub(crate) fn source(&self, key: &[u8]) -> Option<&Arc<Source>> {
        if self.loads { self.rule(key).source.as_ref() } else { None }
    }

    /// The negative filters of all keyspaces.
    pub(crate) fn filters(&self) -> &[Arc<KeyspaceFilter>] {
        &self.filters
    }

    /// Whether writes of any key go to a store.
    pub(crate) fn writes(&self) -> bool {
        self.writes
    }

    /// Whether any key is loaded from a store.
    pub(crate) fn loads(&self) -> bool {
        self.loads
    }

    /// Whether copies of all these keys may be kept.
    pub(crate) fn may_cache(&self, keys: &[&[u8]]) -> bool {
        self.rules.is_empty() || keys.iter().all(|key| self.rule(key).caches())
    }
}

fn codec_config(config: &Config, compression: &Compression) -> CodecConfig {
    CodecConfig {
        algorithm: match compression.algorithm {
            Algorithm::None => CompressionAlgorithm::None,
            Algorithm::Lz4 => CompressionAlgorithm::Lz4,
            Algorithm::Zstd => CompressionAlgorithm::Zstd { level: compression.level },
        },
        min_bytes: compression.min_bytes.as_usize(),
        max_decoded_bytes: config.limits.max_value_bytes.as_usize(),
        ..CodecConfig::default()
    }
}

/// Whether a copy that one configuration's rules let in is one that the other's would keep just so, whatever its key.
pub(crate) fn keep_alike(old: &Config, new: &Config) -> bool {
    let bound = |config: &Config| (config.consistency.coherence, config.consistency.max_staleness);
    let is_bounded = [old, new].iter().any(|config| config.consistency.coherence == Coherence::Ttl);
    let rules = |config: &Config| {
        let mut rules = config.keyspaces.clone();
        // How they lie in memory decides about no copy.
        for rule in &mut rules {
            rule.compression = config.l2.compression;
        }
        rules
    };
    let of_new = Config { l2: old.l2, ..new.clone() };
    rules(old) == rules(&of_new) && (!is_bounded || bound(old) == bound(new))
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
            loading: None,
            negative_filter: None,
            tags: Vec::new(),
            parents: false,
            compression: Config::default().l2.compression,
        };
        let config = Config { keyspaces: rules.iter().map(keyspace).collect(), ..Config::default() };
        let (behinds, _begun) = Behinds::new(&config, &Stores::default()).unwrap();
        Keyspaces::new(&config, &Names::default(), &Stores::default(), &behinds, None)
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

    #[test]
    fn the_first_rule_that_matches_gives_its_tags() {
        let rule = |pattern: &str, tags: &[&str]| {
            let stars = caddy_contract::stars(pattern);
            assert_eq!(stars, caddy_engine::glob::stars(pattern.as_bytes()), "{pattern}");
            let tags = tags.iter().map(|tag| TagTemplate::parse(tag, stars).unwrap()).collect();
            let mut config = caddy_contract::parse("keyspaces: [{name: a, match: x}]").unwrap().config;
            Keyspace { name: pattern.into(), pattern: pattern.into(), tags, ..config.keyspaces.remove(0) }
        };
        let keyspaces =
            vec![rule("user:*:*", &["user:{1}", "{2}", "all"]), rule("user:*", &["other"]), rule("[*]**", &[])];
        let config = Config { keyspaces, ..Config::default() };
        let (behinds, _begun) = Behinds::new(&config, &Stores::default()).unwrap();
        let rules = Keyspaces::new(&config, &Names::default(), &Stores::default(), &behinds, None);
        assert_eq!(rules.tags_of(b"user:7:name"), [&b"user:7"[..], b"name", b"all"]);
        assert_eq!(rules.tags_of(b"user:7:"), [&b"user:7"[..], b"all"]);
        assert_eq!(rules.tags_of(b"user:7"), [b"other"]);
        assert!(rules.tags_of(b"*x").is_empty() && rules.tags_of(b"else").is_empty());
    }
}
