//! What operator and sidecars tell each other through Leases: names, and the report that each member writes.
//!
//! A **member** is one running sidecar. It keeps one Lease with [`MEMBER_LABEL`], owned by its pod, and writes its
//! [`MemberReport`] into [`REPORT_ANNOTATION`]. One Lease per CacheCluster says which member does the cluster's duties. The
//! configuration tells all members how many they are, so that their requests together stay within
//! [`REQUESTS_PER_SECOND`].

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Where the sidecar's identity is mounted.
pub const IDENTITY_DIR: &str = "/etc/caddy/identity";
/// The identity's token, as a file and as a key of its Secret.
pub const TOKEN: &str = "token";
/// The API server's certificate authority, likewise.
pub const CA: &str = "ca.crt";
/// Variable of the sidecar with its pod's name.
pub const POD_NAME_ENV: &str = "CADDY_POD_NAME";
/// Variable of the sidecar with its pod's uid.
pub const POD_UID_ENV: &str = "CADDY_POD_UID";

/// Label of members' Leases; its value names the CacheCluster.
pub const MEMBER_LABEL: &str = "cache.caddy.dev/member";
/// Annotation of a member's Lease: its report, as JSON.
pub const REPORT_ANNOTATION: &str = "cache.caddy.dev/report";

/// Writes, and likewise reads, that all members of a cluster together may ask of the API server.
pub const REQUESTS_PER_SECOND: u32 = 10;
/// Least pause between two heartbeats of a member.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Least pause between two questions for who does the duties.
const QUESTION: Duration = Duration::from_secs(5);

/// Name of a member's Lease.
pub fn member_lease(pod_uid: &str) -> String {
    format!("caddy-member-{pod_uid}")
}

/// Name of the Lease of a CacheCluster's duties.
pub fn duties_lease(cluster: &str) -> String {
    format!("caddy-duties-{cluster}")
}

/// Label of Leases that are locks; its value names the CacheCluster.
pub const LOCK_LABEL: &str = "cache.caddy.dev/lock";
/// Annotation of a Lease that is a lock: the lock's name.
pub const LOCK_NAME_ANNOTATION: &str = "cache.caddy.dev/lock-name";
/// Annotation of a Lease that is a lock: the fencing token of its holder.
pub const LOCK_TOKEN_ANNOTATION: &str = "cache.caddy.dev/lock-token";
/// Leases that are locks, of one namespace.
pub const LOCKS_MAX: usize = 50;
/// How much of a lock's name is in its Lease's.
const LOCK_NAME_SHOWN: usize = 40;

/// Name of the Lease of a lock: what can be read of the lock's name, and a hash of it.
///
/// ```
/// use caddy_contract::coordination::lock_lease;
/// assert_eq!(lock_lease("shop", b"migrate:Orders"), "caddy-lock-shop-migrate-orders-2ea295c744d49bf5");
/// ```
pub fn lock_lease(cluster: &str, name: &[u8]) -> String {
    // FNV-1a: the same in every version. Names that collide are told apart by the annotation.
    let hash = name
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    let letters = name.iter().take(LOCK_NAME_SHOWN).map(|byte| byte.to_ascii_lowercase() as char);
    let shown: String = letters.map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' }).collect();
    format!("caddy-lock-{cluster}-{shown}-{hash:016x}")
}

/// Annotation of the Lease of a CacheCluster's epoch: the number.
pub const EPOCH_ANNOTATION: &str = "cache.caddy.dev/epoch";

/// Annotation of the same Lease: the epoch that is known to be in Redis, too.
pub const EPOCH_BEGUN_ANNOTATION: &str = "cache.caddy.dev/epoch-begun";

/// Name of the Lease of a CacheCluster's epoch.
pub fn epoch_lease(cluster: &str) -> String {
    format!("caddy-epoch-{cluster}")
}

/// Pause between two heartbeats of one of `members`.
///
/// ```
/// use caddy_contract::coordination::heartbeat;
/// assert_eq!((heartbeat(3).as_secs(), heartbeat(1000).as_secs()), (10, 100));
/// ```
pub fn heartbeat(members: u32) -> Duration {
    HEARTBEAT.max(share(members))
}

/// Pause between two questions of one of `members` for who does the duties.
pub fn question(members: u32) -> Duration {
    QUESTION.max(share(members))
}

/// The time in which each of `members` may send one request.
pub fn share(members: u32) -> Duration {
    Duration::from_secs(1) / REQUESTS_PER_SECOND * members
}

/// What a member says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MemberReport {
    /// Its pod.
    pub pod: String,
    /// Version of the sidecar.
    pub version: String,
    /// The CacheCluster's generation whose configuration is in force.
    pub config_generation: u64,
    /// Whether it learns of every write, so that it may cache.
    pub coherent: bool,
    /// Whether it reaches L3.
    pub l3_reachable: bool,
    /// What is wrong; empty if nothing is.
    pub reason: String,
    /// Connected apps.
    pub sessions: u64,
    /// Reads answered from a tier, since its start.
    pub hits: u64,
    /// Reads that found no copy to serve, since its start.
    pub misses: u64,
    /// Bytes in L2.
    pub l2_bytes: u64,
    /// The epoch of the locks that it confirmed last; 0: it was asked for none, or each pod has its own.
    pub lock_epoch: u64,
    /// Whether L3's server told no ids when the epoch was confirmed: loss of its data is then noticed by the epoch's
    /// mirror in it only.
    pub epoch_by_mirror: bool,
    /// Why writes behind are not as durable as they are to be until their store has them; empty if they are.
    pub unreplicated: String,
}

/// Longest reason in a report.
const REASON_MAX: usize = 300;

impl MemberReport {
    /// As it is written into the annotation.
    pub fn to_text(&self) -> String {
        let bounded = |text: &str| text[..text.floor_char_boundary(REASON_MAX)].to_owned();
        let (reason, unreplicated) = (bounded(&self.reason), bounded(&self.unreplicated));
        // A struct of numbers and strings is always JSON.
        serde_json::to_string(&Self { reason, unreplicated, ..self.clone() }).unwrap_or_default()
    }

    /// From an annotation; unknown fields, of a newer sidecar, are ignored.
    pub fn from_text(text: &str) -> Option<Self> {
        let mut report: Self = serde_json::from_str(text).ok()?;
        report.reason.truncate(report.reason.floor_char_boundary(REASON_MAX));
        report.unreplicated.truncate(report.unreplicated.floor_char_boundary(REASON_MAX));
        report.pod.truncate(report.pod.floor_char_boundary(253));
        Some(report)
    }

    /// Whether `next` says something that cannot wait for the next heartbeat.
    pub fn differs(&self, next: &Self) -> bool {
        let state = |report: &Self| {
            let epoch = (report.lock_epoch, report.epoch_by_mirror);
            (report.config_generation, report.coherent, report.l3_reachable, epoch)
        };
        state(self) != state(next) || self.reason != next.reason || self.unreplicated != next.unreplicated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_back_and_a_newer_ones_fields_are_ignored() {
        let report =
            MemberReport { pod: "a".into(), coherent: true, reason: "ü".repeat(400), ..MemberReport::default() };
        let text = report.to_text();
        let read = MemberReport::from_text(&text).unwrap();
        assert!(read.coherent && read.reason.len() <= REASON_MAX);
        assert!(MemberReport::from_text(&text.replacen('{', "{\"new\":1,", 1)).is_some());
        assert_eq!(MemberReport::from_text("nonsense"), None);
    }

    #[test]
    fn together_members_stay_within_the_rate() {
        for members in [1, 50, 100, 1000, 5000] {
            let rate = f64::from(members) / heartbeat(members).as_secs_f64();
            assert!(rate <= f64::from(REQUESTS_PER_SECOND), "{members}: {rate}");
            let rate = f64::from(members) / question(members).as_secs_f64();
            assert!(rate <= f64::from(REQUESTS_PER_SECOND), "{members}: {rate}");
        }
    }
}
