//! The tiers against a reference model, in virtual time: whatever is filled, bumped, flushed, removed, evicted and
//! expired in whatever order, a hit is what the model says may be served, and the budgets hold.

#![cfg(not(feature = "shuttle"))]

use std::sync::Arc;
use std::time::Duration;

use caddy_engine::{
    Cache, CacheConfig, Clock, Doubt, FillRefused, FillToken, FlushCause, KernelConfig, KeyHash, L1Config, L2Config,
    Lookup, ManualClock, Miss, Moment, PolicyKind, SourceId, SourceKind, Tier, TieringConfig, Worker,
};
use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};

const KEYS: u64 = 12;
const WORKERS: usize = 2;
const BOUND: u64 = 1_000;
const L1_BYTES: usize = 900;
const L1_ENTRIES: usize = 3;
const L2_BYTES: usize = 12_000;
const L2_ENTRIES: usize = 10;

#[derive(Clone, Debug)]
enum Step {
    /// Take a token, to be used by a later `Fill`.
    Begin {
        key: u64,
    },
    /// Use the oldest token.
    Fill {
        size: usize,
        ttl: Option<u64>,
    },
    Lookup {
        worker: usize,
        key: u64,
    },
    Bump {
        key: u64,
    },
    Flush {
        cause: FlushCause,
    },
    Reconnect,
    Prove,
    Advance {
        millis: u64,
    },
    Remove {
        key: u64,
    },
    Clear,
    Maintain {
        steps: u32,
    },
}

/// The copy of one key as the model knows it. Whether it has been evicted it does not know.
#[derive(Clone, Debug)]
struct Copy {
    value: u64,
    deadline: Option<u64>,
    bumps: u64,
    flushes: u64,
}

#[derive(Clone, Debug)]
struct Token {
    key: u64,
    bumps: u64,
    flushes: u64,
}

#[derive(Clone, Debug)]
struct Model {
    policy: PolicyKind,
    now: u64,
    proven: Option<u64>,
    flushes: u64,
    wiped: u64,
    bumps: Vec<u64>,
    copies: Vec<Option<Copy>>,
    tokens: Vec<Token>,
    /// Every fill writes another value.
    fills: u64,
}

/// What a lookup may say about a key besides "absent", which eviction can always cause.
#[derive(Debug, PartialEq, Eq)]
enum Expected {
    Value(u64),
    Lapsed,
    Flushed,
    Invalidated,
    Expired,
    Nothing,
}

impl Model {
    fn expected(&self, key: u64) -> Expected {
        let Some(copy) = &self.copies[key as usize] else { return Expected::Nothing };
        if copy.bumps != self.bumps[key as usize] {
            return Expected::Invalidated;
        }
        if copy.deadline.is_some_and(|deadline| deadline <= self.now) {
            return Expected::Expired;
        }
        if copy.flushes < self.wiped {
            return Expected::Invalidated;
        }
        if copy.flushes != self.flushes {
            return Expected::Flushed;
        }
        match self.proven {
            Some(proven) if self.now - proven <= BOUND => Expected::Value(copy.value),
            _ => Expected::Lapsed,
        }
    }
}

impl ReferenceStateMachine for Model {
    type State = Self;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Self> {
        prop_oneof![Just(PolicyKind::Adaptive), Just(PolicyKind::S3Fifo), Just(PolicyKind::Lru)]
            .prop_map(|policy| Self {
                policy,
                now: 0,
                proven: None,
                flushes: 0,
                wiped: 0,
                bumps: vec![0; KEYS as usize],
                copies: vec![None; KEYS as usize],
                tokens: Vec::new(),
                fills: 0,
            })
            .boxed()
    }

    fn transitions(_: &Self) -> BoxedStrategy<Step> {
        let key = 0..KEYS;
        let ttl = proptest::option::of(prop_oneof![(0..10_u64).prop_map(|n| n * 100), 3_000..10_000_000_u64]);
        prop_oneof![
            6 => key.clone().prop_map(|key| Step::Begin { key }),
            6 => (prop_oneof![2 => 0..30_usize, 1 => 0..1_500_usize], ttl).prop_map(|(size, ttl)| Step::Fill { size, ttl }),
            12 => (0..WORKERS, key.clone()).prop_map(|(worker, key)| Step::Lookup { worker, key }),
            2 => key.clone().prop_map(|key| Step::Bump { key }),
            1 => prop_oneof![Just(FlushCause::Uncertain), Just(FlushCause::Overwritten)]
                .prop_map(|cause| Step::Flush { cause }),
            1 => Just(Step::Reconnect),
            4 => Just(Step::Prove),
            2 => prop_oneof![(1..10_u64).prop_map(|n| n * 100), 1..5_000_u64, 100_000..1_000_000_u64]
                .prop_map(|millis| Step::Advance { millis }),
            1 => key.prop_map(|key| Step::Remove { key }),
            1 => (1..40_u32).prop_map(|steps| Step::Maintain { steps }),
            1 => prop_oneof![9 => Just(Step::Prove), 1 => Just(Step::Clear)],
        ]
        .boxed()
    }

    fn preconditions(state: &Self, step: &Step) -> bool {
        !matches!(step, Step::Fill { .. }) || !state.tokens.is_empty()
    }

    fn apply(mut state: Self, step: &Step) -> Self {
        match *step {
            Step::Begin { key } => {
                let token = Token { key, bumps: state.bumps[key as usize], flushes: state.flushes };
                state.tokens.push(token);
            }
            Step::Fill { size, ttl } => {
                let token = state.tokens.remove(0);
                state.fills += 1;
                let current = token.bumps == state.bumps[token.key as usize] && token.flushes == state.flushes;
                let fits = size < 5_000;
                if current && fits && ttl != Some(0) {
                    state.copies[token.key as usize] = Some(Copy {
                        value: state.fills,
                        deadline: ttl.map(|ttl| state.now + ttl),
                        bumps: token.bumps,
                        flushes: token.flushes,
                    });
                }
            }
            Step::Bump { key } => state.bumps[key as usize] += 1,
            Step::Flush { cause } => {
                state.flushes += 1;
                if cause == FlushCause::Overwritten {
                    state.wiped = state.flushes;
                }
            }
            Step::Reconnect => {
                // The end of one incarnation and the beginning of the next.
                state.flushes += 2;
                state.proven = None;
            }
            Step::Prove => state.proven = Some(state.now),
            Step::Advance { millis } => state.now += millis,
            Step::Remove { key } => state.copies[key as usize] = None,
            Step::Clear => state.copies.fill(None),
            Step::Lookup { .. } | Step::Maintain { .. } => {}
        }
        state
    }
}

struct Tiers {
    clock: ManualClock,
    cache: Arc<Cache<u64, Vec<u8>>>,
    workers: Vec<Worker<u64, Vec<u8>>>,
    source: SourceId,
    incarnation: caddy_engine::Incarnation,
    tokens: Vec<(u64, FillToken)>,
}

/// The value says which fill it came from, whatever its length.
fn value(fill: u64, size: usize) -> Vec<u8> {
    let mut bytes = fill.to_le_bytes().to_vec();
    bytes.resize(size.max(8), 0);
    bytes.shrink_to_fit();
    bytes
}

fn hash(key: u64) -> caddy_engine::TierHash {
    KeyHash::from_raw(key).tier(0)
}

impl Tiers {
    fn lookup(&mut self, worker: usize, key: u64, model: &Model) {
        let now = self.clock.now();
        let expected = model.expected(key);
        match self.workers[worker].lookup(hash(key), &key, now) {
            Lookup::Hit(hit) => {
                let mut fill = [0; 8];
                fill.copy_from_slice(&hit.entry.value()[..8]);
                assert_eq!(expected, Expected::Value(u64::from_le_bytes(fill)));
                let (deadline, tier) = (hit.deadline, hit.tier);
                assert!(deadline > now, "served at or past its deadline");
                let why = self.workers[worker].why(hash(key), &key, now);
                let why = why.expect("what is served is in L2, also when L1 served it");
                assert!(why.in_l1 || tier == Tier::L2);
            }
            Lookup::Uncertain(uncertain) => {
                let doubt = match uncertain.doubt {
                    Doubt::Lapsed => Expected::Lapsed,
                    Doubt::Flushed => Expected::Flushed,
                };
                assert_eq!(expected, doubt);
            }
            Lookup::Miss(Miss::Absent) => {}
            Lookup::Miss(Miss::Invalidated) => assert_eq!(expected, Expected::Invalidated),
            Lookup::Miss(Miss::Expired) => assert_eq!(expected, Expected::Expired),
        }
    }
}

impl StateMachineTest for Tiers {
    type SystemUnderTest = Self;
    type Reference = Model;

    fn init_test(model: &Model) -> Self {
        let cache = Cache::new(CacheConfig {
            kernel: KernelConfig { max_staleness: Duration::from_millis(BOUND), ..KernelConfig::default() },
            l1: L1Config { max_entries: L1_ENTRIES, max_bytes: L1_BYTES },
            l2: L2Config { max_bytes: L2_BYTES, max_entries: L2_ENTRIES, shards: 1, policy: model.policy },
            tiering: TieringConfig { promote_after_hits: 2, demote_after_idle: Duration::from_secs(5) },
        });
        let source = cache.kernel().register(SourceKind::Tracked).expect("an empty table");
        let incarnation = cache.kernel().connected(source);
        let workers = (0..WORKERS).map(|_| cache.worker()).collect();
        Self { clock: ManualClock::default(), cache, workers, source, incarnation, tokens: Vec::new() }
    }

    fn apply(mut tiers: Self, model: &Model, step: Step) -> Self {
        let now = tiers.clock.now();
        let kernel = tiers.cache.kernel();
        match step {
            Step::Begin { key } => {
                tiers.tokens.push((key, kernel.begin_fill(tiers.source, KeyHash::from_raw(key), now)));
            }
            Step::Fill { size, ttl } => {
                let (key, token) = tiers.tokens.remove(0);
                let deadline = ttl.map_or(Moment::NEVER, |ttl| now + Duration::from_millis(ttl));
                let filled = tiers.cache.fill(&token, hash(key), key, value(model.fills, size), deadline, now);
                let latest = model.copies[key as usize].as_ref().is_some_and(|copy| copy.value == model.fills);
                match filled {
                    Ok(_) => assert!(latest, "installed against the model"),
                    Err(FillRefused::Expired) => assert_eq!(ttl, Some(0)),
                    Err(FillRefused::TooLarge) => assert!(size > 5_000, "refused {size} bytes"),
                    Err(FillRefused::Invalidated | FillRefused::Flushed) => assert!(!latest),
                }
            }
            Step::Lookup { worker, key } => tiers.lookup(worker, key, model),
            Step::Bump { key } => kernel.bump(KeyHash::from_raw(key)),
            Step::Flush { cause } => kernel.flush(tiers.source, cause),
            Step::Reconnect => {
                kernel.lost(tiers.source, tiers.incarnation);
                tiers.incarnation = kernel.connected(tiers.source);
            }
            Step::Prove => kernel.proved(&kernel.sending(tiers.source, now), now),
            Step::Advance { millis } => tiers.clock.advance(Duration::from_millis(millis)),
            Step::Remove { key } => {
                tiers.cache.remove(hash(key), &key);
                for worker in 0..WORKERS {
                    tiers.lookup(worker, key, model);
                }
            }
            Step::Clear => tiers.cache.clear(),
            Step::Maintain { steps } => {
                tiers.cache.maintain(now, steps as usize);
                tiers.workers.iter_mut().for_each(|worker| worker.maintain(now, steps));
            }
        }
        tiers
    }

    fn check_invariants(tiers: &Self, _: &Model) {
        let stats = tiers.cache.stats();
        assert!(stats.l2_bytes <= L2_BYTES && stats.l2_entries <= L2_ENTRIES, "L2 is above its budget: {stats:?}");
        for worker in &tiers.workers {
            let (entries, bytes) = worker.l1_sizes();
            assert!(entries <= L1_ENTRIES && bytes <= L1_BYTES, "L1 is above its budget");
        }
    }
}

prop_state_machine! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_hit_is_always_what_the_model_allows(sequential 1..200 => Tiers);
}
