//! What the operator wants: pure functions of a CacheCluster and of what was seen of its pods.
//!
//! [`config`] renders the sidecars' configuration, [`pods`] counts pods, [`status`] tells what came of it. Nothing here
//! talks to a server or looks at a clock.

pub mod config;
pub mod pods;
pub mod status;

pub use config::{InvalidSpec, config_map, needed_memory, raw_config};
pub use pods::{PodTally, tally};
pub use status::{Note, NoteKind, Outcome, notes, status};
