//! Judges what clients saw: a history of operations on registers against the promises C3 and C4, and of groups against C5.
//!
//! A register is a counter that only INCR changes: Redis itself hands out the versions, so a greater version is a later
//! state, whoever wrote it and whatever became of the writer. All moments are of one clock, the one that sidecars use.
//! The checker reports only what is certainly wrong: an operation took effect somewhere between its two moments.
//! Errors are no part of a history; a read marked stale is evidence, but is not judged.

mod groups;

use std::{collections::BTreeMap, fmt, time::Duration};

use caddy_engine::Moment;

pub use groups::{GroupEvent, GroupOp};

/// Through what an operation went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Through {
    /// The sidecar with this number.
    Sidecar(usize),
    /// None: straight to Redis.
    Redis,
}

/// What was done, and what it showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Showed this version; 0 is an absent key.
    Read(u64),
    /// As [`Op::Read`], but the reply said that it may be stale.
    StaleRead(u64),
    /// Made this version.
    Write(u64),
}

impl Op {
    /// The state that the operation proves to have existed at its end.
    pub fn version(self) -> u64 {
        match self {
            Self::Read(version) | Self::StaleRead(version) | Self::Write(version) => version,
        }
    }
}

/// One operation on one register that was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The connection it was sent on; its operations are recorded in the order of their sending.
    pub session: usize,
    /// Through what.
    pub through: Through,
    /// The register.
    pub key: String,
    /// Before the request was sent.
    pub invoked: Moment,
    /// After its reply was in.
    pub completed: Moment,
    /// What it did.
    pub op: Op,
}

/// A sidecar was asked to catch up: what had been written anywhere before it was asked is known to it when it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Barrier {
    /// Which one.
    pub through: Through,
    /// Before the request was sent.
    pub invoked: Moment,
    /// After its reply was in.
    pub completed: Moment,
}

/// Everything that happened in a run.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The operations; those of one session in the order of their sending.
    pub events: Vec<Event>,
    /// The barriers.
    pub barriers: Vec<Barrier>,
    /// What was done with values that have a tag.
    pub groups: Vec<GroupEvent>,
}

/// What a history is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Promises {
    /// The bound of C4.
    pub max_staleness: Duration,
    /// What measuring may add to it.
    pub slack: Duration,
}

/// A promise that was broken, with the operations that show it.
#[derive(Clone, Debug)]
pub struct Broken {
    /// Which promise, in words.
    pub promise: String,
    /// The operation that broke it.
    pub event: Event,
    /// What it contradicts.
    pub evidence: Vec<String>,
    /// What else happened to the key around it.
    pub around: Vec<Event>,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, key {}:", self.promise, self.event.key)?;
        writeln!(f, "  wrong:   {}", self.event)?;
        for line in &self.evidence {
            writeln!(f, "  because: {line}")?;
        }
        writeln!(f, "  the key's history around it:")?;
        self.around.iter().try_for_each(|event| writeln!(f, "    {event}"))
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (micros(self.invoked), micros(self.completed));
        write!(f, "[{from} µs to {to} µs] session {} through {:?}: {:?}", self.session, self.through, self.op)
    }
}

impl fmt::Display for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (micros(self.invoked), micros(self.completed));
        write!(f, "[{from} µs to {to} µs] barrier of {:?}", self.through)
    }
}

fn micros(moment: Moment) -> u64 {
    moment.as_nanos() / 1000
}

/// Operations shown around a broken promise.
const AROUND: usize = 24;

impl History {
    /// Judges the history; the first broken promise of each kind and key.
    pub fn check(&self, promises: Promises) -> Result<(), Vec<Broken>> {
        let mut keys: BTreeMap<&str, Vec<&Event>> = BTreeMap::new();
        for event in &self.events {
            keys.entry(&event.key).or_default().push(event);
        }
        let mut broken: Vec<Broken> = keys
            .values()
            .flat_map(|events| {
                let found = [session_order(events), self.sidecar_order(events), bounded_staleness(events, promises)];
                found.into_iter().flatten().map(|(promise, event, evidence)| Broken {
                    around: around(events, event),
                    promise,
                    event: event.clone(),
                    evidence,
                })
            })
            .collect();
        broken.extend(self.dead_values(promises));
        if broken.is_empty() { Ok(()) } else { Err(broken) }
    }

    /// C3 across sessions, and C1 as far as it can be seen: after an answer, and after a barrier, no older state.
    fn sidecar_order<'a>(&self, events: &[&'a Event]) -> Option<Found<'a>> {
        let mut throughs: Vec<Through> = events.iter().map(|event| event.through).collect();
        throughs.sort_unstable();
        throughs.dedup();
        throughs.into_iter().find_map(|through| {
            let of_this: Vec<&'a Event> = events.iter().copied().filter(|event| event.through == through).collect();
            // What is known, from when on, why.
            let mut known: Vec<(Moment, u64, String)> =
                of_this.iter().map(|event| (event.completed, event.op.version(), event.to_string())).collect();
            for barrier in self.barriers.iter().filter(|barrier| barrier.through == through) {
                let before = events.iter().filter(|event| event.completed <= barrier.invoked);
                if let Some(newest) = before.max_by_key(|event| event.op.version()) {
                    known.push((barrier.completed, newest.op.version(), format!("{barrier} after {newest}")));
                }
            }
            known.sort_by_key(|(from, ..)| *from);
            let mut reads: Vec<&'a Event> = of_this.into_iter().filter(|event| is_read(event)).collect();
            reads.sort_by_key(|event| event.invoked);
            let (mut next, mut newest) = (0, None);
            reads.into_iter().find_map(|read| {
                while let Some((from, version, _)) = known.get(next)
                    && *from <= read.invoked
                {
                    if newest.is_none_or(|newest: usize| known[newest].1 < *version) {
                        newest = Some(next);
                    }
                    next += 1;
                }
                let (_, version, why) = &known[newest?];
                let promise = "C3: an older state was read after a newer one was known to the sidecar".to_owned();
                (read.op.version() < *version).then(|| (promise, read, vec![why.clone()]))
            })
        })
    }
}

type Found<'a> = (String, &'a Event, Vec<String>);

fn is_read(event: &Event) -> bool {
    matches!(event.op, Op::Read(_))
}

/// C3 within a session, pipelined requests included: states in the order of the requests, and none from the future.
fn session_order<'a>(events: &[&'a Event]) -> Option<Found<'a>> {
    let mut newest: BTreeMap<usize, &Event> = BTreeMap::new();
    for event in events {
        let Some(last) = newest.get(&event.session).copied() else {
            newest.insert(event.session, event);
            continue;
        };
        let wrong = match event.op {
            Op::Read(version) => version < last.op.version(),
            // What was seen before cannot have been what is made only now.
            Op::Write(version) => version <= last.op.version(),
            Op::StaleRead(_) => false,
        };
        if wrong {
            let promise = "C3: the requests of one session were answered out of order".to_owned();
            return Some((promise, event, vec![last.to_string()]));
        }
        if event.op.version() >= last.op.version() {
            newest.insert(event.session, event);
        }
    }
    None
}

/// C4: no state that had been overwritten for longer than the bound when the request was sent.
fn bounded_staleness<'a>(events: &[&'a Event], promises: Promises) -> Option<Found<'a>> {
    let mut by_end: Vec<&Event> = events.to_vec();
    by_end.sort_by_key(|event| event.completed);
    // The first evidence of each version that is greater than all before.
    let mut first: Vec<&Event> = Vec::new();
    for event in by_end {
        if first.last().is_none_or(|last| last.op.version() < event.op.version()) {
            first.push(event);
        }
    }
    events.iter().copied().filter(|event| is_read(event)).find_map(|read| {
        let next = first.partition_point(|event| event.op.version() <= read.op.version());
        let newer = first.get(next)?;
        let late = read.invoked.since(newer.completed);
        let bound = promises.max_staleness + promises.slack;
        let promise = format!("C4: a state that had been overwritten for {late:?} was read, the bound being {bound:?}");
        (late > bound).then(|| (promise, read, vec![newer.to_string()]))
    })
}

fn around(events: &[&Event], wrong: &Event) -> Vec<Event> {
    let mut sorted: Vec<&Event> = events.to_vec();
    sorted.sort_by_key(|event| event.invoked);
    let at = sorted.partition_point(|event| event.invoked < wrong.invoked);
    let from = at.saturating_sub(AROUND * 3 / 4);
    sorted.into_iter().skip(from).take(AROUND).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROMISES: Promises = Promises { max_staleness: Duration::from_millis(100), slack: Duration::ZERO };

    /// An event through sidecar `through` of session `session`, from and to in milliseconds.
    fn event(session: usize, through: usize, from: u64, to: u64, op: Op) -> Event {
        Event {
            session,
            through: Through::Sidecar(through),
            key: "k".into(),
            invoked: Moment::from_millis(from),
            completed: Moment::from_millis(to),
            op,
        }
    }

    fn foreign(from: u64, to: u64, op: Op) -> Event {
        Event { through: Through::Redis, ..event(99, 0, from, to, op) }
    }

    fn check(events: &[Event], barriers: &[Barrier]) -> Result<(), String> {
        let history = History { events: events.to_vec(), barriers: barriers.to_vec(), ..History::default() };
        history.check(PROMISES).map_err(|broken| broken.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn an_ordinary_history_is_in_order() {
        let history = [
            event(0, 0, 0, 1, Op::Read(0)),
            event(0, 0, 2, 4, Op::Write(1)),
            event(1, 0, 3, 5, Op::Read(0)),
            event(1, 0, 6, 7, Op::Read(1)),
            foreign(8, 9, Op::Write(2)),
            event(2, 1, 100, 101, Op::Read(1)),
            event(2, 1, 102, 103, Op::Read(2)),
        ];
        check(&history, &[]).unwrap();
    }

    #[test]
    fn a_write_that_is_not_read_back_is_found() {
        let history = [event(0, 0, 0, 1, Op::Write(1)), event(0, 0, 2, 3, Op::Read(0))];
        assert!(check(&history, &[]).unwrap_err().contains("one session"));
        let across = [event(0, 0, 0, 1, Op::Write(1)), event(1, 0, 2, 3, Op::Read(0))];
        assert!(check(&across, &[]).unwrap_err().contains("C3: an older state"));
    }

    #[test]
    fn running_backwards_across_sessions_is_found_but_not_across_sidecars() {
        let back = |other| [event(0, 0, 0, 1, Op::Read(5)), event(1, other, 2, 3, Op::Read(4))];
        assert!(check(&back(0), &[]).unwrap_err().contains("C3: an older state"));
        check(&back(1), &[]).unwrap();
    }

    #[test]
    fn overlapping_requests_may_be_answered_in_either_order() {
        check(&[event(0, 0, 0, 10, Op::Read(5)), event(1, 0, 9, 12, Op::Read(4))], &[]).unwrap();
    }

    #[test]
    fn a_read_that_shows_the_sessions_own_later_write_is_found() {
        // One pipeline: both are sent and answered together.
        let history = [event(0, 0, 0, 9, Op::Read(3)), event(0, 0, 0, 9, Op::Write(3))];
        assert!(check(&history, &[]).unwrap_err().contains("out of order"));
        check(&[event(0, 0, 0, 9, Op::Read(2)), event(0, 0, 0, 9, Op::Write(3))], &[]).unwrap();
    }

    #[test]
    fn staleness_is_bounded_for_every_sidecar() {
        let read_at = |at| [foreign(0, 10, Op::Write(1)), event(0, 0, at, at + 1, Op::Read(0))];
        check(&read_at(110), &[]).unwrap();
        let message = check(&read_at(111), &[]).unwrap_err();
        assert!(message.contains("C4") && message.contains("key k") && message.contains("Write(1)"), "{message}");
    }

    #[test]
    fn a_state_that_another_sidecar_read_counts_as_written() {
        let history = [event(0, 0, 0, 10, Op::Read(7)), event(1, 1, 200, 201, Op::Read(6))];
        assert!(check(&history, &[]).unwrap_err().contains("C4"));
    }

    #[test]
    fn a_reply_marked_stale_is_not_judged_but_is_evidence() {
        let history = [foreign(0, 10, Op::Write(2)), event(0, 0, 500, 501, Op::StaleRead(1))];
        check(&history, &[]).unwrap();
        let after = [event(0, 0, 0, 1, Op::StaleRead(2)), event(1, 0, 2, 3, Op::Read(1))];
        assert!(check(&after, &[]).is_err());
    }

    #[test]
    fn after_a_barrier_everything_before_it_is_known() {
        let barrier = Barrier {
            through: Through::Sidecar(0),
            invoked: Moment::from_millis(20),
            completed: Moment::from_millis(30),
        };
        let history = |at| [foreign(0, 10, Op::Write(1)), event(0, 0, at, at + 1, Op::Read(0))];
        check(&history(29), std::slice::from_ref(&barrier)).unwrap();
        assert!(check(&history(31), std::slice::from_ref(&barrier)).unwrap_err().contains("barrier"));
        let other = Barrier { through: Through::Sidecar(1), ..barrier };
        check(&history(31), &[other]).unwrap();
    }

    #[test]
    fn keys_are_judged_each_for_itself() {
        let other = Event { key: "other".into(), ..event(0, 0, 2, 3, Op::Read(0)) };
        check(&[event(0, 0, 0, 1, Op::Write(1)), other], &[]).unwrap();
    }
}
