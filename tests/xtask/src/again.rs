//! Tests, and a second run of those that failed, alone. A loaded machine can make a test miss its time; one that passes
//! when nothing runs beside it does not stop the rest, and is named in the table so that it gets mended. What a random
//! run found, or a promise seen broken, is never put down to load: it gets no second run.

use std::collections::BTreeSet;
use std::process::Command;

use crate::failed::Result;
use crate::log::Log;
use crate::stage::Outcome;

/// What a failure's output says when it was found at random or breaks a promise (`Violation` in the tests' crate).
const NO_LUCK: [&str; 3] = ["seed", "minimal failing input", "promise broken"];

/// Runs `cargo test` as `command` makes it of the targets (`--test NAME` and the like) and what follows `--`.
pub(crate) fn run(
    log: &mut Log,
    targets: &[&str],
    rest: &[&str],
    command: impl Fn(&[&str]) -> Result<Command>,
) -> Result<Outcome> {
    let all = |targets: &[&str], rest: &[&str]| command(&[targets, &["--"], rest].concat());
    let Err(failed) = log.run(&mut all(targets, rest)?) else { return Ok(Outcome::Done) };
    let Some(failures) = Failures::found_in(&log.text()) else { return Err(failed) };
    log.note("\n=== once more, and alone: what failed above")?;
    let targets: Vec<&str> = failures.targets.iter().flat_map(|target| target.split(' ')).collect();
    let mut alone: Vec<&str> = failures.tests.iter().map(String::as_str).collect();
    alone.extend(["--exact", "--nocapture", "--test-threads=1"]);
    log.run(&mut all(&targets, &alone)?)?;
    let named = failures.tests.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    Ok(Outcome::Noted(format!("UNSTEADY, passed only alone: {named}")))
}

/// What failed and may be tried again.
#[derive(Debug, PartialEq, Eq)]
struct Failures {
    /// As cargo names them: `--test sentinel`.
    targets: BTreeSet<String>,
    tests: BTreeSet<String>,
}

impl Failures {
    /// None where there is nothing to try again: what did not compile, a test binary that crashed, what is no luck.
    fn found_in(log: &str) -> Option<Self> {
        let mut found = Self { targets: BTreeSet::new(), tests: BTreeSet::new() };
        let (mut binaries, mut listed) = (0, Vec::new());
        for line in log.lines() {
            if line == "failures:" {
                // There are two in each binary's output: what the tests printed, and then their names.
                listed.clear();
            } else if let Some(name) = line.strip_prefix("    ").filter(|name| !name.contains(' ')) {
                listed.push(name.to_owned());
            } else if line.starts_with("test result: FAILED") {
                binaries += 1;
                found.tests.extend(listed.drain(..));
            } else if let Some((_, target)) = line.split_once("`-p ").filter(|_| line.ends_with('`')) {
                found.targets.insert(target.trim_end_matches('`').split_once(' ')?.1.to_owned());
            } else if !line.starts_with("test ") && NO_LUCK.iter().any(|words| line.contains(words)) {
                return None;
            }
        }
        (!found.tests.is_empty() && found.targets.len() == binaries).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATE: &str = "\
     Running tests/sentinel/main.rs (t/sentinel-1)
test others::seed ... ok
test a_failover_is_followed ... FAILED

failures:

---- a_failover_is_followed stdout ----
Error: not within 20 s
    details

failures:
    a_failover_is_followed

test result: FAILED. 1 passed; 1 failed
error: 1 target failed:
    `-p caddy-tests --test sentinel`
";

    #[test]
    fn what_failed_by_its_time_is_tried_again() {
        let failures = Failures::found_in(LATE).unwrap();
        assert_eq!(failures.targets, ["--test sentinel".to_owned()].into());
        assert_eq!(failures.tests, ["a_failover_is_followed".to_owned()].into());
    }

    #[test]
    fn what_was_found_at_random_or_crashed_is_not() {
        assert_eq!(Failures::found_in(&LATE.replace("not within 20 s", "seed 7: promise broken: k steps back")), None);
        assert_eq!(Failures::found_in(&LATE.replace("not within 20 s", "minimal failing input: 3")), None);
        let crashed = "error: 1 target failed:\n    `-p caddy-tests --test sentinel`\n";
        assert_eq!(Failures::found_in(&format!("{LATE}{}", crashed.replace("sentinel", "other"))), None);
        assert_eq!(Failures::found_in("error[E0432]: unresolved import"), None);
    }
}
