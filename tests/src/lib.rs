//! Local Kubernetes, end-to-end, conformance and chaos tests.
