//! The rules that the schema cannot express, each once: as CEL for API servers that know it (1.25 and newer), as a
//! function for the operator, which on older servers is the only one that checks.
//!
//! `tests/rules.rs` evaluates the CEL beside the function and fails where they disagree.

use crate::cluster::{Cache, CacheCluster, Coherence, Keyspace, KeyspaceMode, Mode, Redis, Strategy};
use crate::names::CLUSTER_NAME_MAX;
use crate::quantity::Period;
use caddy_contract::parse_duration;
use std::{collections::HashSet, time::Duration};

/// One rule.
#[derive(Clone, Copy)]
pub struct Rule {
    /// Where in the object the CEL stands, as property names; `[]` steps into a list. Empty: the object itself.
    pub at: &'static [&'static str],
    /// The rule for the API server.
    pub cel: &'static str,
    /// What the user is told.
    pub message: &'static str,
    /// The rule for the operator.
    pub holds: fn(&CacheCluster) -> bool,
}

/// All rules.
pub const RULES: &[Rule] = &[
    Rule {
        at: &[],
        cel: "size(self.metadata.name) <= 52",
        message: "metadata.name may have at most 52 characters, since names of other objects are derived from it",
        holds: |cluster| name(cluster).len() <= CLUSTER_NAME_MAX,
    },
    Rule {
        at: &["spec", "l3"],
        cel: "has(self.redis) != has(self.embedded)",
        message: "exactly one of redis and embedded is needed; write e.g. redis: {endpoints: [\"redis.shop:6379\"]}, or embedded: {} for development",
        holds: |cluster| cluster.spec.l3.redis.is_some() != cluster.spec.l3.embedded.is_some(),
    },
    Rule {
        at: &["spec", "l3", "redis"],
        cel: "self.mode != 'Standalone' || size(self.endpoints) == 1",
        message: "endpoints must have exactly one entry in mode Standalone",
        holds: |cluster| {
            redis(cluster).is_none_or(|redis| redis.mode != Mode::Standalone || redis.endpoints.len() == 1)
        },
    },
    Rule {
        at: &["spec", "l3", "redis"],
        cel: "!has(self.username) || !has(self.authSecretRef) || !has(self.authSecretRef.usernameKey)",
        message: "username and authSecretRef.usernameKey both name the user; keep one of them",
        holds: |cluster| {
            redis(cluster).is_none_or(|redis| {
                let key = redis.auth_secret_ref.as_ref().and_then(|secret| secret.username_key.as_ref());
                redis.username.is_none() || key.is_none()
            })
        },
    },
    Rule {
        at: &["spec", "l3", "redis"],
        cel: "has(self.sentinel) == (self.mode == 'Sentinel')",
        message: "sentinel belongs to mode Sentinel, which needs it; write e.g. mode: Sentinel, sentinel: {masterName: mymaster}",
        holds: |cluster| redis(cluster).is_none_or(|redis| redis.sentinel.is_some() == (redis.mode == Mode::Sentinel)),
    },
    Rule {
        at: &["spec", "l3", "redis", "sentinel"],
        cel: "!has(self.username) || !has(self.authSecretRef) || !has(self.authSecretRef.usernameKey)",
        message: "username and authSecretRef.usernameKey both name the Sentinels' user; keep one of them",
        holds: |cluster| {
            redis(cluster).and_then(|redis| redis.sentinel.as_ref()).is_none_or(|sentinel| {
                let key = sentinel.auth_secret_ref.as_ref().and_then(|secret| secret.username_key.as_ref());
                sentinel.username.is_none() || key.is_none()
            })
        },
    },
    Rule {
        at: &["spec", "consistency"],
        cel: "size(self.broadcastPrefixes) == 0 || self.coherence == 'Broadcast'",
        message: "broadcastPrefixes is of use with coherence Broadcast only",
        holds: |cluster| {
            let consistency = &cluster.spec.consistency;
            consistency.broadcast_prefixes.is_empty() || consistency.coherence == Coherence::Broadcast
        },
    },
    Rule {
        at: &["spec", "l3", "redis", "tls"],
        cel: "!has(self.caSecretRef) || !has(self.caConfigMapRef)",
        message: "caSecretRef and caConfigMapRef both name the authorities to trust; keep one of them",
        holds: |cluster| {
            let tls = redis(cluster).and_then(|redis| redis.tls.as_ref());
            tls.is_none_or(|tls| tls.ca_secret_ref.is_none() || tls.ca_config_map_ref.is_none())
        },
    },
    Rule {
        at: &["spec", "listen"],
        cel: "self.tcpPort != 9464",
        message: "tcpPort 9464 is taken by the sidecar's health and metrics; choose another, e.g. 6379",
        holds: |cluster| cluster.spec.listen.tcp_port != i32::from(caddy_contract::ADMIN_PORT),
    },
    Rule {
        at: &["spec", "consistency"],
        cel: "duration(self.maxStaleness) >= duration('10ms') && duration(self.maxStaleness) <= duration('24h')",
        message: "maxStaleness must be 10ms to 24h",
        holds: |cluster| within(&cluster.spec.consistency.max_staleness.0, 10),
    },
    Rule {
        at: &["spec", "tiering"],
        cel: "duration(self.demoteAfterIdle) >= duration('1s') && duration(self.demoteAfterIdle) <= duration('24h')",
        message: "demoteAfterIdle must be 1s to 24h",
        holds: |cluster| within(&cluster.spec.tiering.demote_after_idle.0, 1000),
    },
    Rule {
        at: &["spec", "tiering"],
        cel: "duration(self.maintenanceInterval) >= duration('100ms') && duration(self.maintenanceInterval) <= duration('24h')",
        message: "maintenanceInterval must be 100ms to 24h",
        holds: |cluster| within(&cluster.spec.tiering.maintenance_interval.0, 100),
    },
    Rule {
        at: &["spec", "warming"],
        cel: "duration(self.startupDeadline) >= duration('1s') && duration(self.startupDeadline) <= duration('10m')",
        message: "startupDeadline must be 1s to 10m",
        holds: |cluster| {
            let range = Duration::from_secs(1)..=Duration::from_mins(10);
            parse_duration(&cluster.spec.warming.startup_deadline.0).is_ok_and(|time| range.contains(&time))
        },
    },
    Rule {
        at: &["spec"],
        cel: "!self.warming.enabled || has(self.l3.redis)",
        message: "warming needs l3.redis: what is read most is written down there",
        holds: |cluster| !cluster.spec.warming.enabled || redis(cluster).is_some(),
    },
    Rule {
        at: &["spec", "warming"],
        cel: "self.enabled || self.startupShare == 0",
        message: "startupShare is of use with enabled: true only",
        holds: |cluster| cluster.spec.warming.enabled || cluster.spec.warming.startup_share == 0,
    },
    Rule {
        at: &["spec", "locks"],
        cel: "duration(self.lease) >= duration('100ms') && duration(self.lease) <= duration('24h')",
        message: "lease must be 100ms to 24h",
        holds: |cluster| within(&cluster.spec.locks.lease.0, 100),
    },
    Rule {
        at: &["spec", "locks"],
        cel: "duration(self.timeout) <= duration('24h')",
        message: "timeout must be at most 24h",
        holds: |cluster| within(&cluster.spec.locks.timeout.0, 0),
    },
    Rule {
        at: &["spec", "locks"],
        cel: "duration(self.deadlockCheck) >= duration('100ms') && duration(self.deadlockCheck) <= duration('24h')",
        message: "deadlockCheck must be 100ms to 24h",
        holds: |cluster| within(&cluster.spec.locks.deadlock_check.0, 100),
    },
    Rule {
        at: &["spec"],
        cel: "!has(self.keyspaces) || self.keyspaces.all(k, self.keyspaces.exists_one(o, o.name == k.name))",
        message: "names of keyspaces are unique",
        holds: |cluster| {
            let mut names = HashSet::new();
            cluster.spec.keyspaces.iter().all(|keyspace| names.insert(&keyspace.name))
        },
    },
    Rule {
        at: &["spec"],
        cel: "!has(self.keyspaces) || self.keyspaces.all(k, !has(k.ttl) || (duration(k.ttl) >= duration('10ms') && duration(k.ttl) <= duration('24h')))",
        message: "ttl of a keyspace must be 10ms to 24h",
        holds: |cluster| all_within(cluster, |keyspace| keyspace.ttl.as_ref()),
    },
    Rule {
        at: &["spec"],
        cel: "!has(self.keyspaces) || self.keyspaces.all(k, !has(k.negativeTtl) || (duration(k.negativeTtl) >= duration('10ms') && duration(k.negativeTtl) <= duration('24h')))",
        message: "negativeTtl of a keyspace must be 10ms to 24h",
        holds: |cluster| all_within(cluster, |keyspace| keyspace.negative_ttl.as_ref()),
    },
    Rule {
        at: &["spec"],
        cel: "!has(self.stores) || self.stores.all(s, has(s.http) != has(s.postgres) && self.stores.exists_one(o, o.name == s.name))",
        message: "each store has exactly one of http and postgres, and a name of its own",
        holds: |cluster| {
            let mut names = HashSet::new();
            let stores = &cluster.spec.stores;
            stores.iter().all(|store| store.http.is_some() != store.postgres.is_some() && names.insert(&store.name))
        },
    },
    Rule {
        at: &["spec"],
        cel: "!has(self.keyspaces) || self.keyspaces.all(k, k.strategy == 'CacheAside' || (has(k.store) && has(self.stores) && self.stores.exists(s, s.name == k.store)))",
        message: "a keyspace whose strategy is not CacheAside names one of stores",
        holds: |cluster| {
            let has = |name: &String| cluster.spec.stores.iter().any(|store| store.name == *name);
            let holds = |keyspace: &Keyspace| {
                keyspace.strategy == Strategy::CacheAside || keyspace.store.as_ref().is_some_and(has)
            };
            cluster.spec.keyspaces.iter().all(holds)
        },
    },
    Rule {
        at: &["spec"],
        cel: "!has(self.keyspaces) || self.keyspaces.all(k, !(k.strategy in ['WriteThrough', 'WriteBehind']) || ((!has(k.tags) || size(k.tags) == 0) && !k.parents))",
        message: "a keyspace whose writes go to a store (strategy: WriteThrough or WriteBehind) has neither tags nor parents: its values are the store's",
        holds: |cluster| {
            let is_written =
                |keyspace: &&Keyspace| matches!(keyspace.strategy, Strategy::WriteThrough | Strategy::WriteBehind);
            let holds = |keyspace: &Keyspace| keyspace.tags.is_empty() && !keyspace.parents;
            cluster.spec.keyspaces.iter().filter(is_written).all(holds)
        },
    },
    Rule {
        at: &["spec"],
        cel: "!has(self.keyspaces) || self.keyspaces.all(k, !has(k.negativeFilter) || (k.match.matches('^[^*]+[*]$') && !['?', '[', ']', '\\\\'].exists(c, k.match.contains(c))))",
        message: "a keyspace with negativeFilter has a match that is a prefix and a star, e.g. user:*",
        holds: |cluster| {
            filtered(cluster).all(|keyspace| {
                let prefix = keyspace.pattern.strip_suffix('*');
                prefix.is_some_and(|prefix| !prefix.is_empty() && !prefix.contains(['*', '?', '[', ']', '\\']))
            })
        },
    },
    Rule {
        at: &["spec"],
        cel: "!has(self.keyspaces) || self.keyspaces.all(k, !has(k.negativeFilter) || (k.strategy == 'CacheAside' && k.cache == 'Auto' && k.mode == 'Serve'))",
        message: "a keyspace with negativeFilter has no store (which has keys that Redis does not know), cache: Auto and mode: Serve",
        holds: |cluster| {
            filtered(cluster).all(|keyspace| {
                keyspace.strategy == Strategy::CacheAside
                    && keyspace.cache == Cache::Auto
                    && keyspace.mode == KeyspaceMode::Serve
            })
        },
    },
    Rule {
        at: &["spec"],
        cel: "!has(self.keyspaces) || !self.keyspaces.exists(k, has(k.negativeFilter)) || (has(self.l3.redis) && self.consistency.coherence != 'Ttl')",
        message: "negativeFilter needs l3.redis, and coherence Tracking or Broadcast",
        holds: |cluster| {
            filtered(cluster).next().is_none()
                || redis(cluster).is_some() && cluster.spec.consistency.coherence != Coherence::Ttl
        },
    },
    Rule {
        at: &["spec", "auth"],
        cel: "has(self.secretRef) || (has(self.users) && size(self.users) > 0)",
        message: "auth needs secretRef, users, or both; leave auth out to let every container of the pod in",
        holds: |cluster| {
            cluster.spec.auth.as_ref().is_none_or(|auth| auth.secret_ref.is_some() || !auth.users.is_empty())
        },
    },
    Rule {
        at: &["spec", "auth"],
        cel: "!has(self.users) || self.users.all(u, u.name != 'default' && self.users.exists_one(o, o.name == u.name))",
        message: "names of users are unique, and none is default, which is auth.secretRef's",
        holds: |cluster| {
            let mut names = HashSet::from(["default"]);
            let mut users = cluster.spec.auth.iter().flat_map(|auth| &auth.users);
            users.all(|user| names.insert(&user.name))
        },
    },
];

/// The rules that an object breaks, as `path: message`, in the order of the table.
pub fn broken(cluster: &CacheCluster) -> Vec<String> {
    let told = |rule: &Rule| match rule.at {
        [] => rule.message.to_owned(),
        at => format!("{}: {}", at.join("."), rule.message),
    };
    RULES.iter().filter(|rule| !(rule.holds)(cluster)).map(told).collect()
}

fn name(cluster: &CacheCluster) -> &str {
    cluster.metadata.name.as_deref().unwrap_or_default()
}

fn all_within(cluster: &CacheCluster, time: fn(&Keyspace) -> Option<&Period>) -> bool {
    cluster.spec.keyspaces.iter().filter_map(time).all(|time| within(&time.0, 10))
}

fn filtered(cluster: &CacheCluster) -> impl Iterator<Item = &Keyspace> {
    cluster.spec.keyspaces.iter().filter(|keyspace| keyspace.negative_filter.is_some())
}

fn redis(cluster: &CacheCluster) -> Option<&Redis> {
    cluster.spec.l3.redis.as_ref()
}

fn within(text: &str, least_millis: u64) -> bool {
    let range = Duration::from_millis(least_millis)..=Duration::from_hours(24);
    parse_duration(text).is_ok_and(|time| range.contains(&time))
}
