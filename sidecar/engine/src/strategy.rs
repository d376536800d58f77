//! Strategies: how a cache and the app's own database are kept together.
//!
//! Reads: [`ReadThroughCache`] loads what no tier has, [`RefreshAheadCache`] also what is near its end. Writes:
//! [`WriteThroughCache`] asks the store first, [`WriteBehindCache`] acknowledges before the store has them.

pub mod behind;
mod caches;
#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod caches_tests;
mod through;
#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod through_tests;

pub use caches::{StoreWriteError, WriteBehindCache, WriteThroughCache};
pub use through::{ReadError, ReadThroughCache, RefreshAheadCache, StrategyConfig, StrategyType};
