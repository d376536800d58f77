//! The one error of these commands: which step failed, and what to do about it. Never carries a backtrace: the stage's
//! log file holds the details.

use std::fmt;

/// A step that failed, in words for whoever typed the command.
#[derive(Debug)]
pub(crate) struct Failed(String);

/// The result of a step.
pub(crate) type Result<T = ()> = std::result::Result<T, Failed>;

impl Failed {
    /// A failure with a message that says what to do.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names the step that an error of another kind belongs to.
pub(crate) trait Step<T> {
    /// `Failed` reading "`step`: `error`".
    fn step(self, step: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> Step<T> for std::result::Result<T, E> {
    fn step(self, step: impl fmt::Display) -> Result<T> {
        self.map_err(|error| Failed(format!("{step}: {error}")))
    }
}
