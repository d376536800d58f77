//! The requests, and one measurement: a connection, a number of requests in flight, and every reply compared with the only
//! right one. Keys have 16 bytes, values 100.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::server::Server;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Row {
    /// GETs of few keys that everybody has in memory.
    Hit,
    /// GETs of keys that nobody has read since they were last written; for a Redis as any other GET.
    Miss,
    /// SETs.
    Write,
}

/// All rows, in the order of the table.
pub(crate) const ROWS: [Row; 3] = [Row::Hit, Row::Miss, Row::Write];

impl Row {
    /// What the table calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Hit => "GET hit",
            Self::Miss => "GET miss",
            Self::Write => "write (SET)",
        }
    }
}

/// Keys of the hit row: L1 holds them all.
const HOT_KEYS: usize = 100;
/// Keys of the miss row, each read once per measurement.
const COLD_KEYS: usize = 12_800;
/// Keys of the write row.
const WRITTEN_KEYS: usize = 1000;
/// Requests of one measurement without and with a pipeline; both are multiples of every pipeline.
const SINGLE_REQUESTS: usize = 12_800;
const PIPELINED_REQUESTS: usize = 64_000;
/// Reads per hot key beforehand: more than it takes to reach L1.
const WARM_UPS: usize = 50;
/// How long a foreign write may take to reach the sidecar's copy before a measurement of misses begins.
const SETTLE: Duration = Duration::from_millis(50);

const VALUE: [u8; 100] = [b'v'; 100];

/// What one measurement gave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    /// Median time from sending to the last reply of what was in flight, in microseconds.
    pub(crate) p50: f64,
    /// Requests per second.
    pub(crate) rate: f64,
    /// Microseconds of CPU time of the server's processes per request.
    pub(crate) cpu: f64,
}

/// The load on one server.
pub(crate) struct Load<'a> {
    server: &'a Server,
    connection: UnixStream,
    data: UnixStream,
}

impl<'a> Load<'a> {
    /// Connects, writes the keys and reads the hot ones until a cache has them close by.
    pub(crate) fn prepare(server: &'a Server) -> Result<Self> {
        let mut this = Self { server, connection: server.connect()?, data: server.connect_to_data()? };
        let hot: Vec<Vec<u8>> = (0..HOT_KEYS).map(|number| set(&key("hot", number))).collect();
        this.send_to_data(&hot)?;
        let reads: Vec<Vec<u8>> = (0..HOT_KEYS).map(|number| get(&key("hot", number))).collect();
        for _ in 0..WARM_UPS {
            timed(&mut this.connection, &reads, 1, &value_reply())?;
        }
        Ok(this)
    }

    /// One measurement.
    pub(crate) fn measure(&mut self, row: Row, pipeline: usize) -> Result<Measured> {
        let count = if pipeline == 1 || row == Row::Miss { SINGLE_REQUESTS } else { PIPELINED_REQUESTS };
        let (requests, reply): (Vec<Vec<u8>>, Vec<u8>) = match row {
            Row::Hit => ((0..count).map(|number| get(&key("hot", number % HOT_KEYS))).collect(), value_reply()),
            Row::Miss => {
                // Written past the sidecar, so that it has no copy of any.
                let cold: Vec<Vec<u8>> = (0..COLD_KEYS).map(|number| set(&key("cold", number))).collect();
                self.send_to_data(&cold)?;
                thread::sleep(SETTLE);
                ((0..count).map(|number| get(&key("cold", number % COLD_KEYS))).collect(), value_reply())
            }
            Row::Write => {
                ((0..count).map(|number| set(&key("written", number % WRITTEN_KEYS))).collect(), b"+OK\r\n".to_vec())
            }
        };
        let cpu = self.server.cpu()?;
        let start = Instant::now();
        let mut times = timed(&mut self.connection, &requests, pipeline, &reply)
            .with_context(|| format!("{}, {}, {pipeline} in flight", self.server.name(), row.name()))?;
        let elapsed = start.elapsed();
        let cpu = self.server.cpu()?.saturating_sub(cpu);
        let middle = times.len() / 2;
        let (_, p50, _) = times.select_nth_unstable(middle);
        Ok(Measured {
            p50: p50.as_secs_f64() * 1e6,
            rate: count as f64 / elapsed.as_secs_f64(),
            cpu: cpu.as_secs_f64() * 1e6 / count as f64,
        })
    }

    fn send_to_data(&mut self, writes: &[Vec<u8>]) -> Result<()> {
        timed(&mut self.data, writes, 64, b"+OK\r\n").context("write the keys").map(|_| ())
    }
}

/// Sends the requests, `pipeline` in one write, and checks each reply; the times of the batches.
fn timed(stream: &mut UnixStream, requests: &[Vec<u8>], pipeline: usize, reply: &[u8]) -> Result<Vec<Duration>> {
    let batches: Vec<Vec<u8>> = requests.chunks(pipeline).map(<[Vec<u8>]>::concat).collect();
    let mut buffer = vec![0; reply.len() * pipeline];
    let mut times = Vec::with_capacity(batches.len());
    for (batch, requests) in batches.iter().zip(requests.chunks(pipeline)) {
        let wanted = &mut buffer[..reply.len() * requests.len()];
        let sent = Instant::now();
        stream.write_all(batch).context("send")?;
        stream.read_exact(wanted).context("wait for the replies")?;
        times.push(sent.elapsed());
        if let Some(wrong) = wanted.chunks(reply.len()).find(|got| *got != reply) {
            bail!("a wrong reply: {} instead of {}", wrong.escape_ascii(), reply.escape_ascii());
        }
    }
    Ok(times)
}

fn key(kind: &str, number: usize) -> String {
    format!("{kind:.<9}{number:07}")
}

fn get(key: &str) -> Vec<u8> {
    format!("*2\r\n$3\r\nGET\r\n${}\r\n{key}\r\n", key.len()).into_bytes()
}

fn set(key: &str) -> Vec<u8> {
    let head = format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n", key.len(), VALUE.len());
    [head.as_bytes(), &VALUE, b"\r\n"].concat()
}

fn value_reply() -> Vec<u8> {
    [format!("${}\r\n", VALUE.len()).as_bytes(), &VALUE, b"\r\n"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_sixteen_bytes_and_every_pipeline_divides_the_requests() {
        assert!([key("hot", 7), key("cold", COLD_KEYS), key("written", 999)].iter().all(|key| key.len() == 16));
        for pipeline in crate::PIPELINES {
            assert_eq!((SINGLE_REQUESTS % pipeline, PIPELINED_REQUESTS % pipeline), (0, 0));
        }
    }

    #[test]
    fn a_wrong_reply_ends_the_measurement() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"+OK\r\n-NO\r\n").unwrap();
        let error = timed(&mut ours, &[set("a"), set("b")], 1, b"+OK\r\n").unwrap_err();
        assert!(error.to_string().contains("-NO"), "{error}");
    }
}
