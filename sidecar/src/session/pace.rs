//! Whether an app asks again as soon as it has its answer.
//!
//! Such an app is soon back, so the session lets itself be woken when its answer is read ([`Socket::set_eager`]): the wake-up is
//! under way while the next request is written, and hides most of what it takes. Of any other app that would be one
//! wake-up more for every request.
//!
//! [`Socket::set_eager`]: caddy_remote::Socket::set_eager

use std::time::Duration;

/// From one request to the next, at most: what a closed loop takes for them, also where a wake-up is slow.
const PROMPT: Duration = Duration::from_micros(64);
/// So many prompt ones make a loop.
const SURE: u8 = 64;
/// One that is late takes back so many prompt ones.
const LATE: u8 = 8;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// From 0 to [`SURE`].
    level: u8,
    is_prompt: bool,
}

impl Pace {
    /// A request came so long after the one before; says what has changed.
    pub(super) fn note(&mut self, gap: Duration) -> Option<bool> {
        self.level = if gap <= PROMPT { (self.level + 1).min(SURE) } else { self.level.saturating_sub(LATE) };
        let is_prompt = match self.level {
            0 => false,
            SURE => true,
            _ => return None,
        };
        (std::mem::replace(&mut self.is_prompt, is_prompt) != is_prompt).then_some(is_prompt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(pace: &mut Pace, gap: Duration, count: usize) -> Vec<bool> {
        (0..count).filter_map(|_| pace.note(gap)).collect()
    }

    #[test]
    fn a_loop_is_noticed_and_so_is_its_end() {
        let mut pace = Pace::default();
        assert!(noted(&mut pace, PROMPT, 63).is_empty());
        assert_eq!(noted(&mut pace, PROMPT, 1000), [true]);
        assert!(noted(&mut pace, Duration::from_millis(1), 7).is_empty());
        assert_eq!(noted(&mut pace, Duration::from_millis(1), 1000), [false]);
    }

    #[test]
    fn a_pause_now_and_then_changes_nothing() {
        let mut pace = Pace::default();
        noted(&mut pace, PROMPT, 64);
        for _ in 0..100 {
            assert!(noted(&mut pace, Duration::from_secs(1), 1).is_empty());
            assert!(noted(&mut pace, PROMPT, 8).is_empty());
        }
    }

    #[test]
    fn an_app_that_thinks_every_other_time_is_none() {
        let mut pace = Pace::default();
        for _ in 0..1000 {
            assert_eq!((pace.note(PROMPT), pace.note(PROMPT * 2)), (None, None));
        }
    }
}
