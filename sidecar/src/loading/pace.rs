//! How a store that was down gets its load back: no quicker than it had it before.
//!
//! After an outage everything that is read is old at once, and each key's next read would load it. Where an old value can be
//! answered a while longer, those loads come at 1.2 times the rate at which they came while all was well, until nothing is
//! held back any more, or for five minutes: the load may have grown meanwhile. Loads that somebody has to have are not held
//! back, and a store that never answered before has no rate. A state machine without a clock; never asks the store.

use std::time::Duration;

use caddy_engine::Moment;

/// Over which the rate is an average.
const MEMORY: f64 = 30.0;
/// The pace, of the rate that there was.
const FACTOR: f64 = 1.2;
/// What may come at once, in seconds of that rate: with [`FACTOR`] no second sees more than 1.5 times as much.
const BURST: f64 = 0.25;
/// Loads per second that are no stampede, however few there were.
const LEAST: f64 = 1.0;
/// It is over when nothing was held back for so long.
const QUIET: Duration = Duration::from_secs(1);
/// And in any case.
const LONGEST: Duration = Duration::from_mins(5);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Loads per second while all is well, of an average that began with nothing.
    rate: f64,
    /// How much of the average there is.
    share: f64,
    last: Option<Moment>,
    recovery: Option<Recovery>,
}

#[derive(Debug)]
struct Recovery {
    since: Moment,
    /// Loads per second.
    rate: f64,
    room: f64,
    filled: Moment,
    /// When a load was last held back.
    held: Moment,
}

impl Pace {
    /// A call for so many keys succeeded.
    pub(crate) fn loaded(&mut self, keys: usize, now: Moment) {
        // What comes in a recovery is not what comes when all is well.
        if self.recovery.is_some() {
            return;
        }
        let passed = self.last.replace(now).map_or(0.0, |last| now.since(last).as_secs_f64());
        let kept = (-passed / MEMORY).exp();
        self.share = 1.0 - (1.0 - self.share) * kept;
        #[expect(clippy::cast_precision_loss, reason = "at most some thousand keys")]
        let loaded = keys as f64;
        self.rate = self.rate.mul_add(kept, loaded / MEMORY);
    }

    /// The store answers again, behind an outage.
    pub(crate) fn recovered(&mut self, now: Moment) {
        // An outage is no time in which nothing was loaded.
        self.last = self.last.map(|_| now);
        if self.share > 0.0 {
            let rate = (self.rate / self.share).max(LEAST);
            self.recovery = Some(Recovery { since: now, rate, room: 0.0, filled: now, held: now });
        }
    }

    /// Whether a load may be made now for which an old value can be answered.
    pub(crate) fn admits(&mut self, now: Moment) -> bool {
        let Some(recovery) = &mut self.recovery else { return true };
        if now.since(recovery.held) > QUIET || now.since(recovery.since) > LONGEST {
            self.recovery = None;
            self.last = self.last.map(|_| now);
            return true;
        }
        recovery.fill(now);
        let admitted = recovery.room >= 1.0;
        if admitted {
            recovery.room -= 1.0;
        } else {
            recovery.held = now;
        }
        admitted
    }

    /// One was made that somebody has to have.
    pub(crate) fn made(&mut self, now: Moment) {
        if let Some(recovery) = &mut self.recovery {
            recovery.fill(now);
            recovery.room = (recovery.room - 1.0).max(0.0);
        }
    }
}

impl Recovery {
    fn fill(&mut self, now: Moment) {
        let passed = now.since(std::mem::replace(&mut self.filled, now)).as_secs_f64();
        self.room = (passed * FACTOR).mul_add(self.rate, self.room).min((self.rate * BURST).max(1.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(10);
    const LIFE: Duration = Duration::from_mins(1);
    const KEYS: usize = 3000;

    /// Keys that are read all the time, each loaded when it is older than [`LIFE`], if that is admitted.
    struct World {
        pace: Pace,
        now: Moment,
        loaded_at: Vec<Moment>,
    }

    impl World {
        /// All keys loaded, evenly spread over the past life.
        fn new() -> Self {
            let begun = Moment::ZERO + LIFE;
            let at = |key| Moment::ZERO + LIFE * u32::try_from(key).unwrap() / u32::try_from(KEYS).unwrap();
            Self { pace: Pace::default(), now: begun, loaded_at: (0..KEYS).map(at).collect() }
        }

        /// Loads of each second.
        fn pass(&mut self, span: Duration, is_up: bool) -> Vec<usize> {
            let end = self.now + span;
            let mut seconds = Vec::new();
            while self.now < end {
                let mut loads = 0;
                let second = self.now + Duration::from_secs(1);
                while self.now < second {
                    for loaded_at in &mut self.loaded_at {
                        if is_up && self.now.since(*loaded_at) >= LIFE && self.pace.admits(self.now) {
                            *loaded_at = self.now;
                            self.pace.loaded(1, self.now);
                            loads += 1;
                        }
                    }
                    self.now = self.now + STEP;
                }
                seconds.push(loads);
            }
            seconds
        }
    }

    #[test]
    fn behind_an_outage_no_second_loads_half_as_much_again_as_before() {
        let mut world = World::new();
        let steady = *world.pass(LIFE * 2, true).iter().max().unwrap();
        world.pass(LIFE, false);
        world.pace.recovered(world.now);
        let back = world.pass(LIFE, true);
        let peak = *back.iter().max().unwrap();
        assert!(peak * 2 <= steady * 3, "a peak of {peak}, and {steady} before");
        // All is fresh again before a life is over.
        assert!(back.iter().sum::<usize>() >= KEYS, "{back:?}");
        assert!(world.loaded_at.iter().all(|at| world.now.since(*at) <= LIFE));
    }

    #[test]
    fn without_it_all_would_come_at_once() {
        let mut world = World::new();
        let steady = *world.pass(LIFE * 2, true).iter().max().unwrap();
        world.pass(LIFE, false);
        let peak = *world.pass(LIFE, true).iter().max().unwrap();
        assert!(peak > steady * 10, "a peak of {peak}, and {steady} before");
    }

    #[test]
    fn it_ends_when_nothing_is_held_back_and_at_the_latest_after_a_while() {
        let mut world = World::new();
        world.pass(LIFE * 2, true);
        world.pace.recovered(world.now);
        assert!(!world.pace.admits(world.now), "it has begun");
        world.now = world.now + QUIET + STEP;
        assert!((0..1000).all(|_| world.pace.admits(world.now)), "a second without demand");
        world.pace.recovered(world.now);
        let end = world.now + LONGEST;
        while world.now <= end {
            while world.pace.admits(world.now) {}
            world.now = world.now + QUIET / 2;
        }
        assert!((0..1000).all(|_| world.pace.admits(world.now)), "the load may have grown");
    }

    #[test]
    fn a_store_that_never_answered_is_not_held_back() {
        let mut pace = Pace::default();
        pace.recovered(Moment::ZERO);
        assert!((0..1000).all(|_| pace.admits(Moment::ZERO)));
    }

    #[test]
    fn loads_that_must_be_made_take_the_room_of_others() {
        let mut world = World::new();
        world.pass(LIFE * 2, true);
        world.pace.recovered(world.now);
        world.now = world.now + Duration::from_millis(100);
        (0..50).for_each(|_| world.pace.made(world.now));
        assert!(!world.pace.admits(world.now));
    }
}
