//! The sidecar's configuration file: what the operator writes and the sidecar reads.
