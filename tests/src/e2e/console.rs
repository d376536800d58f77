//! A Redis client that stays connected inside an app container, so that a command costs microseconds and not the start of a
//! process: `app.py console` of `tests/manifests/shop.yaml`, over `kubectl exec`. It ends when dropped.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::cluster::{Cluster, Pod};

/// How long one command may take, its way through the API server included.
const DEADLINE: Duration = Duration::from_secs(15);

/// What a command got.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The reply, or the error's message as the client library tells it.
    pub outcome: Result<Value, String>,
    /// How long the client waited, measured inside the pod.
    pub taken: Duration,
}

/// A connected client.
#[derive(Debug)]
pub struct Console {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    name: String,
}

impl Console {
    /// Connects the app's client in `container` of `pod`.
    pub fn open(cluster: &Cluster, pod: &Pod, container: &str) -> Result<Self> {
        let mut command = cluster.command();
        command.args(["exec", "-i", "-n", &pod.namespace, &pod.name, "-c", container, "--"]);
        command.args(["python3", "/app/app.py", "console"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start kubectl exec")?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("no pipes to kubectl exec")
        };
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut console = Self { child, input, lines, name: pod.name.clone() };
        // the first answer waits for Python to start
        console.run(&["PING"])?;
        Ok(console)
    }

    /// Runs one command.
    pub fn run(&mut self, words: &[&str]) -> Result<Answer> {
        let line = serde_json::to_string(words)?;
        writeln!(self.input, "{line}").with_context(|| format!("the console in {} has ended", self.name))?;
        let line =
            self.lines.recv_timeout(DEADLINE).with_context(|| format!("{words:?} got no answer in {}", self.name))?;
        let answer: Value = serde_json::from_str(&line).with_context(|| format!("the console said {line}"))?;
        let outcome = match answer["error"].as_str() {
            Some(error) => Err(error.to_owned()),
            None => Ok(answer["reply"].clone()),
        };
        Ok(Answer { outcome, taken: Duration::from_micros(answer["micros"].as_u64().unwrap_or_default()) })
    }

    /// Runs one command that must not fail, and returns its reply; a nil is `Value::Null`.
    pub fn reply(&mut self, words: &[&str]) -> Result<Value> {
        match self.run(words)?.outcome {
            Ok(reply) => Ok(reply),
            Err(error) => bail!("{words:?} in {}: {error}", self.name),
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // Both fail only when it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
