//! Who may use the socket: the section `auth` of the file, its shape and its meaning.
//!
//! Rules are those of Redis's ACL, of which this is a part: key patterns (`~`, here without it), and commands by name,
//! subcommand and category. Which commands there are is the sidecar's to know.

use std::{collections::HashSet, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::Faults;

/// The categories that rules can name, as in `ACL CAT`; all but `all` are properties of commands.
pub const CATEGORIES: [&str; 22] = [
    "all",
    "admin",
    "bitmap",
    "blocking",
    "connection",
    "dangerous",
    "fast",
    "geo",
    "hash",
    "hyperloglog",
    "keyspace",
    "list",
    "pubsub",
    "read",
    "scripting",
    "set",
    "slow",
    "sortedset",
    "stream",
    "string",
    "transaction",
    "write",
];

/// Who may use the socket; empty: everybody who can reach it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawAuth {
    /// File with the password of the default user, who may do everything; empty means that there is none.
    pub password_file: String,
    /// Further users; with any of them the default user needs a password, or is off.
    pub users: Vec<RawUser>,
}

/// A user of the socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawUser {
    /// Name for AUTH.
    pub name: String,
    /// File with the password, read at each login; each line is one, so that two can hold while one is replaced.
    pub password_file: String,
    /// Redis globs; keys of commands must match one.
    pub keys: Vec<String>,
    /// Rules such as `+@read`, `-keys`, `+config|get`, in order; before the first one nothing is allowed.
    pub commands: Vec<String>,
}

impl Default for RawUser {
    fn default() -> Self {
        Self {
            name: String::new(),
            password_file: String::new(),
            keys: vec!["*".into()],
            commands: vec!["+@all".into()],
        }
    }
}

/// Who may use the socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Auth {
    /// File with the default user's password.
    pub password_file: Option<PathBuf>,
    /// Further users.
    pub users: Vec<User>,
}

/// A user of the socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Name for AUTH, unique and not `default`.
    pub name: String,
    /// File with the password, one in each line.
    pub password_file: PathBuf,
    /// Redis globs; keys of commands must match one.
    pub keys: Vec<String>,
    /// What may be run, in order; before the first one nothing.
    pub commands: Vec<CommandRule>,
}

/// Allows or forbids some commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandRule {
    /// `+` or `-`.
    pub allow: bool,
    /// Which commands.
    pub of: Commands,
}

/// A set of commands; names are in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Commands {
    /// `@all`
    All,
    /// `@read`; one of [`CATEGORIES`].
    Category(&'static str),
    /// `get`; a container's name stands for all its subcommands.
    Command(String),
    /// `config|get`
    Subcommand(String, String),
}

impl RawAuth {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn parse(&self, faults: &mut Faults) -> Auth {
        let mut names = HashSet::new();
        let mut users = Vec::new();
        for (n, user) in self.users.iter().enumerate() {
            let path = format!("auth.users[{n}]");
            if !names.insert(&user.name) {
                faults.add(format!("{path}.name"), format!("{:?} is taken by an earlier user", user.name));
            }
            users.push(user.parse(&path, faults));
        }
        let password_file = (!self.password_file.is_empty()).then(|| PathBuf::from(&self.password_file));
        Auth { password_file, users }
    }
}

impl RawUser {
    fn parse(&self, path: &str, faults: &mut Faults) -> User {
        let name = &self.name;
        let plain = (1..=64).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if !plain || name == "default" {
            let message =
                format!("{name:?} must be 1 to 64 letters, digits, `-`, `_`, `.`; `default` is auth.passwordFile's");
            faults.add(format!("{path}.name"), message);
        }
        if self.password_file.is_empty() {
            faults.add(format!("{path}.passwordFile"), "must not be empty: a user without a password is everybody");
        }
        for (n, pattern) in self.keys.iter().enumerate() {
            if !(1..=512).contains(&pattern.len()) {
                faults.add(format!("{path}.keys[{n}]"), "must be a Redis glob of 1 to 512 bytes, e.g. report:*");
            }
        }
        let mut commands = Vec::new();
        for (n, rule) in self.commands.iter().enumerate() {
            match rule.parse() {
                Ok(rule) => commands.push(rule),
                Err(message) => faults.add(format!("{path}.commands[{n}]"), message),
            }
        }
        User {
            name: name.clone(),
            password_file: PathBuf::from(&self.password_file),
            keys: self.keys.clone(),
            commands,
        }
    }
}

impl std::str::FromStr for CommandRule {
    type Err = String;

    /// Reads `+get`, `-config|set`, `+@read`, `-@all`; the error says what to write.
    fn from_str(text: &str) -> Result<Self, String> {
        let unclear = || format!("{text:?} is not a rule; write e.g. +@read, -keys or +config|get");
        let allow = text.starts_with('+');
        let what = text.strip_prefix(['+', '-']).ok_or_else(unclear)?.to_ascii_lowercase();
        if let Some(category) = what.strip_prefix('@') {
            let known = CATEGORIES.iter().find(|known| **known == category);
            return match known {
                Some(&"all") => Ok(Self { allow, of: Commands::All }),
                Some(known) => Ok(Self { allow, of: Commands::Category(known) }),
                None => Err(format!("{text:?}: there is no category {category}; there are {}", CATEGORIES.join(", "))),
            };
        }
        let is_name = |name: &str| {
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
        };
        let of = match what.split_once('|') {
            Some((container, subcommand)) if is_name(container) && is_name(subcommand) => {
                Commands::Subcommand(container.to_owned(), subcommand.to_owned())
            }
            None if is_name(&what) => Commands::Command(what),
            _ => return Err(unclear()),
        };
        Ok(Self { allow, of })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_as_in_redis() {
        let rule = |text: &str| text.parse::<CommandRule>();
        assert_eq!(rule("+@ALL").unwrap(), CommandRule { allow: true, of: Commands::All });
        assert_eq!(rule("-@read").unwrap(), CommandRule { allow: false, of: Commands::Category("read") });
        assert_eq!(rule("+JSON.GET").unwrap().of, Commands::Command("json.get".into()));
        assert_eq!(rule("-config|SET").unwrap().of, Commands::Subcommand("config".into(), "set".into()));
        for wrong in ["", "get", "+", "+@", "+@reed", "+a b", "+config|", "+|get", "~*"] {
            assert!(rule(wrong).is_err(), "{wrong}");
        }
    }
}
