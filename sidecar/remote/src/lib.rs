//! What lies beyond the pod: connections to Redis, the embedded L3.
