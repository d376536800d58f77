//! Reconciles CacheClusters and injects sidecars.

fn main() {}
