//! Reads of keys that have a store, where no fill is possible; and writes of such keys.
//!
//! What would be a relayed read elsewhere goes to the loader, which reads L3 by itself: a relay would answer nil for what
//! the store has. A write removes the fill leases of its keys in the same step, so that nothing which was loaded, or
//! computed under a fill token, before it is stored behind it.

use bytes::Bytes;
use caddy_engine::KeyHash;
use caddy_remote::leases;
use caddy_resp::{Value, encode};

use super::{
    args::Args,
    conversation::{Conversation, Flow, Pending, Stream},
    relaying::effect,
};
use crate::{
    cache::Waiter,
    commands::{self, Row},
    generations::of_parent,
    guards::{Guard, hold},
    loading::{Asker, Miss, Several},
    mailbox::{Place, ReplyTo},
    shared::L3,
    upstream::Effect,
};

impl Conversation {
    /// Whether a read loads what is absent: GET, and MGET if all its keys have a store.
    pub(super) fn is_loading_read(&self, row: &Row, args: Args<'_>) -> bool {
        let keyspaces = self.worker.shared.keyspaces();
        matches!(row.name, "get" | "mget") && args.len() > 1 && args.from(1).all(|key| keyspaces.source(key).is_some())
    }

    /// A read that cannot fill now, by the loader.
    pub(super) fn load_unfilled(&mut self, row: &'static Row, args: Args<'_>) -> Flow {
        let stream = Stream::Tracked(self.client.database);
        if self.is_under_way_elsewhere(stream) {
            return Flow::Hold;
        }
        self.stream = stream;
        let (request, effect) = (args.to_bytes(), effect(row, args));
        let pending = match (row.name, effect.keys.as_slice()) {
            ("get", [key]) => {
                self.under_way.add(*key, &request);
                Pending::Filling { request: request.clone(), key: *key, unproven: None }
            }
            (_, keys) => {
                self.under_way.add_many(keys);
                Pending::FillingMany { request: request.clone(), effect: Box::new(effect) }
            }
        };
        let place = self.expect(pending);
        self.load_instead(place, &request);
        Flow::Done
    }

    /// Hands a GET or MGET to the loader, if all its keys have a store; whether they have.
    pub(super) fn load_instead(&self, place: Place, request: &[u8]) -> bool {
        let shared = self.worker.shared.clone();
        let keyspaces = shared.keyspaces();
        let Ok((request, _)) = Value::decode(request) else { return false };
        let Some([name, keys @ ..]) = request.as_elements() else { return false };
        let Some(keys) = keys.iter().map(Value::as_bytes).collect::<Option<Vec<_>>>() else { return false };
        let is_one = match name.as_bytes() {
            Some(name) if name.eq_ignore_ascii_case(b"GET") => true,
            Some(name) if name.eq_ignore_ascii_case(b"MGET") => false,
            _ => return false,
        };
        if keys.is_empty() || !keys.iter().all(|key| keyspaces.source(key).is_some()) {
            return false;
        }
        let to = ReplyTo { mailbox: self.mailbox.clone(), place };
        let waiter = Waiter { to, protocol: self.client.protocol };
        let (database, now) = (self.client.database, self.now);
        let load = |key: &[u8], asker| {
            let key = Bytes::copy_from_slice(key);
            shared.loading.miss(Miss::unfilled(&shared, database, key, now, asker));
        };
        if is_one {
            load(keys[0], Asker::One(waiter));
        } else {
            let several = Several::new(waiter, vec![None; keys.len()]);
            keys.iter().enumerate().for_each(|(place, key)| load(key, Asker::Of(several.clone(), place)));
        }
        true
    }

    /// The effect of a write, with what it ends in the same step: fill leases, and the generations of keys that others depend
    /// on.
    pub(super) fn ending_leases(&self, row: &Row, args: Args<'_>, mut effect: Effect) -> Effect {
        let shared = &self.worker.shared;
        if row.effect != commands::Effect::WritesKeys {
            return effect;
        }
        let keyspaces = shared.keyspaces();
        let leases = keyspaces.loads() || !shared.ranges.is_without_tokens(shared, self.now);
        if !leases && !keyspaces.parents() {
            return effect;
        }
        let config = shared.config();
        for position in row.keys(args.len(), |index| args.get(index)) {
            let key = args.get(position);
            let rule = keyspaces.rule(key);
            // A generation is nothing that anybody fills.
            if let L3::Redis(redis) = &shared.l3
                && shared.domain.name(key).is_none()
                && (rule.source.is_some() || shared.ranges.may_have_tokens(shared, rule.id, self.now))
                && hold(Guard::WritesEndLeases)
            {
                let lease = leases::name(&config.cluster.domain, key, redis.cluster().is_some());
                effect.leases.push((Bytes::copy_from_slice(key), lease.into()));
            }
            if keyspaces.is_parent(key) && hold(Guard::WritesRenewParents) {
                let generation = shared.domain.key(&of_parent(key));
                effect.keys.push(KeyHash::of(&generation));
                if effect.renews.as_ref().is_none_or(|renewal| renewal.key != generation) {
                    effect.leases.push((Bytes::copy_from_slice(key), generation));
                }
            }
        }
        effect
    }
}

/// `KEYS`: a generation, and what ends. `ARGV`: what the generation is to be, its milliseconds.
const RENEW: &str = "redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) \
     if #KEYS == 1 then return 0 end return redis.call('DEL', unpack(KEYS, 2))";

/// The bytes of a request that ends leases in the same step, and how many replies they have: a transaction around a single
/// command, or one command more in the app's own.
pub(super) fn with_ended_leases(effect: &Effect, request: Bytes) -> (Bytes, u16) {
    if !effect.has_more() {
        return (request, 1);
    }
    let mut out = Vec::with_capacity(request.len() + 64 * effect.leases.len() + 64);
    if !effect.is_exec {
        encode::command(&mut out, [b"MULTI"]);
    }
    let ended = effect.leases.iter().map(|(_, name)| &name[..]);
    match &effect.renews {
        None => encode::command(&mut out, std::iter::once(&b"DEL"[..]).chain(ended).collect::<Vec<_>>()),
        Some(renewal) => {
            let (count, life) = (effect.leases.len() + 1, renewal.life.as_millis().max(1));
            let (count, life) = (count.to_string(), life.to_string());
            let mut words: Vec<&[u8]> = vec![b"EVAL", RENEW.as_bytes(), count.as_bytes(), &renewal.key];
            words.extend(ended);
            words.extend([&renewal.value[..], life.as_bytes()]);
            encode::command(&mut out, words);
        }
    }
    out.extend_from_slice(&request);
    if effect.is_exec {
        return (out.into(), 2);
    }
    encode::command(&mut out, [b"EXEC"]);
    (out.into(), 4)
}

/// What the app is answered of the last reply to such a request: without what DEL answered. An error, or nothing since a
/// watched key changed, as it is.
pub(crate) fn unwrapped(reply: &Bytes, is_exec: bool) -> Bytes {
    let is_array = reply.first() == Some(&b'*') && !reply.starts_with(b"*-");
    let Some(first) = reply.iter().position(|byte| *byte == b'\n').filter(|_| is_array) else { return reply.clone() };
    let (header, rest) = (&reply[1..first - 1], first + 1);
    if !is_exec {
        let number = reply[rest..].iter().position(|byte| *byte == b'\n');
        return number.map_or_else(|| reply.clone(), |end| reply.slice(rest + end + 1..));
    }
    let count: usize = std::str::from_utf8(header).ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let number = reply[rest..].iter().rposition(|byte| *byte == b':').unwrap_or(0);
    let mut out = Vec::with_capacity(reply.len());
    encode::array_header(&mut out, count.saturating_sub(1));
    out.extend_from_slice(&reply[rest..rest + number]);
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_sees_the_reply_to_its_own_command() {
        let seen = |reply: &'static [u8], is_exec| unwrapped(&Bytes::from_static(reply), is_exec);
        assert_eq!(seen(b"*2\r\n:1\r\n+OK\r\n", false), &b"+OK\r\n"[..]);
        assert_eq!(seen(b"*2\r\n:0\r\n$3\r\na\n:\r\n", false), &b"$3\r\na\n:\r\n"[..]);
        assert_eq!(seen(b"-EXECABORT no\r\n", false), &b"-EXECABORT no\r\n"[..]);
        assert_eq!(seen(b"*3\r\n:7\r\n+OK\r\n:12\r\n", true), &b"*2\r\n:7\r\n+OK\r\n"[..]);
        assert_eq!(seen(b"*-1\r\n", true), &b"*-1\r\n"[..]);
        assert_eq!(seen(b"_\r\n", true), &b"_\r\n"[..]);
    }
}
