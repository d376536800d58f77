//! Random lock programs over real sidecars and a real Redis, against an offline graph of who waits for whom: the acquisition
//! that closes a circle is failed, and it alone, by the second look for deadlocks that begins behind it at the latest; where
//! there is no circle nobody is. `CADDY_SEED` repeats a run.
//!
//! One step at a time, so that the graph is known. Time is told by the sidecars' counts of looks, and by deadlocks beside
//! the program: when one that was made later has been broken, everything was looked at.

use std::time::Duration;

use caddy_tests::{
    e2e::eventually,
    random::Random,
    redis::RedisServer,
    sidecar::{Sidecar, SidecarOptions},
    world::SOON,
};

use crate::{Locker, granted};

const WORKERS: usize = 6;
const LOCKS: usize = 5;
const STEPS: usize = 100;
/// In how many states without a circle nobody may be failed however often is looked.
const LOOKS: usize = 6;
/// How many looks may begin behind the closing of a circle and end without breaking it: the next one has to.
const LOOKS_IN_VAIN: u64 = 1;
/// A circle that stood for longer may be one of which nothing was seen: Redis takes waiters for dead whose sidecar stood
/// still for three seconds. Of so many that is believed.
const EXCUSED: usize = 1;
/// How long an answer is waited for before the next thing is looked at.
const MOMENT: Duration = Duration::from_millis(5);
/// How often at a stretch.
const MANY: usize = 20;
/// Nothing of the program ends by itself.
const FOR_EVER: &str = "LEASE 3600000 WAIT 3600000";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Claim {
    worker: usize,
    is_shared: bool,
}

impl Claim {
    fn excludes(self, other: Self) -> bool {
        !(self.is_shared && other.is_shared)
    }
}

/// A lock as it must be: first come, first served.
#[derive(Clone, Debug, Default)]
struct Lock {
    holders: Vec<Claim>,
    waiters: Vec<Claim>,
}

impl Lock {
    /// Who stands in a claim's way if `ahead` waiters come before it.
    fn in_the_way(&self, claim: Claim, ahead: usize) -> impl Iterator<Item = usize> {
        let all = self.holders.iter().chain(&self.waiters[..ahead]);
        all.filter(move |other| other.excludes(claim)).map(|other| other.worker)
    }

    /// Takes those whose turn it is from the queue.
    fn hand_over(&mut self) -> Vec<Claim> {
        let ready = |lock: &Self| lock.waiters.first().is_some_and(|first| lock.in_the_way(*first, 0).next().is_none());
        let mut handed = Vec::new();
        while ready(self) {
            let first = self.waiters.remove(0);
            self.holders.push(first);
            handed.push(first);
        }
        handed
    }
}

/// Whether somebody waits, over however many others, for itself.
fn has_circle(locks: &[Lock]) -> bool {
    let behind = |worker: usize| {
        locks.iter().flat_map(move |lock| {
            let at = lock.waiters.iter().position(|waiter| waiter.worker == worker);
            at.into_iter().flat_map(move |at| lock.in_the_way(lock.waiters[at], at))
        })
    };
    (0..WORKERS).any(|start| {
        let (mut open, mut seen) = (behind(start).collect::<Vec<_>>(), [false; WORKERS]);
        while let Some(worker) = open.pop() {
            if worker == start {
                return true;
            }
            if !std::mem::replace(&mut seen[worker], true) {
                open.extend(behind(worker));
            }
        }
        false
    })
}

/// Counts the looks for deadlocks while a circle stands.
#[derive(Default)]
struct Watch {
    /// Those that each sidecar had finished when the circle was seen first.
    closed: Option<[u64; 2]>,
    /// Those that have begun since and found nothing, as far as was seen: of each sidecar all but one, which may have been
    /// under way.
    in_vain: u64,
}

impl Watch {
    /// Whether the circle stands is asked behind the counting.
    fn look(&mut self, sidecars: &[Sidecar; 2], stands: impl FnOnce() -> bool) {
        let finished = || sidecars.each_ref().map(|sidecar| sidecar.metric(CHECKS).unwrap());
        let looks = finished();
        match (stands(), self.closed) {
            (true, None) => self.closed = Some(finished()),
            (true, Some(closed)) => {
                let begun = looks.iter().zip(closed).map(|(looks, closed)| (looks - closed).saturating_sub(1));
                self.in_vain = begun.sum();
            }
            (false, _) => {}
        }
    }

    fn was_too_long(&self) -> bool {
        self.in_vain > LOOKS_IN_VAIN
    }
}

const CHECKS: &str = "caddy_lock_deadlock_checks_total";

struct Program {
    sidecars: [Sidecar; 2],
    workers: Vec<Locker>,
    observer: Locker,
    locks: Vec<Lock>,
    /// By lock and worker: under which token it is held.
    tokens: Vec<Vec<Option<String>>>,
    history: Vec<String>,
    /// Circles that stood for more looks than they may.
    late: usize,
}

impl Program {
    fn is_waiting(&self, worker: usize) -> bool {
        self.locks.iter().any(|lock| lock.waiters.iter().any(|waiter| waiter.worker == worker))
    }

    fn note(&mut self, text: String) {
        self.history.push(text);
    }

    /// Those to whom a lock was handed are told so.
    fn hand_over(&mut self, lock: usize) {
        for Claim { worker, .. } in self.locks[lock].hand_over() {
            let reply = self.workers[worker].reply();
            self.note(format!("worker {worker} was waiting for d{lock}: {reply}"));
            self.tokens[lock][worker] = Some(granted(&reply).unwrap_or_else(|| panic!("{:#?}", self.history)));
        }
    }

    /// Everybody's place is what it must be.
    fn check(&mut self) {
        for (n, lock) in self.locks.iter().enumerate() {
            let wanted = format!("holder_count {} waiter_count {} ", lock.holders.len(), lock.waiters.len());
            let seen = eventually(format!("d{n} has {wanted}"), SOON, || {
                let info = self.observer.ask(&format!("LOCK.INFO d{n}"));
                anyhow::ensure!(info.contains(&wanted), "{info}");
                Ok(())
            });
            assert!(seen.is_ok(), "{seen:?}, {:#?}", self.history);
        }
    }

    /// Returns whether that closed a circle.
    fn acquire(&mut self, worker: usize, lock: usize, is_shared: bool) -> bool {
        let claim = Claim { worker, is_shared };
        let mode = if is_shared { "SHARED" } else { "EXCLUSIVE" };
        self.note(format!("worker {worker} asks for d{lock} {mode}"));
        self.workers[worker].send(&format!("LOCK.ACQUIRE d{lock} {mode} {FOR_EVER}"));
        self.locks[lock].waiters.push(claim);
        self.hand_over(lock);
        if !self.is_waiting(worker) {
            return false;
        }
        if !has_circle(&self.locks) {
            // Nobody comes before who is in the queue.
            self.check();
            return false;
        }
        let (reply, watch) = self.answer_to_a_circle(worker, lock);
        self.note(format!("which closes a circle: {reply}, behind {} looks in vain", watch.in_vain));
        assert!(reply.starts_with("-DEADLOCK"), "{:#?}", self.history);
        self.late += usize::from(watch.was_too_long());
        self.locks[lock].waiters.retain(|waiter| *waiter != claim);
        assert!(!has_circle(&self.locks), "one acquisition closes circles through itself alone");
        self.hand_over(lock);
        self.check();
        true
    }

    /// The answer to the acquisition that closes a circle, which is watched until then.
    fn answer_to_a_circle(&mut self, worker: usize, lock: usize) -> (String, Watch) {
        let (mut watch, stands) = (Watch::default(), format!("waiter_count {} ", self.locks[lock].waiters.len()));
        let answered = eventually("a circle is broken", SOON, || {
            for _ in 0..MANY {
                watch.look(&self.sidecars, || self.observer.ask(&format!("LOCK.INFO d{lock}")).contains(&stands));
                if let Some(reply) = self.workers[worker].0.reply_within(MOMENT)? {
                    return Ok(String::from_utf8_lossy(&reply).into_owned());
                }
            }
            anyhow::bail!("no answer")
        });
        let Ok((reply, _)) = answered else { panic!("{answered:?}, {:#?}", self.history) };
        (reply, watch)
    }

    fn release(&mut self, worker: usize, lock: usize) {
        let Some(token) = self.tokens[lock][worker].take() else { return };
        let reply = self.workers[worker].ask(&format!("LOCK.RELEASE d{lock} {token}"));
        self.note(format!("worker {worker} lets go of d{lock}: {reply}"));
        assert_eq!(reply, "0", "{:#?}", self.history);
        self.locks[lock].holders.retain(|holder| holder.worker != worker);
        self.hand_over(lock);
    }
}

/// Makes a deadlock of its own and waits until it is broken: what was there before has been looked at, twice.
fn look(sidecars: &[Sidecar; 2]) -> Watch {
    let mut watch = Watch::default();
    let (mut a, mut b) = (Locker::new(&sidecars[0]), Locker::new(&sidecars[1]));
    a.acquire("a");
    b.acquire("b");
    a.send(&format!("LOCK.ACQUIRE b {FOR_EVER}"));
    b.send(&format!("LOCK.ACQUIRE a {FOR_EVER}"));
    let mut observer = Locker::new(&sidecars[0]);
    eventually("a deadlock is broken", SOON, || {
        for _ in 0..MANY {
            watch.look(sidecars, || observer.ask("LOCK.LIST [ab]") == "[[a EXCLUSIVE 1 1] [b EXCLUSIVE 1 1]]");
            // Which of the two was the later one is Redis's to say.
            let replies = [&mut a, &mut b].map(|locker| locker.0.reply_within(MOMENT));
            let is_told = |reply: &anyhow::Result<Option<Vec<u8>>>| {
                reply.as_ref().is_ok_and(|reply| reply.as_ref().is_some_and(|text| text.starts_with(b"-DEADLOCK")))
            };
            if replies.iter().any(is_told) {
                return Ok(());
            }
        }
        anyhow::bail!("{}", observer.ask("LOCK.GRAPH"))
    })
    .unwrap();
    drop((a, b));
    eventually("nothing is left of it", SOON, || {
        let left = observer.ask("LOCK.LIST [ab]");
        anyhow::ensure!(left == "[]", "{left}");
        Ok(())
    })
    .unwrap();
    watch
}

fn play(seed: u64) {
    let redis = RedisServer::start().unwrap();
    let start = || SidecarOptions::redis(redis.socket()).section("locks: {deadlockCheck: 100ms}").start().unwrap();
    let sidecars = [start(), start()];
    let mut random = Random::new(seed);
    let mut program = Program {
        workers: (0..WORKERS).map(|n| Locker::new(&sidecars[n % 2])).collect(),
        observer: Locker::new(&sidecars[0]),
        locks: vec![Lock::default(); LOCKS],
        tokens: vec![vec![None; WORKERS]; LOCKS],
        history: vec![format!("seed {seed}")],
        late: 0,
        sidecars,
    };
    let (mut circles, mut looks) = (0, 0);
    for step in 0..STEPS {
        let idle: Vec<usize> = (0..WORKERS).filter(|worker| !program.is_waiting(*worker)).collect();
        // Without a circle somebody can go on.
        let worker = idle[random.below(idle.len())];
        let lock = random.below(LOCKS);
        match (&program.tokens[lock][worker], random.below(3)) {
            (Some(_), 0) => program.release(worker, lock),
            (Some(_), _) => {}
            (None, _) => circles += usize::from(program.acquire(worker, lock, random.below(2) == 0)),
        }
        let waiting = program.locks.iter().map(|lock| lock.waiters.len()).sum::<usize>();
        if looks < LOOKS && waiting > 2 && step * LOOKS > looks * STEPS {
            looks += 1;
            for _ in 0..2 {
                program.late += usize::from(look(&program.sidecars).was_too_long());
            }
            program.check();
        }
    }
    let late = program.late;
    println!("seed {seed}: {circles} circles were broken, {late} late; {looks} states without one looked at");
    assert!(circles > 0 && looks > 0, "too little happened: {:#?}", program.history);
    assert!(late <= EXCUSED, "circles outlived the looks for them: {:#?}", program.history);
}

#[test]
fn random_programs_are_failed_where_they_wait_in_a_circle_and_nowhere_else() {
    match std::env::var("CADDY_SEED") {
        Ok(seed) => play(seed.parse().unwrap()),
        Err(_) => play(1),
    }
}
