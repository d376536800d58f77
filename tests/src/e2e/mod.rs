//! A Kubernetes cluster as the end-to-end tests and the demo use it: `kubectl` and `helm` as child processes, consoles
//! inside pods, metrics of sidecars. Never changes a kubeconfig or a context. A command that fails says which one and what
//! it printed.

mod clock;
mod cluster;
mod console;
mod metrics;
mod namespace;
pub mod product;

pub use clock::{Stopwatch, eventually, holds};
pub use cluster::{Cluster, Pod, repository};
pub use console::{Answer, Console};
pub use metrics::Metrics;
pub use namespace::{Namespace, SIDECAR, container, has_sidecar, is_ready};
