//! The protocol at work: replicas with disks and links that do what a test says, and a judge that looks at every state.

mod judge;
mod small_world;
mod transcript;
mod walks;
mod world;
