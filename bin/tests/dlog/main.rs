//! The `dlog` binary as its users meet it: real processes on the real disk.

mod bombs;
mod broken_pipe;
mod command_line;
mod config_reference;
mod copies;
mod crash;
mod damage;
mod data_dirs;
mod drives;
mod failing_drive;
mod full_drive;
mod idempotence;
mod mappings;
mod members;
mod power;
mod relocations;
mod retention;
mod server;
mod support;
mod unread;
mod verify;
mod workload;
