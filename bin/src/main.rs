//! The `dlog` binary: the server and its command line.

mod cli;
mod output;
mod serve;

fn main() -> std::process::ExitCode {
    cli::main()
}
