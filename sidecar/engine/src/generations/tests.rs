use std::time::Duration;

use super::*;
use crate::cache::{Cache, CacheConfig};
use crate::kernel::{FlushCause, KernelConfig, SourceKind};
use crate::weigh::Weigh;
use crate::worker::{Doubt, Lookup};

const NOW: Moment = Moment::from_nanos(5_000_000_000);
const ONE: GenerationValue = GenerationValue([1; 16]);
const TWO: GenerationValue = GenerationValue([2; 16]);

#[derive(Debug, Clone)]
struct Tagged(u32, Vec<Dependency>);

impl Weigh for Tagged {
    fn heap_bytes(&self) -> usize {
        0
    }

    fn dependencies(&self) -> &[Dependency] {
        &self.1
    }
}

struct Fixture {
    cache: Arc<Cache<u32, Tagged>>,
    source: SourceId,
    generations: Generations,
}

fn fixture() -> Fixture {
    let cache = Cache::new(CacheConfig::default());
    let source = cache.kernel().register(SourceKind::Tracked).unwrap();
    let fixture = Fixture { cache, source, generations: Generations::new(1000) };
    fixture.prove();
    fixture
}

impl Fixture {
    fn prove(&self) {
        let kernel = self.cache.kernel();
        kernel.proved(&kernel.sending(self.source, NOW), NOW);
    }

    fn cell(&self, name: &str) -> Arc<GenerationCell> {
        self.generations.cell(self.cache.kernel(), self.source, name.as_bytes())
    }

    fn read(&self, cell: &GenerationCell, value: Option<GenerationValue>) -> Reading {
        let kernel = self.cache.kernel();
        let token = cell.begin_read(kernel, NOW);
        cell.report(kernel, &token, value.map(|value| (value, Bytes::new())), Moment::NEVER)
    }

    fn fill(&self, key: u32, value: u32, dependencies: Vec<Dependency>) {
        let kernel = self.cache.kernel();
        let hash = KeyHash::of(&key.to_le_bytes());
        let token = kernel.begin_fill(self.source, hash, NOW);
        self.cache.fill(&token, hash.tier(0), key, Tagged(value, dependencies), Moment::NEVER, NOW).unwrap();
    }

    fn get(&self, key: u32) -> Result<u32, &'static str> {
        let mut worker = self.cache.worker();
        match worker.lookup(KeyHash::of(&key.to_le_bytes()).tier(0), &key, NOW) {
            Lookup::Hit(hit) => Ok(hit.entry.value().0),
            Lookup::Uncertain(copy) if copy.doubt == Doubt::Flushed => Err("flushed"),
            Lookup::Uncertain(_) => Err("lapsed"),
            Lookup::Miss(_) => Err("miss"),
        }
    }
}

#[test]
fn an_entry_lives_while_all_its_generations_are_in_force() {
    let f = fixture();
    let (a, b) = (f.cell("a"), f.cell("b"));
    let of = |cell: &Arc<GenerationCell>, value| f.read(cell, Some(value)).dependency(cell).unwrap();
    f.fill(1, 10, vec![of(&a, ONE), of(&b, ONE)]);
    f.fill(2, 20, vec![of(&b, ONE)]);
    assert_eq!((f.get(1), f.get(2)), (Ok(10), Ok(20)));
    // Its key was pushed, or renewed here: unknown.
    f.cache.kernel().bump(KeyHash::of(b"a"));
    assert_eq!((f.get(1), f.get(2)), (Err("miss"), Ok(20)));
    assert_eq!(a.in_force(f.cache.kernel(), NOW), None);
    // Only its time to live had changed.
    f.read(&a, Some(ONE));
    assert_eq!(f.get(1), Ok(10));
    f.cache.kernel().bump(KeyHash::of(b"a"));
    f.read(&a, Some(TWO));
    assert_eq!(f.get(1), Err("miss"));
    assert_eq!(a.in_force(f.cache.kernel(), NOW).unwrap().value, Some(TWO));
    // Should the old value ever come back, nothing of before does.
    f.read(&a, Some(ONE));
    assert_eq!(f.get(1), Err("miss"));
}

#[test]
fn absent_means_invalid() {
    let f = fixture();
    let a = f.cell("a");
    f.fill(1, 10, vec![f.read(&a, Some(ONE)).dependency(&a).unwrap()]);
    let absent = f.read(&a, None);
    assert_eq!(f.get(1), Err("miss"));
    assert!(absent.dependency(&a).is_none());
    assert_eq!(a.in_force(f.cache.kernel(), NOW), Some(absent));
    f.read(&a, Some(ONE));
    assert_eq!(f.get(1), Ok(10), "and the very same value means valid again");
}

#[test]
fn what_was_read_before_a_renewal_is_not_in_force() {
    let f = fixture();
    let a = f.cell("a");
    let kernel = f.cache.kernel();
    let token = a.begin_read(kernel, NOW);
    kernel.bump(KeyHash::of(b"a"));
    let reading = a.report(kernel, &token, Some((ONE, Bytes::new())), Moment::NEVER);
    assert_eq!((reading.value, a.in_force(kernel, NOW)), (Some(ONE), None));
    f.fill(1, 10, vec![reading.dependency(&a).unwrap()]);
    assert_eq!(f.get(1), Err("miss"));
}

#[test]
fn a_generation_needs_its_own_proof_and_dies_with_its_own_connection() {
    let f = fixture();
    let kernel = f.cache.kernel();
    let other = kernel.register(SourceKind::Tracked).unwrap();
    kernel.proved(&kernel.sending(other, NOW), NOW);
    let a = f.generations.cell(kernel, other, b"a");
    f.fill(1, 10, vec![f.read(&a, Some(ONE)).dependency(&a).unwrap()]);
    assert_eq!(f.get(1), Ok(10));
    kernel.lapse(other);
    assert_eq!(f.get(1), Err("flushed"));
    kernel.bump(KeyHash::of(b"a"));
    assert_eq!(f.get(1), Err("miss"), "renewed: no stale answer either");
}

#[test]
fn without_announcements_nothing_is_known_of_a_generation() {
    let f = fixture();
    let kernel = f.cache.kernel();
    let timed = kernel.register(SourceKind::Timed).unwrap();
    let a = f.generations.cell(kernel, timed, b"a");
    assert_eq!(f.read(&a, Some(ONE)).value, Some(ONE));
    assert_eq!(a.in_force(kernel, NOW), None);
    kernel.flush(timed, FlushCause::Uncertain);
}

#[test]
fn what_nothing_depends_on_makes_room() {
    let f = fixture();
    let generations = Generations::new(SHARDS);
    let kernel = f.cache.kernel();
    for n in 0..1000_u32 {
        assert!(generations.cell(kernel, f.source, &n.to_le_bytes()).is_shared());
    }
    assert!(generations.len() <= SHARDS);
    let cells = (0..1000_u32).map(|n| generations.cell(kernel, f.source, &n.to_le_bytes()));
    let kept: Vec<_> = cells.filter(|cell| cell.is_shared()).collect();
    assert_eq!(kept.len(), SHARDS);
    assert!(generations.used(f.source, kept[0].name()).is_some());
    assert!(generations.used(f.source, b"another").is_none());
}

#[test]
fn numbers_that_are_used_up_are_never_given_again() {
    let f = fixture();
    let a = f.cell("a");
    let first = f.read(&a, Some(ONE)).dependency(&a).unwrap();
    f.fill(1, 10, vec![first]);
    let mut value = [0; 16];
    for n in 2..70_000_u32 {
        value[..4].copy_from_slice(&n.to_le_bytes());
        let reading = f.read(&a, Some(GenerationValue(value)));
        assert!(f.get(1).is_err(), "at {n}: {reading:?}");
    }
    let again = f.cell("a");
    assert!(!Arc::ptr_eq(&a, &again));
    f.fill(2, 20, vec![f.read(&again, Some(TWO)).dependency(&again).unwrap()]);
    assert_eq!(f.get(2), Ok(20));
}

#[test]
fn one_extends_for_all() {
    let f = fixture();
    let a = f.cell("a");
    let kernel = f.cache.kernel();
    let token = a.begin_read(kernel, NOW);
    a.report(kernel, &token, Some((ONE, Bytes::new())), NOW + Duration::from_secs(10));
    assert!(!a.needs_extension(Duration::from_secs(9), NOW));
    assert!(a.needs_extension(Duration::from_secs(11), NOW));
    assert!(!a.needs_extension(Duration::from_secs(11), NOW));
}

#[test]
fn the_config_of_the_kernel_bounds_nothing_here() {
    // Cells of stripes that are shared invalidate one another; they never mix their values up.
    let config =
        CacheConfig { kernel: KernelConfig { stripes: 1, ..KernelConfig::default() }, ..CacheConfig::default() };
    let cache: Arc<Cache<u32, Tagged>> = Cache::new(config);
    let source = cache.kernel().register(SourceKind::Local).unwrap();
    let f = Fixture { cache, source, generations: Generations::new(10) };
    let (a, b) = (f.cell("a"), f.cell("b"));
    f.read(&a, Some(ONE));
    f.cache.kernel().bump(KeyHash::of(b"b"));
    assert_eq!(a.in_force(f.cache.kernel(), NOW), None);
    f.read(&b, Some(TWO));
    assert_eq!(b.in_force(f.cache.kernel(), NOW).unwrap().value, Some(TWO));
}
