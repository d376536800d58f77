//! The load generator behind `cargo xtask bench`: the same requests to a sidecar, to Redis (and Valkey) and to floors, on
//! Unix sockets, the load on one core and the servers on another. Servers take turns within each round, and what is
//! compared are the medians of the rounds' ratios, so that a busy neighbour does not decide. Every reply is compared byte
//! for byte; a wrong one ends the run. Behind the table: how soon a foreign write kills a copy, what a sidecar costs
//! while nobody uses it, and how it compares with what one would do instead.

#![expect(clippy::disallowed_types, reason = "measures elapsed time, not staleness")]

mod alternatives;
mod behind;
mod delay;
mod floor;
mod footprint;
mod groups;
mod load;
mod locks;
mod pushes;
mod relay;
mod server;
mod sweeps;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use load::{CASES, Case, Load, Measured};
use server::Servers;
use table::Table;

/// What the command line says.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    sidecar: PathBuf,
    redis: PathBuf,
    valkey: Option<PathBuf>,
    /// The core that all servers share; unpinned where there is only one.
    server_core: Option<String>,
    rounds: usize,
    /// How many values carry the tag, and how many keys the pattern has, that are invalidated.
    entries: usize,
    /// Only rows whose name contains this, and nothing behind the table; `locks`, `groups`, `patterns`, `behind`: nothing
    /// but what those cost.
    only: Option<String>,
}

/// What this process is to do.
enum Task {
    Bench(Options),
    /// Be the floor, on this socket.
    Floor(PathBuf),
    /// Be the relay, from the first socket to the second.
    Relay(PathBuf, PathBuf),
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Task> {
    let (mut sidecar, mut redis, mut valkey, mut server_core, mut rounds, mut entries, mut only) =
        (None, None, None, None, 7, 100_000, None);
    while let Some(name) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--sidecar" => sidecar = Some(value.into()),
            "--redis" => redis = Some(value.into()),
            "--valkey" => valkey = Some(value.into()),
            "--server-core" => server_core = Some(value),
            "--rounds" => rounds = value.parse().with_context(|| format!("--rounds {value}"))?,
            "--entries" => entries = value.parse().with_context(|| format!("--entries {value}"))?,
            "--only" => only = Some(value),
            "--floor" => return Ok(Task::Floor(value.into())),
            "--relay" => {
                let data = arguments.next().context("--relay needs two sockets")?;
                return Ok(Task::Relay(value.into(), data.into()));
            }
            _ => bail!("unknown option {name}; `cargo xtask bench` calls this program"),
        }
    }
    let sidecar = sidecar.context("--sidecar names the binary to measure")?;
    let redis = redis.context("--redis names the redis-server to compare with")?;
    anyhow::ensure!(rounds > 0, "--rounds is at least 1");
    anyhow::ensure!(entries >= 1000, "--entries is at least 1000");
    Ok(Task::Bench(Options { sidecar, redis, valkey, server_core, rounds, entries, only }))
}

fn main() -> ExitCode {
    let done = parse(std::env::args().skip(1)).and_then(|task| match task {
        Task::Bench(options) => run(&options),
        Task::Floor(socket) => floor::run(&socket),
        Task::Relay(socket, data) => relay::run(&socket, &data),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let servers = Servers::start(options)?;
    if options.only.as_deref() == Some("locks") {
        println!("{}", locks::measure(&servers, options.rounds)?);
        return Ok(());
    }
    if options.only.as_deref() == Some("groups") {
        println!("{}", groups::measure(&servers, options.rounds, options.entries)?);
        return Ok(());
    }
    if options.only.as_deref() == Some("patterns") {
        println!("{}", sweeps::measure(&servers, options.rounds, options.entries)?);
        return Ok(());
    }
    if options.only.as_deref() == Some("behind") {
        println!("{}", behind::measure(&servers, options.rounds)?);
        return Ok(());
    }
    let mut loads: Vec<Load<'_>> = servers.iter().map(Load::prepare).collect::<Result<_>>()?;
    let mut table = Table::new(servers.iter().map(|one| (one.name(), one.kind())).collect(), options.rounds);
    let wanted = |case: &Case| options.only.as_ref().is_none_or(|only| case.name.contains(only.as_str()));
    for round in 0..options.rounds {
        println!("round {} of {}", round + 1, options.rounds);
        for (index, case) in CASES.iter().enumerate().filter(|(_, case)| wanted(case)) {
            table.add(index, in_turn(&mut loads, round, case)?);
        }
    }
    println!("\n{table}");
    if options.only.is_none() {
        drop(loads);
        println!("{}", pushes::measure(&servers, options.rounds)?);
        println!("{}", groups::measure(&servers, options.rounds, options.entries)?);
        println!("{}", sweeps::measure(&servers, options.rounds, options.entries)?);
        println!("{}", footprint::measure(&servers)?);
        println!("{}", locks::measure(&servers, options.rounds)?);
        println!("{}", behind::measure(&servers, options.rounds)?);
        println!("{}", alternatives::measure(&servers, options.rounds)?);
    }
    Ok(())
}

/// Measures every server once; each round begins with another one.
fn in_turn(loads: &mut [Load<'_>], round: usize, case: &Case) -> Result<Vec<Option<Measured>>> {
    let count = loads.len();
    let mut measured = vec![None; count];
    for turn in 0..count {
        let index = (round + turn) % count;
        if case.is_for(loads[index].server()) {
            measured[index] = Some(loads[index].measure(case)?);
        }
    }
    Ok(measured)
}
