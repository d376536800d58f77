//! Which node of a cluster the writes of a slot are under way to: those of one key are answered in the order in which Redis
//! executed them.
//!
//! A slot that moves is executed by one node and then by another, whose replies come over another connection. So what is
//! written to a slot follows what is under way there, to the node that has it, and is sent on from there by its redirection,
//! behind the others. Only when nothing is under way the slot map says where to.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use crate::nodes::{Node, NodeId};

type Slots = Mutex<HashMap<u16, Vec<(Arc<Node>, usize)>>>;

/// See the module.
#[derive(Clone, Default)]
pub(crate) struct Ways(Arc<Slots>);

/// A write under way; dropped, it is answered.
pub(crate) struct Way {
    all: Arc<Slots>,
    slot: u16,
    node: Arc<Node>,
}

impl std::fmt::Debug for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Way").field("slot", &self.slot).field("node", &self.node.id).finish_non_exhaustive()
    }
}

impl Ways {
    /// The way of a write to a slot that the map gives to `owner`.
    pub(crate) fn enter(&self, slot: u16, owner: &Arc<Node>) -> Way {
        let mut slots = self.0.lock();
        let nodes = slots.entry(slot).or_default();
        if nodes.is_empty() {
            nodes.push((owner.clone(), 0));
        }
        nodes[0].1 += 1;
        Way { all: self.0.clone(), slot, node: nodes[0].0.clone() }
    }
}

impl Way {
    /// Where it goes.
    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// It was sent away from there, to `node`.
    pub(crate) fn redirected(self, node: &Arc<Node>) -> Self {
        let mut slots = self.all.lock();
        let nodes = slots.entry(self.slot).or_default();
        match nodes.iter_mut().find(|(other, _)| other.id == node.id) {
            Some((_, count)) => *count += 1,
            None => nodes.push((node.clone(), 1)),
        }
        drop(slots);
        Self { all: self.all.clone(), slot: self.slot, node: node.clone() }
    }

    fn leave(&self, id: NodeId) {
        let mut slots = self.all.lock();
        let Some(nodes) = slots.get_mut(&self.slot) else { return };
        if let Some((_, count)) = nodes.iter_mut().find(|(node, _)| node.id == id) {
            *count -= 1;
        }
        nodes.retain(|(_, count)| *count > 0);
        if nodes.is_empty() {
            slots.remove(&self.slot);
        }
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.leave(self.node.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use caddy_remote::{Endpoint, Target};

    fn node(id: u32) -> Arc<Node> {
        Arc::new(Node::new(NodeId(id), Target::new(Endpoint::Unix("/nowhere".into()))))
    }

    #[test]
    fn writes_of_a_slot_follow_each_other() {
        let (ways, old, new) = (Ways::default(), node(1), node(2));
        let first = ways.enter(7, &old);
        assert_eq!(ways.enter(8, &new).node().id, new.id, "another slot");
        // The map has changed, and the first write is not answered: it may be executed over there still.
        let second = ways.enter(7, &new);
        assert_eq!(second.node().id, old.id);
        // It was not: it is sent on, and the second, behind it, will be too.
        let first = first.redirected(&new);
        assert_eq!((first.node().id, ways.enter(7, &new).node().id), (new.id, old.id));
        drop(second);
        assert_eq!(ways.enter(7, &old).node().id, new.id, "what was sent on is under way there");
        drop(first);
        assert!(ways.0.lock().is_empty());
        assert_eq!(ways.enter(7, &old).node().id, old.id);
    }
}
