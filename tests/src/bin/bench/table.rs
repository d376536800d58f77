//! What was measured, as one table: the medians of each server, and for the sidecar the medians of the ratios of each
//! round: to the better of Redis and Valkey in that round, and to the floor: for what goes to Redis that is the relay.

use std::fmt;

use crate::load::{CASES, Measured};
use crate::server::Kind;

/// Collects measurements and prints them.
pub(crate) struct Table {
    servers: Vec<(&'static str, Kind)>,
    rounds: usize,
    /// What was measured in one round, for all servers; by case.
    cells: Vec<Vec<Vec<Option<Measured>>>>,
}

/// One of the figures of a measurement, and whether more of it is better.
#[derive(Clone, Copy)]
struct Figure {
    of: fn(&Measured) -> f64,
    more_is_better: bool,
}

const P50: Figure = Figure { of: |one| one.p50, more_is_better: false };
const RATE: Figure = Figure { of: |one| one.rate, more_is_better: true };
const CPU: Figure = Figure { of: |one| one.cpu, more_is_better: false };

impl Table {
    /// An empty table of those servers.
    pub(crate) fn new(servers: Vec<(&'static str, Kind)>, rounds: usize) -> Self {
        Self { servers, rounds, cells: vec![Vec::new(); CASES.len()] }
    }

    /// Adds one round's measurements of a case, in the order of the servers.
    pub(crate) fn add(&mut self, case: usize, measured: Vec<Option<Measured>>) {
        self.cells[case].push(measured);
    }

    /// A server's median over the rounds.
    fn median_of(&self, case: usize, server: usize, figure: Figure) -> Option<f64> {
        median(self.cells[case].iter().filter_map(|round| round[server].as_ref().map(figure.of)).collect())
    }

    /// The median over the rounds of a server's figure divided by the best of a kind in the same round.
    fn ratio(&self, case: usize, server: usize, to: Kind, figure: Figure) -> Option<f64> {
        let ratios = self.cells[case].iter().filter_map(|round| {
            let others = self.servers.iter().zip(round).filter(|((_, kind), _)| *kind == to);
            let others = others.filter_map(|(_, measured)| measured.as_ref().map(figure.of));
            let best = others.reduce(if figure.more_is_better { f64::max } else { f64::min })?;
            Some((figure.of)(round[server].as_ref()?) / best)
        });
        median(ratios.collect())
    }
}

/// The middle of the values; of an even number, between the two.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[odd / 2]),
        even => Some(f64::midpoint(values[even / 2 - 1], values[even / 2])),
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Medians of {} rounds; 16-byte keys, 100-byte values and one connection on a Unix socket unless said.",
            self.rounds
        )?;
        writeln!(
            f,
            "p50: sending to last reply of what is in flight. CPU: all server processes, a sidecar's Redis too."
        )?;
        writeln!(
            f,
            "×: to the better of Redis and Valkey, and to the floor or, for what goes to Redis, a bare relay (p50, CPU), as \
             medians of the rounds' ratios.\n"
        )?;
        writeln!(
            f,
            "| {:36} | {:7} | {:>8} | {:>9} | {:>10} | {:>6} | {:>7} | {:>6} | {:>11} | {:>11} |",
            "", "server", "p50 µs", "req/s", "CPU µs/req", "p50 ×", "req/s ×", "CPU ×", "floor p50 ×", "floor CPU ×"
        )?;
        writeln!(f, "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|")?;
        for (case, row) in CASES.iter().enumerate() {
            for (index, (name, kind)) in self.servers.iter().enumerate() {
                let Some(p50) = self.median_of(case, index, P50) else { continue };
                let ratio = |to, figure| match kind {
                    Kind::Sidecar => {
                        self.ratio(case, index, to, figure).map_or_else(String::new, |x| format!("{x:.2}"))
                    }
                    Kind::Redis | Kind::Floor | Kind::Relay => String::new(),
                };
                // One of the two takes part in a row.
                let floor = |figure| ratio(Kind::Floor, figure) + &ratio(Kind::Relay, figure);
                writeln!(
                    f,
                    "| {:36} | {name:7} | {p50:>8.1} | {:>9.0} | {:>10.2} | {:>6} | {:>7} | {:>6} | {:>11} | {:>11} |",
                    row.name,
                    self.median_of(case, index, RATE).unwrap_or_default(),
                    self.median_of(case, index, CPU).unwrap_or_default(),
                    ratio(Kind::Redis, P50),
                    ratio(Kind::Redis, RATE),
                    ratio(Kind::Redis, CPU),
                    floor(P50),
                    floor(CPU),
                )?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_within_a_round_and_to_the_better_server() {
        let one = |p50| Some(Measured { p50, rate: 1.0, cpu: 1.0 });
        let servers = vec![("Redis", Kind::Redis), ("Valkey", Kind::Redis), ("sidecar", Kind::Sidecar)];
        let mut table = Table::new(servers, 3);
        // A slow neighbour in one round: the ratio of the medians would say 10 / 10.
        for (redis, valkey, sidecar) in [(10.0, 11.0, 5.0), (120.0, 100.0, 50.0), (11.0, 10.0, 10.0)] {
            table.add(0, vec![one(redis), one(valkey), one(sidecar)]);
        }
        assert!((table.ratio(0, 2, Kind::Redis, P50).unwrap() - 0.5).abs() < 1e-9);
        assert!(table.to_string().contains("0.50"));
        assert_eq!(table.ratio(0, 2, Kind::Floor, P50), None);
    }
}
