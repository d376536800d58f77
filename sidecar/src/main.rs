//! `caddy-sidecar`: see `--help`, and the library for how it works.

use std::{io::IsTerminal as _, process::ExitCode};

use caddy_sidecar::{Cli, Command};
use clap::Parser as _;

fn main() -> ExitCode {
    let cli = Cli::parse();
    init_log();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("caddy-sidecar: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Some(Command::Ping { socket, wait, startup }) => caddy_sidecar::ping(socket, wait, startup),
        Some(Command::CheckConfig { file }) => {
            let parsed = caddy_sidecar::read_config(&file)?;
            caddy_sidecar::check_stores(&parsed.config)?;
            for path in parsed.ignored {
                println!("{}: {path} is unknown to this version and ignored", file.display());
            }
            println!("{}: valid", file.display());
            Ok(())
        }
        None => Ok(caddy_sidecar::serve(cli.serve.start()?)?),
    }
}

/// To standard error, at the level that `CADDY_LOG` names (default: info).
fn init_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("CADDY_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // Colours are for people; files and `kubectl logs` would show the escapes.
    let colours = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.with_ansi(colours).with_target(false).init();
}
