//! What waits until everything that a command caused has been told: a PING behind it on each tracked connection, whose PONG
//! comes after the pushes.

use std::{any::Any, sync::Arc};

use bytes::Bytes;
use caddy_engine::FlushCause;
use caddy_remote::{LaneHandle, Request, Tracking};

use crate::{
    guards::{Guard, hold},
    mailbox::ReplyTo,
    nodes::Node,
    shared::Shared,
    upstream::Tag,
};

/// What is done when the last barrier that holds it is gone, by being dropped, whether its PONG came or its connection was
/// lost (a loss kills every copy, which is all that the barrier is for).
pub(crate) type HeldBack = Arc<dyn Any + Send + Sync>;

/// A reply that goes out then.
#[derive(Debug)]
pub(crate) struct HeldReply {
    pub(crate) to: ReplyTo,
    pub(crate) bytes: Bytes,
}

impl Drop for HeldReply {
    fn drop(&mut self) {
        self.to.reply(std::mem::take(&mut self.bytes));
    }
}

/// A request that is sent then, and whose answer nobody waits for.
#[derive(Debug)]
pub(crate) struct HeldRequest {
    pub(crate) lane: LaneHandle<Tag>,
    pub(crate) bytes: Bytes,
    pub(crate) replies: u16,
}

impl Drop for HeldRequest {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let _ = self.lane.submit(Request { bytes, replies: self.replies, tag: Tag::Forward });
    }
}

/// Sends a PING behind whatever the command caused, on every tracked connection to the node that executed it; what is held
/// is let go when the last PONG is in.
pub(crate) fn barrier(shared: &Shared, node: &Node, held: &HeldBack) {
    shared.absences.touched_any(|| shared.now());
    if node.target.tracking == Tracking::Nothing {
        // No push will come: whatever it touched dies now, before the reply goes out.
        if hold(Guard::FlushUntracked) {
            shared.kernel().flush_all(FlushCause::Overwritten);
        }
        return;
    }
    node.for_each_tracked(|lane| {
        let bytes = Bytes::from_static(b"*1\r\n$4\r\nPING\r\n");
        let _ = lane.submit(Request { bytes, replies: 1, tag: Tag::Barrier(held.clone()) });
    });
}
