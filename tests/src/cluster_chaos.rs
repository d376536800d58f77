//! A random run in front of a Redis Cluster: clients on two sidecars and one beside them, while slots move, primaries
//! change, nodes hang and connections die; and a history of what all of them saw.
//!
//! As in [`chaos`](crate::chaos), the seed decides what is asked and which faults come when. Nothing here loses what Redis
//! acknowledged: keys move with their slots, and a replica takes over only when it has everything.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use caddy_engine::{BootClock, Clock as _, Moment};
use caddy_remote::cluster::slot_of;
use caddy_resp::{Value, encode};
use parking_lot::Mutex;

use crate::{
    chaos::Run,
    e2e::eventually,
    history::{Event, History, Op, Promises, Through},
    random::Random,
    redis_cluster::RedisCluster,
    sidecar::Sidecar,
    world::{Client, SOON, Subject, Violation, show},
};

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
    /// Requests that nodes sent to one another.
    pub redirections: u64,
}

const SIDECARS: usize = 2;
const CLIENTS_PER_SIDECAR: usize = 3;
const PRIMARIES: usize = 3;
/// On all nodes; each has a slot of its own.
const KEYS: usize = 9;
const BOUND: Duration = Duration::from_millis(400);
const TIMEOUT: Duration = Duration::from_secs(1);
const SLACK: Duration = Duration::from_millis(1);

struct Stage<'a> {
    cluster: &'a RedisCluster,
    sidecars: &'a [Sidecar],
    keys: Vec<String>,
    history: Mutex<History>,
    over: AtomicBool,
    sessions: AtomicUsize,
    errors: AtomicUsize,
}

/// Makes one run and judges it.
pub fn play(subject: &Subject, run: Run) -> Result<Summary> {
    let cluster = RedisCluster::with_replicas(PRIMARIES)?;
    let workers = 1 + run.seed as u32 % 2;
    let start = || subject.cluster_options(&cluster).workers(workers).max_staleness(BOUND).timeout(TIMEOUT).start();
    let sidecars = (0..SIDECARS).map(|_| start()).collect::<Result<Vec<_>>>()?;
    let stage = Stage {
        cluster: &cluster,
        sidecars: &sidecars,
        keys: (0..KEYS).map(|n| cluster.key_of(n % PRIMARIES, n)).collect(),
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
        let (stage, writer) = (&stage, random());
        scope.spawn(move || stage.foreign_writer(writer));
        let faults = stage.make_faults(random(), BootClock.now() + run.duration);
        stage.over.store(true, Ordering::Relaxed);
        faults
    })?;
    let history = stage.history.into_inner();
    if let Err(broken) = history.check(Promises { max_staleness: BOUND, slack: SLACK }) {
        let mut message = format!("seed {} (CADDY_SEED)\n", run.seed);
        broken.iter().try_for_each(|broken| write!(message, "{broken}"))?;
        return Err(Violation(message).into());
    }
    for sidecar in &sidecars {
        eventually("the sidecar serves again by itself", SOON, || {
            let mut client = Client(sidecar.connect()?);
            for key in &stage.keys {
                let value = cluster.ask(&format!("GET {key}"))?;
                client.hold(key, &value)?;
            }
            Ok(())
        })?;
    }
    let sum = |name| sidecars.iter().map(|sidecar| sidecar.metric(name)).sum::<Result<u64>>();
    Ok(Summary {
        operations: history.events.len(),
        errors: stage.errors.into_inner(),
        faults,
        hits: sum("caddy_hits_total")?,
        redirections: sum("caddy_redirections_total")?,
    })
}

// === what clients do ===

/// One command of a pipeline.
#[derive(Clone, Debug)]
enum Command {
    Get(String),
    Getrange(String),
    /// Of two slots, mostly.
    Mget(String, String),
    /// A read that is always relayed.
    Lcs(String),
    Incr(String),
    /// A write on a connection of the session's own.
    Transaction(String),
}

impl Command {
    fn encode(&self, out: &mut Vec<u8>) -> usize {
        match self {
            Self::Get(key) => encode::command(out, ["GET", key]),
            Self::Getrange(key) => encode::command(out, ["GETRANGE", key, "0", "-1"]),
            Self::Mget(key, other) => encode::command(out, ["MGET", key, other]),
            Self::Lcs(key) => encode::command(out, ["LCS", key, key]),
            Self::Incr(key) => encode::command(out, ["INCR", key]),
            Self::Transaction(key) => {
                encode::command(out, ["MULTI"]);
                encode::command(out, ["INCR", key]);
                encode::command(out, ["EXEC"]);
                return 3;
            }
        }
        1
    }

    /// What the last of its replies shows; `None`: an error.
    fn observed(&self, reply: &[u8]) -> Option<Vec<(String, Op)>> {
        let (value, _) = Value::decode(reply).ok()?;
        Some(match self {
            Self::Get(key) | Self::Getrange(key) | Self::Lcs(key) => vec![(key.clone(), Op::Read(version(&value)?))],
            Self::Incr(key) => vec![(key.clone(), Op::Write(version(&value)?))],
            Self::Transaction(key) => vec![(key.clone(), Op::Write(version(value.as_elements()?.first()?)?))],
            Self::Mget(key, other) => {
                let [first, second] = value.as_elements()? else { return None };
                vec![(key.clone(), Op::Read(version(first)?)), (other.clone(), Op::Read(version(second)?))]
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

    fn draw(&self, random: &mut Random) -> Command {
        let mut key = || self.keys[random.below(KEYS)].clone();
        let (key, other) = (key(), key());
        match random.below(100) {
            0..64 => Command::Get(key),
            64..74 => Command::Mget(key, other),
            74..78 => Command::Getrange(key),
            78..82 => Command::Lcs(key),
            82..95 => Command::Incr(key),
            _ => Command::Transaction(key),
        }
    }

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
        let mut client = Client(self.sidecars[sidecar].connect()?);
        if random.below(2) == 0 {
            client.ask("HELLO 3")?;
        }
        for _ in 0..200 + random.below(400) {
            if self.is_over() {
                break;
            }
            let length = if random.below(5) == 0 { 2 + random.below(6) } else { 1 };
            let commands: Vec<Command> = (0..length).map(|_| self.draw(random)).collect();
            self.pipeline(&mut client, &commands, session, Through::Sidecar(sidecar))?;
            if random.below(4) == 0 {
                thread::sleep(Duration::from_micros(200 + random.below(3000) as u64));
            }
        }
        Ok(())
    }

    /// Sends commands in one write and records what each showed.
    fn pipeline(&self, client: &mut Client, commands: &[Command], session: usize, through: Through) -> Result<()> {
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
            self.record(observed, session, through, invoked, completed);
        }
        Ok(())
    }

    fn record(
        &self,
        observed: Vec<(String, Op)>,
        session: usize,
        through: Through,
        invoked: Moment,
        completed: Moment,
    ) {
        let events = observed.into_iter().map(|(key, op)| Event { session, through, key, invoked, completed, op });
        self.history.lock().events.extend(events);
    }

    /// Writes that no sidecar sees.
    fn foreign_writer(&self, mut random: Random) {
        while !self.is_over() {
            let session = self.sessions.fetch_add(1, Ordering::Relaxed);
            let key = &self.keys[random.below(KEYS)];
            let invoked = BootClock.now();
            let reply = self.cluster.ask(&format!("INCR {key}"));
            let completed = BootClock.now();
            match reply.map(|reply| reply.parse()) {
                Ok(Ok(version)) => {
                    self.record(vec![(key.clone(), Op::Write(version))], session, Through::Redis, invoked, completed);
                }
                _ => {
                    self.errors.fetch_add(1, Ordering::Relaxed);
                }
            }
            thread::sleep(Duration::from_micros(500 + random.below(6000) as u64));
        }
    }

    // === what happens to the cluster ===

    fn make_faults(&self, mut random: Random, until: Moment) -> Result<usize> {
        let mut faults = 0;
        while BootClock.now() < until {
            thread::sleep(Duration::from_millis(30 + random.below(150) as u64));
            self.fault(&mut random)?;
            faults += 1;
        }
        Ok(faults)
    }

    fn fault(&self, random: &mut Random) -> Result<()> {
        let node = random.below(self.cluster.nodes.len());
        let member = &self.cluster.nodes[node];
        let time = Duration::from_millis(20 + random.below(600) as u64);
        match random.below(20) {
            0..13 => self.move_slot(random),
            13 => {
                member.server.sigstop()?;
                thread::sleep(time);
                member.server.sigcont()
            }
            14 => {
                let sidecar = &self.sidecars[random.below(SIDECARS)];
                sidecar.suspend()?;
                thread::sleep(time);
                sidecar.resume()
            }
            15..17 => {
                member.ask("CLIENT KILL TYPE normal SKIPME yes")?;
                Ok(())
            }
            _ => self.fail_over(random.below(PRIMARIES)),
        }
    }

    /// A key's slot moves to another primary, in the steps and at the pace of somebody who reshards.
    fn move_slot(&self, random: &mut Random) -> Result<()> {
        let key = &self.keys[random.below(KEYS)];
        let slot = slot_of(key.as_bytes());
        let from = self.cluster.owner(key)?;
        let others: Vec<usize> = self.cluster.primaries_now()?.into_iter().filter(|index| *index != from).collect();
        let to = others[random.below(others.len())];
        let mut pause = || thread::sleep(Duration::from_millis(random.below(60) as u64));
        self.cluster.begin_move(slot, from, to)?;
        pause();
        while self.cluster.move_keys(slot, from, to)? > 0 {
            pause();
        }
        self.cluster.end_move(slot, to)?;
        // The next one begins when all know.
        self.cluster.settle()
    }

    /// A primary and its replica change places, in order.
    fn fail_over(&self, pair: usize) -> Result<()> {
        let pair = [pair, pair + PRIMARIES];
        let primaries = self.cluster.primaries_now()?;
        let Some(replica) = pair.into_iter().find(|index| !primaries.contains(index)) else { return Ok(()) };
        eventually("a replica takes over", SOON, || {
            let reply = self.cluster.nodes[replica].ask("CLUSTER FAILOVER")?;
            thread::sleep(Duration::from_millis(100));
            let done = self.cluster.primaries_now()?.contains(&replica);
            ensure!(done, "CLUSTER FAILOVER was answered {reply}");
            Ok(())
        })?;
        self.cluster.settle()
    }
}
