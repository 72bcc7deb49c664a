//! Single scenes, made on purpose.

use std::{
    cell::{Cell, RefCell},
    path::PathBuf,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use pyralog_engine::{
    error::RequestError,
    runtime::{
        Runtime,
        sim::{
            Sim, SimConfig, SimRandom, SimRuntime,
            faults::{FaultKind, FaultRates},
        },
    },
    shard::{
        Shard,
        request::{Append, CreateLog, FindOffset, OffsetAt, Outcome, Request},
    },
    testing::{
        checker::{Evidence, judge},
        history::Event,
    },
    types::{AckLevel, LogUid, Offset, PartitionId, PartitionIndex},
};

use crate::{
    SEEDS,
    clients::{Clients, be_client, ends, make_batch},
    copies::Fate,
    damage,
    lives::{STEPS_MAX, last_life, live, prepare_directory, start},
    plan::Plan,
};

#[test]
fn nothing_of_a_server_outlives_its_world() {
    let plan =
        Plan { rates: FaultRates::none(), settings: Default::default(), ..Plan::draw(&mut SimRandom::new(1, 100)) };
    let sim = Sim::new(1, &SimConfig { rates: plan.rates.clone(), alignment: plan.alignment });
    prepare_directory(&sim, &plan);
    let clients = Clients::new(1, &plan);
    let (_, runtimes, shards, _) = start(&sim, &plan, 2);
    sim.run_until(|| shards.borrow().iter().all(Option::is_some), STEPS_MAX).unwrap();
    let shard = shards.borrow()[0].clone().unwrap();
    runtimes[0].spawn(be_client(0, shard, Rc::clone(&clients)));
    sim.run_until(|| clients.appends_acked.get() > 20, STEPS_MAX).unwrap();
    // Every partition and every log of a core holds on to these.
    let counters: Vec<_> = shards.borrow().iter().flatten().map(|shard| Arc::downgrade(shard.metrics())).collect();
    drop((shards, runtimes, sim));
    assert!(counters.iter().all(|core| core.strong_count() == 0), "a seed leaves its memory to the next");
}

#[test]
fn what_a_killed_process_left_under_way_is_not_shown_before_it_can_be_synced() {
    let plan =
        Plan { rates: FaultRates::none(), settings: Default::default(), ..Plan::draw(&mut SimRandom::new(1, 100)) };
    let sim = Sim::new(1, &SimConfig { rates: plan.rates.clone(), alignment: plan.alignment });
    prepare_directory(&sim, &plan);
    let clients = Clients::new(1, &plan);
    let open = || {
        let (process, runtimes, shards, _) = start(&sim, &plan, 1);
        sim.run_until(|| shards.borrow()[0].is_some(), STEPS_MAX).unwrap();
        let shard = shards.borrow()[0].clone().unwrap();
        (process, runtimes[0].clone(), shard)
    };
    let partition = PartitionId { log: LogUid(0), index: PartitionIndex(0) };
    let append = |shard: Shard<SimRuntime>| {
        let (batch, _) = make_batch(0, 1, &clients);
        async move {
            shard
                .call(Request::Append(Append { partition, batch, ack: Some(AckLevel::Written), expected_offset: None }))
                .await
        }
    };
    let end = |runtime: &SimRuntime, shard: Shard<SimRuntime>| {
        let clients = Rc::clone(&clients);
        let ends = async move { ends(0, &shard, partition, &clients).await.unwrap().high_watermark };
        sim.block_on(runtime, ends, STEPS_MAX).unwrap()
    };

    let (process, runtime, shard) = open();
    let create = CreateLog { name: "sim".parse().unwrap(), partitions: 1, settings: Default::default() };
    let creating = shard.clone();
    let created = async move { creating.call(Request::CreateLog(create)).await };
    sim.block_on(&runtime, created, STEPS_MAX).unwrap().unwrap();
    sim.block_on(&runtime, append(shard.clone()), STEPS_MAX).unwrap().unwrap();
    sim.set_rates(FaultRates::none().with(FaultKind::Stall, 10_000));
    let appending = append(shard);
    runtime.spawn(async move { drop(appending.await) });
    sim.run_for(Duration::from_millis(10), STEPS_MAX).unwrap();
    sim.kill(process);

    sim.set_rates(FaultRates::none().with(FaultKind::LostUnsynced, 10_000));
    let (process, runtime, shard) = open();
    let shown = end(&runtime, shard);
    assert_eq!(shown, Offset(2), "the write was under way when the process was killed");
    sim.lose_power(process);
    let (_, runtime, shard) = open();
    assert_eq!(end(&runtime, shard), shown, "a record was shown and is gone");
}

#[test]
fn a_log_that_is_being_made_is_refused_for_now_and_is_open_everywhere_where_core_0_shows_it() {
    let (mut early, mut shown) = (0, 0);
    for seed in 1..=5 {
        let rates = FaultRates::none().with(FaultKind::RingDelay, 3_000);
        let plan =
            Plan { rates: rates.clone(), settings: Default::default(), ..Plan::draw(&mut SimRandom::new(1, 100)) };
        let sim = Sim::new(seed, &SimConfig { rates, alignment: plan.alignment });
        prepare_directory(&sim, &plan);
        let (_, runtimes, shards, _) = start(&sim, &plan, 3);
        sim.run_until(|| shards.borrow().iter().all(Option::is_some), STEPS_MAX).unwrap();
        let shards: Vec<Shard<SimRuntime>> = shards.borrow().iter().flatten().cloned().collect();
        let made = Rc::new(Cell::new(false));
        let create = CreateLog { name: "sim".parse().unwrap(), partitions: 6, settings: Default::default() };
        let (creating, done) = (shards[0].clone(), Rc::clone(&made));
        runtimes[0].spawn(async move {
            creating.call(Request::CreateLog(create)).await.unwrap();
            done.set(true);
        });
        let answers: Rc<RefCell<Vec<(bool, Outcome)>>> = Rc::default();
        let (mut asked, mut over) = (0, false);
        // Every core is asked about every partition, whether it knows of the log or not.
        while !over || answers.borrow().len() < asked {
            sim.run_for(Duration::from_micros(50), STEPS_MAX).unwrap();
            let is_shown = shards[0].catalog().logs().count() > 0;
            for (shard, runtime) in shards.iter().zip(&runtimes).filter(|_| !over) {
                for index in 0..6 {
                    let partition = PartitionId { log: LogUid(0), index: PartitionIndex(index) };
                    let (shard, answers) = (shard.clone(), Rc::clone(&answers));
                    asked += 1;
                    runtime.spawn(async move {
                        let find = FindOffset { partition, at: OffsetAt::Latest };
                        let outcome = shard.call(Request::FindOffset(find)).await;
                        answers.borrow_mut().push((is_shown, outcome));
                    });
                }
            }
            over |= made.get() && is_shown;
        }
        for (is_shown, outcome) in answers.borrow().iter() {
            match outcome {
                Ok(_) => shown += u32::from(*is_shown),
                Err(error @ RequestError::PartitionOpening { .. }) => {
                    assert!(!is_shown && error.is_retriable(), "core 0 shows what is not open");
                    early += 1;
                }
                Err(other) => panic!("seed {seed}: {other}"),
            }
        }
    }
    assert!(early > 100 && shown > 0, "{early} requests were early, {shown} were not");
}

#[test]
fn a_flipped_bit_is_never_served() {
    let (mut noticed, mut served) = (0, 0);
    for seed in 1..=SEEDS / 4 {
        let mut random = SimRandom::new(seed, 200);
        let plan = Plan {
            rates: FaultRates::none(),
            lives: 1,
            drive_fails: false,
            settings: Default::default(),
            ..Plan::draw(&mut random)
        };
        let sim = Sim::new(seed, &SimConfig { rates: plan.rates.clone(), alignment: plan.alignment });
        let clients = Clients::new(seed, &plan);
        prepare_directory(&sim, &plan);
        live(&sim, (&plan, &mut Fate::new(0, &plan)), &clients, &mut random);
        let files = sim.files().into_iter().filter(|(_, len)| *len > 0).map(|(path, _)| path);
        let segments: Vec<PathBuf> = files.filter(|path| path.extension() == Some("seg".as_ref())).collect();
        if segments.is_empty() {
            continue;
        }
        assert!(sim.flip_bit(&segments[random.below(segments.len() as u64) as usize]));
        damage::tell(&sim, &clients);
        // Partitions may now say that they are damaged. One whose newest records were hit may take them for a torn
        // write and cut them off, and then the last life's own records have their place. What is served must be right.
        let before = clients.history.borrow().events().len();
        last_life(&sim, &plan, &clients, 1);
        let history = clients.history.borrow();
        noticed += u32::from(history.events()[before..].iter().any(|event| matches!(event, Event::Failed(_))));
        drop(history);
        let is_loss = |evidence: &Evidence| {
            use Evidence as E;
            let wrong = matches!(evidence, E::Altered { .. } | E::NeverSent(_) | E::RefusedButStored(_));
            !wrong && !matches!(evidence, E::Twice { .. } | E::OutOfOrder { .. } | E::TooLong(_))
        };
        let wrong = judge(&clients.history.borrow());
        let wrong: Vec<_> = wrong.iter().filter(|one| !is_loss(&one.evidence)).collect();
        assert!(wrong.is_empty(), "seed {seed}: {}", wrong[0]);
        served += clients.records_read.get();
    }
    assert!(noticed > 0 && served > 0, "{noticed} flipped bits were noticed, {served} records served");
}
