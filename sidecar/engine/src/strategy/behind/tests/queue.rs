//! Random writes, batches, failures and refusals against a model that keeps every write of every key.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use proptest::prelude::*;

use super::super::{Batch, BehindConfig, Outcome, Queue, Record, Write};
use crate::clock::Moment;

type Key = u8;

#[derive(Clone, Debug)]
enum Step {
    Write(Key, Option<u16>),
    Wait(u64),
    Take {
        all: bool,
    },
    /// What becomes of the batch that is under way for the longest or shortest time.
    Land {
        first: bool,
        puts: u8,
        deletes: u8,
    },
    Replay,
    Discard(Key),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u8..6, prop::option::weighted(0.8, 0u16..)).prop_map(|(key, value)| Step::Write(key, value)),
        3 => (0u64..200).prop_map(Step::Wait),
        4 => any::<bool>().prop_map(|all| Step::Take { all }),
        4 => (any::<bool>(), 0u8..4, 0u8..4).prop_map(|(first, puts, deletes)| Step::Land { first, puts, deletes }),
        1 => Just(Step::Replay),
        1 => (0u8..6).prop_map(Step::Discard),
    ]
}

fn outcome(of: u8) -> Outcome {
    match of {
        0 | 1 => Outcome::Stored,
        2 => Outcome::Later,
        _ => Outcome::Refused("it is poison".into()),
    }
}

const CONFIG: BehindConfig = BehindConfig {
    batch_size: 3,
    flush_interval: Duration::from_millis(50),
    max_records: 8,
    max_bytes: 1 << 20,
    max_in_flight: 2,
    max_wait: Duration::from_secs(1),
    max_attempts: 2,
    first_retry: Duration::from_millis(10),
    last_retry: Duration::from_millis(100),
};

/// Every write there was, and what the store has seen of them.
#[derive(Default)]
struct Model {
    /// By key, all writes in their order.
    written: BTreeMap<Key, Vec<(u64, Write<u16>)>>,
    /// By key, the number of the last write that the store has.
    stored: BTreeMap<Key, u64>,
    /// Writes that were given up, by number.
    given_up: HashSet<u64>,
}

impl Model {
    fn newest(&self, key: Key) -> Option<&(u64, Write<u16>)> {
        self.written.get(&key)?.last()
    }

    /// What has to be with the store in the end, and is not there yet.
    fn owed(&self, key: Key) -> Option<&(u64, Write<u16>)> {
        let newest = self.newest(key)?;
        let has = self.stored.get(&key).copied().unwrap_or(0);
        (has < newest.0 && !self.given_up.contains(&newest.0)).then_some(newest)
    }
}

struct World {
    queue: Queue<Key, u16>,
    model: Model,
    now: Moment,
    flying: Vec<Batch<Key, u16>>,
    /// The numbers of the writes in each of them, and whether they are puts.
    numbers: Vec<Vec<(Key, u64, bool)>>,
}

impl World {
    fn step(&mut self, step: &Step) {
        match step {
            Step::Write(key, value) => {
                let write = value.map_or(Write::Delete, Write::Put);
                let weight = Record::weight(key, &write);
                if !self.queue.reserve(1, weight) {
                    assert!(self.queue.backlog().records > 0, "an empty queue has room");
                    return;
                }
                self.queue.release(1, weight);
                let (seq, _) = self.queue.offer(*key, write.clone(), self.now);
                self.model.written.entry(*key).or_default().push((seq, write));
            }
            Step::Wait(millis) => self.now = self.now + Duration::from_millis(*millis),
            Step::Take { all } => self.take(*all),
            Step::Land { first, puts, deletes } => {
                if !self.flying.is_empty() {
                    let at = if *first { 0 } else { self.flying.len() - 1 };
                    self.land(at, &outcome(*puts), &outcome(*deletes));
                }
            }
            Step::Replay => {
                let letters = self.queue.backlog().dead_letters;
                assert_eq!(self.queue.replay(None), letters);
                assert_eq!(self.queue.backlog().dead_letters, 0);
            }
            Step::Discard(key) => self.model.given_up.extend(self.queue.discard(Some(&[*key]))),
        }
        self.check();
    }

    fn take(&mut self, all: bool) {
        let due = self.queue.due_at(all);
        let Some(batch) = self.queue.take(self.now, all) else {
            assert!(due.is_none_or(|due| due > self.now), "what is due goes out: {due:?} at {:?}", self.now);
            return;
        };
        let keys: Vec<Key> = batch.puts.iter().map(|(key, _)| *key).chain(batch.deletes.iter().copied()).collect();
        assert!(!keys.is_empty() && keys.len() <= CONFIG.batch_size);
        let others: Vec<&Batch<Key, u16>> = self.flying.iter().collect();
        for key in &keys {
            let is_elsewhere =
                |other: &&Batch<Key, u16>| other.puts.iter().any(|(k, _)| k == key) || other.deletes.contains(key);
            assert!(!others.iter().any(is_elsewhere), "{key} is in two batches");
        }
        let puts = batch.puts.iter().map(|(key, value)| (*key, Write::Put(*value)));
        let writes = puts.chain(batch.deletes.iter().map(|key| (*key, Write::Delete)));
        let numbers = writes.map(|(key, write)| {
            let (seq, newest) = self.model.newest(key).expect("it was written");
            assert_eq!(&write, newest, "what goes out is the newest");
            (key, *seq, write != Write::Delete)
        });
        self.numbers.push(numbers.collect());
        self.flying.push(batch);
    }

    fn land(&mut self, at: usize, puts: &Outcome, deletes: &Outcome) {
        let batch = self.flying.remove(at);
        for (key, seq, is_put) in self.numbers.remove(at) {
            let outcome = if is_put { puts } else { deletes };
            if *outcome == Outcome::Stored {
                let has = self.model.stored.insert(key, seq).unwrap_or(0);
                assert!(has < seq, "the store got the write {seq} of {key} after {has}");
            }
        }
        let landed = self.queue.landed(&batch, puts, deletes, self.now);
        for seq in &landed.died {
            assert!(self.queue.dead_letters(usize::MAX).iter().any(|letter| letter.record.seq == *seq));
        }
    }

    fn check(&self) {
        let backlog = self.queue.backlog();
        assert!(backlog.records <= CONFIG.max_records);
        for key in 0..6 {
            let pending = self.queue.pending(&key);
            if let Some((seq, write)) = self.model.owed(key) {
                assert_eq!(pending, Some(write), "the newest write of {key} is pending");
                assert!(self.queue.carrier(&key, *seq).is_some_and(|carrier| carrier == *seq));
            }
        }
        if backlog.records == 0 {
            assert_eq!((backlog.bytes, backlog.dead_letters, backlog.oldest), (0, 0, None));
        }
    }

    /// The store is well again and takes everything.
    fn drain(&mut self) {
        for _ in 0..1_000 {
            self.queue.replay(None);
            while !self.flying.is_empty() {
                self.land(0, &Outcome::Stored, &Outcome::Stored);
            }
            self.now = self.now + Duration::from_millis(50);
            self.take(true);
            if self.flying.is_empty() && self.queue.backlog().records == 0 {
                return;
            }
        }
        panic!("it does not drain: {:?}", self.queue);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_store_gets_every_keys_newest_write_and_never_an_older_one_after_it(
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut world = World {
            queue: Queue::new(CONFIG),
            model: Model::default(),
            now: Moment::from_millis(1),
            flying: Vec::new(),
            numbers: Vec::new(),
        };
        for step in &steps {
            world.step(step);
        }
        world.drain();
        for key in 0..6 {
            prop_assert_eq!(world.model.owed(key), None, "key {} is not stored", key);
        }
        prop_assert_eq!((world.queue.backlog().records, world.queue.backlog().bytes), (0, 0));
    }
}

fn queue(config: BehindConfig) -> Queue<u32, u32> {
    Queue::new(config)
}

#[test]
fn one_poison_row_in_a_thousand_is_found_by_halving() {
    let mut queue = queue(BehindConfig { batch_size: 1_000, max_attempts: 1, ..BehindConfig::default() });
    let mut now = Moment::from_millis(1);
    for key in 0..1_000 {
        queue.offer(key, Write::Put(key), now);
    }
    let mut calls = 0;
    while !queue.is_drained() {
        now = now + Duration::from_mins(1);
        let Some(batch) = queue.take(now, true) else { panic!("nothing goes out: {queue:?}") };
        calls += 1;
        let poisoned = batch.puts.iter().any(|(key, _)| *key == 617);
        let done = if poisoned { Outcome::Refused("no".into()) } else { Outcome::Stored };
        queue.landed(&batch, &done, &Outcome::Stored, now);
    }
    let letters = queue.dead_letters(10);
    assert_eq!(letters.iter().map(|letter| letter.record.key).collect::<Vec<_>>(), [617]);
    assert!(calls <= 30, "{calls} calls");
}

#[test]
fn a_store_that_is_down_costs_no_dead_letters_and_one_call_at_a_time() {
    let mut queue = queue(BehindConfig { batch_size: 2, max_in_flight: 4, ..BehindConfig::default() });
    let mut now = Moment::from_millis(1);
    for key in 0..100 {
        queue.offer(key, Write::Put(key), now);
    }
    for round in 0..50 {
        now = now + Duration::from_mins(1);
        let batch = queue.take(now, false).expect("a probe");
        if round > 0 {
            assert_eq!(queue.take(now, true), None, "one is enough to see that it is down");
        }
        queue.landed(&batch, &Outcome::Later, &Outcome::Stored, now);
        assert_eq!(queue.take(now, true), None, "there is a pause");
    }
    assert_eq!((queue.backlog().records, queue.backlog().dead_letters), (100, 0));
}

#[test]
fn a_newer_write_takes_the_place_of_a_dead_letter() {
    let mut queue = queue(BehindConfig { max_attempts: 1, ..BehindConfig::default() });
    let now = Moment::from_millis(1);
    let (dead, _) = queue.offer(1, Write::Put(1), now);
    let batch = queue.take(now, true).expect("a batch");
    assert_eq!(queue.landed(&batch, &Outcome::Refused("no".into()), &Outcome::Stored, now).died, [dead]);
    assert_eq!(queue.pending(&1), Some(&Write::Put(1)));
    assert_eq!(queue.offer(1, Write::Put(2), now).1, Some(dead));
    assert_eq!((queue.backlog().dead_letters, queue.backlog().records), (0, 1));
    assert_eq!(queue.take(now, true).expect("a batch").puts, [(1, 2)]);
}

#[test]
fn a_key_that_is_written_all_the_time_is_stored_as_often_as_others() {
    let flush_interval = Duration::from_millis(100);
    let mut queue = queue(BehindConfig { flush_interval, ..BehindConfig::default() });
    for millis in 1..=100 {
        queue.offer(1, Write::Put(millis), Moment::from_millis(millis.into()));
    }
    assert_eq!(queue.backlog().oldest, Some(Moment::from_millis(1)));
    assert_eq!(queue.take(Moment::from_millis(100), false), None);
    let batch = queue.take(Moment::from_millis(101), false).expect("it is due");
    assert_eq!(batch.puts, [(1, 100)]);
    // It is as old as what it replaced, on its way and when that fails.
    assert_eq!(queue.backlog().oldest, Some(Moment::from_millis(1)));
    queue.landed(&batch, &Outcome::Later, &Outcome::Stored, Moment::from_millis(102));
    assert_eq!(queue.backlog().oldest, Some(Moment::from_millis(1)));
}

#[test]
fn a_dead_letter_that_is_replayed_is_offered_as_often_as_a_new_write() {
    let mut queue = queue(BehindConfig { max_attempts: 2, ..BehindConfig::default() });
    let mut now = Moment::from_millis(1);
    let (seq, _) = queue.offer(1, Write::Put(1), now);
    let refused = |queue: &mut Queue<u32, u32>, now: &mut Moment| {
        *now = *now + Duration::from_mins(1);
        let batch = queue.take(*now, true).expect("it is offered");
        queue.landed(&batch, &Outcome::Refused("no".into()), &Outcome::Stored, *now).died
    };
    for _ in 0..2 {
        assert_eq!(refused(&mut queue, &mut now), [] as [u64; 0]);
        assert_eq!(refused(&mut queue, &mut now), [seq]);
        assert_eq!(queue.replay(None), 1);
    }
}

#[test]
fn a_batch_is_long_enough_by_its_bytes_too_and_takes_what_is_longer_alone() {
    let mut queue = Queue::new(BehindConfig::default());
    let now = Moment::from_millis(1);
    let value = |mib: usize| bytes::Bytes::from(vec![0; mib << 20]);
    for (key, mib) in [(1_u32, 3), (2, 4), (3, 3), (4, 9), (5, 1)] {
        queue.offer(key, Write::Put(value(mib)), now);
    }
    let mut sent = Vec::new();
    while let Some(batch) = queue.take(now, true) {
        sent.push(batch.puts.iter().map(|(key, _)| *key).collect::<Vec<_>>());
        queue.landed(&batch, &Outcome::Stored, &Outcome::Stored, now);
    }
    assert_eq!(sent, [vec![1, 2], vec![3], vec![4], vec![5]]);
}
