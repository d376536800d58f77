//! A random run: clients on several sidecars and some beside them, faults between them and Redis, and a history of what
//! all of them saw.
//!
//! Where it takes place is its [`Ground`]: [`Alone`], one server behind proxies that delay, stall and cut;
//! [`Overflowing`], one that gives up clients which do not read; [`Watched`], servers behind Sentinels that fail over; [`Sharded`], a cluster whose slots and roles change hands. The seed decides
//! what each client asks and which faults come when; how they interleave is the machine's. No fault here loses what Redis
//! acknowledged: what C3 and C4 promise is then promised without exception. A violation is reported with the seed, the
//! part of the history that shows it, and the file with all of it.

mod alone;
mod commands;
mod overflowing;
mod sharded;
mod watched;

use std::{
    env,
    fmt::Write as _,
    fs,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use caddy_engine::{BootClock, Clock as _, Moment};
use parking_lot::Mutex;

use self::commands::Command;
pub use self::{alone::Alone, overflowing::Overflowing, sharded::Sharded, watched::Watched};
use crate::{
    e2e::eventually,
    history::{Barrier, Event, GroupEvent, History, Op, Promises, Through},
    random::Random,
    sidecar::Sidecar,
    world::{Client, SOON, Violation, show},
};

/// How a run is made.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// What decides about everything that is random.
    pub seed: u64,
    /// How long clients and faults go on.
    pub duration: Duration,
}

/// What happened in a run, in numbers.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    /// Operations that were answered.
    pub operations: usize,
    /// Requests that got an error.
    pub errors: usize,
    /// Faults.
    pub faults: usize,
    /// Reads that the sidecars answered from their own copies.
    pub hits: u64,
    /// Replies marked stale.
    pub stale: usize,
}

/// What there is to read and write.
#[derive(Clone, Debug)]
pub struct Terrain {
    /// Few, so that everybody meets. Most writes go to the first [`BUSY`] of them; copies of the others live longer. The
    /// last one is seldom written, and read by a client that reads nothing else: it is not held up by fills, and so sees
    /// every copy that is served for too long.
    pub keys: Vec<String>,
    /// The same names in several databases: servers do not tell in which one a key was written.
    pub databases: usize,
    /// Whether one command may name keys of several slots, and a script keys that it does not declare.
    pub is_one_server: bool,
    /// Whether there may be two primaries for a moment. What one of them has proved says nothing of writes at the other, so
    /// that a barrier promises nothing.
    pub may_split: bool,
    /// `consistency.maxStaleness` of the sidecars.
    pub max_staleness: Duration,
}

/// Where a run takes place.
pub trait Ground: Sync {
    /// What there is to read and write.
    fn terrain(&self) -> &Terrain;

    /// The sidecars.
    fn sidecars(&self) -> Vec<&Sidecar>;

    /// A command that no sidecar sees, as a good client of these servers sends it; an error if it is not answered.
    fn foreign(&self, database: usize, command: &str) -> Result<String>;

    /// Something goes wrong, and is healed.
    fn fault(&self, random: &mut Random) -> Result<()>;

    /// Whether what this ground is there for has happened.
    fn was_used(&self) -> Result<()> {
        Ok(())
    }
}

/// Sidecars of every ground; each has two workers, or now and then one.
const SIDECARS: usize = 3;
const CLIENTS_PER_SIDECAR: usize = 2;
const FOREIGN_WRITERS: usize = 2;
const BUSY: usize = 3;
/// The clock is one and the same for all, and the moments are taken outside the operations: only its own grain remains.
const SLACK: Duration = Duration::from_millis(1);

fn workers(seed: u64) -> u32 {
    if seed.is_multiple_of(4) { 1 } else { 2 }
}

/// Runs with new seeds until `CADDY_SOAK_SECONDS` are over, or one; `CADDY_SEED` is the first seed.
pub fn runs<G: Ground>(duration: Duration, prepare: impl Fn(u64) -> Result<G>) -> Result<()> {
    let clock = BootClock;
    let soak = Duration::from_secs(number("CADDY_SOAK_SECONDS")?.unwrap_or(0));
    let mut seed = number("CADDY_SEED")?.unwrap_or_else(|| clock.now().as_nanos() % 1_000_000);
    let started = clock.now();
    loop {
        let told = || format!("seed {seed} (CADDY_SEED)");
        let ground = prepare(seed).with_context(told)?;
        let summary = play(&ground, Run { seed, duration }).with_context(told)?;
        println!("seed {seed}: {summary:?}");
        ensure!(summary.operations > 500, "{}: too little happened to mean anything: {summary:?}", told());
        ensure!(summary.hits > 100, "{}: too few copies were served to mean anything: {summary:?}", told());
        ground.was_used().with_context(told)?;
        seed += 1;
        if clock.now().since(started) >= soak {
            return Ok(());
        }
    }
}

fn number(variable: &str) -> Result<Option<u64>> {
    let text = env::var(variable).ok();
    text.map(|text| text.parse().with_context(|| format!("{variable}={text} is not a number"))).transpose()
}

/// Makes one run and judges it.
pub fn play(ground: &dyn Ground, run: Run) -> Result<Summary> {
    let stage = Stage {
        ground,
        terrain: ground.terrain(),
        sidecars: ground.sidecars(),
        history: Mutex::default(),
        over: AtomicBool::new(false),
        sessions: AtomicUsize::new(0),
        errors: AtomicUsize::new(0),
    };
    let mut seeds = Random::new(run.seed);
    let mut random = || Random::new(seeds.next_u64());
    let faults = thread::scope(|scope| {
        for client in 0..SIDECARS * CLIENTS_PER_SIDECAR {
            let (stage, random) = (&stage, random());
            scope.spawn(move || stage.client(client % SIDECARS, random));
        }
        for sidecar in 0..SIDECARS {
            let stage = &stage;
            scope.spawn(move || stage.watcher(sidecar));
        }
        for _ in 0..FOREIGN_WRITERS {
            let (stage, writer) = (&stage, random());
            scope.spawn(move || stage.foreign_writer(writer));
        }
        let faults = stage.make_faults(random(), BootClock.now() + run.duration);
        stage.over.store(true, Ordering::Relaxed);
        faults
    })?;
    let history = stage.history.into_inner();
    let promises = Promises { max_staleness: stage.terrain.max_staleness, slack: SLACK };
    if let Err(broken) = history.check(promises) {
        let file = keep(&history, run.seed)?;
        let mut message = format!("seed {} (CADDY_SEED); the whole history: {file}\n", run.seed);
        broken.iter().try_for_each(|broken| write!(message, "{broken}"))?;
        return Err(Violation(message).into());
    }
    stage.sidecars.iter().try_for_each(|sidecar| recovers(ground, sidecar))?;
    let hits: Result<u64> = stage.sidecars.iter().map(|sidecar| sidecar.metric("caddy_hits_total")).sum();
    Ok(Summary {
        operations: history.events.len(),
        errors: stage.errors.into_inner(),
        faults,
        hits: hits?,
        stale: history.events.iter().filter(|event| matches!(event.op, Op::StaleRead(_))).count(),
    })
}

/// Without faults a sidecar comes back by itself, with copies and with the present values.
fn recovers(ground: &dyn Ground, sidecar: &Sidecar) -> Result<()> {
    eventually("the sidecar serves again by itself", SOON, || {
        let mut client = Client(sidecar.connect()?);
        for key in &ground.terrain().keys {
            let value = ground.foreign(0, &format!("GET {key}"))?;
            client.hold(key, &value)?;
        }
        // Behind the reads: where nobody reads, nothing asks a node again whether it is what it was.
        ensure!(sidecar.metric("caddy_coherent")? == 1, "caddy_coherent is 0: {}", sidecar.log());
        Ok(())
    })?;
    Ok(())
}

/// Writes the history where the tests' output can be found.
fn keep(history: &History, seed: u64) -> Result<String> {
    let file = env::temp_dir().join(format!("caddy-history-{seed}.txt"));
    let mut lines: Vec<(Moment, String)> =
        history.events.iter().map(|event| (event.invoked, format!("{} {event}", event.key))).collect();
    lines.extend(history.barriers.iter().map(|barrier| (barrier.invoked, barrier.to_string())));
    lines.sort();
    let mut text = String::new();
    lines.iter().try_for_each(|(_, line)| writeln!(text, "{line}"))?;
    fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    Ok(file.display().to_string())
}

/// What the threads of a run share.
struct Stage<'a> {
    ground: &'a dyn Ground,
    terrain: &'a Terrain,
    sidecars: Vec<&'a Sidecar>,
    history: Mutex<History>,
    over: AtomicBool,
    sessions: AtomicUsize,
    errors: AtomicUsize,
}

/// Whose operation it is, and on which data.
#[derive(Clone, Copy, Debug)]
struct Who {
    session: usize,
    through: Through,
    database: usize,
}

impl Stage<'_> {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    fn new_session(&self) -> usize {
        self.sessions.fetch_add(1, Ordering::Relaxed)
    }

    fn failed(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    // === what clients do ===

    /// One client: sessions one after the other, each until it breaks or has had enough.
    fn client(&self, sidecar: usize, mut random: Random) {
        while !self.is_over() {
            if self.session(sidecar, &mut random).is_err() {
                self.failed();
                thread::sleep(Duration::from_millis(5));
            }
        }
    }

    fn session(&self, sidecar: usize, random: &mut Random) -> Result<()> {
        let mut client = Client(self.sidecars[sidecar].connect()?);
        if random.below(2) == 0 {
            client.ask("HELLO 3")?;
        }
        let database = random.below(self.terrain.databases);
        ensure!(client.ask(&format!("SELECT {database}"))? == "OK", "SELECT");
        let who = Who { session: self.new_session(), through: Through::Sidecar(sidecar), database };
        for _ in 0..200 + random.below(400) {
            if self.is_over() {
                break;
            }
            let length = if random.below(5) == 0 { 2 + random.below(5) } else { 1 };
            let commands: Vec<Command> = (0..length).map(|_| Command::draw(self.terrain, random)).collect();
            self.pipeline(&mut client, &commands, who)?;
            if random.below(4) == 0 {
                thread::sleep(Duration::from_micros(200 + random.below(3000) as u64));
            }
        }
        Ok(())
    }

    /// Reads the lonely key all the time.
    fn watcher(&self, sidecar: usize) {
        let Some(lonely) = self.terrain.keys.last() else { return };
        while !self.is_over() {
            let who = Who { session: self.new_session(), through: Through::Sidecar(sidecar), database: 0 };
            let Ok(wire) = self.sidecars[sidecar].connect() else { continue };
            let mut client = Client(wire);
            while !self.is_over() && self.pipeline(&mut client, &[Command::Get(lonely.clone())], who).is_ok() {
                thread::sleep(Duration::from_millis(2));
            }
        }
    }

    /// Writes that no sidecar sees, now and then in another database.
    fn foreign_writer(&self, mut random: Random) {
        while !self.is_over() {
            let database = random.below(self.terrain.databases);
            let who = Who { session: self.new_session(), through: Through::Redis, database };
            for _ in 0..50 {
                if self.is_over() {
                    return;
                }
                let key = commands::written(self.terrain, &mut random);
                let invoked = BootClock.now();
                let reply = self.ground.foreign(database, &format!("INCR {key}"));
                let completed = BootClock.now();
                match reply.ok().and_then(|reply| reply.parse().ok()) {
                    Some(version) => self.record(vec![(key, Op::Write(version))], who, invoked, completed),
                    None => self.failed(),
                }
                thread::sleep(Duration::from_micros(500 + random.below(8000) as u64));
            }
        }
    }

    /// Sends commands in one write and records what each showed.
    fn pipeline(&self, client: &mut Client, commands: &[Command], who: Who) -> Result<()> {
        let mut request = Vec::new();
        let replies: Vec<usize> = commands.iter().map(|command| command.encode(&mut request)).collect();
        let invoked = BootClock.now();
        client.0.send_raw(&request)?;
        for (command, replies) in commands.iter().zip(replies) {
            let mut reply = client.0.reply()?;
            for _ in 1..replies {
                reply = client.0.reply()?;
            }
            let completed = BootClock.now();
            let Some(observed) = command.observed(&reply) else {
                ensure!(reply.starts_with(b"-"), "{command:?} is answered {}", show(&reply));
                self.failed();
                continue;
            };
            let Who { session, through, database } = who;
            if let Some(op) = command.observed_of_groups(&reply, database) {
                self.history.lock().groups.push(GroupEvent { session, through, invoked, completed, op });
            }
            if matches!(command, Command::Barrier) {
                self.history.lock().barriers.push(Barrier { through: who.through, invoked, completed });
            }
            self.record(observed, who, invoked, completed);
        }
        Ok(())
    }

    fn record(&self, observed: Vec<(String, Op)>, who: Who, invoked: Moment, completed: Moment) {
        let Who { session, through, database } = who;
        let events = observed.into_iter().map(|(key, op)| {
            let key = format!("{key} in database {database}");
            Event { session, through, key, invoked, completed, op }
        });
        self.history.lock().events.extend(events);
    }

    // === what goes wrong ===

    /// One fault after the other, each healed before the next.
    fn make_faults(&self, mut random: Random, until: Moment) -> Result<usize> {
        let mut faults = 0;
        while BootClock.now() < until {
            thread::sleep(Duration::from_millis(50 + random.below(200) as u64));
            self.ground.fault(&mut random)?;
            faults += 1;
        }
        Ok(faults)
    }
}
