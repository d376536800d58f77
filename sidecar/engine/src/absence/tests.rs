//! The filter against a Redis in miniature: whatever happens in whatever order, it never says "absent" of a key that is
//! there, within the bound, and never to somebody who knows better. And each rule that it rests on is needed: without it
//! some run breaks that promise.

use std::{collections::VecDeque, time::Duration};

use super::*;
use crate::kernel::{FlushCause, Incarnation, KernelConfig, Sent, SourceKind};

const KEYS: usize = 8;
const BOUND: Duration = Duration::from_millis(100);

/// What may happen.
#[derive(Debug, Clone)]
enum Event {
    ForeignSet(usize),
    ForeignDelete(usize),
    /// Written through this cache, and answered.
    OwnSet(usize),
    OwnDelete(usize),
    /// Read from L3 over another connection, and answered.
    Read(usize),
    /// By a script: nobody here knows the key.
    Scripted(usize),
    FlushAll,
    /// A round of the server's loop is over: it sends what it has to announce.
    Round,
    /// The connection brings one thing.
    Receive,
    Probe,
    Begin,
    /// One step of the scan is asked for.
    Scan,
    Lose,
    Pass(u64),
    Ask(usize),
}

/// What happens next in a run.
fn event(random: &mut Random) -> Event {
    let key = random.below(KEYS as u64) as usize;
    match random.below(424) {
        0..12 => Event::ForeignSet(key),
        12..28 => Event::ForeignDelete(key),
        28..34 => Event::OwnSet(key),
        34..40 => Event::OwnDelete(key),
        40..52 => Event::Read(key),
        52..54 => Event::Scripted(key),
        54 => Event::FlushAll,
        55 => Event::Lose,
        56..126 => Event::Round,
        126..246 => Event::Receive,
        246..292 => Event::Probe,
        292..297 => Event::Begin,
        297..347 => Event::Scan,
        347..359 => Event::Pass(1 + random.below(12)),
        359..361 => Event::Pass(30 + random.below(90)),
        _ => Event::Ask(key),
    }
}

/// xorshift64* (Vigna 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % bound
    }
}

/// A rule that is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Without {
    Nothing,
    /// What is announced while the scan runs is not added.
    Replay,
    /// What is announced afterwards is not added.
    Announcements,
    /// Nobody notes what apps have seen.
    Touches,
    /// Nor what scripts may have done.
    TouchesOfAny,
    /// A probe counts from its own sending, not from the one before.
    Lag,
    /// The end of a connection is not noticed.
    Loss,
    /// An answer needs no proof.
    Proof,
}

/// What comes on the connection, in order.
#[derive(Debug, Clone, Copy)]
enum Incoming {
    Written(usize),
    Flushed,
    Proved(Sent),
    Scanned(usize, bool),
}

struct World {
    without: Without,
    kernel: Kernel,
    source: SourceId,
    incarnation: Incarnation,
    filter: AbsenceFilter,
    touches: Touches,
    now: Moment,
    /// Since when each key is there.
    there: [Option<Moment>; KEYS],
    /// Whether somebody behind this cache was shown that it is.
    known: [bool; KEYS],
    /// Replies of this round of the server's, and what was written in it: it is announced behind them.
    replies: Vec<Incoming>,
    to_announce: Vec<usize>,
    stream: VecDeque<Incoming>,
    /// The last probe that was answered, and when that was.
    previous: Option<(Sent, Moment)>,
    /// The next step of the scan; `None`: none is under way.
    scan: Option<usize>,
    is_scanning: bool,
    answers: usize,
}

impl World {
    fn new(without: Without) -> Self {
        let kernel =
            Kernel::new(&KernelConfig { max_staleness: BOUND, stripes: 64, max_sources: 2, ..KernelConfig::default() });
        let source = kernel.register(SourceKind::Tracked).unwrap();
        let incarnation = kernel.connected(source);
        Self {
            without,
            source,
            incarnation,
            kernel,
            filter: AbsenceFilter::new(1000),
            touches: Touches::default(),
            now: Moment::from_nanos(1_000_000_000),
            there: [None; KEYS],
            known: [false; KEYS],
            replies: Vec::new(),
            to_announce: Vec::new(),
            stream: VecDeque::new(),
            previous: None,
            scan: None,
            is_scanning: false,
            answers: 0,
        }
    }

    fn hash(key: usize) -> KeyHash {
        KeyHash::of(&key.to_le_bytes())
    }

    fn set(&mut self, key: usize) {
        self.there[key].get_or_insert(self.now);
        self.to_announce.push(key);
    }

    fn delete(&mut self, key: usize) {
        if self.there[key].take().is_some() {
            self.to_announce.push(key);
        }
        self.known[key] = false;
    }

    /// A reply about the key goes to an app, behind the round in which it was executed.
    fn answered(&mut self, key: usize) {
        self.round();
        self.known[key] = self.there[key].is_some();
        if self.without != Without::Touches {
            self.touches.touch(Self::hash(key), self.now);
        }
    }

    fn round(&mut self) {
        self.stream.extend(self.replies.drain(..));
        self.stream.extend(self.to_announce.drain(..).map(Incoming::Written));
    }

    fn happens(&mut self, event: &Event) -> Result<(), String> {
        // No two things happen in the same moment.
        self.now = self.now + Duration::from_micros(1);
        match *event {
            Event::ForeignSet(key) => self.set(key),
            Event::ForeignDelete(key) => self.delete(key),
            Event::OwnSet(key) => {
                self.set(key);
                self.answered(key);
            }
            Event::OwnDelete(key) => {
                self.delete(key);
                self.answered(key);
            }
            Event::Read(key) => self.answered(key),
            Event::Scripted(key) => {
                self.set(key);
                self.round();
                self.known[key] = true;
                if !matches!(self.without, Without::Touches | Without::TouchesOfAny) {
                    self.touches.touch_all(self.now);
                }
            }
            Event::FlushAll => {
                self.there = [None; KEYS];
                self.known = [false; KEYS];
                self.replies.push(Incoming::Flushed);
            }
            Event::Round => self.round(),
            Event::Probe => self.replies.push(Incoming::Proved(self.kernel.sending(self.source, self.now))),
            // One after the other: what a scan was answered belongs to what was begun with it.
            Event::Begin if self.is_scanning => {}
            Event::Begin => {
                self.is_scanning = true;
                self.filter.begin(&self.kernel, self.source);
                self.scan = Some(0);
            }
            Event::Scan => {
                if let Some(key) = self.scan.take_if(|key| *key < KEYS) {
                    self.replies.push(Incoming::Scanned(key, self.there[key].is_some()));
                }
            }
            Event::Lose => {
                self.stream.clear();
                self.replies.clear();
                self.to_announce.clear();
                (self.previous, self.scan, self.is_scanning) = (None, None, false);
                if self.without != Without::Loss {
                    self.kernel.lost(self.source, self.incarnation);
                    self.incarnation = self.kernel.connected(self.source);
                }
            }
            Event::Receive => self.receive(),
            Event::Pass(millis) => self.now = self.now + Duration::from_millis(millis),
            Event::Ask(key) => return self.ask(key),
        }
        Ok(())
    }

    fn receive(&mut self) {
        match self.stream.pop_front() {
            Some(Incoming::Written(key)) => {
                let forgets = match self.without {
                    Without::Replay => self.filter.building.lock().is_some(),
                    Without::Announcements => self.filter.building.lock().is_none(),
                    _ => false,
                };
                if !forgets {
                    self.filter.written(Self::hash(key));
                }
            }
            Some(Incoming::Flushed) => self.kernel.flush(self.source, FlushCause::Overwritten),
            Some(Incoming::Proved(sent)) => {
                let before = self.previous.replace((sent, self.now));
                // It was answered before this one was sent, so the round that it fell into is over.
                let before = before.filter(|(_, answered)| *answered < sent.at()).map(|(before, _)| before);
                let proves = if self.without == Without::Lag { Some(sent) } else { before };
                if let Some(proved) = proves {
                    self.kernel.proved(&proved, self.now);
                }
            }
            Some(Incoming::Scanned(key, is_there)) => {
                if is_there {
                    self.filter.found(Self::hash(key));
                }
                if key + 1 == KEYS {
                    self.is_scanning = false;
                    self.filter.finish(&self.kernel);
                } else {
                    self.scan = Some(key + 1);
                }
            }
            None => {}
        }
    }

    fn ask(&mut self, key: usize) -> Result<(), String> {
        let hash = Self::hash(key);
        let says_absent =
            if self.without == Without::Proof {
                self.filter.active.read().as_ref().is_some_and(|built| {
                    self.kernel.flushes(built.source) == built.flushes && !built.keys.may_have(hash)
                })
            } else {
                self.filter.is_absent(hash, &self.kernel, &self.touches, self.now)
            };
        if !says_absent {
            return Ok(());
        }
        self.answers += 1;
        match self.there[key] {
            Some(since) if self.now.since(since) > BOUND => Err(format!("key {key} is there since {since:?}")),
            Some(_) if self.known[key] => Err(format!("an app knows that key {key} is there")),
            _ => Ok(()),
        }
    }
}

/// Plays many random histories; how many questions were answered, or what went wrong in which.
fn play(without: Without, seeds: u64) -> Result<usize, String> {
    let mut answers = 0;
    for seed in 1..=seeds {
        let (mut world, mut random) = (World::new(without), Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        for _ in 0..800 {
            let event = event(&mut random);
            world.happens(&event).map_err(|wrong| format!("seed {seed}: {wrong}"))?;
        }
        answers += world.answers;
    }
    Ok(answers)
}

#[test]
fn it_never_says_absent_of_what_is_there() {
    let answers = play(Without::Nothing, 2000).unwrap();
    assert!(answers > 1000, "it answered {answers} questions: too few to mean anything");
}

/// A story in which the rule makes the difference.
fn story(without: Without) -> Vec<Event> {
    use Event::{Ask, Begin, ForeignSet, Lose, Pass, Probe, Read, Receive, Round, Scan, Scripted};
    let step = || vec![Scan, Round, Receive];
    let build = || [vec![Begin], (0..KEYS).flat_map(|_| step()).collect()].concat();
    let prove = || vec![Probe, Round, Receive, Probe, Round, Receive];
    // Longer than the bound, with a proof that is younger.
    let later = || [vec![Pass(60)], prove(), vec![Pass(60)], prove()].concat();
    let parts: &[Vec<Event>] = &match without {
        Without::Nothing => vec![],
        // The scan has passed the key when it is written.
        Without::Replay => {
            let rest = (2..KEYS).flat_map(|_| step()).collect();
            vec![vec![Begin], step(), step(), vec![ForeignSet(0), Round, Receive], rest, later(), vec![Ask(0)]]
        }
        Without::Announcements => vec![build(), vec![ForeignSet(0), Round, Receive], later(), vec![Ask(0)]],
        // An app is shown the key before its announcement is in.
        Without::Touches => vec![build(), prove(), vec![ForeignSet(0), Read(0), Ask(0)]],
        Without::TouchesOfAny => vec![build(), prove(), vec![Scripted(0), Ask(0)]],
        // Written, probed and answered in one round, and announced behind it.
        Without::Lag => {
            vec![build(), prove(), vec![ForeignSet(0), Pass(60), Probe, Round, Receive, Pass(50), Ask(0)]]
        }
        Without::Loss => vec![build(), prove(), vec![ForeignSet(0), Lose], later(), vec![Ask(0)]],
        Without::Proof => vec![build(), prove(), vec![ForeignSet(0), Round, Pass(101), Ask(0)]],
    };
    parts.concat()
}

#[test]
fn every_rule_is_needed() {
    use Without::{Announcements, Lag, Loss, Nothing, Proof, Replay, Touches, TouchesOfAny};
    for without in [Replay, Announcements, Touches, TouchesOfAny, Lag, Loss, Proof] {
        let told = |without_this| {
            let mut world = World::new(without_this);
            story(without).iter().try_for_each(|event| world.happens(event))
        };
        assert_eq!(told(Nothing), Ok(()), "{without:?}");
        assert!(told(without).is_err(), "nothing broke without {without:?}");
    }
}

#[test]
fn a_filter_that_is_too_small_is_given_up() {
    let world = World::new(Without::Nothing);
    let (filter, kernel) = (AbsenceFilter::new(50), &world.kernel);
    filter.begin(kernel, world.source);
    (0..40).for_each(|key| filter.found(World::hash(key)));
    assert!(matches!(filter.finish(kernel), Finished::Active { keys: 35..=40 }));
    (40..80).for_each(|key| filter.written(World::hash(key)));
    assert!(filter.is_overfull() && filter.is_active(kernel));
    filter.begin(kernel, world.source);
    (0..80).for_each(|key| filter.found(World::hash(key)));
    assert_eq!(filter.finish(kernel), Finished::TooMany);
    assert!(!filter.is_active(kernel) && filter.is_empty());
    filter.begin(kernel, world.source);
    kernel.flush(world.source, FlushCause::Overwritten);
    assert_eq!(filter.finish(kernel), Finished::Gap);
}
