//! The ConfigMap of a CacheCluster: the sidecar's configuration file, as the contract writes it.
//!
//! Refuses a spec that breaks a rule or that the sidecar would refuse, with all reasons at once; the last good
//! ConfigMap then stays as it is.

mod stores;

use caddy_contract::{
    Algorithm, Budget, ByteSize, CacheMode, Coherence, Durability, KeyspaceMode, L2Policy, OnUncertain, RawAdmin,
    RawAuth, RawCluster, RawCompression, RawConfig, RawConsistency, RawEmbedded, RawKeyspace, RawKubernetes, RawL1,
    RawL2, RawL3, RawLimits, RawListen, RawLockLimits, RawLocks, RawNegativeFilter, RawRedis, RawSentinel, RawTiering,
    RawUser, RawWarming, RawWriteBehind, RedisMode, SentinelTls, Strategy,
};
use caddy_crds::{
    CacheCluster,
    cluster::{self, Cache},
    names,
    quantity::{Period, Size},
    rules,
};
use k8s_openapi::{
    api::core::v1::ConfigMap,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{Resource as _, ResourceExt as _};
use std::collections::BTreeMap;
use stores::{raw_store, raw_tls};

/// Why a spec cannot be used; every reason, each with its path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct InvalidSpec(pub Vec<String>);

/// Members are told their number in steps of this size, so that the ConfigMap does not follow each pod.
const MEMBERS_STEP: u32 = 50;
/// What they are told while nobody knows: a slow pace does no harm.
const MEMBERS_UNKNOWN: u32 = 1000;

/// How many members sidecars are told of when `injected` pods have one.
pub fn members_hint(injected: Option<i32>) -> u32 {
    injected.map_or(MEMBERS_UNKNOWN, |injected| {
        injected.unsigned_abs().div_ceil(MEMBERS_STEP).max(1).saturating_mul(MEMBERS_STEP)
    })
}

/// The ConfigMap that sidecars of `cluster` mount; `members` is what [`members_hint`] says.
///
/// # Errors
/// When the spec breaks a rule of the API or of the contract.
pub fn config_map(cluster: &CacheCluster, members: u32) -> Result<ConfigMap, InvalidSpec> {
    let name = cluster.name_any();
    let text =
        serde_yaml::to_string(&checked(cluster, members)?).map_err(|error| InvalidSpec(vec![error.to_string()]))?;
    Ok(ConfigMap {
        metadata: ObjectMeta {
            name: Some(names::config_map(&name)),
            namespace: cluster.namespace(),
            labels: Some(BTreeMap::from([
                ("app.kubernetes.io/name".to_owned(), "caddy-cache".to_owned()),
                ("app.kubernetes.io/instance".to_owned(), name),
                (names::MANAGED_BY_LABEL.to_owned(), names::FIELD_MANAGER.to_owned()),
            ])),
            owner_references: owner(cluster).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(names::CONFIG_KEY.to_owned(), text)])),
        ..ConfigMap::default()
    })
}

/// Owner of what is made for `cluster`: garbage collection deletes it, no finalizer is needed.
fn owner(cluster: &CacheCluster) -> Option<OwnerReference> {
    // Without blockOwnerDeletion, which would need the right to set finalizers on CacheClusters.
    let owner = cluster.controller_owner_ref(&())?;
    Some(OwnerReference { block_owner_deletion: None, ..owner })
}

/// The configuration, when neither the API's rules nor the contract have anything against it.
fn checked(cluster: &CacheCluster, members: u32) -> Result<RawConfig, InvalidSpec> {
    let mut reasons = rules::broken(cluster);
    let raw = raw_config(cluster, members);
    if let Err(faults) = raw.parse() {
        // A fault of the contract in a field whose rule is broken already would say the same thing twice.
        let told = |path: &str| reasons.iter().any(|reason| reason.contains(path.rsplit('.').next().unwrap_or(path)));
        let more: Vec<_> =
            faults.iter().filter(|fault| !told(&fault.path)).map(|fault| format!("spec.{fault}")).collect();
        reasons.extend(more);
    }
    reasons.extend(memory_fault(cluster));
    if reasons.is_empty() { Ok(raw) } else { Err(InvalidSpec(reasons)) }
}

/// A memory limit under which the sidecar would be killed once its tiers are full, or under its own request. No rule of
/// the API: CEL compares quantities only since 1.29.
fn memory_fault(cluster: &CacheCluster) -> Option<String> {
    let Some(limit) = memory_limit(cluster) else {
        let shares = matches!(cluster.spec.l2.max_bytes.0.parse(), Ok(Budget::Share(_)));
        let fault = "spec.l2.maxBytes: a share is one of spec.resources.limits.memory, which is not set; set it, or write a \
                     size such as 64Mi";
        return shares.then(|| fault.to_owned());
    };
    let needed = needed_memory(cluster);
    if limit < needed {
        return Some(format!(
            "spec.resources.limits.memory: {limit} is less than the sidecar needs, l1 + l2 + 40Mi = {needed}; raise it or \
             lower l1.maxBytes and l2.maxBytes"
        ));
    }
    let request = memory(cluster.spec.resources.as_ref()?.requests.as_ref()).filter(|request| *request > limit)?;
    Some(format!("spec.resources.requests.memory: {request} is more than the limit of {limit}"))
}

fn memory(amounts: Option<&cluster::Amounts>) -> Option<ByteSize> {
    amounts?.memory.as_ref()?.0.parse().ok()
}

fn memory_limit(cluster: &CacheCluster) -> Option<ByteSize> {
    memory(cluster.spec.resources.as_ref()?.limits.as_ref())
}

/// L1 + L2 and what the process needs beside them.
pub fn needed_memory(cluster: &CacheCluster) -> ByteSize {
    let bytes = |size: &Size| size.0.parse::<ByteSize>().map_or(0, ByteSize::bytes);
    let l2 = cluster.spec.l2.max_bytes.0.parse::<Budget>().ok().and_then(|budget| budget.under(memory_limit(cluster)));
    let tiers = bytes(&cluster.spec.l1.max_bytes).saturating_add(l2.map_or(0, ByteSize::bytes));
    let behind = cluster.spec.keyspaces.iter().filter(|keyspace| keyspace.strategy == cluster::Strategy::WriteBehind);
    let waiting = behind.map(|keyspace| keyspace.write_behind.clone().unwrap_or_default().max_bytes);
    let waiting = waiting.map(|size| bytes(&size)).fold(0, u64::saturating_add);
    // Twelve bits per key, twice while a filter is built anew.
    let filters = cluster.spec.keyspaces.iter().filter_map(|keyspace| keyspace.negative_filter.as_ref());
    let filters = filters.map(|filter| u64::from(filter.max_keys.unsigned_abs()) * 3).fold(0, u64::saturating_add);
    ByteSize::new(tiers.saturating_add(waiting).saturating_add(filters).saturating_add(ByteSize::mebi(40).bytes()))
}

/// Bytes of the volume for logs of keyspaces that write behind with durability `Pod`; none: none does. A log is tidied when
/// it is twice as long as what is needed of it.
pub fn write_behind_volume(cluster: &CacheCluster) -> Option<ByteSize> {
    let logged = |keyspace: &&cluster::Keyspace| {
        let behind = keyspace.write_behind.as_ref();
        keyspace.strategy == cluster::Strategy::WriteBehind
            && behind.is_some_and(|behind| behind.durability == cluster::Durability::Pod)
    };
    let sizes = cluster.spec.keyspaces.iter().filter(logged).filter_map(|keyspace| keyspace.write_behind.as_ref());
    let sizes = sizes.map(|behind| behind.max_bytes.0.parse::<ByteSize>().map_or(0, ByteSize::bytes));
    let of_one = |bytes: u64| bytes.saturating_mul(3).saturating_add(ByteSize::mebi(64).bytes());
    sizes.map(of_one).reduce(u64::saturating_add).map(ByteSize::new)
}

/// The spec in the contract's words, unchecked.
pub fn raw_config(cluster: &CacheCluster, members: u32) -> RawConfig {
    let spec = &cluster.spec;
    RawConfig {
        config_generation: Some(cluster.metadata.generation.unwrap_or(0).unsigned_abs()),
        cluster: RawCluster {
            name: cluster.name_any(),
            namespace: cluster.namespace().unwrap_or_default(),
            domain: format!("{}.{}", cluster.namespace().unwrap_or_default(), cluster.name_any()),
            uid: cluster.uid().unwrap_or_default(),
        },
        listen: RawListen {
            socket: caddy_contract::SOCKET_PATH.to_owned(),
            tcp_port: u16::try_from(spec.listen.tcp_port).unwrap_or(0),
        },
        // Prometheus reaches the pod by its own address; the port serves health and metrics only.
        admin: RawAdmin { port: caddy_contract::ADMIN_PORT, address: "0.0.0.0".to_owned() },
        l1: RawL1 { max_entries: spec.l1.max_entries.unsigned_abs(), max_bytes: spec.l1.max_bytes.0.clone() },
        l2: RawL2 {
            max_bytes: spec.l2.max_bytes.0.clone(),
            policy: match spec.l2.policy {
                cluster::L2Policy::Adaptive => L2Policy::Adaptive,
                cluster::L2Policy::S3Fifo => L2Policy::S3Fifo,
                cluster::L2Policy::Lru => L2Policy::Lru,
            },
            compression: raw_compression(&spec.l2.compression),
        },
        l3: RawL3 {
            embedded: spec.l3.embedded.as_ref().map(|_| RawEmbedded {}),
            redis: spec.l3.redis.as_ref().map(raw_redis),
        },
        tiering: RawTiering {
            promote_after_hits: spec.tiering.promote_after_hits.unsigned_abs(),
            demote_after_idle: spec.tiering.demote_after_idle.0.clone(),
            maintenance_interval: spec.tiering.maintenance_interval.0.clone(),
        },
        consistency: RawConsistency {
            max_staleness: spec.consistency.max_staleness.0.clone(),
            on_uncertain: match spec.consistency.on_uncertain {
                cluster::OnUncertain::Bypass => OnUncertain::Bypass,
                cluster::OnUncertain::ServeStale => OnUncertain::ServeStale,
                cluster::OnUncertain::Fail => OnUncertain::Fail,
            },
            coherence: match spec.consistency.coherence {
                cluster::Coherence::Tracking => Coherence::Tracking,
                cluster::Coherence::Broadcast => Coherence::Broadcast,
                cluster::Coherence::Ttl => Coherence::Ttl,
            },
            broadcast_prefixes: spec.consistency.broadcast_prefixes.clone(),
            allow_unmarked: spec.consistency.allow_unmarked,
        },
        keyspaces: spec.keyspaces.iter().map(raw_keyspace).collect(),
        stores: spec.stores.iter().map(raw_store).collect(),
        warming: RawWarming {
            enabled: spec.warming.enabled,
            keys: spec.warming.keys.unsigned_abs(),
            rate_per_second: spec.warming.rate_per_second.unsigned_abs(),
            startup_share: spec.warming.startup_share.unsigned_abs(),
            startup_deadline: spec.warming.startup_deadline.0.clone(),
        },
        kubernetes: Some(RawKubernetes { members, ..RawKubernetes::default() }),
        locks: RawLocks {
            lease: spec.locks.lease.0.clone(),
            timeout: spec.locks.timeout.0.clone(),
            renew_at_percent: spec.locks.renew_at_percent.unsigned_abs(),
            deadlock_check: spec.locks.deadlock_check.0.clone(),
            limits: RawLockLimits {
                max_held: spec.locks.limits.max_held.unsigned_abs(),
                max_waiters: spec.locks.limits.max_waiters.unsigned_abs(),
            },
        },
        limits: raw_limits(&spec.limits),
        auth: spec.auth.as_ref().map(raw_auth).unwrap_or_default(),
        ..RawConfig::default()
    }
}

fn raw_auth(auth: &cluster::Auth) -> RawAuth {
    let user = |user: &cluster::AuthUser| RawUser {
        name: user.name.clone(),
        password_file: format!("{}/{}", names::AUTH_DIR, names::auth_file(Some(&user.name))),
        keys: user.keys.clone(),
        commands: user.commands.clone(),
    };
    let default = || format!("{}/{}", names::AUTH_DIR, names::auth_file(None));
    RawAuth {
        password_file: auth.secret_ref.as_ref().map(|_| default()).unwrap_or_default(),
        users: auth.users.iter().map(user).collect(),
    }
}

fn raw_limits(limits: &cluster::Limits) -> RawLimits {
    RawLimits {
        max_connections: limits.max_connections.unsigned_abs(),
        max_frame_bytes: limits.max_frame_bytes.0.clone(),
        max_value_bytes: limits.max_value_bytes.0.clone(),
        max_pipeline: limits.max_pipeline.unsigned_abs(),
        output_buffer_bytes: limits.output_buffer_bytes.0.clone(),
        slow_reader_timeout: limits.slow_reader_timeout.0.clone(),
        idle_timeout: limits.idle_timeout.as_ref().map(|time| time.0.clone()).unwrap_or_default(),
    }
}

fn raw_redis(redis: &cluster::Redis) -> RawRedis {
    let (username_file, password_file) = login_files(redis.auth_secret_ref.as_ref(), names::REDIS_AUTH_DIR);
    RawRedis {
        mode: match redis.mode {
            cluster::Mode::Standalone => RedisMode::Standalone,
            cluster::Mode::Cluster => RedisMode::Cluster,
            cluster::Mode::Sentinel => RedisMode::Sentinel,
        },
        endpoints: redis.endpoints.clone(),
        username: redis.username.clone().unwrap_or_default(),
        username_file,
        password_file,
        sentinel: redis.sentinel.as_ref().map(raw_sentinel),
        tls: redis.tls.as_ref().map(|tls| raw_tls(tls, names::REDIS_TLS_DIR)),
        connect_timeout: redis.connect_timeout.0.clone(),
        timeout: redis.timeout.0.clone(),
    }
}

fn raw_sentinel(sentinel: &cluster::Sentinel) -> RawSentinel {
    let (username_file, password_file) = login_files(sentinel.auth_secret_ref.as_ref(), names::SENTINEL_AUTH_DIR);
    RawSentinel {
        master_name: sentinel.master_name.clone(),
        username: sentinel.username.clone().unwrap_or_default(),
        username_file,
        password_file,
        tls: match sentinel.tls {
            cluster::SentinelTls::Same => SentinelTls::Same,
            cluster::SentinelTls::Off => SentinelTls::Off,
        },
    }
}

/// The files of user and password that the injector mounts into a directory.
fn login_files(secret: Option<&cluster::SecretKey>, directory: &str) -> (String, String) {
    let file = |key: Option<&String>| key.map(|key| format!("{directory}/{key}")).unwrap_or_default();
    (file(secret.and_then(|secret| secret.username_key.as_ref())), file(secret.map(|secret| &secret.key)))
}

fn raw_compression(compression: &cluster::Compression) -> RawCompression {
    RawCompression {
        algorithm: match compression.algorithm {
            cluster::Algorithm::Lz4 => Algorithm::Lz4,
            cluster::Algorithm::Zstd => Algorithm::Zstd,
            cluster::Algorithm::None => Algorithm::None,
        },
        level: compression.level,
        min_bytes: compression.min_bytes.0.clone(),
    }
}

fn raw_keyspace(keyspace: &cluster::Keyspace) -> RawKeyspace {
    RawKeyspace {
        name: keyspace.name.clone(),
        pattern: keyspace.pattern.clone(),
        cache: match keyspace.cache {
            Cache::Auto => CacheMode::Auto,
            Cache::Off => CacheMode::Off,
        },
        mode: match keyspace.mode {
            cluster::KeyspaceMode::Serve => KeyspaceMode::Serve,
            cluster::KeyspaceMode::Observe => KeyspaceMode::Observe,
        },
        ttl: text(keyspace.ttl.as_ref()),
        negative_ttl: text(keyspace.negative_ttl.as_ref()),
        strategy: match keyspace.strategy {
            cluster::Strategy::CacheAside => Strategy::CacheAside,
            cluster::Strategy::ReadThrough => Strategy::ReadThrough,
            cluster::Strategy::WriteThrough => Strategy::WriteThrough,
            cluster::Strategy::WriteBehind => Strategy::WriteBehind,
        },
        store: keyspace.store.clone().unwrap_or_default(),
        soft_timeout: text(keyspace.soft_timeout.as_ref()),
        hard_timeout: keyspace.hard_timeout.0.clone(),
        stale_if_error: text(keyspace.stale_if_error.as_ref()),
        refresh_at_percent: keyspace.refresh_at_percent.unsigned_abs(),
        jitter_percent: keyspace.jitter_percent.unsigned_abs(),
        write_behind: keyspace.write_behind.as_ref().map(raw_write_behind),
        negative_filter: keyspace
            .negative_filter
            .as_ref()
            .map(|filter| RawNegativeFilter { max_keys: filter.max_keys.unsigned_abs() }),
        tags: keyspace.tags.clone(),
        parents: keyspace.parents,
        compression: keyspace.compression.as_ref().map(raw_compression),
    }
}

fn raw_write_behind(behind: &cluster::WriteBehind) -> RawWriteBehind {
    RawWriteBehind {
        durability: match behind.durability {
            cluster::Durability::Memory => Durability::Memory,
            cluster::Durability::Pod => Durability::Pod,
            cluster::Durability::Replicated => Durability::Replicated,
        },
        batch_size: behind.batch_size.unsigned_abs(),
        flush_interval: behind.flush_interval.0.clone(),
        max_records: behind.max_records.unsigned_abs(),
        max_bytes: behind.max_bytes.0.clone(),
        max_wait: behind.max_wait.0.clone(),
        max_attempts: behind.max_attempts.unsigned_abs(),
        replicas: behind.replicas.unsigned_abs(),
        adopt_after: behind.adopt_after.0.clone(),
        ..RawWriteBehind::default()
    }
}

fn text(time: Option<&Period>) -> String {
    time.map(|time| time.0.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cluster, cluster_with};
    use serde_json::json;
    use std::time::Duration;

    fn text(map: &ConfigMap) -> &str {
        &map.data.as_ref().unwrap()["config.yaml"]
    }

    #[test]
    fn the_file_says_what_the_spec_says() {
        let cluster = cluster_with(&json!({
            "l3": {"redis": {"endpoints": ["redis.shop:6379"], "username": "app", "authSecretRef": {"name": "redis", "key": "pw"}, "tls": {"caConfigMapRef": {"name": "ca"}, "clientCertificateSecretRef": {"name": "c"}, "serverName": "r.example"}}},
            "l2": {"maxBytes": "128Mi", "policy": "Lru", "compression": {"algorithm": "Zstd", "minBytes": "256"}},
            "listen": {"tcpPort": 6380},
            "consistency": {"onUncertain": "Fail"},
            "auth": {"secretRef": {"name": "all"}, "users": [{"name": "reports", "secretRef": {"name": "r"}, "commands": ["+@read"]}]},
            "limits": {"maxConnections": 7, "idleTimeout": "5m"},
            "keyspaces": [
                {"name": "queues", "match": "queue:*", "cache": "Off"},
                {"name": "users", "match": "user:*", "mode": "Observe", "ttl": "5m", "negativeTtl": "1s",
                 "compression": {"algorithm": "None"}},
            ],
        }));
        let map = config_map(&cluster, 50).unwrap();
        let parsed = caddy_contract::parse(text(&map)).unwrap();
        assert_eq!(parsed.ignored, Vec::<String>::new());
        let config = parsed.config;
        assert_eq!((config.config_generation, config.cluster.domain.as_str()), (3, "shop.web"));
        assert_eq!(config.listen.tcp_port, Some(6380));
        assert_eq!(config.admin.address.to_string(), "0.0.0.0");
        assert_eq!(config.l2.max_bytes, Budget::Size(ByteSize::mebi(128)));
        assert_eq!(config.l2.policy, L2Policy::Lru);
        assert_eq!(config.consistency.on_uncertain, OnUncertain::Fail);
        assert_eq!(config.keyspaces[0].cache, CacheMode::Off);
        assert_eq!(config.keyspaces[0].compression.algorithm, Algorithm::Zstd);
        assert_eq!(config.keyspaces[0].compression.min_bytes, ByteSize::new(256));
        let users = &config.keyspaces[1];
        assert_eq!(users.compression.algorithm, Algorithm::None);
        assert_eq!(users.mode, KeyspaceMode::Observe);
        assert_eq!((users.ttl, users.negative_ttl), (Some(Duration::from_mins(5)), Some(Duration::from_secs(1))));
        assert_eq!(config.auth.password_file.unwrap().to_str(), Some("/etc/caddy/auth/default"));
        let user = &config.auth.users[0];
        assert_eq!(
            (user.password_file.to_str(), user.keys.as_slice()),
            (Some("/etc/caddy/auth/users/reports"), &["*".to_owned()][..])
        );
        assert_eq!((config.limits.max_connections, config.limits.idle_timeout.unwrap().as_secs()), (7, 300));
        let caddy_contract::L3::Redis(redis) = config.l3 else { panic!("{:?}", config.l3) };
        assert_eq!(redis.password_file.unwrap().to_str(), Some("/etc/caddy/redis-auth/pw"));
        let tls = redis.tls.unwrap();
        assert_eq!(
            (tls.ca_file.unwrap().to_str(), tls.server_name.as_deref()),
            (Some("/etc/caddy/redis-tls/ca.crt"), Some("r.example"))
        );
        let (certificate, key) = tls.client_certificate.unwrap();
        assert_eq!(
            (certificate.to_str(), key.to_str()),
            (Some("/etc/caddy/redis-tls/tls.crt"), Some("/etc/caddy/redis-tls/tls.key"))
        );
    }

    #[test]
    fn a_store_finds_its_secrets_where_they_are_mounted() {
        let tls = json!({"caConfigMapRef": {"name": "ca"}});
        let cluster = cluster_with(&json!({
            "l3": {"redis": {"endpoints": ["redis.shop:6379"]}},
            "stores": [
                {"name": "web", "http": {"url": "https://h/{key}", "tls": tls, "headers": [
                    {"name": "accept", "value": "text/plain"}, {"name": "authorization", "secretRef": {"name": "t"}}]}},
                {"name": "db", "postgres": {"url": "postgresql://u@h/d", "authSecretRef": {"name": "p"}, "load": "SELECT"},
                 "breaker": {"failures": 0}},
            ],
            "keyspaces": [{"name": "users", "match": "user:*", "ttl": "5m", "strategy": "ReadThrough", "store": "db",
                           "staleIfError": "1h", "softTimeout": "50ms", "refreshAtPercent": 80}],
        }));
        let config = caddy_contract::parse(text(&config_map(&cluster, 50).unwrap())).unwrap().config;
        let caddy_contract::StoreKind::Http(http) = &config.stores[0].kind else { panic!("{:?}", config.stores[0]) };
        assert_eq!(http.header_files[0].1.to_str(), Some("/etc/caddy/stores/web/header-1"));
        let ca = http.tls.as_ref().unwrap().ca_file.as_ref().unwrap();
        assert_eq!(ca.to_str(), Some("/etc/caddy/stores/web/ca.crt"));
        let caddy_contract::StoreKind::Postgres(db) = &config.stores[1].kind else { panic!("{:?}", config.stores[1]) };
        assert_eq!(db.password_file.as_ref().unwrap().to_str(), Some("/etc/caddy/stores/db/password"));
        assert_eq!(config.stores[1].breaker_failures, None);
        let users = config.keyspaces[0].loading.as_ref().unwrap();
        assert_eq!((users.store.as_str(), users.refresh_at_percent), ("db", Some(80)));
        assert_eq!(users.stale_if_error, Duration::from_hours(1));
    }

    #[test]
    fn a_redis_cluster_has_any_number_of_endpoints() {
        let endpoints = json!(["redis-0.redis.shop:6379", "redis-1.redis.shop:6379"]);
        let map = config_map(&cluster_with(&json!({"l3": {"redis": {"mode": "Cluster", "endpoints": endpoints}}})), 50)
            .unwrap();
        let config = caddy_contract::parse(text(&map)).unwrap().config;
        let caddy_contract::L3::Redis(redis) = config.l3 else { panic!("{:?}", config.l3) };
        assert_eq!((redis.mode, redis.endpoints.len()), (RedisMode::Cluster, 2));
    }

    #[test]
    fn members_are_told_their_number_in_steps() {
        assert_eq!([0, 1, 50, 51, 1000].map(|injected| members_hint(Some(injected))), [50, 50, 50, 100, 1000]);
        assert_eq!(members_hint(None), 1000);
        let map = config_map(&cluster(), 150).unwrap();
        let config = caddy_contract::parse(text(&map)).unwrap().config;
        assert_eq!((config.kubernetes.unwrap().members, config.cluster.uid.as_deref()), (150, Some("uid-1")));
    }

    #[test]
    fn it_is_owned_and_blocks_nothing() {
        let map = config_map(&cluster(), 50).unwrap();
        let owner = &map.metadata.owner_references.unwrap()[0];
        assert_eq!((owner.kind.as_str(), owner.uid.as_str(), owner.controller), ("CacheCluster", "uid-1", Some(true)));
        assert_eq!(owner.block_owner_deletion, None);
    }

    #[test]
    fn every_reason_against_a_spec_is_told_once() {
        let cluster = cluster_with(&json!({
            "l3": {"redis": {"endpoints": ["r:1", "r:2"]}},
            "l2": {"maxBytes": "0"},
            "listen": {"tcpPort": 9464},
            "consistency": {"maxStaleness": "1ms"},
        }));
        let InvalidSpec(reasons) = config_map(&cluster, 50).unwrap_err();
        assert_eq!(
            reasons,
            [
                "spec.l3.redis: endpoints must have exactly one entry in mode Standalone",
                "spec.listen: tcpPort 9464 is taken by the sidecar's health and metrics; choose another, e.g. 6379",
                "spec.consistency: maxStaleness must be 10ms to 24h",
                "spec.l2.maxBytes: 0 is too small; write at least 1Mi",
            ]
        );
    }

    #[test]
    fn a_memory_limit_that_kills_is_refused() {
        let with = |limit: &str, request: &str| {
            let resources = json!({"limits": {"memory": limit}, "requests": {"memory": request}});
            config_map(&cluster_with(&json!({"l3": {"embedded": {}}, "resources": resources})), 50)
        };
        assert!(with("112Mi", "64Mi").is_ok());
        let told = |result: Result<ConfigMap, InvalidSpec>| result.unwrap_err().to_string();
        assert!(told(with("111Mi", "64Mi")).contains("111Mi is less than the sidecar needs, l1 + l2 + 40Mi = 112Mi"));
        assert!(told(with("200Mi", "1Gi")).contains("1Gi is more than the limit of 200Mi"));
    }

    #[test]
    fn a_share_needs_a_limit_and_leaves_room() {
        let with = |share: &str, limit: Option<&str>| {
            let resources = limit.map(|limit| json!({"limits": {"memory": limit}}));
            let spec = json!({"l3": {"embedded": {}}, "l2": {"maxBytes": share}, "resources": resources});
            config_map(&cluster_with(&spec), 50).map_err(|error| error.to_string())
        };
        let map = with("50%", Some("256Mi")).unwrap();
        assert!(
            map.data.unwrap().values().any(|file| file.contains("maxBytes: 50%")),
            "the sidecar sees the limit itself"
        );
        assert!(with("50%", None).unwrap_err().contains("spec.resources.limits.memory, which is not set"));
        assert!(with("75%", Some("128Mi")).unwrap_err().contains("l1 + l2 + 40Mi = "));
        assert!(with("76%", Some("1Gi")).unwrap_err().contains("76%"));
    }
}
