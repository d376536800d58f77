//! The executor against an API server and a cache that are simulated: every round, fault and hand-over.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    time::UNIX_EPOCH,
};

use super::*;

/// An API server with objects in it.
#[derive(Default)]
struct Server {
    objects: RefCell<Vec<Object>>,
    told: RefCell<Vec<String>>,
    reports: Cell<usize>,
    members: u32,
    is_down: Cell<bool>,
}

impl Server {
    /// Where so many sidecars report.
    fn of(members: u32, spec: InvalidationSpec) -> Self {
        let server = Self { members, ..Self::default() };
        let object =
            Object { name: "i".into(), uid: "u".into(), generation: 1, spec, status: InvalidationStatus::default() };
        server.objects.borrow_mut().push(object);
        server
    }

    fn status(&self) -> InvalidationStatus {
        self.objects.borrow()[0].status.clone()
    }

    fn answer(&self) -> Result<(), Refused> {
        if self.is_down.get() { Err(Refused { status: 0, reason: "down".into() }) } else { Ok(()) }
    }
}

impl Objects for Server {
    async fn list(&self) -> Result<Vec<Object>, Refused> {
        self.answer()?;
        Ok(self.objects.borrow().clone())
    }

    async fn members(&self) -> Result<u32, Refused> {
        self.answer().map(|()| self.members)
    }

    async fn report(&self, object: &Object, status: &InvalidationStatus) -> Result<(), Refused> {
        self.answer()?;
        self.reports.set(self.reports.get() + 1);
        for known in self.objects.borrow_mut().iter_mut().filter(|known| known.uid == object.uid) {
            known.status = status.clone();
        }
        Ok(())
    }

    async fn delete(&self, object: &Object) -> Result<(), Refused> {
        self.answer()?;
        self.objects.borrow_mut().retain(|known| known.uid != object.uid);
        Ok(())
    }

    async fn tell(&self, _: &Object, is_warning: bool, reason: &str, note: &str) {
        self.told.borrow_mut().push(format!("{is_warning} {reason}: {note}"));
    }
}

/// A cache that does what it is told, and remembers.
#[derive(Default)]
struct Fake {
    refusal: Option<&'static str>,
    acknowledged: Cell<u32>,
    is_down: Cell<bool>,
    removals: Cell<usize>,
    cleared: RefCell<Vec<String>>,
    entered: RefCell<BTreeMap<String, usize>>,
    swept: RefCell<BTreeMap<String, u64>>,
    markers: RefCell<Vec<String>>,
}

impl Fake {
    fn answer(&self) -> Result<(), String> {
        if self.is_down.get() { Err("NOTREADY".to_owned()) } else { Ok(()) }
    }
}

impl Target for Fake {
    fn refusal(&self) -> Option<&'static str> {
        self.refusal
    }

    async fn remove(&self, keys: &[String], _: &str) -> Result<u64, String> {
        self.answer()?;
        self.removals.set(self.removals.get() + 1);
        Ok(keys.len() as u64)
    }

    async fn untag(&self, _: &[String], _: &str) -> Result<(), String> {
        self.answer()
    }

    async fn clear(&self, keyspaces: &[String], _: &str) -> Result<(), String> {
        self.answer()?;
        self.cleared.borrow_mut().extend_from_slice(keyspaces);
        Ok(())
    }

    fn keyspaces(&self) -> Vec<String> {
        vec!["*".to_owned(), "users".to_owned()]
    }

    async fn enter(&self, id: String, pattern: KeyPattern, _: &str) -> Result<(), EnterError> {
        self.answer().map_err(EnterError::Lost)?;
        if pattern.text() == MARKER {
            self.markers.borrow_mut().push(id);
        } else {
            *self.entered.borrow_mut().entry(id).or_default() += 1;
        }
        Ok(())
    }

    async fn acknowledged(&self, _: &str) -> Result<u32, String> {
        self.answer()?;
        Ok(self.acknowledged.get())
    }

    async fn swept(&self, id: &str) -> Result<(bool, u64), String> {
        self.answer()?;
        let removed = self.swept.borrow().get(id).copied();
        Ok((removed.is_some(), removed.unwrap_or(0)))
    }

    async fn end_marker(&self, marker: &str) -> Result<(), String> {
        self.markers.borrow_mut().retain(|known| known != marker);
        Ok(())
    }

    fn markers(&self) -> Vec<String> {
        self.markers.borrow().clone()
    }
}

fn spec() -> InvalidationSpec {
    InvalidationSpec {
        cluster: "shop".into(),
        keys: vec!["a".into(), "b".into()],
        patterns: vec!["user:*".into()],
        regexes: vec!["^x".into()],
        keyspaces: vec!["users".into()],
        ttl_seconds_after_finished: Some(60),
        ..InvalidationSpec::default()
    }
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
}

#[tokio::test]
async fn an_object_is_executed_once_reported_and_deleted_when_its_time_is_over() {
    let (server, cache) = (Server::of(2, spec()), Fake::default());
    let mut executor = Executor::new("pod".into());
    executor.round(&server, &cache, at(0)).await.unwrap();
    let status = server.status();
    assert_eq!(
        (status.phase, status.acknowledged, status.members),
        (Some(InvalidationPhase::Running), Some(0), Some(2))
    );
    assert_eq!((cache.entered.borrow().len(), cache.removals.get(), cache.markers.borrow().len()), (2, 1, 1));
    assert_eq!(*cache.cleared.borrow(), ["users"]);

    cache.acknowledged.set(2);
    executor.round(&server, &cache, at(3)).await.unwrap();
    assert_eq!(server.status().phase, Some(InvalidationPhase::Running), "Redis is still swept");
    let reports = server.reports.get();
    executor.round(&server, &cache, at(6)).await.unwrap();
    assert_eq!(server.reports.get(), reports, "nothing new is nothing to report");

    cache.swept.borrow_mut().extend([("object-u-0".to_owned(), 5), ("object-u-1".to_owned(), 1)]);
    executor.round(&server, &cache, at(9)).await.unwrap();
    let status = server.status();
    assert_eq!(
        (status.phase, status.acknowledged, status.removed),
        (Some(InvalidationPhase::Succeeded), Some(2), Some(8))
    );
    assert_eq!(*server.told.borrow(), ["false Invalidated: 2 of 2 sidecars acknowledged; 8 entries removed"]);
    assert!(cache.markers.borrow().is_empty(), "the marker is gone");

    executor.round(&server, &cache, at(68)).await.unwrap();
    assert_eq!(server.objects.borrow().len(), 1, "its time is not over");
    executor.round(&server, &cache, at(69)).await.unwrap();
    assert!(server.objects.borrow().is_empty());
    assert!(cache.entered.borrow().values().all(|times| *times == 1) && cache.removals.get() == 1, "once");
}

#[tokio::test]
async fn another_holder_goes_on_and_does_not_sweep_twice() {
    let (server, cache) = (Server::of(1, spec()), Fake::default());
    Executor::new("first".into()).round(&server, &cache, at(0)).await.unwrap();
    cache.swept.borrow_mut().insert("object-u-0".to_owned(), 5);
    let mut second = Executor::new("second".into());
    second.round(&server, &cache, at(60)).await.unwrap();
    assert_eq!(cache.entered.borrow()["object-u-0"], 1, "what is swept is not entered again");
    cache.swept.borrow_mut().insert("object-u-1".to_owned(), 0);
    cache.acknowledged.set(1);
    second.round(&server, &cache, at(63)).await.unwrap();
    let status = server.status();
    assert_eq!((status.phase, status.executor.as_deref()), (Some(InvalidationPhase::Succeeded), Some("second")));
}

#[tokio::test]
async fn who_does_not_acknowledge_is_waited_for_a_while_and_told() {
    let keys = InvalidationSpec { patterns: Vec::new(), regexes: Vec::new(), ..spec() };
    let (server, cache) = (Server::of(3, keys), Fake::default());
    cache.acknowledged.set(2);
    let mut executor = Executor::new("pod".into());
    executor.round(&server, &cache, at(0)).await.unwrap();
    executor.round(&server, &cache, at(29)).await.unwrap();
    assert_eq!(server.status().phase, Some(InvalidationPhase::Running));
    executor.round(&server, &cache, at(30)).await.unwrap();
    let status = server.status();
    assert_eq!((status.phase, status.acknowledged), (Some(InvalidationPhase::Succeeded), Some(2)));
    assert!(status.message.unwrap().starts_with("1 of 3 sidecars have not acknowledged"));
}

#[tokio::test]
async fn what_cannot_succeed_fails_and_says_why() {
    let changed = |server: &Server| server.objects.borrow_mut()[0].generation = 2;
    let bad = InvalidationSpec { regexes: vec!["a(".into()], ..spec() };
    let nothing = InvalidationSpec { cluster: "shop".into(), ..InvalidationSpec::default() };
    let elsewhere = InvalidationSpec { keyspaces: vec!["users".into(), "sessions".into()], ..spec() };
    for (server, said) in [
        (Server::of(1, bad), "unclosed group"),
        (Server::of(1, nothing), "at least one of"),
        (Server::of(1, elsewhere), "no keyspace is named \"sessions\"; there are *, users"),
        (Server::of(1, spec()), "cannot be: create another"),
    ] {
        if said.starts_with("cannot") {
            changed(&server);
        }
        let cache = Fake::default();
        Executor::new("pod".into()).round(&server, &cache, at(0)).await.unwrap();
        let status = server.status();
        assert_eq!(status.phase, Some(InvalidationPhase::Failed));
        assert!(status.message.unwrap().contains(said), "{said}");
        assert!(server.told.borrow()[0].starts_with("true InvalidationFailed"));
        assert!(cache.entered.borrow().is_empty() && cache.removals.get() == 0, "nothing was done");
    }
    let (server, cache) = (Server::of(1, spec()), Fake { refusal: Some("embedded"), ..Fake::default() });
    Executor::new("pod".into()).round(&server, &cache, at(0)).await.unwrap();
    assert_eq!(server.status().phase, Some(InvalidationPhase::Failed));
}

#[tokio::test]
async fn with_redis_or_the_api_server_away_it_is_tried_again() {
    let (server, cache) = (Server::of(1, spec()), Fake::default());
    let mut executor = Executor::new("pod".into());
    cache.is_down.set(true);
    executor.round(&server, &cache, at(0)).await.unwrap();
    let status = server.status();
    assert_eq!((status.phase, status.message.is_some()), (Some(InvalidationPhase::Running), true));
    server.is_down.set(true);
    assert!(executor.round(&server, &cache, at(3)).await.is_err());
    server.is_down.set(false);
    cache.is_down.set(false);
    executor.round(&server, &cache, at(6)).await.unwrap();
    assert_eq!((cache.entered.borrow().len(), server.status().message), (2, None));
}

#[tokio::test]
async fn the_marker_of_a_deleted_object_is_cleared_away() {
    let (server, cache) = (Server::of(1, spec()), Fake::default());
    let mut executor = Executor::new("pod".into());
    executor.round(&server, &cache, at(0)).await.unwrap();
    assert_eq!(cache.markers.borrow().len(), 1);
    server.objects.borrow_mut().clear();
    executor.round(&server, &cache, at(3)).await.unwrap();
    assert!(cache.markers.borrow().is_empty() && executor.begun.is_empty());
}
