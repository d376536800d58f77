//! The rows themselves, by what the commands are about.

mod collections;
mod data;
mod server;

pub(super) use collections::COLLECTIONS;
pub(super) use data::DATA;
pub(super) use server::SERVER;
