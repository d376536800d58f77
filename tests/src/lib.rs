//! Local Kubernetes, end-to-end, conformance and chaos tests.

pub mod e2e;
