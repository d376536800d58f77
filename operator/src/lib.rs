//! CADDY cache's operator: reconciles CacheClusters and injects sidecars.
//!
//! A pure core ([`plan`], [`inject`], [`webhook::review`], [`certs::authority`]) and a thin shell around it. It makes one
//! object per CacheCluster, the ConfigMap that its sidecars read; it never restarts a pod and never reads a Secret but
//! its own. It fails by saying so in a status, a warning, its log and its readiness, and goes on trying.

pub mod admin;
pub mod capabilities;
pub mod certs;
pub mod context;
pub mod events;
pub mod http;
pub mod identity;
pub mod inject;
pub mod leader;
pub mod members;
pub mod metrics;
pub mod plan;
pub mod reconcile;
pub mod run;
pub mod settings;
pub mod supervisor;
pub mod webhook;

#[cfg(test)]
pub(crate) mod testing;
