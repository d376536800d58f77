//! Local Kubernetes, end-to-end, conformance and chaos tests.

pub mod e2e;
pub mod history;
pub mod proxy;
pub mod random;
pub mod redis;
pub mod sidecar;
pub mod wire;
