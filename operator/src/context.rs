//! What the tasks of the operator share.

use crate::{
    capabilities::{Capabilities, SidecarForm},
    events::EventSink,
    leader::Leadership,
    metrics::Metrics,
    settings::Settings,
};
use arc_swap::ArcSwap;
use kube::Client;
use std::sync::Arc;

/// Shared by reconciler and webhook; cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// The API server.
    pub client: Client,
    /// Flags.
    pub settings: Arc<Settings>,
    /// What the server can do; follows its upgrades.
    pub capabilities: Arc<ArcSwap<Capabilities>>,
    /// Where Events are handed in.
    pub events: EventSink,
    /// Whether this replica may write.
    pub leadership: Leadership,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

impl Context {
    /// How the sidecar stands in pods: as the flags say, else as the server can.
    pub fn form(&self) -> SidecarForm {
        self.settings.sidecar_form.unwrap_or_else(|| self.capabilities.load().form())
    }
}
