//! One currency proof under way: the server's own word, with Sentinel also theirs, and what both together prove.
//!
//! A server that answers a probe as a primary has sent every push that was due before. Under Sentinel that is not enough:
//! a primary that was replaced while it slept, or on the other side of a partition, still says that it is one. So a
//! majority of the Sentinels must answer, after the probe was sent, that nobody replaced it.

use std::sync::Arc;

use caddy_engine::{Currency, Moment, Sent};
use caddy_remote::{Sentinels, ServerInfo, Tracking};
use parking_lot::Mutex;

use crate::{
    guards::{Guard, hold},
    nodes::{Node, NodeId},
    shared::Shared,
};

/// See the module.
#[derive(Debug)]
pub(crate) struct Proof {
    node: NodeId,
    sent: Sent,
    /// Asked at once behind another one, which alone proves nothing.
    is_second: bool,
    parts: Mutex<Parts>,
}

#[derive(Debug)]
struct Parts {
    /// What the server's word proves; `None`: it has not spoken.
    server: Option<Proven>,
    /// The Sentinels' word is in, or there are none.
    sentinels: bool,
}

/// The outcome of the server's word: `None` where it is the first on its connection and proves nothing yet.
type Proven = (Option<Sent>, ServerInfo);

impl Proof {
    /// One that is about to be asked for under `sent`.
    pub(crate) fn ask(shared: &Arc<Shared>, node: &Node, sent: Sent, is_second: bool) -> Arc<Self> {
        let sentinels = node.target.sentinels.as_ref().filter(|_| hold(Guard::SentinelOpinion));
        let proof = Arc::new(Self {
            node: node.id,
            sent,
            is_second,
            parts: Mutex::new(Parts { server: None, sentinels: sentinels.is_none() }),
        });
        if let Some(sentinels) = sentinels {
            proof.ask_sentinels(shared, sentinels);
        }
        proof
    }

    fn ask_sentinels(self: &Arc<Self>, shared: &Arc<Shared>, sentinels: &Arc<Sentinels>) {
        let (proof, shared, version) = (self.clone(), shared.clone(), sentinels.version());
        sentinels.ask(move |verdict| match verdict {
            // Of another version: the connection that the probe went out on ends.
            Ok(verdict) if verdict.is_of_majority && verdict.version == version => {
                proof.parts.lock().sentinels = true;
                proof.settle(&shared);
            }
            Ok(verdict) if verdict.version != version => {}
            Ok(_) => {
                shared.status.unproven(
                    proof.node,
                    "fewer than a majority of the Sentinels answer: nothing proves copies current",
                );
            }
            Err(error) => shared.status.unproven(proof.node, &error.to_string()),
        });
    }

    /// When it was sent.
    pub(crate) fn sent(&self) -> Sent {
        self.sent
    }

    /// The server has answered as it should. `previous` is the last probe of the same connection that was answered, and when
    /// that was.
    pub(crate) fn server_answered(
        &self,
        shared: &Shared,
        tracking: &Tracking,
        previous: &mut Option<(Sent, Moment)>,
        info: &ServerInfo,
    ) {
        let before = previous.replace((self.sent, shared.now()));
        let proven = match tracking {
            // What is announced to all goes out at the end of the server's round, which may be after this answer, and after
            // that to another probe in the same round: only one that was answered before this one was sent is behind it.
            Tracking::Broadcast(_) if hold(Guard::BroadcastLag) => {
                before.filter(|(_, answered)| *answered < self.sent.at()).map(|(before, _)| before)
            }
            _ => Some(self.sent),
        };
        self.parts.lock().server = Some((proven, info.clone()));
        self.settle(shared);
    }

    /// Whether another one is needed now: on a connection that was idle, what is announced to all is proved by two.
    pub(crate) fn needs_second(&self, shared: &Shared, tracking: &Tracking) -> bool {
        matches!(tracking, Tracking::Broadcast(_))
            && !self.is_second
            && shared.kernel().currency(self.sent.source(), shared.now()) == Currency::Lapsed
    }

    fn settle(&self, shared: &Shared) {
        let parts = self.parts.lock();
        if let Parts { server: Some((proven, info)), sentinels: true } = &*parts {
            let (kernel, now) = (shared.kernel(), shared.now());
            if let Some(sent) = proven {
                kernel.proved(sent, now);
                shared.ranges.proved(shared, sent.source(), sent.at());
            }
            // Not so if the connection was lost meanwhile.
            if kernel.currency(self.sent.source(), now) != Currency::Lapsed {
                shared.status.proven(self.node, info);
            }
        }
    }
}
