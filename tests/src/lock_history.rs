//! Histories of exclusive locks, and what must never be found in one.
//!
//! An app writes down what it saw: when it asked, when it was answered, under which token, for how long, and when it let
//! go. It believes to hold the lock from the answer until it lets go, or until the time it was told is over. The checker
//! knows nothing of sidecars or Redis: it compares what apps believed.

use std::{collections::BTreeMap, fmt};

use caddy_engine::{Moment, locks::FencingToken};

/// One acquisition that succeeded.
#[derive(Clone, Debug)]
pub struct Hold {
    /// Who.
    pub app: usize,
    /// Which lock.
    pub lock: String,
    /// Before the request was sent.
    pub asked: Moment,
    /// When the answer was there.
    pub answered: Moment,
    /// Under which token.
    pub token: FencingToken,
    /// When it let go, or when the time that it was told was over, whichever came first.
    pub until: Moment,
}

/// One acquisition that did not.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// Who.
    pub app: usize,
    /// Before the request was sent.
    pub asked: Moment,
    /// When the answer was there.
    pub answered: Moment,
    /// How long it was to wait at most.
    pub wait: std::time::Duration,
}

/// What apps saw.
#[derive(Clone, Debug, Default)]
pub struct LockHistory {
    /// Acquisitions.
    pub holds: Vec<Hold>,
    /// Those that failed.
    pub refusals: Vec<Refusal>,
    /// When data was lost or removed: a hold from before may overlap with one from behind.
    pub losses: Vec<Moment>,
    /// From when until when whoever came to the locks anew began another epoch: two of different epochs may overlap.
    pub voids: Vec<(Moment, Moment)>,
}

/// What must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LockViolation {
    /// The later of two acquisitions has no greater token.
    Token(String),
    /// Two apps believed to hold the lock at the same moment, and no data was lost.
    TwoHolders(String),
    /// An acquisition was not answered in its time.
    Late(String),
}

impl fmt::Display for LockViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token(what) => write!(f, "tokens do not grow: {what}"),
            Self::TwoHolders(what) => write!(f, "two holders: {what}"),
            Self::Late(what) => write!(f, "not answered in time: {what}"),
        }
    }
}

impl LockHistory {
    /// Everything that is wrong, given how much later than its time an answer may come.
    pub fn violations(&self, slack: std::time::Duration) -> Vec<LockViolation> {
        let mut by_lock: BTreeMap<&str, Vec<&Hold>> = BTreeMap::new();
        for hold in &self.holds {
            by_lock.entry(&hold.lock).or_default().push(hold);
        }
        let mut found = Vec::new();
        for holds in by_lock.values_mut() {
            holds.sort_by_key(|hold| hold.token);
            for (index, hold) in holds.iter().enumerate() {
                for later in &holds[index + 1..] {
                    self.compare(hold, later, &mut found);
                }
            }
        }
        let late = self.refusals.iter().filter(|refusal| refusal.answered > refusal.asked + refusal.wait + slack);
        found.extend(late.map(|refusal| LockViolation::Late(format!("{refusal:?}"))));
        found
    }

    /// Of two holds of one lock the second has the token that is not smaller.
    fn compare(&self, first: &Hold, second: &Hold, found: &mut Vec<LockViolation>) {
        let both = || format!("{first:?} and {second:?}");
        // Who could not let go may have it again under the same token.
        let is_shared = first.token == second.token && first.app != second.app;
        if is_shared || first.asked > second.answered {
            found.push(LockViolation::Token(both()));
        }
        let overlap = first.answered < second.until && second.answered < first.until;
        let lost_between = self.losses.iter().any(|loss| first.asked <= *loss && *loss <= second.answered);
        let is_another = first.token.epoch() != second.token.epoch();
        let voided = is_another && self.voids.iter().any(|(from, to)| first.asked <= *to && *from <= second.answered);
        if overlap && !lost_between && !voided {
            found.push(LockViolation::TwoHolders(both()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn hold(token: u64, asked: u64, answered: u64, until: u64) -> Hold {
        let [asked, answered, until] = [asked, answered, until].map(Moment::from_millis);
        Hold { app: 1, lock: "l".into(), asked, answered, token: FencingToken::new(1, token), until }
    }

    fn violations(holds: &[Hold], losses: &[u64]) -> usize {
        let losses = losses.iter().map(|at| Moment::from_millis(*at)).collect();
        LockHistory { holds: holds.to_vec(), losses, ..LockHistory::default() }.violations(Duration::ZERO).len()
    }

    #[test]
    fn a_good_history_is_good() {
        assert_eq!(violations(&[hold(1, 0, 1, 5), hold(2, 2, 6, 9), hold(3, 9, 10, 11)], &[]), 0);
    }

    #[test]
    fn another_epoch_excuses_only_others_and_only_while_it_may_begin() {
        let overlapping = |epoch| {
            let second = Hold { token: FencingToken::new(epoch, 2), ..hold(2, 2, 4, 9) };
            vec![hold(1, 0, 1, 5), second]
        };
        let found = |epoch, from, to| {
            let voids = vec![(Moment::from_millis(from), Moment::from_millis(to))];
            LockHistory { holds: overlapping(epoch), voids, ..LockHistory::default() }.violations(Duration::ZERO).len()
        };
        assert_eq!(found(2, 3, 3), 0);
        assert_eq!(found(1, 3, 3), 1, "the same epoch");
        assert_eq!(found(2, 5, 9), 1, "later");
    }

    #[test]
    fn planted_faults_are_found() {
        assert_eq!(violations(&[hold(1, 0, 1, 5), hold(2, 2, 4, 9)], &[]), 1, "two holders");
        assert_eq!(violations(&[hold(1, 0, 1, 5), hold(2, 2, 4, 9)], &[3]), 0, "data was lost between");
        assert_eq!(violations(&[hold(1, 0, 1, 5), hold(2, 2, 4, 9)], &[8]), 1, "data was lost later");
        assert_eq!(violations(&[hold(2, 0, 1, 2), hold(1, 3, 4, 5)], &[]), 1, "a smaller token later");
        let other = Hold { app: 2, ..hold(1, 3, 4, 5) };
        assert_eq!(violations(&[hold(1, 0, 1, 2), other], &[]), 1, "the same token for two");
        let [asked, answered] = [0, 900].map(Moment::from_millis);
        let late = Refusal { app: 1, asked, answered, wait: Duration::from_millis(500) };
        let history = LockHistory { refusals: vec![late], ..LockHistory::default() };
        assert_eq!(history.violations(Duration::from_millis(500)), []);
        assert_eq!(history.violations(Duration::from_millis(300)).len(), 1, "late");
    }
}
