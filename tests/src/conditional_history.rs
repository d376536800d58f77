//! Histories of conditional writes, and what must never be found in one.
//!
//! Apps on several sidecars write down what they asked and what they were answered: tokens, fills under them, writes under
//! fences, plain writes, invalidations of groups, reads. Everything happens at once, so the checker judges only what is certain from
//! when requests were sent and answered; it knows nothing of sidecars or Redis. Each value is written once.

use std::{collections::BTreeMap, fmt, time::Duration};

use caddy_engine::Moment;

/// Something that was done, and answered.
#[derive(Clone, Debug)]
pub struct Event {
    /// Through which sidecar; `None`: past them.
    pub through: Option<usize>,
    /// About which key; of what is about none: empty.
    pub key: String,
    /// Before the request was sent, and after its answer was there.
    pub span: (Moment, Moment),
    /// What it was.
    pub act: Act,
}

/// See [`Event`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// A token was given, and no other one like it.
    Given {
        /// Its number.
        token: usize,
        /// The groups that it remembers.
        groups: Vec<String>,
    },
    /// Somebody was told that another has the token.
    NotGiven,
    /// A value was stored under a token.
    Filled {
        /// Its number.
        token: usize,
        /// The value.
        value: u64,
    },
    /// A value was stored under a lock's token, which sorts as text.
    Fenced {
        /// The lock's token.
        fence: String,
        /// The value.
        value: u64,
    },
    /// A value was stored, or removed, without conditions.
    Written(Option<u64>),
    /// The key's lease is gone, by whomever.
    LeaseGone,
    /// A request was refused, or nobody knows what became of it.
    Unclear,
    /// A group was invalidated.
    Ended(String),
    /// A lock was acquired under this token.
    Acquired(String),
    /// Everything was removed: all keys, leases, groups, and what is known of locks.
    Flushed,
    /// This was read.
    Read(Option<u64>),
}

/// What is promised.
#[derive(Clone, Copy, Debug)]
pub struct Promises {
    /// How late another sidecar may know of a write.
    pub max_staleness: Duration,
    /// For how long a token is given at least.
    pub lease: Duration,
}

/// What must not be: two events, or three, that cannot be together.
#[derive(Clone, Debug)]
pub struct Broken {
    /// Which promise.
    pub promise: &'static str,
    /// The events that show it.
    pub evidence: Vec<Event>,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}:", self.promise)?;
        self.evidence.iter().try_for_each(|Event { through, key, span, act }| {
            let micros = |moment: Moment| moment.as_nanos() / 1000;
            writeln!(f, "  [{} µs to {} µs] {key} through {through:?}: {act:?}", micros(span.0), micros(span.1))
        })
    }
}

impl Event {
    /// Whether it was over when the other one began.
    fn is_before(&self, other: &Self) -> bool {
        self.span.1 < other.span.0
    }

    /// Whether the key was certainly written, or removed, during it.
    fn is_write(&self) -> bool {
        matches!(self.act, Act::Filled { .. } | Act::Fenced { .. } | Act::Written(_) | Act::Flushed)
    }

    /// Whether a group, or all of them, had certainly ended behind it.
    fn ends(&self, groups: &[String]) -> bool {
        match &self.act {
            Act::Ended(group) => groups.contains(group),
            Act::Flushed => true,
            _ => false,
        }
    }

    /// The value that it stored.
    fn stored(&self) -> Option<u64> {
        match self.act {
            Act::Filled { value, .. } | Act::Fenced { value, .. } => Some(value),
            Act::Written(value) => value,
            _ => None,
        }
    }
}

/// All that is wrong.
pub fn check(events: &[Event], promises: Promises) -> Vec<Broken> {
    let (of_all, of_keys): (Vec<&Event>, Vec<&Event>) = events.iter().partition(|event| event.key.is_empty());
    let flushes = || of_all.iter().copied().filter(|event| event.act == Act::Flushed);
    let mut by_key: BTreeMap<&str, Vec<&Event>> = BTreeMap::new();
    for event in &of_keys {
        by_key.entry(&event.key).or_insert_with(|| flushes().collect()).push(event);
    }
    let mut broken = void_fences(&of_all, &of_keys);
    for of_key in by_key.values() {
        broken.extend(late_fills(of_key, &of_all));
        broken.extend(two_tokens(of_key, promises));
        broken.extend(old_fences(of_key));
        broken.extend(old_values(of_key, &of_all, promises));
    }
    broken
}

fn shown(promise: &'static str, evidence: &[&Event]) -> Broken {
    Broken { promise, evidence: evidence.iter().map(|event| (*event).clone()).collect() }
}

/// A token stores once, and nothing that something has come before since it was given.
fn late_fills(of_key: &[&Event], ends: &[&Event]) -> Vec<Broken> {
    let mut broken = Vec::new();
    let fills = || of_key.iter().filter_map(|event| matches!(event.act, Act::Filled { .. }).then_some(*event));
    for fill in fills() {
        let Act::Filled { token: of, .. } = &fill.act else { continue };
        let is_its = |event: &&&Event| matches!(&event.act, Act::Given { token, .. } if token == of);
        let Some(given) = of_key.iter().find(is_its) else { continue };
        let Act::Given { groups, .. } = &given.act else { continue };
        let is_between = |event: &&&Event| given.is_before(event) && event.is_before(fill);
        // What is written past the sidecars ends no lease; removed again, it leaves no trace.
        let is_undone = |event: &Event| {
            let removes = |other: &&&Event| {
                other.through.is_none()
                    && matches!(other.act, Act::Unclear | Act::Written(None))
                    && !other.is_before(event)
                    && !fill.is_before(other)
            };
            event.through.is_none()
                && matches!(event.act, Act::Written(_))
                && of_key.iter().any(|other| removes(&other))
        };
        let ends_it = |event: &&&Event| event.is_write() && !is_undone(event) || event.act == Act::LeaseGone;
        if let Some(between) = of_key.iter().filter(ends_it).find(is_between) {
            broken.push(shown("C2: a fill was let in over what came behind its token", &[given, between, fill]));
        }
        if let Some(between) = ends.iter().filter(|event| event.ends(groups)).find(is_between) {
            broken.push(shown("C2: a fill was let in though a group of its had ended", &[given, between, fill]));
        }
        let is_same = |other: &&Event| matches!(&other.act, Act::Filled { token, .. } if token == of);
        if let Some(again) = fills().filter(is_same).find(|other| !std::ptr::eq(*other, fill)) {
            broken.push(shown("a token was used twice", &[given, fill, again]));
        }
    }
    broken
}

/// Of a key one token is good at a time.
fn two_tokens(of_key: &[&Event], promises: Promises) -> Vec<Broken> {
    let given: Vec<_> = of_key.iter().filter(|event| matches!(event.act, Act::Given { .. })).collect();
    let mut broken = Vec::new();
    for first in &given {
        for second in given.iter().filter(|second| first.is_before(second)) {
            let is_within = second.span.1 < first.span.0 + promises.lease;
            let may_end = |event: &&&Event| {
                !matches!(event.act, Act::Read(_) | Act::NotGiven | Act::Given { .. })
                    && first.span.0 <= event.span.1
                    && event.span.0 <= second.span.1
            };
            if is_within && !of_key.iter().any(|event| may_end(&event)) {
                broken.push(shown("two tokens of a key were good at a time", &[first, second]));
            }
        }
    }
    broken
}

/// Behind what a later holder wrote an earlier one writes nothing.
fn old_fences(of_key: &[&Event]) -> Vec<Broken> {
    let fenced = || of_key.iter().filter_map(|event| matches!(event.act, Act::Fenced { .. }).then_some(*event));
    let token = |event: &Event| match &event.act {
        Act::Fenced { fence, .. } => fence.clone(),
        _ => String::new(),
    };
    let later = |write: &Event| fenced().find(|other| other.is_before(write) && token(other) > token(write));
    fenced().filter_map(|write| Some(shown("an old holder of a lock wrote", &[later(write)?, write]))).collect()
}

/// A flush voids all locks: under a token from before it nobody writes behind it.
fn void_fences(of_all: &[&Event], of_keys: &[&Event]) -> Vec<Broken> {
    let flushes = || of_all.iter().filter(|event| event.act == Act::Flushed);
    let mut broken = Vec::new();
    for write in of_keys {
        let Act::Fenced { fence, .. } = &write.act else { continue };
        let is_its = |event: &&&Event| matches!(&event.act, Act::Acquired(token) if token == fence);
        let Some(acquired) = of_all.iter().find(is_its) else { continue };
        if let Some(flush) = flushes().find(|flush| acquired.is_before(flush) && flush.is_before(write)) {
            broken.push(shown("a holder from before a flush wrote behind it", &[acquired, flush, write]));
        }
    }
    broken
}

/// What was overwritten, or belongs to what has ended, is not read where that must be known.
fn old_values(of_key: &[&Event], ends: &[&Event], promises: Promises) -> Vec<Broken> {
    let writes: BTreeMap<u64, &Event> = of_key.iter().filter_map(|event| Some((event.stored()?, *event))).collect();
    let mut broken = Vec::new();
    for read in of_key {
        let Act::Read(Some(value)) = read.act else { continue };
        let Some(write) = writes.get(&value) else { continue };
        let is_known = |event: &Event| {
            event.through == read.through && event.through.is_some() && event.is_before(read)
                || event.span.1 + promises.max_staleness < read.span.0
        };
        let is_newer = |event: &&&Event| event.is_write() && write.is_before(event) && is_known(event);
        if let Some(newer) = of_key.iter().find(is_newer) {
            broken.push(shown("C1, C3: a value was read that had been overwritten", &[write, newer, read]));
        }
        // A fill belongs to its groups as they were when its token was given.
        let Act::Filled { token: of, .. } = &write.act else { continue };
        let is_its = |event: &&&Event| matches!(&event.act, Act::Given { token, .. } if token == of);
        let Some(given) = of_key.iter().find(is_its) else { continue };
        let Act::Given { groups, .. } = &given.act else { continue };
        let is_end = |event: &&&Event| event.ends(groups) && given.is_before(event) && is_known(event);
        if let Some(end) = ends.iter().find(is_end) {
            broken.push(shown("C5: a value was read of which a group had ended", &[given, end, write, read]));
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROMISES: Promises = Promises { max_staleness: Duration::from_millis(100), lease: Duration::from_secs(10) };

    fn event(through: usize, from: u64, to: u64, act: Act) -> Event {
        let at = Moment::from_millis;
        let is_of_all = matches!(act, Act::Ended(_) | Act::Acquired(_) | Act::Flushed);
        let key = if is_of_all { "" } else { "k" };
        Event { through: Some(through), key: key.into(), span: (at(from), at(to)), act }
    }

    fn given(token: usize, from: u64, to: u64) -> Event {
        event(0, from, to, Act::Given { token, groups: vec!["g".into()] })
    }

    fn filled(token: usize, from: u64, to: u64) -> Event {
        event(0, from, to, Act::Filled { token, value: token as u64 })
    }

    /// What is found, in words.
    fn found(events: &[Event]) -> String {
        check(events, PROMISES).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_fill_over_something_newer_is_found() {
        let ended = |from, to| event(1, from, to, Act::Ended("g".into()));
        for between in [Act::Written(None), Act::Written(Some(99)), Act::LeaseGone, Act::Flushed] {
            let between = |from, to| event(1, from, to, between.clone());
            assert!(found(&[given(1, 0, 1), between(2, 3), filled(1, 4, 5)]).contains("over what came"));
            for (from, to) in [(1, 3), (2, 4), (6, 7)] {
                assert_eq!(found(&[given(1, 0, 1), between(from, to), filled(1, 4, 5)]), "");
            }
        }
        let foreign = |act, from, to| Event { through: None, ..event(1, from, to, act) };
        let set = foreign(Act::Written(Some(99)), 2, 3);
        assert!(found(&[given(1, 0, 1), set.clone(), filled(1, 6, 7)]).contains("over what came"));
        for (from, to, traces) in [(0, 1, 1), (4, 5, 0), (2, 4, 0), (4, 8, 0), (8, 9, 1)] {
            let removed = foreign(Act::Unclear, from, to);
            let broken = check(&[given(1, 0, 1), set.clone(), removed, filled(1, 6, 7)], PROMISES);
            assert_eq!(broken.len(), traces, "{from} to {to}");
        }
        assert!(found(&[given(1, 0, 1), ended(2, 3), filled(1, 4, 5)]).contains("a group of its"));
        assert_eq!(found(&[given(1, 0, 1), ended(0, 3), filled(1, 4, 5)]), "");
        assert!(found(&[given(1, 0, 1), filled(1, 2, 3), filled(1, 2, 4)]).contains("used twice"));
    }

    #[test]
    fn two_tokens_at_a_time_are_found() {
        assert!(found(&[given(1, 0, 1), given(2, 2, 3)]).contains("two tokens"));
        assert_eq!(found(&[given(1, 0, 1), given(2, 9_998, 10_001)]), "");
        for may in [Act::LeaseGone, Act::Unclear, Act::Written(None)] {
            assert_eq!(found(&[given(1, 0, 1), event(1, 1, 2, may), given(2, 2, 3)]), "");
        }
        assert!(found(&[given(1, 0, 1), event(1, 4, 5, Act::Unclear), given(2, 2, 3)]).contains("two tokens"));
    }

    #[test]
    fn an_old_holder_is_found() {
        let fenced = |fence: &str, from, to| event(1, from, to, Act::Fenced { fence: fence.into(), value: from });
        assert!(found(&[fenced("7-2", 0, 1), fenced("7-1", 2, 3)]).contains("an old holder"));
        for events in [[fenced("7-2", 0, 1), fenced("7-1", 1, 3)], [fenced("7-1", 0, 1), fenced("7-2", 2, 3)]] {
            assert_eq!(found(&events), "");
        }
    }

    #[test]
    fn a_holder_from_before_a_flush_is_found() {
        let acquired = |from, to| event(0, from, to, Act::Acquired("7-1".into()));
        let fenced = |from, to| event(0, from, to, Act::Fenced { fence: "7-1".into(), value: 1 });
        let flushed = |from, to| event(1, from, to, Act::Flushed);
        assert!(found(&[acquired(0, 1), flushed(2, 3), fenced(4, 5)]).contains("before a flush"));
        for events in [
            [acquired(0, 2), flushed(2, 3), fenced(4, 5)],
            [acquired(0, 1), flushed(2, 4), fenced(4, 5)],
            [acquired(4, 5), flushed(2, 3), fenced(6, 7)],
        ] {
            assert_eq!(found(&events), "");
        }
    }

    #[test]
    fn an_old_value_is_found_where_a_newer_one_must_be_known() {
        let written = |through, value, from, to| event(through, from, to, Act::Written(value));
        let read = |through, value, at| event(through, at, at + 1, Act::Read(Some(value)));
        let both = [written(0, Some(1), 0, 1), written(0, Some(2), 2, 3)];
        assert!(found(&[&both[..], &[read(0, 1, 4)]].concat()).contains("overwritten"));
        assert!(found(&[&both[..], &[read(1, 1, 104)]].concat()).contains("overwritten"));
        for fine in [read(1, 1, 103), read(0, 2, 4), read(0, 1, 2)] {
            assert_eq!(found(&[&both[..], &[fine]].concat()), "");
        }
        let ended = event(0, 6, 7, Act::Ended("g".into()));
        let fill = [given(1, 0, 1), filled(1, 2, 3), ended];
        assert!(found(&[&fill[..], &[read(0, 1, 8)]].concat()).contains("C5"));
        assert_eq!(found(&[&fill[..], &[read(0, 1, 7)]].concat()), "");
        let flushed = [written(0, Some(1), 0, 1), event(0, 2, 3, Act::Flushed)];
        assert!(found(&[&flushed[..], &[read(0, 1, 4)]].concat()).contains("overwritten"));
        assert_eq!(found(&[&flushed[..], &[read(0, 1, 3)]].concat()), "");
    }
}
