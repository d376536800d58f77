//! `caddy-operator run` reconciles CacheClusters and injects sidecars; `caddy-operator crds` prints the definitions.

use caddy_operator::{run, settings::Settings};
use clap::{Parser, Subcommand};
use std::{io::IsTerminal as _, process::ExitCode};
use tracing_subscriber::{EnvFilter, fmt};

/// The operator of CADDY cache.
#[derive(Debug, Parser)]
#[command(name = "caddy-operator", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run until SIGTERM.
    Run(Box<Settings>),
    /// Print the CustomResourceDefinitions as YAML.
    Crds,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // First of all: kube and the webhook both use the process's provider.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        eprintln!("another crypto provider is installed already");
        return ExitCode::FAILURE;
    }
    match arguments.command {
        Command::Crds => {
            for crd in [caddy_crds::generate::definition(), caddy_crds::generate::invalidations()] {
                print!("---\n{}", caddy_crds::generate::yaml(&crd));
            }
            ExitCode::SUCCESS
        }
        Command::Run(settings) => start(*settings),
    }
}

fn start(settings: Settings) -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,kube_runtime=warn"));
    fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(run::run(settings)),
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
