//! The cache itself: tiers, coherence kernel, single flight; no network, no Kubernetes, injected clock.
