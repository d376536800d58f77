//! What is known of L3 at this moment, in words for people: shown by INFO, CACHE.WHY, the log and the metrics.
//!
//! Changes are logged once, not at each retry; what changes to and fro many times in a short time, with its number later.

mod told;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwap;
use caddy_engine::{BootClock, Clock as _};
use caddy_remote::ServerInfo;
use parking_lot::Mutex;
use tokio::sync::Notify;

use self::told::Told;
use crate::{facts::Facts, nodes::NodeId};

/// A snapshot of L3's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct L3Status {
    /// The last connect attempt, of any connection, succeeded.
    pub(crate) reachable: bool,
    /// The tracked connections are up, of all nodes that are in use: reads may fill the tiers.
    pub(crate) coherent: bool,
    /// What is wrong and what to do; empty if nothing is.
    pub(crate) reason: String,
    /// What the server last told of itself.
    pub(crate) server: Option<ServerInfo>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Status {
    l3: ArcSwap<L3Status>,
    /// What is wrong with which node's tracked connection.
    troubles: Mutex<BTreeMap<NodeId, String>>,
    /// There is something wrong that was not before.
    troubled: Notify,
    /// Which nodes let single fields of a hash expire: while a cluster is upgraded, some may.
    expiring: Mutex<BTreeSet<NodeId>>,
    fields_expire: AtomicBool,
    /// What the server has told of itself that the promises rest on.
    pub(crate) facts: Facts,
    told: Told,
}

impl Status {
    pub(crate) fn new(embedded: bool) -> Self {
        let reason = if embedded { String::new() } else { "not connected yet".to_owned() };
        let l3 = L3Status { reachable: embedded, coherent: embedded, reason, server: None };
        Self {
            l3: ArcSwap::from_pointee(l3),
            troubles: Mutex::default(),
            troubled: Notify::new(),
            expiring: Mutex::default(),
            fields_expire: AtomicBool::new(true),
            facts: Facts::default(),
            told: Told::default(),
        }
    }

    pub(crate) fn get(&self) -> Arc<L3Status> {
        self.l3.load_full()
    }

    /// Whether single fields of a hash may expire in L3; true until a server has told its version.
    pub(crate) fn fields_expire(&self) -> bool {
        self.fields_expire.load(Ordering::Relaxed)
    }

    /// Whether the server words its permission errors as Redis 7.2 and Valkey do; so until it has told its version.
    pub(crate) fn has_recent_errors(&self) -> bool {
        self.get().server.as_ref().is_none_or(|server| server.server == "valkey" || server.is_at_least(7, 2))
    }

    /// Whether the server lets clients say what they can do (`CLIENT CAPA`): since Valkey 8.
    pub(crate) fn takes_capabilities(&self) -> bool {
        self.get().server.as_ref().is_some_and(|server| server.server == "valkey" && server.is_at_least(8, 0))
    }

    pub(crate) fn tracked_up(&self, node: NodeId, server: Option<&ServerInfo>) {
        let mut troubles = self.troubles.lock();
        troubles.remove(&node);
        if let Some(server) = server {
            let mut expiring = self.expiring.lock();
            if server.expires_fields() {
                expiring.insert(node)
            } else {
                expiring.remove(&node)
            };
            self.fields_expire.store(!expiring.is_empty(), Ordering::Relaxed);
            drop(expiring);
            if let Some(before) = self.told.up(troubles.is_empty(), BootClock.now()) {
                tracing::info!(%server, before, "connected to L3; copies are tracked");
            }
        }
        let reason = troubles.values().next().cloned().unwrap_or_default();
        let server = server.cloned().or_else(|| self.get().server.clone());
        self.l3.store(Arc::new(L3Status { reachable: true, coherent: reason.is_empty(), reason, server }));
    }

    /// The tracked connection to a node cannot be had: nothing of it is cached until it can.
    pub(crate) fn tracked_down(&self, node: NodeId, reason: &str) {
        if node == NodeId::ANNOUNCING {
            return;
        }
        let mut troubles = self.troubles.lock();
        self.change(reason, |status| status.coherent = false);
        troubles.insert(node, reason.to_owned());
        self.troubled.notify_one();
    }

    /// Waits until something is wrong with a tracked connection, or was.
    pub(crate) async fn troubled(&self) {
        self.troubled.notified().await;
    }

    /// These are the nodes now: what was wrong with others is past.
    pub(crate) fn nodes_are(&self, nodes: &[NodeId]) {
        let mut expiring = self.expiring.lock();
        if expiring.iter().any(|node| !nodes.contains(node)) {
            expiring.retain(|node| nodes.contains(node));
            self.fields_expire.store(!expiring.is_empty(), Ordering::Relaxed);
        }
        drop(expiring);
        let mut troubles = self.troubles.lock();
        troubles.retain(|node, _| nodes.contains(node));
        let reason = troubles.values().next().cloned().unwrap_or_default();
        self.change_quietly(|status| {
            status.reachable = true;
            status.coherent = reason.is_empty();
            status.reason.clone_from(&reason);
        });
    }

    /// The tracked connection is up, and something else is missing for copies to be served.
    pub(crate) fn unproven(&self, node: NodeId, reason: &str) {
        if node == NodeId::ANNOUNCING {
            return;
        }
        if self.get().coherent {
            self.tracked_down(node, reason);
        }
    }

    /// Copies are proved current.
    pub(crate) fn proven(&self, node: NodeId, server: &ServerInfo) {
        if node == NodeId::ANNOUNCING {
            return;
        }
        if !self.get().coherent {
            self.tracked_up(node, Some(server));
        }
    }

    pub(crate) fn reachable(&self) {
        if !self.get().reachable {
            self.change_quietly(|status| {
                status.reachable = true;
                if status.coherent {
                    status.reason.clear();
                }
            });
            if self.get().coherent
                && let Some(before) = self.told.end(BootClock.now())
            {
                tracing::info!(before, "L3 is usable again");
            }
        }
    }

    pub(crate) fn unreachable(&self, reason: &str) {
        self.change(reason, |status| status.reachable = false);
    }

    fn change(&self, reason: &str, change: impl Fn(&mut L3Status)) {
        if self.get().reason != reason
            && let Some(before) = self.told.down(reason, BootClock.now())
        {
            tracing::warn!(reason, before, "L3 is not fully usable");
        }
        self.change_quietly(|status| {
            change(status);
            reason.clone_into(&mut status.reason);
        });
    }

    /// Others may change something else at the same time: neither change is lost.
    fn change_quietly(&self, change: impl Fn(&mut L3Status)) {
        self.l3.rcu(|status| {
            let mut status = L3Status::clone(status);
            change(&mut status);
            status
        });
    }
}

#[cfg(test)]
mod tests {
    use caddy_remote::Role;

    use super::*;

    #[test]
    fn fields_may_expire_while_any_node_of_a_cluster_lets_them() {
        let status = Status::new(false);
        let up = |node: u32, version: &str| {
            let (server, version, mode) = ("valkey".to_owned(), version.to_owned(), "cluster".to_owned());
            status.tracked_up(NodeId(node), Some(&ServerInfo { server, version, mode, role: Role::Primary }));
            status.fields_expire()
        };
        status.nodes_are(&[NodeId(1), NodeId(2)]);
        assert!(status.fields_expire(), "nothing is known yet");
        assert!(!up(1, "8.1.0"));
        assert!(up(2, "9.0.0"));
        assert!(up(1, "8.1.0"), "what one tells says nothing of another");
        status.nodes_are(&[NodeId(1)]);
        assert!(!status.fields_expire(), "it has left");
        assert!(up(1, "9.0.0") && !up(1, "8.1.0"), "the last one that was there counts");
    }
}
