//! A write on its way: L3 has answered, so the store is to get it.

use std::sync::Arc;

use bytes::Bytes;
use caddy_engine::strategy::behind::Room;
use caddy_remote::Loss;
use caddy_resp::{Protocol, encode};

use super::Behind;
use crate::{
    mailbox::ReplyTo,
    session::store_writes::StoreWrite,
    shared::Shared,
    upstream::{Effect, error_reply, nil},
};

/// A write of a keyspace that writes behind, under way to L3.
#[derive(Debug)]
pub(crate) struct Storing {
    pub(crate) to: ReplyTo,
    pub(crate) protocol: Protocol,
    pub(crate) effect: Effect,
    /// Which of the replies is the command's; the other is the lease's.
    pub(crate) index: u16,
    pub(crate) reply: Option<Bytes>,
    pub(crate) write: StoreWrite,
    pub(crate) behind: Arc<Behind>,
    pub(crate) room: Room<Bytes, Bytes>,
}

impl Storing {
    /// L3 has answered, or never will. Called in the order in which L3 executed the writes: that is the order of the queue.
    pub(crate) fn finish(self: Box<Self>, shared: &Shared, outcome: Result<(), Loss>) {
        let Self { to, protocol, effect, reply, write, behind, room, .. } = *self;
        // Whatever the answer is, also a loss: it may have been executed.
        effect.apply(shared);
        let reply = match (outcome, reply) {
            (Ok(()), Some(reply)) => reply,
            (Err(loss), _) => return to.reply(error_reply(&loss)),
            (Ok(()), None) => return to.reply(&b"-ERR the connection ended without a reply\r\n"[..]),
        };
        let writes = write.applied(&reply);
        let reply = translated(reply, protocol);
        if writes.is_empty() {
            return to.reply(reply);
        }
        let keyspace = behind.clone();
        behind.writer.write(
            room,
            writes,
            Box::new(move |kept| match kept {
                Ok(()) => to.reply(reply),
                Err(error) => to.reply(error_text(&format!(
                    "STOREERR Redis has it, but store '{}' may never: {error}; see whether the store is up and the \
                     pod's volume has room, and write it again",
                    keyspace.store
                ))),
            }),
        );
    }
}

/// A RESP2 reply to a write, as `protocol` writes it: only nulls differ.
pub(crate) fn translated(reply: Bytes, protocol: Protocol) -> Bytes {
    if protocol == Protocol::Resp3 && &reply[..] == nil(Protocol::Resp2) {
        return Bytes::from_static(nil(Protocol::Resp3));
    }
    reply
}

pub(crate) fn error_text(text: &str) -> Bytes {
    let mut out = Vec::new();
    encode::error(&mut out, text);
    out.into()
}
