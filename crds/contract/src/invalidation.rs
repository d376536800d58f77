//! What an object of the kind `CacheInvalidation` says, for whoever executes it without a Kubernetes client, and what is
//! written back.
//!
//! The API server's schema bounds all of it; [`check`](InvalidationSpec::check) is the same once more, for servers that do
//! not know CEL and objects from before.

use serde::{Deserialize, Serialize};

/// API group, version and plural.
pub const INVALIDATIONS: &str = "cacheinvalidations";
/// Path of the group's version.
pub const GROUP_PATH: &str = "/apis/cache.caddy.dev/v1alpha1";

/// Most keys, most tags, and most keyspaces.
pub const SUBJECTS_MAX: usize = 100;
/// Most patterns, and most regular expressions.
pub const PATTERNS_MAX: usize = 16;
/// Longest of each, bytes.
pub const SUBJECT_BYTES: usize = 1024;
/// Longest reason.
pub const REASON_MAX: usize = 512;

/// What is to be invalidated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct InvalidationSpec {
    /// The CacheCluster, of the object's namespace.
    pub cluster: String,
    /// Keys, removed from L3 and every tier.
    pub keys: Vec<String>,
    /// Tags: whatever carries one is invalid.
    pub tags: Vec<String>,
    /// Names of keyspaces: what was written there with tags is invalid.
    pub keyspaces: Vec<String>,
    /// Redis globs.
    pub patterns: Vec<String>,
    /// Regular expressions.
    pub regexes: Vec<String>,
    /// Why.
    pub reason: String,
    /// When the object may go, counted from its end.
    pub ttl_seconds_after_finished: Option<u64>,
}

/// How far an invalidation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InvalidationPhase {
    /// It takes effect.
    Running,
    /// It took effect, and nothing of what it was about is left in L3.
    Succeeded,
    /// It did not take effect; the message says why.
    Failed,
}

impl InvalidationPhase {
    /// Nothing more will happen.
    pub const fn is_final(self) -> bool {
        !matches!(self, Self::Running)
    }
}

/// What is reported of an invalidation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct InvalidationStatus {
    /// How far it is; absent: nobody has begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<InvalidationPhase>,
    /// When it began, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
    /// The pod whose sidecar executes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub executor: Option<String>,
    /// Sidecars that have said that it is in force with them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acknowledged: Option<u32>,
    /// Sidecars that there were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub members: Option<u32>,
    /// Entries removed from L3; what tags invalidate is not counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub removed: Option<u64>,
    /// What is wrong, or was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl InvalidationSpec {
    /// What is wrong with it; nothing if it can be executed.
    ///
    /// ```
    /// use caddy_contract::invalidation::InvalidationSpec;
    /// let spec = InvalidationSpec { cluster: "shop".into(), ..InvalidationSpec::default() };
    /// assert!(spec.check().unwrap_err().contains("at least one"));
    /// ```
    pub fn check(&self) -> Result<(), String> {
        let lists = [
            ("keys", &self.keys, SUBJECTS_MAX),
            ("tags", &self.tags, SUBJECTS_MAX),
            ("keyspaces", &self.keyspaces, SUBJECTS_MAX),
            ("patterns", &self.patterns, PATTERNS_MAX),
            ("regexes", &self.regexes, PATTERNS_MAX),
        ];
        for (name, list, max) in lists {
            if list.len() > max {
                return Err(format!("spec.{name} has {} entries; at most {max} are allowed", list.len()));
            }
            if list.iter().any(|one| one.is_empty() || one.len() > SUBJECT_BYTES) {
                return Err(format!("spec.{name}: each has 1 to {SUBJECT_BYTES} bytes"));
            }
        }
        if self.is_about_nothing() {
            return Err(NOTHING.to_owned());
        }
        Ok(())
    }

    /// No subject is named.
    pub fn is_about_nothing(&self) -> bool {
        [&self.keys, &self.tags, &self.keyspaces, &self.patterns, &self.regexes].iter().all(|list| list.is_empty())
    }
}

/// What is told of an object without a subject.
pub const NOTHING: &str = "at least one of keys, tags, keyspaces, patterns and regexes is needed";
