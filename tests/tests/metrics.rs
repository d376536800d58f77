//! `docs/metrics.md` against a running sidecar: every series has a row, and every row is about a series that is there.

use std::collections::BTreeMap;

use caddy_tests::{redis::RedisServer, sidecar::SidecarOptions};

const DOC: &str = include_str!("../../docs/metrics.md");

#[test]
fn every_metric_of_a_sidecar_is_documented_with_its_type() {
    let redis = RedisServer::start().unwrap();
    let store = "stores: [{name: users, http: {url: \"http://127.0.0.1:9/{key}\"}}]";
    let keyspace = "keyspaces: [{name: users, match: \"user:*\", strategy: WriteBehind, store: users}, \
         {name: sessions, match: \"session:*\", negativeFilter: {}}]";
    let sidecar = SidecarOptions::redis(redis.socket()).section(store).section(keyspace).start().unwrap();
    let text = sidecar.metrics().unwrap();
    assert!(text.contains("# EOF"), "not OpenMetrics:\n{text}");
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let types: BTreeMap<&str, &str> = types.collect();
    let (_, body) = text.split_once("\r\n\r\n").unwrap();
    // What every keyspace has is documented by the one that is always there.
    let is_its_own = |line: &str| ["caddy_behind", "caddy_negative"].iter().any(|own| line.starts_with(own));
    let of_another =
        |line: &str| ["users", "sessions"].iter().any(|name| line.contains(&format!("keyspace=\"{name}\"")));
    let is_shown_once = |line: &&str| is_its_own(line) || !of_another(line);
    let samples = body.lines().filter(|line| !line.starts_with('#')).filter(is_shown_once);
    let real: BTreeMap<String, &str> = samples
        .map(|sample| {
            let series = sample.rsplit_once(' ').unwrap().0.replace("_total", "");
            let kind = types[series.split('{').next().unwrap()];
            (series, kind)
        })
        .collect();
    let section = &DOC[DOC.find("\n## Sidecar\n").unwrap() + 4..];
    let section = &section[..section.find("\n## ").unwrap_or(section.len())];
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `caddy_"));
    let documented: BTreeMap<String, &str> = rows
        .map(|row| {
            let (name, rest) = row.split_once('`').unwrap();
            (format!("caddy_{name}"), rest.split('|').nth(1).unwrap().trim())
        })
        .collect();
    assert_eq!(documented, real);
}
