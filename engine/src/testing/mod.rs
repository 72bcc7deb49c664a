//! What tests of the whole system share: the history of what clients did and saw, the one judge of it, and the planted
//! bugs that prove that the judge can fail. Used by the simulation, the crash loops and the load generator, so that all
//! of them mean the same by "nothing was lost".

pub mod bug;
pub mod checker;
pub mod history;
