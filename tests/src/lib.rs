//! Local Kubernetes, end-to-end, conformance and chaos tests.

pub mod certificates;
pub mod chaos;
pub mod cluster_scenarios;
pub mod e2e;
pub mod filter_scenarios;
pub mod group_scenarios;
pub mod guard_scenarios;
pub mod history;
pub mod lease_server;
pub mod load_scenarios;
pub mod lock_history;
pub mod lock_scenarios;
pub mod origin;
pub mod overflow_scenarios;
pub mod postgres;
pub mod proxy;
pub mod random;
pub mod redis;
pub mod redis_cluster;
pub mod scenarios;
pub mod sentinel;
pub mod sidecar;
pub mod store_scenarios;
pub mod wire;
pub mod world;
