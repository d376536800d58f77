//! Counting the pods of a CacheCluster: who asks, who got a sidecar, whose sidecar is not the one of today.

use crate::{capabilities::SidecarForm, inject::unfit};
use caddy_crds::{PodCounts, names};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use std::collections::BTreeSet;

/// Pods named in a condition's message; status stays bounded.
const NAMED: usize = 5;

/// What was seen of a CacheCluster's pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodTally {
    /// The numbers.
    pub counts: PodCounts,
    /// Some of the pods without a sidecar, by name.
    pub missed: Vec<String>,
    /// Those of the stale pods that only have an older configuration, which will reach them.
    pub behind: i32,
}

impl PodTally {
    /// Pods that ask and have no sidecar.
    pub fn missing(&self) -> i32 {
        self.counts.selected - self.counts.injected
    }
}

/// Counts pods that have not ended and can have a sidecar. `template` is what a pod injected today would carry, `form`
/// how the sidecar would stand in it, `behind` who reports an older configuration, by uid.
pub fn tally<'a>(
    pods: impl Iterator<Item = &'a Pod>,
    template: &str,
    form: SidecarForm,
    behind: &BTreeSet<String>,
) -> PodTally {
    let mut tally = PodTally::default();
    let mut missed = Vec::new();
    for pod in pods.filter(|pod| lives(pod)) {
        let injected = has_sidecar(pod);
        if !injected && cannot(pod, form) {
            continue;
        }
        tally.counts.selected = tally.counts.selected.saturating_add(1);
        if !injected {
            missed.push(pod.name_any());
            continue;
        }
        tally.counts.injected = tally.counts.injected.saturating_add(1);
        if pod.annotations().get(names::TEMPLATE_ANNOTATION).is_none_or(|found| found != template) {
            tally.counts.stale = tally.counts.stale.saturating_add(1);
        } else if pod.metadata.uid.as_ref().is_some_and(|uid| behind.contains(uid)) {
            tally.counts.stale = tally.counts.stale.saturating_add(1);
            tally.behind = tally.behind.saturating_add(1);
        }
    }
    missed.sort_unstable();
    missed.truncate(NAMED);
    tally.missed = missed;
    tally
}

/// Whether the pod has a sidecar in either form.
pub fn has_sidecar(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let init = spec.init_containers.iter().flatten();
    spec.containers.iter().chain(init).any(|container| container.name == names::SIDECAR_CONTAINER)
}

/// Whether injection left the pod alone for good; its owner was told why.
fn cannot(pod: &Pod, form: SidecarForm) -> bool {
    serde_json::to_value(pod).is_ok_and(|pod| unfit(&pod, form).is_some())
}

fn lives(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_none() && !matches!(phase, Some("Succeeded" | "Failed"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pod;
    use serde_json::json;

    fn counts(pods: &[Pod]) -> (i32, i32, i32) {
        let PodCounts { selected, injected, stale } =
            tally(pods.iter(), "today", SidecarForm::Plain, &BTreeSet::new()).counts;
        (selected, injected, stale)
    }

    fn injected(template: &str) -> Pod {
        pod(&json!({
            "metadata": {"name": "in", "annotations": {"cache.caddy.dev/template": template}},
            "spec": {"containers": [{"name": "caddy-sidecar"}, {"name": "app"}]},
        }))
    }

    #[test]
    fn sidecars_count_in_both_forms() {
        let native = pod(&json!({
            "metadata": {"annotations": {"cache.caddy.dev/template": "today"}},
            "spec": {"containers": [{"name": "app"}], "initContainers": [{"name": "caddy-sidecar"}]},
        }));
        assert_eq!(counts(&[native, injected("today")]), (2, 2, 0));
    }

    #[test]
    fn another_template_or_none_is_stale() {
        let unmarked = pod(&json!({"spec": {"containers": [{"name": "caddy-sidecar"}]}}));
        assert_eq!(counts(&[injected("today"), injected("yesterday"), unmarked]), (3, 3, 2));
    }

    #[test]
    fn an_older_configuration_is_stale_too_and_told_apart() {
        let mut late = injected("today");
        late.metadata.uid = Some("late".into());
        let mut both = injected("yesterday");
        both.metadata.uid = Some("both".into());
        let behind = BTreeSet::from(["late".to_owned(), "both".to_owned()]);
        let tally = tally([&late, &both].into_iter(), "today", SidecarForm::Plain, &behind);
        assert_eq!((tally.counts.stale, tally.behind), (2, 1));
    }

    #[test]
    fn pods_that_ended_or_are_ending_do_not_count() {
        let bare = json!({"spec": {"containers": [{"name": "app"}]}});
        let with = |path: &str, value: serde_json::Value| {
            let mut object = bare.clone();
            object[path] = value;
            pod(&object)
        };
        let ended = [
            with("status", json!({"phase": "Succeeded"})),
            with("status", json!({"phase": "Failed"})),
            with("metadata", json!({"deletionTimestamp": "2026-01-01T00:00:00Z"})),
        ];
        assert_eq!(counts(&ended), (0, 0, 0));
        assert_eq!(counts(&[with("status", json!({"phase": "Running"}))]), (1, 0, 0));
    }

    #[test]
    fn pods_that_cannot_have_a_sidecar_are_not_missed() {
        let job = pod(&json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "app"}]}}));
        assert_eq!(tally([&job].into_iter(), "today", SidecarForm::Plain, &BTreeSet::new()).missing(), 0);
        assert_eq!(tally([&job].into_iter(), "today", SidecarForm::Native, &BTreeSet::new()).missing(), 1);
    }

    #[test]
    fn pods_without_a_sidecar_are_named_a_few() {
        let bare =
            |n: i32| pod(&json!({"metadata": {"name": format!("p{n}")}, "spec": {"containers": [{"name": "app"}]}}));
        let pods: Vec<Pod> = (0..9).rev().map(bare).collect();
        let tally = tally(pods.iter(), "today", SidecarForm::Plain, &BTreeSet::new());
        assert_eq!((tally.missing(), tally.missed.join(" ").as_str()), (9, "p0 p1 p2 p3 p4"));
    }
}
