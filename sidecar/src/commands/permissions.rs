//! Which commands a user may run, decided once for every row of the table.
//!
//! Rules are applied in order, as in Redis's ACL: the last one that is about a command decides. What the table lacks
//! (a module's command) is allowed by its name or by `+@all`, and forbidden by any category that is taken away: which
//! categories it is in is not known here.

use std::collections::{HashMap, HashSet};

use caddy_contract::{CommandRule, Commands};

use super::{Effect, Row, categories::CATEGORIES, rows};

/// See the module.
#[derive(Debug)]
pub struct Permissions {
    rules: Vec<CommandRule>,
    /// Addresses of the table's rows, which never move.
    allowed: HashSet<usize>,
}

impl Permissions {
    /// Decides for every row.
    pub fn new(rules: Vec<CommandRule>) -> Self {
        let categories = Categories::new();
        let mut allowed = HashSet::new();
        for row in rows() {
            if decide(&rules, row.name, None, |category| categories.has(row.name, row, category)) {
                allowed.insert(address(row));
            }
            for subcommand in row.subcommands {
                let full = format!("{}|{}", row.name, subcommand.name);
                let in_category = |category: &str| categories.has(&full, subcommand, category);
                if decide(&rules, row.name, Some(subcommand.name), in_category) {
                    allowed.insert(address(subcommand));
                }
            }
        }
        Self { rules, allowed }
    }

    /// Whether everything is allowed, also what no table knows.
    pub fn is_everything(&self) -> bool {
        let last_all = self.rules.iter().rposition(|rule| rule.of == Commands::All);
        last_all.is_some_and(|at| self.rules[at..].iter().all(|rule| rule.allow))
    }

    /// Whether a request that got this row, by this name, may be run.
    pub fn allow(&self, row: &'static Row, name: &[u8]) -> bool {
        if super::lookup(name).name.is_empty() {
            let name = String::from_utf8_lossy(name).to_ascii_lowercase();
            // The worst is taken for granted: it is in what is forbidden, and not in what is allowed.
            return decide_unknown(&self.rules, &name);
        }
        self.allowed.contains(&address(row))
    }
}

fn address(row: &'static Row) -> usize {
    std::ptr::from_ref(row).addr()
}

fn decide(rules: &[CommandRule], name: &str, subcommand: Option<&str>, in_category: impl Fn(&str) -> bool) -> bool {
    let about = |rule: &&CommandRule| match &rule.of {
        Commands::All => true,
        Commands::Category(category) => in_category(category),
        Commands::Command(command) => command == name,
        Commands::Subcommand(container, own) => container == name && Some(own.as_str()) == subcommand,
    };
    rules.iter().rfind(about).is_some_and(|rule| rule.allow)
}

fn decide_unknown(rules: &[CommandRule], name: &str) -> bool {
    let about = |rule: &&CommandRule| match &rule.of {
        Commands::All => true,
        Commands::Category(_) => !rule.allow,
        Commands::Command(command) => command == name,
        Commands::Subcommand(..) => false,
    };
    rules.iter().rfind(about).is_some_and(|rule| rule.allow)
}

/// The categories by command.
struct Categories(HashMap<&'static str, Vec<&'static str>>);

impl Categories {
    fn new() -> Self {
        let mut of: HashMap<&str, Vec<&str>> = HashMap::new();
        for (category, names) in CATEGORIES {
            for name in names.split_ascii_whitespace() {
                of.entry(name).or_default().push(category);
            }
        }
        Self(of)
    }

    fn has(&self, full_name: &str, row: &Row, category: &str) -> bool {
        match self.0.get(full_name) {
            Some(categories) if category == "slow" => !categories.contains(&"fast"),
            Some(categories) => categories.contains(&category),
            None if row.since == "7.0" || !row.subcommands.is_empty() => category == "slow",
            // Of a version that the data does not cover.
            None => match category {
                "slow" => true,
                "read" => matches!(row.effect, Effect::ReadsKeys | Effect::KeysUnknown),
                "write" => matches!(row.effect, Effect::WritesKeys | Effect::KeysUnknown | Effect::Flush),
                "dangerous" | "admin" => row.effect == Effect::Flush,
                _ => false,
            },
        }
    }
}

/// The categories that the rules take a command to be in, for the test that compares them with a server's.
pub fn categories_of(full_name: &str, row: &Row) -> Vec<&'static str> {
    let categories = Categories::new();
    caddy_contract::CATEGORIES.into_iter().filter(|category| categories.has(full_name, row, category)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::lookup_request;

    fn allows(rules: &[&str], line: &str) -> bool {
        let permissions = Permissions::new(rules.iter().map(|rule| rule.parse().unwrap()).collect());
        let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        permissions.allow(lookup_request(args.len(), |index| args[index]), args[0])
    }

    #[test]
    fn the_last_rule_about_a_command_decides() {
        assert!(!allows(&[], "GET k"));
        assert!(allows(&["+@all"], "GET k"));
        assert!(!allows(&["+@all", "-get"], "get k"));
        assert!(allows(&["-@all", "+@read", "-keys"], "MGET a b"));
        assert!(!allows(&["+@read", "-keys"], "KEYS *"));
        assert!(!allows(&["+@read"], "SET k v"));
        assert!(allows(&["+config|get"], "CONFIG GET x"));
        assert!(!allows(&["+config|get"], "CONFIG SET x y"));
        assert!(allows(&["+config", "-config|set"], "CONFIG GET x"));
        assert!(!allows(&["+config", "-config|set"], "CONFIG SET x y"));
        assert!(!allows(&["+@all", "-@dangerous"], "FLUSHALL"));
        assert!(allows(&["+@slow"], "KEYS *") && !allows(&["+@slow"], "GET k"));
    }

    #[test]
    fn what_the_table_lacks_is_taken_for_the_worst() {
        assert!(allows(&["+@all"], "JSON.SET k"));
        assert!(allows(&["+json.set"], "JSON.SET k"));
        assert!(!allows(&["+@read", "+@write"], "JSON.SET k"));
        assert!(!allows(&["+@all", "-@dangerous"], "JSON.SET k"));
        assert!(allows(&["+@all", "-@dangerous", "+json.set"], "JSON.SET k"));
    }

    #[test]
    fn everything_is_told_from_nearly_everything() {
        let everything =
            |rules: &[&str]| Permissions::new(rules.iter().map(|rule| rule.parse().unwrap()).collect()).is_everything();
        assert!(everything(&["+@all"]) && everything(&["-get", "+@all", "+get"]));
        assert!(!everything(&[]) && !everything(&["+@all", "-get"]) && !everything(&["+@read"]));
    }
}
