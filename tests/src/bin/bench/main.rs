//! The load generator behind `cargo xtask bench`: the same requests to a sidecar and to Redis (and Valkey), on Unix
//! sockets, one connection, the load on one core and the servers on another. Servers take turns within each round, and what
//! is compared are the medians of the rounds' ratios, so that a busy neighbour does not decide. Every reply is compared byte
//! for byte; a wrong one ends the run.

#![expect(clippy::disallowed_types, reason = "measures elapsed time, not staleness")]

mod load;
mod server;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use load::{Load, Measured, ROWS, Row};
use server::{Server, Servers};
use table::Table;

/// Requests in flight at one time.
const PIPELINES: [usize; 3] = [1, 16, 64];

/// What the command line says.
#[derive(Debug)]
pub(crate) struct Options {
    sidecar: PathBuf,
    redis: PathBuf,
    valkey: Option<PathBuf>,
    /// The core that all servers share; unpinned where there is only one.
    server_core: Option<String>,
    rounds: usize,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let (mut sidecar, mut redis, mut valkey, mut server_core, mut rounds) = (None, None, None, None, 7);
        while let Some(name) = arguments.next() {
            let value = arguments.next().with_context(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--sidecar" => sidecar = Some(value.into()),
                "--redis" => redis = Some(value.into()),
                "--valkey" => valkey = Some(value.into()),
                "--server-core" => server_core = Some(value),
                "--rounds" => rounds = value.parse().with_context(|| format!("--rounds {value}"))?,
                _ => bail!("unknown option {name}; `cargo xtask bench` calls this program"),
            }
        }
        let sidecar = sidecar.context("--sidecar names the binary to measure")?;
        let redis = redis.context("--redis names the redis-server to compare with")?;
        anyhow::ensure!(rounds > 0, "--rounds is at least 1");
        Ok(Self { sidecar, redis, valkey, server_core, rounds })
    }
}

fn main() -> ExitCode {
    match Options::parse(std::env::args().skip(1)).and_then(|options| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let servers = Servers::start(options)?;
    let mut loads: Vec<Load<'_>> = servers.iter().map(Load::prepare).collect::<Result<_>>()?;
    let mut table = Table::new(servers.iter().map(Server::name).collect(), options.rounds);
    for round in 0..options.rounds {
        println!("round {} of {}", round + 1, options.rounds);
        for row in ROWS {
            for pipeline in PIPELINES {
                let measured = in_turn(&mut loads, round, row, pipeline)?;
                table.add(row, pipeline, measured);
            }
        }
    }
    println!("\n{table}");
    Ok(())
}

/// Measures every server once; each round begins with another one.
fn in_turn(loads: &mut [Load<'_>], round: usize, row: Row, pipeline: usize) -> Result<Vec<Measured>> {
    let count = loads.len();
    let mut measured = vec![None; count];
    for turn in 0..count {
        let index = (round + turn) % count;
        measured[index] = Some(loads[index].measure(row, pipeline)?);
    }
    measured.into_iter().map(|one| one.context("every server has its turn")).collect()
}
