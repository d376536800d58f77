//! One stage's log file, and the commands whose output goes into it. Owns the file; prints nothing to the terminal. A
//! command that cannot be started or ends badly is a `Failed` that names it.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::failed::{Failed, Result, Step};

/// How much of a log's end is looked at for progress and failures.
const TAIL_BYTES: u64 = 16 * 1024;

/// The log of one stage.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Makes an empty log file at `path`.
    pub(crate) fn create(path: PathBuf) -> Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).step(format!("create the log folder {}", folder.display()))?;
        }
        // Truncated first and then opened for appending: the commands' outputs share the file.
        File::create(&path).step(format!("create {}", path.display()))?;
        let file = OpenOptions::new().append(true).open(&path).step(format!("open {}", path.display()))?;
        Ok(Self { path, file })
    }

    /// Where the log is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// All that it says so far.
    pub(crate) fn text(&self) -> String {
        fs::read(&self.path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Adds a line of our own.
    pub(crate) fn note(&mut self, line: &str) -> Result {
        writeln!(self.file, "{line}").step(format!("write to {}", self.path.display()))
    }

    /// Runs a command to its end; its output goes into the log.
    pub(crate) fn run(&mut self, command: &mut Command) -> Result {
        let shown = shown(command);
        let status = self.spawn(command)?.wait().step(format!("wait for `{shown}`"))?;
        if status.success() { Ok(()) } else { Err(Failed::new(format!("`{shown}` ended with {status}"))) }
    }

    /// Starts a command whose output goes into the log.
    pub(crate) fn spawn(&mut self, command: &mut Command) -> Result<Child> {
        let shown = shown(command);
        self.note(&format!("$ {shown}"))?;
        command.stdin(Stdio::null()).stdout(self.handle()?).stderr(self.handle()?);
        command.spawn().step(format!("start `{shown}`"))
    }

    fn handle(&self) -> Result<File> {
        self.file.try_clone().step(format!("share {}", self.path.display()))
    }
}

/// A command as one would type it, without its environment.
pub(crate) fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

/// The last `count` lines of a log, oldest first; empty when there is none to read.
pub(crate) fn tail(path: &Path, count: usize) -> Vec<String> {
    let Ok(mut file) = File::open(path) else { return Vec::new() };
    let length = file.metadata().map_or(0, |about| about.len());
    let mut bytes = Vec::new();
    if file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES))).is_err() || file.read_to_end(&mut bytes).is_err() {
        return Vec::new();
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].iter().map(|line| (*line).to_owned()).collect()
}

/// What a log says of tests: each `test result:` line as cargo printed it, and before it which binary it is about.
pub(crate) fn test_results(path: &Path) -> Vec<String> {
    let Ok(text) = fs::read(path) else { return Vec::new() };
    results_in(&String::from_utf8_lossy(&text))
}

fn results_in(text: &str) -> Vec<String> {
    let mut binary = None;
    let mut found = Vec::new();
    for line in text.lines() {
        let trimmed = line.trim_start();
        if trimmed.starts_with("Running ") || trimmed.starts_with("Doc-tests ") {
            binary = Some(trimmed.to_owned());
        } else if line.starts_with("test result:") {
            found.extend(binary.take());
            found.push(line.to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_kept_word_for_word_with_the_binary_they_are_about() {
        let text = "   Compiling x\n     Running unittests src/lib.rs (t/x-1)\n\nrunning 2 tests\ntest a ... ok\n\
                    test result: ok. 2 passed; 0 failed\n   Doc-tests x\ntest result: FAILED. 0 passed; 1 failed\n";
        assert_eq!(
            results_in(text),
            [
                "Running unittests src/lib.rs (t/x-1)",
                "test result: ok. 2 passed; 0 failed",
                "Doc-tests x",
                "test result: FAILED. 0 passed; 1 failed"
            ]
        );
    }

    #[test]
    fn a_command_that_ends_badly_is_named() {
        let path = std::env::temp_dir().join(format!("caddy-xtask-{}.log", std::process::id()));
        let mut log = Log::create(path.clone()).unwrap();
        let error = log.run(Command::new("sh").args(["-c", "echo said; exit 3"])).unwrap_err();
        assert!(error.to_string().contains("exit status: 3"), "{error}");
        assert_eq!(tail(&path, 1), ["said"]);
        fs::remove_file(path).unwrap();
    }
}
