//! What a sidecar costs while nobody uses it: memory, memory for each idle connection, wake-ups, and what it asks of
//! Redis; and how soon after its start it answers.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::load::{get, key, set, timed, value};
use crate::server::Servers;

/// Connections that are opened to see what one costs.
const CONNECTIONS: usize = 1000;
/// How long nothing is done.
const IDLE: Duration = Duration::from_secs(5);

/// Measures a sidecar of its own, and says what was seen.
pub(crate) fn measure(servers: &Servers) -> Result<String> {
    let (behind, data) = servers.redis_behind("idle")?;
    let start = Instant::now();
    let sidecar = servers.sidecar("idle-sidecar", &data, behind)?;
    let first_answer = start.elapsed();
    let mut redis = sidecar.connect_to_data()?;
    thread::sleep(Duration::from_secs(1));
    let rss = memory(sidecar.pid())?;
    let (before, woken) = (commands(&mut redis)?, switches(sidecar.pid())?);
    thread::sleep(IDLE);
    let woken = switches(sidecar.pid())? - woken;
    // The INFO that ended the first count is in the second.
    let asked = commands(&mut redis)? - before - 1;
    let connected = field(&info(&mut redis, "clients")?, "connected_clients")? - 1;

    let mut apps: Vec<UnixStream> = (0..CONNECTIONS).map(|_| sidecar.connect()).collect::<Result<_>>()?;
    // Each has been used once: buffers that it keeps count.
    let value = value(100);
    let name = key("idle", 0);
    timed(&mut apps[..1], &[set(&name, &value)], 1, b"+OK\r\n")?;
    let reads = vec![get(&name); CONNECTIONS];
    timed(&mut apps, &reads, 1, &crate::load::bulk(&value))?;
    thread::sleep(Duration::from_millis(200));
    let each = (memory(sidecar.pid())?.saturating_sub(rss)) as f64 / CONNECTIONS as f64;
    Ok(format!(
        "A sidecar that nobody uses: RSS {:.1} MiB, {:.1} wake-ups/s, {asked} Redis commands in {} s over {connected} \
         connection(s); {each:.0} bytes for each idle app connection; first answer {} ms after its start.",
        rss as f64 / f64::from(1 << 20),
        woken as f64 / IDLE.as_secs_f64(),
        IDLE.as_secs(),
        first_answer.as_millis()
    ))
}

/// Resident bytes.
pub(crate) fn memory(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("read the memory of the sidecar")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>().context("VmRSS")? << 10)
}

/// How often its threads went to sleep, and so woke up.
fn switches(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("list the threads of the sidecar")? {
        let status = fs::read_to_string(task?.path().join("status")).context("read a thread's status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        sum += line.context("voluntary_ctxt_switches")?.trim().parse::<u64>().context("voluntary_ctxt_switches")?;
    }
    Ok(sum)
}

fn commands(redis: &mut UnixStream) -> Result<u64> {
    field(&info(redis, "stats")?, "total_commands_processed")
}

fn field(info: &str, name: &str) -> Result<u64> {
    let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.with_context(|| format!("INFO says nothing of {name}"))?.trim().parse().context("a count of INFO")
}

fn info(redis: &mut UnixStream, section: &str) -> Result<String> {
    redis.write_all(format!("INFO {section}\r\n").as_bytes())?;
    let mut reply = Vec::new();
    loop {
        let mut some = [0; 4096];
        let read = redis.read(&mut some)?;
        anyhow::ensure!(read > 0, "Redis closed the connection");
        reply.extend_from_slice(&some[..read]);
        let text = String::from_utf8_lossy(&reply);
        if let Some((head, body)) = text.split_once("\r\n")
            && head.trim_start_matches('$').parse::<usize>().is_ok_and(|length| body.len() >= length + 2)
        {
            return Ok(body.to_owned());
        }
    }
}
