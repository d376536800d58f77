//! Fills: what was read on a tracked connection answers whoever waits for it, and becomes a copy if it may.
//!
//! Owns a read from its request to the tiers: the flight that it is, what its reply means (an envelope's generations, a load
//! from a store where Redis has nothing), and on which conditions it is kept. A reply is shown to those who asked before
//! anything else happens to it, and kept only under a token that is current still. Never sends on another connection than
//! the tracked one; what cannot be answered here goes the way of a relayed read.

use std::sync::Arc;

use bytes::Bytes;
use caddy_engine::{
    Counter, FillRefused, FillToken, FlightId, Held, Joined, KeyHash, Landed, Moment, Wanted, generations::Dependency,
    reuse::Copied,
};
use caddy_remote::{LaneHandle, Request};
use caddy_resp::{Value, encode};

use crate::{
    cache::{Cached, KeyRef, Read, TierKey, Waiter},
    envelope::{Decoded, is_suspect},
    generations::{Learned, Then},
    guards::{Guard, hold},
    loading::{Asker, Miss, Several},
    packer,
    shared::{L3, Shared},
    stored::Stored,
    tally::Count,
    upstream::Tag,
};

/// A fill under way, see [`Tag::Fill`].
#[derive(Debug)]
pub(crate) struct Fill {
    pub(crate) flight: FlightId,
    /// Whether the reply may become a copy.
    pub(crate) keep: bool,
    /// The reply to the read, which is in flight.
    pub(crate) reply: Option<(Bytes, Held)>,
    pub(crate) pttl: Option<i64>,
}

/// A fill whose replies are in.
#[derive(Debug)]
pub(crate) struct FillLanded {
    landed: Landed<TierKey, Waiter>,
    keep: bool,
    reply: (Bytes, Held),
    pttl: Option<i64>,
}

/// A read of many keys under way, see [`Tag::FillMany`].
#[derive(Debug)]
pub(crate) struct FillMany {
    pub(crate) database: u32,
    pub(crate) keys: Vec<(TierKey, FillToken)>,
    /// Whether the replies may become copies.
    pub(crate) keep: bool,
    pub(crate) waiter: Waiter,
    pub(crate) reply: Option<Bytes>,
    pub(crate) pttls: Vec<Option<i64>>,
}

pub(crate) fn finish_fill(shared: &Arc<Shared>, fill: Fill) {
    let (Some(reply), Some(mut landed)) = (fill.reply, shared.flights.land(fill.flight)) else { return };
    shared.kernel().landed(&mut landed.token);
    resume_fill(shared, FillLanded { landed, keep: fill.keep, reply, pttl: fill.pttl }, Ok(Vec::new()));
}

/// Answers a fill, now that so much is known of the generations that its value depends on: nothing at first.
pub(crate) fn resume_fill(shared: &Arc<Shared>, fill: FillLanded, learned: Result<Vec<Learned>, String>) {
    let FillLanded { landed, keep: may_keep, reply: (reply, held), pttl } = fill;
    let bypass = || landed.waiters.iter().for_each(|waiter| waiter.to.bypass());
    let Ok(learned) = learned else { return bypass() };
    let key = landed.key.as_ref();
    // The answer that is made of it now, until those who wait have it.
    let copy = shared.cache.hold(reply.len());
    shared.absences.touched(KeyHash::of(key.key()), || shared.now());
    let value = match Cached::from_reply(key.read, reply) {
        Ok(value) => value,
        Err(error) if is_elsewhere(shared, &error) => return bypass(),
        // WRONGTYPE, NOPERM: the same bytes in both protocols.
        Err(error) => return landed.waiters.iter().for_each(|waiter| waiter.to.reply(error.clone())),
    };
    // It may have to be opened once more.
    let envelope = value.bytes().filter(|stored| is_suspect(stored)).and_then(|_| value.reply());
    let decoded = match key.read {
        Read::Get => shared.decode(key.database, key.key(), value, pttl, &learned),
        Read::Request => Ok(Decoded::plain(value, pttl)),
    };
    match (decoded, envelope) {
        (Ok(decoded), _) => {
            if key.read == Read::Get && !decoded.value.exists() && shared.keyspaces().source(key.key()).is_some() {
                return load(shared, landed, decoded.stale.as_ref());
            }
            let value = decoded.value.held(copy);
            drop(held);
            if may_keep {
                keep(shared, landed.key, &landed.token, decoded);
            }
            landed.waiters.iter().for_each(|waiter| waiter.answer(&value));
        }
        (Err(wants), Some(reply)) if learned.is_empty() => {
            let (database, reply) = (key.database, (reply, held));
            shared.learn(database, wants, Then::Fill(Box::new(FillLanded { landed, keep: may_keep, reply, pttl })));
        }
        (Err(_), _) => bypass(),
    }
}

/// Nothing fresh was found in L3, and the key has a store: who waits, waits for that.
fn load(shared: &Shared, landed: Landed<TierKey, Waiter>, stale: Option<&Cached>) {
    let name = landed.key.as_ref();
    let (database, key) = (name.database, Bytes::copy_from_slice(name.key()));
    for waiter in landed.waiters {
        let (token, asker) = (Some(landed.token), Asker::One(waiter));
        shared.loading.miss(Miss { database, key: key.clone(), token, is_tracked: true, stale: stale.cloned(), asker });
    }
}

/// Whether an error says that another node of a cluster has, or may have, the key: a relay finds it there.
fn is_elsewhere(shared: &Shared, error: &[u8]) -> bool {
    let L3::Redis(redis) = &shared.l3 else { return false };
    redis.cluster().is_some() && [&b"-MOVED "[..], b"-ASK ", b"-TRYAGAIN "].iter().any(|kind| error.starts_with(kind))
}

pub(crate) fn finish_fill_many(shared: &Arc<Shared>, mut many: FillMany) {
    many.keys.iter_mut().for_each(|(_, token)| shared.kernel().landed(token));
    resume_fill_many(shared, many, Ok(Vec::new()));
}

/// As [`resume_fill`], for several keys.
pub(crate) fn resume_fill_many(shared: &Arc<Shared>, many: FillMany, learned: Result<Vec<Learned>, String>) {
    let (Ok(learned), Some(reply)) = (learned, many.reply.clone()) else { return many.waiter.to.bypass() };
    let copy = shared.cache.hold(reply.len());
    let mut out = Vec::with_capacity(reply.len() + 16);
    match Value::decode(&reply) {
        Ok((Value::Array(elements), _)) if elements.len() == many.keys.len() => {
            let parts = elements.iter().zip(&many.keys).zip(&many.pttls);
            let (mut all, mut wants) = (Vec::with_capacity(elements.len()), Vec::new());
            for ((element, (key, _)), pttl) in parts {
                let (key, value) = (key.as_ref(), Cached::from_value(element));
                shared.absences.touched(KeyHash::of(key.key()), || shared.now());
                match shared.decode(many.database, key.key(), value, *pttl, &learned) {
                    Ok(decoded) => all.push((decoded, element.as_bytes().is_some())),
                    Err(unknown) => wants.extend(unknown),
                }
            }
            if !wants.is_empty() {
                if !learned.is_empty() {
                    return many.waiter.to.bypass();
                }
                return shared.learn(many.database, wants, Then::FillMany(Box::new(many)));
            }
            let (mut values, mut missing) = (Vec::with_capacity(all.len()), Vec::new());
            for (((key, token), (decoded, was_there)), pttl) in many.keys.into_iter().zip(all).zip(many.pttls) {
                // A nil may also stand for a key of another type; PTTL tells them apart, here and in `deadline`.
                let is_absent = !decoded.value.exists() && (pttl == Some(-2) || was_there);
                if is_absent && shared.keyspaces().source(key.as_ref().key()).is_some() {
                    missing.push((values.len(), key, token, decoded.stale));
                    values.push(None);
                    continue;
                }
                values.push(Some(decoded.value.clone()));
                if many.keep {
                    keep(shared, key, &token, decoded);
                }
            }
            if !missing.is_empty() {
                let several = Several::new(many.waiter, values);
                for (place, key, token, stale) in missing {
                    let name = key.as_ref();
                    let (database, key) = (name.database, Bytes::copy_from_slice(name.key()));
                    let asker = Asker::Of(several.clone(), place);
                    shared.loading.miss(Miss { database, key, token: Some(token), is_tracked: true, stale, asker });
                }
                return;
            }
            encode::array_header(&mut out, values.len());
            values.iter().flatten().for_each(|value| value.encode(many.waiter.protocol, &mut out));
        }
        _ if is_elsewhere(shared, &reply) => return many.waiter.to.bypass(),
        _ => out.extend_from_slice(&reply),
    }
    many.waiter.to.reply(copy.with(out.into()));
}

/// Fills the tiers with what was read under `token`, if it may be kept; refusals are counted by the engine.
///
/// The rules are looked at here, behind the token: see [`Shared::reconfigure`].
pub(crate) fn keep(shared: &Arc<Shared>, mut key: TierKey, token: &FillToken, decoded: Decoded) {
    let Decoded { value, pttl, is_bounded, stale: _, dependencies, notes } = decoded;
    if !dependencies.is_empty() {
        let cells = || dependencies.iter().map(Dependency::cell);
        if !cells().all(|cell| cell.is_shared()) {
            return;
        }
        let life = pttl.and_then(|left| u64::try_from(left).ok()).map(std::time::Duration::from_millis);
        shared.extend(key.as_ref().database, cells(), life);
    }
    let keyspaces = shared.keyspaces();
    let rule = keyspaces.rule(key.as_ref().key());
    let absent_until = match &shared.l3 {
        // A slot that moves takes no absent key with it: nothing is pushed when that key is then written elsewhere.
        L3::Redis(redis) if redis.cluster().is_some() && hold(Guard::AbsentKeysExpire) => {
            token.sent().at() + shared.kernel().max_staleness()
        }
        _ => Moment::NEVER,
    };
    let is_announced = match &shared.l3 {
        L3::Redis(redis) => redis.announces(key.as_ref().key()),
        L3::Embedded(_) => true,
    };
    if rule.caches()
        && is_announced
        && let Some(deadline) = deadline(key.read, &value, pttl, token, absent_until)
    {
        if value.reply_len() > shared.config().limits.max_value_bytes.as_usize() {
            return shared.oversize.note(key.as_ref().tier_hash(), value.reply_len());
        }
        let mut expiry = rule.bound(pttl == Some(-2), token.sent().at(), deadline);
        expiry.is_bounded |= is_bounded;
        key.admit(rule, expiry);
        key.refresh_within = rule.refresh_within(&value, token.sent().at(), expiry);
        let (hash, bytes) = (key.as_ref().tier_hash(), value.reply_len());
        let mut stored = Stored::Plain(value).depending(dependencies, notes);
        let codec = rule.codec.as_ref().filter(|codec| bytes >= codec.config().min_bytes_with_dictionary);
        let later = codec.filter(|codec| packer::is_for_the_packer(codec, bytes));
        if let Some(codec) = codec.filter(|_| later.is_none())
            && let Some(packed) = packer::pack(shared, rule, codec, &stored)
        {
            stored = packed;
        }
        match shared.cache.fill(token, hash, key, stored, expiry.at, shared.now()) {
            Ok(entry) => {
                shared.oversize.forget(hash);
                shared.tally.add(rule.id, Count::Fill);
                if shared.reuse.takes(hash) {
                    let copy = Copied { basis: entry.basis(), deadline: expiry.at };
                    shared.reuse.filled(hash, rule.id.index(), entry.bytes(), copy, shared.kernel(), shared.now());
                }
                if let Some(codec) = later {
                    shared.packer.offer(entry.key(), codec);
                }
            }
            Err(FillRefused::TooLarge) => shared.oversize.note(hash, bytes),
            Err(_) => {}
        }
    }
}

/// When a copy expires, on this host's clock: counted from before the read was sent, so never after L3's own expiry.
/// `None`: the two replies do not belong together (the key came or went between them); not to be kept.
fn deadline(read: Read, value: &Cached, pttl: Option<i64>, token: &FillToken, absent_until: Moment) -> Option<Moment> {
    match (value, pttl?) {
        // GET says nil of absent keys only.
        (Cached::Nil, -1 | 0..) if read == Read::Get => None,
        (_, -1) => Some(Moment::NEVER),
        (value, -2) if value.looks_absent() => Some(absent_until),
        (_, ttl @ 1..) => Some(token.sent().at() + std::time::Duration::from_millis(ttl.unsigned_abs())),
        _ => None,
    }
}

/// Lets somebody wait for a read on the tracked connection: joins the flight that is under way, or leads one. `request` is
/// what `wanted` names.
pub(crate) fn read_for(
    shared: &Shared,
    wanted: &Wanted<'_, KeyRef<'_>>,
    request: &[u8],
    lane: &LaneHandle<Tag>,
    waiter: Waiter,
    keep: bool,
    now: Moment,
) {
    let name = |name: &KeyRef<'_>| name.to_tier_key();
    match shared.flights.join(shared.kernel(), wanted, name, waiter, now, Moment::NEVER) {
        Joined::Waiting(_) => shared.cache.count(Counter::FlightJoined),
        Joined::Lead(flight, _) => {
            shared.cache.count(Counter::FlightLed);
            let fill = Tag::Fill(Fill { flight, keep, reply: None, pttl: None });
            if lane.submit(fill_request(request, wanted.key.key(), fill)).is_err() {
                shared.flights.abandon(flight).iter().for_each(|waiter| waiter.to.bypass());
            }
        }
        Joined::Refused(waiter) => {
            shared.cache.count(Counter::FlightRefused);
            waiter.to.bypass();
        }
    }
}

/// The requests of a fill: the read, then its key's expiry, in that order and in one write.
fn fill_request(read: &[u8], key: &[u8], tag: Tag) -> Request<Tag> {
    let mut out = Vec::with_capacity(read.len() + key.len() + 40);
    out.extend_from_slice(read);
    encode::command(&mut out, [b"PTTL" as &[u8], key]);
    Request { bytes: out.into(), replies: 2, tag }
}

/// As [`fill_request`], for several keys that are read together.
pub(crate) fn fill_many_request<'a>(keys: impl ExactSizeIterator<Item = &'a [u8]> + Clone, tag: Tag) -> Request<Tag> {
    let mut out = Vec::new();
    encode::array_header(&mut out, keys.len() + 1);
    encode::bulk(&mut out, b"MGET");
    keys.clone().for_each(|key| encode::bulk(&mut out, key));
    let replies = 1 + keys.len() as u16;
    keys.for_each(|key| encode::command(&mut out, [b"PTTL" as &[u8], key]));
    Request { bytes: out.into(), replies, tag }
}
