//! `CACHE.GET key WITHMETA`: a value with all that is known of it, and where there is none, the permission to fill it.
//!
//! A current copy answers with what is kept beside it. Otherwise L3 is asked, by a task: if it has no fresh value, the
//! key's fill lease is claimed, and the app gets a token that names it, what the key was, and what the groups were that it
//! named: read before the key was, so that nothing which came later can be missed. Who does not get one is told why, and
//! when it may be had. The session takes nothing else meanwhile.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use caddy_engine::{KeyHash, Verdict, Weigh as _, codec::envelope::Fence, locks::FencingToken};
use caddy_remote::{guarded::Issued, leases};
use caddy_resp::{Protocol, Value, encode};

use super::{
    args::Args,
    caching::{Set, counted, millis, named},
    conversation::{Conversation, Flow, Pending},
    lookup::{Found, Wanted},
};
use crate::{
    cache::{Cached, KeyRef, Read},
    conditional::FillPermit,
    envelope::{Decoded, Notes},
    errands,
    heat::HotRead,
    mailbox::{Place, ReplyTo},
    shared::{L3, Shared},
    upstream::Tag,
    warm,
};

/// How long an app has the right to fill a key, if it does not say.
const LEASE: Duration = Duration::from_secs(10);
/// Longest lease: an hour.
const LONGEST_LEASE: Duration = Duration::from_hours(1);

/// What is told of a key.
#[derive(Debug)]
struct Meta {
    value: Cached,
    tier: &'static str,
    /// Since when the copy is one.
    age: Duration,
    /// How long the value is fresh, as `PTTL` says it.
    ttl: i64,
    notes: Notes,
    /// What is no longer fresh.
    stale: Option<Cached>,
    /// What it depends on, by names within the domain.
    groups: Vec<Bytes>,
    /// All of that is in force.
    is_valid: bool,
    token: Option<String>,
    /// How long the token is good for, or until when another may be had.
    lease: Duration,
    /// Why there is no token.
    reason: String,
}

/// What is asked of L3.
struct Asked {
    database: u32,
    key: Bytes,
    span: Duration,
    permit: FillPermit,
}

/// `WITHMETA [LEASE ms] [TAGS n tag…] [DEPENDS n key…]`
fn parse(args: Args<'_>) -> Result<(Set<'_>, Duration), String> {
    let mut set = Set { key: args.get(1), ..Set::default() };
    let mut span = LEASE;
    if !args.is(2, "WITHMETA") {
        return Err(
            "ERR behind the key CACHE.GET takes WITHMETA, and then LEASE ms, TAGS n tag…, DEPENDS n key…".to_owned()
        );
    }
    let mut at = 3;
    while at < args.len() {
        let option = args.get(at).to_ascii_uppercase();
        at += 1;
        match option.as_slice() {
            b"LEASE" => span = millis(args, &mut at, "LEASE")?,
            b"TAGS" => set.tags.extend(counted(args, &mut at, "TAGS")?),
            b"DEPENDS" => set.parents.extend(counted(args, &mut at, "DEPENDS")?),
            _ => {
                return Err(format!(
                    "ERR CACHE.GET does not know '{}' here; behind WITHMETA it takes LEASE ms, TAGS n tag…, DEPENDS n key…",
                    option[..option.len().min(64)].escape_ascii()
                ));
            }
        }
    }
    if span > LONGEST_LEASE {
        return Err(format!("LIMIT LEASE is at most {} ms", LONGEST_LEASE.as_millis()));
    }
    Ok((set.tidied()?, span))
}

impl Conversation {
    pub(super) fn get_with_meta(&mut self, args: Args<'_>) -> Flow {
        if self.replies.waiting() > 0 {
            return Flow::Hold;
        }
        let (set, span) = match parse(args) {
            Ok(parsed) => parsed,
            Err(text) => return self.answer_error(&text),
        };
        let (shared, database, protocol) = (self.worker.shared.clone(), self.client.database, self.client.protocol);
        let copy = if self.has_learned() { None } else { self.meta_of_copy(set.key) };
        if let Some(meta) = copy {
            self.reply(|out| meta.encode(set.key, protocol, out));
            return Flow::Done;
        }
        if let L3::Embedded(_) = &shared.l3 {
            let answer = meta_embedded(&shared, database, set.key);
            self.reply(|out| match answer {
                Ok(meta) => meta.encode(set.key, protocol, out),
                Err(error) => out.extend_from_slice(&error),
            });
            return Flow::Done;
        }
        let known = match self.groups(&shared, &set) {
            Ok(known) => known,
            Err(flow) => return flow,
        };
        let generations = named(&shared, &known).map(|(name, value)| (Bytes::copy_from_slice(name), value)).collect();
        let state = caddy_remote::guarded::State::absent();
        let permit = FillPermit { lease: leases::unique(), state, generations };
        let asked = Asked { database, key: Bytes::copy_from_slice(set.key), span, permit };
        let place = Place { seq: self.replies.expect(Pending::Locking { waits: false }), part: 0 };
        let to = ReplyTo { mailbox: self.mailbox.clone(), place };
        self.worker.supervisor.spawn_local("read with metadata", async move {
            let mut out = Vec::new();
            let key = asked.key.clone();
            let answer = asked.run(&shared).await;
            // It came over another connection than copies do.
            shared.kernel().bump(KeyHash::of(&key));
            let is_there = answer.as_ref().is_ok_and(|meta| meta.value.exists());
            match answer {
                Ok(meta) => meta.encode(&key, protocol, &mut out),
                Err(text) => encode::error(&mut out, text),
            }
            to.reply(out);
            if is_there {
                // The tiers are filled on the tracked connection, by whoever reads it there.
                let read = HotRead::new(KeyRef { database, read: Read::Get, name: &key });
                warm::pull(&shared, &[read]).await;
            }
        });
        Flow::Done
    }

    /// What a current copy says; that a key is absent is asked of L3.
    fn meta_of_copy(&self, key: &[u8]) -> Option<Meta> {
        let name = KeyRef { database: self.client.database, read: Read::Get, name: key };
        let found = self.look_up(name, KeyHash::of(key), Wanted::Value, |value, _, _| value.clone());
        let Found::Answered(value @ Cached::Bulk(_)) = found else { return None };
        let shared = &self.worker.shared;
        let why = self.worker.tiers.borrow().why(name.tier_hash(), &name, shared.now())?;
        let entry = shared.cache.peek(name.tier_hash(), &name)?;
        let dependencies = entry.value().dependencies();
        let name_of = |key: &[u8]| shared.domain.name(key).map(Bytes::copy_from_slice);
        Some(Meta {
            value,
            tier: if why.in_l1 { "L1" } else { "L2" },
            age: why.age,
            ttl: why.remaining.map_or(-1, |left| i64::try_from(left.as_millis()).unwrap_or(i64::MAX)),
            notes: entry.value().notes(),
            groups: dependencies.iter().filter_map(|dependency| name_of(dependency.cell().name())).collect(),
            is_valid: dependencies
                .iter()
                .all(|dependency| matches!(dependency.verdict(shared.kernel(), shared.now()), Verdict::Valid(_))),
            ..Meta::of_l3(Cached::Nil, -2)
        })
    }
}

impl Asked {
    /// Reads the key, and claims its lease if it has no fresh value; what goes wrong, as the app is told it.
    async fn run(mut self, shared: &Arc<Shared>) -> Result<Meta, String> {
        let (keyspace, has_store) = {
            let keyspaces = shared.keyspaces();
            let rule = keyspaces.rule(&self.key);
            (rule.id, rule.source.is_some())
        };
        let keys = shared.guarded_keys(&self.key);
        let mut may_issue = !has_store && shared.ranges.announces_tokens(shared, keyspace);
        let mut refusal = has_store.then(|| "its keyspace has a store, from which GET loads it".to_owned());
        loop {
            let (issued, present, pttl) = if may_issue {
                match self.ask(shared, keys.issue(self.permit.lease, self.span)).await {
                    Ok(reply) => {
                        let issued = Issued::parse(&reply).ok_or("NOTREADY the answer cannot be read")?;
                        let (present, pttl) = (issued.present.clone(), issued.pttl);
                        (Some(issued), present, pttl)
                    }
                    // It may be read all the same: there is no room for a lease, or its user has no right to it.
                    Err(text) if !text.starts_with("NOTREADY") && !text.starts_with("WRONGTYPE") => {
                        may_issue = false;
                        refusal = Some(text);
                        continue;
                    }
                    Err(text) => return Err(text),
                }
            } else {
                let reply = self.ask(shared, keys.read()).await?;
                let (present, pttl) = read(&reply).ok_or("NOTREADY the answer cannot be read")?;
                (None, present, pttl)
            };
            let mut meta = match self.decode(shared, present.as_deref(), pttl).await {
                Ok(meta) => meta,
                Err(error) => {
                    self.give_back(shared, issued.as_ref());
                    return Err(error);
                }
            };
            if meta.value.exists() {
                self.give_back(shared, issued.as_ref());
                return Ok(meta);
            }
            match issued {
                Some(issued) => {
                    meta.lease = issued.lease;
                    if issued.is_given {
                        self.permit.state = issued.state;
                        shared.metrics.fill_tokens.inc();
                        meta.token = Some(self.permit.to_text(&self.key).map_err(|error| format!("LIMIT {error}"))?);
                    } else {
                        "somebody else is filling it".clone_into(&mut meta.reason);
                    }
                    return Ok(meta);
                }
                None if let Some(refusal) = refusal => {
                    meta.reason = refusal;
                    return Ok(meta);
                }
                None => match shared.ranges.announce_tokens(shared, keyspace).await {
                    Ok(()) => may_issue = true,
                    Err(error) => {
                        meta.lease = error.wait();
                        meta.reason = error.to_string();
                        return Ok(meta);
                    }
                },
            }
        }
    }

    async fn ask(&self, shared: &Arc<Shared>, bytes: Vec<u8>) -> Result<Bytes, String> {
        let asked = errands::ask_owner(shared, &self.key, self.database, bytes).await;
        asked.map_err(|error| match error {
            errands::ErrandError::Refused(text) => text,
            error => format!("NOTREADY {error}"),
        })
    }

    async fn decode(&self, shared: &Arc<Shared>, present: Option<&[u8]>, pttl: i64) -> Result<Meta, String> {
        let value = present.map_or(Cached::Nil, |bytes| Cached::from_value(&Value::Bulk(bytes)));
        let decode = |learned: &[_]| shared.decode(self.database, &self.key, value.clone(), Some(pttl), learned);
        let decoded = match decode(&[]) {
            Ok(decoded) => decoded,
            Err(wants) => {
                let learned = shared.learned(self.database, wants).await;
                let learned =
                    learned.map_err(|reason| format!("NOTREADY its generations cannot be read now: {reason}"))?;
                decode(&learned).map_err(|_| "NOTREADY its generations are being renewed; ask again")?
            }
        };
        Ok(Meta::of_stored(shared, &self.key, present, decoded, pttl))
    }

    /// Gives the lease back, if it was had; one that cannot be given back runs out.
    fn give_back(&self, shared: &Arc<Shared>, issued: Option<&Issued>) {
        let L3::Redis(redis) = &shared.l3 else { return };
        if issued.is_some_and(|issued| issued.is_given)
            && let Some(node) = redis.owner(&self.key)
        {
            let bytes = shared.guarded_keys(&self.key).release(self.permit.lease).into();
            let request = caddy_remote::Request { bytes, replies: 1, tag: Tag::Forward };
            let _ = redis.errand_lane(shared, &node, self.database).submit(request);
        }
    }
}

fn read(reply: &[u8]) -> Option<(Option<Vec<u8>>, i64)> {
    let (value, _) = Value::decode(reply).ok()?;
    let [present, pttl] = value.as_elements()? else { return None };
    Some((present.as_bytes().map(<[u8]>::to_vec), pttl.as_integer()?))
}

fn meta_embedded(shared: &Arc<Shared>, database: u32, key: &[u8]) -> Result<Meta, Vec<u8>> {
    let L3::Embedded(store) = &shared.l3 else { return Err(Vec::new()) };
    let (mut reply, mut pttl) = (Vec::new(), Vec::new());
    store.execute(database, Protocol::Resp3, &[b"GET", key], &mut reply);
    store.execute(database, Protocol::Resp3, &[b"PTTL", key], &mut pttl);
    let value = Cached::from_reply(Read::Get, Bytes::copy_from_slice(&reply)).map_err(|error| error.to_vec())?;
    let pttl = crate::answers::integer(&pttl).unwrap_or(-2);
    let present = Value::decode(&reply).ok().and_then(|(value, _)| value.as_bytes().map(<[u8]>::to_vec));
    let decoded = shared.decode_embedded(database, key, value, Some(pttl));
    let meta = Meta::of_stored(shared, key, present.as_deref(), decoded, pttl);
    Ok(Meta { reason: "tokens need a Redis L3".to_owned(), ..meta })
}

// === impl Meta ===

impl Meta {
    fn of_l3(value: Cached, ttl: i64) -> Self {
        Self {
            value,
            tier: "L3",
            age: Duration::ZERO,
            ttl,
            notes: Notes::default(),
            stale: None,
            groups: Vec::new(),
            is_valid: true,
            token: None,
            lease: Duration::ZERO,
            reason: String::new(),
        }
    }

    /// What L3 holds, and what that means.
    fn of_stored(shared: &Shared, key: &[u8], present: Option<&[u8]>, decoded: Decoded, pttl: i64) -> Self {
        let groups = present.map_or_else(Vec::new, |stored| shared.envelopes.groups(key, stored));
        let is_valid = present.is_none() || decoded.value.exists() || decoded.stale.is_some();
        let ttl = if decoded.value.exists() { decoded.pttl.unwrap_or(-2) } else { pttl };
        Self { notes: decoded.notes, stale: decoded.stale, groups, is_valid, ..Self::of_l3(decoded.value, ttl) }
    }

    fn encode(&self, key: &[u8], protocol: Protocol, out: &mut Vec<u8>) {
        let names = |prefix: &[u8]| -> Vec<&[u8]> {
            self.groups.iter().filter_map(|name| name.strip_prefix(prefix)).filter(|name| *name != key).collect()
        };
        let text = |out: &mut Vec<u8>, text: Option<&str>| match text {
            Some(text) => encode::bulk(out, text.as_bytes()),
            None => encode::null(out, protocol),
        };
        let number = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        encode::map_header(out, protocol, 13);
        encode::bulk(out, b"value");
        self.value.encode(protocol, out);
        encode::bulk(out, b"tier");
        encode::bulk(out, self.tier.as_bytes());
        encode::bulk(out, b"age_ms");
        encode::integer(out, number(self.age));
        encode::bulk(out, b"ttl_ms");
        encode::integer(out, self.ttl);
        encode::bulk(out, b"stale_ms");
        encode::integer(out, number(self.notes.stale_for));
        encode::bulk(out, b"stale_value");
        self.stale.as_ref().unwrap_or(&Cached::Nil).encode(protocol, out);
        for (field, prefix) in [(b"tags" as &[u8], b"t:" as &[u8]), (b"parents", b"k:")] {
            let names = names(prefix);
            encode::bulk(out, field);
            encode::array_header(out, names.len());
            for name in names {
                encode::bulk(out, name);
            }
        }
        encode::bulk(out, b"valid");
        encode::integer(out, i64::from(self.is_valid));
        encode::bulk(out, b"fence");
        let fence = self.notes.fence.map(|Fence { epoch, counter }| FencingToken::new(epoch, counter).to_string());
        text(out, fence.as_deref());
        encode::bulk(out, b"token");
        text(out, self.token.as_deref());
        encode::bulk(out, b"lease_ms");
        encode::integer(out, number(self.lease));
        encode::bulk(out, b"reason");
        encode::bulk(out, self.reason.as_bytes());
    }
}
