//! The Kubernetes API of CADDY cache: types, validation rules and the generated CustomResourceDefinitions.
//!
//! Owns the kinds [`CacheCluster`] and [`CacheInvalidation`], the names that the rest of the product writes into Kubernetes ([`names`]) and the
//! table of rules that a schema cannot express ([`rules`]). It talks to nobody: pure types and functions. It fails
//! nowhere but in its tests, which compare `generated/` and the chart's copy with what the types say.

pub mod cluster;
pub mod generate;
pub mod invalidation;
pub mod names;
pub mod quantity;
pub mod rules;
pub mod status;

pub use cluster::{CacheCluster, CacheClusterSpec};
pub use invalidation::{CacheInvalidation, CacheInvalidationSpec};
pub use status::{CacheClusterStatus, EPOCH_MAX, MemberCounts, PodCounts};
