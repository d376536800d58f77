//! Which changes of L3's state are worth a line of the log: a server that comes and goes many times a second is not worth one
//! each time.
//!
//! The log ends with what is so: behind a trouble that was told its end is told too.

use caddy_engine::Moment;
use parking_lot::Mutex;

use crate::seldom::Seldom;

/// So many reasons are told at once each time; further ones in their turn.
const REASONS: usize = 8;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Told {
    ups: Seldom,
    downs: Seldom,
    troubles: Mutex<Troubles>,
}

#[derive(Debug, Default)]
struct Troubles {
    /// The reasons told since `downs` was last due: each is told at once when it is new.
    reasons: Vec<String>,
    /// The last line is one of them.
    are_last: bool,
}

impl Told {
    /// Whether a reason is to be told now, and how many were kept back before it.
    pub(super) fn down(&self, reason: &str, now: Moment) -> Option<u64> {
        let mut troubles = self.troubles.lock();
        let is_new = troubles.reasons.len() < REASONS && !troubles.reasons.iter().any(|known| known == reason);
        let before = if is_new { 0 } else { self.downs.due(now)? };
        if !is_new {
            troubles.reasons.clear();
        }
        troubles.reasons.push(reason.to_owned());
        troubles.are_last = true;
        Some(before)
    }

    /// The same for a connection that is up; `is_all`: nothing else is wrong.
    pub(super) fn up(&self, is_all: bool, now: Moment) -> Option<u64> {
        let end = if is_all { self.end(now) } else { None };
        end.or_else(|| self.ups.due(now))
    }

    /// The same where nothing is told that has no beginning.
    pub(super) fn end(&self, now: Moment) -> Option<u64> {
        let is_end = std::mem::take(&mut self.troubles.lock().are_last);
        is_end.then(|| self.ups.said(now))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_end_of_a_trouble_that_was_told_is_told_however_soon_it_comes() {
        let (told, now) = (Told::default(), Moment::from_nanos(1));
        let soon = now + Duration::from_millis(1);
        assert_eq!(told.up(true, now), Some(0));
        assert_eq!(told.down("a", soon), Some(0));
        // Another connection is down still.
        assert_eq!(told.up(false, soon), None);
        assert_eq!(told.up(true, soon), Some(1));
        assert_eq!(told.up(true, soon), None, "once");
        // What comes and goes has a line as often as the trouble has.
        assert_eq!(told.down("a", soon), Some(0));
        assert_eq!(told.up(true, soon), Some(1));
        for _ in 0..10 {
            assert_eq!((told.down("a", soon), told.up(true, soon)), (None, None));
        }
        assert_eq!(told.down("b", soon), Some(0));
        assert_eq!(told.up(true, soon), Some(10));
    }

    #[test]
    fn each_reason_is_told_at_once_when_it_is_new_and_again_when_others_were_told_for_long() {
        let (told, now) = (Told::default(), Moment::from_nanos(1));
        let reason = |n: usize| format!("reason {n}");
        for n in 0..REASONS {
            assert_eq!((told.down(&reason(n), now), told.up(true, now).is_some()), (Some(0), true), "{n}");
        }
        // Beyond that, and what is known, in their turn: and then all is new again.
        assert_eq!(told.down(&reason(REASONS), now), Some(0), "the first turn");
        assert_eq!(told.down(&reason(REASONS), now), None);
        assert_eq!(told.down(&reason(0), now), Some(0), "new again");
    }
}
