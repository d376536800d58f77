//! Status and Events: what came of a reconciliation, as conditions that change only when something changed.

use super::{InvalidSpec, PodTally};
use crate::members::MemberTally;
use caddy_crds::{CacheCluster, CacheClusterStatus};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

/// What came of applying the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything is written.
    Applied,
    /// The spec cannot be used; nothing was written.
    Invalid(InvalidSpec),
    /// The API server refused or did not answer; it is tried again.
    Failed(String),
}

/// What was seen around a CacheCluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    /// Its pods.
    pub pods: PodTally,
    /// Its sidecars' reports.
    pub members: MemberTally,
    /// Why its sidecars have no identity, or will not have it much longer.
    pub identity_fault: Option<String>,
}

/// Whether an Event is good or bad news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoteKind {
    /// As it should be.
    Normal,
    /// Somebody should look.
    Warning,
}

/// An Event to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Good or bad news.
    pub kind: NoteKind,
    /// CamelCase reason.
    pub reason: &'static str,
    /// What happened and what to do.
    pub text: String,
}

/// The status after `outcome`, with the transition times of conditions that did not change kept.
pub fn status(cluster: &CacheCluster, outcome: &Outcome, world: &World, now: Timestamp) -> CacheClusterStatus {
    let before = cluster.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let generation = cluster.metadata.generation;
    // Kubernetes writes these times in whole seconds.
    let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    let merge = |(type_, verdict, reason, message): Told| {
        let unchanged = before.iter().find(|old| old.type_ == type_ && old.status == verdict.text());
        Condition {
            type_: type_.to_owned(),
            status: verdict.text().to_owned(),
            reason: reason.to_owned(),
            message,
            observed_generation: generation,
            last_transition_time: unchanged.map_or_else(|| now.clone(), |old| old.last_transition_time.clone()),
        }
    };
    CacheClusterStatus {
        observed_generation: generation,
        conditions: told(cluster, outcome, world).into_iter().map(merge).collect(),
        pods: world.pods.counts,
        members: world.members.counts,
        epoch: epoch(cluster, &world.members),
    }
}

/// The greatest epoch that was ever told: a sidecar that was asked for no lock since reports an older one.
fn epoch(cluster: &CacheCluster, members: &MemberTally) -> Option<i64> {
    let told = cluster.status.as_ref().and_then(|status| status.epoch);
    members.epoch.max(told).filter(|_| cluster.spec.l3.embedded.is_none())
}

/// Events for what changed from `before` to `after`; none when nothing did.
pub fn notes(before: Option<&CacheClusterStatus>, after: &CacheClusterStatus) -> Vec<Note> {
    let find = |status: &CacheClusterStatus, type_: &str| status.conditions.iter().find(|c| c.type_ == type_).cloned();
    let changed = |type_: &str| {
        let after = find(after, type_)?;
        let before = before.and_then(|status| find(status, type_));
        let same = before.is_some_and(|before| before.reason == after.reason && before.message == after.message);
        (!same).then_some(after)
    };
    let mut notes = Vec::new();
    if let Some(ready) = changed("Ready") {
        let (kind, reason) = match ready.reason.as_str() {
            "ConfigurationWritten" => (NoteKind::Normal, "ConfigurationWritten"),
            "InvalidSpec" => (NoteKind::Warning, "InvalidSpec"),
            _ => (NoteKind::Warning, "ApplyFailed"),
        };
        notes.push(Note { kind, reason, text: ready.message });
    }
    if let Some(injection) = changed("InjectionSynced").filter(|c| c.reason == "PodsNotInjected") {
        notes.push(Note { kind: NoteKind::Warning, reason: "PodsNotInjected", text: injection.message });
    }
    notes
}

/// Type, status, reason, message. The message is never empty: server-side apply in 1.20 makes null of an empty one and
/// refuses it.
type Told = (&'static str, Verdict, &'static str, String);

#[derive(Clone, Copy)]
enum Verdict {
    True,
    False,
    Unknown,
}

impl Verdict {
    fn text(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

fn told(cluster: &CacheCluster, outcome: &Outcome, world: &World) -> [Told; 6] {
    let (coherent, reachable) = beyond_the_pod(cluster, outcome, &world.members);
    [ready(outcome), progressing(outcome), degraded(outcome, world), coherent, reachable, injection(&world.pods)]
}

fn ready(outcome: &Outcome) -> Told {
    match outcome {
        Outcome::Applied => (
            "Ready",
            Verdict::True,
            "ConfigurationWritten",
            "the configuration is written; running sidecars read it within about a minute".into(),
        ),
        Outcome::Invalid(reasons) => ("Ready", Verdict::False, "InvalidSpec", bounded(&reasons.to_string())),
        Outcome::Failed(error) => ("Ready", Verdict::False, "ApplyFailed", bounded(error)),
    }
}

fn progressing(outcome: &Outcome) -> Told {
    match outcome {
        Outcome::Applied => ("Progressing", Verdict::False, "Done", "nothing is left to do".into()),
        Outcome::Invalid(_) => {
            ("Progressing", Verdict::False, "InvalidSpec", "waits for a spec that can be used; see Ready".into())
        }
        Outcome::Failed(_) => {
            ("Progressing", Verdict::True, "Retrying", "tried again with growing pauses; see Ready".into())
        }
    }
}

fn degraded(outcome: &Outcome, world: &World) -> Told {
    match outcome {
        Outcome::Applied if world.pods.missing() > 0 => {
            ("Degraded", Verdict::True, "PodsNotInjected", "some pods have no sidecar; see InjectionSynced".into())
        }
        Outcome::Applied => match &world.identity_fault {
            None if !world.members.unreplicated.is_empty() => {
                let text = format!(
                    "writes behind with durability Replicated are acknowledged by their store only, since replicas do not have \
                     them. {}",
                    world.members.unreplicated.join("; ")
                );
                ("Degraded", Verdict::True, "WritesNotReplicated", bounded(&text))
            }
            None => ("Degraded", Verdict::False, "AsExpected", "all is as it should be".into()),
            Some(fault) => {
                let text = format!(
                    "sidecars serve, but without an identity of their own they do not report and share no duties: {fault}"
                );
                ("Degraded", Verdict::True, "IdentityMissing", bounded(&text))
            }
        },
        Outcome::Invalid(_) => {
            ("Degraded", Verdict::True, "InvalidSpec", "sidecars keep their last configuration; see Ready".into())
        }
        Outcome::Failed(_) => {
            ("Degraded", Verdict::True, "ApplyFailed", "sidecars keep their last configuration; see Ready".into())
        }
    }
}

/// Coherent and L3Reachable: what sidecars report.
fn beyond_the_pod(cluster: &CacheCluster, outcome: &Outcome, members: &MemberTally) -> (Told, Told) {
    let unknown = |type_, reason, text: &str| (type_, Verdict::Unknown, reason, text.to_owned());
    if matches!(outcome, Outcome::Invalid(_)) {
        let text = "nothing can be said of a spec that cannot be used";
        return (unknown("Coherent", "InvalidSpec", text), unknown("L3Reachable", "InvalidSpec", text));
    }
    if cluster.spec.l3.embedded.is_some() {
        let alone = "l3 is embedded: each pod has its own data. Set spec.l3.redis to share it".to_owned();
        return (
            ("Coherent", Verdict::False, "EachPodHasItsOwnData", alone),
            ("L3Reachable", Verdict::True, "Embedded", "l3 is in the sidecar itself".into()),
        );
    }
    let ready = members.counts.ready;
    if ready == 0 {
        let text = "no sidecar reports; one that has no way to the API server serves all the same, ask its /metrics";
        return (unknown("Coherent", "NotReported", text), unknown("L3Reachable", "NotReported", text));
    }
    let by_all = |type_, good, bad, count: i32, what: &str| {
        if count == ready {
            return (type_, Verdict::True, good, format!("all of {ready} sidecars that report {what}"));
        }
        let troubles = members.troubles.join("; ");
        let text = format!("{count} of {ready} sidecars that report {what}. {troubles}");
        (type_, Verdict::False, bad, bounded(&text))
    };
    let coherent =
        by_all("Coherent", "AllCoherent", "NotAllCoherent", members.counts.coherent, "learn of every write and cache");
    let mut reachable = by_all("L3Reachable", "AllReachIt", "NotAllReachIt", members.reaching, "reach L3");
    if members.by_mirror > 0 && members.reaching == ready {
        reachable.2 = "WithoutServerIds";
        let text = format!(
            "{}. Its server tells {} of them no run id, since it refuses INFO: that its data was lost is noticed by the \
             mirror of the locks' epoch only. Allow the sidecars' user +info, where that is possible",
            reachable.3, members.by_mirror
        );
        reachable.3 = bounded(&text);
    }
    (coherent, reachable)
}

fn injection(pods: &PodTally) -> Told {
    let counts = pods.counts;
    if pods.missing() > 0 {
        let text = format!(
            "{} of {} pods have no sidecar ({}): they were created while the operator was away, or could not get one. \
             Replace them, e.g. with kubectl rollout restart",
            pods.missing(),
            counts.selected,
            pods.missed.join(", "),
        );
        return ("InjectionSynced", Verdict::False, "PodsNotInjected", bounded(&text));
    }
    let old = counts.stale - pods.behind;
    if old > 0 {
        let text = format!(
            "{old} of {} sidecars differ in image, resources or volumes from what a new pod would get. They are not \
             restarted unasked; use kubectl rollout restart when it suits",
            counts.injected,
        );
        return ("InjectionSynced", Verdict::False, "PodsStale", text);
    }
    if pods.behind > 0 {
        let text = format!(
            "{} of {} sidecars report an older configuration; kubelets bring the new one within about a minute",
            pods.behind, counts.injected,
        );
        return ("InjectionSynced", Verdict::False, "ConfigurationOnItsWay", text);
    }
    let text = format!("{} pods ask for a sidecar, and all have the one of today", counts.selected);
    ("InjectionSynced", Verdict::True, "AllInjected", text)
}

/// A condition's message: one line, and short enough for the note of an Event (1 KiB).
pub fn bounded(text: &str) -> String {
    const MOST: usize = 1000;
    let line = text.replace('\n', "; ");
    if line.len() <= MOST {
        return line;
    }
    format!("{}…", &line[..line.floor_char_boundary(MOST)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cluster, cluster_with};
    use caddy_crds::{MemberCounts, PodCounts};
    use serde_json::json;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn pods(selected: i32, injected: i32, stale: i32) -> World {
        let counts = PodCounts { selected, injected, stale };
        World { pods: PodTally { counts, missed: vec!["app-1".into()], behind: 0 }, ..World::default() }
    }

    fn members(ready: i32, coherent: i32, reaching: i32) -> World {
        let troubles = vec!["app-1: tracking is refused".into()];
        let members =
            MemberTally { counts: MemberCounts { ready, coherent }, reaching, troubles, ..MemberTally::default() };
        World { members, ..World::default() }
    }

    fn condition<'a>(status: &'a CacheClusterStatus, type_: &str) -> &'a Condition {
        status.conditions.iter().find(|c| c.type_ == type_).unwrap()
    }

    #[test]
    fn a_second_look_at_the_same_thing_changes_nothing() {
        let mut cluster = cluster();
        let first = status(&cluster, &Outcome::Applied, &pods(2, 2, 0), at(100));
        cluster.status = Some(first.clone());
        let second = status(&cluster, &Outcome::Applied, &pods(2, 2, 0), at(200));
        assert_eq!(first, second);
        assert_eq!(notes(Some(&first), &second), []);
    }

    #[test]
    fn transition_times_move_only_with_the_status() {
        let mut cluster = cluster();
        cluster.status = Some(status(&cluster, &Outcome::Applied, &pods(1, 1, 0), at(100)));
        let invalid = Outcome::Invalid(InvalidSpec(vec!["spec.l2: no".into()]));
        let after = status(&cluster, &invalid, &pods(1, 1, 0), at(200));
        assert_eq!(condition(&after, "Ready").last_transition_time.0, at(200));
        assert_eq!(condition(&after, "InjectionSynced").last_transition_time.0, at(100));
        assert_eq!(
            (condition(&after, "Ready").status.as_str(), condition(&after, "Ready").reason.as_str()),
            ("False", "InvalidSpec")
        );
    }

    #[test]
    fn what_nobody_told_is_unknown() {
        let status = status(&cluster(), &Outcome::Applied, &pods(0, 0, 0), at(1));
        assert_eq!(condition(&status, "Coherent").status, "Unknown");
        assert_eq!(condition(&status, "L3Reachable").status, "Unknown");
    }

    #[test]
    fn writes_that_no_replica_has_degrade() {
        let mut world = members(2, 2, 2);
        world.members.unreplicated = vec!["app-1: keyspace 'users': 0 of 1 replicas of Redis have it".into()];
        let status = status(&cluster(), &Outcome::Applied, &world, at(1));
        let degraded = condition(&status, "Degraded");
        assert_eq!((degraded.status.as_str(), degraded.reason.as_str()), ("True", "WritesNotReplicated"));
        assert!(degraded.message.contains("app-1: keyspace 'users'"), "{}", degraded.message);
    }

    #[test]
    fn what_members_report_becomes_conditions() {
        let told = |world: &World| {
            let status = status(&cluster(), &Outcome::Applied, world, at(1));
            ["Coherent", "L3Reachable"].map(|type_| condition(&status, type_).clone())
        };
        let [coherent, reachable] = told(&members(3, 3, 3));
        assert_eq!((coherent.reason.as_str(), reachable.reason.as_str()), ("AllCoherent", "AllReachIt"));
        let [coherent, reachable] = told(&members(3, 1, 3));
        assert_eq!((coherent.status.as_str(), reachable.status.as_str()), ("False", "True"));
        assert!(coherent.message.starts_with("1 of 3 sidecars") && coherent.message.ends_with("tracking is refused"));
        assert_eq!(status(&cluster(), &Outcome::Applied, &members(3, 1, 3), at(1)).members.coherent, 1);
    }

    #[test]
    fn the_epoch_of_the_locks_never_goes_back_and_what_it_rests_on_is_told() {
        let mut cluster = cluster();
        let world = |epoch, by_mirror| {
            let mut world = members(3, 3, 3);
            (world.members.epoch, world.members.by_mirror) = (epoch, by_mirror);
            world
        };
        assert_eq!(status(&cluster, &Outcome::Applied, &world(None, 0), at(1)).epoch, None);
        let told = status(&cluster, &Outcome::Applied, &world(Some(7), 0), at(1));
        assert_eq!((told.epoch, condition(&told, "L3Reachable").reason.as_str()), (Some(7), "AllReachIt"));
        cluster.status = Some(told);
        let later = status(&cluster, &Outcome::Applied, &world(Some(5), 2), at(2));
        let reachable = condition(&later, "L3Reachable");
        assert_eq!((later.epoch, reachable.status.as_str()), (Some(7), "True"));
        assert_eq!(reachable.reason, "WithoutServerIds");
        assert!(reachable.message.contains("2 of them no run id"), "{}", reachable.message);
        cluster.spec.l3 = cluster_with(&json!({"l3": {"embedded": {}}})).spec.l3;
        assert_eq!(status(&cluster, &Outcome::Applied, &world(None, 0), at(3)).epoch, None, "each pod has its own");
    }

    #[test]
    fn a_missing_identity_and_a_configuration_on_its_way_are_told() {
        let world = World { identity_fault: Some("refused".into()), ..pods(2, 2, 0) };
        let status_of = |world: &World| status(&cluster(), &Outcome::Applied, world, at(1));
        assert_eq!(condition(&status_of(&world), "Degraded").reason, "IdentityMissing");
        let mut world = pods(2, 2, 2);
        world.pods.behind = 2;
        assert_eq!(condition(&status_of(&world), "InjectionSynced").reason, "ConfigurationOnItsWay");
        world.pods.behind = 1;
        assert_eq!(condition(&status_of(&world), "InjectionSynced").reason, "PodsStale");
    }

    #[test]
    fn an_embedded_l3_says_that_each_pod_is_alone() {
        let cluster = cluster_with(&json!({"l3": {"embedded": {}}}));
        let status = status(&cluster, &Outcome::Applied, &pods(0, 0, 0), at(1));
        assert_eq!(condition(&status, "Coherent").reason, "EachPodHasItsOwnData");
        assert_eq!(condition(&status, "Coherent").status, "False");
    }

    #[test]
    fn missed_pods_are_named_and_told_once() {
        let mut cluster = cluster();
        let after = status(&cluster, &Outcome::Applied, &pods(3, 2, 1), at(1));
        let injection = condition(&after, "InjectionSynced");
        assert!(injection.message.starts_with("1 of 3 pods have no sidecar (app-1)"), "{}", injection.message);
        assert_eq!(condition(&after, "Degraded").status, "True");
        let told: Vec<_> = notes(None, &after).into_iter().map(|note| note.reason).collect();
        assert_eq!(told, ["ConfigurationWritten", "PodsNotInjected"]);
        cluster.status = Some(after.clone());
        assert_eq!(notes(Some(&after), &status(&cluster, &Outcome::Applied, &pods(3, 2, 1), at(2))), []);
    }

    #[test]
    fn no_message_is_empty() {
        let outcomes = [Outcome::Applied, Outcome::Invalid(InvalidSpec(vec!["x".into()])), Outcome::Failed("x".into())];
        for (outcome, pods) in outcomes.iter().flat_map(|outcome| [(outcome, pods(1, 1, 0)), (outcome, pods(2, 1, 1))])
        {
            for spec in [json!({"l3": {"embedded": {}}}), json!({"l3": {"redis": {"endpoints": ["r:1"]}}})] {
                let status = status(&cluster_with(&spec), outcome, &pods, at(1));
                assert!(status.conditions.iter().all(|condition| !condition.message.is_empty()), "{status:?}");
            }
        }
    }

    #[test]
    fn messages_are_bounded() {
        let invalid = Outcome::Invalid(InvalidSpec(vec!["ü".repeat(5000)]));
        let status = status(&cluster(), &invalid, &pods(0, 0, 0), at(1));
        assert!(condition(&status, "Ready").message.len() <= 1024);
    }
}
