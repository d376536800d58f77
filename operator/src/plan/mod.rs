//! What the operator wants: pure functions of a CacheCluster and of what was seen of its pods.
//!
//! [`config`] renders the sidecars' configuration, [`identity`] what lets them speak to the API server, [`pods`] counts pods, [`status`] tells what came of it. Nothing here
//! talks to a server or looks at a clock.

pub mod config;
pub mod identity;
pub mod pods;
pub mod status;

pub use config::{InvalidSpec, config_map, members_hint, needed_memory, raw_config, write_behind_volume};
pub use pods::{PodTally, tally};
pub use status::{Note, NoteKind, Outcome, World, notes, status};
