//! Writes that go to a store, through it and behind it: a real sidecar, a real Redis, a real PostgreSQL.

mod crashes;
mod examples;
mod through;
mod world;
mod writes;
