//! How an act speaks: what it does, what it sees, and what must hold. A thing that does not hold ends the act.

use std::fmt::Display;
use std::time::Duration;

use super::client::Client;
use crate::clock::Stopwatch;
use crate::failed::{Failed, Result};

/// Prints a chapter's title.
pub(crate) fn chapter(title: &str) {
    println!("\n  == {title}");
}

/// Prints what is done.
pub(crate) fn does(what: impl Display) {
    println!("     {what}");
}

/// Prints what was seen, indented below what was done.
pub(crate) fn sees(what: impl Display) {
    for line in what.to_string().lines() {
        println!("       {line}");
    }
}

/// Ends the act when `held` is false.
pub(crate) fn must(held: bool, what: impl Display) -> Result {
    if held { Ok(()) } else { Err(Failed::new(format!("it should be, and is not: {what}"))) }
}

/// The median time of `count` GETs of one key, one at a time.
pub(crate) fn median_get(client: &mut Client, key: &str, count: usize) -> Result<Duration> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let watch = Stopwatch::start();
        let reply = client.call(&["GET", key])?;
        times.push(watch.elapsed());
        must(reply.text().is_some(), format_args!("GET {key} answers a value, not {reply}"))?;
    }
    times.sort_unstable();
    Ok(times[count / 2])
}

/// How long until GET answers `value`, asking all the time; an error after `limit`.
pub(crate) fn until_seen(client: &mut Client, key: &str, value: &str, limit: Duration) -> Result<Duration> {
    let watch = Stopwatch::start();
    loop {
        let reply = client.call(&["GET", key])?;
        let took = watch.elapsed();
        if reply.text() == Some(value) {
            return Ok(took);
        }
        must(took <= limit, format_args!("GET {key} answers \"{value}\" within {limit:?}; it answers {reply}"))?;
    }
}

/// A duration in microseconds.
pub(crate) fn micros(time: Duration) -> String {
    format!("{:.1} µs", time.as_secs_f64() * 1e6)
}
