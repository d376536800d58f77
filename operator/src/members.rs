//! Which sidecars are there and what they report: an index over their Leases, fed by one watch. Pure.
//!
//! A member counts as long as its Lease changed within the time that the Lease itself names, on this process's monotonic
//! clock: no wall clock is compared. Leases go with their pods, by Kubernetes' garbage collection; a member that fell
//! silent before that is counted no longer when its time is over.

use caddy_contract::coordination::{self, MemberReport};
use caddy_crds::{CacheCluster, EPOCH_MAX, MemberCounts};
use caddy_lease::Moment;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{ResourceExt as _, runtime::reflector::ObjectRef, runtime::watcher};
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::Duration,
};

/// Members named in a condition's message; status stays bounded.
const NAMED: usize = 3;
/// Longest time that a Lease may claim; a member that names another is not believed.
const LONGEST: Duration = Duration::from_hours(1);

/// A namespace's Lease.
type Key = (String, String);

/// What is known of all members.
#[derive(Debug, Default)]
pub struct Members {
    known: HashMap<Key, Member>,
    /// Seen since a list began; what is not seen in it is gone.
    listed: Option<HashSet<Key>>,
    /// CacheClusters of which something changed that their status tells.
    changed: HashSet<ObjectRef<CacheCluster>>,
}

#[derive(Debug)]
struct Member {
    cluster: ObjectRef<CacheCluster>,
    pod_uid: String,
    report: MemberReport,
    version: String,
    until: Moment,
    silent: bool,
}

/// What the members of one CacheCluster report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberTally {
    /// Those heard of, and those that are coherent.
    pub counts: MemberCounts,
    /// Those that reach L3.
    pub reaching: i32,
    /// Some of what is wrong: pod and reason.
    pub troubles: Vec<String>,
    /// Some of those whose writes behind are not replicated: pod and reason.
    pub unreplicated: Vec<String>,
    /// The greatest epoch of the locks.
    pub epoch: Option<i64>,
    /// Those whose server told no ids when they confirmed it.
    pub by_mirror: i32,
    /// Pods whose sidecar reports an older configuration than the current one, by uid.
    pub behind: BTreeSet<String>,
}

impl Members {
    /// Takes an event of the watch over Leases with [`coordination::MEMBER_LABEL`].
    pub fn apply(&mut self, event: &watcher::Event<Lease>, now: Moment) {
        match event {
            watcher::Event::Init => self.listed = Some(HashSet::new()),
            watcher::Event::InitApply(lease) => {
                if let Some(listed) = &mut self.listed {
                    listed.insert(key(lease));
                }
                self.seen(lease, now);
            }
            watcher::Event::InitDone => {
                let Some(listed) = self.listed.take() else { return };
                let gone: Vec<_> = self.known.keys().filter(|key| !listed.contains(*key)).cloned().collect();
                for key in gone {
                    self.gone(&key);
                }
            }
            watcher::Event::Apply(lease) => self.seen(lease, now),
            watcher::Event::Delete(lease) => self.gone(&key(lease)),
        }
    }

    /// The CacheClusters whose members' tally changed since the last call, those included whose members fell silent.
    pub fn changes(&mut self, now: Moment) -> HashSet<ObjectRef<CacheCluster>> {
        for member in self.known.values_mut().filter(|member| !member.silent && member.until <= now) {
            member.silent = true;
            self.changed.insert(member.cluster.clone());
        }
        std::mem::take(&mut self.changed)
    }

    /// What the members of `cluster` report; `generation` is the current configuration's.
    pub fn tally(&self, cluster: &ObjectRef<CacheCluster>, generation: i64) -> MemberTally {
        let mut tally = MemberTally::default();
        let (mut troubles, mut unreplicated) = (Vec::new(), Vec::new());
        for member in self.known.values().filter(|member| member.cluster == *cluster && !member.silent) {
            let report = &member.report;
            tally.counts.ready = tally.counts.ready.saturating_add(1);
            tally.counts.coherent = tally.counts.coherent.saturating_add(i32::from(report.coherent));
            tally.reaching = tally.reaching.saturating_add(i32::from(report.l3_reachable));
            // What cannot be one is not passed on.
            let epoch = i64::try_from(report.lock_epoch).ok().filter(|epoch| (1..=EPOCH_MAX).contains(epoch));
            tally.epoch = tally.epoch.max(epoch);
            tally.by_mirror = tally.by_mirror.saturating_add(i32::from(epoch.is_some() && report.epoch_by_mirror));
            if !(report.coherent && report.l3_reachable) {
                troubles.push(format!("{}: {}", report.pod, report.reason));
            }
            if !report.unreplicated.is_empty() {
                unreplicated.push(format!("{}: {}", report.pod, report.unreplicated));
            }
            if report.config_generation < generation.unsigned_abs() {
                tally.behind.insert(member.pod_uid.clone());
            }
        }
        for named in [&mut troubles, &mut unreplicated] {
            named.sort_unstable();
            named.truncate(NAMED);
        }
        (tally.troubles, tally.unreplicated) = (troubles, unreplicated);
        tally
    }

    fn seen(&mut self, lease: &Lease, now: Moment) {
        let Some((cluster, report)) = read(lease) else { return self.gone(&key(lease)) };
        let version = lease.resource_version().unwrap_or_default();
        let pod_uid = lease.owner_references().first().map(|owner| owner.uid.clone()).unwrap_or_default();
        let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds).unwrap_or(0);
        let until = now + Duration::from_secs(seconds.max(0).unsigned_abs().into()).min(LONGEST);
        let member = Member { cluster, pod_uid, report, version, until, silent: false };
        let before = self.known.remove(&key(lease));
        let news = match &before {
            // A list tells again what is known already: that is no sign of life.
            Some(before) if before.version == member.version => {
                return drop(self.known.insert(key(lease), Member { ..before_of(member, before) }));
            }
            Some(before) => before.silent || before.report.differs(&member.report) || before.cluster != member.cluster,
            None => true,
        };
        if news {
            self.changed.insert(member.cluster.clone());
            self.changed.extend(before.map(|before| before.cluster));
        }
        self.known.insert(key(lease), member);
    }

    fn gone(&mut self, key: &Key) {
        if let Some(member) = self.known.remove(key) {
            self.changed.insert(member.cluster);
        }
    }
}

/// The same sight of a member: its time goes on from the first one.
fn before_of(member: Member, before: &Member) -> Member {
    Member { until: before.until, silent: before.silent, ..member }
}

fn key(lease: &Lease) -> Key {
    (lease.namespace().unwrap_or_default(), lease.name_any())
}

fn read(lease: &Lease) -> Option<(ObjectRef<CacheCluster>, MemberReport)> {
    let cluster = lease.labels().get(coordination::MEMBER_LABEL)?;
    let report = MemberReport::from_text(lease.annotations().get(coordination::REPORT_ANNOTATION)?)?;
    Some((ObjectRef::new(cluster).within(&lease.namespace()?), report))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(seconds: u64) -> Moment {
        Moment::after_origin(Duration::from_secs(seconds))
    }

    fn lease(name: &str, version: u32, report: &MemberReport) -> Lease {
        serde_json::from_value(json!({
            "metadata": {
                "name": name, "namespace": "shop", "resourceVersion": version.to_string(),
                "labels": {"cache.caddy.dev/member": "web"},
                "annotations": {"cache.caddy.dev/report": report.to_text()},
                "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": name, "uid": format!("uid-{name}")}],
            },
            "spec": {"leaseDurationSeconds": 30},
        }))
        .unwrap()
    }

    fn well() -> MemberReport {
        MemberReport { config_generation: 3, coherent: true, l3_reachable: true, ..MemberReport::default() }
    }

    fn web() -> ObjectRef<CacheCluster> {
        ObjectRef::new("web").within("shop")
    }

    fn counts(members: &Members) -> (i32, i32, i32) {
        let tally = members.tally(&web(), 3);
        (tally.counts.ready, tally.counts.coherent, tally.reaching)
    }

    #[test]
    fn members_are_counted_by_what_they_report() {
        let mut members = Members::default();
        let ill = MemberReport { pod: "b".into(), coherent: false, reason: "no tracking".into(), ..well() };
        let ill = MemberReport { unreplicated: "keyspace 'users': 0 of 1 replicas".into(), ..ill };
        let old = MemberReport { config_generation: 2, ..well() };
        for (name, report) in [("a", &well()), ("b", &ill), ("c", &old)] {
            members.apply(&watcher::Event::Apply(lease(name, 1, report)), at(0));
        }
        assert_eq!(counts(&members), (3, 2, 3));
        let tally = members.tally(&web(), 3);
        assert_eq!(tally.troubles, ["b: no tracking"]);
        assert_eq!(tally.unreplicated, ["b: keyspace 'users': 0 of 1 replicas"]);
        assert_eq!(tally.behind, BTreeSet::from(["uid-c".to_owned()]));
        assert_eq!(members.tally(&ObjectRef::new("other").within("shop"), 3), MemberTally::default());
    }

    #[test]
    fn the_greatest_epoch_counts_and_its_change_is_news() {
        let mut members = Members::default();
        let reports = [(5, false), (7, true), (0, true), (u64::MAX, false)];
        for (name, (lock_epoch, epoch_by_mirror)) in ["a", "b", "c", "d"].into_iter().zip(reports) {
            let report = MemberReport { lock_epoch, epoch_by_mirror, ..well() };
            members.apply(&watcher::Event::Apply(lease(name, 1, &report)), at(0));
        }
        let tally = members.tally(&web(), 3);
        assert_eq!((tally.epoch, tally.by_mirror), (Some(7), 1));
        members.changes(at(0));
        members.apply(&watcher::Event::Apply(lease("a", 2, &MemberReport { lock_epoch: 8, ..well() })), at(1));
        assert_eq!((members.changes(at(1)).len(), members.tally(&web(), 3).epoch), (1, Some(8)));
    }

    #[test]
    fn only_news_are_told() {
        let mut members = Members::default();
        members.apply(&watcher::Event::Apply(lease("a", 1, &well())), at(0));
        assert_eq!(members.changes(at(0)).len(), 1);
        let more = MemberReport { hits: 7, ..well() };
        members.apply(&watcher::Event::Apply(lease("a", 2, &more)), at(10));
        assert_eq!(members.changes(at(10)).len(), 0, "a heartbeat");
        members.apply(&watcher::Event::Apply(lease("a", 3, &MemberReport { coherent: false, ..well() })), at(11));
        assert_eq!(members.changes(at(11)).len(), 1);
    }

    #[test]
    fn a_member_that_falls_silent_counts_no_longer_and_a_list_is_no_sign_of_life() {
        let mut members = Members::default();
        members.apply(&watcher::Event::Apply(lease("a", 1, &well())), at(0));
        members.changes(at(0));
        for event in [watcher::Event::Init, watcher::Event::InitApply(lease("a", 1, &well())), watcher::Event::InitDone]
        {
            members.apply(&event, at(20));
        }
        assert_eq!(members.changes(at(29)).len(), 0);
        assert_eq!((members.changes(at(30)).len(), counts(&members).0), (1, 0));
        members.apply(&watcher::Event::Apply(lease("a", 2, &well())), at(31));
        assert_eq!((members.changes(at(31)).len(), counts(&members).0), (1, 1), "it is back");
    }

    #[test]
    fn what_goes_is_noticed_by_its_event_or_by_the_next_list() {
        let mut members = Members::default();
        for name in ["a", "b"] {
            members.apply(&watcher::Event::Apply(lease(name, 1, &well())), at(0));
        }
        members.apply(&watcher::Event::Delete(lease("a", 1, &well())), at(1));
        assert_eq!(counts(&members).0, 1);
        members.apply(&watcher::Event::Init, at(2));
        members.apply(&watcher::Event::InitDone, at(2));
        assert_eq!((counts(&members).0, members.changes(at(2)).len()), (0, 1));
    }

    #[test]
    fn what_is_no_report_is_not_counted() {
        let mut members = Members::default();
        let mut bad = lease("a", 1, &well());
        bad.annotations_mut().insert("cache.caddy.dev/report".into(), "nonsense".into());
        members.apply(&watcher::Event::Apply(bad), at(0));
        assert_eq!(counts(&members).0, 0);
    }
}
