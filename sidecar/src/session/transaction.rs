//! What is queued between MULTI and EXEC, and what EXEC's reply means for the session.
//!
//! Redis queues and executes; here is remembered what that will have done: to local copies, to the session's database,
//! to its subscriptions. Commands about the app's own connection (`CLIENT SETNAME`, `AUTH`, `HELLO`) are the session's to
//! answer: Redis queues something harmless in their place, and what it says of that is replaced when EXEC is answered.
//! What cannot be followed is refused, and EXEC then aborts as it does for any error.

use bytes::Bytes;
use caddy_remote::Request;
use caddy_resp::{Limits, Protocol, RequestParser, Value, encode};

use super::{
    args::Args,
    conversation::{Conversation, Flow, Pending, refusal_text},
    pinned::{Fate, Pinned, database},
    relaying::effect,
    replies::Replies,
};
use crate::{
    commands::{self, Class, Pin, Row},
    effect::{Along, Effect},
    shared::L3,
    upstream::Tag,
    worker::PinnedLane,
};

/// Commands of a transaction that may wait for its first key; a longer one is any node's.
const MAX_EARLY: usize = 256;
/// No command of any server.
const UNKNOWN: Bytes = Bytes::from_static(b"*1\r\n$13\r\nCADDY.REFUSED\r\n");
/// What stands in Redis's queue for a command that the session answers.
const STAND_IN: Bytes = Bytes::from_static(b"*1\r\n$4\r\nPING\r\n");

/// What a transaction will have done when EXEC is answered.
#[derive(Debug, Default)]
pub(super) struct Transaction {
    effect: Effect,
    /// How many commands are queued.
    queued: usize,
    /// A HELLO with a protocol is among them.
    switches: bool,
    /// A CLIENT TRACKING is among them.
    tracks: bool,
    outcome: Outcome,
}

/// What EXEC's reply has to be looked at for; places are those of the replies in it.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// SELECTs: whether there is such a database is known then.
    selects: Vec<(usize, u32)>,
    /// Commands that the session answers.
    own: Vec<(usize, Bytes)>,
    /// Subscriptions, and ends of them.
    subscriptions: Vec<usize>,
}

impl Outcome {
    /// Nothing is.
    pub(super) fn is_plain(&self) -> bool {
        self.selects.is_empty() && self.own.is_empty() && self.subscriptions.is_empty()
    }
}

impl Conversation {
    pub(super) fn is_in_transaction(&self) -> bool {
        self.pinned.as_ref().is_some_and(|pinned| pinned.transaction.is_some())
    }

    /// How much of a transaction waits for its first key.
    fn early(&self) -> usize {
        self.pinned.as_ref().map_or(0, |pinned| pinned.early.len())
    }

    /// The first command behind a MULTI that no node has heard of yet; `None`: now one has.
    pub(super) fn open_transaction(&mut self, row: &'static Row, args: Args<'_>) -> Option<Flow> {
        match row.name {
            "quit" | "reset" if args.is(0, row.name) => return None,
            "exec" | "discard" if row.accepts(args.len()) && (row.name == "discard" || self.early() == 0) => {
                self.pinned = None;
                match row.name {
                    "exec" => self.reply(|out| encode::array_header(out, 0)),
                    _ => self.reply_ok(),
                }
                return Some(Flow::Done);
            }
            _ if can_wait_for_a_key(row, args) && self.early() < MAX_EARLY => {
                if let Some(Pinned { early, transaction: Some(transaction), .. }) = self.pinned.as_deref_mut() {
                    early.push(args.to_bytes());
                    transaction.effect.merge_queued(&effect(row, args), transaction.queued);
                    transaction.queued += 1;
                }
                self.reply(|out| encode::simple(out, "QUEUED"));
                return Some(Flow::Done);
            }
            _ => {}
        }
        let worker = self.worker.clone();
        let L3::Redis(redis) = &worker.shared.l3 else { return None };
        let lane = match self.own_lane(redis, row, args) {
            Ok(lane) => lane,
            Err(flow) => {
                if flow == Flow::Done {
                    // The app was told why; there is no transaction.
                    self.pinned = None;
                }
                return Some(flow);
            }
        };
        if let Some(pinned) = &mut self.pinned {
            // The app has its answers.
            let mut bytes = b"*1\r\n$5\r\nMULTI\r\n".to_vec();
            pinned.early.iter().for_each(|request| bytes.extend_from_slice(request));
            let replies = u16::try_from(1 + pinned.early.len()).unwrap_or(u16::MAX);
            pinned.early.clear();
            let _ = lane.handle().submit(Request { bytes: bytes.into(), replies, tag: Tag::Forward });
            pinned.lane = Some(lane);
        }
        None
    }

    /// Answers a request of a transaction by an error that ends it; `None`: there is no transaction.
    pub(super) fn refuse_in_transaction(&mut self, refusal: Vec<u8>) -> Option<Flow> {
        self.pinned.as_ref()?.transaction.as_ref()?;
        // Redis has to hear of it, or EXEC would execute the rest: what it does not know aborts a transaction.
        Some(self.send_with(UNKNOWN, Effect::default(), Pending::Refused(refusal.into())))
    }

    /// A request between MULTI and EXEC or DISCARD, or one of these.
    pub(super) fn within_transaction(&mut self, row: &'static Row, args: Args<'_>) -> Flow {
        let mut effect = self.ending_leases(row, args, effect(row, args));
        effect.ends_groups |= self.ends_groups(row, args, &effect);
        let Some(pinned) = &mut self.pinned else { return Flow::Hold };
        let switches = pinned.transaction.as_ref().is_some_and(|transaction| transaction.switches);
        let may_subscribe = self.client.protocol == Protocol::Resp2 && !switches;
        if let Some(hint) = refused_in_transaction(row, args, may_subscribe) {
            let mut refusal = Vec::new();
            encode::error(&mut refusal, refusal_text(args, hint));
            return self.refuse_in_transaction(refusal).unwrap_or(Flow::Done);
        }
        let stand_in = stand_in(row, args);
        let changes_connection = matches!(row.class, Class::Session | Class::Pinned(Pin::Tracking | Pin::Connection));
        if (changes_connection && stand_in.is_none() && row.name != "select") || row.name == "hello" {
            // EXEC may leave the connection otherwise than it was.
            pinned.fate = pinned.fate.max(Fate::Closed);
        }
        match (row.name, &mut pinned.transaction) {
            ("exec", transaction) => {
                let Transaction { mut effect, tracks, outcome, .. } = transaction.take().unwrap_or_default();
                effect.along = Along::Within;
                if tracks {
                    pinned.fate = Fate::Kept;
                }
                pinned.watching = false;
                if let Some(node) = pinned.lane.as_ref().map(PinnedLane::node) {
                    self.note_write(row, node);
                }
                return self.send_with(args.to_bytes(), effect, Pending::Executing(Box::new(outcome)));
            }
            ("discard", transaction) => {
                *transaction = None;
                pinned.watching = false;
            }
            // Answered at once, by an error.
            ("multi" | "watch", _) | (_, None) => {}
            (name, Some(Transaction { effect: whole, queued, switches, tracks, outcome })) => {
                *switches |= name == "hello" && args.len() > 1;
                *tracks |= row.class == Class::Pinned(Pin::Tracking);
                if name == "select"
                    && let Some(database) = database(args)
                {
                    outcome.selects.push((*queued, database));
                }
                if stand_in.is_some() {
                    outcome.own.push((*queued, args.to_bytes()));
                }
                if row.class == Class::Pinned(Pin::PubSub) {
                    outcome.subscriptions.push(*queued);
                }
                whole.merge_queued(&effect, *queued);
                *queued += 1;
            }
        }
        let bytes = stand_in.unwrap_or_else(|| args.to_bytes());
        self.send_with(bytes, Effect::default(), Pending::Relayed)
    }

    /// EXEC was answered: what that did to the session; the reply as the app gets it.
    pub(super) fn executed(&mut self, outcome: &Outcome, exec: Bytes) -> Bytes {
        let Some(replies) = elements(&exec).filter(|_| !outcome.is_plain()) else { return exec };
        let mut out = Vec::with_capacity(exec.len() + 64);
        encode::array_header(&mut out, replies.len());
        for (place, reply) in replies.iter().enumerate() {
            if let Some((_, database)) = outcome.selects.iter().find(|(at, _)| *at == place)
                && !reply.starts_with(b"-")
            {
                self.client.set_database(*database);
            }
            if outcome.subscriptions.contains(&place) {
                self.subscribed(reply);
            }
            match outcome.own.iter().find(|(at, _)| *at == place) {
                Some((_, request)) => out.extend_from_slice(&self.own_reply(request)),
                None => out.extend_from_slice(reply),
            }
        }
        out.into()
    }

    /// What the session answers to a command about itself, in place of Redis.
    fn own_reply(&mut self, request: &[u8]) -> Vec<u8> {
        let mut parser = RequestParser::new(Limits { max_frame: usize::MAX, ..Limits::default() });
        // It was a whole request when it was queued.
        let Ok(Some(_)) = parser.parse(request) else { return b"-ERR the request cannot be read again\r\n".to_vec() };
        let args = Args::new(&parser, request);
        let row = commands::lookup_request(args.len(), |index| args.get(index));
        let (out, replies) = (std::mem::take(&mut self.out), std::mem::replace(&mut self.replies, Replies::new()));
        self.own_command(row, args);
        self.replies = replies;
        std::mem::replace(&mut self.out, out)
    }

    /// A subscription within a transaction has come about, or ended.
    fn subscribed(&mut self, confirmation: &[u8]) {
        let is_resp2 = self.client.protocol == Protocol::Resp2;
        if let Some(pinned) = &mut self.pinned
            && pinned.subscriptions.take(confirmation)
        {
            pinned.fate = pinned.fate.max(Fate::Closed);
            pinned.subscribed_resp2 = is_resp2 && pinned.subscriptions.any();
        }
    }
}

/// The replies within an EXEC's; `None` if it is an error, or null.
fn elements(exec: &[u8]) -> Option<Vec<&[u8]>> {
    let header = exec.windows(2).position(|end| end == b"\r\n")?;
    let count: usize = std::str::from_utf8(exec[..header].strip_prefix(b"*")?).ok()?.parse().ok()?;
    let mut rest = &exec[header + 2..];
    (0..count)
        .map(|_| {
            let (_, length) = Value::decode(rest).ok()?;
            let (element, behind) = rest.split_at(length);
            rest = behind;
            Some(element)
        })
        .collect()
}

/// What Redis is to queue in place of a command that is the session's to answer; `None`: the command itself.
fn stand_in(row: &Row, args: Args<'_>) -> Option<Bytes> {
    let is_own = match row.name {
        // The connection to Redis has to change with the session.
        "hello" if args.len() == 2 && matches!(args.get(1), b"2" | b"3") => return Some(args.to_bytes()),
        "auth" | "hello" | "setname" | "setinfo" => true,
        "id" | "getname" | "info" | "list" => args.is(0, "CLIENT"),
        // Otherwise it is an error, and in Redis's words.
        "no-evict" | "no-touch" => args.is(2, "ON") || args.is(2, "OFF"),
        _ => false,
    };
    is_own.then_some(STAND_IN)
}

/// Whether a command of a transaction says nothing of the node that the transaction is for, and Redis would queue it.
fn can_wait_for_a_key(row: &Row, args: Args<'_>) -> bool {
    !row.name.is_empty()
        && row.accepts(args.len())
        && matches!(row.class, Class::Local | Class::Relayed)
        && !row.name.starts_with("cache.")
        && Conversation::routing_key(row, args).is_none()
}

/// Why a command cannot be queued: what EXEC would then do to the connection could not be followed here.
fn refused_in_transaction(row: &Row, args: Args<'_>, may_subscribe: bool) -> Option<&'static str> {
    match (row.class, row.name) {
        (Class::Refused(hint), _) => Some(hint),
        // Redis puts a push into the reply to EXEC, or an array for each channel, and neither can be read.
        (Class::Pinned(Pin::PubSub), _) if args.len() != 2 || !may_subscribe => {
            Some("within MULTI it takes one channel, and RESP2; send it before MULTI or after EXEC")
        }
        (Class::Session, "hello") if args.len() > 2 => Some("within MULTI it takes the protocol only"),
        (Class::Session, "reply") | (Class::Cache | Class::Lock, _) => Some("send it outside of MULTI"),
        (_, name) if name.starts_with("cache.") => Some("send it outside of MULTI"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_replies_within_an_exec_are_told_apart() {
        let exec = b"*3\r\n+OK\r\n*2\r\n$1\r\na\r\n:1\r\n-ERR no\r\n";
        let parts: [&[u8]; 3] = [b"+OK\r\n", b"*2\r\n$1\r\na\r\n:1\r\n", b"-ERR no\r\n"];
        assert_eq!(elements(exec).as_deref(), Some(parts.as_slice()));
        assert_eq!(elements(b"*0\r\n"), Some(Vec::new()));
        for other in [&b"*-1\r\n"[..], b"_\r\n", b"-EXECABORT no\r\n", b"*2\r\n+OK\r\n", b""] {
            assert_eq!(elements(other), None, "{}", other.escape_ascii());
        }
    }
}
