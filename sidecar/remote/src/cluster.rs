//! Redis Cluster: which node owns which key, and what nodes say about it.
//!
//! Owns the arithmetic of slots, the slot map as `CLUSTER SLOTS` tells it, the redirections `MOVED` and `ASK`, and what
//! a node believes of itself (`CLUSTER NODES`). Keeps no state and no connections: who asks whom, and when, is the
//! owner's business, but for [`discover`], which asks one server once.

mod discover;
mod slots;
mod standing;
mod tags;

pub use discover::{DiscoverError, discover};
pub use slots::{Redirect, SLOTS, Shard, SlotMap, SlotMapError, slot_of};
pub use standing::{Standing, gives_slots_away};
pub use tags::tag_of;
