//! Writing through: the store first, then L3, so that what the cache has, the store has.
//!
//! A write takes the fill leases of its keys for its whole time: what others are loading meanwhile is not kept, and another
//! sidecar's write of the same key shows. Two that overlap cannot know which of them the store took last; so the one that
//! ends last removes the key from L3, and the next read loads it: it has found the other's lease, or finds at its end that
//! its own is not there any more, or was marked by whoever found that. A load that began between two of them ends, too.
//! What the keyspace has written behind before comes first. When the store has failed, L3 is as it was. When L3 fails
//! behind the store, the key is removed from it as soon as it can be.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use caddy_engine::strategy::behind::Write;
use caddy_remote::leases;
use caddy_resp::{Protocol, Value, encode};

use super::{Part, StoreWrite, existing};
use crate::{
    barrier::HeldReply,
    behind::{error_text, translated},
    commands::Row,
    effect::Effect,
    errands::{self, ErrandError},
    guards::{Guard, hold},
    keyspaces::Source,
    mailbox::ReplyTo,
    session::{
        args::Args,
        conversation::{Conversation, Flow, Pending, Stream},
        relaying::effect,
        routing::effect_of_part,
    },
    shared::Shared,
    shown::RelayedStrings,
};

/// How long a write may take before others may load its keys again.
const LEASE_MILLIS: &str = "60000";
/// How long L3 is tried again after it failed behind the store, and how often.
const LONGEST_REPAIR: Duration = Duration::from_mins(10);
const REPAIR_PAUSE: Duration = Duration::from_millis(500);
/// Begins the id of a lease that a write has.
const WRITER: u8 = b'w';

/// `KEYS`: leases, then keys. `ARGV`: the id, how many leases, whether another write overlapped, the command. Executes the
/// command if the leases are this write's still and no other's were found; else removes the keys. Leases that another write
/// has taken since are marked, so that it does not take itself for the only one; those of loads end. Answers which, what the
/// command answered, and how long the first key had left.
const FINISH: &str = "local n = tonumber(ARGV[2]) local alone = ARGV[3] == '0' \
    for i = 1, n do if redis.call('GET', KEYS[i]) ~= ARGV[1] then alone = false end end \
    local left, reply = redis.call('PTTL', KEYS[n + 1]), false \
    if alone then local command = {} for i = 4, #ARGV do command[i - 3] = ARGV[i] end reply = redis.call(unpack(command)) \
    else reply = redis.call('DEL', unpack(KEYS, n + 1)) end \
    for i = 1, n do local held = redis.call('GET', KEYS[i]) or '' \
    if string.sub(held, 1, 1) ~= 'w' or held == ARGV[1] or held == ARGV[1] .. '!' then redis.call('DEL', KEYS[i]) \
    elseif string.sub(held, -1) ~= '!' then redis.call('SET', KEYS[i], held .. '!', 'KEEPTTL') end end \
    return {alone and 1 or 0, reply, left}";

/// `KEYS`: leases. `ARGV`: the id, milliseconds. Takes them; answers who had them before.
const TAKE: &str = "local before = {} \
    for i = 1, #KEYS do before[i] = redis.call('SET', KEYS[i], ARGV[1], 'PX', ARGV[2], 'GET') end return before";

/// `KEYS`: leases. `ARGV`: the id. Gives back those that have it, marked or not.
const GIVE_BACK: &str = "for i = 1, #KEYS do local held = redis.call('GET', KEYS[i]) \
    if held == ARGV[1] or held == ARGV[1] .. '!' then redis.call('DEL', KEYS[i]) end end return 1";

impl Conversation {
    pub(super) fn write_through(
        &mut self,
        row: &'static Row,
        args: Args<'_>,
        source: &Arc<Source>,
        write: StoreWrite,
    ) -> Flow {
        if self.replies.waiting() > 0 {
            return Flow::Hold;
        }
        let shared = self.worker.shared.clone();
        self.stream = Stream::Stored(self.client.database);
        let effect = effect(row, args);
        let parts = self.expect_parts(args, write, Pending::Storing);
        for part in parts {
            let Part { place, command, write } = part;
            let keys: Vec<&[u8]> = write.writes.iter().map(|(key, _)| &key[..]).collect();
            let through = Through {
                leases: keys.iter().map(|key| shared.lease_of(key)).collect(),
                id: format!("{}{}", char::from(WRITER), leases::hex(leases::unique())),
                command,
                returns_old: write.returns_old(),
                to: ReplyTo { mailbox: self.mailbox.clone(), place },
                protocol: self.client.protocol,
                database: self.client.database,
                effect: effect_of_part(&effect, &keys),
                shared: shared.clone(),
                source: source.clone(),
                write,
            };
            self.worker.supervisor.spawn_local("write through", through.run());
        }
        Flow::Done
    }
}

/// A write under way.
struct Through {
    shared: Arc<Shared>,
    source: Arc<Source>,
    write: StoreWrite,
    leases: Vec<Vec<u8>>,
    id: String,
    command: Vec<Bytes>,
    /// Whether the command answers what was there before.
    returns_old: bool,
    to: ReplyTo,
    protocol: Protocol,
    database: u32,
    effect: Effect,
}

impl Through {
    async fn run(self) {
        let (shared, store) = (self.shared.clone(), self.source.store.name.clone());
        let keys: Vec<Bytes> = self.write.writes.iter().map(|(key, _)| key.clone()).collect();
        if hold(Guard::OlderWritesComeFirst)
            && let Err(error) = shared.behinds.settled(&store, &keys).await
        {
            return self.to.reply(error_text(&format!("STOREERR store '{store}': {error}; nothing was written")));
        }
        // It shows what a GET would have shown.
        if self.write.returns_old() && hold(Guard::OldValuesAreLoaded) {
            for key in &keys {
                if let Err(text) = existing::load(&shared, self.database, key).await {
                    return self.to.reply(error_text(&text));
                }
            }
        }
        let turns = shared.behinds.turns.of(&self.effect.keys).await;
        let overlaps = match self.begin().await {
            Ok(overlaps) => overlaps,
            Err(error) => return self.to.reply(error_text(&format!("NOTREADY {error}; nothing was written"))),
        };
        if let Err(error) = self.store().await {
            self.give_back().await;
            return self.to.reply(error_text(&format!("STOREERR store '{store}': {error}; the cache is as it was")));
        }
        shared.behinds.overwritten(&store, &keys);
        let finished = self.finish(overlaps).await;
        // Whatever the answer is, also a loss: it may have been executed.
        self.effect.apply(&shared);
        match finished {
            Ok((reply, left)) => {
                let held = HeldReply { to: self.to, bytes: translated(reply, self.protocol) };
                let shows = self.effect.shows;
                let relayed = RelayedStrings::of_a_write(held, shows, self.database, self.protocol, left);
                relayed.hand_on(&shared, Ok(Vec::new()));
            }
            Err(error) => {
                let text = "STOREERR the store has it, but Redis failed, and readers may see what was there before until \
                            it answers again";
                self.to.reply(error_text(&format!("{text}: {error}")));
                drop(turns);
                self.repair().await;
            }
        }
    }

    /// Takes the leases; whether another write has one.
    async fn begin(&self) -> Result<bool, ErrandError> {
        let count = self.leases.len().to_string();
        let mut command: Vec<&[u8]> = vec![b"EVAL", TAKE.as_bytes(), count.as_bytes()];
        command.extend(self.leases.iter().map(Vec::as_slice));
        command.extend([self.id.as_bytes(), LEASE_MILLIS.as_bytes()]);
        let reply = self.ask(command).await?;
        let is_writer = |id: &Value<'_>| id.as_bytes().is_some_and(|id| id.first() == Some(&WRITER));
        let before = Value::decode(&reply).ok();
        Ok(before.is_some_and(|(before, _)| before.as_elements().is_some_and(|ids| ids.iter().any(is_writer))))
    }

    async fn store(&self) -> Result<(), caddy_engine::store::StoreError> {
        let backing = &self.source.store.backing;
        let (mut puts, mut deletes) = (Vec::new(), Vec::new());
        for (key, write) in &self.write.writes {
            match write {
                Write::Put(value) => puts.push((key.clone(), value.clone())),
                Write::Delete => deletes.push(key.clone()),
            }
        }
        // A write that is repeated on the way to the store is the same one.
        let names = |count: usize| (0..count).map(|n| format!("{}-{n}", self.id)).collect::<Vec<_>>();
        if !puts.is_empty() {
            backing.store_named(&puts, &names(puts.len())).await?;
        }
        if !deletes.is_empty() {
            backing.delete_named(&deletes, &names(deletes.len())).await?;
        }
        Ok(())
    }

    /// Executes the command in L3, or removes the keys; the command's reply, and how long its key had left to live.
    async fn finish(&self, overlaps: bool) -> Result<(Bytes, Option<i64>), ErrandError> {
        let (count, leases) = ((2 * self.leases.len()).to_string(), self.leases.len().to_string());
        let mut command: Vec<&[u8]> = vec![b"EVAL", FINISH.as_bytes(), count.as_bytes()];
        command.extend(self.leases.iter().map(Vec::as_slice));
        command.extend(self.write.writes.iter().map(|(key, _)| &key[..]));
        command.extend([self.id.as_bytes(), leases.as_bytes(), if overlaps { b"1" } else { b"0" }]);
        command.extend(self.command.iter().map(|argument| &argument[..]));
        let reply = self.ask(command).await?;
        let unclear = || ErrandError::Lost("its reply cannot be read".to_owned());
        let (value, _) = Value::decode(&reply).map_err(|_| unclear())?;
        let Some([alone, own, left]) = value.as_elements() else { return Err(unclear()) };
        let mut out = Vec::new();
        if alone.as_integer() == Some(1) {
            match own.as_bytes() {
                Some(b"OK") if !self.returns_old => encode::ok(&mut out),
                Some(bytes) => encode::bulk(&mut out, bytes),
                None => match own.as_integer() {
                    Some(number) => encode::integer(&mut out, number),
                    None => encode::null(&mut out, Protocol::Resp2),
                },
            }
        } else if self.returns_old {
            encode::null(&mut out, Protocol::Resp2);
        } else if self.write.deletes() {
            encode::integer(&mut out, own.as_integer().unwrap_or(0));
        } else {
            encode::ok(&mut out);
        }
        Ok((out.into(), left.as_integer()))
    }

    async fn give_back(&self) {
        let count = self.leases.len().to_string();
        let mut command: Vec<&[u8]> = vec![b"EVAL", GIVE_BACK.as_bytes(), count.as_bytes()];
        command.extend(self.leases.iter().map(Vec::as_slice));
        command.push(self.id.as_bytes());
        // Leases that cannot be given back run out.
        let _ = self.ask(command).await;
    }

    /// What L3 has is older than what the store has: it goes as soon as L3 answers.
    async fn repair(&self) {
        let begun = self.shared.now();
        while self.shared.now().since(begun) < LONGEST_REPAIR {
            tokio::time::sleep(REPAIR_PAUSE).await;
            let keys = self.write.writes.iter().map(|(key, _)| &key[..]);
            let all: Vec<&[u8]> =
                std::iter::once(&b"DEL"[..]).chain(keys).chain(self.leases.iter().map(Vec::as_slice)).collect();
            let removed = self.ask(all).await;
            self.effect.apply(&self.shared);
            if removed.is_ok() {
                return;
            }
        }
        tracing::error!(
            store = %self.source.store.name,
            "Redis did not answer for too long behind a write to a store: it may have an older value than the store"
        );
    }

    /// All its keys are on one node.
    async fn ask(&self, command: Vec<&[u8]>) -> Result<Bytes, ErrandError> {
        let mut bytes = Vec::new();
        encode::command(&mut bytes, command);
        let key = self.write.writes.first().map_or(&b""[..], |(key, _)| key);
        errands::ask_owner(&self.shared, key, self.database, bytes).await
    }
}
