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
    relaying::{Asking, effect},
};
use crate::{
    cache::Waiter,
    commands::{self, Class, Pin, Row},
    effect::{Along, Effect},
    errands::ASKING,
    generations::of_parent,
    guards::{Guard, hold},
    loading::{Asker, Miss, Several},
    mailbox::{Place, ReplyTo},
    shared::L3,
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
        if row.class_of(args.len(), |index| args.get(index)) == Class::Pinned(Pin::Blocking) {
            effect.along = Along::Behind;
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

/// What is sent of a request: with what ends in the same step, and what a redirection asks for.
pub(super) struct Wrapped {
    pub(super) bytes: Bytes,
    pub(super) replies: u16,
    /// Which of the replies is the app's, if not the last.
    pub(super) answer: Option<u16>,
}

/// The bytes of a request that ends leases in the same step: a transaction around a single command, one command more in
/// the app's own, or one behind a command that waits.
pub(super) fn with_ended_leases(effect: &Effect, request: Bytes, asking: Asking) -> Wrapped {
    let is_asking = asking == Asking::Yes;
    // Contiguous: it counts for the next command of the connection, or for a transaction.
    let ask: &[u8] = if is_asking { ASKING } else { b"" };
    let asks = u16::from(is_asking);
    if !effect.has_more() {
        let bytes = if is_asking { [ask, &request].concat().into() } else { request };
        return Wrapped { bytes, replies: 1 + asks, answer: None };
    }
    let mut out = Vec::with_capacity(request.len() + 64 * effect.leases.len() + 128);
    out.extend_from_slice(ask);
    match effect.along {
        Along::Around => {
            encode::command(&mut out, [b"MULTI"]);
            end(effect, &mut out);
            out.extend_from_slice(&request);
            encode::command(&mut out, [b"EXEC"]);
            Wrapped { bytes: out.into(), replies: 4 + asks, answer: None }
        }
        Along::Within => {
            end(effect, &mut out);
            out.extend_from_slice(&request);
            Wrapped { bytes: out.into(), replies: 2 + asks, answer: None }
        }
        Along::Behind => {
            out.extend_from_slice(&request);
            out.extend_from_slice(ask);
            end(effect, &mut out);
            Wrapped { bytes: out.into(), replies: 2 + 2 * asks, answer: Some(asks) }
        }
    }
}

/// The command that ends it.
fn end(effect: &Effect, out: &mut Vec<u8>) {
    let ended = effect.leases.iter().map(|(_, name)| &name[..]);
    match &effect.renews {
        None => encode::command(out, std::iter::once(&b"DEL"[..]).chain(ended).collect::<Vec<_>>()),
        Some(renewal) => {
            let (count, life) = (effect.leases.len() + 1, renewal.life.as_millis().max(1));
            let (count, life) = (count.to_string(), life.to_string());
            let mut words: Vec<&[u8]> = vec![b"EVAL", RENEW.as_bytes(), count.as_bytes(), &renewal.key];
            words.extend(ended);
            words.extend([&renewal.value[..], life.as_bytes()]);
            encode::command(out, words);
        }
    }
}

/// What the app is answered of the last reply to such a request: without what DEL answered. An error, or nothing since a
/// watched key changed, as it is.
pub(crate) fn unwrapped(reply: &Bytes, along: Along) -> Bytes {
    if along == Along::Behind {
        return reply.clone();
    }
    let is_array = reply.first() == Some(&b'*') && !reply.starts_with(b"*-");
    let Some(first) = reply.iter().position(|byte| *byte == b'\n').filter(|_| is_array) else { return reply.clone() };
    let (header, rest) = (&reply[1..first - 1], first + 1);
    if along == Along::Around {
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
    use super::{
        Along::{Around, Behind, Within},
        *,
    };

    #[test]
    fn an_app_sees_the_reply_to_its_own_command() {
        let seen = |reply: &'static [u8], along| unwrapped(&Bytes::from_static(reply), along);
        assert_eq!(seen(b"*2\r\n:1\r\n+OK\r\n", Around), &b"+OK\r\n"[..]);
        assert_eq!(seen(b"*2\r\n:0\r\n$3\r\na\n:\r\n", Around), &b"$3\r\na\n:\r\n"[..]);
        assert_eq!(seen(b"-EXECABORT no\r\n", Around), &b"-EXECABORT no\r\n"[..]);
        assert_eq!(seen(b"*3\r\n:7\r\n+OK\r\n:12\r\n", Within), &b"*2\r\n:7\r\n+OK\r\n"[..]);
        assert_eq!(seen(b"*-1\r\n", Within), &b"*-1\r\n"[..]);
        assert_eq!(seen(b"_\r\n", Within), &b"_\r\n"[..]);
        assert_eq!(seen(b"*2\r\n$1\r\nq\r\n$1\r\na\r\n", Behind), &b"*2\r\n$1\r\nq\r\n$1\r\na\r\n"[..]);
    }
}
