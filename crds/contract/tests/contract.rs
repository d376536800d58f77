//! What the contract promises: released files stay readable, and every fault is named at once.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use caddy_contract::{
    Algorithm, Budget, ByteSize, CacheMode, Coherence, Config, Endpoint, KeyspaceMode, L2Policy, L3, OnUncertain,
    RawConfig, RedisMode, StoreKind, Strategy, parse,
};
use std::{fs, path::Path, time::Duration};

fn golden(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)).unwrap()
}

fn faults(text: &str) -> Vec<String> {
    parse(text).unwrap_err().iter().map(ToString::to_string).collect()
}

#[test]
fn every_released_file_is_read_with_nothing_ignored() {
    let files = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")).unwrap();
    let mut count = 0;
    for file in files {
        let path = file.unwrap().path();
        let parsed =
            parse(&fs::read_to_string(&path).unwrap()).unwrap_or_else(|faults| panic!("{}: {faults}", path.display()));
        assert_eq!(parsed.ignored, Vec::<String>::new(), "{}", path.display());
        count += 1;
    }
    assert!(count >= 1);
}

#[test]
fn the_first_contract_still_means_what_it_meant() {
    let config = parse(&golden("v0.1.yaml")).unwrap().config;
    assert_eq!(config.config_generation, 7);
    assert_eq!(config.cluster.domain, "shop-ns.shop");
    assert_eq!(config.listen.tcp_port, Some(6380));
    assert_eq!(config.admin.address.to_string(), "0.0.0.0");
    assert_eq!((config.workers, config.l1.max_entries), (2, 2000));
    assert_eq!((config.l1.max_bytes, config.l2.max_bytes), (ByteSize::mebi(16), Budget::Size(ByteSize::mebi(128))));
    assert_eq!(config.l2.policy, L2Policy::S3Fifo);
    let L3::Redis(redis) = &config.l3 else { panic!("{:?}", config.l3) };
    assert_eq!(redis.endpoints, [Endpoint::Tcp { host: "redis.shop".into(), port: 6379 }]);
    assert_eq!(redis.username.as_deref(), Some("cache"));
    assert_eq!(redis.password_file.as_deref(), Some(Path::new("/etc/caddy/redis-auth/password")));
    assert_eq!((redis.connect_timeout, redis.timeout), (Duration::from_millis(1500), Duration::from_secs(3)));
    let sentinel = redis.sentinel.as_ref().unwrap();
    assert_eq!((redis.mode, sentinel.master_name.as_str()), (RedisMode::Sentinel, "shop"));
    assert_eq!(sentinel.password_file.as_deref(), Some(Path::new("/etc/caddy/sentinel-auth/password")));
    assert_eq!(redis.tls.as_ref().unwrap().server_name.as_deref(), Some("redis.example.com"));
    assert_eq!(config.consistency.coherence, Coherence::Broadcast);
    assert_eq!(config.consistency.broadcast_prefixes, ["shop:"]);
    assert_eq!(config.tiering.demote_after_idle, Duration::from_mins(10));
    assert_eq!(config.consistency.max_staleness, Duration::from_millis(500));
    assert_eq!(config.consistency.on_uncertain, OnUncertain::ServeStale);
    assert!(config.consistency.allow_unmarked);
    assert_eq!(config.keyspaces[0].cache, CacheMode::Off);
    let users = &config.keyspaces[1];
    assert!(users.tags.len() == 2 && users.parents);
    assert_eq!((users.pattern.as_str(), users.mode), ("user:*", KeyspaceMode::Observe));
    assert_eq!((users.compression.algorithm, config.l2.compression.algorithm), (Algorithm::None, Algorithm::Zstd));
    assert_eq!(config.keyspaces[0].compression, config.l2.compression);
    assert_eq!((config.l2.compression.level, config.l2.compression.min_bytes), (3, ByteSize::new(2048)));
    assert_eq!(users.ttl, Some(Duration::from_mins(5)));
    assert_eq!(users.negative_ttl, Some(Duration::from_secs(10)));
    let products = config.keyspaces[2].loading.as_ref().unwrap();
    assert_eq!((products.store.as_str(), products.strategy), ("products", Strategy::ReadThrough));
    assert_eq!(
        (products.ttl, products.negative_ttl, products.stale_if_error),
        (Some(Duration::from_mins(10)), Duration::from_secs(2), Duration::from_hours(1))
    );
    assert_eq!(
        (products.soft_timeout, products.hard_timeout, products.refresh_at_percent, products.jitter_percent),
        (Some(Duration::from_millis(50)), Duration::from_secs(3), Some(80), 5)
    );
    let StoreKind::Http(http) = &config.stores[0].kind else { panic!("{:?}", config.stores[0]) };
    assert_eq!((http.url.as_str(), http.retries), ("https://products.shop/cache/{key}", 1));
    assert_eq!(http.header_files[0].0, "authorization");
    assert_eq!((config.stores[0].max_concurrent, config.stores[0].breaker_failures), (32, Some(5)));
    let StoreKind::Postgres(postgres) = &config.stores[1].kind else { panic!("{:?}", config.stores[1]) };
    assert_eq!((postgres.max_connections, postgres.timeout), (2, Duration::from_millis(800)));
    assert!(config.stores[1].is_writable());
    let filter = config.keyspaces[3].negative_filter.as_ref().unwrap();
    assert_eq!((filter.prefix.as_str(), filter.max_keys), ("session:", 5000));
    let warming = config.warming.unwrap();
    assert_eq!((warming.keys, warming.rate_per_second, warming.startup_share), (500, 50, 80));
    assert_eq!(warming.startup_deadline, Duration::from_secs(20));
    assert_eq!(config.kubernetes.unwrap().identity_dir, Path::new("/etc/caddy/identity"));
    assert_eq!(config.limits.max_value_bytes, ByteSize::mebi(2));
    assert_eq!(config.limits.slow_reader_timeout, Duration::from_secs(10));
}

#[test]
fn the_golden_file_sets_every_field_of_today() {
    // A new field must be added to the golden file of the next release, else nothing would notice its removal.
    let golden: serde_yaml::Value = serde_yaml::from_str(&golden("v0.1.yaml")).unwrap();
    let raw: RawConfig = serde_yaml::from_value(golden.clone()).unwrap();
    assert_eq!(serde_yaml::to_value(raw).unwrap(), golden);
}

#[test]
fn an_empty_file_is_the_default() {
    for text in ["", "{}", "# nothing yet\n"] {
        assert_eq!(parse(text).unwrap().config, Config::default(), "{text:?}");
    }
    assert_eq!(Config::default().l3, L3::Embedded);
    assert_eq!(Config::default().cluster.domain, "default.local");
    assert_eq!(Config::default().admin.address.to_string(), "127.0.0.1");
}

#[test]
fn what_is_written_is_read_back() {
    let text = serde_yaml::to_string(&RawConfig::default()).unwrap();
    assert_eq!(parse(&text).unwrap().config, Config::default());
}

#[test]
fn all_faults_come_at_once_with_their_paths() {
    let text = r#"
        l2: {maxBytes: 64Mx}
        workers: many
        lisen: {tcpPort: 1}
        l1: {maxEntries: -3, maxByte: 1Mi}
        l3: {embedded: {}, redis: {endpoints: ["redis"], timeout: 1}}
        consistency: {onUncertain: Perhaps, maxStaleness: 1ms}
        keyspaces: [{name: a, match: "a:*"}, {name: a, match: "", cache: Sometimes, ttl: 1ms, negativeTtl: x,
                     compression: {algorithm: Gzip, level: 20, minBytes: 1x}}]
        limits: {maxPipeline: 0}
    "#;
    let faults = faults(text);
    let expected = [
        "workers: invalid type",
        "l1.maxEntries: ",
        "l3.redis.timeout: invalid type",
        "consistency.onUncertain: unknown variant `Perhaps`, expected one of `Bypass`, `ServeStale`, `Fail`",
        "keyspaces[1].cache: unknown variant `Sometimes`",
        "lisen: unknown field",
        "l1.maxByte: unknown field",
        r#"l2.maxBytes: "64Mx" is neither a size nor a share of the memory limit; write e.g. 64Mi, or 1% to 75%"#,
        "l3: has both embedded and redis",
        "consistency.maxStaleness: 1ms is out of range; write 10ms to 24h",
        r#"keyspaces[1].name: "a" is taken"#,
        "keyspaces[1].match: must be a Redis glob",
        "keyspaces[1].ttl: 1ms is out of range; write 10ms to 24h",
        r#"keyspaces[1].negativeTtl: "x" is not a duration"#,
        "keyspaces[1].compression.algorithm: unknown variant `Gzip`",
        "keyspaces[1].compression.level: 20 is out of range; write -7 to 19",
        r#"keyspaces[1].compression.minBytes: "1x" is not a size"#,
        "limits.maxPipeline: 0 is out of range",
    ];
    for start in expected {
        assert!(faults.iter().any(|fault| fault.starts_with(start)), "no fault {start:?} in\n{}", faults.join("\n"));
    }
    assert_eq!(faults.len(), expected.len(), "{}", faults.join("\n"));
}

#[test]
fn unknown_fields_are_harmless_only_in_the_operators_file() {
    let fields = "l2: {slabs: 4}\nrollout: {policy: OnDelete}\nl3: {redis: {endpoints: [\"r:1\"], ring: 1}}\n";
    assert_eq!(faults(fields).len(), 3);
    let parsed = parse(&format!("configGeneration: 3\n{fields}")).unwrap();
    assert_eq!(parsed.ignored, ["l2.slabs", "rollout", "l3.redis.ring"]);
    assert_eq!(parsed.config.config_generation, 3);
    assert!(!parse("configGeneration: 3\nl2: {maxBytes: x}").unwrap_err().is_empty());
}

#[test]
fn what_belongs_together_stands_together() {
    let redis = |fields: &str| faults(&format!("l3: {{redis: {{endpoints: [\"r:1\"], {fields}}}}}")).join("\n");
    assert!(redis("mode: Sentinel").contains("l3.redis.sentinel: belongs to mode Sentinel"));
    assert!(redis("sentinel: {masterName: m}").contains("l3.redis.sentinel: belongs to mode Sentinel"));
    assert!(redis("mode: Sentinel, sentinel: {}").contains("l3.redis.sentinel.masterName"));
    assert!(redis("tls: {certFile: c}").contains("together with keyFile"));
    assert!(redis("username: a, usernameFile: b").contains("stands beside username"));
    assert!(faults("l3: {redis: {endpoints: [\"unix:/r\"], tls: {}}}")[0].contains("no TLS on a Unix socket"));
    let consistency = |fields: &str| faults(&format!("consistency: {{{fields}}}")).join("\n");
    assert!(consistency("broadcastPrefixes: [a]").contains("with coherence Broadcast only"));
    assert!(consistency("coherence: Broadcast, broadcastPrefixes: [a, ab]").contains("broadcastPrefixes[1]"));
}

#[test]
fn a_keyspace_that_loads_has_what_it_needs() {
    let told = |store: &str, keyspace: &str| {
        let text = format!(
            "l3: {{redis: {{endpoints: [\"r:1\"]}}}}\nstores: [{{name: db, {store}}}]\nkeyspaces: [{{name: k, match: k, {keyspace}}}]"
        );
        parse(&text).err().map_or_else(String::new, |faults| faults.to_string())
    };
    let http = "http: {url: \"http://h/{key}\"}";
    let read = "store: db, strategy: ReadThrough";
    assert_eq!(told(http, read), "");
    assert!(told("", read).contains("stores[0]: must have exactly one of http, postgres"));
    assert!(told("http: {url: \"http://h/\"}", read).contains("contain {key} once"));
    assert!(told("postgres: {url: \"http://h\"}", read).contains("postgresql://user@host"));
    assert!(told(http, "strategy: ReadThrough").contains("keyspaces[0].store: strategy: ReadThrough needs it"));
    assert!(
        told(http, "store: db")
            .contains("keyspaces[0].store: does nothing with strategy: CacheAside; write e.g. strategy: ReadThrough")
    );
    assert!(told(http, "staleIfError: 1h").contains("keyspaces[0].staleIfError: does nothing"));
    assert!(told(http, &format!("{read}, staleIfError: 1h")).contains("keyspaces[0].ttl: is needed"));
    assert!(told(http, &format!("{read}, softTimeout: 10ms")).contains("needs staleIfError"));
    assert!(
        told(http, &format!("{read}, ttl: 1m, staleIfError: 1h, softTimeout: 9s")).contains("less than hardTimeout")
    );
    assert!(told(http, &format!("{read}, ttl: 1m, refreshAtPercent: 99")).contains("write 10 to 95"));
    assert!(told(http, &format!("{read}, mode: Observe")).contains("needs cache: Auto and mode: Serve"));
    assert!(faults("stores: [{name: db, http: {url: \"http://h/{key}\"}}]\nkeyspaces: [{name: k, match: k, store: db, strategy: ReadThrough}]")[0].contains("needs l3.redis"));
}

#[test]
fn l3_is_exactly_one_kind() {
    assert!(faults("l3: {}")[0].starts_with("l3: must have exactly one"));
    assert!(faults("l3: {redis: {}}")[0].starts_with("l3.redis.endpoints: has 0"));
    assert!(faults("l3: {redis: {endpoints: [\"a:1\", \"b:2\"]}}")[0].starts_with("l3.redis.endpoints: has 2"));
}

#[test]
fn endpoints_are_hosts_addresses_or_sockets() {
    for text in ["redis.shop:6379", "10.0.0.1:1", "[::1]:6379", "unix:/run/redis.sock"] {
        assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
    }
    for text in
        ["redis", "redis:", ":6379", "redis:0", "redis:70000", "::1:6379", "redis://a:1", "unix:relative", "a b:1", ""]
    {
        assert!(text.parse::<Endpoint>().is_err(), "{text:?}");
    }
}

#[test]
fn what_is_not_a_mapping_is_one_fault() {
    assert!(faults("- a")[0].contains("must be a YAML mapping"));
    assert!(faults("l1: {")[0].starts_with("not YAML"));
    assert_eq!(faults("l1: 5"), ["l1: invalid type: integer `5`, expected struct RawL1"]);
}
