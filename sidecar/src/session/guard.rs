//! What stands between a session and its requests when the socket has users: logins, and what each user may do.
//!
//! Errors are Redis's own, in the words of the server behind us. Without `auth` in the configuration nothing here is
//! asked but one number for each batch.

use caddy_resp::{Stage, encode};

use super::{
    args::Args,
    conversation::{Conversation, Flow},
    invalidate::Request,
};
use crate::{
    auth::{DEFAULT, Denied, Gate, Login},
    commands::{self, Row},
};

impl Conversation {
    /// Whether requests have to be looked at before they are run.
    #[inline]
    pub(super) fn is_guarded(&mut self) -> bool {
        if self.client.gate_seen != self.auth_generation {
            self.client.gate = self.worker.shared.auth.gate(self.client.login.as_deref());
            self.client.gate_seen = self.auth_generation;
        }
        !matches!(self.client.gate, Gate::Open)
    }

    /// Whether the session has to log in first.
    pub(super) fn is_locked_out(&mut self) -> bool {
        self.is_guarded() && matches!(self.client.gate, Gate::Closed)
    }

    /// How far the client may be trusted with memory.
    pub(crate) fn stage(&mut self) -> Stage {
        if self.is_locked_out() { Stage::Unauthenticated } else { Stage::Authenticated }
    }

    /// Answers a request that the session may not make; `None`: it may.
    pub(super) fn guard(&mut self, row: &'static Row, args: Args<'_>) -> Option<Flow> {
        // As in Redis, these are everybody's.
        if matches!(row.name, "auth" | "hello" | "quit" | "reset") && args.is(0, row.name) {
            return None;
        }
        let text = match &self.client.gate {
            Gate::Open => return None,
            Gate::Closed => "NOAUTH Authentication required.".to_owned(),
            Gate::Limited(user) => {
                let denied = user.denies(row, args.len(), |index| args.get(index))?;
                let recent = self.worker.shared.status.has_recent_errors();
                denial(denied, user.name(), &full_name(row, args), recent)
            }
        };
        self.worker.shared.metrics.denied_commands.inc();
        let peer = self.client.shown().peer;
        tracing::debug!(%peer, user = self.client.login.as_deref(), command = args.name(), text, "denied");
        let mut refusal = Vec::new();
        encode::error(&mut refusal, &text);
        if let Some(flow) = self.refuse_in_transaction(refusal) {
            return Some(flow);
        }
        self.reply_error(&text);
        Some(Flow::Done)
    }

    /// Why the session may not make a request that another one comes down to; `None`: it may.
    pub(super) fn denial_of(&self, words: &[&[u8]]) -> Option<String> {
        let Gate::Limited(user) = &self.client.gate else { return None };
        Request::new(words).with(|row, args| {
            let denied = user.denies(row, args.len(), |index| args.get(index))?;
            let recent = self.worker.shared.status.has_recent_errors();
            Some(denial(denied, user.name(), &full_name(row, args), recent))
        })
    }

    /// AUTH, or HELLO's: whether it succeeded.
    pub(super) fn log_in(&mut self, user: &[u8], password: &[u8]) -> bool {
        let shared = &self.worker.shared;
        let user = String::from_utf8_lossy(user);
        match shared.auth.login(&user, password) {
            Login::Welcome => {
                self.client.log_in(Some(&user));
                true
            }
            Login::Ignored => {
                shared.note_ignored_auth();
                self.client.log_in(Some(DEFAULT));
                true
            }
            Login::Refused => {
                shared.metrics.refused_logins.inc();
                shared.note_refused_login(self.client.shown().peer, &user);
                false
            }
        }
    }
}

/// `get`, or `config|set`.
pub(super) fn full_name(row: &Row, args: Args<'_>) -> String {
    let container = commands::lookup(args.get(0));
    if container.name.is_empty() {
        args.name().to_lowercase()
    } else if std::ptr::eq(container, row) {
        row.name.to_owned()
    } else {
        format!("{}|{}", container.name, row.name)
    }
}

/// Redis's words; `recent`: of 7.2 and later.
fn denial(denied: Denied, user: &str, command: &str, recent: bool) -> String {
    let whose = if recent { format!("User {user}") } else { "this user".to_owned() };
    match denied {
        Denied::Command => format!("NOPERM {whose} has no permissions to run the '{command}' command"),
        Denied::Key if recent => "NOPERM No permissions to access a key".to_owned(),
        Denied::Key => "NOPERM this user has no permissions to access one of the keys used as arguments".to_owned(),
        Denied::Script => format!(
            "NOPERM {whose} has no permissions to run the '{command}' command: what a script does is not checked here, so \
             that users with limits may run none"
        ),
        Denied::Sort => "ERR BY or GET option of SORT denied due to insufficient ACL permissions.".to_owned(),
    }
}
