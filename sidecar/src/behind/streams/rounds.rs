//! Waiting for replicas: one `WAIT` for all writes of a node that were answered before it was sent.
//!
//! Owns what is made of its answer: who is acknowledged, and what people are told. A write that another connection brought
//! than the one that waits, is not acknowledged by it.

use std::sync::Arc;

use bytes::Bytes;
use caddy_engine::{
    crash,
    strategy::behind::{Done, JournalError},
};
use caddy_remote::Loss;

use super::{Streams, text};
use crate::{answers::integer, behind::storing::Via, shared::Shared};

impl Streams {
    /// For people: `ok`, or why writes wait for the store.
    pub(crate) fn replication(&self) -> String {
        let trouble = self.trouble();
        if trouble.is_empty() { "ok".to_owned() } else { trouble }
    }

    /// Why replicas do not have what was written last; empty if they do, or nothing was.
    pub(in crate::behind) fn trouble(&self) -> String {
        self.trouble.lock().clone()
    }

    /// Whether replicas have what was written last: told once, and once that it is over.
    fn say(&self, reason: Option<&str>) {
        let (mut trouble, keyspace) = (self.trouble.lock(), &self.keyspace);
        match reason {
            Some(reason) if trouble.is_empty() => {
                tracing::warn!(
                    keyspace,
                    "writes with durability Replicated are acknowledged by the store only: {reason}"
                );
            }
            None if !trouble.is_empty() => tracing::info!(keyspace, "replicas of Redis have what is written again"),
            _ => {}
        }
        trouble.clear();
        trouble.push_str(reason.unwrap_or_default());
    }
}

/// A `WAIT` for all writes of a node that were answered before it was sent.
pub(crate) struct Round {
    pub(super) streams: Arc<Streams>,
    pub(super) waiting: Vec<(u64, Done)>,
    pub(crate) reply: Option<Bytes>,
}

impl std::fmt::Debug for Round {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Round").field("waiting", &self.waiting.len()).finish_non_exhaustive()
    }
}

impl Round {
    /// It was answered, or never will be.
    pub(crate) fn finish(self, shared: &Arc<Shared>, via: &Via<'_>, outcome: &Result<(), Loss>) {
        let Self { streams, waiting, reply } = self;
        crash::point("replicas-have-it");
        let wanted = streams.replicas;
        let have = reply.as_deref().and_then(integer).and_then(|count| u32::try_from(count).ok());
        let reason = match (outcome, have) {
            (Ok(()), Some(have)) if have >= wanted => None,
            (Ok(()), Some(have)) => Some(format!(
                "{have} of {wanted} replicas of Redis have it in time (writeBehind.replicas); see whether they are connected"
            )),
            (Ok(()), None) => Some(format!("Redis does not wait for replicas: {}", text(reply.as_deref()))),
            (Err(loss), _) => Some(loss.to_string()),
        };
        streams.say(reason.as_deref());
        let lost = "the connection to Redis was lost before its replicas were asked";
        for (connection, done) in waiting {
            let reason = match &reason {
                // Of writes that another connection brought, this one knows nothing.
                None if connection != via.connection => Some(lost),
                None => None,
                Some(reason) => Some(reason.as_str()),
            };
            done(reason.map_or(Ok(()), |reason| Err(JournalError { reason: reason.into() })));
        }
        let mut state = streams.state.lock();
        let rounds = state.rounds.entry(via.node.id).or_default();
        rounds.is_under_way = false;
        rounds.has_failed = reason.is_some();
        if rounds.waiting.is_empty() {
            state.rounds.retain(|_, rounds| rounds.has_failed || rounds.is_under_way || !rounds.waiting.is_empty());
        } else {
            streams.begin_round(shared, via.node, rounds);
        }
    }
}
