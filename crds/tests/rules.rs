//! The two halves of each rule agree: the CEL, evaluated here, and the operator's function.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use caddy_contract::invalidation::InvalidationSpec;
use caddy_crds::{CacheCluster, generate, invalidation::INVALIDATION_RULES, rules};
use kube_cel::Validator;
use proptest::{collection::vec, option, prelude::*, sample::select};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Messages of the rules that the API server would find broken.
fn told_by_cel(object: &Value) -> BTreeSet<String> {
    let schema = generate::definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
    match Validator::new().validate_with_defaults(&schema, object, None) {
        Ok(()) => BTreeSet::new(),
        Err(errors) => errors.into_vec().into_iter().map(|error| error.message).collect(),
    }
}

/// Messages of the rules that the operator finds broken.
fn told_by_operator(object: &Value) -> BTreeSet<String> {
    let cluster: CacheCluster = serde_json::from_value(object.clone()).unwrap();
    let told = rules::broken(&cluster);
    rules::RULES
        .iter()
        .filter(|rule| told.iter().any(|text| text.ends_with(rule.message)))
        .map(|rule| rule.message.to_owned())
        .collect()
}

fn object(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "cache.caddy.dev/v1alpha1", "kind": "CacheCluster", "metadata": {"name": name}, "spec": spec})
}

fn redis(endpoints: &[&str]) -> Value {
    json!({"redis": {"endpoints": endpoints}})
}

#[test]
fn a_good_object_breaks_no_rule() {
    for l3 in [redis(&["redis.shop:6379"]), json!({"embedded": {}})] {
        let object = object(
            "shop",
            &json!({"l3": l3, "keyspaces": [{"name": "a", "match": "a:*"}, {"name": "b", "match": "b:*"}]}),
        );
        assert_eq!(told_by_cel(&object), BTreeSet::new());
        assert_eq!(told_by_operator(&object), BTreeSet::new());
    }
}

#[test]
fn each_rule_is_broken_by_an_example_of_its_own() {
    let l3 = redis(&["r:1"]);
    let examples = [
        ("at most 52", object(&"n".repeat(53), &json!({"l3": l3}))),
        ("exactly one of redis", object("n", &json!({"l3": {}}))),
        ("exactly one entry", object("n", &json!({"l3": redis(&["r:1", "r:2"])}))),
        (
            "both name the user",
            object(
                "n",
                &json!({"l3": {"redis": {"endpoints": ["r:1"], "username": "a", "authSecretRef": {"name": "s", "usernameKey": "u"}}}}),
            ),
        ),
        (
            "belongs to mode Sentinel",
            object("n", &json!({"l3": {"redis": {"endpoints": ["r:1"], "mode": "Sentinel"}}})),
        ),
        (
            "both name the Sentinels' user",
            object(
                "n",
                &json!({"l3": {"redis": {"endpoints": ["r:1"], "mode": "Sentinel", "sentinel":
                {"masterName": "m", "username": "a", "authSecretRef": {"name": "s", "usernameKey": "u"}}}}}),
            ),
        ),
        ("startupDeadline must be", object("n", &json!({"l3": l3, "warming": {"startupDeadline": "11m"}}))),
        ("warming needs l3.redis", object("n", &json!({"l3": {"embedded": {}}, "warming": {"enabled": true}}))),
        ("startupShare is of use", object("n", &json!({"l3": l3, "warming": {"startupShare": 50}}))),
        (
            "is a prefix and a star",
            object("n", &json!({"l3": l3, "keyspaces": [{"name": "a", "match": "a?*", "negativeFilter": {}}]})),
        ),
        (
            "has no store",
            object(
                "n",
                &json!({"l3": l3, "keyspaces": [{"name": "a", "match": "a*", "cache": "Off", "negativeFilter": {}}]}),
            ),
        ),
        (
            "negativeFilter needs l3.redis",
            object(
                "n",
                &json!({"l3": l3, "consistency": {"coherence": "Ttl"}, "keyspaces": [{"name": "a", "match": "a*", "negativeFilter": {}}]}),
            ),
        ),
        ("with coherence Broadcast only", object("n", &json!({"l3": l3, "consistency": {"broadcastPrefixes": ["a"]}}))),
        (
            "both name the authorities",
            object(
                "n",
                &json!({"l3": {"redis": {"endpoints": ["r:1"], "tls": {"caSecretRef": {"name": "s"}, "caConfigMapRef": {"name": "c"}}}}}),
            ),
        ),
        ("tcpPort 9464", object("n", &json!({"l3": l3, "listen": {"tcpPort": 9464}}))),
        ("maxStaleness", object("n", &json!({"l3": l3, "consistency": {"maxStaleness": "5ms"}}))),
        ("demoteAfterIdle", object("n", &json!({"l3": l3, "tiering": {"demoteAfterIdle": "25h"}}))),
        ("maintenanceInterval", object("n", &json!({"l3": l3, "tiering": {"maintenanceInterval": "1ms"}}))),
        ("lease must be", object("n", &json!({"l3": l3, "locks": {"lease": "99ms"}}))),
        ("timeout must be", object("n", &json!({"l3": l3, "locks": {"timeout": "25h"}}))),
        ("deadlockCheck must be", object("n", &json!({"l3": l3, "locks": {"deadlockCheck": "1ms"}}))),
        ("exactly one of http and postgres", object("n", &json!({"l3": l3, "stores": [{"name": "a"}]}))),
        (
            "names one of stores",
            object(
                "n",
                &json!({"l3": l3, "keyspaces": [{"name": "a", "match": "a", "strategy": "ReadThrough", "store": "b"}]}),
            ),
        ),
        (
            "has neither tags nor parents",
            object(
                "n",
                &json!({"l3": l3, "stores": [{"name": "b", "http": {"url": "http://127.0.0.1:1/{key}"}}], "keyspaces": [
                    {"name": "a", "match": "a", "strategy": "WriteBehind", "store": "b", "parents": true},
                ]}),
            ),
        ),
        (
            "names of keyspaces",
            object("n", &json!({"l3": l3, "keyspaces": [{"name": "a", "match": "a"}, {"name": "a", "match": "b"}]})),
        ),
        (
            "ttl of a keyspace",
            object("n", &json!({"l3": l3, "keyspaces": [{"name": "a", "match": "a", "ttl": "9ms"}]})),
        ),
        (
            "negativeTtl of",
            object("n", &json!({"l3": l3, "keyspaces": [{"name": "a", "match": "a", "negativeTtl": "25h"}]})),
        ),
        ("auth needs secretRef", object("n", &json!({"l3": l3, "auth": {}}))),
        (
            "names of users",
            object("n", &json!({"l3": l3, "auth": {"users": [{"name": "default", "secretRef": {"name": "s"}}]}})),
        ),
    ];
    assert_eq!(examples.len(), rules::RULES.len());
    for (text, object) in examples {
        let told = told_by_cel(&object);
        assert!(told.len() == 1 && told.iter().all(|message| message.contains(text)), "{text}: {told:?}");
        assert_eq!(told_by_operator(&object), told);
    }
}

/// Messages of the rules that the API server would find broken by a new or changed CacheInvalidation.
fn told_of_invalidation(spec: &Value, before: Option<&Value>) -> Vec<String> {
    let schema = generate::invalidations()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
    let object = |spec: &Value| json!({"apiVersion": "cache.caddy.dev/v1alpha1", "kind": "CacheInvalidation", "metadata": {"name": "i"}, "spec": spec});
    let before = before.map(object);
    match Validator::new().validate_with_defaults(&schema, &object(spec), before.as_ref()) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.into_vec().into_iter().map(|error| error.message).collect(),
    }
}

#[test]
fn an_invalidation_names_something_and_never_changes() {
    let of = |spec: &Value| serde_json::from_value::<InvalidationSpec>(spec.clone()).unwrap();
    let nothing = json!({"cluster": "shop", "keys": []});
    let something = json!({"cluster": "shop", "patterns": ["user:*"]});
    let changed = json!({"cluster": "shop", "patterns": ["user:*", "order:*"]});
    for spec in
        [&nothing, &something, &changed, &json!({"cluster": "shop"}), &json!({"cluster": "shop", "tags": ["a"]})]
    {
        let told = told_of_invalidation(spec, None);
        let rules = INVALIDATION_RULES.iter();
        let broken = rules.filter(|rule| rule.holds.is_some_and(|holds| !holds(&of(spec)))).map(|rule| rule.message);
        assert_eq!(told, broken.collect::<Vec<_>>(), "{spec}");
    }
    assert_eq!(told_of_invalidation(&something, Some(&something)), Vec::<String>::new());
    assert!(told_of_invalidation(&changed, Some(&something))[0].contains("create another one"));
    assert!(of(&nothing).check().is_err() && of(&something).check().is_ok());
}

proptest! {
    #[test]
    fn cel_and_operator_agree(
        name in "[a-z]{1,60}",
        endpoints in option::of(vec(Just("r:1"), 0..3)),
        embedded: bool,
        port in select(vec![0, 1, 6379, 9463, 9464, 9465]),
        times in vec(select(vec!["0s", "1ms", "9ms", "10ms", "99ms", "100ms", "999ms", "1s", "60m", "24h", "25h", "1441m"]), 3),
        names in vec("[ab]{1,2}", 0..5),
    ) {
        let mut l3 = endpoints.map_or_else(|| json!({}), |endpoints| redis(&endpoints));
        if embedded {
            l3["embedded"] = json!({});
        }
        let object = object(&name, &json!({
            "l3": l3,
            "listen": {"tcpPort": port},
            "consistency": {"maxStaleness": times[0]},
            "tiering": {"demoteAfterIdle": times[1], "maintenanceInterval": times[2]},
            "locks": {"lease": times[0], "timeout": times[1], "deadlockCheck": times[2]},
            "keyspaces": names.iter().map(|name| match times[0] {
                "0s" => json!({"name": name, "match": "*"}),
                _ => json!({"name": name, "match": "*", "ttl": times[1], "negativeTtl": times[2]}),
            }).collect::<Vec<_>>(),
        }));
        prop_assert_eq!(told_by_cel(&object), told_by_operator(&object));
    }
}
