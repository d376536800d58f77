//! Policies of L2 by what they are for: what each keeps of a load that it is made for, and what the adaptive one makes of
//! loads that no single one is made for. `benches/hit_ratio` has the whole picture.

#![cfg(not(feature = "shuttle"))]

use caddy_engine::{
    Cache, CacheConfig, KeyHash, L1Config, L2Config, Lookup, Moment, PolicyKind, SourceKind, Tier, TierHash,
    TieringConfig,
};

const ENTRIES: usize = 1_000;

/// The share of hits among the second half of the reads, in hundredths.
fn hits(policy: PolicyKind, keys: &[u64]) -> usize {
    let cache = Cache::<u64, ()>::new(CacheConfig {
        l1: L1Config { max_entries: 0, max_bytes: 0 },
        l2: L2Config { max_bytes: 8 << 20, max_entries: ENTRIES, shards: 1, policy },
        ..CacheConfig::default()
    });
    let source = cache.kernel().register(SourceKind::Local).expect("an empty table");
    let mut worker = cache.worker();
    // Not the process's own seed: every run reads the same.
    let hash = |key: u64| {
        TierHash::from_raw(
            (key + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29).wrapping_mul(0xD6E8_FEB8_6659_FD93),
        )
    };
    let mut hits = 0;
    for (place, &key) in keys.iter().enumerate() {
        if matches!(worker.lookup(hash(key), &key, Moment::ZERO), Lookup::Hit(_)) {
            hits += usize::from(place >= keys.len() / 2);
            continue;
        }
        let token = cache.kernel().begin_fill(source, KeyHash::from_raw(key), Moment::ZERO);
        cache.fill(&token, hash(key), key, (), Moment::NEVER, Moment::ZERO).expect("nothing is written");
    }
    hits * 200 / keys.len()
}

#[test]
fn adaptive_keeps_a_part_of_a_loop_that_is_too_long() {
    let keys: Vec<u64> = (0..200_000).map(|n| n % 2_000).collect();
    let (adaptive, lru) = (hits(PolicyKind::Adaptive, &keys), hits(PolicyKind::Lru, &keys));
    assert_eq!(lru, 0, "by the time a key comes again, LRU has let it go");
    assert!(adaptive >= 48, "{adaptive} % of 50 % that are possible");
}

#[test]
fn adaptive_changes_from_what_was_hot_to_a_loop() {
    // 900 keys that are read again and again, and then nothing but a loop that is a fifth too long.
    let hot = (0..100_000_u64).map(|n| n * n % 900);
    let keys: Vec<u64> = hot.chain((0..100_000).map(|n| 10_000 + n % 1_200)).collect();
    let adaptive = hits(PolicyKind::Adaptive, &keys);
    assert!(adaptive >= 75, "{adaptive} % of 83 % that are possible");
}

#[test]
fn adaptive_follows_recency() {
    // Every key is read four times within 700 keys, and then never again.
    let keys: Vec<u64> = (0..200_000_u64).map(|n| (n / 4).saturating_sub(n % 4 * 230)).collect();
    let (adaptive, lru) = (hits(PolicyKind::Adaptive, &keys), hits(PolicyKind::Lru, &keys));
    assert!(lru >= 74, "{lru} %");
    assert!(adaptive * 100 >= lru * 95, "{adaptive} % beside LRU's {lru} %");
}

#[test]
fn a_scan_does_not_wash_out_what_is_hot() {
    // 500 hot keys, each read every 1,000 reads; in between, keys that are read once.
    let keys: Vec<u64> = (0..200_000).map(|n| if n % 2 == 0 { n / 2 % 500 } else { 1_000 + n }).collect();
    for policy in [PolicyKind::Adaptive, PolicyKind::S3Fifo] {
        let hits = hits(policy, &keys);
        assert!(hits >= 48, "{policy:?}: {hits} % of 50 %");
    }
}

#[test]
fn an_eviction_does_not_look_through_all_that_l1_served() {
    const SERVED: u64 = 3_000;
    for policy in [PolicyKind::Adaptive, PolicyKind::S3Fifo, PolicyKind::Lru] {
        let cache = Cache::<u64, ()>::new(CacheConfig {
            l1: L1Config { max_entries: SERVED as usize, max_bytes: usize::MAX },
            l2: L2Config { max_bytes: 8 << 20, max_entries: SERVED as usize, shards: 1, policy },
            tiering: TieringConfig { promote_after_hits: 1, ..TieringConfig::default() },
            ..CacheConfig::default()
        });
        let source = cache.kernel().register(SourceKind::Local).expect("an empty table");
        let fill = |key: u64| {
            let hash = KeyHash::of(&key.to_le_bytes());
            let token = cache.kernel().begin_fill(source, hash, Moment::ZERO);
            cache.fill(&token, hash.tier(0), key, (), Moment::NEVER, Moment::ZERO).expect("nothing is written");
        };
        let frequency = |key: u64| {
            let why = cache.why(KeyHash::of(&key.to_le_bytes()).tier(0), &key, Moment::ZERO);
            why.map_or(0, |why| why.frequency)
        };
        let mut worker = cache.worker();
        (0..SERVED).for_each(fill);
        for key in 0..SERVED {
            let hash = KeyHash::of(&key.to_le_bytes()).tier(0);
            for tier in [Tier::L2, Tier::L1, Tier::L1, Tier::L1] {
                assert!(matches!(worker.lookup(hash, &key, Moment::ZERO), Lookup::Hit(hit) if hit.tier == tier));
            }
        }
        let before: Vec<u8> = (0..SERVED).map(frequency).collect();
        assert!(before.iter().all(|&frequency| frequency > 0), "{policy:?}: L1 credits what it serves");
        fill(SERVED);
        let touched = (0..SERVED).filter(|&key| frequency(key) != before[key as usize]).count();
        assert!((1..=1_100).contains(&touched), "{policy:?}: looked at {touched}");
    }
}
