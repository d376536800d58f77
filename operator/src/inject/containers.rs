//! The app's containers: the socket mounted, its path told, and, when asked, the Redis address replaced.

use super::{Patcher, annotations};
use crate::capabilities::SidecarForm;
use caddy_crds::{CacheCluster, names};
use serde_json::{Value, json};

/// The variable to replace, and with what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    variable: String,
    url: String,
    login: Login,
}

/// What becomes of user and password in the app's own address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Login {
    /// The socket has users (`spec.auth`): the app logs in there as it would in Redis.
    Kept,
    /// The socket asks nobody; and not every client takes a login in the address of a socket.
    Dropped,
}

/// What the pod's annotations ask for.
///
/// # Errors
/// When that is impossible; the text says what to change.
pub(super) fn address(pod: &Value, cluster: &CacheCluster, form: SidecarForm) -> Result<Option<Address>, String> {
    let via = annotations::value(pod, names::VIA_ANNOTATION);
    let Some(variable) = annotations::value(pod, names::REDIS_URL_ENV_ANNOTATION) else {
        return Ok(None);
    };
    let port = cluster.spec.listen.tcp_port;
    let url = match via.unwrap_or("unix") {
        "unix" => format!("unix://{}", caddy_contract::SOCKET_PATH),
        "tcp" if port > 0 => format!("redis://127.0.0.1:{port}"),
        "tcp" => {
            return Err(format!(
                "annotation {}: tcp needs a port, but CacheCluster {} has spec.listen.tcpPort 0; set it, e.g. to 6379, \
                 or remove the annotation to use the Unix socket",
                names::VIA_ANNOTATION,
                cluster.metadata.name.as_deref().unwrap_or_default(),
            ));
        }
        other => return Err(format!("annotation {} is {other:?}; write unix or tcp", names::VIA_ANNOTATION)),
    };
    let lists = app_lists(form);
    let sets = |list: &str| pod["spec"][list].as_array().into_iter().flatten().any(|c| position(c, variable).is_some());
    if variable.is_empty() || !lists.iter().any(|list| sets(list)) {
        return Err(format!(
            "annotation {} names the variable {variable:?}, which no container of the pod sets under env; add it with \
             the app's own Redis address as value (envFrom cannot be replaced), or remove the annotation",
            names::REDIS_URL_ENV_ANNOTATION,
        ));
    }
    let login = if cluster.spec.auth.is_some() { Login::Kept } else { Login::Dropped };
    Ok(Some(Address { variable: variable.to_owned(), url, login }))
}

/// Connects every container that runs beside or after the sidecar.
///
/// # Errors
/// When a container has something else where the socket belongs.
pub(super) fn connect(patcher: &mut Patcher, form: SidecarForm, address: Option<&Address>) -> Result<(), String> {
    for list in app_lists(form) {
        let count = patcher.document()["spec"][*list].as_array().map_or(0, Vec::len);
        for n in 0..count {
            let container = &patcher.document()["spec"][*list][n];
            if container["name"] != json!(names::SIDECAR_CONTAINER) {
                connect_one(patcher, &["spec", list, &n.to_string()], address)?;
            }
        }
    }
    Ok(())
}

/// Lists whose containers can use the socket: a plain sidecar starts after all init containers.
fn app_lists(form: SidecarForm) -> &'static [&'static str] {
    match form {
        SidecarForm::Native => &["initContainers", "containers"],
        SidecarForm::Plain => &["containers"],
    }
}

fn connect_one(patcher: &mut Patcher, path: &[&str; 3], address: Option<&Address>) -> Result<(), String> {
    let [spec, list, n] = *path;
    let container = patcher.document()[spec][list][n.parse::<usize>().unwrap_or(0)].clone();
    let mounts = || container["volumeMounts"].as_array().into_iter().flatten();
    if !mounts().any(|mount| mount["name"] == json!(names::SOCKET_VOLUME)) {
        let taken = |mount: &&Value| {
            mount["mountPath"].as_str().is_some_and(|at| at.trim_end_matches('/') == names::SOCKET_DIR)
        };
        if let Some(other) = mounts().find(taken) {
            return Err(format!(
                "container {} mounts volume {} at {}, where the sidecar's socket belongs; mount it elsewhere",
                container["name"],
                other["name"],
                names::SOCKET_DIR,
            ));
        }
        // Read-only: connecting needs no more, and an app cannot remove the socket of the pod's other containers.
        let mount = json!({"name": names::SOCKET_VOLUME, "mountPath": names::SOCKET_DIR, "readOnly": true});
        patcher.append(&[spec, list, n, "volumeMounts"], mount);
    }
    if position(&container, names::SOCKET_ENV).is_none() {
        let socket = json!({"name": names::SOCKET_ENV, "value": caddy_contract::SOCKET_PATH});
        patcher.append(&[spec, list, n, "env"], socket);
    }
    let Some(address) = address else { return Ok(()) };
    if let Some(at) = position(&container, &address.variable) {
        let known = &container["env"][at];
        let value = replacement(known["value"].as_str(), &address.url, address.login);
        let wanted = json!({"name": address.variable, "value": value});
        if *known != wanted {
            patcher.replace(&[spec, list, n, "env", &at.to_string()], wanted);
        }
    }
    Ok(())
}

fn position(container: &Value, variable: &str) -> Option<usize> {
    container["env"].as_array()?.iter().position(|entry| entry["name"].as_str() == Some(variable))
}

/// The sidecar's address in place of the app's, with the database that the app's own address names, and the login if it is
/// to be kept.
fn replacement(own: Option<&str>, url: &str, keep: Login) -> String {
    let Some(own) = own else { return url.to_owned() };
    let (login, bare) = without_login(own);
    if bare.strip_prefix(url).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?'])) {
        return own.to_owned(); // replaced before
    }
    let url = match (login, keep, url.split_once("://")) {
        (Some(login), Login::Kept, Some((scheme, rest))) => format!("{scheme}://{login}@{rest}"),
        _ => url.to_owned(),
    };
    match (database(&bare), url.starts_with("unix:")) {
        (None, _) => url,
        (Some(n), true) => format!("{url}?db={n}"),
        (Some(n), false) => format!("{url}/{n}"),
    }
}

/// `user:password` as it stands in an address, and the address without.
fn without_login(url: &str) -> (Option<&str>, String) {
    let whole = || (None, url.to_owned());
    let Some((scheme, rest)) = url.split_once("://") else { return whole() };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let Some(at) = rest[..end].rfind('@') else { return whole() };
    (Some(&rest[..at]).filter(|login| !login.is_empty()), format!("{scheme}://{}", &rest[at + 1..]))
}

/// The database in `redis://host:port/2` or `unix:///path?db=2`.
fn database(url: &str) -> Option<u32> {
    let (address, query) = url.split_once('?').unwrap_or((url, ""));
    if let Some(n) = query.split('&').find_map(|pair| pair.strip_prefix("db=")) {
        return n.parse().ok();
    }
    let rest = address.strip_prefix("redis://").or_else(|| address.strip_prefix("rediss://"))?;
    rest.split_once('/').and_then(|(_, path)| path.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_database_survives_the_replacement() {
        let (unix, tcp) = ("unix:///run/caddy/cache.sock", "redis://127.0.0.1:6379");
        for (own, url, expected) in [
            (Some("redis://redis:6379"), unix, "unix:///run/caddy/cache.sock"),
            (Some("redis://:pw@redis:6379/2"), unix, "unix:///run/caddy/cache.sock?db=2"),
            (Some("rediss://redis/3?x=y"), tcp, "redis://127.0.0.1:6379/3"),
            (Some("redis:6379"), tcp, "redis://127.0.0.1:6379"),
            (Some("unix:///run/caddy/cache.sock?db=2"), unix, "unix:///run/caddy/cache.sock?db=2"),
            (Some("redis://127.0.0.1:63790/1"), tcp, "redis://127.0.0.1:6379/1"),
            (None, unix, "unix:///run/caddy/cache.sock"),
        ] {
            assert_eq!(replacement(own, url, Login::Dropped), expected, "{own:?}");
        }
    }

    #[test]
    fn the_login_survives_where_the_socket_has_users() {
        let (unix, tcp) = ("unix:///run/caddy/cache.sock", "redis://127.0.0.1:6379");
        for (own, url, expected) in [
            ("redis://:p%40w@redis:6379/2", unix, "unix://:p%40w@/run/caddy/cache.sock?db=2"),
            ("rediss://web:pw@redis", unix, "unix://web:pw@/run/caddy/cache.sock"),
            ("redis://web:p@w@redis:6379/2", tcp, "redis://web:p@w@127.0.0.1:6379/2"),
            ("redis://redis:6379/a@b", tcp, "redis://127.0.0.1:6379"),
            ("redis://@redis:6379", tcp, "redis://127.0.0.1:6379"),
            ("redis:6379", unix, "unix:///run/caddy/cache.sock"),
        ] {
            let replaced = replacement(Some(own), url, Login::Kept);
            assert_eq!(replaced, expected, "{own:?}");
            assert_eq!(replacement(Some(&replaced), url, Login::Kept), expected, "a second time: {own:?}");
        }
    }
}
