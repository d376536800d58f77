//! This sidecar's own Lease: its sign of life and its report, on change and at the pace of its cluster's size.
//!
//! Owned by the pod, so that Kubernetes deletes it with the pod. Nobody else writes it, so no version is named. What fails
//! is tried again at the next turn.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use caddy_contract::coordination::{MEMBER_LABEL, MemberReport, REPORT_ANNOTATION, heartbeat, member_lease, share};
use caddy_lease::{Moment, Reply, boottime, timestamp};
use serde_json::{Value, json};

use super::{Member, Place, Pod, client::ApiClient, random_part};

/// Pause between two looks at what there is to report.
const LOOK: Duration = Duration::from_secs(1);
/// Deadline of a request.
const DEADLINE: Duration = Duration::from_secs(8);
/// Heartbeats that may be missed before a member counts as silent.
const MISSED: u32 = 3;

/// Reports until the sidecar ends.
pub(super) async fn keep(member: impl Member, client: Arc<ApiClient>, place: Place, pod: Pod) {
    let all = place.leases();
    let path = format!("{all}/{}", member_lease(&pod.uid));
    let started = timestamp(SystemTime::now());
    let mut schedule = Schedule::default();
    let mut trouble = None;
    loop {
        tokio::time::sleep(LOOK).await;
        let (report, members) = (member.report(&pod), member.members());
        if !client.has_identity() || !schedule.is_due(&report, members, boottime()) {
            continue;
        }
        let lease = lease(&place.cluster, &pod, &report, members, &started);
        let written =
            tokio::time::timeout(DEADLINE, write(&client, &all, &path, &lease, schedule.told.is_some())).await;
        let reply = written.unwrap_or_else(|_| Reply::Unknown(format!("no answer within {DEADLINE:?}")));
        let (told, after) = match &reply {
            Reply::Lease(_) => (true, None),
            Reply::Busy(after) => (false, *after),
            _ => (false, None),
        };
        schedule.written(told.then_some(report), members, after, boottime());
        let now = match reply {
            Reply::Denied(reason) | Reply::Unknown(reason) => Some(reason),
            _ => None,
        };
        if now != trouble
            && let Some(reason) = &now
        {
            tracing::warn!(reason, "this sidecar cannot report to the API server; apps are served all the same");
        }
        trouble = now;
    }
}

/// Makes the Lease, or changes it; `made` is what this process knows. After a restart of the container it is there already.
async fn write(client: &ApiClient, all: &str, path: &str, lease: &Value, made: bool) -> Reply {
    if made {
        return match client.patch(path, lease).await {
            Reply::Missing => client.create(all, lease).await,
            reply => reply,
        };
    }
    match client.create(all, lease).await {
        Reply::Conflict => client.patch(path, lease).await,
        reply => reply,
    }
}

/// A tenth to three tenths more than the pause: all together stay within their rate, also while the first round of those
/// that started together runs into the second.
fn spread(pause: Duration) -> Duration {
    pause * 11 / 10 + random_part(pause / 5)
}

/// When the next report is due. Pure.
#[derive(Debug, Default)]
struct Schedule {
    told: Option<MemberReport>,
    next: Option<Moment>,
    hurried: bool,
}

impl Schedule {
    fn is_due(&mut self, report: &MemberReport, members: u32, now: Moment) -> bool {
        let hurry = match &self.told {
            None => self.next.is_none(),
            Some(told) => told.differs(report),
        };
        if hurry && !self.hurried {
            // What concerns all of them, such as an outage of Redis, is not told by all in one moment.
            self.hurried = true;
            let soon = now + random_part(share(members) * 11 / 10);
            self.next = Some(self.next.map_or(soon, |next| next.min(soon)));
        }
        self.next.is_none_or(|next| next <= now)
    }

    fn written(&mut self, told: Option<MemberReport>, members: u32, after: Option<Duration>, now: Moment) {
        self.hurried = false;
        if told.is_some() {
            self.told = told;
        } else {
            // Not hurried again before the next turn: the server may have enough to do.
            self.hurried = true;
        }
        self.next = Some(now + spread(heartbeat(members)).max(after.unwrap_or_default()));
    }
}

fn lease(cluster: &str, pod: &Pod, report: &MemberReport, members: u32, started: &str) -> Value {
    let duration = heartbeat(members) * 13 / 10 * MISSED;
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": member_lease(&pod.uid),
            "labels": {MEMBER_LABEL: cluster, "app.kubernetes.io/name": "caddy-cache"},
            "annotations": {REPORT_ANNOTATION: report.to_text()},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": pod.name, "uid": pod.uid}],
        },
        "spec": {
            "holderIdentity": pod.name,
            "leaseDurationSeconds": duration.as_secs(),
            "acquireTime": started,
            "renewTime": timestamp(SystemTime::now()),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::after_origin(Duration::from_secs(seconds))
    }

    fn well() -> MemberReport {
        MemberReport { coherent: true, ..MemberReport::default() }
    }

    /// Seconds at which a report is written when `report` says what there is to report.
    fn writes(members: u32, until: u64, report: impl Fn(u64) -> MemberReport) -> Vec<u64> {
        let mut schedule = Schedule::default();
        let due = |second: &u64| {
            let report = report(*second);
            let due = schedule.is_due(&report, members, at(*second));
            if due {
                schedule.written(Some(report), members, None, at(*second));
            }
            due
        };
        (0..until).filter(due).collect()
    }

    #[test]
    fn heartbeats_keep_the_pace_of_the_cluster() {
        let few = writes(3, 1000, |_| well());
        assert!((76..=92).contains(&few.len()), "{few:?}");
        let many = writes(1000, 10_000, |_| well());
        assert!((76..=93).contains(&many.len()), "{many:?}");
        let gaps = many.windows(2).skip(1).all(|pair| pair[1] - pair[0] >= 110);
        assert!(gaps, "{many:?}");
    }

    #[test]
    fn a_change_is_told_early_but_not_by_all_at_once() {
        let change = |second: u64| MemberReport { coherent: second < 500, ..MemberReport::default() };
        let told = |members| *writes(members, 2000, change).iter().find(|second| **second >= 500).unwrap();
        assert!((0..20).all(|_| told(3) <= 502));
        let many: Vec<u64> = (0..200).map(|_| told(1000)).collect();
        assert!(many.iter().all(|second| *second <= 611), "{many:?}");
        let first_tenth = many.iter().filter(|second| **second < 510).count();
        assert!(first_tenth < 60, "{first_tenth} of 200 in the first 10 s of 100");
    }

    #[test]
    fn a_server_that_fails_is_not_hurried() {
        let mut schedule = Schedule::default();
        assert!((0..3).any(|second| schedule.is_due(&well(), 1, at(second))));
        schedule.written(None, 1, None, at(3));
        assert!((3..13).all(|second| !schedule.is_due(&well(), 1, at(second))));
        schedule.written(None, 1, Some(Duration::from_mins(1)), at(20));
        assert!((20..80).all(|second| !schedule.is_due(&well(), 1, at(second))));
        assert!(schedule.is_due(&well(), 1, at(80)));
    }

    #[test]
    fn the_lease_goes_with_its_pod_and_outlasts_missed_heartbeats() {
        let pod = Pod { name: "web-1".into(), uid: "uid-1".into() };
        let lease = lease("web", &pod, &well(), 1000, "t");
        assert_eq!(lease["metadata"]["ownerReferences"][0]["uid"], "uid-1");
        assert_eq!(lease["metadata"]["labels"]["cache.caddy.dev/member"], "web");
        assert_eq!(lease["spec"]["leaseDurationSeconds"], 390);
    }
}
