//! A random run: clients on several sidecars and one beside them, faults between them and Redis, and a history of what
//! all of them saw.
//!
//! The seed decides what each client asks and which faults come when; how they interleave is the machine's. A violation
//! is reported with the seed, the part of the history that shows it, and the file with all of it.

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
use caddy_resp::{Value, encode};
use parking_lot::Mutex;

use crate::{
    e2e::eventually,
    history::{Barrier, Event, History, Op, Promises, Through},
    proxy::{Class, Direction},
    random::Random,
    world::{Client, Pod, SOON, Subject, Violation, World, show},
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

const SIDECARS: usize = 2;
/// The same names in several databases: servers do not tell in which one a key was written.
const DATABASES: usize = 2;
const CLIENTS_PER_SIDECAR: usize = 3;
/// Few, so that everybody meets.
const KEYS: usize = 8;
/// Those of them that most writes go to; copies of the others live longer.
const BUSY: usize = 3;
/// Seldom written, and read by a client that reads nothing else: it is not held up by fills, and so sees every copy that
/// is served for too long.
const LONELY: usize = KEYS;
const BOUND: Duration = Duration::from_millis(300);
const TIMEOUT: Duration = Duration::from_millis(600);
/// The clock is one and the same for all, and the moments are taken outside the operations: only its own grain remains.
const SLACK: Duration = Duration::from_millis(1);

/// What the threads of a run share.
struct Stage<'a> {
    world: &'a World,
    history: Mutex<History>,
    over: AtomicBool,
    sessions: AtomicUsize,
    errors: AtomicUsize,
    faults: AtomicUsize,
}

/// Whose operation it is, and on which data.
#[derive(Clone, Copy, Debug)]
struct Who {
    session: usize,
    through: Through,
    database: usize,
}

/// Makes one run and judges it.
pub fn play(subject: &Subject, run: Run) -> Result<Summary> {
    let world = World::with(subject, SIDECARS, |options| {
        options
            .workers(1 + run.seed as u32 % 2)
            .max_staleness(BOUND)
            .timeout(TIMEOUT)
            .consistency("onUncertain: ServeStale")
    })?;
    let stage = Stage {
        world: &world,
        history: Mutex::default(),
        over: AtomicBool::new(false),
        sessions: AtomicUsize::new(0),
        errors: AtomicUsize::new(0),
        faults: AtomicUsize::new(0),
    };
    let mut seeds = Random::new(run.seed);
    let mut random = || Random::new(seeds.next_u64());
    thread::scope(|scope| {
        for client in 0..SIDECARS * CLIENTS_PER_SIDECAR {
            let (stage, random) = (&stage, random());
            scope.spawn(move || stage.client(client % SIDECARS, random));
        }
        for sidecar in 0..SIDECARS {
            let stage = &stage;
            scope.spawn(move || stage.watcher(sidecar));
        }
        let (stage, writer) = (&stage, random());
        scope.spawn(move || stage.foreign_writer(writer));
        let faults = stage.make_faults(random(), BootClock.now() + run.duration);
        stage.over.store(true, Ordering::Relaxed);
        faults
    })?;
    let history = stage.history.into_inner();
    if let Err(broken) = history.check(Promises { max_staleness: BOUND, slack: SLACK }) {
        let file = keep(&history, run.seed)?;
        let mut message = format!("seed {} (CADDY_SEED); the whole history: {file}\n", run.seed);
        broken.iter().try_for_each(|broken| write!(message, "{broken}"))?;
        return Err(Violation(message).into());
    }
    world.pods.iter().try_for_each(|pod| recovers(&world, pod))?;
    let hits: Result<u64> = world.pods.iter().map(|pod| pod.sidecar.metric("caddy_hits_total")).sum();
    Ok(Summary {
        operations: history.events.len(),
        errors: stage.errors.into_inner(),
        faults: stage.faults.into_inner(),
        hits: hits?,
        stale: history.events.iter().filter(|event| matches!(event.op, Op::StaleRead(_))).count(),
    })
}

/// Without faults a sidecar comes back by itself, with copies and with the present values.
fn recovers(world: &World, pod: &Pod) -> Result<()> {
    pod.wait_until_coherent()?;
    eventually("the sidecar serves again by itself", SOON, || {
        let mut client = pod.connect()?;
        for key in (0..=LONELY).map(name) {
            let value = world.foreign(&format!("GET {key}"))?;
            client.hold(&key, &value)?;
        }
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

/// The key of a write.
fn written(random: &mut Random) -> String {
    name(match random.below(100) {
        0 => LONELY,
        1..10 => random.below(KEYS),
        _ => random.below(BUSY),
    })
}

fn name(key: usize) -> String {
    format!("register:{key}")
}

// === what clients do ===

/// One command of a pipeline.
#[derive(Clone, Debug)]
enum Command {
    /// A read that may be answered from a copy.
    Get(String),
    /// Two of them at one moment.
    Mget(String, String),
    /// The same state as another command reads it.
    Getrange(String),
    /// A read that is always relayed: what the key has in common with itself.
    Lcs(String),
    /// A write.
    Incr(String),
    /// A write that nobody can see in the command.
    Script(String),
    /// A read and a write on a connection of the session's own.
    Transaction(String, String),
    /// Lets the sidecar catch up.
    Barrier,
}

impl Command {
    fn draw(random: &mut Random) -> Self {
        let (key, other) = (name(random.below(KEYS)), name(random.below(KEYS)));
        let written = written(random);
        match random.below(100) {
            0..60 => Self::Get(key),
            60..68 => Self::Mget(key, other),
            68..71 => Self::Getrange(key),
            71..74 => Self::Lcs(key),
            74..86 => Self::Incr(written),
            86..90 => Self::Script(written),
            90..95 => Self::Transaction(key, written),
            _ => Self::Barrier,
        }
    }

    /// Appends the request; tells how many replies it has.
    fn encode(&self, out: &mut Vec<u8>) -> usize {
        match self {
            Self::Get(key) => encode::command(out, ["GET", key]),
            Self::Mget(key, other) => encode::command(out, ["MGET", key, other]),
            Self::Getrange(key) => encode::command(out, ["GETRANGE", key, "0", "-1"]),
            Self::Lcs(key) => encode::command(out, ["LCS", key, key]),
            Self::Incr(key) => encode::command(out, ["INCR", key]),
            Self::Script(key) => encode::command(out, ["EVAL", "return redis.call('INCR', ARGV[1])", "0", key]),
            Self::Barrier => encode::command(out, ["EVAL", "return 1", "0"]),
            Self::Transaction(read, written) => {
                encode::command(out, ["MULTI"]);
                encode::command(out, ["GET", read]);
                encode::command(out, ["INCR", written]);
                encode::command(out, ["EXEC"]);
                return 4;
            }
        }
        1
    }

    /// What the last of its replies shows; `None`: an error.
    fn observed(&self, reply: &[u8]) -> Option<Vec<(String, Op)>> {
        let (first, length) = Value::decode(reply).ok()?;
        if let Value::Attribute(_) = first {
            let version = version(&Value::decode(&reply[length..]).ok()?.0)?;
            let (Self::Get(key) | Self::Getrange(key)) = self else { return None };
            return Some(vec![(key.clone(), Op::StaleRead(version))]);
        }
        let elements = || first.as_elements().filter(|elements| elements.len() == 2);
        Some(match self {
            Self::Get(key) | Self::Getrange(key) | Self::Lcs(key) => vec![(key.clone(), Op::Read(version(&first)?))],
            Self::Incr(key) | Self::Script(key) => vec![(key.clone(), Op::Write(version(&first)?))],
            Self::Mget(key, other) => {
                let values = elements()?;
                vec![(key.clone(), Op::Read(version(&values[0])?)), (other.clone(), Op::Read(version(&values[1])?))]
            }
            Self::Transaction(read, written) => {
                let values = elements()?;
                vec![(read.clone(), Op::Read(version(&values[0])?)), (written.clone(), Op::Write(version(&values[1])?))]
            }
            Self::Barrier => {
                version(&first)?;
                Vec::new()
            }
        })
    }
}

/// A register's value: absent is 0, also as the empty string that GETRANGE and LCS have for it.
fn version(value: &Value<'_>) -> Option<u64> {
    match value {
        Value::Null | Value::Bulk(b"") => Some(0),
        other => u64::try_from(other.as_integer()?).ok(),
    }
}

impl Stage<'_> {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// One client: sessions one after the other, each until it breaks or has had enough.
    fn client(&self, sidecar: usize, mut random: Random) {
        while !self.is_over() {
            let session = self.sessions.fetch_add(1, Ordering::Relaxed);
            if self.session(sidecar, session, &mut random).is_err() {
                self.errors.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(5));
            }
        }
    }

    fn session(&self, sidecar: usize, session: usize, random: &mut Random) -> Result<()> {
        let mut client = self.world.pods[sidecar].connect()?;
        if random.below(2) == 0 {
            client.ask("HELLO 3")?;
        }
        let database = random.below(DATABASES);
        ensure!(client.ask(&format!("SELECT {database}"))? == "OK", "SELECT");
        let who = Who { session, through: Through::Sidecar(sidecar), database };
        for _ in 0..200 + random.below(400) {
            if self.is_over() {
                break;
            }
            let commands: Vec<Command> = match random.below(5) {
                0 => (0..2 + random.below(4)).map(|_| Command::draw(random)).collect(),
                _ => vec![Command::draw(random)],
            };
            self.pipeline(&mut client, &commands, who)?;
            if random.below(4) == 0 {
                thread::sleep(Duration::from_micros(200 + random.below(3000) as u64));
            }
        }
        Ok(())
    }

    /// Reads the lonely key all the time.
    fn watcher(&self, sidecar: usize) {
        while !self.is_over() {
            let session = self.sessions.fetch_add(1, Ordering::Relaxed);
            let who = Who { session, through: Through::Sidecar(sidecar), database: 0 };
            let Ok(mut client) = self.world.pods[sidecar].connect() else { continue };
            while !self.is_over() {
                if self.pipeline(&mut client, &[Command::Get(name(LONELY))], who).is_err() {
                    break;
                }
                thread::sleep(Duration::from_millis(2));
            }
        }
    }

    /// Sends commands in one write and records what each showed.
    fn pipeline(&self, client: &mut Client, commands: &[Command], who: Who) -> Result<()> {
        let Who { session, through, database } = who;
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
                self.errors.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            let mut history = self.history.lock();
            if matches!(command, Command::Barrier) {
                history.barriers.push(Barrier { through, invoked, completed });
            }
            let events = observed.into_iter().map(|(key, op)| {
                let key = format!("{key} in database {database}");
                Event { session, through, key, invoked, completed, op }
            });
            history.events.extend(events);
        }
        Ok(())
    }

    /// Writes that no sidecar sees.
    fn foreign_writer(&self, mut random: Random) {
        while !self.is_over() {
            let session = self.sessions.fetch_add(1, Ordering::Relaxed);
            let Ok(wire) = self.world.redis.connect() else { continue };
            let mut client = Client(wire);
            let database = random.below(DATABASES);
            if client.ask(&format!("SELECT {database}")).is_err() {
                continue;
            }
            let who = Who { session, through: Through::Redis, database };
            // Now and then in the other database.
            for _ in 0..50 {
                let command = Command::Incr(written(&mut random));
                if self.is_over() || self.pipeline(&mut client, &[command], who).is_err() {
                    break;
                }
                thread::sleep(Duration::from_micros(500 + random.below(6000) as u64));
            }
        }
    }

    // === what goes wrong ===

    /// One fault after the other, each healed before the next.
    fn make_faults(&self, mut random: Random, until: Moment) -> Result<()> {
        while BootClock.now() < until {
            thread::sleep(Duration::from_millis(50 + random.below(250) as u64));
            self.fault(&mut random)?;
            self.faults.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn fault(&self, random: &mut Random) -> Result<()> {
        let pod = &self.world.pods[random.below(SIDECARS)];
        let class = if random.below(3) == 0 { Class::Relay } else { Class::Tracked };
        let direction = if random.below(2) == 0 { Direction::ToServer } else { Direction::ToClient };
        let time = Duration::from_millis(20 + random.below(800) as u64);
        match random.below(10) {
            0 | 1 => pod.proxy.delay(class, direction, Duration::from_millis(1 + random.below(60) as u64)),
            2 | 3 => pod.proxy.stall(class, direction),
            4 => pod.proxy.cut(class),
            9 => {
                // Slow, then not at all.
                pod.proxy.delay(class, Direction::ToClient, Duration::from_millis(100 + random.below(150) as u64));
                thread::sleep(time);
                pod.proxy.stall(class, Direction::ToClient);
            }
            5 => {
                pod.proxy.refuse(class);
                pod.proxy.cut(class);
            }
            6 => {
                self.world.redis.sigstop()?;
                thread::sleep(time);
                return self.world.redis.sigcont();
            }
            7 => {
                pod.sidecar.suspend()?;
                thread::sleep(time);
                return pod.sidecar.resume();
            }
            _ => {
                self.world.foreign("CLIENT KILL TYPE normal SKIPME yes")?;
                return Ok(());
            }
        }
        thread::sleep(time);
        pod.proxy.heal();
        Ok(())
    }
}
