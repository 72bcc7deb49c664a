//! The contract in simulated worlds.

use std::{cell::Cell, rc::Rc};

use pyralog_engine::runtime::sim::{
    Sim, SimConfig, SimRuntime,
    faults::{FaultKind, FaultRates},
};

use super::*;

const STEPS_MAX: u64 = 2_000_000;

/// A world where everything is slow and out of order, and nothing is lost.
fn worlds() -> impl Iterator<Item = Sim> {
    (0..20).map(|seed| {
        let rates = FaultRates::none().with(FaultKind::Stall, 100).with(FaultKind::RingDelay, 1_000);
        let alignment = if seed % 2 == 0 { 512 } else { 4096 };
        Sim::new(seed, &SimConfig { rates, alignment })
    })
}

fn on_one_core<F, Fut>(case: F)
where
    F: Fn(SimRuntime, PathBuf) -> Fut,
    Fut: Future<Output = ()> + 'static,
{
    for sim in worlds() {
        let (_, cores) = sim.process(1);
        let (runtime, dir) = (cores[0].clone(), PathBuf::from("/scratch"));
        let (made, parent) = (runtime.clone(), dir.clone());
        sim.block_on(&runtime, async move { made.create_dir_all(&parent).await.unwrap() }, STEPS_MAX).unwrap();
        sim.block_on(&runtime, case(runtime.clone(), dir), STEPS_MAX).unwrap();
    }
}

fn on_meshed_cores<F, Fut>(cores: usize, case: F)
where
    F: Fn(SimRuntime, usize, Rings<SimRuntime>) -> Fut,
    Fut: Future<Output = ()> + 'static,
{
    for sim in worlds() {
        let running = Rc::new(Cell::new(cores));
        let (_, runtimes) = sim.process(cores);
        for (core, (runtime, mesh)) in runtimes.into_iter().zip(sim.mesh(cores, CAPACITY)).enumerate() {
            let (running, case) = (Rc::clone(&running), case(runtime.clone(), core, mesh));
            runtime.spawn(async move {
                case.await;
                running.set(running.get() - 1);
            });
        }
        sim.run_until(|| running.get() == 0, STEPS_MAX).unwrap();
    }
}

contract!();
