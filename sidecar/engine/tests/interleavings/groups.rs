//! Generations: one entry that carries one, two sidecars that fill, read and invalidate it, one L3 with a tracking table.
//!
//! The app's database is a number that grows before each invalidation. The promise (C5): when an invalidation has been
//! acknowledged, the sidecar that did so serves nothing that was computed before it; another serves nothing such once its
//! stream is empty. Each slip, and the engine's guard dropped, must break it.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use caddy_engine::codec::envelope::GenerationValue;
use caddy_engine::generations::{Dependency, GenerationCell, Generations, Reading};
use caddy_engine::{
    Cache, CacheConfig, FillToken, Guard, Guards, KernelConfig, KeyHash, Lookup, Moment, SourceId, SourceKind, Weigh,
};
use shuttle::sync::Mutex;
use shuttle::thread;

use super::{BATCHES, try_orders};

const NOW: Moment = Moment::from_millis(1_000);
const GENERATION: &[u8] = b"g";
const ENTRY: &[u8] = b"e";

/// What an implementation could get wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slip {
    /// The generation is read when the entry is stored, not before it is computed.
    TokenLast,
    /// An invalidation is acknowledged before the own cell is unknown.
    AcknowledgeBeforeBump,
    /// Generations are read where nothing is announced.
    UntrackedRead,
    /// Whoever makes a generation installs what it wrote, instead of reading it.
    CreatorInstalls,
    /// A generation's value is always the same.
    NotUnique,
}

#[derive(Clone, Debug)]
struct Tagged(u64, Dependency);

impl Weigh for Tagged {
    fn heap_bytes(&self) -> usize {
        0
    }

    fn dependencies(&self) -> &[Dependency] {
        std::slice::from_ref(&self.1)
    }
}

type Slot<T> = Arc<Mutex<Option<T>>>;

/// What comes in on a tracked connection, in order.
enum Frame {
    Push(&'static [u8]),
    Generation(FillToken, Option<GenerationValue>, Slot<Reading>),
    Entry(Option<(u64, GenerationValue)>, Slot<Option<(u64, GenerationValue)>>),
}

#[derive(Default)]
struct L3 {
    generation: Option<GenerationValue>,
    entry: Option<(u64, GenerationValue)>,
    made: u8,
    /// Which sidecar is told of which key.
    trackers: Vec<(usize, &'static [u8])>,
    streams: [VecDeque<Frame>; 2],
    closed: bool,
}

impl L3 {
    fn touch(&mut self, key: &'static [u8]) {
        for (at, _) in self.trackers.extract_if(.., |(_, tracked)| *tracked == key) {
            self.streams[at].push_back(Frame::Push(key));
        }
    }
}

struct Sidecar {
    cache: Arc<Cache<u8, Tagged>>,
    source: SourceId,
    cell: Arc<GenerationCell>,
    /// What the database was at the newest invalidation that it acknowledged.
    floor: Mutex<u64>,
}

struct World {
    l3: Mutex<L3>,
    database: Mutex<u64>,
    acknowledged: Mutex<u64>,
    sidecars: [Sidecar; 2],
    violation: Mutex<Option<String>>,
    slip: Option<Slip>,
}

impl World {
    fn new(guards: Guards, slip: Option<Slip>) -> Arc<Self> {
        let sidecar = || {
            let kernel = KernelConfig { stripes: 64, guards, ..KernelConfig::default() };
            let cache = Cache::new(CacheConfig { kernel, ..CacheConfig::default() });
            let source = cache.kernel().register(SourceKind::Tracked).expect("an empty table");
            cache.kernel().proved(&cache.kernel().sending(source, NOW), NOW);
            let cell = Generations::new(1).cell(cache.kernel(), source, GENERATION);
            Sidecar { cache, source, cell, floor: Mutex::new(0) }
        };
        Arc::new(Self {
            l3: Mutex::default(),
            database: Mutex::new(0),
            acknowledged: Mutex::new(0),
            sidecars: [sidecar(), sidecar()],
            violation: Mutex::new(None),
            slip,
        })
    }

    /// Applies what a sidecar's connection brings.
    fn receive(&self, at: usize) {
        let sidecar = &self.sidecars[at];
        loop {
            let (frame, closed) = {
                let mut l3 = self.l3.lock().unwrap();
                (l3.streams[at].pop_front(), l3.closed)
            };
            match frame {
                Some(Frame::Push(key)) => sidecar.cache.kernel().bump(KeyHash::of(key)),
                Some(Frame::Generation(token, value, slot)) => {
                    let found = value.map(|value| (value, Bytes::new()));
                    let reading = sidecar.cell.report(sidecar.cache.kernel(), &token, found, Moment::NEVER);
                    *slot.lock().unwrap() = Some(reading);
                }
                Some(Frame::Entry(entry, slot)) => *slot.lock().unwrap() = Some(entry),
                None if closed => return,
                None => thread::yield_now(),
            }
        }
    }

    fn wait<T>(slot: &Slot<T>) -> T {
        loop {
            if let Some(found) = slot.lock().unwrap().take() {
                return found;
            }
            thread::yield_now();
        }
    }

    fn read_generation(&self, at: usize) -> Reading {
        let sidecar = &self.sidecars[at];
        let kernel = sidecar.cache.kernel();
        if let Some(reading) = sidecar.cell.in_force(kernel, NOW) {
            return reading;
        }
        let token = sidecar.cell.begin_read(kernel, NOW);
        let slot = Slot::default();
        let mut l3 = self.l3.lock().unwrap();
        if self.slip != Some(Slip::UntrackedRead) {
            l3.trackers.push((at, GENERATION));
        }
        let value = l3.generation;
        l3.streams[at].push_back(Frame::Generation(token, value, slot.clone()));
        drop(l3);
        Self::wait(&slot)
    }

    /// SET NX; whoever does so forgets what it knew.
    fn create_generation(&self, at: usize) {
        let sidecar = &self.sidecars[at];
        let kernel = sidecar.cache.kernel();
        let value = {
            let mut l3 = self.l3.lock().unwrap();
            if l3.generation.is_none() {
                l3.made += 1;
                l3.generation =
                    Some(GenerationValue([if self.slip == Some(Slip::NotUnique) { 1 } else { l3.made }; 16]));
                l3.touch(GENERATION);
            }
            l3.generation
        };
        kernel.bump(KeyHash::of(GENERATION));
        if self.slip == Some(Slip::CreatorInstalls) {
            let token = sidecar.cell.begin_read(kernel, NOW);
            sidecar.cell.report(kernel, &token, value.map(|value| (value, Bytes::new())), Moment::NEVER);
        }
    }

    /// `CACHE.SET … TAGS … TOKEN`, as loaders do it.
    fn fill(&self, at: usize) {
        let early = self.slip != Some(Slip::TokenLast);
        let seen = early.then(|| self.generation(at));
        let computed = *self.database.lock().unwrap();
        let Some(value) = seen.unwrap_or_else(|| self.generation(at)) else { return };
        let mut l3 = self.l3.lock().unwrap();
        l3.entry = Some((computed, value));
        l3.touch(ENTRY);
        drop(l3);
        self.sidecars[at].cache.kernel().bump(KeyHash::of(ENTRY));
    }

    fn generation(&self, at: usize) -> Option<GenerationValue> {
        if self.read_generation(at).value.is_none() {
            self.create_generation(at);
        }
        self.read_generation(at).value
    }

    fn read(&self, at: usize) {
        let sidecar = &self.sidecars[at];
        let kernel = sidecar.cache.kernel();
        let floor = *sidecar.floor.lock().unwrap();
        let hash = KeyHash::of(ENTRY);
        let mut worker = sidecar.cache.worker();
        if let Lookup::Hit(hit) = worker.lookup(hash.tier(0), &0, NOW) {
            return self.served(at, hit.entry.value().0, floor);
        }
        let token = kernel.begin_fill(sidecar.source, hash, NOW);
        let slot = Slot::default();
        let mut l3 = self.l3.lock().unwrap();
        l3.trackers.push((at, ENTRY));
        let entry = l3.entry;
        l3.streams[at].push_back(Frame::Entry(entry, slot.clone()));
        drop(l3);
        let Some((value, generation)) = Self::wait(&slot) else { return };
        let reading = self.read_generation(at);
        if reading.value == Some(generation)
            && let Some(dependency) = reading.dependency(&sidecar.cell)
        {
            // Refused if the entry was written meanwhile; that it is answered here is right all the same.
            let _ = sidecar.cache.fill(&token, hash.tier(0), 0, Tagged(value, dependency), Moment::NEVER, NOW);
            self.served(at, value, floor);
        }
    }

    /// For some time.
    fn wait_for_a_copy(&self, at: usize) {
        for _ in 0..40 {
            if self.sidecars[at].cache.peek(KeyHash::of(ENTRY).tier(0), &0).is_some() {
                return;
            }
            thread::yield_now();
        }
    }

    fn served(&self, at: usize, value: u64, floor: u64) {
        if value < floor {
            let text = format!("sidecar {at} serves {value} behind the acknowledged invalidation of {floor}");
            self.violation.lock().unwrap().get_or_insert(text);
        }
    }

    fn invalidate(&self, at: usize) {
        let sidecar = &self.sidecars[at];
        let now = {
            let mut database = self.database.lock().unwrap();
            *database += 1;
            *database
        };
        self.delete_generation();
        let acknowledge = || {
            let raise = |floor: &Mutex<u64>| {
                let mut floor = floor.lock().unwrap();
                *floor = now.max(*floor);
            };
            raise(&sidecar.floor);
            raise(&self.acknowledged);
        };
        if self.slip == Some(Slip::AcknowledgeBeforeBump) {
            acknowledge();
            return;
        }
        sidecar.cache.kernel().bump(KeyHash::of(GENERATION));
        acknowledge();
    }

    /// DEL by a sidecar; or its end by itself.
    fn delete_generation(&self) {
        let mut l3 = self.l3.lock().unwrap();
        if l3.generation.take().is_some() {
            l3.touch(GENERATION);
        }
    }
}

fn run(guards: Guards, slip: Option<Slip>) -> Option<String> {
    let world = World::new(guards, slip);
    let spawn = |body: fn(&World, usize), at: usize| {
        let world = world.clone();
        thread::spawn(move || body(&world, at))
    };
    let streams = [spawn(World::receive, 0), spawn(World::receive, 1)];
    // What dies has to be there before: invalidations come behind reads that have found something.
    let reader: fn(&World, usize) = |world, at| (0..6).for_each(|_| world.read(at));
    let filler: fn(&World, usize) = |world, at| {
        world.fill(at);
        (0..3).for_each(|_| world.read(at));
    };
    let invalidator: fn(&World, usize) = |world, at| {
        world.wait_for_a_copy(at);
        world.invalidate(at);
        (0..3).for_each(|_| world.read(at));
    };
    let actors = [
        spawn(filler, 0),
        spawn(reader, 0),
        spawn(reader, 1),
        spawn(invalidator, 1),
        spawn(
            |world, at| {
                world.wait_for_a_copy(at);
                world.delete_generation();
                world.fill(at);
            },
            0,
        ),
    ];
    for actor in actors {
        actor.join().expect("no thread of the world panics");
    }
    world.l3.lock().unwrap().closed = true;
    for stream in streams {
        stream.join().expect("no thread of the world panics");
    }
    // Every announcement has been applied.
    let floor = *world.acknowledged.lock().unwrap();
    for (at, sidecar) in world.sidecars.iter().enumerate() {
        let hash = KeyHash::of(ENTRY).tier(0);
        if let Lookup::Hit(hit) = sidecar.cache.worker().lookup(hash, &0, NOW) {
            world.served(at, hit.entry.value().0, floor);
        }
    }
    world.violation.lock().unwrap().take()
}

fn breaks(guards: Guards, slip: Option<Slip>) {
    let violation = try_orders(20 * BATCHES, move || run(guards, slip));
    assert!(violation.is_some(), "no order of steps breaks the promise: {slip:?} is not tested");
}

#[test]
fn acknowledged_invalidations_hold_in_every_order_tried() {
    let violation = try_orders(BATCHES, || run(Guards::default(), None));
    assert!(violation.is_none(), "{}", violation.unwrap_or_default());
}

#[test]
fn without_a_look_at_generations_invalidated_copies_are_served() {
    breaks(Guards::without(Guard::GenerationCheck), None);
}

#[test]
fn when_a_generation_is_read_behind_the_computation_an_invalidation_is_lost() {
    breaks(Guards::default(), Some(Slip::TokenLast));
}

#[test]
fn when_an_invalidation_is_acknowledged_too_early_copies_outlive_it() {
    breaks(Guards::default(), Some(Slip::AcknowledgeBeforeBump));
}

#[test]
fn when_generations_are_read_untracked_invalidations_by_others_are_missed() {
    breaks(Guards::default(), Some(Slip::UntrackedRead));
}

#[test]
fn when_a_creator_installs_what_it_wrote_invalidations_by_others_are_missed() {
    breaks(Guards::default(), Some(Slip::CreatorInstalls));
}

#[test]
fn when_generations_repeat_dead_entries_come_back() {
    breaks(Guards::default(), Some(Slip::NotUnique));
}
