//! The `director` command.

use std::process::ExitCode;

use clap::Parser as _;
use director::command::Cli;

#[tokio::main]
async fn main() -> ExitCode {
    match Cli::parse().execute().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("director: {error:#}");
            ExitCode::FAILURE
        }
    }
}
