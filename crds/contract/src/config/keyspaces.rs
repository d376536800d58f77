//! The section `keyspaces`, and how values are kept small.

use super::{
    reader::Reader,
    tags::{TAGS_MAX, TagTemplate, stars},
};
use crate::{
    Algorithm, ByteSize, CacheMode, Coherence, Durability, KeyspaceMode, RawCompression, RawConfig, RawKeyspace,
    RawPostgresStore, RawStore, RawWriteBehind, Strategy, parse_duration,
};
use std::{collections::HashSet, path::PathBuf, time::Duration};

/// Levels of ZSTD: above 19 a compressor takes hundreds of megabytes.
const LEVELS: std::ops::RangeInclusive<i32> = -7..=19;

/// How values are kept small in L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compression {
    /// How they are compressed.
    pub algorithm: Algorithm,
    /// For `Zstd`.
    pub level: i32,
    /// Smaller values stay as they are.
    pub min_bytes: ByteSize,
}

/// A rule for the keys that match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyspace {
    /// Name in metrics and messages, unique.
    pub name: String,
    /// Redis glob over whole keys.
    pub pattern: String,
    /// Whether copies are kept.
    pub cache: CacheMode,
    /// Whether copies answer, or are only counted.
    pub mode: KeyspaceMode,
    /// Bound on the life of a copy.
    pub ttl: Option<Duration>,
    /// Bound on the life of a copy that says "absent".
    pub negative_ttl: Option<Duration>,
    /// What is loaded from a store; none: nothing.
    pub loading: Option<Loading>,
    /// What is known of its keys that Redis does not have; none: nothing.
    pub negative_filter: Option<NegativeFilter>,
    /// Tags of values that are written through a sidecar.
    pub tags: Vec<TagTemplate>,
    /// A write through a sidecar invalidates what depends on the key.
    pub parents: bool,
    /// How its values are kept small.
    pub compression: Compression,
}

/// What is known of a keyspace's keys that Redis does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NegativeFilter {
    /// What its keys begin with, and no others.
    pub prefix: String,
    /// Keys that it is made for.
    pub max_keys: usize,
}

/// How values of a keyspace are loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loading {
    /// Name of one of [`Config::stores`](crate::Config::stores).
    pub store: String,
    /// What the cache has to do with the store; not [`Strategy::CacheAside`].
    pub strategy: Strategy,
    /// How long what is loaded is fresh, unless the store says less; none: until it is written.
    pub ttl: Option<Duration>,
    /// How long it counts that the store has no such key.
    pub negative_ttl: Duration,
    /// Time after which a stale value is answered, if there is one.
    pub soft_timeout: Option<Duration>,
    /// Time after which a load is given up.
    pub hard_timeout: Duration,
    /// For how long a value may be answered beyond its life while the store gives none; zero: not at all.
    pub stale_if_error: Duration,
    /// At which part of its life a value that is read is loaded anew, percent.
    pub refresh_at_percent: Option<u32>,
    /// By how much lives are shortened at random, percent at most.
    pub jitter_percent: u32,
    /// With [`Strategy::WriteBehind`]: how writes wait for the store.
    pub behind: Option<Behind>,
}

/// How writes wait for the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Behind {
    /// What a write survives that was acknowledged and is not stored yet.
    pub durability: Durability,
    /// Records of one call to the store, at least 1.
    pub batch_size: usize,
    /// How long a record waits for others to share its batch.
    pub flush_interval: Duration,
    /// Records that may wait.
    pub max_records: usize,
    /// Their bytes.
    pub max_bytes: ByteSize,
    /// How long a write waits for room.
    pub max_wait: Duration,
    /// How often a record that the store refuses is offered to it, at least 1.
    pub max_attempts: u32,
    /// With [`Durability::Replicated`]: replicas that have a write before it is acknowledged.
    pub replicas: u32,
    /// With [`Durability::Replicated`]: how long a sidecar may be silent before others store what it has left.
    pub adopt_after: Duration,
    /// Where the logs are.
    pub directory: PathBuf,
}

impl Default for Behind {
    fn default() -> Self {
        Reader::default().behind("", &RawWriteBehind::default())
    }
}

/// How long it counts that a store has no such key, where nothing is said.
const NEGATIVE_TTL: Duration = Duration::from_secs(5);

impl Reader {
    pub(super) fn compression(&mut self, path: &str, raw: &RawCompression) -> Compression {
        let level = raw.level;
        self.check(
            (LEVELS).contains(&level),
            &format!("{path}.level"),
            format!("{level} is out of range; write {} to {}", LEVELS.start(), LEVELS.end()),
        );
        let min_bytes = self.size(&format!("{path}.minBytes"), &raw.min_bytes);
        Compression { algorithm: raw.algorithm, level, min_bytes }
    }

    pub(super) fn keyspaces(&mut self, config: &RawConfig) -> Vec<Keyspace> {
        let (raw, compression) = (&config.keyspaces, &config.l2.compression);
        let mut names = HashSet::new();
        for (n, keyspace) in raw.iter().enumerate() {
            let path = format!("keyspaces[{n}]");
            let name = &keyspace.name;
            let plain = (1..=63).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
            self.check(
                plain,
                &format!("{path}.name"),
                format!("{name:?} must be 1 to 63 letters, digits, `-`, `_`, `.`"),
            );
            self.check(
                names.insert(name),
                &format!("{path}.name"),
                format!("{name:?} is taken by an earlier keyspace; names are unique"),
            );
            self.check(
                (1..=512).contains(&keyspace.pattern.len()),
                &format!("{path}.match"),
                "must be a Redis glob of 1 to 512 bytes, e.g. user:*",
            );
        }
        let parsed = |(n, keyspace): (usize, &RawKeyspace)| {
            let ttl = self.bound(&format!("keyspaces[{n}].ttl"), &keyspace.ttl);
            Keyspace {
                name: keyspace.name.clone(),
                pattern: keyspace.pattern.clone(),
                cache: keyspace.cache,
                mode: keyspace.mode,
                ttl,
                negative_ttl: self.bound(&format!("keyspaces[{n}].negativeTtl"), &keyspace.negative_ttl).or(ttl),
                loading: self.loading(&format!("keyspaces[{n}]"), keyspace, config),
                negative_filter: self.negative_filter(n, keyspace, config),
                tags: self.tags(&format!("keyspaces[{n}].tags"), keyspace),
                parents: keyspace.parents,
                compression: match &keyspace.compression {
                    Some(own) => self.compression(&format!("keyspaces[{n}].compression"), own),
                    None => Self::default().compression("", compression),
                },
            }
        };
        raw.iter().enumerate().map(parsed).collect()
    }

    /// A filter learns of new keys by what Redis announces of all keys with a prefix: so a prefix it has to be.
    fn negative_filter(&mut self, n: usize, raw: &RawKeyspace, config: &RawConfig) -> Option<NegativeFilter> {
        let filter = raw.negative_filter.as_ref()?;
        let path = format!("keyspaces[{n}].negativeFilter");
        let prefix = raw
            .pattern
            .strip_suffix('*')
            .filter(|prefix| !prefix.is_empty() && !prefix.contains(['*', '?', '[', ']', '\\']));
        self.check(
            prefix.is_some(),
            &path,
            format!("needs a match that is a prefix and a star, e.g. user:*, not {:?}", raw.pattern),
        );
        self.check(
            raw.strategy == Strategy::CacheAside,
            &path,
            "is of no use with a store, which has keys that Redis does not know; leave one of them out",
        );
        self.check(
            raw.cache == CacheMode::Auto && raw.mode == KeyspaceMode::Serve,
            &path,
            "needs cache: Auto and mode: Serve",
        );
        self.check(config.l3.redis.is_some(), &path, "needs l3.redis");
        self.check(
            config.consistency.coherence != Coherence::Ttl,
            &path,
            "needs consistency.coherence Tracking or Broadcast: it learns of new keys by CLIENT TRACKING",
        );
        Some(NegativeFilter {
            prefix: prefix.unwrap_or_default().to_owned(),
            max_keys: self.within(&format!("{path}.maxKeys"), filter.max_keys, 1, 10_000_000) as usize,
        })
    }

    fn tags(&mut self, path: &str, raw: &RawKeyspace) -> Vec<TagTemplate> {
        let count = raw.tags.len();
        self.check(count <= TAGS_MAX, path, format!("has {count} entries; at most {TAGS_MAX} are allowed"));
        let stars = stars(&raw.pattern);
        let parsed = raw.tags.iter().enumerate().filter_map(|(n, text)| {
            let tag = TagTemplate::parse(text, stars);
            tag.map_err(|wrong| self.check(false, &format!("{path}[{n}]"), format!("{text:?}: {wrong}"))).ok()
        });
        parsed.collect()
    }

    /// What a keyspace says of its store; without one, nothing that would need it may be said.
    fn loading(&mut self, path: &str, raw: &RawKeyspace, config: &RawConfig) -> Option<Loading> {
        let at = |field: &str| format!("{path}.{field}");
        if raw.strategy == Strategy::CacheAside {
            let needs_a_strategy = [
                ("store", !raw.store.is_empty(), "ReadThrough"),
                ("softTimeout", !raw.soft_timeout.is_empty(), "ReadThrough"),
                ("staleIfError", !raw.stale_if_error.is_empty(), "ReadThrough"),
                ("refreshAtPercent", raw.refresh_at_percent != 0, "ReadThrough"),
                ("writeBehind", raw.write_behind.is_some(), "WriteBehind"),
            ];
            for (field, _, strategy) in needs_a_strategy.iter().filter(|(_, is_set, _)| *is_set) {
                let wrong = format!("does nothing with strategy: CacheAside; write e.g. strategy: {strategy}");
                self.check(false, &at(field), wrong);
            }
            return None;
        }
        let wrong = match &*raw.store {
            "" => format!("strategy: {:?} needs it; write the name of one of stores", raw.strategy),
            name => format!("{name:?} is none of stores; strategy: {:?} needs one", raw.strategy),
        };
        self.check(config.stores.iter().any(|store| store.name == raw.store), &at("store"), wrong);
        self.check(
            config.l3.redis.is_some(),
            &at("strategy"),
            format!("{:?} needs l3.redis: who loads is agreed on there", raw.strategy),
        );
        self.check(
            raw.cache == CacheMode::Auto && raw.mode == KeyspaceMode::Serve,
            &at("strategy"),
            format!("{:?} needs cache: Auto and mode: Serve", raw.strategy),
        );
        let writes = matches!(raw.strategy, Strategy::WriteThrough | Strategy::WriteBehind);
        for (field, _) in
            [("tags", !raw.tags.is_empty()), ("parents", raw.parents)].iter().filter(|(_, is_set)| *is_set)
        {
            self.check(
                !writes,
                &at(field),
                format!("is not available with strategy {:?}, whose values are the store's", raw.strategy),
            );
        }
        let read_only = |store: &&RawStore| {
            let is_read_only = |sql: &RawPostgresStore| sql.store.is_empty() || sql.delete.is_empty();
            store.name == raw.store && store.postgres.as_ref().is_some_and(is_read_only)
        };
        self.check(
            !writes || !config.stores.iter().any(|store| read_only(&store)),
            &at("store"),
            format!("{:?} is read-only: strategy {:?} needs its statements store and delete", raw.store, raw.strategy),
        );
        self.check(
            raw.write_behind.is_none() || raw.strategy == Strategy::WriteBehind,
            &at("writeBehind"),
            "is of use with strategy: WriteBehind only",
        );
        let behind = (raw.strategy == Strategy::WriteBehind)
            .then(|| self.behind(&at("writeBehind"), &raw.write_behind.clone().unwrap_or_default()));
        let ttl = unjudged(&raw.ttl);
        let negative = unjudged(&raw.negative_ttl);
        let soft_timeout = (!raw.soft_timeout.is_empty()).then(|| self.time(&at("softTimeout"), &raw.soft_timeout, 1));
        let hard_timeout = self.time(&at("hardTimeout"), &raw.hard_timeout, 10);
        self.check(
            soft_timeout.is_none_or(|soft| soft < hard_timeout),
            &at("softTimeout"),
            format!("must be less than hardTimeout, {}", raw.hard_timeout),
        );
        let stale_if_error = self.bound(&at("staleIfError"), &raw.stale_if_error).unwrap_or_default();
        self.check(
            soft_timeout.is_none() || !stale_if_error.is_zero(),
            &at("softTimeout"),
            "needs staleIfError: without it nothing is there to be answered",
        );
        self.check(
            ttl.is_some() || (stale_if_error.is_zero() && raw.refresh_at_percent == 0),
            &at("ttl"),
            "is needed with staleIfError and refreshAtPercent: a value without it never becomes old",
        );
        let refresh = raw.refresh_at_percent;
        self.check(
            refresh == 0 || (10..=95).contains(&refresh),
            &at("refreshAtPercent"),
            format!("{refresh} is out of range; write 10 to 95, or 0 for never"),
        );
        Some(Loading {
            store: raw.store.clone(),
            strategy: raw.strategy,
            ttl,
            negative_ttl: negative.unwrap_or_else(|| ttl.map_or(NEGATIVE_TTL, |ttl| ttl.min(NEGATIVE_TTL))),
            soft_timeout,
            hard_timeout,
            stale_if_error,
            refresh_at_percent: (refresh != 0).then_some(refresh),
            jitter_percent: self.within(&at("jitterPercent"), raw.jitter_percent, 0, 50),
            behind,
        })
    }

    fn behind(&mut self, path: &str, raw: &RawWriteBehind) -> Behind {
        let at = |field: &str| format!("{path}.{field}");
        self.check(raw.directory.starts_with('/'), &at("directory"), "must be an absolute path");
        Behind {
            durability: raw.durability,
            batch_size: self.within(&at("batchSize"), raw.batch_size, 1, 5_000) as usize,
            flush_interval: self.time(&at("flushInterval"), &raw.flush_interval, 1),
            max_records: self.within(&at("maxRecords"), raw.max_records, 1, 10_000_000) as usize,
            max_bytes: self.size_from(&at("maxBytes"), &raw.max_bytes, ByteSize::mebi(1)),
            max_wait: self.time(&at("maxWait"), &raw.max_wait, 1),
            max_attempts: self.within(&at("maxAttempts"), raw.max_attempts, 1, 1_000),
            replicas: self.within(&at("replicas"), raw.replicas, 0, 10),
            adopt_after: self.time(&at("adoptAfter"), &raw.adopt_after, 1_000),
            directory: raw.directory.clone().into(),
        }
    }
}

/// A time whose faults are told elsewhere.
fn unjudged(text: &str) -> Option<Duration> {
    (!text.is_empty()).then(|| parse_duration(text).unwrap_or_default())
}
