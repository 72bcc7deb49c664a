//! The `dlog` binary: the server and its command line.

mod cli;
mod output;
mod serve;

/// Each core's commits take and give back buffers of half a megabyte and more, thousands of times a second. The
/// system's allocator returns such memory to the kernel and has it zeroed page by page the next time: nearly half of a
/// core under bulk writes. This one keeps it for some seconds.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    cli::main()
}
