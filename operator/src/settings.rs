//! What the installation tells the operator: flags, all with the meaning written beside them.

use crate::{
    capabilities::SidecarForm,
    inject::{Defaults, SidecarUser},
};
use clap::{Args, ValueEnum};
use std::{net::SocketAddr, time::Duration};

/// Flags of `caddy-operator run`.
#[derive(Clone, Debug, Args)]
pub struct Settings {
    /// Namespace the operator runs in; its Secret is kept there.
    #[arg(long)]
    pub namespace: String,

    /// Image of sidecars whose CacheCluster names none.
    #[arg(long)]
    pub sidecar_image: String,

    /// Pull policy of that image; the cluster's default when absent.
    #[arg(long, value_parser = ["Always", "IfNotPresent", "Never"])]
    pub sidecar_pull_policy: Option<String>,

    /// Whose user id the sidecar gets: fixed (65532), or the platform's choice (OpenShift).
    #[arg(long, value_enum, default_value = "fixed")]
    pub sidecar_user: UserChoice,

    /// How the sidecar stands in the pod; by the server's version when absent.
    #[arg(long, value_enum)]
    pub sidecar_form: Option<SidecarForm>,

    /// What becomes of a pod whose CacheCluster does not exist or cannot be used.
    #[arg(long, value_enum, default_value = "deny")]
    pub on_missing_cluster: OnMissing,

    /// The webhook's failurePolicy; with "ignore" a pod is admitted when the operator itself fails.
    #[arg(long, value_enum, default_value = "ignore")]
    pub failure_policy: FailurePolicy,

    /// Address of the admission webhook (HTTPS).
    #[arg(long, default_value = "0.0.0.0:9443")]
    pub webhook_address: SocketAddr,

    /// Names by which the API server calls the webhook; they stand in its certificate.
    #[arg(long, required = true, value_delimiter = ',')]
    pub webhook_hosts: Vec<String>,

    /// MutatingWebhookConfiguration whose caBundle the operator keeps.
    #[arg(long)]
    pub webhook_configuration: String,

    /// Secret of the webhook's certificate authority.
    #[arg(long, default_value = "caddy-operator-ca")]
    pub ca_secret: String,

    /// ClusterRole that sidecars are bound to in their namespace; without it they get no identity.
    #[arg(long)]
    pub sidecar_role: Option<String>,

    /// Lease, in --namespace, by which replicas elect the one that reconciles; without it this one does.
    #[arg(long, requires = "identity")]
    pub lease: Option<String>,

    /// Name of this replica in the Lease: its pod's.
    #[arg(long)]
    pub identity: Option<String>,

    /// Address of /healthz, /readyz and /metrics.
    #[arg(long, default_value = "0.0.0.0:9464")]
    pub admin_address: SocketAddr,

    /// Pause, in seconds, after which a CacheCluster is looked at again although nothing changed.
    #[arg(long, default_value = "300", value_parser = clap::value_parser!(u64).range(1..))]
    pub resync_seconds: u64,
}

/// Whose user id the sidecar gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UserChoice {
    /// 65532.
    Fixed,
    /// The platform's.
    Platform,
}

/// What becomes of a pod whose CacheCluster does not exist or cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnMissing {
    /// Refused with a message; ReplicaSets and Jobs try again.
    Deny,
    /// Admitted without a sidecar, with a warning.
    Admit,
}

/// The webhook's failurePolicy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FailurePolicy {
    /// Pods are admitted without a sidecar when the operator fails.
    Ignore,
    /// Pods are refused when the operator fails.
    Fail,
}

impl Settings {
    /// What injection needs of this.
    pub fn defaults(&self) -> Defaults {
        Defaults {
            image: self.sidecar_image.clone(),
            pull_policy: self.sidecar_pull_policy.clone(),
            user: match self.sidecar_user {
                UserChoice::Fixed => SidecarUser::Fixed,
                UserChoice::Platform => SidecarUser::Platform,
            },
        }
    }

    /// Pause after which a CacheCluster is looked at again.
    pub fn resync(&self) -> Duration {
        Duration::from_secs(self.resync_seconds)
    }
}
