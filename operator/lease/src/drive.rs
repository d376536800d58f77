//! Runs a [`Machine`] over a [`LeaseApi`] until it is told to end, and shows what came of it.
//!
//! Owns the deadlines of requests and the pauses between them. It never fails: what the server says is logged when it
//! changes, and tried again. When the task is late or gone, the [`Tenure`] ends by itself.

use crate::{
    api::{LeaseApi, Reply},
    machine::{Machine, Request, Step},
    moment::Moment,
};
use parking_lot::Mutex;
use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::{sync::watch, time::timeout};

/// Longest sleep between two looks at the clock: timers stop while the machine is suspended, the clock does not.
const LONGEST_SLEEP: Duration = Duration::from_secs(5);

/// What is known of the Lease, for whoever wants to be told of changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Whether this process held it when this was told; [`Tenure::is_held`] knows whether it still does.
    pub held: bool,
    /// Who holds it, as last seen.
    pub holder: Option<String>,
    /// How often this process has begun to hold.
    pub terms: u64,
    /// Why nothing is known, or nothing new.
    pub trouble: Option<String>,
}

/// Whether this process holds the Lease. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Tenure {
    /// Nanoseconds since the clock's origin; 0 while it does not hold.
    valid_until: Arc<AtomicU64>,
    clock: fn() -> Moment,
    standing: watch::Receiver<Standing>,
    /// Cloned for the driver.
    publish: Arc<Mutex<watch::Sender<Standing>>>,
}

impl Tenure {
    /// Not held, until [`drive`] says otherwise.
    pub fn new(clock: fn() -> Moment) -> Self {
        let (publish, standing) = watch::channel(Standing::default());
        Self { valid_until: Arc::default(), clock, standing, publish: Arc::new(Mutex::new(publish)) }
    }

    /// Whether this process holds it at this moment. To be asked before each step that only a holder may take.
    pub fn is_held(&self) -> bool {
        nanos((self.clock)()) < self.valid_until.load(Ordering::Acquire)
    }

    /// What is known, with a way to wait for changes.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    fn show(&self, machine: &Machine, trouble: Option<String>) {
        let now = (self.clock)();
        let held = machine.holds(now);
        let until = machine.valid_until().filter(|_| held).map_or(0, nanos);
        self.valid_until.store(until, Ordering::Release);
        self.publish.lock().send_if_modified(|known| {
            let began = held && !known.held;
            let holder = machine.seen().and_then(|seen| seen.record.holder.clone());
            let next = Standing { held, holder, terms: known.terms + u64::from(began), trouble };
            let changed = *known != next;
            *known = next;
            changed
        });
    }
}

fn nanos(moment: Moment) -> u64 {
    u64::try_from(moment.since_origin().as_nanos()).unwrap_or(u64::MAX)
}

/// Takes part until `shutdown`, then releases what it holds and returns.
pub async fn drive(
    name: &str,
    mut machine: Machine,
    api: impl LeaseApi,
    tenure: Tenure,
    shutdown: impl Future<Output = ()>,
) {
    let clock = tenure.clock;
    let mut shutdown = std::pin::pin!(shutdown);
    let mut ending = false;
    let mut trouble = None;
    loop {
        let request = match machine.poll(clock(), SystemTime::now()) {
            Step::Done => return,
            Step::Send(request) => request,
            Step::Wait(until) => {
                // What ends by time alone must be told too.
                let end = machine.valid_until().filter(|end| *end > clock());
                let until = end.map_or(until, |end| end.min(until));
                let pause = until.since(clock()).min(LONGEST_SLEEP);
                tokio::select! {
                    () = &mut shutdown, if !ending => {
                        ending = true;
                        machine.release(clock());
                    }
                    () = tokio::time::sleep(pause) => {}
                }
                tenure.show(&machine, trouble.clone());
                continue;
            }
        };
        let deadline = machine.terms().deadline();
        let reply = tokio::select! {
            // The request may be stored or not; the release finds out by its version.
            () = &mut shutdown, if !ending => {
                ending = true;
                None
            }
            reply = timeout(deadline, ask(&api, &request)) => {
                Some(reply.unwrap_or_else(|_| Reply::Unknown(format!("no answer within {deadline:?}"))))
            }
        };
        let reply = reply.unwrap_or_else(|| Reply::Unknown("given up for the release".into()));
        if matches!(reply, Reply::Lease(_))
            && let Some(pace) = api.pace()
        {
            machine.set_pace(pace);
        }
        let before = std::mem::replace(&mut trouble, words(&reply));
        if trouble != before
            && let Some(trouble) = &trouble
        {
            tracing::warn!(lease = name, trouble, "the Lease cannot be had or renewed; trying again");
        }
        machine.answer(clock(), reply);
        if ending {
            machine.release(clock());
        }
        tenure.show(&machine, trouble.clone());
    }
}

async fn ask(api: &impl LeaseApi, request: &Request) -> Reply {
    match request {
        Request::Get => api.get().await,
        Request::Swap(version, record) => api.swap(version, record).await,
    }
}

fn words(reply: &Reply) -> Option<String> {
    match reply {
        Reply::Lease(_) | Reply::Conflict => None,
        Reply::Missing => Some("there is no such Lease; it is waited for".to_owned()),
        Reply::Busy(_) => Some("the API server is busy".to_owned()),
        Reply::Denied(reason) | Reply::Unknown(reason) => Some(reason.clone()),
    }
}
