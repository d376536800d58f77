//! The coherent near cache that apps talk to over a Unix socket.

pub mod commands;
