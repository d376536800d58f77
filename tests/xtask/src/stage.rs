//! Runs a plan of stages: those of one lane one after another, the lanes at once. Owns what the terminal shows (a line
//! when a stage starts and ends, a sign of life every 15 s, a table at the end); never runs a stage whose predecessor
//! failed, except those that clean up. A stage that panics counts as failed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::clock::{Shown, Stopwatch};
use crate::failed::{Failed, Result};
use crate::log::{self, Log};

/// How often a long stage says that it is alive.
const TICK: Duration = Duration::from_secs(15);
/// How many lines of a failed stage's log are shown.
const SHOWN_LINES: usize = 60;

/// Stages of one lane never run at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Whatever holds cargo's build directory.
    Cargo,
    /// What runs beside it, with lower priority where it is long.
    Side,
}

/// What a stage that did not fail has to say.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It did its work.
    Done,
    /// It did its work, and this is worth a word in the table.
    Noted(String),
    /// It had nothing to do here, and why.
    Skipped(String),
}

type Work = Box<dyn FnOnce(&mut Log) -> Result<Outcome> + Send>;

/// One stage of a plan.
pub(crate) struct Stage {
    name: &'static str,
    lane: Lane,
    after: Vec<&'static str>,
    always: bool,
    speaks: bool,
    work: Work,
}

impl Stage {
    /// A stage of that lane.
    pub(crate) fn new(
        lane: Lane,
        name: &'static str,
        work: impl FnOnce(&mut Log) -> Result<Outcome> + Send + 'static,
    ) -> Self {
        Self { name, lane, after: Vec::new(), always: false, speaks: false, work: Box::new(work) }
    }

    /// Waits for these stages, and is left out when one of them failed.
    pub(crate) fn after(mut self, names: &[&'static str]) -> Self {
        self.after.extend_from_slice(names);
        self
    }

    /// Runs even when a stage it waits for failed: for what cleans up.
    pub(crate) fn always(mut self) -> Self {
        self.always = true;
        self
    }

    /// Prints to the terminal itself: no signs of life in between.
    pub(crate) fn speaks(mut self) -> Self {
        self.speaks = true;
        self
    }
}

enum State {
    Waiting(Work),
    Running(Stopwatch),
    Ended { took: Duration, result: Result<Outcome> },
    LeftOut(String),
}

struct Row {
    name: &'static str,
    lane: Lane,
    after: Vec<&'static str>,
    always: bool,
    speaks: bool,
    log: PathBuf,
    state: State,
}

impl Row {
    fn over(&self) -> bool {
        matches!(self.state, State::Ended { .. } | State::LeftOut(_))
    }

    fn good(&self) -> bool {
        matches!(self.state, State::Ended { result: Ok(_), .. })
    }
}

/// Runs the plan to its end and prints the table; an error names the stages that failed.
pub(crate) fn run(title: &str, logs: &Path, plan: Vec<Stage>) -> Result {
    let watch = Stopwatch::start();
    println!("{title}: {} stages, logs in {}", plan.len(), logs.display());
    let mut rows: Vec<Row> = plan.into_iter().map(|stage| row(stage, logs)).collect();
    let (done, ended) = mpsc::channel();
    loop {
        start_what_can(&mut rows, &done, watch);
        if rows.iter().all(Row::over) {
            break;
        }
        match ended.recv_timeout(TICK) {
            Ok((index, took, result)) => {
                let row: &mut Row = &mut rows[index];
                row.state = State::Ended { took, result };
                announce(row, watch);
            }
            Err(mpsc::RecvTimeoutError::Timeout) => tick(&rows, watch),
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    summary(title, &rows, watch.elapsed())
}

fn row(stage: Stage, logs: &Path) -> Row {
    let file = format!("{}.log", stage.name.replace([' ', '/'], "-"));
    Row {
        name: stage.name,
        lane: stage.lane,
        after: stage.after,
        always: stage.always,
        speaks: stage.speaks,
        log: logs.join(file),
        state: State::Waiting(stage.work),
    }
}

type Ended = (usize, Duration, Result<Outcome>);

fn start_what_can(rows: &mut [Row], done: &mpsc::Sender<Ended>, watch: Stopwatch) {
    for index in 0..rows.len() {
        if !matches!(rows[index].state, State::Waiting(_)) {
            continue;
        }
        let before: Vec<&Row> = rows.iter().filter(|row| rows[index].after.contains(&row.name)).collect();
        if !before.iter().all(|row| row.over()) {
            continue;
        }
        if !rows[index].always
            && let Some(bad) = before.iter().find(|row| !row.good())
        {
            let reason = format!("needs \"{}\"", bad.name);
            rows[index].state = State::LeftOut(reason);
            continue;
        }
        let lane = rows[index].lane;
        if rows.iter().any(|row| row.lane == lane && matches!(row.state, State::Running(_))) {
            continue;
        }
        start(index, &mut rows[index], done.clone());
        say(watch, "start", rows[index].name, "");
    }
}

fn start(index: usize, row: &mut Row, done: mpsc::Sender<Ended>) {
    let watch = Stopwatch::start();
    let State::Waiting(work) = std::mem::replace(&mut row.state, State::Running(watch)) else { return };
    let path = row.log.clone();
    thread::spawn(move || {
        let result = catch_unwind(AssertUnwindSafe(|| Log::create(path).and_then(|mut log| work(&mut log))))
            .unwrap_or_else(|_| Err(Failed::new("the stage itself panicked")));
        // The receiver lives until every stage has reported.
        let _ = done.send((index, watch.elapsed(), result));
    });
}

fn announce(row: &Row, watch: Stopwatch) {
    let State::Ended { took, result } = &row.state else { return };
    let took = Shown(*took).to_string();
    match result {
        Ok(Outcome::Done) => say(watch, "ok", row.name, &took),
        Ok(Outcome::Noted(note)) => say(watch, "ok", row.name, &format!("{took}, {note}")),
        Ok(Outcome::Skipped(reason)) => say(watch, "skip", row.name, reason),
        Err(error) => {
            say(watch, "FAILED", row.name, &took);
            println!("--- {}: the last lines of {}", row.name, row.log.display());
            for line in log::tail(&row.log, SHOWN_LINES) {
                println!("{line}");
            }
            println!("--- {}: {error}", row.name);
        }
    }
    for line in log::test_results(&row.log) {
        println!("{line}");
    }
}

fn tick(rows: &[Row], watch: Stopwatch) {
    for row in rows.iter().filter(|row| !row.speaks) {
        if let State::Running(since) = &row.state {
            let last = log::tail(&row.log, 1).pop().unwrap_or_default();
            let last: String = last.trim().chars().take(90).collect();
            say(watch, "...", row.name, &format!("{}  {last}", Shown(since.elapsed())));
        }
    }
}

fn say(watch: Stopwatch, what: &str, name: &str, more: &str) {
    let at = watch.elapsed().as_secs();
    println!("{}", format!("[{:2}:{:02}] {what:6} {name:28} {more}", at / 60, at % 60).trim_end());
}

fn summary(title: &str, rows: &[Row], took: Duration) -> Result {
    println!("\n{:28} {:8} {:>14}", "stage", "result", "time");
    let mut failed = Vec::new();
    for row in rows {
        let (result, time, note) = match &row.state {
            State::Ended { took, result: Ok(Outcome::Done) } => ("ok", Shown(*took).to_string(), String::new()),
            State::Ended { took, result: Ok(Outcome::Noted(note)) } => ("ok", Shown(*took).to_string(), note.clone()),
            State::Ended { result: Ok(Outcome::Skipped(reason)), .. } => ("skipped", String::new(), reason.clone()),
            State::Ended { took, result: Err(_) } => {
                failed.push(row.name);
                ("FAILED", Shown(*took).to_string(), row.log.display().to_string())
            }
            State::LeftOut(reason) => ("left out", String::new(), reason.clone()),
            State::Waiting(_) | State::Running(_) => ("?", String::new(), String::new()),
        };
        println!("{}", format!("{:28} {result:8} {time:>14}  {note}", row.name).trim_end());
    }
    println!("{:28} {:8} {:>14}", title, if failed.is_empty() { "ok" } else { "FAILED" }, Shown(took).to_string());
    if failed.is_empty() { Ok(()) } else { Err(Failed::new(format!("failed: {}", failed.join(", ")))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logs(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("caddy-xtask-{name}-{}", std::process::id()))
    }

    #[test]
    fn a_failed_stage_leaves_out_what_needs_it_and_still_cleans_up() {
        let (seen, order) = mpsc::channel();
        let stage = |name: &'static str, result: fn() -> Result<Outcome>| {
            let seen = seen.clone();
            Stage::new(Lane::Cargo, name, move |_| {
                seen.send(name).unwrap();
                result()
            })
        };
        let fine = || Ok(Outcome::Done);
        let folder = logs("order");
        let result = run(
            "plan",
            &folder,
            vec![
                stage("up", fine),
                stage("use", || Err(Failed::new("no"))).after(&["up"]),
                stage("more", fine).after(&["use"]),
                stage("down", fine).after(&["more"]).always(),
            ],
        );
        assert_eq!(order.try_iter().collect::<Vec<_>>(), ["up", "use", "down"]);
        assert_eq!(result.unwrap_err().to_string(), "failed: use");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn lanes_run_at_once_and_a_panic_is_a_failure() {
        let (ask, asked) = mpsc::channel();
        let (answer, answered) = mpsc::channel();
        let folder = logs("lanes");
        let result = run(
            "plan",
            &folder,
            vec![
                // Each of the two waits for the other: in one lane this could not end well.
                Stage::new(Lane::Cargo, "asks", move |_| {
                    ask.send(()).unwrap();
                    answered.recv_timeout(Duration::from_secs(10)).unwrap();
                    Ok(Outcome::Done)
                }),
                Stage::new(Lane::Side, "answers", move |_| {
                    asked.recv_timeout(Duration::from_secs(10)).unwrap();
                    answer.send(()).unwrap();
                    Ok(Outcome::Done)
                }),
                Stage::new(Lane::Side, "panics", |_| panic!("on purpose")).after(&["answers"]),
            ],
        );
        assert_eq!(result.unwrap_err().to_string(), "failed: panics");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
