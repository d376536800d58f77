//! Act one: a real Redis and two sidecars on this machine, as two pods would have them. Everything printed is measured
//! here and now.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::client::{Client, Reply};
use super::process::{Scratch, Server, answers_at, answers_on, free_port};
use super::story::{chapter, does, median_get, micros, must, sees, until_seen};
use crate::clock::{Stopwatch, wait_until};
use crate::failed::{Failed, Result, Step};
use crate::log::Log;
use crate::place::Place;
use crate::stage::Outcome;

/// The bound that the sidecars of the demo are given; also their default.
const MAX_STALENESS: Duration = Duration::from_secs(1);
/// What the demo's own measuring and two busy cores may add to the bound.
const SLACK: Duration = Duration::from_millis(250);
/// How soon a sidecar must find a Redis that is back: its pause between two attempts is shorter.
const RECOVERY: Duration = Duration::from_secs(5);
/// Reads per measurement.
const READS: usize = 2000;

struct Stage1<'a> {
    scratch: Scratch,
    port: u16,
    log: &'a mut Log,
}

/// Plays act one.
pub(crate) fn play(place: &Place, log: &mut Log) -> Result<Outcome> {
    println!("\n  Act one: one Redis and two sidecars on this machine");
    let mut stage = Stage1 { scratch: Scratch::make("demo")?, port: free_port()?, log };
    chapter("The set");
    let mut redis = stage.redis()?;
    let binary = place.binary("quick", "caddy-sidecar");
    let _a = stage.sidecar(&binary, "a")?;
    let _b = stage.sidecar(&binary, "b")?;
    let mut direct = Client::tcp(stage.port)?;
    let mut a = Client::unix(&stage.scratch.file("a.sock"))?;
    let mut b = Client::unix(&stage.scratch.file("b.sock"))?;

    reads_get_fast(&mut direct, &mut a)?;
    writes_are_seen(stage.port, &mut a, &mut b)?;
    redis_hangs(&redis, &mut a)?;
    redis = redis_dies_and_returns(redis, &mut stage, &mut a, &mut b)?;
    drop(redis);
    println!();
    Ok(Outcome::Done)
}

impl Stage1<'_> {
    fn redis(&mut self) -> Result<Server> {
        let port = self.port;
        let mut command = Command::new(crate::need::which("redis-server").unwrap_or_else(|| "redis-server".into()));
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port", &port.to_string()]);
        let server = Server::start("redis-server", &mut command, self.log, || answers_on(port))?;
        does(format_args!("redis-server on 127.0.0.1:{port}"));
        Ok(server)
    }

    fn sidecar(&mut self, binary: &Path, name: &str) -> Result<Server> {
        let socket = self.scratch.file(&format!("{name}.sock"));
        let config = self.scratch.file(&format!("{name}.yaml"));
        let text = format!(
            "listen: {{socket: {}}}\nadmin: {{port: {}}}\nl3: {{redis: {{endpoints: [\"127.0.0.1:{}\"]}}}}\nconsistency: {{maxStaleness: {}s}}\n",
            socket.display(),
            free_port()?,
            self.port,
            MAX_STALENESS.as_secs(),
        );
        std::fs::write(&config, text).step(format!("write {}", config.display()))?;
        let mut command = Command::new(binary);
        command.arg("--config").arg(&config);
        let server = Server::start("caddy-sidecar", &mut command, self.log, || answers_at(&socket))?;
        does(format_args!("sidecar {} on {}", name.to_uppercase(), socket.display()));
        Ok(server)
    }
}

fn reads_get_fast(direct: &mut Client, a: &mut Client) -> Result {
    chapter("Reads get fast");
    ok(a, &["SET", "product:1", "a red bicycle"])?;
    does("SET product:1 \"a red bicycle\" through A, then GET it through A");
    let watch = Stopwatch::start();
    let first = a.call(&["GET", "product:1"])?;
    let took = watch.elapsed();
    must(first.text() == Some("a red bicycle"), format_args!("the value that was written, not {first}"))?;
    sees(format_args!("first read, from Redis:  {}", micros(took)));
    let from_redis = median_get(direct, "product:1", READS)?;
    let from_a = median_get(a, "product:1", READS)?;
    sees(format_args!("later, through A:        {} (median of {READS})", micros(from_a)));
    sees(format_args!("the same, from Redis:    {} (over TCP, as an app without a sidecar)", micros(from_redis)));
    must(from_a < from_redis, "a hit is quicker than a trip to Redis")?;
    does("CACHE.WHY product:1");
    let why = a.call(&["CACHE.WHY", "product:1"])?;
    must(!matches!(why, Reply::Error(_)), format_args!("CACHE.WHY explains; it said {why}"))?;
    sees(pairs(&why));
    Ok(())
}

fn writes_are_seen(port: u16, a: &mut Client, b: &mut Client) -> Result {
    chapter("Every copy dies when somebody writes");
    expect_value(b, "product:1", "a red bicycle")?;
    does("B has its own copy by now. SET product:1 \"a blue bicycle\" through A");
    ok(a, &["SET", "product:1", "a blue bicycle"])?;
    expect_value(a, "product:1", "a blue bicycle")?;
    let took = until_seen(b, "product:1", "a blue bicycle", MAX_STALENESS)?;
    sees(format_args!("A reads it at once, B after {}", micros(took)));

    does("redis-cli SET product:1 \"a green bicycle\", past both sidecars");
    let cli = crate::need::which("redis-cli").ok_or_else(|| Failed::new("redis-cli is not installed"))?;
    let mut command = Command::new(cli);
    command.args(["-p", &port.to_string(), "SET", "product:1", "a green bicycle"]);
    let output = command.output().step("run redis-cli")?;
    must(output.status.success() && output.stdout.starts_with(b"OK"), "redis-cli says OK")?;
    let in_a = until_seen(a, "product:1", "a green bicycle", MAX_STALENESS)?;
    let in_b = until_seen(b, "product:1", "a green bicycle", MAX_STALENESS)?;
    sees(format_args!(
        "asked right after redis-cli ended: A had it after {}, then B after {}",
        micros(in_a),
        micros(in_b)
    ));
    Ok(())
}

fn redis_hangs(redis: &Server, a: &mut Client) -> Result {
    chapter("Redis hangs: staleness is a bound that is enforced");
    expect_value(a, "product:1", "a green bicycle")?;
    does(format_args!("SIGSTOP to Redis; A is asked all the time (maxStaleness is {} s)", MAX_STALENESS.as_secs()));
    redis.signal("STOP")?;
    let watch = Stopwatch::start();
    let mut served = 0_u64;
    let (last_served, refusal) = loop {
        // The moment the request is sent is what the promise is about.
        let asked = watch.elapsed();
        match a.call(&["GET", "product:1"])? {
            Reply::Text(_) => served += 1,
            other => break (asked, other),
        }
        let limit = MAX_STALENESS + SLACK;
        must(asked <= limit, format_args!("no copy is served {asked:?} after Redis stopped answering"))?;
    };
    must(served > 0, "A served its proven copy for a while")?;
    must(matches!(refusal, Reply::Error(_)), format_args!("then a clear error, not {refusal}"))?;
    sees(format_args!(
        "{served} reads from A's copy; the one asked after {:.2} s was refused:",
        last_served.as_secs_f64()
    ));
    sees(&refusal);
    does("SIGCONT");
    redis.signal("CONT")?;
    let watch = Stopwatch::start();
    let back = wait_until(RECOVERY, || {
        a.call(&["GET", "product:1"]).is_ok_and(|reply| reply.text() == Some("a green bicycle"))
    });
    must(back, "A answers again when Redis does")?;
    sees(format_args!("A answers again after {:.2} s", watch.elapsed().as_secs_f64()));
    Ok(())
}

fn redis_dies_and_returns(mut redis: Server, stage: &mut Stage1<'_>, a: &mut Client, b: &mut Client) -> Result<Server> {
    chapter("Redis dies and comes back empty");
    does("SIGKILL to Redis");
    redis.kill()?;
    let refused = wait_until(MAX_STALENESS + SLACK, || {
        [&mut *a, &mut *b].into_iter().all(|client| matches!(client.call(&["GET", "product:1"]), Ok(Reply::Error(_))))
    });
    must(refused, "neither sidecar serves a copy longer than the bound")?;
    sees(format_args!("GET product:1  -> {}", a.call(&["GET", "product:1"])?));
    let ping = a.call(&["PING"])?;
    must(ping == Reply::Text("PONG".into()), "the socket itself goes on working")?;
    sees(format_args!("PING           -> {ping}"));
    does("a new, empty Redis on the same port");
    let redis = stage.redis()?;
    for (name, client) in [("A", &mut *a), ("B", &mut *b)] {
        let watch = Stopwatch::start();
        let nil = wait_until(RECOVERY, || client.call(&["GET", "product:1"]).is_ok_and(|reply| reply == Reply::Nil));
        must(nil, format_args!("{name} answers what the new Redis holds, which is nothing"))?;
        sees(format_args!("{name} answers (nil), not its old copy, after {:.2} s", watch.elapsed().as_secs_f64()));
    }
    // Writes travel on another connection than reads, which may have been refused a moment ago and wait to try again.
    let watch = Stopwatch::start();
    let written = wait_until(RECOVERY, || ok(b, &["SET", "product:1", "a new bicycle"]).is_ok());
    must(written, format_args!("B writes again within {} s", RECOVERY.as_secs()))?;
    let took = watch.elapsed().as_secs_f64();
    until_seen(a, "product:1", "a new bicycle", MAX_STALENESS)?;
    sees(format_args!("SET through B after {took:.2} s, GET through A: \"a new bicycle\""));
    Ok(redis)
}

fn ok(client: &mut Client, command: &[&str]) -> Result {
    let reply = client.call(command)?;
    must(reply == Reply::Text("OK".into()), format_args!("{} answers OK, not {reply}", command.join(" ")))
}

fn expect_value(client: &mut Client, key: &str, value: &str) -> Result {
    let reply = client.call(&["GET", key])?;
    must(reply.text() == Some(value), format_args!("GET {key} answers \"{value}\", not {reply}"))
}

/// A reply of names and values, a pair to a line.
fn pairs(reply: &Reply) -> String {
    let Reply::List(items) = reply else { return reply.to_string() };
    let words: Vec<String> = items.iter().map(Reply::bare).collect();
    let lines: Vec<String> = words.chunks(2).map(|pair| format!("{:10} {}", pair[0], pair[1..].concat())).collect();
    lines.join("\n")
}
