//! The in-process backend plays random programs; a model that knows nothing of queues predicts every answer.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use caddy_engine::{
    Clock, ManualClock, Moment,
    locks::{Answer, Ask, Claim, FencingToken, InProcess, LockBackend, LockListener, LockMode, Owner, Ticket},
};
use parking_lot::Mutex;
use proptest::prelude::*;

use crate::{Still, now};

#[derive(Clone, Debug)]
enum Op {
    /// An owner asks with the ticket that it has for the lock, or a new one.
    Ask {
        lock: u8,
        owner: u8,
        shared: bool,
        waits: bool,
        lease: u64,
    },
    /// Ticket number so many ago is cancelled.
    Cancel(usize),
    /// Grant number so many ago is renewed, or let go.
    Renew(usize, u64),
    Release(usize),
    Advance(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..2u8, 0..5u8, any::<bool>(), prop::bool::weighted(0.8), 1..50u64)
            .prop_map(|(lock, owner, shared, waits, lease)| Op::Ask { lock, owner, shared, waits, lease }),
        1 => (0..8usize).prop_map(Op::Cancel),
        1 => (0..4usize, 1..50u64).prop_map(|(which, lease)| Op::Renew(which, lease)),
        3 => (0..4usize).prop_map(Op::Release),
        1 => (0..40u64).prop_map(Op::Advance),
    ]
}

/// What became of one acquisition, in the order of arrival.
#[derive(Clone, Debug)]
struct Record {
    ask: Ask<u8>,
    state: State,
}

#[derive(Clone, Debug, PartialEq)]
enum State {
    Waits,
    Holds { token: FencingToken, until: Moment },
    Over,
}

/// The history of all acquisitions; who holds and who is first is read off it each time.
#[derive(Default)]
struct Model {
    records: Vec<Record>,
    grants: Vec<Claim<u8>>,
    greatest: Option<FencingToken>,
}

impl Model {
    fn expire(&mut self, at: Moment) {
        for record in &mut self.records {
            if matches!(record.state, State::Holds { until, .. } if until <= at) {
                record.state = State::Over;
            }
        }
    }

    fn check(&mut self, ask: &Ask<u8>, answer: &Answer, at: Moment) -> Result<(), TestCaseError> {
        let known = self.records.iter().position(|record| record.ask.ticket == ask.ticket);
        let same_lock = |record: &&Record| record.ask.name == ask.name;
        let own = self
            .records
            .iter()
            .filter(same_lock)
            .find(|record| record.ask.owner == ask.owner && matches!(record.state, State::Holds { .. }))
            .cloned();
        if let Some(Record { ask: first, state: State::Holds { token, until } }) = own {
            if first.mode == LockMode::Shared && ask.mode == LockMode::Exclusive {
                prop_assert_eq!(answer, &Answer::Upgrade(token));
                return Ok(());
            }
            prop_assert_eq!(answer, &Answer::Granted(token), "who holds it gets it again");
            for record in self.records.iter_mut().filter(|record| record.ask.name == ask.name) {
                if matches!(record.state, State::Holds { token: held, .. } if held == token) {
                    record.state = State::Holds { token, until: until.max(at + ask.lease) };
                    record.ask.ticket = ask.ticket.clone();
                } else if record.ask.ticket == ask.ticket {
                    record.state = State::Over;
                }
            }
            return Ok(());
        }
        let in_the_way = self.is_in_the_way(ask, known);
        match answer {
            Answer::Granted(token) => {
                prop_assert!(!in_the_way, "granted over somebody's head: {:?} {:?}", ask, self.records);
                prop_assert!(self.greatest < Some(*token), "{token} after {:?}", self.greatest);
                self.greatest = Some(*token);
                let state = State::Holds { token: *token, until: at + ask.lease };
                self.note(known, ask, state);
                self.grants.push(Claim { name: ask.name, owner: ask.owner.clone(), token: *token, lease: ask.lease });
            }
            Answer::NotFree => prop_assert!(in_the_way && !ask.waits, "refused what was free"),
            Answer::Queued(again) => {
                prop_assert!(in_the_way && ask.waits, "queued for what was free: {:?} {:?}", ask, self.records);
                prop_assert!(*again <= Duration::from_secs(1));
                if known.is_none() {
                    self.note(None, ask, State::Waits);
                }
            }
            other => prop_assert!(false, "{other:?}"),
        }
        Ok(())
    }

    /// Whether somebody holds, or waits longer, whom the acquisition excludes.
    fn is_in_the_way(&self, ask: &Ask<u8>, known: Option<usize>) -> bool {
        self.records.iter().enumerate().filter(|(_, record)| record.ask.name == ask.name).any(|(place, record)| {
            let excludes = record.ask.mode.excludes(ask.mode);
            match record.state {
                State::Holds { .. } => excludes,
                State::Waits => excludes && known.is_none_or(|own| place < own),
                State::Over => false,
            }
        })
    }

    /// The lock was handed to who waited for it.
    fn handed(&mut self, ticket: &Ticket, token: FencingToken, at: Moment) -> Result<(), TestCaseError> {
        let waits = |record: &Record| record.ask.ticket == *ticket && record.state == State::Waits;
        let place = self.records.iter().position(waits);
        prop_assert!(place.is_some(), "{ticket} does not wait: {:?}", self.records);
        let ask = self.records[place.unwrap_or_default()].ask.clone();
        prop_assert!(!self.is_in_the_way(&ask, place), "handed over somebody's head: {ask:?} {:?}", self.records);
        prop_assert!(self.greatest < Some(token), "{token} after {:?}", self.greatest);
        self.greatest = Some(token);
        self.note(place, &ask, State::Holds { token, until: at + ask.lease });
        self.grants.push(Claim { name: ask.name, owner: ask.owner, token, lease: ask.lease });
        Ok(())
    }

    /// Nobody waits for that lock whose turn it is.
    fn all_were_handed(&self, name: u8) -> Result<(), TestCaseError> {
        for (place, record) in self.records.iter().enumerate() {
            if record.ask.name == name && record.state == State::Waits {
                prop_assert!(self.is_in_the_way(&record.ask, Some(place)), "left waiting: {:?}", self.records);
            }
        }
        Ok(())
    }

    fn note(&mut self, known: Option<usize>, ask: &Ask<u8>, state: State) {
        match known {
            Some(place) => self.records[place].state = state,
            None => self.records.push(Record { ask: ask.clone(), state }),
        }
    }

    /// Whether the claim holds; if so its state becomes what `change` says.
    fn claimed(&mut self, claim: &Claim<u8>, change: impl Fn(FencingToken) -> State) -> bool {
        let holds = |record: &&mut Record| {
            record.ask.name == claim.name
                && record.ask.owner == claim.owner
                && matches!(record.state, State::Holds { token, .. } if token == claim.token)
        };
        self.records.iter_mut().find(holds).map(|record| record.state = change(claim.token)).is_some()
    }
}

/// To whom locks were handed.
#[derive(Default)]
struct Told(Mutex<Vec<(Ticket, FencingToken)>>);

impl LockListener for Told {
    fn wake(&self, _: &Ticket) {}

    fn handed_over(&self, ticket: &Ticket, token: FencingToken) {
        self.0.lock().push((ticket.clone(), token));
    }

    fn deadlocked(&self, _: &Ticket, _: &str) {}

    fn epoch(&self, _: u64) {}
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn every_answer_is_what_the_history_says(ops in prop::collection::vec(op(), 1..120)) {
        let clock = Arc::new(ManualClock::default());
        let backend = InProcess::<u8>::new(Arc::new(Still(clock.clone())));
        let told = Arc::new(Told::default());
        let listener: Weak<Told> = Arc::downgrade(&told);
        backend.attach(listener);
        let mut model = Model::default();
        let mut next = 0;
        for op in ops {
            let at = clock.now();
            model.expire(at);
            let mut changed = None;
            match op {
                Op::Advance(by) => clock.advance(Duration::from_millis(by)),
                Op::Ask { lock, owner, shared, waits, lease } => {
                    let owner = Owner::new(format!("o{owner}"));
                    let mode = if shared { LockMode::Shared } else { LockMode::Exclusive };
                    let waiting = model.records.iter().find(|record| {
                        record.state == State::Waits
                            && (record.ask.name, &record.ask.owner, record.ask.mode) == (lock, &owner, mode)
                    });
                    let ticket = waiting.map_or_else(
                        || {
                            next += 1;
                            Ticket { client: "c".into(), number: next }
                        },
                        |record| record.ask.ticket.clone(),
                    );
                    let ask = Ask { name: lock, owner, mode, ticket, lease: Duration::from_millis(lease), waits };
                    let answer = now(backend.acquire(&ask)).unwrap();
                    model.check(&ask, &answer, at)?;
                    changed = matches!(answer, Answer::Queued(_)).then_some(lock);
                }
                Op::Cancel(ago) => {
                    let Some(record) = model.records.iter().rev().nth(ago) else { continue };
                    let ask = record.ask.clone();
                    now(backend.cancel(&ask)).unwrap();
                    for record in model.records.iter_mut().filter(|record| record.ask.ticket == ask.ticket) {
                        record.state = State::Over;
                    }
                    changed = Some(ask.name);
                }
                Op::Renew(ago, lease) => {
                    let Some(claim) = model.grants.iter().rev().nth(ago).cloned() else { continue };
                    let claim = Claim { lease: Duration::from_millis(lease), ..claim };
                    let renewed = now(backend.renew(std::slice::from_ref(&claim))).unwrap();
                    let holds = model.claimed(&claim, |token| State::Holds { token, until: at + claim.lease });
                    prop_assert_eq!(renewed, [holds]);
                }
                Op::Release(ago) => {
                    let Some(claim) = model.grants.iter().rev().nth(ago).cloned() else { continue };
                    let released = now(backend.release(&claim)).unwrap();
                    prop_assert_eq!(released, model.claimed(&claim, |_| State::Over));
                    changed = Some(claim.name);
                }
            }
            for (ticket, token) in std::mem::take(&mut *told.0.lock()) {
                model.handed(&ticket, token, at)?;
            }
            if let Some(name) = changed {
                model.all_were_handed(name)?;
            }
        }
        // Nothing is left of what is over.
        clock.advance(Duration::from_secs(1));
        for record in &model.records {
            now(backend.cancel(&record.ask)).unwrap();
        }
        prop_assert_eq!(backend.names(), Vec::<u8>::new());
    }
}
