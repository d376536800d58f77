//! Conditional writes against a naive reference: random fills under tokens, writes under fences, deletions, invalidations,
//! evictions and flushes over two sidecars, by apps and by clients without a sidecar.
//!
//! The reference knows what is in Redis, who has which lease and lock, and what each token remembers; so it knows every
//! answer, exactly. One step at a time: what two that overlap may come to is shown elsewhere. `CADDY_SEED` repeats a run.

mod reference;

use anyhow::{Context as _, Result, ensure};
use caddy_resp::Value;
use caddy_tests::{
    conditional_run::Ground,
    random::Random,
    redis,
    world::{Client, Subject},
};

use self::reference::{Entry, Groups, Reference, Token};

const KEYS: usize = 3;
const TAGS: usize = 2;
const STEPS: usize = 500;
const LOCK: &str = "l";
/// Nothing runs out by itself, however slow the machine is: an hour, in milliseconds.
const FOR_EVER: &str = "3600000";

struct Run<'a> {
    ground: &'a Ground<'a>,
    random: Random,
    clients: Vec<Client>,
    reference: Reference,
    tokens: Vec<Token>,
    fences: Vec<(String, u64)>,
    /// Whose connection has the lock.
    locker: usize,
    history: Vec<String>,
    /// How many fills and fenced writes were let in, and refused.
    counts: [usize; 4],
}

impl Run<'_> {
    fn ask(&mut self, at: usize, command: &str) -> Result<String> {
        let reply = self.clients[at].ask(command)?;
        self.history.push(format!("sidecar {at}: {command} -> {reply}"));
        Ok(reply)
    }

    fn ask_foreign(&mut self, words: &[&str]) -> Result<String> {
        let reply = self.ground.foreign(words)?;
        self.history.push(format!("Redis: {} -> {reply}", words.join(" ")));
        Ok(reply)
    }

    /// Behind it a sidecar has heard of all that was done.
    fn barrier(&mut self, at: usize) -> Result<()> {
        self.ground.barrier(&mut self.clients[at])
    }

    fn key(&self, key: usize) -> &str {
        &self.ground.keys[key]
    }

    fn some_tags(&mut self) -> Vec<usize> {
        (0..TAGS).filter(|_| self.random.below(2) == 0).collect()
    }

    fn value(&mut self) -> String {
        format!("v{}", self.reference.next())
    }

    fn words(tags: &[usize]) -> String {
        match tags.len() {
            0 => String::new(),
            count => tags.iter().fold(format!(" TAGS {count}"), |words, tag| format!("{words} t{tag}")),
        }
    }

    /// Asks with metadata: a value, a token, or neither.
    fn look(&mut self, at: usize, key: usize) -> Result<()> {
        let tags = self.some_tags();
        self.barrier(at)?;
        let command = format!("CACHE.GET {} WITHMETA LEASE {FOR_EVER}{}", self.key(key), Self::words(&tags));
        let reply = self.clients[at].0.request(&command.split(' ').collect::<Vec<_>>())?;
        let (reply, _) = Value::decode(&reply)?;
        let field = |name: &str| -> Result<Option<String>> {
            let field = reply.field(name.as_bytes()).with_context(|| format!("{command}: {reply:?}"))?;
            Ok(field.as_bytes().map(|text| String::from_utf8_lossy(text).into_owned()))
        };
        let (value, token, tier) = (field("value")?, field("token")?, field("tier")?);
        self.history.push(format!("sidecar {at}: {command} -> {value:?} {token:?} {tier:?}"));
        ensure!(value.as_deref() == self.reference.shown(key), "k{key} is {:?}", self.reference.entries[key]);
        if value.is_some() {
            // A copy asks nobody for groups, L3 does.
            if tier.as_deref() == Some("L3") {
                self.reference.bind(&tags);
            }
            return Ok(());
        }
        let groups = self.reference.bind(&tags);
        let is_free = self.reference.leases[key].is_none();
        ensure!(token.is_some() == is_free, "the lease of k{key} is {:?}", self.reference.leases[key]);
        if let Some(text) = token {
            let lease = self.reference.next();
            self.reference.leases[key] = Some(lease);
            let entry = self.reference.entries[key].clone();
            self.tokens.push(Token { text, key, lease, entry, groups });
        }
        Ok(())
    }

    fn fill(&mut self, at: usize) -> Result<()> {
        // Late ones and those of a moment ago.
        let back = [1, 1, 1, 2, 5][self.random.below(5)];
        let Some(token) = self.tokens.len().checked_sub(back).and_then(|index| self.tokens.get(index)).cloned() else {
            return Ok(());
        };
        let value = self.value();
        self.barrier(at)?;
        let reply = self.ask(at, &format!("CACHE.SET {} {value} TOKEN {}", self.key(token.key), token.text))?;
        let is_admitted = self.reference.admits(&token);
        self.counts[usize::from(!is_admitted)] += 1;
        ensure!(if is_admitted { reply == "OK" } else { reply.starts_with("(error) STALE") }, "of {token:?}");
        if is_admitted {
            self.reference.write(token.key, Some(Entry { value, groups: token.groups }));
        }
        Ok(())
    }

    /// A command that tells first, and instead, of a lock that was lost before.
    fn ask_of_lock(&mut self, at: usize, command: &str) -> Result<String> {
        match self.ask(at, command)? {
            told if told.contains("this command was not executed") => self.ask(at, command),
            reply => Ok(reply),
        }
    }

    /// Takes the lock, or lets go of it.
    fn lock(&mut self, at: usize) -> Result<()> {
        if let Some(token) = self.reference.holder.take() {
            let reply = self.ask_of_lock(self.locker, &format!("LOCK.RELEASE {LOCK} {token}"))?;
            ensure!(reply == "0", "LOCK.RELEASE");
            return Ok(());
        }
        let reply = self.ask_of_lock(at, &format!("LOCK.ACQUIRE {LOCK} LEASE {FOR_EVER} WAIT 0"))?;
        let token = reply.trim_start_matches('[').split(',').next().unwrap_or_default().to_owned();
        ensure!(token.len() == 41, "LOCK.ACQUIRE");
        self.fences.push((token.clone(), self.reference.epoch));
        self.reference.holder = Some(token);
        self.locker = at;
        Ok(())
    }

    fn fenced(&mut self, at: usize, key: usize) -> Result<()> {
        let back = [1, 1, 1, 2, 3][self.random.below(5)];
        let Some(fence) = self.fences.len().checked_sub(back).and_then(|index| self.fences.get(index)).cloned() else {
            return Ok(());
        };
        let (tags, value) = (self.some_tags(), self.value());
        self.barrier(at)?;
        let command = format!("CACHE.SET {} {value}{} FENCE {LOCK} {}", self.key(key), Self::words(&tags), fence.0);
        let reply = self.ask(at, &command)?;
        let groups = self.reference.bind(&tags);
        let is_admitted = self.reference.admits_holder(key, &fence);
        self.counts[2 + usize::from(!is_admitted)] += 1;
        ensure!(if is_admitted { reply == "OK" } else { reply.starts_with("(error) FENCED") }, "of {fence:?}");
        if is_admitted {
            self.reference.write(key, Some(Entry { value, groups }));
            self.reference.records[key] = Some(fence.0);
        }
        Ok(())
    }

    /// A write through a sidecar that asks for no permission.
    fn write(&mut self, at: usize, key: usize) -> Result<()> {
        let (value, name) = (self.value(), self.key(key).to_owned());
        let (command, entry) = match self.random.below(5) {
            0 => (format!("DEL {name}"), None),
            1 => (format!("CACHE.INVALIDATE KEY {name}"), None),
            2 => (format!("SET {name} {value}"), Some(Entry { value, groups: Groups::new() })),
            _ => {
                let tags = self.some_tags();
                // It is bound to what this sidecar knows.
                self.barrier(at)?;
                let command = format!("CACHE.SET {name} {value}{}", Self::words(&tags));
                let groups = self.reference.bind(&tags);
                (command, Some(Entry { value, groups }))
            }
        };
        let reply = self.ask(at, &command)?;
        ensure!(!reply.starts_with("(error)"), "a write");
        self.reference.write(key, entry);
        Ok(())
    }

    /// A group ends.
    fn invalidate(&mut self, at: usize) -> Result<()> {
        let tag = self.random.below(TAGS);
        let (name, command) = match self.random.below(6) {
            0 => ("a".to_owned(), "CACHE.INVALIDATE ALL".to_owned()),
            1 => ("s:*".to_owned(), "CACHE.INVALIDATE KEYSPACE *".to_owned()),
            _ => (format!("t:t{tag}"), format!("CACHE.INVALIDATE TAG t{tag}")),
        };
        let reply = if self.random.below(3) == 0 {
            self.ask_foreign(&["DEL", &format!("caddy:default.local:g:{name}")])?
        } else {
            self.ask(at, &command)?
        };
        let was_there = self.reference.groups.remove(&name).is_some();
        ensure!(reply == usize::from(was_there).to_string(), "an invalidation");
        Ok(())
    }

    /// Something that nobody with a sidecar does.
    fn disaster(&mut self, at: usize, key: usize) -> Result<()> {
        let (ground, name) = (self.ground, self.key(key).to_owned());
        match self.random.below(10) {
            0 => {
                if self.random.below(2) == 0 {
                    self.ask(at, "FLUSHALL")?
                } else {
                    self.ask_foreign(&["FLUSHALL"])?
                };
                let (next, epoch) = (self.reference.next, self.reference.epoch + 1);
                self.reference = Reference { next, epoch, ..Reference::default() };
                self.barrier(0)?;
                self.barrier(1)?;
            }
            1..=3 => {
                self.ask_foreign(&["DEL", &ground.lease(&name)?])?;
                self.reference.leases[key] = None;
            }
            4 | 5 => {
                self.ask_foreign(&["DEL", &ground.record(&name)?])?;
                self.reference.records[key] = None;
            }
            6 | 7 => {
                self.ask_foreign(&["DEL", &name])?;
                self.reference.entries[key] = None;
            }
            _ => {
                let value = self.value();
                self.ask_foreign(&["SET", &name, &value])?;
                self.reference.entries[key] = Some(Entry { value, groups: Groups::new() });
            }
        }
        Ok(())
    }

    fn read(&mut self, at: usize, key: usize) -> Result<()> {
        self.barrier(at)?;
        let reply = self.ask(at, &format!("GET {}", self.key(key)))?;
        let expected = self.reference.shown(key).unwrap_or("(nil)");
        ensure!(reply == expected, "k{key} is {:?}", self.reference.entries[key]);
        Ok(())
    }

    fn step(&mut self) -> Result<()> {
        let (at, key) = (self.random.below(2), self.random.below(KEYS));
        match self.random.below(30) {
            0..=6 => self.look(at, key),
            7..=13 => self.fill(at),
            14 | 15 => self.lock(at),
            16..=20 => self.fenced(at, key),
            21 | 22 => self.write(at, key),
            23 | 24 => self.invalidate(at),
            25 | 26 => self.disaster(at, key),
            _ => self.read(at, key),
        }
    }
}

fn play(ground: &Ground<'_>, seed: u64) -> Result<()> {
    let clients = ground.sidecars.iter().map(|sidecar| Ok(Client(sidecar.connect()?))).collect::<Result<_>>()?;
    let mut run = Run {
        ground,
        random: Random::new(seed),
        clients,
        reference: Reference::default(),
        tokens: Vec::new(),
        fences: Vec::new(),
        locker: 0,
        history: Vec::new(),
        counts: [0; 4],
    };
    let outcome = (0..STEPS).try_for_each(|_| run.step());
    let tail = run.history.len().saturating_sub(60);
    outcome.map_err(|error| error.context(format!("seed {seed}\n{}", run.history[tail..].join("\n"))))?;
    ensure!(run.counts.iter().all(|count| *count > STEPS / 100), "seed {seed}: {:?} say too little", run.counts);
    Ok(())
}

/// Plays these seeds, or the one that is asked for.
fn seeds(all: &[u64], play: impl Fn(u64) -> Result<()>) -> Result<()> {
    match std::env::var("CADDY_SEED") {
        Ok(seed) => play(seed.parse()?),
        Err(_) => all.iter().try_for_each(|seed| play(*seed)),
    }
}

#[test]
fn random_conditional_writes_are_answered_as_the_reference_does() -> Result<()> {
    let server = redis::program()?;
    seeds(&[1, 2, 3], |seed| Ground::in_front_of(&Subject::good(), &server, |ground| play(ground, seed)))
}

#[test]
fn random_conditional_writes_are_answered_so_in_a_valkey() -> Result<()> {
    let Some(server) = redis::valkey() else {
        println!("skipped: {}", redis::NO_VALKEY);
        return Ok(());
    };
    seeds(&[4], |seed| Ground::in_front_of(&Subject::good(), &server, |ground| play(ground, seed)))
}

#[test]
fn random_conditional_writes_are_answered_so_in_every_slot_of_a_cluster() -> Result<()> {
    seeds(&[5], |seed| Ground::in_front_of_a_cluster(&Subject::good(), |ground| play(ground, seed)))
}
