//! The requests, and one measurement: connections, a number of requests in flight on each, and every reply compared with
//! the only right one. Keys have 16 bytes.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::server::{Kind, Server};

/// What the requests are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// GETs of few keys that everybody has in memory.
    Hit,
    /// GETs of keys that nobody has read since they were last written; for a Redis as any other GET.
    Miss,
    /// SETs.
    Write,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    /// What the table calls it.
    pub(crate) name: &'static str,
    operation: Operation,
    /// Bytes of a value.
    value: usize,
    connections: usize,
    /// Requests in flight on each connection.
    pipeline: usize,
    /// Requests of one measurement.
    requests: usize,
}

impl Case {
    const fn new(name: &'static str, operation: Operation, requests: usize) -> Self {
        Self { name, operation, value: 100, connections: 1, pipeline: 1, requests }
    }

    const fn pipeline(mut self, pipeline: usize) -> Self {
        self.pipeline = pipeline;
        self
    }

    const fn value(mut self, bytes: usize) -> Self {
        self.value = bytes;
        self
    }

    const fn connections(mut self, connections: usize) -> Self {
        self.connections = connections;
        self
    }

    /// Whether a server takes part: the floor, which knows no Redis, in hits only, and the relay, which keeps nothing, in all
    /// else.
    pub(crate) fn is_for(&self, server: &Server) -> bool {
        match server.kind() {
            Kind::Floor => self.operation == Operation::Hit,
            Kind::Relay => self.operation != Operation::Hit,
            Kind::Redis | Kind::Sidecar => true,
        }
    }

    fn hot_keys(&self) -> usize {
        if self.value > 4096 { 16 } else { 100 }
    }
}

/// All rows, in the order of the table.
pub(crate) const CASES: [Case; 12] = [
    Case::new("GET hit", Operation::Hit, 12_800),
    Case::new("GET hit, 50 connections", Operation::Hit, 25_000).connections(50),
    Case::new("GET hit, pipeline 16", Operation::Hit, 64_000).pipeline(16),
    Case::new("GET hit, 50 connections, pipeline 16", Operation::Hit, 128_000).connections(50).pipeline(16),
    Case::new("GET hit, pipeline 64", Operation::Hit, 64_000).pipeline(64),
    Case::new("GET hit, 1 KiB, pipeline 64", Operation::Hit, 64_000).pipeline(64).value(1 << 10),
    Case::new("GET hit, 64 KiB", Operation::Hit, 3_200).value(64 << 10),
    Case::new("GET miss", Operation::Miss, COLD_KEYS),
    Case::new("GET miss, pipeline 16", Operation::Miss, COLD_KEYS).pipeline(16),
    Case::new("SET", Operation::Write, 12_800),
    Case::new("SET, pipeline 16", Operation::Write, 64_000).pipeline(16),
    Case::new("SET, pipeline 64", Operation::Write, 64_000).pipeline(64),
];

/// Keys of the rows of misses, each read once per measurement.
const COLD_KEYS: usize = 12_800;
/// Keys of the rows of writes.
const WRITTEN_KEYS: usize = 1000;
/// Reads per hot key beforehand: more than it takes to reach L1.
const WARM_UPS: usize = 50;
/// How long a foreign write may take to reach the sidecar's copy before a measurement of misses begins.
const SETTLE: Duration = Duration::from_millis(50);

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
    connections: Vec<UnixStream>,
    data: UnixStream,
}

impl<'a> Load<'a> {
    /// Connects, writes the keys and reads the hot ones until a cache has them close by.
    pub(crate) fn prepare(server: &'a Server) -> Result<Self> {
        let most = CASES.iter().map(|case| case.connections).max().unwrap_or(1);
        let connections = (0..most).map(|_| server.connect()).collect::<Result<_>>()?;
        let mut this = Self { server, connections, data: server.connect_to_data()? };
        for case in CASES.iter().filter(|case| case.operation == Operation::Hit) {
            let value = value(case.value);
            let hot: Vec<_> = (0..case.hot_keys()).map(|number| set(&case.hot_key(number), &value)).collect();
            this.send_to_data(&hot)?;
            let reads: Vec<_> = (0..case.hot_keys()).map(|number| get(&case.hot_key(number))).collect();
            for _ in 0..WARM_UPS {
                timed(&mut this.connections[..1], &reads, 1, &bulk(&value))?;
            }
        }
        Ok(this)
    }

    pub(crate) fn server(&self) -> &Server {
        self.server
    }

    /// One measurement.
    pub(crate) fn measure(&mut self, case: &Case) -> Result<Measured> {
        let count = case.requests;
        let value = value(case.value);
        let (requests, reply): (Vec<Vec<u8>>, Vec<u8>) = match case.operation {
            Operation::Hit => {
                let keys = (0..count).map(|number| case.hot_key(number % case.hot_keys()));
                (keys.map(|key| get(&key)).collect(), bulk(&value))
            }
            Operation::Miss => {
                // Written past the sidecar, so that it has no copy of any.
                let cold: Vec<_> = (0..COLD_KEYS).map(|number| set(&key("cold", number), &value)).collect();
                self.send_to_data(&cold)?;
                thread::sleep(SETTLE);
                ((0..count).map(|number| get(&key("cold", number % COLD_KEYS))).collect(), bulk(&value))
            }
            Operation::Write => {
                let keys = (0..count).map(|number| key("written", number % WRITTEN_KEYS));
                (keys.map(|key| set(&key, &value)).collect(), b"+OK\r\n".to_vec())
            }
        };
        let cpu = self.server.cpu()?;
        let start = Instant::now();
        let mut times = timed(&mut self.connections[..case.connections], &requests, case.pipeline, &reply)
            .with_context(|| format!("{}, {}", self.server.name(), case.name))?;
        let elapsed = start.elapsed();
        let cpu = self.server.cpu()?.saturating_sub(cpu);
        Ok(Measured {
            p50: micros(percentile(&mut times, 50)),
            rate: count as f64 / elapsed.as_secs_f64(),
            cpu: micros(cpu) / count as f64,
        })
    }

    fn send_to_data(&mut self, writes: &[Vec<u8>]) -> Result<()> {
        timed(std::slice::from_mut(&mut self.data), writes, 16, b"+OK\r\n").context("write the keys").map(|_| ())
    }
}

impl Case {
    /// Hot keys of different sizes are different keys.
    fn hot_key(&self, number: usize) -> String {
        key(&format!("hot{:x}", self.value), number)
    }
}

/// Sends the requests, `pipeline` in one write on each connection in turn, and checks each reply; the times from the first
/// write to the last reply of such a round over the connections.
pub(crate) fn timed(
    connections: &mut [UnixStream],
    requests: &[Vec<u8>],
    pipeline: usize,
    reply: &[u8],
) -> Result<Vec<Duration>> {
    let batches: Vec<Vec<u8>> = requests.chunks(pipeline).map(<[Vec<u8>]>::concat).collect();
    let mut buffer = vec![0; reply.len() * pipeline];
    let mut times = Vec::with_capacity(batches.len());
    let lengths: Vec<usize> = requests.chunks(pipeline).map(<[Vec<u8>]>::len).collect();
    for (batches, lengths) in batches.chunks(connections.len()).zip(lengths.chunks(connections.len())) {
        let sent = Instant::now();
        for (stream, batch) in connections.iter_mut().zip(batches) {
            stream.write_all(batch).context("send")?;
        }
        for (stream, length) in connections.iter_mut().zip(lengths) {
            let wanted = &mut buffer[..reply.len() * length];
            stream.read_exact(wanted).context("wait for the replies")?;
            if let Some(wrong) = wanted.chunks(reply.len()).find(|got| *got != reply) {
                let shown = wrong.len().min(200);
                bail!("a wrong reply: {}", wrong[..shown].escape_ascii());
            }
        }
        times.push(sent.elapsed());
    }
    Ok(times)
}

/// The time below which `percent` of the times lie.
pub(crate) fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    let at = (times.len() * percent / 100).min(times.len() - 1);
    *times.select_nth_unstable(at).1
}

/// In microseconds.
pub(crate) fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

pub(crate) fn key(kind: &str, number: usize) -> String {
    format!("{kind:.<9}{number:07}")
}

pub(crate) fn get(key: &str) -> Vec<u8> {
    format!("*2\r\n$3\r\nGET\r\n${}\r\n{key}\r\n", key.len()).into_bytes()
}

pub(crate) fn set(key: &str, value: &[u8]) -> Vec<u8> {
    let head = format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n", key.len());
    [head.as_bytes(), &bulk(value)].concat()
}

/// A bulk string.
pub(crate) fn bulk(value: &[u8]) -> Vec<u8> {
    [format!("${}\r\n", value.len()).as_bytes(), value, b"\r\n"].concat()
}

pub(crate) fn value(bytes: usize) -> Vec<u8> {
    vec![b'v'; bytes]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_sixteen_bytes_and_every_case_divides_evenly() {
        assert!([key("hot10000", 7), key("cold", COLD_KEYS), key("written", 999)].iter().all(|key| key.len() == 16));
        for case in CASES {
            assert_eq!(case.requests % (case.pipeline * case.connections), 0, "{}", case.name);
            assert_eq!(case.hot_key(1).len(), 16);
        }
    }

    #[test]
    fn a_wrong_reply_ends_the_measurement() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"+OK\r\n-NO\r\n").unwrap();
        let error = timed(&mut [ours], &[set("a", b"1"), set("b", b"2")], 1, b"+OK\r\n").unwrap_err();
        assert!(error.to_string().contains("-NO"), "{error}");
    }

    #[test]
    fn a_percentile_is_one_of_the_times() {
        let mut times: Vec<_> = (1..=100).rev().map(Duration::from_micros).collect();
        assert_eq!(percentile(&mut times, 50), Duration::from_micros(51));
        assert_eq!(percentile(&mut times, 99), Duration::from_micros(100));
    }
}
