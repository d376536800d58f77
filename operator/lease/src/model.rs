//! The promise, checked: several managers on one Lease, in virtual time, with everything going wrong that may.
//!
//! Each run is made by a string of bytes: rates of clocks, how long requests and replies take, which are lost, which are
//! refused, who crashes, who ends in order, when the Lease is deleted. Wall clocks jump at every step. When the bytes are
//! used up nothing goes wrong any more. Checked after each event: at most one manager holds, each by its own clock. Checked
//! at the end: one does.
//! proptest makes the bytes and shortens those that break something; each guard, dropped, must break something.

use crate::{
    api::Reply,
    machine::{Guard, Machine, Request, Step, Terms},
    moment::Moment,
    record::{Record, Snapshot},
};
use proptest::{
    prelude::*,
    strategy::ValueTree as _,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

const MANAGERS: usize = 2;
const DURATION: Duration = Duration::from_secs(15);
/// Greatest difference of a clock's rate from true time, in thousandths: what a margin of a fifth bears.
const DRIFT: u64 = 100;
/// After the last fault somebody must hold by then, in milliseconds: the longest wait of a candidate, twice.
const RECOVERY: u64 = 60_000;

/// What is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    Nothing,
    Guard(Guard),
    /// The server takes a write whatever version it names.
    Swap,
}

#[derive(Debug)]
enum Event {
    Wake(usize, u64),
    Arrives(usize, u64, Request, Way),
    Answered(usize, u64, Reply),
    /// The deadline of a request.
    Late(usize, u64),
    Crash(usize),
    End(usize),
    Start(usize),
    Delete,
    Declare,
}

/// What becomes of a request that arrives.
#[derive(Clone, Copy, Debug)]
enum Way {
    Answered(u64),
    /// Done, but the reply is lost.
    Silent,
    Busy,
    /// A 5xx before, or after, it was done.
    Fails,
    FailsAfter,
}

struct Manager {
    machine: Option<Machine>,
    /// Milliseconds of its clock per 1,000 of true time.
    rate: u64,
    /// Of its last request or incarnation: what belongs to an older one is dropped.
    number: u64,
    /// Nothing it sends arrives until then.
    cut_off_until: u64,
}

struct World<'a> {
    now: u64,
    events: BTreeMap<(u64, u64), Event>,
    scheduled: u64,
    lease: Option<Snapshot>,
    versions: u64,
    managers: Vec<Manager>,
    choices: std::slice::Iter<'a, u8>,
    broken: Broken,
    deleted: Option<u64>,
    /// Kept only when a run is repeated to be shown.
    log: Option<Vec<String>>,
    /// How often somebody began to hold.
    terms: u64,
}

impl<'a> World<'a> {
    fn new(choices: &'a [u8], broken: Broken) -> Self {
        let mut world = Self {
            now: 1,
            events: BTreeMap::new(),
            scheduled: 0,
            lease: None,
            versions: 0,
            managers: Vec::new(),
            choices: choices.iter(),
            broken,
            deleted: None,
            log: None,
            terms: 0,
        };
        world.declare();
        for index in 0..MANAGERS {
            // Slow, true or fast: what lies between is less likely to break anything.
            let rate = 1000 - DRIFT + world.choose(3, 1) * DRIFT;
            world.managers.push(Manager { machine: None, rate, number: 0, cut_off_until: 0 });
            world.schedule(0, Event::Start(index));
        }
        world
    }

    /// A number below `below`; `calm` when nothing is to go wrong any more.
    fn choose(&mut self, below: u64, calm: u64) -> u64 {
        match (self.choices.next(), self.choices.next()) {
            (Some(high), Some(low)) => (u64::from(*high) * 256 + u64::from(*low)) % below,
            _ => calm,
        }
    }

    fn is_calm(&self) -> bool {
        self.choices.len() < 2
    }

    fn schedule(&mut self, after: u64, event: Event) {
        self.scheduled += 1;
        self.events.insert((self.now + after, self.scheduled), event);
    }

    fn declare(&mut self) {
        self.versions += 1;
        let uid = format!("u{}", self.versions);
        self.lease = Some(Snapshot { uid, version: self.versions.to_string(), ..Snapshot::default() });
    }

    fn local(&self, index: usize) -> Moment {
        Moment::after_origin(Duration::from_micros(self.now * self.managers[index].rate))
    }

    fn holders(&self) -> Vec<usize> {
        let holds = |index: &usize| {
            let machine = self.managers[*index].machine.as_ref();
            machine.is_some_and(|machine| machine.holds(self.local(*index)))
        };
        (0..self.managers.len()).filter(holds).collect()
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            log.push(line());
        }
    }

    fn failed(&self, what: &str) -> String {
        format!("{what}\n{}", self.log.as_ref().map(|log| log.join("\n")).unwrap_or_default())
    }

    /// Runs to the end; what fails is repeated, with what happened.
    fn check(choices: &'a [u8], broken: Broken) -> Result<u64, String> {
        Self::new(choices, broken).run().map_err(|_| {
            let told = Self { log: Some(Vec::new()), ..Self::new(choices, broken) };
            told.run().err().unwrap_or_else(|| "the repetition went well: the run is not determined".to_owned())
        })
    }

    /// Runs to the end.
    fn run(mut self) -> Result<u64, String> {
        let mut calm_since = None;
        let mut held = Vec::new();
        while let Some(((at, _), event)) = self.events.pop_first() {
            self.now = at;
            self.note(|| format!("{at}: {event:?}"));
            self.happens(event);
            let holders = self.holders();
            if holders.len() > 1 {
                return Err(self.failed(&format!("at {at} {holders:?} hold")));
            }
            if holders != held && !holders.is_empty() {
                self.terms += 1;
                self.note(|| format!("{at}: {holders:?} holds"));
            }
            held = holders;
            if self.is_calm() {
                let since = *calm_since.get_or_insert(at);
                if at > since + RECOVERY {
                    return if held.is_empty() {
                        Err(self.failed(&format!("nobody holds {RECOVERY} ms after the last fault")))
                    } else {
                        Ok(self.terms)
                    };
                }
            }
        }
        Err("no event is left".to_owned())
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Start(index) => self.start(index),
            Event::Wake(index, number) => {
                if self.managers[index].number == number {
                    self.poll(index);
                }
            }
            Event::Arrives(index, number, request, way) => self.arrives(index, number, &request, way),
            Event::Answered(index, number, reply) => self.answered(index, number, reply),
            Event::Late(index, number) => self.answered(index, number, Reply::Unknown("late".into())),
            Event::Crash(index) => {
                self.managers[index].machine = None;
                self.managers[index].number += 1;
                self.restart(index);
            }
            Event::End(index) => {
                let now = self.local(index);
                if let Some(machine) = &mut self.managers[index].machine {
                    // What it had under way may be stored or not.
                    machine.answer(now, Reply::Unknown("ending".into()));
                    machine.release(now);
                    self.managers[index].number += 1;
                    self.poll(index);
                }
            }
            Event::Delete => self.delete(),
            Event::Declare => {
                if self.lease.is_none() {
                    self.declare();
                }
            }
        }
    }

    fn start(&mut self, index: usize) {
        if self.managers[index].machine.is_some() {
            return;
        }
        // Who starts just after a deletion cannot know of the old holder: the exception that is stated.
        let sound = 2 * DURATION.as_millis() as u64;
        if let Some(deleted) = self.deleted
            && self.now < deleted + sound
        {
            return self.schedule(deleted + sound - self.now, Event::Start(index));
        }
        let terms = Terms::new(format!("m{index}-{}", self.scheduled), DURATION, Duration::from_millis(500));
        let mut machine = Machine::new(terms, self.scheduled * 0x9e37_79b9 + 1);
        if let Broken::Guard(guard) = self.broken {
            machine.dropped = Some(guard);
        }
        self.managers[index].machine = Some(machine);
        self.poll(index);
    }

    fn restart(&mut self, index: usize) {
        let pause = self.choose(30_000, 1000);
        self.schedule(pause, Event::Start(index));
    }

    fn poll(&mut self, index: usize) {
        let now = self.local(index);
        let Some(machine) = &mut self.managers[index].machine else { return };
        // Somewhere within three centuries: what is written into the Lease for people decides nothing.
        let wall = Duration::from_secs(self.now.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 10_000_000_000);
        match machine.poll(now, SystemTime::UNIX_EPOCH + wall) {
            Step::Wait(until) => {
                let local = until.since(now).as_micros() as u64;
                let pause = local.div_ceil(self.managers[index].rate);
                let number = self.managers[index].number;
                self.schedule(pause, Event::Wake(index, number));
            }
            Step::Done => {
                self.managers[index].machine = None;
                self.managers[index].number += 1;
                self.restart(index);
            }
            Step::Send(request) => self.send(index, request),
        }
    }

    fn send(&mut self, index: usize, request: Request) {
        self.managers[index].number += 1;
        let (number, rate) = (self.managers[index].number, self.managers[index].rate);
        let deadline =
            self.managers[index].machine.as_ref().map_or(0, |machine| machine.terms().deadline().as_micros() as u64);
        self.schedule(deadline.div_ceil(rate), Event::Late(index, number));
        if self.now < self.managers[index].cut_off_until && !self.is_calm() {
            return;
        }
        let there = match self.choose(100, 0) {
            0..=86 => self.choose(300, 5),
            // Somewhere on its way for a long time, and stored all the same.
            87..=92 => self.choose(40_000, 5),
            _ => return self.something_else(index),
        };
        let way = match self.choose(100, 0) {
            0..=69 => Way::Answered(self.choose(300, 5)),
            70..=84 => Way::Answered(self.choose(4000, 5)),
            85..=88 => Way::Silent,
            89..=91 => Way::Busy,
            92..=95 => Way::Fails,
            _ => Way::FailsAfter,
        };
        self.schedule(there, Event::Arrives(index, number, request, way));
    }

    /// The request is lost, and something happens beside.
    fn something_else(&mut self, index: usize) {
        let after = self.choose(10_000, 0);
        match self.choose(7, 6) {
            0 => self.schedule(after, Event::Crash(index)),
            1 => self.schedule(after, Event::End(index)),
            2 => self.schedule(after, Event::End(1 - index)),
            3 => self.schedule(after, Event::Delete),
            4 => self.managers[index].cut_off_until = self.now + 4 * after,
            _ => {}
        }
    }

    fn delete(&mut self) {
        let Some(lease) = &self.lease else { return };
        let mut alive = self.managers.iter().filter_map(|manager| manager.machine.as_ref());
        if alive.all(|machine| machine.known() == Some(lease.uid.as_str())) {
            self.lease = None;
            self.deleted = Some(self.now);
            let pause = self.choose(20_000, 0);
            self.schedule(pause, Event::Declare);
        }
    }

    fn arrives(&mut self, index: usize, number: u64, request: &Request, way: Way) {
        let (back, reply) = match way {
            Way::Answered(back) => (back, self.served(request)),
            Way::Silent => return drop(self.served(request)),
            Way::Busy => (5, Reply::Busy((index == 0).then_some(Duration::from_secs(1)))),
            Way::Fails => (5, Reply::Unknown("500".into())),
            Way::FailsAfter => {
                self.served(request);
                (5, Reply::Unknown("504".into()))
            }
        };
        self.schedule(back, Event::Answered(index, number, reply));
    }

    fn served(&mut self, request: &Request) -> Reply {
        let Some(lease) = &mut self.lease else { return Reply::Missing };
        if let Request::Swap(version, record) = request {
            if lease.version != *version && self.broken != Broken::Swap {
                return Reply::Conflict;
            }
            self.versions += 1;
            lease.version = self.versions.to_string();
            lease.record = Record::clone(record);
        }
        Reply::Lease(lease.clone())
    }

    fn answered(&mut self, index: usize, number: u64, reply: Reply) {
        if self.managers[index].number != number {
            return;
        }
        let now = self.local(index);
        if let Some(machine) = &mut self.managers[index].machine {
            machine.answer(now, reply);
            self.managers[index].number += 1;
            self.poll(index);
        }
    }
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..1200)
}

proptest! {
    #![proptest_config(Config { cases: 3000, failure_persistence: None, ..Config::default() })]

    #[test]
    fn two_never_hold_and_somebody_holds_again(choices in bytes()) {
        World::check(&choices, Broken::Nothing).map_err(TestCaseError::fail)?;
    }
}

/// Runs until something breaks; the number of runs, and what broke.
fn breaks(broken: Broken) -> Option<(u32, String)> {
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    (0..20_000).find_map(|count| {
        let choices = bytes().new_tree(&mut runner).unwrap().current();
        World::check(&choices, broken).err().map(|error| (count, error))
    })
}

#[test]
fn each_guard_is_needed() {
    let guards = [
        Guard::Margin,
        Guard::CountFromSending,
        Guard::WaitForExpiry,
        Guard::WaitAgain,
        Guard::RememberDeleted,
        Guard::StopBeforeRelease,
    ];
    for broken in guards.map(Broken::Guard).into_iter().chain([Broken::Swap]) {
        let (runs, error) = breaks(broken).unwrap_or_else(|| panic!("nothing breaks without {broken:?}"));
        assert!(error.contains("] hold\n"), "{broken:?} broke something else: {error}");
        println!("without {broken:?}: two hold in run {runs}");
    }
}

#[test]
fn the_runs_are_worth_something() {
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let runs =
        (0..300).map(|_| World::new(&bytes().new_tree(&mut runner).unwrap().current(), Broken::Nothing).run().unwrap());
    let (most, all) = runs.fold((0, 0), |(most, all), terms| (most.max(terms), all + terms));
    assert!(most >= 6 && all >= 600, "the Lease changed hands {all} times in 300 runs, at most {most} times in one");
}
