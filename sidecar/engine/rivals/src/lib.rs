//! The caches that are measured beside each other, and what they are asked for: written once, for both benches.
//!
//! `rounds` compares within rounds that take turns, for ratios that a busy machine does not bend; `statistics` measures each by
//! itself under criterion.

pub mod loads;
pub mod subjects;
