//! Groups in a history: values with a tag, and invalidations of tags, against the promise C5.
//!
//! A value is written once, so that whoever reads it tells which write he saw. Judged is only what is certain: a value whose
//! write had ended before an invalidation of its tag began, and that is read when that invalidation must be known.

use std::collections::BTreeMap;

use caddy_engine::Moment;

use super::{Broken, Event, History, Op, Promises, Through, micros};

/// Something that was done with a group, and answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupEvent {
    /// The connection it was sent on.
    pub session: usize,
    /// Through what.
    pub through: Through,
    /// Before the request was sent.
    pub invoked: Moment,
    /// After its reply was in.
    pub completed: Moment,
    /// What it was.
    pub op: GroupOp,
}

/// See [`GroupEvent`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupOp {
    /// A value was written under a tag.
    Set {
        /// Its key.
        key: String,
        /// It, and no other one's.
        value: u64,
        /// What it carries.
        tag: String,
    },
    /// A value was read.
    Read {
        /// Its key.
        key: String,
        /// What was there.
        value: u64,
    },
    /// A tag was invalidated.
    Invalidated(String),
}

impl GroupEvent {
    fn describe(&self) -> String {
        let (from, to) = (micros(self.invoked), micros(self.completed));
        format!("[{from} µs to {to} µs] session {} through {:?}: {:?}", self.session, self.through, self.op)
    }
}

impl History {
    /// C5: the first value of each tag that was read when it had to be dead.
    pub(super) fn dead_values(&self, promises: Promises) -> Vec<Broken> {
        let mut sets = BTreeMap::new();
        let mut invalidations: BTreeMap<&str, Vec<&GroupEvent>> = BTreeMap::new();
        for event in &self.groups {
            match &event.op {
                GroupOp::Set { key, value, tag } => drop(sets.insert((key.as_str(), *value), (event, tag.as_str()))),
                GroupOp::Invalidated(tag) => invalidations.entry(tag).or_default().push(event),
                GroupOp::Read { .. } => {}
            }
        }
        let mut broken: BTreeMap<&str, Broken> = BTreeMap::new();
        for read in &self.groups {
            let GroupOp::Read { key, value } = &read.op else { continue };
            // A write that was not answered may have happened at any time.
            let Some((set, tag)) = sets.get(&(key.as_str(), *value)) else { continue };
            let before = |of: &&&GroupEvent| set.completed < of.invoked;
            let mut known = invalidations.get(tag).into_iter().flatten().filter(before);
            let late = known.find_map(|of| Some((of, self.known_by(of, read, promises)?)));
            if let Some((invalidation, why)) = late {
                broken.entry(tag).or_insert_with(|| Broken {
                    promise: format!("C5: a value was read whose tag had been invalidated, which was known {why}"),
                    event: Event {
                        session: read.session,
                        through: read.through,
                        key: key.clone(),
                        invoked: read.invoked,
                        completed: read.completed,
                        op: Op::Read(*value),
                    },
                    evidence: vec![set.describe(), invalidation.describe()],
                    around: Vec::new(),
                });
            }
        }
        broken.into_values().collect()
    }

    /// Why who was read from must have known of an invalidation.
    fn known_by(&self, invalidation: &GroupEvent, read: &GroupEvent, promises: Promises) -> Option<&'static str> {
        let by_barrier = |barrier: &&super::Barrier| {
            barrier.through == read.through
                && invalidation.completed <= barrier.invoked
                && barrier.completed <= read.invoked
        };
        if invalidation.through == read.through && invalidation.completed <= read.invoked {
            Some("to the sidecar that made it")
        } else if invalidation.completed + promises.max_staleness + promises.slack < read.invoked {
            Some("for longer than the bound")
        } else if self.barriers.iter().any(|barrier| by_barrier(&barrier)) {
            Some("behind a barrier")
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::Barrier, *};

    const PROMISES: Promises = Promises { max_staleness: Duration::from_millis(100), slack: Duration::ZERO };

    fn event(through: usize, from: u64, to: u64, op: GroupOp) -> GroupEvent {
        let at = Moment::from_millis;
        GroupEvent { session: 0, through: Through::Sidecar(through), invoked: at(from), completed: at(to), op }
    }

    fn set(from: u64, to: u64) -> GroupEvent {
        event(0, from, to, GroupOp::Set { key: "k".into(), value: 7, tag: "t".into() })
    }

    fn invalidated(through: usize, from: u64, to: u64, tag: &str) -> GroupEvent {
        event(through, from, to, GroupOp::Invalidated(tag.into()))
    }

    fn read(through: usize, at: u64) -> GroupEvent {
        event(through, at, at + 1, GroupOp::Read { key: "k".into(), value: 7 })
    }

    fn check(groups: &[GroupEvent], barriers: &[Barrier]) -> Result<(), String> {
        let history = History { groups: groups.to_vec(), barriers: barriers.to_vec(), ..History::default() };
        history.check(PROMISES).map_err(|broken| broken.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_dead_value_is_found_at_once_where_it_was_invalidated() {
        let found = check(&[set(0, 1), invalidated(0, 2, 3, "t"), read(0, 3)], &[]).unwrap_err();
        assert!(found.contains("C5") && found.contains("to the sidecar that made it"), "{found}");
        check(&[set(0, 1), invalidated(0, 2, 4, "t"), read(0, 3)], &[]).unwrap();
        check(&[set(0, 1), invalidated(0, 2, 3, "other"), read(0, 3)], &[]).unwrap();
    }

    #[test]
    fn elsewhere_it_is_found_behind_the_bound_or_a_barrier() {
        check(&[set(0, 1), invalidated(1, 2, 3, "t"), read(0, 103)], &[]).unwrap();
        let found = check(&[set(0, 1), invalidated(1, 2, 3, "t"), read(0, 104)], &[]).unwrap_err();
        assert!(found.contains("longer than the bound"), "{found}");
        let at = Moment::from_millis;
        let barrier = Barrier { through: Through::Sidecar(0), invoked: at(3), completed: at(5) };
        let found = check(&[set(0, 1), invalidated(1, 2, 3, "t"), read(0, 5)], &[barrier]).unwrap_err();
        assert!(found.contains("behind a barrier"), "{found}");
    }

    #[test]
    fn what_was_written_meanwhile_or_later_may_live() {
        for from in [2, 5] {
            check(&[set(from, from + 1), invalidated(0, 2, 3, "t"), read(0, 300)], &[]).unwrap();
        }
        check(&[invalidated(0, 2, 3, "t"), read(0, 300)], &[]).unwrap();
    }
}
