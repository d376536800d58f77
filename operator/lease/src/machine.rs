//! The state machine of one candidate: when it asks, what it writes, and until when it holds.
//!
//! Owns no clock, no timer, no connection: [`Machine::poll`] says what to do at a moment, [`Machine::answer`] takes what
//! came of it. At most one request is under way. A reply that never comes is answered for with [`Reply::Unknown`], by
//! whoever set the deadline.

use crate::{
    api::Reply,
    moment::Moment,
    record::{Record, Snapshot, timestamp},
};
use std::time::{Duration, SystemTime};

/// First pause after a failure; it doubles up to the pace of a candidate, or to the renewal of a holder.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Requests that a release is worth.
const RELEASE_ATTEMPTS: u32 = 4;

/// How a candidate takes part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Who it is; no other process may say the same, also not a later one ([`unique`](crate::unique)).
    pub identity: String,
    /// How long others wait after the last change they saw; whole seconds.
    pub duration: Duration,
    /// How much earlier than that the holder stops: for clocks of different rates, and for what it has under way.
    pub margin: Duration,
    /// Pause between two renewals.
    pub renewal: Duration,
    /// Pause between two questions of a candidate.
    pub pace: Duration,
}

impl Terms {
    /// The usual proportions: a margin of a fifth, renewal after a quarter (two retries fit).
    pub fn new(identity: String, duration: Duration, pace: Duration) -> Self {
        Self { identity, duration, margin: duration / 5, renewal: duration / 4, pace }
    }

    /// Deadline of one request: a renewal that gets no answer can be tried twice more.
    pub fn deadline(&self) -> Duration {
        self.duration.saturating_sub(self.margin).saturating_sub(self.renewal) / 3
    }
}

/// What to ask the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read the Lease.
    Get,
    /// Replace its spec if it still has that version.
    Swap(String, Record),
}

/// What to do at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send this, and answer for it.
    Send(Request),
    /// Nothing until then.
    Wait(Moment),
    /// Nothing any more: released.
    Done,
}

/// See the module.
#[derive(Debug)]
pub struct Machine {
    terms: Terms,
    /// The Lease as last seen, unless it must be read again.
    seen: Option<Snapshot>,
    /// The `uid` of the Lease that was last seen, until it is known to be gone.
    known: Option<String>,
    /// It was read just now, and is free.
    free: bool,
    /// Until when its holder may hold.
    occupied_until: Option<Moment>,
    /// Until when the holder of a Lease that is gone may hold.
    haunted_until: Option<Moment>,
    /// Until when this one holds.
    valid_until: Option<Moment>,
    under_way: Option<(Request, Moment)>,
    /// A write got no answer: it may be stored.
    unsure: bool,
    next: Moment,
    failures: u32,
    /// Requests left for the release, once it has begun.
    release: Option<u32>,
    random: u64,
    #[cfg(test)]
    pub(crate) dropped: Option<Guard>,
}

/// The rules that the promise rests on, so that a test can show what each one is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guard {
    /// The holder stops before others may start.
    Margin,
    /// The holder's time counts from the sending of its renewal.
    CountFromSending,
    /// Others wait.
    WaitForExpiry,
    /// Others wait again after each change.
    WaitAgain,
    /// A deletion does not end the wait.
    RememberDeleted,
    /// Who releases stops before it says so.
    StopBeforeRelease,
}

impl Machine {
    /// A candidate that has seen nothing yet. `seed` spreads the questions of many.
    pub fn new(terms: Terms, seed: u64) -> Self {
        Self {
            terms,
            seen: None,
            known: None,
            free: false,
            occupied_until: None,
            haunted_until: None,
            valid_until: None,
            under_way: None,
            unsure: false,
            next: Moment::default(),
            failures: 0,
            release: None,
            random: seed | 1,
            #[cfg(test)]
            dropped: None,
        }
    }

    /// How it takes part.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Another pause between two questions, from the next one on.
    pub fn set_pace(&mut self, pace: Duration) {
        self.terms.pace = pace;
    }

    /// Another duration, with a margin in the same proportion, from the next write on. Not while a request is under way.
    pub fn set_duration(&mut self, duration: Duration) {
        self.terms.margin = self.terms.margin.mul_f64(duration.div_duration_f64(self.terms.duration));
        self.terms.duration = duration;
    }

    /// Whether it holds at that moment. Time alone ends this: no call and no reply is needed.
    pub fn holds(&self, now: Moment) -> bool {
        self.valid_until.is_some_and(|until| now < until)
    }

    /// Until when it holds, renewals apart.
    pub fn valid_until(&self) -> Option<Moment> {
        self.valid_until
    }

    /// The Lease as last seen.
    pub fn seen(&self) -> Option<&Snapshot> {
        self.seen.as_ref()
    }

    /// What to do now; `wall` goes into the Lease, for people.
    pub fn poll(&mut self, now: Moment, wall: SystemTime) -> Step {
        if self.under_way.is_some() {
            return Step::Wait(now + self.terms.deadline());
        }
        if let Some(left) = self.release
            && (left == 0 || !self.may_be_mine())
        {
            return Step::Done;
        }
        if now < self.next {
            return Step::Wait(self.next);
        }
        let request = match &self.seen {
            Some(seen) if self.release.is_some() => Request::Swap(seen.version.clone(), released(&seen.record)),
            Some(seen) if self.may_take(seen) => Request::Swap(seen.version.clone(), self.record(seen, now, wall)),
            _ => Request::Get,
        };
        self.free = false;
        if let Some(left) = &mut self.release {
            *left -= 1;
        }
        self.under_way = Some((request.clone(), now));
        Step::Send(request)
    }

    /// What came of the request under way.
    pub fn answer(&mut self, now: Moment, reply: Reply) {
        let Some((request, sent)) = self.under_way.take() else { return };
        match reply {
            Reply::Lease(snapshot) => {
                self.failures = 0;
                self.unsure = false;
                match request {
                    Request::Get => self.observed(snapshot, now),
                    Request::Swap(..) => self.stored(snapshot, sent, now),
                }
            }
            Reply::Missing => {
                self.seen = None;
                self.valid_until = None;
                self.gone(now);
                self.next = now + self.spread(self.terms.pace);
            }
            // Read first; somebody else may hold it.
            Reply::Conflict => {
                self.seen = None;
                self.next = if self.holds(now) || self.release.is_some() { now } else { now + self.pause() };
            }
            Reply::Busy(after) => self.next = now + after.unwrap_or_default().max(self.pause()),
            Reply::Denied(_) => self.next = now + self.pause(),
            Reply::Unknown(_) => {
                self.unsure |= matches!(request, Request::Swap(..));
                self.next = now + self.pause();
            }
        }
    }

    /// Holds no longer, from now on, and tells the others; [`poll`](Self::poll) ends with [`Step::Done`]. A request that is
    /// under way must be answered for first.
    pub fn release(&mut self, now: Moment) {
        if self.release.is_some() {
            return;
        }
        if self.unsure {
            self.seen = None;
        }
        self.release = Some(if self.valid_until.is_some() || self.unsure { RELEASE_ATTEMPTS } else { 0 });
        self.next = now;
        if self.keeps(Guard::StopBeforeRelease) {
            self.valid_until = None;
        }
    }

    // === decisions ===

    /// What is another's is written only after it was read just now: a candidate that asks rarely has an old version, and
    /// would write in vain.
    fn may_take(&self, seen: &Snapshot) -> bool {
        self.free || seen.record.holder.as_ref() == Some(&self.terms.identity)
    }

    fn is_free(&self, now: Moment) -> bool {
        let waits = [self.occupied_until, self.haunted_until].into_iter().flatten().any(|until| now < until);
        !(waits && self.keeps(Guard::WaitForExpiry))
    }

    /// Whether there is something to release; what is not known may be.
    fn may_be_mine(&self) -> bool {
        self.seen.as_ref().is_none_or(|seen| seen.record.holder.as_ref() == Some(&self.terms.identity))
    }

    fn observed(&mut self, snapshot: Snapshot, now: Moment) {
        let before = self.seen.take();
        let changed = before.as_ref().is_none_or(|before| before.version != snapshot.version);
        if self.known.as_ref() != Some(&snapshot.uid) {
            self.gone(now);
        }
        self.known = Some(snapshot.uid.clone());
        let holder = snapshot.record.holder.as_ref();
        if holder == Some(&self.terms.identity) {
            self.next = now;
            self.seen = Some(snapshot);
            return;
        }
        // Whatever happened to it: it is not ours.
        self.valid_until = None;
        if holder.is_none() {
            self.occupied_until = None;
        } else if changed && (self.occupied_until.is_none() || self.keeps(Guard::WaitAgain)) {
            let said = snapshot.record.duration;
            self.occupied_until = Some(now + if said.is_zero() { self.terms.duration } else { said });
        }
        self.free = self.is_free(now);
        self.next = if self.free { now } else { now + self.spread(self.terms.pace) };
        self.seen = Some(snapshot);
    }

    /// The Lease that was known is gone. Its holder may not have noticed.
    fn gone(&mut self, now: Moment) {
        if self.known.take().is_some() && self.keeps(Guard::RememberDeleted) {
            self.haunted_until = Some(now + self.terms.duration);
        }
    }

    fn stored(&mut self, snapshot: Snapshot, sent: Moment, now: Moment) {
        self.known = Some(snapshot.uid.clone());
        self.seen = Some(snapshot);
        if self.release.is_some() {
            self.release = Some(0);
            self.valid_until = None;
            return;
        }
        (self.occupied_until, self.haunted_until) = (None, None);
        let from = if self.keeps(Guard::CountFromSending) { sent } else { now };
        let margin = if self.keeps(Guard::Margin) { self.terms.margin } else { Duration::ZERO };
        self.valid_until = Some(from + self.terms.duration.saturating_sub(margin));
        self.next = sent + self.terms.renewal;
    }

    fn record(&self, seen: &Snapshot, now: Moment, wall: SystemTime) -> Record {
        let time = timestamp(wall);
        let goes_on = self.holds(now);
        Record {
            holder: Some(self.terms.identity.clone()),
            duration: self.terms.duration,
            acquired: seen.record.acquired.clone().filter(|_| goes_on).or_else(|| Some(time.clone())),
            renewed: Some(time),
            transitions: seen.record.transitions.saturating_add(u32::from(!goes_on)),
        }
    }

    // === pauses ===

    /// After a failure: growing, and for a holder short enough that its time is used.
    fn pause(&mut self) -> Duration {
        let grown = FIRST_PAUSE.saturating_mul(1 << self.failures.min(10));
        self.failures = self.failures.saturating_add(1);
        let longest = if self.valid_until.is_some() { self.terms.renewal / 2 } else { self.terms.pace };
        self.spread(grown.min(longest))
    }

    /// The pause, or up to a fifth longer: never shorter, so that many candidates together stay within their rate.
    fn spread(&mut self, pause: Duration) -> Duration {
        // Marsaglia, "Xorshift RNGs".
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        pause + pause.mul_f64((self.random % 1000) as f64 / 5000.0)
    }

    /// The Lease that it has seen and not found gone.
    #[cfg(test)]
    pub(crate) fn known(&self) -> Option<&str> {
        self.known.as_deref()
    }

    #[cfg(test)]
    fn keeps(&self, guard: Guard) -> bool {
        self.dropped != Some(guard)
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "tests drop guards")]
    const fn keeps(&self, _: Guard) -> bool {
        true
    }
}

fn released(record: &Record) -> Record {
    Record { holder: None, ..record.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DURATION: Duration = Duration::from_secs(15);

    fn at(millis: u64) -> Moment {
        Moment::after_origin(Duration::from_millis(millis))
    }

    fn machine() -> Machine {
        Machine::new(Terms::new("me".into(), DURATION, Duration::from_secs(2)), 7)
    }

    fn lease(version: &str, holder: Option<&str>) -> Reply {
        let record = Record { holder: holder.map(Into::into), duration: DURATION, ..Record::default() };
        Reply::Lease(Snapshot { uid: "u".into(), version: version.into(), record, ..Snapshot::default() })
    }

    fn send(machine: &mut Machine, millis: u64) -> Request {
        match machine.poll(at(millis), SystemTime::UNIX_EPOCH) {
            Step::Send(request) => request,
            other => panic!("{other:?} at {millis}"),
        }
    }

    /// A machine that holds since 1,000.
    fn holder() -> Machine {
        let mut machine = machine();
        assert_eq!(send(&mut machine, 0), Request::Get);
        machine.answer(at(500), lease("1", None));
        assert!(matches!(send(&mut machine, 1000), Request::Swap(version, _) if version == "1"));
        machine.answer(at(1500), lease("2", Some("me")));
        machine
    }

    #[test]
    fn a_free_lease_is_taken_and_held_from_the_sending() {
        let machine = holder();
        assert!(machine.holds(at(12_999)) && !machine.holds(at(13_000)), "15 s less a fifth after 1,000");
    }

    #[test]
    fn a_renewal_extends_and_keeps_the_time_of_acquisition() {
        let mut machine = holder();
        assert_eq!(machine.poll(at(1600), SystemTime::UNIX_EPOCH), Step::Wait(at(4750)));
        let Request::Swap(version, record) = send(&mut machine, 4750) else { panic!() };
        assert_eq!((version.as_str(), record.transitions), ("2", 0));
        machine.answer(at(4800), lease("3", Some("me")));
        assert!(machine.holds(at(16_749)));
    }

    #[test]
    fn another_holders_lease_is_taken_only_when_it_did_not_change_for_its_duration() {
        let mut machine = machine();
        send(&mut machine, 0);
        machine.answer(at(0), lease("1", Some("other")));
        assert_eq!(send(&mut machine, 10_000), Request::Get);
        machine.answer(at(10_000), lease("2", Some("other")));
        assert_eq!(send(&mut machine, 16_000), Request::Get, "it changed at 10,000");
        machine.answer(at(16_000), lease("2", Some("other")));
        assert_eq!(send(&mut machine, 40_000), Request::Get, "what was read long ago is read again first");
        machine.answer(at(40_000), lease("2", Some("other")));
        let Request::Swap(version, record) = send(&mut machine, 40_000) else { panic!("free since 25,000") };
        assert_eq!((version.as_str(), record.transitions), ("2", 1));
    }

    #[test]
    fn a_lost_reply_is_asked_for_and_no_time_is_gained_by_it() {
        let mut machine = holder();
        send(&mut machine, 4750);
        machine.answer(at(8000), Reply::Unknown("no answer".into()));
        let retried = send(&mut machine, 8400);
        assert!(matches!(retried, Request::Swap(version, _) if version == "2"));
        machine.answer(at(8500), Reply::Conflict);
        assert!(machine.holds(at(12_999)) && !machine.holds(at(13_000)), "still the first one's time");
        assert_eq!(send(&mut machine, 8500), Request::Get);
        machine.answer(at(8600), lease("3", Some("me")));
        assert!(matches!(send(&mut machine, 8600), Request::Swap(version, _) if version == "3"));
    }

    #[test]
    fn a_busy_server_is_left_alone_for_as_long_as_it_says() {
        let mut machine = holder();
        send(&mut machine, 4750);
        machine.answer(at(4800), Reply::Busy(Some(Duration::from_secs(7))));
        assert_eq!(machine.poll(at(5000), SystemTime::UNIX_EPOCH), Step::Wait(at(11_800)));
    }

    #[test]
    fn a_release_ends_the_holding_at_once_and_leaves_the_lease_free() {
        let mut machine = holder();
        machine.release(at(2000));
        assert!(!machine.holds(at(2000)));
        let Request::Swap(version, record) = send(&mut machine, 2000) else { panic!() };
        assert_eq!((version.as_str(), record.holder), ("2", None));
        machine.answer(at(2100), lease("3", None));
        assert_eq!(machine.poll(at(2100), SystemTime::UNIX_EPOCH), Step::Done);
    }

    #[test]
    fn a_candidate_that_ends_writes_nothing() {
        let mut machine = machine();
        send(&mut machine, 0);
        machine.answer(at(0), lease("1", Some("other")));
        machine.release(at(1));
        assert_eq!(machine.poll(at(1), SystemTime::UNIX_EPOCH), Step::Done);
    }

    #[test]
    fn a_write_without_an_answer_is_released_too() {
        let mut machine = machine();
        send(&mut machine, 0);
        machine.answer(at(0), lease("1", None));
        assert!(matches!(send(&mut machine, 0), Request::Swap(..)));
        machine.answer(at(100), Reply::Unknown("given up".into()));
        machine.release(at(100));
        assert_eq!(send(&mut machine, 100), Request::Get);
        machine.answer(at(200), lease("2", Some("me")));
        assert!(matches!(send(&mut machine, 200), Request::Swap(_, record) if record.holder.is_none()));
    }

    #[test]
    fn a_release_is_tried_a_few_times_and_never_takes_what_is_anothers() {
        let mut machine = holder();
        machine.release(at(2000));
        send(&mut machine, 2000);
        machine.answer(at(2000), Reply::Conflict);
        assert_eq!(send(&mut machine, 2000), Request::Get);
        machine.answer(at(2000), lease("9", Some("other")));
        assert_eq!(machine.poll(at(9000), SystemTime::UNIX_EPOCH), Step::Done);
        let mut machine = holder();
        machine.release(at(2000));
        let mut sent = 0;
        for second in 2..40 {
            if let Step::Send(_) = machine.poll(at(second * 1000), SystemTime::UNIX_EPOCH) {
                sent += 1;
                machine.answer(at(second * 1000), Reply::Unknown(String::new()));
            }
        }
        assert_eq!(sent, RELEASE_ATTEMPTS);
    }

    #[test]
    fn a_deleted_lease_ends_the_holding_but_not_the_waiting() {
        let mut machine = holder();
        send(&mut machine, 4750);
        machine.answer(at(4800), Reply::Missing);
        assert!(!machine.holds(at(4800)));
        let mut machine = self::machine();
        send(&mut machine, 0);
        machine.answer(at(0), lease("1", Some("other")));
        send(&mut machine, 3000);
        machine.answer(at(3000), Reply::Missing);
        send(&mut machine, 6000);
        let mut fresh = lease("5", None);
        if let Reply::Lease(snapshot) = &mut fresh {
            snapshot.uid = "another".into();
        }
        machine.answer(at(6000), fresh.clone());
        assert_eq!(send(&mut machine, 17_999), Request::Get, "until 15 s after it was found gone, its holder may hold");
        machine.answer(at(18_000), fresh);
        assert!(matches!(send(&mut machine, 18_000), Request::Swap(..)));
    }

    #[test]
    fn a_wall_clock_that_jumps_ends_no_lease_and_makes_none_longer() {
        let foreseen = "2299-01-01T00:00:00.000000Z";
        for renewed in ["1970-01-01T00:00:00.000000Z", foreseen, "yesterday", ""] {
            let mut machine = machine();
            send(&mut machine, 0);
            let mut theirs = lease("1", Some("other"));
            if let Reply::Lease(snapshot) = &mut theirs {
                snapshot.record.renewed = Some(renewed.into());
            }
            machine.answer(at(0), theirs.clone());
            // Its own jumps to and fro, too.
            for (second, year) in [(3, 30), (6, 0), (9, 300), (12, 1)] {
                let wall = SystemTime::UNIX_EPOCH + Duration::from_hours(24 * 365 * year);
                assert_eq!(machine.poll(at(second * 1000), wall), Step::Send(Request::Get), "{renewed}");
                machine.answer(at(second * 1000), theirs.clone());
            }
            assert_eq!(send(&mut machine, 15_000), Request::Get);
            machine.answer(at(15_000), theirs);
            assert!(matches!(send(&mut machine, 15_000), Request::Swap(..)), "unchanged for 15 s: {renewed}");
        }
    }

    #[test]
    fn questions_are_spread_and_never_come_early() {
        let mut pauses = Vec::new();
        for seed in 0..50 {
            let mut machine =
                Machine::new(Terms::new("me".into(), DURATION, Duration::from_secs(100)), seed * 7919 + 3);
            send(&mut machine, 0);
            machine.answer(at(0), lease("1", Some("other")));
            pauses.push(machine.next.since(at(0)).as_millis());
        }
        pauses.sort_unstable();
        assert!(pauses[0] >= 100_000 && pauses[49] <= 120_000, "{pauses:?}");
        assert!(pauses[49] - pauses[0] > 10_000, "{pauses:?}");
    }
}
