//! SCRIPT KILL, FUNCTION KILL and FUNCTION STATS: they ask about, or end, what another connection runs.
//!
//! Each goes over a connection that runs nothing itself. In a cluster all primaries are asked, since the app does not know
//! which of them runs its script.

use smallvec::SmallVec;

use super::{
    args::Args,
    conversation::{Conversation, Flow, Pending, Stream},
    gather::Gathering,
};
use crate::{
    commands::{Row, Spread},
    effect::Effect,
    mailbox::Place,
    nodes::RedisL3,
    shared::L3,
};

impl Conversation {
    /// On the session's own connection, outside of a transaction.
    pub(super) fn interrupt(&mut self, row: &'static Row, args: Args<'_>) -> Flow {
        let worker = self.worker.clone();
        match &worker.shared.l3 {
            L3::Redis(redis) if redis.cluster().is_some() => self.interrupt_all(redis, row, args),
            _ => self.send(row, args, Pending::Relayed),
        }
    }

    fn interrupt_all(&mut self, redis: &RedisL3, row: &Row, args: Args<'_>) -> Flow {
        let Spread::All(merge) = row.spread else { return Flow::Hold };
        if self.replies.waiting() > 0 {
            return Flow::Hold;
        }
        let lanes = redis.nodes().iter().map(|node| self.lane_beside(node)).collect();
        let lanes: Vec<_> = match lanes {
            Ok(lanes) => lanes,
            Err(message) => {
                self.reply_error(&message);
                return Flow::Done;
            }
        };
        let gathering = Gathering::new(merge, self.client.protocol, vec![SmallVec::new(); lanes.len()]);
        let seq = self.replies.expect(Pending::Gathering(Box::new(gathering)));
        self.stream = Stream::Pinned;
        for (part, lane) in (0..).zip(lanes) {
            self.send_relayed(&lane, args.to_bytes(), Place { seq, part }, Effect::default());
        }
        Flow::Done
    }
}
