//! Local Kubernetes, end-to-end, conformance and chaos tests.

pub mod e2e;
pub mod local;
pub mod redis;
pub mod wire;
