//! The coherent near cache that apps talk to over a Unix socket.
//!
//! In one line: socket → [session](Start) → command → engine (L1 → L2 → flight) → remote → back. A session
//! (`session.rs`) reads and writes bytes; its conversation decides for each request whether a tier may answer, whether
//! a miss becomes a flight on the tracked connection, or whether it is relayed; `fills.rs` and `upstream.rs` apply to the
//! tiers what comes back, before anybody is answered.
//!
//! The binary is all that is meant to be used; the library exists for its tests and for the command table.

mod absence;
mod admin;
mod answers;
mod auth;
mod barrier;
mod behind;
mod beyond;
mod cache;
mod cli;
mod cluster;
pub mod commands;
mod conditional;
mod coordination;
mod effect;
mod envelope;
mod errands;
mod events;
mod facts;
mod files;
mod fills;
mod generations;
mod guards;
mod heat;
mod hub;
mod keyspaces;
mod listener;
mod loading;
mod locks;
mod mailbox;
mod memory;
mod metrics;
mod nodes;
mod oversize;
mod packer;
mod ping;
mod probe;
mod proof;
mod pushes;
mod ranges;
mod reload;
mod seldom;
mod server;
mod server_commands;
mod session;
mod shared;
mod shown;
mod status;
mod stored;
mod strings;
mod supervisor;
mod tally;
mod upstream;
mod warm;
mod worker;

pub use behind::BehindSetupError;
pub use cli::{Cli, Command, Serve, Start, read as read_config};
pub use listener::ListenError;
pub use loading::{StoreConfigError, check_stores};
pub use ping::ping;
pub use server::{ServeError, serve};
