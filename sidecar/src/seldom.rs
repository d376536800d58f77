//! Says when a message that may come in masses is worth another line.

use std::time::Duration;

use caddy_engine::Moment;
use parking_lot::Mutex;

/// Between two lines.
const PAUSE: Duration = Duration::from_secs(10);

/// One kind of message.
#[derive(Debug, Default)]
pub(crate) struct Seldom(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: Option<Moment>,
    kept_back: u64,
}

impl Seldom {
    /// Whether to say it now, and how many were kept back since the last time.
    pub(crate) fn due(&self, now: Moment) -> Option<u64> {
        let mut state = self.0.lock();
        if state.last.is_some_and(|last| now.since(last) < PAUSE) {
            state.kept_back += 1;
            return None;
        }
        drop(state);
        Some(self.said(now))
    }

    /// It is said now in any case: how many were kept back since the last time.
    pub(crate) fn said(&self, now: Moment) -> u64 {
        let mut state = self.0.lock();
        state.last = Some(now);
        std::mem::take(&mut state.kept_back)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_said_and_then_one_in_a_while_with_the_number_of_the_others() {
        let seldom = Seldom::default();
        let start = Moment::from_nanos(1);
        assert_eq!(seldom.due(start), Some(0));
        assert_eq!((seldom.due(start), seldom.due(start + PAUSE / 2)), (None, None));
        assert_eq!(seldom.due(start + PAUSE), Some(2));
    }
}
