//! CADDY cache's operator: reconciles CacheClusters and injects sidecars.
//!
//! A pure core ([`plan`], [`inject`]) and a thin shell around it. It makes one object per CacheCluster, the ConfigMap
//! that its sidecars read; it never restarts a pod and never reads a Secret but its own.

pub mod capabilities;
pub mod inject;
pub mod plan;

#[cfg(test)]
pub(crate) mod testing;
