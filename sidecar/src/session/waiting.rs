//! WAIT and WAITAOF: have the replicas, and the disks, what this session wrote?
//!
//! Redis answers for the connection that asks, up to the last write on it. The session's writes went over connections that
//! it shares, and those must not be held up; so it asks on one of its own, behind a write of no consequence, which Redis
//! has logged after all that was answered before. What was written before a connection was lost may be lost with it:
//! then the answer is an error, as it would be an end of the connection without us.

use caddy_engine::KeyHash;
use caddy_remote::Request;
use caddy_resp::encode;

use super::{
    args::Args,
    conversation::{Conversation, Flow, Pending, Stream},
    pinned::CLUSTER_REPLICAS,
};
use crate::{
    commands::{self, Row},
    mailbox::ReplyTo,
    shared::L3,
    upstream::{Effect, Relay, Tag},
};

/// The key of the write of no consequence. It is deleted at once; should that fail, it expires.
const KEY: &[u8] = b"caddy:wait";
const LOST: &str = "NOTREADY a connection to Redis was lost since this session last wrote: what it wrote may be lost too, \
                    so no replica can be waited for; see whether it is there, and write again";

impl Conversation {
    /// Remembers, of a request that may write, how many connections had been lost before it.
    pub(super) fn note_write(&mut self, row: &Row) {
        if !matches!(row.effect, commands::Effect::Harmless | commands::Effect::ReadsKeys) {
            self.losses_at_write = Some(self.losses());
        }
    }

    fn losses(&self) -> u64 {
        self.worker.shared.metrics.lost_connections.get()
    }

    /// On the session's own connection, outside of a transaction.
    pub(super) fn wait_for_replicas(&mut self, args: Args<'_>) -> Flow {
        if matches!(&self.worker.shared.l3, L3::Redis(redis) if redis.cluster().is_some()) {
            return self.refuse(args, CLUSTER_REPLICAS);
        }
        if self.losses_at_write.take().is_some_and(|losses| losses != self.losses()) {
            self.reply_error(LOST);
            return Flow::Done;
        }
        let mut bytes = Vec::with_capacity(160);
        encode::command(&mut bytes, [b"SET", KEY, b"", b"PX", b"1000"]);
        encode::command(&mut bytes, [b"DEL", KEY]);
        bytes.extend_from_slice(&args.to_bytes());
        let effect = Effect { keys: [KeyHash::of(KEY)].into_iter().collect(), ..Effect::default() };
        let to = ReplyTo { mailbox: self.mailbox.clone(), place: self.expect(Pending::WaitingForReplicas) };
        self.stream = Stream::Pinned;
        let (database, protocol) = (self.client.database, self.client.protocol);
        let tag = Tag::Relay(Relay { to, effect, reply: None, request: None, database, protocol });
        self.submit_pinned(Request { bytes: bytes.into(), replies: 3, tag });
        Flow::Done
    }
}

/// An answer to WAIT; where the write in front of it was not allowed, that is said.
pub(super) fn explained(reply: &[u8]) -> Option<Vec<u8>> {
    let refusal = reply.strip_prefix(b"-NOPERM ")?.trim_ascii_end();
    let mut out = Vec::new();
    let refusal = String::from_utf8_lossy(refusal);
    encode::error(
        &mut out,
        format!("NOPERM {refusal}; WAIT writes the key caddy:wait first: allow that to the sidecar's user"),
    );
    Some(out)
}
