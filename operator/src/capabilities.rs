//! What the API server can do: the one place that knows about old servers.
//!
//! Pure, apart from [`Capabilities::ask`]. Everything else works on Kubernetes 1.20 as it does on today's: it sends
//! only fields that 1.20 knows, uses `events.k8s.io/v1` (1.19) and server-side apply (1.18).

use k8s_openapi::apimachinery::pkg::version::Info;
use std::fmt;

/// First minor version whose sidecar containers (init containers with `restartPolicy: Always`) are on by default.
const NATIVE_SIDECARS: u32 = 29;
/// First minor version that evaluates CEL rules of CustomResourceDefinitions.
const CEL: u32 = 25;

/// What differs between the servers that are supported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// The server's version, 1.x.
    pub minor: u32,
    /// Whether init containers may stay: the sidecar starts before all others and ends after them, also in Jobs.
    pub native_sidecars: bool,
    /// Whether the server checks the rules that the schema cannot express. The operator checks them always.
    pub cel: bool,
}

/// How the sidecar stands in the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SidecarForm {
    /// First init container, `restartPolicy: Always` (1.29 and newer).
    Native,
    /// First container, whose postStart hook waits for the socket.
    Plain,
}

impl Capabilities {
    /// What a server of this version can do. An unreadable version counts as the oldest that is supported.
    pub fn of(version: &Info) -> Self {
        let digits: String = version.minor.chars().take_while(char::is_ascii_digit).collect();
        let minor = digits.parse().unwrap_or(20);
        Self { minor, native_sidecars: minor >= NATIVE_SIDECARS, cel: minor >= CEL }
    }

    /// Asks the server.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn ask(client: &kube::Client) -> Result<Self, kube::Error> {
        client.apiserver_version().await.map(|version| Self::of(&version))
    }

    /// The form in which sidecars are injected on this server.
    pub fn form(self) -> SidecarForm {
        if self.native_sidecars { SidecarForm::Native } else { SidecarForm::Plain }
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = if self.native_sidecars { "native sidecars" } else { "plain sidecars (native ones need 1.29)" };
        let cel = if self.cel { "CEL rules checked by the server" } else { "CEL rules checked by the operator only" };
        write!(f, "Kubernetes 1.{}: {form}, {cel}", self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(minor: &str) -> Capabilities {
        Capabilities::of(&Info { minor: minor.into(), ..Info::default() })
    }

    #[test]
    fn the_form_follows_the_version() {
        assert_eq!(of("20").form(), SidecarForm::Plain);
        assert_eq!(of("28").form(), SidecarForm::Plain);
        assert_eq!(of("29").form(), SidecarForm::Native);
        assert_eq!(of("36+").form(), SidecarForm::Native);
        assert_eq!(of("").form(), SidecarForm::Plain);
    }

    #[test]
    fn cel_is_known_from_1_25() {
        assert!(!of("24").cel);
        assert!(of("25-gke.1").cel);
    }
}
