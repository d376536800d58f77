//! Conditional writes all at once: apps on two sidecars fill keys under tokens, write them under fences and without conditions,
//! and invalidate their groups, while leases, records and keys are evicted, and keys written by others, beside them, and now
//! and then everything is flushed; what they saw is judged by [`check`](crate::conditional_history::check). In front of one
//! server, or of a cluster.
//!
//! The seed decides what each asks; how that interleaves is the machine's. The number of steps is given, not their time.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use caddy_engine::{BootClock, Clock as _, Moment};
use caddy_remote::leases;
use caddy_resp::Value;
use parking_lot::Mutex;

use crate::{
    conditional_history::{Act, Event, Promises, check},
    e2e::eventually,
    random::Random,
    redis::RedisServer,
    redis_cluster::RedisCluster,
    sidecar::Sidecar,
    world::{Client, SOON, Subject, Violation, World, show},
};

const DOMAIN: &str = "default.local";
const LOCK: &str = "l";
const TAGS: usize = 2;
const CLIENTS_PER_SIDECAR: usize = 3;
const STEPS: usize = 150;
/// The first apps flush everything when they have come so far: in turn through a sidecar, and past them.
const FLUSHES: [usize; 4] = [30, 60, 90, 120];
/// What `CACHE.GET … WITHMETA` gives a token for.
const LEASE: Duration = Duration::from_secs(10);

/// How stale sidecars may be here: so long the first token of a keyspace is waited for.
const BOUND: Duration = Duration::from_millis(250);

/// Where it takes place.
#[expect(missing_debug_implementations, reason = "it has a function")]
pub struct Ground<'a> {
    /// Two in front of the same data.
    pub sidecars: [&'a Sidecar; 2],
    /// Few, so that everybody meets; in a cluster, one at each node.
    pub keys: Vec<String>,
    in_cluster: bool,
    foreign: &'a (dyn Fn(&[&str]) -> Result<String> + Sync),
}

impl Ground<'_> {
    /// Lets `play` have two sidecars in front of a server of this program.
    pub fn in_front_of(subject: &Subject, server: &Path, play: impl FnOnce(&Ground<'_>) -> Result<()>) -> Result<()> {
        let redis = RedisServer::start_program(server)?;
        let world = World::on(redis, subject, 2, |options| options.workers(2).max_staleness(BOUND))?;
        let foreign = |words: &[&str]| Ok(show(&world.redis.command(words)?));
        play(&Ground {
            sidecars: [&world.pods[0].sidecar, &world.pods[1].sidecar],
            keys: (0..3).map(|n| format!("k{n}")).collect(),
            in_cluster: false,
            foreign: &foreign,
        })
    }

    /// The same in front of a cluster of three.
    pub fn in_front_of_a_cluster(subject: &Subject, play: impl FnOnce(&Ground<'_>) -> Result<()>) -> Result<()> {
        let cluster = RedisCluster::start(3)?;
        let start = || subject.cluster_options(&cluster).max_staleness(BOUND).workers(2).start();
        let sidecars = [start()?, start()?];
        let keys: Vec<String> = (0..3).map(|n| cluster.key_of(n, n)).collect();
        for sidecar in &sidecars {
            let mut client = Client(sidecar.connect()?);
            for key in &keys {
                // So every node has its tracked connection: behind its beginning, what was invalidated lately is again.
                eventually(format!("{key} is read"), SOON, || {
                    let read = client.ask(&format!("GET {key}"))?;
                    ensure!(read == "(nil)", "{read}");
                    Ok(())
                })?;
            }
        }
        let foreign = |words: &[&str]| match words {
            ["FLUSHALL"] => {
                let told = cluster.primaries().iter().map(|node| node.ask("FLUSHALL")).collect::<Result<Vec<_>>>()?;
                Ok(told.into_iter().find(|told| told != "OK").unwrap_or_else(|| "OK".to_owned()))
            }
            words => cluster.request(words),
        };
        play(&Ground { sidecars: [&sidecars[0], &sidecars[1]], keys, in_cluster: true, foreign: &foreign })
    }

    /// A command that no sidecar sees; `FLUSHALL` is for all servers.
    pub fn foreign(&self, words: &[&str]) -> Result<String> {
        (self.foreign)(words)
    }

    /// The name of a key's lease.
    pub fn lease(&self, key: &str) -> Result<String> {
        Ok(String::from_utf8(leases::name(DOMAIN, key.as_bytes(), self.in_cluster))?)
    }

    /// The name of a key's fence record.
    pub fn record(&self, key: &str) -> Result<String> {
        Ok(self.lease(key)?.replacen(":lease:", ":fence:", 1))
    }

    /// Behind it that client's sidecar has heard of all that was done, at every node.
    pub fn barrier(&self, client: &mut Client) -> Result<()> {
        self.keys.iter().try_for_each(|key| {
            let reply = client.ask(&format!("EVAL 'return 7' 1 {{{key}}}:barrier"))?;
            ensure!(reply == "7", "a barrier is answered {reply}");
            Ok(())
        })
    }
}

/// What happened, in numbers.
#[derive(Debug, Default)]
struct Summary {
    /// Fills that were let in.
    fills: usize,
    /// Writes under fences that were.
    fenced: usize,
}

struct Stage<'a> {
    ground: &'a Ground<'a>,
    events: Mutex<Vec<Event>>,
    /// Lock tokens that somebody had or has.
    fences: Mutex<Vec<String>>,
    next: AtomicUsize,
    over: AtomicBool,
}

/// An app: a connection, and whether it holds the lock.
struct App<'a> {
    stage: &'a Stage<'a>,
    sidecar: usize,
    client: Client,
    random: Random,
    held: Option<String>,
    /// At which step it flushes everything, and whether past the sidecars.
    flush: Option<(usize, bool)>,
}

/// Makes one run and judges it; also whether enough happened in it to say something.
pub fn play(ground: &Ground<'_>, seed: u64) -> Result<()> {
    let stage = Stage {
        ground,
        events: Mutex::default(),
        fences: Mutex::default(),
        next: AtomicUsize::new(1),
        over: AtomicBool::new(false),
    };
    let mut seeds = Random::new(seed);
    let mut random = || Random::new(seeds.next_u64());
    let evictor = random();
    let apps = (0..2 * CLIENTS_PER_SIDECAR).map(|n| {
        let client = Client(ground.sidecars[n % 2].connect()?);
        let flush = FLUSHES.get(n).map(|step| (*step, n / 2 % 2 == 1));
        Ok(App { stage: &stage, sidecar: n % 2, client, random: random(), held: None, flush })
    });
    let apps: Vec<App<'_>> = apps.collect::<Result<_>>()?;
    thread::scope(|scope| {
        let stage = &stage;
        let evicting = scope.spawn(move || stage.evict(evictor));
        let apps: Vec<_> = apps.into_iter().map(|app| scope.spawn(move || app.run())).collect();
        let mut ended: Vec<_> = apps.into_iter().map(thread::ScopedJoinHandle::join).collect();
        stage.over.store(true, Ordering::Relaxed);
        ended.push(evicting.join());
        ended.into_iter().try_for_each(|ended| ended.unwrap_or_else(|_| Err(anyhow::anyhow!("a thread panicked"))))
    })?;
    let events = stage.events.into_inner();
    let broken = check(&events, Promises { max_staleness: BOUND, lease: LEASE });
    if !broken.is_empty() {
        let text: String = broken.iter().take(5).map(ToString::to_string).collect();
        return Err(Violation(format!(
            "seed {seed} (CADDY_SEED), {} of {} events:\n{text}",
            broken.len(),
            events.len()
        ))
        .into());
    }
    let mut summary = Summary::default();
    for event in &events {
        match &event.act {
            Act::Filled { .. } => summary.fills += 1,
            Act::Fenced { .. } => summary.fenced += 1,
            _ => {}
        }
    }
    println!("seed {seed}: {summary:?}");
    ensure!(summary.fills > 0 && summary.fenced > 0, "seed {seed}: {summary:?} says too little");
    Ok(())
}

impl Stage<'_> {
    fn next(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn record(&self, through: Option<usize>, key: &str, span: (Moment, Moment), act: Act) {
        self.events.lock().push(Event { through, key: key.to_owned(), span, act });
    }

    /// What Redis may do at any time, and clients without a sidecar.
    fn evict(&self, mut random: Random) -> Result<()> {
        while !self.over.load(Ordering::Relaxed) {
            let key = &self.ground.keys[random.below(self.ground.keys.len())];
            let (lease, record) = (self.ground.lease(key)?, self.ground.record(key)?);
            let tag = format!("caddy:{DOMAIN}:g:t:t{}", random.below(TAGS));
            let value = self.next() as u64;
            let (words, act) = match random.below(12) {
                0..3 => (vec!["DEL", &lease], Some(Act::LeaseGone)),
                3 => (vec!["DEL", &record], None),
                4 => (vec!["DEL", &tag], Some(Act::Ended(tag.clone()))),
                5..8 => (vec!["DEL", key], None),
                _ => (vec!["SET", key], Some(Act::Written(Some(value)))),
            };
            let text = value.to_string();
            let words = if words[0] == "SET" { [&words[..], &[&text]].concat() } else { words };
            let began = BootClock.now();
            let reply = self.ground.foreign(&words)?;
            let span = (began, BootClock.now());
            match act.filter(|act| *act != Act::LeaseGone || reply == "1") {
                Some(act @ Act::Ended(_)) => self.record(None, "", span, act),
                Some(act) => self.record(None, key, span, act),
                None => self.record(None, key, span, Act::Unclear),
            }
            thread::sleep(Duration::from_micros(500 + random.below(4000) as u64));
        }
        Ok(())
    }
}

impl App<'_> {
    fn run(mut self) -> Result<()> {
        (0..STEPS).try_for_each(|n| match self.flush {
            Some((at, is_foreign)) if at == n => self.flush(is_foreign),
            _ => self.step(),
        })
    }

    fn step(&mut self) -> Result<()> {
        let keys = &self.stage.ground.keys;
        let key = keys[self.random.below(keys.len())].clone();
        match self.random.below(20) {
            0..8 => self.fill(&key),
            8..11 => self.read(&key),
            11..14 => self.write(&key),
            14 => self.invalidate(),
            15..19 => self.fenced(&key),
            _ => self.lock(),
        }
    }

    fn flush(&mut self, is_foreign: bool) -> Result<()> {
        let began = BootClock.now();
        let reply = if is_foreign { self.stage.ground.foreign(&["FLUSHALL"])? } else { self.client.ask("FLUSHALL")? };
        let span = (began, BootClock.now());
        ensure!(reply == "OK", "FLUSHALL is answered {reply}");
        let through = Some(self.sidecar).filter(|_| !is_foreign);
        self.stage.record(through, "", span, Act::Flushed);
        Ok(())
    }

    /// Asks, and tells when it was sent and answered.
    fn ask(&mut self, command: &str) -> Result<(String, (Moment, Moment))> {
        let began = BootClock.now();
        let reply = self.client.ask(command)?;
        Ok((reply, (began, BootClock.now())))
    }

    fn record(&self, key: &str, span: (Moment, Moment), act: Act) {
        self.stage.record(Some(self.sidecar), key, span, act);
    }

    fn tags(&mut self) -> Vec<usize> {
        (0..TAGS).filter(|_| self.random.below(2) == 0).collect()
    }

    fn words(tags: &[usize]) -> String {
        match tags.len() {
            0 => String::new(),
            count => tags.iter().fold(format!(" TAGS {count}"), |words, tag| format!("{words} t{tag}")),
        }
    }

    /// Looks, computes for a while, and stores what it computed.
    fn fill(&mut self, key: &str) -> Result<()> {
        let tags = self.tags();
        let words = format!("CACHE.GET {key} WITHMETA{}", Self::words(&tags));
        let began = BootClock.now();
        let reply = self.client.0.request(&words.split(' ').collect::<Vec<_>>())?;
        let span = (began, BootClock.now());
        let (reply, _) = Value::decode(&reply)?;
        if reply.as_error().is_some() {
            self.record(key, span, Act::Unclear);
            return Ok(());
        }
        let field = |name: &str| reply.field(name.as_bytes()).and_then(|field| Some(field.as_bytes()?.to_vec()));
        if let Some(value) = field("value") {
            self.record(key, span, Act::Read(std::str::from_utf8(&value)?.parse().ok()));
            return Ok(());
        }
        let Some(text) = field("token") else {
            self.record(key, span, Act::NotGiven);
            return Ok(());
        };
        let token = self.stage.next();
        let groups = tags.iter().map(|tag| format!("caddy:{DOMAIN}:g:t:t{tag}")).collect();
        self.record(key, span, Act::Given { token, groups });
        thread::sleep(Duration::from_micros(self.random.below(12_000) as u64));
        let value = self.stage.next() as u64;
        let times = if self.random.below(8) == 0 { 2 } else { 1 };
        for _ in 0..times {
            let (reply, span) =
                self.ask(&format!("CACHE.SET {key} {value} TOKEN {}", String::from_utf8_lossy(&text)))?;
            let act = if reply == "OK" { Act::Filled { token, value } } else { Act::Unclear };
            ensure!(act != Act::Unclear || reply.starts_with("(error) STALE"), "a fill is answered {reply}");
            self.record(key, span, act);
        }
        Ok(())
    }

    fn read(&mut self, key: &str) -> Result<()> {
        let (reply, span) = self.ask(&format!("GET {key}"))?;
        ensure!(!reply.starts_with("(error)"), "GET is answered {reply}");
        self.record(key, span, Act::Read(reply.parse().ok()));
        Ok(())
    }

    fn write(&mut self, key: &str) -> Result<()> {
        let value = self.stage.next() as u64;
        let (command, stored) = match self.random.below(6) {
            0 | 1 => (format!("DEL {key}"), None),
            2 => (format!("CACHE.INVALIDATE KEY {key}"), None),
            3 => (format!("SET {key} {value}"), Some(value)),
            _ => (format!("CACHE.SET {key} {value}{}", Self::words(&self.tags())), Some(value)),
        };
        let (reply, span) = self.ask(&command)?;
        ensure!(!reply.starts_with("(error)"), "{command} is answered {reply}");
        self.record(key, span, Act::Written(stored));
        Ok(())
    }

    fn invalidate(&mut self) -> Result<()> {
        let tag = self.random.below(TAGS);
        let (reply, span) = self.ask(&format!("CACHE.INVALIDATE TAG t{tag}"))?;
        ensure!(!reply.starts_with("(error)"), "CACHE.INVALIDATE is answered {reply}");
        self.record("", span, Act::Ended(format!("caddy:{DOMAIN}:g:t:t{tag}")));
        Ok(())
    }

    /// Writes under the lock that it has, or that it, or another one, once had.
    fn fenced(&mut self, key: &str) -> Result<()> {
        let known = self.stage.fences.lock().clone();
        let recent = known.len().checked_sub(1 + self.random.below(3)).and_then(|at| known.get(at)).cloned();
        let Some(fence) = self.held.clone().filter(|_| self.random.below(2) == 0).or(recent) else { return Ok(()) };
        let value = self.stage.next() as u64;
        let command = format!("CACHE.SET {key} {value} FENCE {LOCK} {fence}");
        let (reply, span) = self.ask(&command)?;
        let act = if reply == "OK" { Act::Fenced { fence, value } } else { Act::Unclear };
        // Where what the key has seen is evicted again and again nobody can tell.
        let is_refused = reply.starts_with("(error) FENCED") || reply.ends_with("nothing was written: try again");
        ensure!(act != Act::Unclear || is_refused, "{command} is answered {reply}");
        self.record(key, span, act);
        Ok(())
    }

    /// Takes the lock if nobody has it, or lets go of it.
    fn lock(&mut self) -> Result<()> {
        if let Some(token) = self.held.take() {
            let reply = self.ask_of_lock(&format!("LOCK.RELEASE {LOCK} {token}"))?.0;
            // A flush has voided it, or it goes with what is lost.
            let is_void = ["(error) FENCED", "(error) NOTREADY"].iter().any(|code| reply.starts_with(code));
            ensure!(reply == "0" || is_void, "LOCK.RELEASE is answered {reply}");
            return Ok(());
        }
        let (reply, span) = self.ask_of_lock(&format!("LOCK.ACQUIRE {LOCK} LEASE 3600000 WAIT 0"))?;
        let token = reply.trim_start_matches('[').split(',').next().unwrap_or_default();
        if token.len() == 41 {
            self.held = Some(token.to_owned());
            self.stage.fences.lock().push(token.to_owned());
            self.record("", span, Act::Acquired(token.to_owned()));
        } else {
            let is_refused = ["(error) LOCKTIMEOUT", "(error) NOTREADY"].iter().any(|code| reply.starts_with(code));
            ensure!(is_refused, "LOCK.ACQUIRE is answered {reply}");
        }
        Ok(())
    }

    /// A command that tells first, and instead, of a lock that was lost before.
    fn ask_of_lock(&mut self, command: &str) -> Result<(String, (Moment, Moment))> {
        match self.ask(command)? {
            (told, _) if told.contains("this command was not executed") => self.ask(command),
            answer => Ok(answer),
        }
    }
}
