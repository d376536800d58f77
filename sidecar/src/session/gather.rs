//! Requests that several nodes of a cluster answer together: keys of several slots, and what concerns all primaries.
//!
//! Each part is a request of its own with its own effect on copies; the app gets one reply when all are in, the one that
//! a single server would have given. The parts are not of one moment, as they are not for any client of a cluster; what
//! needs one moment (`MSET`, `MSETNX`, …) is not split, and Redis refuses it.

use bytes::Bytes;
use caddy_engine::KeyHash;
use caddy_remote::cluster::slot_of;
use caddy_resp::{Protocol, Value, encode};
use smallvec::SmallVec;

use super::{
    args::{Args, Instead, ReplyForm},
    conversation::{Conversation, Flow, Pending, Stream},
    routing::{Home, effect_of_part},
};
use crate::{
    commands::{Merge, Row, Spread},
    effect::Effect,
    generations::expiring,
    mailbox::Place,
    nodes::RedisL3,
};

/// The bits of an app's SCAN cursor that name the node; a cluster has at most 1,000 primaries.
const NODE_BITS: u32 = 10;

/// What is remembered of a request until all its parts are answered.
#[derive(Debug)]
pub(crate) struct Gathering {
    merge: Merge,
    protocol: Protocol,
    /// For each part, which of the request's keys it is about, in their order.
    keys: Vec<SmallVec<[usize; 4]>>,
    replies: Vec<Option<Bytes>>,
    missing: usize,
    /// Keys that are read on tracked connections.
    under_way: SmallVec<[KeyHash; 2]>,
    /// The parts as they are asked on relays, should a fill not be possible.
    fallbacks: Vec<(Bytes, Effect)>,
}

/// Keys of one slot, by their places among the request's keys.
pub(super) struct Group<'a> {
    pub(super) places: SmallVec<[usize; 4]>,
    pub(super) keys: SmallVec<[&'a [u8]; 4]>,
}

/// The keys by slot, in the order of their first appearance.
pub(super) fn groups<'a>(keys: impl Iterator<Item = &'a [u8]>) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    let mut of_slot = std::collections::HashMap::new();
    for (place, key) in keys.enumerate() {
        let slot = slot_of(key);
        let at = *of_slot.entry(slot).or_insert_with(|| {
            groups.push(Group { places: SmallVec::new(), keys: SmallVec::new() });
            groups.len() - 1
        });
        groups[at].places.push(place);
        groups[at].keys.push(key);
    }
    groups
}

impl<'a> Group<'a> {
    /// All keys, where there are no slots.
    pub(super) fn all(keys: &[&'a [u8]]) -> Self {
        Self { places: (0..keys.len()).collect(), keys: SmallVec::from_slice(keys) }
    }

    /// The part of a request about these keys alone.
    pub(super) fn request(&self, name: &[u8]) -> Bytes {
        let mut out = Vec::new();
        encode::command(&mut out, std::iter::once(name).chain(self.keys.iter().copied()).collect::<Vec<_>>());
        out.into()
    }

    /// A key that has its slot.
    pub(super) fn key(&self) -> &[u8] {
        self.keys.first().copied().unwrap_or_default()
    }
}

impl Gathering {
    pub(super) fn new(merge: Merge, protocol: Protocol, keys: Vec<SmallVec<[usize; 4]>>) -> Self {
        let missing = keys.len();
        let replies = vec![None; missing];
        Self { merge, protocol, keys, replies, missing, under_way: SmallVec::new(), fallbacks: Vec::new() }
    }

    /// The parts are read on tracked connections, and may have to be asked again on relays.
    pub(super) fn filling(mut self, under_way: &[KeyHash], fallbacks: Vec<(Bytes, Effect)>) -> Self {
        self.under_way = SmallVec::from_slice(under_way);
        self.fallbacks = fallbacks;
        self
    }

    /// The reply to a part; the whole reply if it was the last one.
    pub(super) fn give(&mut self, part: u32, bytes: Bytes) -> Option<Bytes> {
        let reply = self.replies.get_mut(part as usize).filter(|reply| reply.is_none())?;
        *reply = Some(bytes);
        self.missing -= 1;
        (self.missing == 0).then(|| self.merged())
    }

    /// A part as it is asked on a relay; its keys are no longer read on a tracked connection.
    pub(super) fn fallback(&mut self, part: u32) -> Option<(Bytes, Effect)> {
        let (request, effect) = self.fallbacks.get_mut(part as usize).map(std::mem::take)?;
        for key in &effect.keys {
            if let Some(at) = self.under_way.iter().position(|known| known == key) {
                self.under_way.swap_remove(at);
            }
        }
        Some((request, effect))
    }

    /// Whether it may stay unanswered for as long as the app likes.
    pub(super) fn waits(&self) -> bool {
        self.merge == Merge::Least
    }

    pub(super) fn take_keys(&mut self) -> SmallVec<[KeyHash; 2]> {
        std::mem::take(&mut self.under_way)
    }

    /// An error of any part is the answer, unless one is asked for; else what the replies are together.
    fn merged(&self) -> Bytes {
        let replies = || self.replies.iter().flatten();
        let wanted = match self.merge {
            Merge::Ended => replies().min_by_key(|reply| match &reply[..] {
                [b'+', ..] => 0,
                [b'-', code @ ..] if code.starts_with(b"UNKILLABLE") => 1,
                [b'-', code @ ..] if code.starts_with(b"NOTBUSY") => 3,
                _ => 2,
            }),
            Merge::Running => replies().find(|reply| runs(reply)),
            _ => None,
        };
        if let Some(wanted) = wanted {
            return wanted.clone();
        }
        if let Some(error) = replies().find(|reply| matches!(reply.first(), Some(b'-' | b'!'))) {
            return error.clone();
        }
        let values: Vec<Value<'_>> = replies().filter_map(|reply| Some(Value::decode(reply).ok()?.0)).collect();
        let mut out = Vec::new();
        match self.merge {
            Merge::Same | Merge::Ended | Merge::Running => return replies().next().cloned().unwrap_or_default(),
            Merge::Sum => encode::integer(&mut out, values.iter().filter_map(Value::as_integer).sum()),
            Merge::Join => {
                let elements: Vec<_> = values.iter().filter_map(Value::as_elements).flatten().collect();
                encode::array_header(&mut out, elements.len());
                for element in elements {
                    element.encode(self.protocol, &mut out);
                }
            }
            Merge::Every => {
                let columns = values.iter().filter_map(Value::as_elements).map(<[_]>::len).min().unwrap_or(0);
                encode::array_header(&mut out, columns);
                for column in 0..columns {
                    let is_set =
                        |value: &Value<'_>| value.as_elements().is_some_and(|row| row[column] != Value::Integer(0));
                    encode::integer(&mut out, i64::from(values.iter().all(is_set)));
                }
            }
            Merge::Least => {
                let rows: Vec<&[Value<'_>]> = values.iter().filter_map(Value::as_elements).collect();
                if rows.is_empty() {
                    encode::integer(&mut out, values.iter().filter_map(Value::as_integer).min().unwrap_or(0));
                } else {
                    let columns = rows.iter().map(|row| row.len()).min().unwrap_or(0);
                    encode::array_header(&mut out, columns);
                    for column in 0..columns {
                        let least = rows.iter().filter_map(|row| row[column].as_integer()).min();
                        encode::integer(&mut out, least.unwrap_or(0));
                    }
                }
            }
            Merge::InOrder => {
                let mut elements = vec![&Value::Null; self.keys.iter().map(SmallVec::len).sum()];
                for (value, places) in values.iter().zip(&self.keys) {
                    for (element, place) in value.as_elements().unwrap_or_default().iter().zip(places) {
                        elements[*place] = element;
                    }
                }
                encode::array_header(&mut out, elements.len());
                for element in elements {
                    element.encode(self.protocol, &mut out);
                }
            }
        }
        out.into()
    }
}

impl Conversation {
    /// Sends a request to the nodes of a cluster that have to answer it; `None`: one of them can, as it is.
    pub(super) fn scatter(&mut self, redis: &RedisL3, row: &Row, args: Args<'_>, effect: &Effect) -> Option<Flow> {
        match row.spread {
            _ if !row.accepts(args.len()) => None,
            Spread::One | Spread::Written(_) => None,
            Spread::Keys(merge) => {
                let positions = row.keys(args.len(), |index| args.get(index));
                let groups = groups(positions.iter().map(|position| args.get(*position)));
                if groups.len() < 2 {
                    return None;
                }
                let shared = self.worker.shared.clone();
                let request = |group: &Group<'_>| match args.instead() {
                    Some(Instead { reply: ReplyForm::Expiring, .. }) => {
                        let mut out = Vec::new();
                        let words = expiring(&shared.domain, &group.keys);
                        encode::command(&mut out, words.iter().map(|word| &word[..]));
                        out.into()
                    }
                    _ => group.request(args.get(0)),
                };
                let parts =
                    groups.iter().map(|group| (request(group), effect_of_part(effect, &group.keys), Some(group.key())));
                let parts: Vec<_> = parts.collect();
                let places = groups.iter().map(|group| group.places.clone()).collect();
                let gathering = Gathering::new(merge, self.client.protocol, places);
                let (seq, flow) = (self.replies.next_seq(), self.scatter_parts(redis, row, gathering, &parts));
                if flow == Flow::Done {
                    self.note_groups(seq, effect);
                }
                Some(flow)
            }
            Spread::All(merge) => Some(self.scatter_to_all(redis, row, merge, args, effect)),
            Spread::Cursor => self.scan(redis, args, effect),
        }
    }

    fn scatter_parts(
        &mut self,
        redis: &RedisL3,
        row: &Row,
        gathering: Gathering,
        parts: &[(Bytes, Effect, Option<&[u8]>)],
    ) -> Flow {
        let mut nodes = Vec::with_capacity(parts.len());
        for (.., key) in parts {
            match self.home(redis, *key) {
                Home::Node(node) => nodes.push(node),
                Home::Hold => return Flow::Hold,
                Home::Unknown(reason) => return self.reply_not_ready(&reason),
            }
        }
        let (database, protocol) = (self.client.database, self.client.protocol);
        let stream = Stream::Relay(database, protocol);
        if self.is_under_way_elsewhere(stream) {
            return Flow::Hold;
        }
        self.stream = stream;
        let seq = self.replies.expect(Pending::Gathering(Box::new(gathering)));
        for (part, (node, (request, effect, _))) in (0..).zip(nodes.iter().zip(parts)) {
            self.note_write(row, node.id);
            let lane = self.worker.relay(node, database, protocol);
            self.send_relayed(&lane, request.clone(), Place { seq, part }, effect.clone());
        }
        Flow::Done
    }

    fn scatter_to_all(&mut self, redis: &RedisL3, row: &Row, merge: Merge, args: Args<'_>, effect: &Effect) -> Flow {
        // One map for all of it: the same one that `home` looks at.
        if let Home::Hold = self.home(redis, None) {
            return Flow::Hold;
        }
        let nodes = redis.nodes();
        if nodes.is_empty() {
            let Home::Unknown(reason) = self.home(redis, None) else { return Flow::Hold };
            return self.reply_not_ready(&reason);
        }
        let (database, protocol) = (self.client.database, self.client.protocol);
        let stream = Stream::Relay(database, protocol);
        if self.is_under_way_elsewhere(stream) {
            return Flow::Hold;
        }
        self.stream = stream;
        let gathering = Gathering::new(merge, protocol, vec![SmallVec::new(); nodes.len()]);
        let seq = self.replies.expect(Pending::Gathering(Box::new(gathering)));
        self.note_groups(seq, effect);
        let request = args.to_bytes();
        for (part, node) in (0..).zip(&nodes) {
            self.note_write(row, node.id);
            let lane = self.worker.relay(node, database, protocol);
            self.send_relayed(&lane, request.clone(), Place { seq, part }, effect.clone());
        }
        Flow::Done
    }

    // === SCAN ===

    /// One node after the other; which one, the cursor says.
    fn scan(&mut self, redis: &RedisL3, args: Args<'_>, effect: &Effect) -> Option<Flow> {
        let cursor: u64 = std::str::from_utf8(args.get(1)).ok()?.parse().ok()?;
        let (cursor, at) = (cursor >> NODE_BITS, (cursor & ((1 << NODE_BITS) - 1)) as usize);
        let Home::Node(_) = self.home(redis, None) else { return None };
        let nodes = redis.nodes();
        let Some(node) = nodes.get(at) else {
            // The cluster has become smaller.
            self.reply(|out| out.extend_from_slice(b"*2\r\n$1\r\n0\r\n*0\r\n"));
            return Some(Flow::Done);
        };
        let (database, protocol) = (self.client.database, self.client.protocol);
        let stream = Stream::Relay(database, protocol);
        if self.is_under_way_elsewhere(stream) {
            return Some(Flow::Hold);
        }
        self.stream = stream;
        let cursor = cursor.to_string();
        let mut request: Vec<&[u8]> = args.iter().collect();
        request[1] = cursor.as_bytes();
        let mut out = Vec::new();
        encode::command(&mut out, request);
        let next = (at + 1 < nodes.len()).then_some(at + 1);
        let seq = self.replies.expect(Pending::Scanning { at, next });
        let lane = self.worker.relay(node, database, protocol);
        self.send_relayed(&lane, out.into(), Place { seq, part: 0 }, effect.clone());
        Some(Flow::Done)
    }
}

/// Whether a node's reply to FUNCTION STATS tells of a script that runs.
fn runs(reply: &[u8]) -> bool {
    let stats = Value::decode(reply).map(|(stats, _)| stats);
    stats.is_ok_and(|stats| stats.field(b"running_script").is_some_and(|script| *script != Value::Null))
}

/// A node's reply to SCAN with the cursor that an app gets.
pub(super) fn scanned(reply: &[u8], at: usize, next: Option<usize>, protocol: Protocol) -> Option<Bytes> {
    let (value, _) = Value::decode(reply).ok()?;
    let [cursor, keys] = value.as_elements()? else { return None };
    let cursor: u64 = std::str::from_utf8(cursor.as_bytes()?).ok()?.parse().ok()?;
    let cursor = match (cursor, next) {
        (0, next) => next.unwrap_or(0) as u64,
        (cursor, _) => cursor << NODE_BITS | at as u64,
    };
    let mut out = Vec::with_capacity(reply.len() + 8);
    encode::array_header(&mut out, 2);
    encode::bulk(&mut out, cursor.to_string().as_bytes());
    keys.encode(protocol, &mut out);
    Some(out.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gather(merge: Merge, keys: &[&[usize]], replies: &[&'static str]) -> String {
        let keys = keys.iter().map(|places| SmallVec::from_slice(places)).collect();
        let mut gathering = Gathering::new(merge, Protocol::Resp2, keys);
        let mut whole = None;
        // In another order than they were asked.
        for (part, reply) in replies.iter().enumerate().rev() {
            assert!(whole.is_none());
            whole = gathering.give(part as u32, Bytes::from_static(reply.as_bytes()));
        }
        String::from_utf8(whole.unwrap().to_vec()).unwrap()
    }

    #[test]
    fn parts_become_the_reply_of_one_server() {
        let two: &[&[usize]] = &[&[], &[]];
        assert_eq!(gather(Merge::Sum, two, &[":2\r\n", ":3\r\n"]), ":5\r\n");
        assert_eq!(gather(Merge::Least, two, &[":2\r\n", ":1\r\n"]), ":1\r\n");
        assert_eq!(gather(Merge::Least, two, &["*2\r\n:1\r\n:2\r\n", "*2\r\n:0\r\n:3\r\n"]), "*2\r\n:0\r\n:2\r\n");
        assert_eq!(gather(Merge::Same, two, &["+OK\r\n", "+OK\r\n"]), "+OK\r\n");
        assert_eq!(gather(Merge::Same, two, &["+OK\r\n", "-ERR no\r\n"]), "-ERR no\r\n");
        let (busy, idle) = ("-UNKILLABLE no\r\n", "-NOTBUSY no\r\n");
        let ended = [[idle, "+OK\r\n"], [busy, "+OK\r\n"], [idle, busy], [idle, "-NOTREADY\r\n"], [idle, idle]];
        assert_eq!(
            ended.map(|replies| gather(Merge::Ended, two, &replies)),
            ["+OK\r\n", "+OK\r\n", busy, "-NOTREADY\r\n", idle]
        );
        let (none, one) = ("*2\r\n$14\r\nrunning_script\r\n$-1\r\n", "*2\r\n$14\r\nrunning_script\r\n*0\r\n");
        assert_eq!(gather(Merge::Running, two, &[none, one]), one);
        assert_eq!(gather(Merge::Running, two, &["-NOTREADY\r\n", one]), one);
        assert_eq!(gather(Merge::Running, two, &[none, none]), none);
        assert_eq!(gather(Merge::Join, two, &["*1\r\n$1\r\na\r\n", "*0\r\n"]), "*1\r\n$1\r\na\r\n");
        assert_eq!(gather(Merge::Every, two, &["*2\r\n:1\r\n:1\r\n", "*2\r\n:0\r\n:1\r\n"]), "*2\r\n:0\r\n:1\r\n");
        let values = ["*2\r\n$1\r\na\r\n$-1\r\n", "*1\r\n$1\r\nb\r\n"];
        assert_eq!(gather(Merge::InOrder, &[&[0, 2], &[1]], &values), "*3\r\n$1\r\na\r\n$1\r\nb\r\n$-1\r\n");
    }

    #[test]
    fn a_cursor_names_its_node() {
        let scanned = |reply: &str, at, next| {
            let reply = scanned(reply.as_bytes(), at, next, Protocol::Resp2).unwrap();
            String::from_utf8(reply.to_vec()).unwrap()
        };
        assert_eq!(scanned("*2\r\n$1\r\n7\r\n*0\r\n", 2, Some(3)), format!("*2\r\n$4\r\n{}\r\n*0\r\n", 7 << 10 | 2));
        assert_eq!(scanned("*2\r\n$1\r\n0\r\n*0\r\n", 2, Some(3)), "*2\r\n$1\r\n3\r\n*0\r\n");
        assert_eq!(scanned("*2\r\n$1\r\n0\r\n*0\r\n", 2, None), "*2\r\n$1\r\n0\r\n*0\r\n");
    }

    #[test]
    fn keys_are_grouped_by_slot() {
        let keys: [&[u8]; 4] = [b"{a}1", b"b", b"{a}2", b"{b}"];
        let places: Vec<_> = groups(keys.into_iter()).iter().map(|group| group.places.to_vec()).collect();
        assert_eq!(places, [vec![0, 2], vec![1, 3]]);
    }
}
