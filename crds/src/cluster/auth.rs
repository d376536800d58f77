//! `spec.auth`: who may use the socket.

use super::password;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Who may use the socket. At least one of `secretRef` and `users`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Auth {
    /// Secret with the password of the default user, who may do everything. Absent while there are users: nobody gets
    /// in without a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<PasswordKey>,
    /// Users with a name, a password and limits of their own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub users: Vec<AuthUser>,
}

/// A user of the socket. Scripts are for users without limits only: what a script does is not checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthUser {
    /// Name for AUTH; unique, and not `default`.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub name: String,
    /// Secret of this namespace that holds the password, one in each line, so that two can hold while one is replaced.
    /// It is mounted into the sidecar only.
    pub secret_ref: PasswordKey,
    /// Redis globs; the keys of a command must each match one.
    #[serde(default = "any_key")]
    #[schemars(length(max = 64))]
    #[schemars(inner(length(min = 1, max = 512)))]
    pub keys: Vec<String>,
    /// Rules as in Redis's ACL, the last one about a command decides: `+@read`, `-keys`, `+config|get`, `+@all`.
    #[serde(default = "any_command")]
    #[schemars(length(max = 64))]
    #[schemars(inner(length(min = 2, max = 128), regex(pattern = r"^[-+]@?[-._a-zA-Z0-9:]+(\|[-._a-zA-Z0-9:]+)?$")))]
    pub commands: Vec<String>,
}

/// A password in a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PasswordKey {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// Key whose value is the password.
    #[serde(default = "password")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

fn any_key() -> Vec<String> {
    vec!["*".into()]
}

fn any_command() -> Vec<String> {
    vec!["+@all".into()]
}
