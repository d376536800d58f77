//! Pods in, pods out: golden files, idempotence and what injection never touches.
//!
//! `golden/inject/<case>.in.yaml` holds `form`, a CacheCluster's `spec` and a `pod`; `<case>.out.yaml` what becomes of it.
//! `UPDATE_GOLDEN=1 cargo test -p caddy-operator --test injection` rewrites the latter; read the difference.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test's helpers fail the test")]

use caddy_crds::CacheCluster;
use caddy_operator::{
    capabilities::SidecarForm,
    inject::{Defaults, SidecarUser, Verdict, inject},
};
use proptest::{collection::vec, option, prelude::*, sample::select};
use serde_json::{Value, json};
use std::{fs, path::Path};

fn defaults() -> Defaults {
    Defaults { image: "registry.example/caddy-cache:0.1.0".into(), pull_policy: None, user: SidecarUser::Fixed }
}

fn cluster(spec: &Value) -> CacheCluster {
    serde_json::from_value(json!({
        "apiVersion": "cache.caddy.dev/v1alpha1",
        "kind": "CacheCluster",
        "metadata": {"name": "shop", "namespace": "shop", "uid": "1", "generation": 7},
        "spec": spec,
    }))
    .unwrap()
}

fn form(name: &str) -> SidecarForm {
    match name {
        "native" => SidecarForm::Native,
        "plain" => SidecarForm::Plain,
        other => panic!("form {other}"),
    }
}

/// The pod after injection, or the verdict's text.
fn result(pod: &Value, verdict: Verdict) -> Value {
    match verdict {
        Verdict::Patch(patch) => {
            let mut out = pod.clone();
            json_patch::patch(&mut out, &patch).unwrap();
            json!({ "pod": out })
        }
        Verdict::Skip(reason) => json!({ "skip": reason }),
        Verdict::Deny(message) => json!({ "deny": message }),
    }
}

#[test]
fn pods_come_out_as_the_golden_files_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/inject");
    let mut cases: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str().unwrap().strip_suffix(".in.yaml").map(str::to_owned))
        .collect();
    cases.sort();
    assert!(cases.len() >= 8, "golden files are missing in {}", folder.display());
    for case in cases {
        let text = fs::read_to_string(folder.join(format!("{case}.in.yaml"))).unwrap();
        let input: Value = serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{case}: {error}"));
        let (cluster, form) = (cluster(&input["spec"]), form(input["form"].as_str().unwrap()));
        let out = result(&input["pod"], inject(&input["pod"], &cluster, form, &defaults()));
        let file = folder.join(format!("{case}.out.yaml"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&file, serde_yaml::to_string(&out).unwrap()).unwrap();
        }
        let expected: Value = serde_yaml::from_str(&fs::read_to_string(&file).unwrap_or_default()).unwrap();
        assert!(
            out == expected,
            "{case}: got\n{}\nIf that is right, refresh with UPDATE_GOLDEN=1 cargo test -p caddy-operator --test injection",
            serde_yaml::to_string(&out).unwrap()
        );
        if let Some(pod) = out.get("pod") {
            assert_eq!(
                inject(pod, &cluster, form, &defaults()),
                Verdict::Patch(json_patch::Patch(vec![])),
                "{case}: again"
            );
        }
    }
}

#[test]
fn a_container_that_another_webhook_adds_later_is_connected_too() {
    let cluster = cluster(&json!({"l3": {"embedded": {}}}));
    let pod = json!({"spec": {"containers": [{"name": "app"}]}});
    let mut once = result(&pod, inject(&pod, &cluster, SidecarForm::Plain, &defaults()))["pod"].clone();
    once["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "late"}));
    once["spec"]["containers"][0]["image"] = json!("mirror.example/caddy-cache:0.1.0");
    let twice = result(&once, inject(&once, &cluster, SidecarForm::Plain, &defaults()))["pod"].clone();
    assert_eq!(twice["spec"]["containers"][2]["volumeMounts"][0]["name"], "caddy-socket");
    assert_eq!(
        twice["spec"]["containers"][0]["image"], "mirror.example/caddy-cache:0.1.0",
        "another webhook's change is undone"
    );
    assert_eq!(twice["spec"]["containers"].as_array().unwrap().len(), 3);
}

#[test]
fn openshift_chooses_the_user() {
    let defaults = Defaults { user: SidecarUser::Platform, ..defaults() };
    let pod = json!({"spec": {"containers": [{"name": "app"}]}});
    let out = result(&pod, inject(&pod, &cluster(&json!({"l3": {"embedded": {}}})), SidecarForm::Plain, &defaults));
    let context = &out["pod"]["spec"]["containers"][0]["securityContext"];
    assert!(context.get("runAsUser").is_none() && context.get("runAsGroup").is_none());
    assert_eq!(context["runAsNonRoot"], true);
}

prop_compose! {
    fn container()(
        name in "[a-z]{1,5}",
        env in option::of(vec(("[AB]", select(vec!["redis://r:1/2", "x", "unix:///run/caddy/cache.sock"])), 0..3)),
        mounts in option::of(vec("[a-z]{1,3}", 0..2)),
        unknown: bool,
    ) -> Value {
        let mut container = json!({"name": name, "image": "i"});
        if let Some(env) = env {
            container["env"] = env.into_iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        }
        if let Some(mounts) = mounts {
            container["volumeMounts"] = mounts.into_iter().map(|name| json!({"name": name, "mountPath": format!("/{name}")})).collect();
        }
        if unknown {
            container["fieldOfTheFuture"] = json!({"a": [1, 2]});
        }
        container
    }
}

prop_compose! {
    fn any_pod()(
        containers in vec(container(), 1..4),
        init in option::of(vec(container(), 0..3)),
        volumes in option::of(vec("[a-z]{1,3}", 0..2)),
        labelled: bool,
        variable in option::of("[AB]"),
        via in option::of(select(vec!["unix", "tcp"])),
        safe in option::of(select(vec!["", "data", "data, caddy-socket"])),
    ) -> Value {
        let mut pod = json!({"metadata": {}, "spec": {"containers": containers, "fieldOfTheFuture": true}});
        if let Some(init) = init {
            pod["spec"]["initContainers"] = json!(init);
        }
        if let Some(volumes) = volumes {
            pod["spec"]["volumes"] = volumes.into_iter().map(|name| json!({"name": name})).collect();
        }
        if labelled {
            pod["metadata"]["labels"] = json!({"a": "b"});
        }
        let annotations = [
            ("cache.caddy.dev/redis-url-env", variable.as_deref()),
            ("cache.caddy.dev/via", via),
            ("cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes", safe),
        ];
        for (name, value) in annotations {
            if let Some(value) = value {
                pod["metadata"]["annotations"][name] = json!(value);
            }
        }
        pod
    }
}

/// The pod's own containers without what injection adds to them.
fn own(pod: &Value, list: &str) -> Vec<Value> {
    let containers = pod["spec"][list].as_array().cloned().unwrap_or_default();
    let strip = |mut container: Value| {
        let added = |entry: &Value| entry["name"] == "caddy-socket" || entry["name"] == "CADDY_SOCKET";
        for field in ["volumeMounts", "env"] {
            let Some(entries) = container.get_mut(field).and_then(Value::as_array_mut) else { continue };
            entries.retain(|entry| !added(entry));
            for entry in entries.iter_mut().filter(|_| field == "env") {
                entry["value"] = json!(null);
            }
            if entries.is_empty() {
                container.as_object_mut().unwrap().remove(field);
            }
        }
        container
    };
    containers.into_iter().filter(|container| container["name"] != "caddy-sidecar").map(strip).collect()
}

proptest! {
    #[test]
    fn injecting_twice_is_injecting_once(
        pod in any_pod(),
        form in select(vec![SidecarForm::Native, SidecarForm::Plain]),
        port in select(vec![0, 6379]),
        auth: bool,
    ) {
        let mut spec = json!({"l3": {"redis": {"endpoints": ["r:1"]}}, "listen": {"tcpPort": port}});
        if auth {
            spec["l3"]["redis"]["authSecretRef"] = json!({"name": "redis"});
        }
        let cluster = cluster(&spec);
        if let Verdict::Patch(patch) = inject(&pod, &cluster, form, &defaults()) {
            let mut once = pod.clone();
            json_patch::patch(&mut once, &patch).unwrap();
            prop_assert_eq!(inject(&once, &cluster, form, &defaults()), Verdict::Patch(json_patch::Patch(vec![])));
            for list in ["containers", "initContainers"] {
                prop_assert_eq!(own(&pod, list), own(&once, list), "{} changed", list);
            }
            let sidecars = ["containers", "initContainers"].iter().flat_map(|list| once["spec"][list].as_array().into_iter().flatten());
            prop_assert_eq!(sidecars.filter(|container| container["name"] == "caddy-sidecar").count(), 1);
        }
    }
}
