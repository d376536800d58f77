//! Who may use the socket: logins, and what a user may run and touch.
//!
//! Passwords are read from their files at each login, so that a rotated Secret counts at once; a session that is logged
//! in stays so. Users and rules follow the configuration: each batch of requests sees those of the moment. Never logs a password;
//! a file that cannot be read lets nobody in.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
use caddy_engine::glob::Glob;

use crate::commands::{Permissions, Row};

/// The user of a session that does not say who it is.
pub(crate) const DEFAULT: &str = "default";

/// See the module.
#[derive(Debug)]
pub(crate) struct Auth {
    users: ArcSwap<Users>,
    /// Counts configurations: sessions look again when it has changed.
    generation: AtomicU64,
}

/// The users of one configuration.
#[derive(Debug, Default)]
struct Users {
    default: DefaultUser,
    named: HashMap<String, Arc<User>>,
}

#[derive(Debug, Default)]
enum DefaultUser {
    /// Nothing is configured: everybody is it, whatever they say.
    #[default]
    Anybody,
    /// Whoever knows the password in this file.
    Password(PathBuf),
    /// There are users, and this is none of them.
    Off,
}

/// One of `auth.users`.
#[derive(Debug)]
pub(crate) struct User {
    name: String,
    password_file: PathBuf,
    /// `None`: any key.
    keys: Option<Vec<Glob>>,
    commands: Permissions,
}

/// What stands between a session and its requests.
#[derive(Debug, Clone, Default)]
pub(crate) enum Gate {
    /// Nothing.
    #[default]
    Open,
    /// It has to log in first.
    Closed,
    /// It may do what this user may.
    Limited(Arc<User>),
}

/// What became of a login.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Login {
    Welcome,
    /// Anybody is; who they say they are changes nothing.
    Ignored,
    Refused,
}

/// Why a request may not be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denied {
    Command,
    Key,
    /// What a script does is checked by nobody.
    Script,
    /// Its BY and GET read keys that no argument names.
    Sort,
}

impl Auth {
    pub(crate) fn new(config: &caddy_contract::Auth) -> Self {
        Self { users: ArcSwap::from_pointee(Users::new(config)), generation: AtomicU64::new(1) }
    }

    pub(crate) fn reconfigure(&self, config: &caddy_contract::Auth) {
        self.users.store(Arc::new(Users::new(config)));
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Differs from 0, and from what it was when users or rules were others.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// What stands before a session that logged in as `user`, or did not.
    pub(crate) fn gate(&self, user: Option<&str>) -> Gate {
        let users = self.users.load();
        match (&users.default, user) {
            (DefaultUser::Anybody, _) | (DefaultUser::Password(_), Some(DEFAULT)) => Gate::Open,
            (_, Some(name)) => users
                .named
                .get(name)
                .map_or(Gate::Closed, |user| if user.is_limited() { Gate::Limited(user.clone()) } else { Gate::Open }),
            (_, None) => Gate::Closed,
        }
    }

    /// AUTH, or HELLO's.
    pub(crate) fn login(&self, user: &str, password: &[u8]) -> Login {
        let users = self.users.load();
        let file = match &users.default {
            DefaultUser::Anybody => return Login::Ignored,
            DefaultUser::Password(file) if user == DEFAULT => Some(file),
            DefaultUser::Password(_) | DefaultUser::Off => users.named.get(user).map(|user| &user.password_file),
        };
        if file.is_some_and(|file| is_password(file, password)) { Login::Welcome } else { Login::Refused }
    }
}

impl Users {
    fn new(config: &caddy_contract::Auth) -> Self {
        let default = match &config.password_file {
            Some(file) => DefaultUser::Password(file.clone()),
            None if config.users.is_empty() => DefaultUser::Anybody,
            None => DefaultUser::Off,
        };
        let named = config.users.iter().map(|user| (user.name.clone(), Arc::new(User::new(user)))).collect();
        Self { default, named }
    }
}

impl User {
    fn new(config: &caddy_contract::User) -> Self {
        let any_key = config.keys.iter().any(|pattern| pattern == "*");
        Self {
            name: config.name.clone(),
            password_file: config.password_file.clone(),
            keys: (!any_key).then(|| config.keys.iter().map(|pattern| Glob::new(pattern.as_bytes())).collect()),
            commands: Permissions::new(config.commands.clone()),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    fn is_limited(&self) -> bool {
        self.keys.is_some() || !self.commands.is_everything()
    }

    /// Whether a request may be run; `None`: it may.
    pub(crate) fn denies<'a>(
        &self,
        row: &'static Row,
        n_args: usize,
        arg: impl Fn(usize) -> &'a [u8] + Copy,
    ) -> Option<Denied> {
        const SCRIPTS: [&str; 6] = ["eval", "evalsha", "eval_ro", "evalsha_ro", "fcall", "fcall_ro"];
        if !self.commands.allow(row, arg(0)) {
            return Some(Denied::Command);
        }
        if SCRIPTS.contains(&row.name) {
            return Some(Denied::Script);
        }
        let keys = self.keys.as_ref()?;
        let may = |key: &[u8]| keys.iter().any(|glob| glob.matches(key));
        let reads_others =
            |index: usize| [b"BY" as &[u8], b"GET"].iter().any(|word| arg(index).eq_ignore_ascii_case(word));
        match row.name {
            // Nobody knows which arguments are keys.
            "" => Some(Denied::Command),
            // Channels, which are found like keys.
            "spublish" | "ssubscribe" | "sunsubscribe" => None,
            "sort" | "sort_ro" if (2..n_args).any(reads_others) => Some(Denied::Sort),
            _ => {
                let all = row.keys(n_args, arg).iter().all(|index| may(arg(*index)));
                (!all).then_some(Denied::Key)
            }
        }
    }
}

/// Whether a line of the file is this password.
fn is_password(file: &Path, password: &[u8]) -> bool {
    match std::fs::read(file) {
        Ok(bytes) => bytes
            .split(|byte| *byte == b'\n')
            .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
            .filter(|line| !line.is_empty())
            .fold(false, |found, line| found | is_same(line, password)),
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "cannot read a password; nobody can log in with it");
            false
        }
    }
}

/// Takes as long for a wrong byte at the front as for one at the end.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differing, (a, b)| differing | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_of_the_file_is_a_password_and_an_empty_one_is_none() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "new\r\n\nold\n").unwrap();
        assert!(is_password(file.path(), b"new") && is_password(file.path(), b"old"));
        assert!(
            !is_password(file.path(), b"") && !is_password(file.path(), b"ne") && !is_password(file.path(), b"news")
        );
        assert!(!is_password(Path::new("/nowhere"), b""));
    }

    #[test]
    fn without_users_anybody_is_the_default_user_and_with_them_nobody_is() {
        let open = Auth::new(&caddy_contract::Auth::default());
        assert!(matches!(open.gate(None), Gate::Open));
        assert_eq!(open.login("whoever", b"whatever"), Login::Ignored);
        let user = caddy_contract::User {
            name: "reports".into(),
            password_file: "/nowhere".into(),
            keys: vec!["*".into()],
            commands: vec!["+@all".parse().unwrap()],
        };
        let closed = Auth::new(&caddy_contract::Auth { password_file: None, users: vec![user] });
        assert!(matches!(closed.gate(None), Gate::Closed) && matches!(closed.gate(Some(DEFAULT)), Gate::Closed));
        assert!(matches!(closed.gate(Some("reports")), Gate::Open), "who may everything is not asked each time");
        assert_eq!(closed.login("reports", b""), Login::Refused);
        closed.reconfigure(&caddy_contract::Auth::default());
        assert!(matches!(closed.gate(None), Gate::Open) && closed.generation() == 2);
    }
}
