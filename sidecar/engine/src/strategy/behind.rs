//! Write-behind: writes are acknowledged before the store has them, and brought to it in batches.
//!
//! [`Queue`] decides what goes out when, and knows nothing of time or I/O; [`WriteBehind`] does what it decides;
//! a [`Journal`] makes what was acknowledged survive the process. Of every key the store gets the writes in their order,
//! each at least once unless a newer one has replaced it.

mod config;
mod ending;
mod journal;
mod queue;
mod record;
mod room;
mod sending;
mod slots;
mod stats;
mod store;
#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests;
mod unkept;
mod writer;

pub use config::BehindConfig;
pub use journal::{Done, Journal, JournalError, Ledger};
pub use queue::Queue;
pub use record::{Backlog, Batch, DeadLetter, Landed, Outcome, Record, Write};
pub use room::Room;
pub use stats::BehindStats;
pub use writer::{BehindError, WriteBehind};
