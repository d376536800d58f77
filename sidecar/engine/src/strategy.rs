//! Strategies: how a cache and the app's own database are kept together.
//!
//! Writes: [`WriteThroughCache`] asks the store first, [`WriteBehindCache`] acknowledges before the store has them.

pub mod behind;
mod caches;

pub use caches::{StoreWriteError, WriteBehindCache, WriteThroughCache};
