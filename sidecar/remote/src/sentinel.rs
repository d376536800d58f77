//! Who the primary is, by the opinion of Redis Sentinels.
//!
//! One connection is kept to every Sentinel that is named. On it they are asked before each connect and with each
//! currency proof, and they tell by themselves when they have switched to another primary. An answer carries its
//! configuration epoch: of answers that differ the highest counts, so that a Sentinel which slept through a failover
//! does not lead back, neither within one question nor from one to the next ([`Settled`]). A *majority* must have answered for a proof; a connection is made on the best answer there is, and
//! whoever is connected to must say itself that it is a primary.
//!
//! A failover is known at the latest when the Sentinel that leads it answers: it names the new primary before anybody
//! who asks a Sentinel can write to it. Between the promotion and that answer Redis itself is split. Connections that
//! were made under an earlier opinion end before anything more is sent on them ([`Sentinels::version`]).

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use caddy_engine::{BootClock, Clock as _, Moment};
use caddy_resp::{Protocol, Value, encode};
use parking_lot::Mutex;
use tokio::{sync::oneshot, time::timeout};

use crate::{ConnectError, Endpoint, Handler, Lane, LaneHandle, Loss, Request, ServerInfo, Setup, Target, lane};

/// For how long an opinion outweighs one of a lower epoch when no Sentinel repeats it. They tell one another each two
/// seconds: whoever still says less then is not late, but all of them were set up anew and count epochs from zero.
const REMEMBERED: Duration = Duration::from_secs(10);

/// What Sentinels are asked about one primary.
pub struct Sentinels {
    name: String,
    request: Bytes,
    seats: Vec<LaneHandle<Tag>>,
    settled: Mutex<Option<Settled>>,
    version: AtomicU64,
}

/// The connections to the Sentinels; polled by whoever polls the connections to Redis, before them.
pub struct SentinelWatch {
    sentinels: Arc<Sentinels>,
    lanes: Vec<Lane<Reporter>>,
    /// Set by a lane that has connected or was told of a switch.
    news: Arc<News>,
}

/// What the Sentinels have come to.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// The primary.
    pub primary: Endpoint,
    /// How often another one was named before.
    pub version: u64,
    /// Whether a majority of all named Sentinels has answered.
    pub is_of_majority: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Opinion {
    epoch: u64,
    primary: Endpoint,
}

/// The opinion that counts, and when a Sentinel has last had it.
#[derive(Debug)]
struct Settled {
    opinion: Opinion,
    heard: Moment,
}

type Answer = Box<dyn FnOnce(Result<Verdict, ConnectError>) + Send>;

/// One question to all of them.
struct Ask {
    sentinels: Arc<Sentinels>,
    state: Mutex<AskState>,
}

struct AskState {
    heard: usize,
    failed: usize,
    best: Option<Opinion>,
    /// Two of the same epoch name different primaries.
    torn: bool,
    last_error: Option<ConnectError>,
    answer: Option<Answer>,
}

/// A request to one Sentinel.
enum Tag {
    Ask { ask: Arc<Ask>, opinion: Option<Result<Opinion, String>>, primary: Option<Endpoint> },
    Subscribe,
}

#[derive(Default)]
struct News {
    connected: Mutex<Vec<usize>>,
    switched: AtomicBool,
}

/// The [`Handler`] of a connection to a Sentinel.
struct Reporter {
    seat: usize,
    endpoint: Endpoint,
    news: Arc<News>,
}

impl fmt::Debug for Sentinels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sentinels")
            .field("name", &self.name)
            .field("settled", &self.settled.lock())
            .finish_non_exhaustive()
    }
}

// === impl Sentinels ===

impl Sentinels {
    /// `seats`: every Sentinel, as a target of its own; `name`: what they call the primary.
    pub fn new(seats: Vec<Target>, name: String) -> (Arc<Self>, SentinelWatch) {
        let mut request = Vec::new();
        encode::command(&mut request, ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", &name]);
        encode::command(&mut request, ["SENTINEL", "MASTER", &name]);
        let news = Arc::<News>::default();
        let setup = Setup { protocol: Protocol::Resp3, database: 0, tracked: true, timed: true };
        let (handles, lanes) = seats
            .into_iter()
            .enumerate()
            .map(|(seat, target)| {
                let reporter = Reporter { seat, endpoint: target.endpoint.clone(), news: news.clone() };
                lane(Arc::new(target), setup, reporter)
            })
            .unzip();
        let sentinels = Arc::new(Self {
            name,
            request: request.into(),
            seats: handles,
            settled: Mutex::new(None),
            version: AtomicU64::new(0),
        });
        (sentinels.clone(), SentinelWatch { sentinels, lanes, news })
    }

    /// What they call the primary.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How often another primary was named than before. A connection that was made under another version is to a
    /// server that has been replaced.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Asks all of them; `answer` is called once, when a majority has answered or none is possible any more.
    pub fn ask(self: &Arc<Self>, answer: impl FnOnce(Result<Verdict, ConnectError>) + Send + 'static) {
        self.put(Box::new(answer));
    }

    fn put(self: &Arc<Self>, answer: Answer) -> Arc<Ask> {
        let state = AskState { heard: 0, failed: 0, best: None, torn: false, last_error: None, answer: Some(answer) };
        let ask = Arc::new(Ask { sentinels: self.clone(), state: Mutex::new(state) });
        for seat in &self.seats {
            let tag = Tag::Ask { ask: ask.clone(), opinion: None, primary: None };
            // A watch that has ended asks nobody; the question then stays open until whoever waits gives up.
            let _ = seat.submit(Request { bytes: self.request.clone(), replies: 2, tag });
        }
        ask
    }

    /// The primary to connect to, by what is answered within half of the time that a connect may take.
    pub(crate) async fn discover(self: &Arc<Self>, target: &Target) -> Result<Verdict, ConnectError> {
        let (answer, answered) = oneshot::channel();
        let ask = self.put(Box::new(move |verdict| drop(answer.send(verdict))));
        let wait = target.connect_timeout / 2;
        match timeout(wait, answered).await {
            Ok(Ok(verdict)) => verdict,
            _ => ask.so_far().unwrap_or_else(|| {
                Err(ConnectError::NoSentinel { name: self.name.clone(), reason: "none answered in time".to_owned() })
            }),
        }
    }

    /// Takes what was found at `now` as the truth, unless a higher epoch is remembered; what is true then.
    fn settle(&self, opinion: &Opinion, now: Moment) -> (Endpoint, u64) {
        let mut settled = self.settled.lock();
        if let Some(Settled { opinion: known, heard }) = &*settled {
            if known.epoch > opinion.epoch && now.since(*heard) < REMEMBERED {
                return (known.primary.clone(), self.version());
            }
            if known.primary != opinion.primary {
                self.version.fetch_add(1, Ordering::AcqRel);
            }
        }
        *settled = Some(Settled { opinion: opinion.clone(), heard: now });
        (opinion.primary.clone(), self.version())
    }

    fn majority(&self) -> usize {
        self.seats.len() / 2 + 1
    }
}

// === impl Ask ===

impl Ask {
    fn heard(&self, opinion: Result<Opinion, ConnectError>) {
        let mut state = self.state.lock();
        match opinion {
            Ok(opinion) => {
                state.heard += 1;
                match &state.best {
                    Some(best) if best.epoch > opinion.epoch => {}
                    Some(best) if best.epoch == opinion.epoch => state.torn |= best.primary != opinion.primary,
                    _ => {
                        state.torn = false;
                        // Who comes late and knows better is believed too.
                        if state.answer.is_none() {
                            self.sentinels.settle(&opinion, BootClock.now());
                        }
                        state.best = Some(opinion);
                    }
                }
            }
            Err(error) => {
                state.failed += 1;
                state.last_error = Some(error);
            }
        }
        let decided = state.heard >= self.sentinels.majority();
        let over = state.heard + state.failed == self.sentinels.seats.len();
        if (decided || over)
            && let Some(answer) = state.answer.take()
        {
            let verdict = self.conclude(&state);
            drop(state);
            answer(verdict);
        }
    }

    /// The best answer until now, for whoever cannot wait.
    fn so_far(&self) -> Option<Result<Verdict, ConnectError>> {
        let state = self.state.lock();
        (state.heard > 0).then(|| self.conclude(&state))
    }

    fn conclude(&self, state: &AskState) -> Result<Verdict, ConnectError> {
        let sentinels = &self.sentinels;
        match (&state.best, state.torn) {
            (Some(best), false) => {
                let (primary, version) = sentinels.settle(best, BootClock.now());
                Ok(Verdict { primary, version, is_of_majority: state.heard >= sentinels.majority() })
            }
            (Some(_), true) => Err(ConnectError::NoSentinel {
                name: sentinels.name.clone(),
                reason: "they name different primaries in one configuration epoch".to_owned(),
            }),
            (None, _) => Err(state.last_error.clone().unwrap_or_else(|| ConnectError::NoSentinel {
                name: sentinels.name.clone(),
                reason: "none answered".to_owned(),
            })),
        }
    }
}

// === impl SentinelWatch ===

impl SentinelWatch {
    /// Makes what progress can be made; never ready.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            for lane in &mut self.lanes {
                let _ = lane.poll(cx);
            }
            let connected = std::mem::take(&mut *self.news.connected.lock());
            let switched = self.news.switched.swap(false, Ordering::AcqRel);
            if connected.is_empty() && !switched {
                return Poll::Pending;
            }
            for seat in connected {
                let mut bytes = Vec::new();
                encode::command(&mut bytes, ["SUBSCRIBE", "+switch-master"]);
                let _ =
                    self.sentinels.seats[seat].submit(Request { bytes: bytes.into(), replies: 0, tag: Tag::Subscribe });
            }
            // What was announced while nobody listened is learned by asking; the verdict itself ends old connections.
            self.sentinels.ask(drop);
        }
    }
}

// === impl Reporter ===

impl Handler for Reporter {
    type Tag = Tag;

    fn reply(&mut self, tag: &mut Tag, index: u16, frame: Bytes) {
        let Tag::Ask { opinion, primary, .. } = tag else { return };
        let Ok((value, _)) = Value::decode(&frame) else { return };
        if index == 0 {
            *primary = address(&value);
        } else {
            *opinion = Some(match (value.as_error(), epoch(&value), primary.take()) {
                (Some(error), ..) => Err(String::from_utf8_lossy(error).into_owned()),
                (None, Some(epoch), Some(primary)) => Ok(Opinion { epoch, primary }),
                _ => Err("it names no address".to_owned()),
            });
        }
    }

    fn finish(&mut self, tag: Tag, outcome: Result<(), Loss>) {
        let Tag::Ask { ask, opinion, .. } = tag else { return };
        let name = || ask.sentinels.name.clone();
        let endpoint = self.endpoint.to_string();
        ask.heard(match (outcome, opinion) {
            (Ok(()), Some(Ok(opinion))) => Ok(opinion),
            (Ok(()), Some(Err(reason))) => Err(ConnectError::NoSuchPrimary { endpoint, name: name(), reason }),
            (Ok(()), None) => Err(ConnectError::Broken { endpoint, reason: "its answer is not RESP".to_owned() }),
            (Err(Loss::NotSent(error)), _) => Err(ConnectError::clone(&error)),
            (Err(Loss::Lost(reason)), _) => Err(ConnectError::Broken { endpoint, reason: reason.to_string() }),
        });
    }

    fn push(&mut self, frame: Bytes) {
        let Ok((value, _)) = Value::decode(&frame) else { return };
        let is_message =
            value.as_elements().and_then(|parts| parts.first()).and_then(Value::as_bytes) == Some(b"message");
        if is_message {
            self.news.switched.store(true, Ordering::Release);
        }
    }

    fn connected(&mut self, _: Option<&ServerInfo>) {
        self.news.connected.lock().push(self.seat);
    }

    fn lost(&mut self, _: &str) {}

    fn refused(&mut self, _: &Arc<ConnectError>) {}
}

/// `[host, port]`.
fn address(value: &Value<'_>) -> Option<Endpoint> {
    let [host, port] = value.as_elements()? else { return None };
    let text = |value: &Value<'_>| Some(std::str::from_utf8(value.as_bytes()?).ok()?.to_owned());
    Some(Endpoint::Tcp { host: text(host)?, port: text(port)?.parse().ok()? })
}

/// The configuration epoch in a reply to SENTINEL MASTER.
fn epoch(value: &Value<'_>) -> Option<u64> {
    std::str::from_utf8(value.field(b"config-epoch")?.as_bytes()?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentinels(seats: usize) -> (Arc<Sentinels>, SentinelWatch) {
        let seat = |n: usize| Target::new(Endpoint::Tcp { host: format!("s{n}"), port: 26379 });
        Sentinels::new((0..seats).map(seat).collect(), "shop".into())
    }

    #[expect(clippy::unnecessary_wraps, reason = "an answer, as it is taken")]
    fn opinion(epoch: u64, host: &str) -> Result<Opinion, ConnectError> {
        Ok(Opinion { epoch, primary: Endpoint::Tcp { host: host.into(), port: 6379 } })
    }

    fn away() -> Result<Opinion, ConnectError> {
        Err(ConnectError::Broken { endpoint: "s".into(), reason: "away".into() })
    }

    /// What is answered to these answers of Sentinels, in their order.
    fn verdict(
        sentinels: &Arc<Sentinels>,
        answers: Vec<Result<Opinion, ConnectError>>,
    ) -> Option<Result<Verdict, ConnectError>> {
        let found = Arc::new(Mutex::new(None));
        let told = found.clone();
        let ask = sentinels.put(Box::new(move |verdict| *told.lock() = Some(verdict)));
        for answer in answers {
            ask.heard(answer);
        }
        found.lock().take()
    }

    #[test]
    fn the_highest_epoch_of_a_majority_decides() {
        let (sentinels, _watch) = sentinels(3);
        let decided = verdict(&sentinels, vec![opinion(1, "old"), opinion(2, "new")]).unwrap().unwrap();
        assert!(decided.is_of_majority && decided.primary.to_string() == "new:6379", "{decided:?}");
        assert!(verdict(&sentinels, vec![opinion(2, "new")]).is_none(), "one of three is no majority");
    }

    #[test]
    fn a_minority_names_a_primary_and_proves_nothing() {
        let (sentinels, _watch) = sentinels(3);
        let decided = verdict(&sentinels, vec![away(), opinion(1, "old"), away()]).unwrap().unwrap();
        assert!(!decided.is_of_majority, "{decided:?}");
        assert!(verdict(&sentinels, vec![away(), away(), away()]).unwrap().is_err());
    }

    #[test]
    fn a_switch_raises_the_version_also_when_it_is_told_late() {
        let (sentinels, _watch) = sentinels(3);
        let first = verdict(&sentinels, vec![opinion(1, "a"), opinion(1, "a")]).unwrap().unwrap().version;
        assert_eq!(sentinels.version(), first);
        verdict(&sentinels, vec![opinion(1, "a"), opinion(1, "a"), opinion(2, "b")]);
        assert_eq!(sentinels.version(), first + 1, "the leader of a failover answered last");
        // A Sentinel that slept through it changes nothing.
        verdict(&sentinels, vec![opinion(2, "b"), opinion(1, "a")]);
        assert_eq!(sentinels.version(), first + 1);
    }

    #[test]
    fn those_who_have_not_heard_of_a_switch_do_not_lead_back() {
        let (sentinels, _watch) = sentinels(3);
        verdict(&sentinels, vec![opinion(1, "a"), opinion(1, "a")]);
        let switched = verdict(&sentinels, vec![opinion(2, "b"), opinion(1, "a")]).unwrap().unwrap();
        // The next question is answered by the two that were not told yet.
        let late = verdict(&sentinels, vec![opinion(1, "a"), opinion(1, "a")]).unwrap().unwrap();
        assert_eq!((late.primary, late.version), (switched.primary, switched.version));
    }

    #[test]
    fn sentinels_that_were_set_up_anew_are_followed_once_the_old_opinion_is_forgotten() {
        let (sentinels, _watch) = sentinels(3);
        let begin = BootClock.now();
        sentinels.settle(&opinion(7, "a").unwrap(), begin);
        let anew = opinion(0, "b").unwrap();
        assert_eq!(sentinels.settle(&anew, begin + REMEMBERED / 2).0.to_string(), "a:6379");
        assert_eq!(sentinels.settle(&anew, begin + REMEMBERED).0.to_string(), "b:6379");
        assert_eq!(sentinels.version(), 1);
    }

    #[test]
    fn a_tie_of_different_primaries_decides_nothing() {
        let (sentinels, _watch) = sentinels(3);
        assert!(verdict(&sentinels, vec![opinion(1, "a"), opinion(1, "b")]).unwrap().is_err());
    }
}
