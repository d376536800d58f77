//! What was measured, as one table: the medians of each server, and for all but the first the medians of the ratios of
//! each round to the first server in the same round.

use std::fmt;

use crate::PIPELINES;
use crate::load::{Measured, ROWS, Row};

/// Collects measurements and prints them.
pub(crate) struct Table {
    names: Vec<&'static str>,
    rounds: usize,
    /// What was measured in one round, for all servers.
    cells: Vec<(Row, usize, Vec<Measured>)>,
}

impl Table {
    /// An empty table of those servers.
    pub(crate) fn new(names: Vec<&'static str>, rounds: usize) -> Self {
        Self { names, rounds, cells: Vec::new() }
    }

    /// Adds one round's measurements, in the order of the names.
    pub(crate) fn add(&mut self, row: Row, pipeline: usize, measured: Vec<Measured>) {
        self.cells.push((row, pipeline, measured));
    }

    /// The median over the rounds of what `of` makes of a round.
    fn median(&self, row: Row, pipeline: usize, of: impl Fn(&[Measured]) -> f64) -> f64 {
        let rounds = self.cells.iter().filter(|(of_row, of_pipeline, _)| (*of_row, *of_pipeline) == (row, pipeline));
        let mut values: Vec<f64> = rounds.map(|(_, _, measured)| of(measured)).collect();
        values.sort_by(f64::total_cmp);
        match values.len() {
            0 => f64::NAN,
            odd if odd % 2 == 1 => values[odd / 2],
            even => f64::midpoint(values[even / 2 - 1], values[even / 2]),
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let base = self.names.first().copied().unwrap_or_default();
        writeln!(
            f,
            "Medians of {} rounds; 16-byte keys, 100-byte values, one connection on a Unix socket.",
            self.rounds
        )?;
        writeln!(f, "p50: sending to last reply of the batch. CPU: all server processes, a sidecar's Redis included.")?;
        writeln!(f, "× {base}: median of the rounds' ratios; p50 and CPU below 1 are better, req/s above 1.\n")?;
        writeln!(
            f,
            "| {:11} | {:>8} | {:8} | {:>9} | {:>10} | {:>11} | {:>8} | {:>8} | {:>8} |",
            "", "pipeline", "server", "p50 µs", "req/s", "CPU µs/req", "p50 ×", "req/s ×", "CPU ×"
        )?;
        writeln!(f, "|---|--:|---|--:|--:|--:|--:|--:|--:|")?;
        for row in ROWS {
            for pipeline in PIPELINES {
                for (index, name) in self.names.iter().enumerate() {
                    let value = |of: fn(&Measured) -> f64| self.median(row, pipeline, |all| of(&all[index]));
                    let ratio = |of: fn(&Measured) -> f64| {
                        if index == 0 {
                            return String::new();
                        }
                        format!("{:.2}", self.median(row, pipeline, |all| of(&all[index]) / of(&all[0])))
                    };
                    writeln!(
                        f,
                        "| {:11} | {pipeline:>8} | {name:8} | {:>9.1} | {:>10.0} | {:>11.2} | {:>8} | {:>8} | {:>8} |",
                        row.name(),
                        value(|one| one.p50),
                        value(|one| one.rate),
                        value(|one| one.cpu),
                        ratio(|one| one.p50),
                        ratio(|one| one.rate),
                        ratio(|one| one.cpu),
                    )?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_within_a_round_before_the_median() {
        let one = |p50| Measured { p50, rate: 1.0, cpu: 1.0 };
        let mut table = Table::new(vec!["Redis", "sidecar"], 3);
        // A slow neighbour in one round: the ratio of the medians would say 10 / 10.
        for (redis, sidecar) in [(10.0, 5.0), (100.0, 50.0), (10.0, 10.0)] {
            table.add(Row::Hit, 1, vec![one(redis), one(sidecar)]);
        }
        assert!((table.median(Row::Hit, 1, |all| all[1].p50 / all[0].p50) - 0.5).abs() < 1e-9);
        assert!(table.to_string().contains("0.50"));
    }
}
