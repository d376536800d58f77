//! Every name that CADDY cache writes into Kubernetes objects, once.

/// API group.
pub const GROUP: &str = "cache.caddy.dev";
/// API version.
pub const VERSION: &str = "v1alpha1";

/// Label by which a pod asks for a sidecar; its value names a CacheCluster of the pod's namespace.
pub const CLUSTER_LABEL: &str = "cache.caddy.dev/cluster";
/// Annotation naming the environment variable that holds the app's Redis address.
pub const REDIS_URL_ENV_ANNOTATION: &str = "cache.caddy.dev/redis-url-env";
/// Annotation choosing how that variable reaches the sidecar: `unix` (default) or `tcp`.
pub const VIA_ANNOTATION: &str = "cache.caddy.dev/via";
/// Annotation on injected pods: the CacheCluster's `metadata.generation` at injection.
pub const INJECTED_ANNOTATION: &str = "cache.caddy.dev/injected";
/// Annotation on injected pods: hash of what was injected; another hash today makes the pod stale.
pub const TEMPLATE_ANNOTATION: &str = "cache.caddy.dev/template";

/// Name of the injected container.
pub const SIDECAR_CONTAINER: &str = "caddy-sidecar";
/// Volume that holds the socket.
pub const SOCKET_VOLUME: &str = "caddy-socket";
/// Volume that holds the configuration file.
pub const CONFIG_VOLUME: &str = "caddy-config";
/// Volume with the passwords of the socket's users.
pub const AUTH_VOLUME: &str = "caddy-auth";
/// Volume that holds the Redis password.
pub const REDIS_AUTH_VOLUME: &str = "caddy-redis-auth";

/// Volume that holds the Sentinels' password.
pub const SENTINEL_AUTH_VOLUME: &str = "caddy-sentinel-auth";
/// Volume that holds the certificates for Redis.
pub const REDIS_TLS_VOLUME: &str = "caddy-redis-tls";
/// What the name of a volume with a store's secrets begins with; the store's name follows.
const STORE_VOLUME: &str = "caddy-store-";
/// Volume that holds the sidecar's identity.
pub const IDENTITY_VOLUME: &str = "caddy-identity";

/// ServiceAccount of a namespace's sidecars, and name of its RoleBinding. Fixed: the operator's rights are limited to it.
pub const SIDECAR_ACCOUNT: &str = "caddy-sidecar";
/// Secret that holds its token. Fixed for the same reason.
pub const TOKEN_SECRET: &str = "caddy-sidecar-token";
/// Annotation of that Secret: when the token is to be replaced, RFC 3339.
pub const RENEW_AFTER_ANNOTATION: &str = "cache.caddy.dev/renew-after";
/// Owner of the token's fields in that Secret.
pub const TOKEN_MANAGER: &str = "caddy-operator-token";

/// Directory of the socket in every container of the pod.
pub const SOCKET_DIR: &str = "/run/caddy";
/// Directory of the configuration file in the sidecar.
pub const CONFIG_DIR: &str = "/etc/caddy/config";
/// Key of the configuration file in the ConfigMap, and its file name.
pub const CONFIG_KEY: &str = "config.yaml";
/// Where the sidecar finds the passwords of the socket's users: `default`, and `users/<name>`.
pub const AUTH_DIR: &str = "/etc/caddy/auth";
/// Directory of the Redis password in the sidecar.
pub const REDIS_AUTH_DIR: &str = "/etc/caddy/redis-auth";
/// Directory of the Sentinels' password in the sidecar.
pub const SENTINEL_AUTH_DIR: &str = "/etc/caddy/sentinel-auth";
/// Directory of the certificates for Redis in the sidecar; its files are named as in a Secret of type kubernetes.io/tls.
pub const REDIS_TLS_DIR: &str = "/etc/caddy/redis-tls";
/// Directory below which each store has its own, with its password, headers and certificates.
const STORES_DIR: &str = "/etc/caddy/stores";
/// File of a store's password in its directory.
pub const STORE_PASSWORD_FILE: &str = "password";
/// File of the trusted authorities in it.
pub const CA_FILE: &str = "ca.crt";
/// File of the certificate that is shown.
pub const CERTIFICATE_FILE: &str = "tls.crt";
/// File of its key.
pub const KEY_FILE: &str = "tls.key";
/// Volume with the logs of what waits for stores; its place is [`caddy_contract::WRITE_BEHIND_DIR`].
pub const WRITE_BEHIND_VOLUME: &str = "caddy-write-behind";
/// Environment variable by which apps find the socket.
pub const SOCKET_ENV: &str = "CADDY_SOCKET";

/// Owner of all fields that the operator applies.
pub const FIELD_MANAGER: &str = "caddy-operator";
/// Standard label that marks what the operator made.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";

/// Longest name of a CacheCluster: 63 less the longest prefix and suffix of the names derived from it.
pub const CLUSTER_NAME_MAX: usize = 52;

/// Name of a CacheCluster's ConfigMap.
pub fn config_map(cluster: &str) -> String {
    format!("caddy-{cluster}")
}

/// Volume with a store's secrets.
pub fn store_volume(store: &str) -> String {
    format!("{STORE_VOLUME}{store}")
}

/// Where the sidecar finds them.
pub fn store_dir(store: &str) -> String {
    format!("{STORES_DIR}/{store}")
}

/// File of the value of a store's `n`-th header in its directory.
pub fn header_file(n: usize) -> String {
    format!("header-{n}")
}

/// File of a user's password below [`AUTH_DIR`]; `None`: the default user's.
pub fn auth_file(user: Option<&str>) -> String {
    user.map_or_else(|| "default".to_owned(), |name| format!("users/{name}"))
}
