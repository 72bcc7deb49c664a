//! Load that spreads over the cores by itself: when one core has been much busier than another for long enough, core 0
//! moves one partition from the one to the other, as an operator would ([`super::moving`]).
//!
//! How busy a core is is the part of the time in which it ran tasks; looking for work does not count. Of that each
//! copy has the part that its requests and their bytes are of those of the core. What is moved is what narrows the gap
//! most and does not turn it over, so that nothing goes back and forth; and the longer the less it helps. Nothing is
//! moved while a drive stalls or the catalogue changes; and no partition of which a copy is out of service or is
//! rebuilt, or whose copies are about to be others, or that an operator put where it is.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

use futures_util::future::join_all;

use super::{
    CopyId, Core,
    completion::ReplyTo,
    owned::Owned,
    request::{Move, Reply, Request},
};
use crate::{
    catalog::Catalog,
    replication::{RoleName, assignment::ReplicaSet},
    runtime::Runtime,
    types::{CoreId, PartitionId},
};

/// When partitions move by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balance {
    /// How busy a core must be, in percent of its time,
    pub busy_percent: u8,
    /// and how much more than another.
    pub difference_percent: u8,
    /// For how long.
    pub period: Duration,
    /// How long nothing is moved after a move; each time that one did not help twice as long.
    pub pause: Duration,
}

/// So often in a period is looked.
const LOOKS: u32 = 4;

/// The longest pause.
const LONG: Duration = Duration::from_secs(3600);

/// A request counts as so many bytes. At a gigabyte a second for each core, and some 100,000 requests.
const REQUEST_BYTES: u64 = 8 << 10;

/// A core that does not say for so long what it does is not well.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a copy has done since it was opened.
#[derive(Debug, Default)]
pub(super) struct Done {
    weight: Cell<u64>,
}

impl Done {
    /// A request of so many bytes was answered, or came from a leader.
    pub(super) fn add(&self, bytes: u64) {
        self.weight.set(self.weight.get() + REQUEST_BYTES + bytes);
    }
}

/// What a core has done, for core 0.
#[derive(Clone, Debug)]
pub struct Loads {
    at: Duration,
    /// How long it ran tasks.
    busy: Duration,
    /// Whether its drive answers.
    is_well: bool,
    copies: Vec<CopyLoad>,
}

#[derive(Clone, Copy, Debug)]
struct CopyLoad {
    id: CopyId,
    weight: u64,
    leads: bool,
    /// The others that could lead.
    fit: ReplicaSet,
    /// Whether it is as it should be.
    is_well: bool,
}

/// How busy a core was, in thousandths of its time, and what it leads.
#[derive(Clone, Debug, PartialEq, Eq)]
struct CoreLoad {
    core: CoreId,
    busy: u32,
    led: Vec<Led>,
}

/// A partition that is led on a core, how busy it keeps it, and the cores that could lead it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Led {
    partition: PartitionId,
    busy: u32,
    targets: Vec<CoreId>,
}

/// A partition that is to move, and by how much that should narrow the gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Choice {
    partition: PartitionId,
    from: CoreId,
    to: CoreId,
    gap: u32,
    narrows: u32,
}

/// Decides. On core 0.
pub(super) struct Balancer {
    settings: Option<Balance>,
    /// Which core is too busy, and since when.
    hot: Option<(CoreId, Duration)>,
    /// The last move, and whether it is known by now what it did.
    last: Option<(Choice, Duration, Judged)>,
    pause: Duration,
    /// Partitions that stay where they were moved to, and until when.
    stay: BTreeMap<PartitionId, Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judged {
    NotYet,
    Yes,
}

impl Balancer {
    pub(super) fn new(settings: Option<Balance>) -> Self {
        let pause = settings.map_or(LONG, |settings| settings.pause);
        Balancer { settings, hot: None, last: None, pause, stay: BTreeMap::new() }
    }

    /// What was measured says nothing: it begins anew.
    fn forget(&mut self) {
        self.hot = None;
    }

    /// Takes what the cores did since the last look, and gives what is to be moved now.
    fn look(&mut self, cores: &[CoreLoad], now: Duration) -> Option<Choice> {
        let settings = self.settings?;
        let hottest = cores.iter().max_by_key(|core| core.busy)?;
        let coldest = cores.iter().min_by_key(|core| core.busy)?;
        let gap = hottest.busy - coldest.busy;
        self.judge_last(gap, (settings, now));
        let thousandths = |percent: u8| u32::from(percent) * 10;
        let is_hot = hottest.busy >= thousandths(settings.busy_percent);
        if !is_hot || gap < thousandths(settings.difference_percent) {
            self.hot = None;
            return None;
        }
        let since = self.hot.filter(|(core, _)| *core == hottest.core).map_or(now, |(_, since)| since);
        self.hot = Some((hottest.core, since));
        let rests = self.last.is_some_and(|(_, at, _)| now.saturating_sub(at) < self.pause);
        if rests || now.saturating_sub(since) < settings.period {
            return None;
        }
        self.stay.retain(|_, until| *until > now);
        // What is less is not worth a move.
        let least = thousandths(settings.difference_percent) / 4;
        let choice = self.best(hottest, cores).filter(|choice| choice.narrows >= least)?;
        self.hot = None;
        self.last = Some((choice, now, Judged::NotYet));
        self.stay.insert(choice.partition, now + settings.pause * 10);
        Some(choice)
    }

    /// A period after a move it is known whether it helped.
    fn judge_last(&mut self, gap: u32, (settings, now): (Balance, Duration)) {
        let Some((choice, at, judged @ Judged::NotYet)) = &mut self.last else { return };
        if now.saturating_sub(*at) < settings.period {
            return;
        }
        *judged = Judged::Yes;
        let helped = choice.gap.saturating_sub(gap) >= choice.narrows / 2;
        self.pause = if helped { settings.pause } else { (self.pause * 2).min(LONG.max(settings.pause)) };
    }

    /// The partition of a core that narrows the gap to another most, and leaves it the busier one.
    fn best(&self, from: &CoreLoad, cores: &[CoreLoad]) -> Option<Choice> {
        let mut best: Option<Choice> = None;
        for led in from.led.iter().filter(|led| !self.stay.contains_key(&led.partition)) {
            for to in cores.iter().filter(|to| led.targets.contains(&to.core)) {
                let gap = from.busy.saturating_sub(to.busy);
                let narrows = led.busy * 2;
                // Of the cores where it is the same the least busy one.
                let is_better = best.is_none_or(|best| (narrows, gap) > (best.narrows, best.gap));
                if narrows <= gap && is_better {
                    best = Some(Choice { partition: led.partition, from: from.core, to: to.core, gap, narrows });
                }
            }
        }
        best
    }
}

/// What was measured last, to see what was done since.
#[derive(Default)]
struct Before {
    cores: BTreeMap<CoreId, (Duration, Duration)>,
    copies: BTreeMap<CopyId, u64>,
}

/// How busy a core was, and how busy each of its copies kept it, in thousandths of its time.
struct Measured {
    busy: u32,
    copies: Vec<(CopyLoad, u32)>,
}

impl Before {
    /// What a core did since it was asked last, and what each of its copies had of that. `None` the first time.
    fn since(&mut self, core: CoreId, loads: &Loads) -> Option<Measured> {
        let before = self.cores.insert(core, (loads.at, loads.busy));
        let copies = loads.copies.iter().map(|copy| {
            // One that was opened meanwhile began at nothing.
            let before = self.copies.insert(copy.id, copy.weight).filter(|before| *before <= copy.weight);
            (*copy, copy.weight - before.unwrap_or(0))
        });
        let copies: Vec<_> = copies.collect();
        let (at, busy) = before?;
        let took = loads.at.saturating_sub(at).as_micros().max(1);
        let busy = (loads.busy.saturating_sub(busy).as_micros() * 1000 / took).min(1000) as u32;
        let all = copies.iter().map(|(_, weight)| u128::from(*weight)).sum::<u128>().max(1);
        let part = |weight: u64| (u128::from(weight) * u128::from(busy) / all) as u32;
        let copies = copies.into_iter().map(|(copy, weight)| (copy, part(weight))).collect();
        Some(Measured { busy, copies })
    }
}

/// The partitions that stay where they are: a copy is not as it should be, or the copies are about to be others, or an
/// operator wants it so.
fn unfit<'a>(copies: impl Iterator<Item = &'a CopyLoad>, catalog: &Catalog) -> BTreeSet<PartitionId> {
    let stays = |PartitionId { log, index }: PartitionId| {
        catalog.by_uid(log).is_none_or(|log| log.former.is_some() || log.is_pinned(index))
    };
    copies.filter(|copy| !copy.is_well || stays(copy.id.partition)).map(|copy| copy.id.partition).collect()
}

impl<R: Runtime> Core<R> {
    /// Looks again and again, if that is wanted. On core 0.
    pub(super) fn keep_balanced(self: &Rc<Self>) {
        let Some(settings) = self.common.config.balance.filter(|_| self.cores > 1) else { return };
        let core = Rc::clone(self);
        self.common.context.runtime.spawn(async move {
            let runtime = &core.common.context.runtime;
            let mut before = Before::default();
            while !core.common.draining.get() {
                runtime.sleep(settings.period / LOOKS).await;
                let Some(loads) = core.measured(&mut before).await else {
                    core.balancer.borrow_mut().forget();
                    continue;
                };
                let choice = core.balancer.borrow_mut().look(&loads, runtime.monotonic());
                if let Some(choice) = choice {
                    core.even_out(choice).await;
                    // What the cores did meanwhile says little.
                    before = Before::default();
                }
            }
        });
    }

    async fn even_out(self: &Rc<Self>, Choice { partition, from, to, gap, narrows }: Choice) {
        let log = self.catalog.borrow().by_uid(partition.log).map(|log| log.name.to_string()).unwrap_or_default();
        let (partition_index, gap_percent, load_percent) = (partition.index, gap / 10, narrows / 20);
        tracing::info!(
            log, partition = %partition_index, %from, %to, gap_percent, load_percent,
            "a core is busier than another: a partition is moved"
        );
        match self.moved(Move { partition, to }).await {
            Ok(_) => self.common.context.metrics.balancing_moves.add(1),
            Err(error) => tracing::info!(log, partition = %partition_index, %error, "the partition stays"),
        }
    }

    /// What all cores did since the last time. `None` if that says nothing, or nothing may be moved.
    async fn measured(self: &Rc<Self>, before: &mut Before) -> Option<Vec<CoreLoad>> {
        let all = (0..self.cores as u16).map(CoreId);
        let answers = join_all(all.clone().map(|core| self.call_within(Request::Loads(core), PATIENCE))).await;
        let mut loads = Vec::new();
        for (core, answer) in all.zip(answers) {
            let Some(Ok(Reply::Loads(answer))) = answer else { return None };
            let measured = before.since(core, &answer);
            loads.push((core, measured.filter(|_| answer.is_well)));
        }
        let measured = loads.iter().filter_map(|(_, measured)| measured.as_ref());
        let unfit = unfit(measured.flat_map(|measured| &measured.copies).map(|(copy, _)| copy), &self.catalog.borrow());
        let changes = self.admin.changes.is_taken() || self.catalog.borrow().logs().any(|log| log.founding);
        if changes || self.common.trust.borrow().fence().is_some() {
            return None;
        }
        let load = |(core, measured): (CoreId, Option<Measured>)| {
            let Measured { busy, copies } = measured?;
            let led = copies.into_iter().filter(|(copy, _)| copy.leads && !unfit.contains(&copy.id.partition));
            let led =
                led.map(|(copy, busy)| Led { partition: copy.id.partition, busy, targets: self.targets_of(&copy) });
            Some(CoreLoad { core, busy, led: led.collect() })
        };
        loads.into_iter().map(load).collect()
    }

    /// The cores that could lead a partition: those of copies that keep up, and those without a copy that have the
    /// drive of the one that leads.
    fn targets_of(&self, copy: &CopyLoad) -> Vec<CoreId> {
        let CopyId { partition, copy: leader } = copy.id;
        let Ok(log) = self.entry_of(partition) else { return Vec::new() };
        let homes: Vec<_> = log.slots().map(|copy| (copy, self.home_of(CopyId { partition, copy }))).collect();
        let drives = &self.common.config.drives;
        let own = self.home_of(copy.id).map(|home| drives.of(home));
        let is_target = |core: &CoreId| match homes.iter().find(|(_, home)| *home == Some(*core)) {
            Some((other, _)) => *other != leader && copy.fit.contains(*other),
            None => own == Some(drives.of(*core)),
        };
        (0..self.cores as u16).map(CoreId).filter(is_target).collect()
    }

    /// Answers what this core has done.
    pub(super) fn tell_loads(&self, reply: ReplyTo) {
        let common = &self.common;
        common.note_busy();
        let copies = self.open_partitions();
        let is_well = !self.drive_stalls() && !copies.iter().any(|owned| owned.stalls());
        let loads = Loads {
            at: common.context.runtime.monotonic(),
            busy: Duration::from_micros(common.context.metrics.busy_us.get()),
            is_well,
            copies: copies.iter().map(|owned| owned.load()).collect(),
        };
        reply.send(Ok(Reply::Loads(Box::new(loads))));
    }
}

impl<R: Runtime> Owned<R> {
    fn load(&self) -> CopyLoad {
        let member = self.member.as_ref();
        CopyLoad {
            id: self.copy_id(),
            weight: self.done.weight.get(),
            leads: member.is_none_or(|member| member.leads()),
            fit: member.map(|member| member.look(|replica| replica.fit_to_lead())).unwrap_or_default(),
            is_well: self.is_well(),
        }
    }

    /// Whether a write or a sync of it takes too long.
    fn stalls(&self) -> bool {
        let now = self.core.context.runtime.monotonic();
        let timeout = self.core.config.drive_timeout;
        self.io_since.get().is_some_and(|since| now.saturating_sub(since) > timeout)
    }

    /// Whether it may be moved, and nothing of it is being changed or rebuilt.
    fn is_well(&self) -> bool {
        let member = self.member.as_ref();
        !self.stalls()
            && self.state.borrow().fence().is_none()
            && member.is_none_or(|member| !member.is_closed() && !member.is_changing() && member.is_settled())
    }
}

impl<R: Runtime> super::member::Member<R> {
    /// Whether it has its memory and follows, or leads members that all keep up.
    fn is_settled(&self) -> bool {
        self.look(|replica| {
            let config = replica.ballot().config;
            let whole = config.incoming.is_none();
            match replica.role() {
                RoleName::Leader => whole && config.replicas().iter().all(|copy| replica.in_sync().contains(copy)),
                RoleName::Follower => whole && self.is_led(),
                RoleName::Candidate | RoleName::Rebuilding | RoleName::Halted => false,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        replication::assignment::ReplicaId,
        settings::{LogChanges, LogSettings, Replication},
        shard::request::{AlterLog, CreateLog},
        types::{LogUid, PartitionIndex},
    };

    const S: Duration = Duration::from_secs(1);

    fn settings() -> Balance {
        Balance { busy_percent: 60, difference_percent: 30, period: 30 * S, pause: 60 * S }
    }

    fn id(index: u32) -> PartitionId {
        PartitionId { log: LogUid(0), index: PartitionIndex(index) }
    }

    /// Cores that are busy with these partitions, by number, all of which can go anywhere.
    fn cores(busy: &[&[(u32, u32)]]) -> Vec<CoreLoad> {
        let targets: Vec<_> = (0..busy.len() as u16).map(CoreId).collect();
        let core = |(core, led): (u16, &&[(u32, u32)])| CoreLoad {
            core: CoreId(core),
            busy: led.iter().map(|(_, busy)| busy).sum(),
            led: led
                .iter()
                .map(|(index, busy)| {
                    let targets = targets.iter().copied().filter(|target| target.0 != core).collect();
                    Led { partition: id(*index), busy: *busy, targets }
                })
                .collect(),
        };
        (0..).zip(busy).map(core).collect()
    }

    /// Looks every five seconds; gives when what went where.
    fn run(balancer: &mut Balancer, seconds: std::ops::Range<u64>, loads: &[CoreLoad]) -> Vec<(u64, u32, u16)> {
        let looks = seconds.step_by(5);
        let moved = looks.filter_map(|second| {
            let choice = balancer.look(loads, Duration::from_secs(second))?;
            Some((second, choice.partition.index.0, choice.to.0))
        });
        moved.collect()
    }

    #[test]
    fn what_narrows_the_gap_most_without_turning_it_over_goes_to_the_least_busy_core() {
        let loads = cores(&[&[(0, 500), (1, 300), (2, 100)], &[(3, 300)], &[(4, 200)]]);
        assert_eq!(run(&mut Balancer::new(Some(settings())), 0..60, &loads), [(30, 1, 2)]);
        // 500 would only change places with it.
        let loads = cores(&[&[(0, 500), (1, 300)], &[]]);
        assert_eq!(run(&mut Balancer::new(Some(settings())), 0..60, &loads), [(30, 1, 1)]);
        let alone = cores(&[&[(0, 900)], &[]]);
        assert_eq!(run(&mut Balancer::new(Some(settings())), 0..600, &alone), []);
        let crumbs = cores(&[&[(0, 880), (1, 20)], &[]]);
        assert_eq!(run(&mut Balancer::new(Some(settings())), 0..600, &crumbs), [], "not worth it");
    }

    #[test]
    fn a_core_must_be_busy_and_busier_than_another_and_stay_so() {
        let (hot, idle) = (cores(&[&[(0, 400), (1, 300)], &[]]), cores(&[&[(0, 300), (1, 200)], &[]]));
        let even = cores(&[&[(0, 600), (1, 300)], &[(2, 650)]]);
        let mut balancer = Balancer::new(Some(settings()));
        for calm in [&idle, &even] {
            assert_eq!(run(&mut balancer, 0..25, &hot), []);
            assert_eq!(run(&mut balancer, 25..600, calm), []);
        }
        let other = cores(&[&[], &[(0, 400), (1, 300)]]);
        assert_eq!(run(&mut balancer, 600..625, &hot), []);
        assert_eq!(run(&mut balancer, 625..650, &other), [], "another core is hot");
        balancer.forget();
        assert_eq!(run(&mut balancer, 650..700, &other), [(680, 1, 0)], "it began anew");
        assert_eq!(run(&mut Balancer::new(None), 0..600, &hot), []);
    }

    #[test]
    fn one_a_minute_and_more_seldom_the_less_it_helps() {
        let loads = cores(&[&[(0, 90), (1, 90), (2, 90), (3, 90), (4, 90), (5, 90), (6, 90), (7, 90)], &[]]);
        let mut balancer = Balancer::new(Some(settings()));
        let when: Vec<_> = run(&mut balancer, 0..2_000, &loads).into_iter().map(|(second, ..)| second).collect();
        // The loads do not change, so none of them has helped.
        assert_eq!(when, [30, 150, 390, 870, 1830]);
        // And one that helps.
        let mut balancer = Balancer::new(Some(settings()));
        assert_eq!(run(&mut balancer, 0..35, &loads), [(30, 0, 1)]);
        let after = cores(&[&[(1, 90), (2, 90), (3, 90), (4, 90), (5, 90), (6, 90), (7, 90)], &[(0, 90)]]);
        assert_eq!(run(&mut balancer, 35..125, &after), [(90, 1, 1)]);
    }

    #[test]
    fn the_time_of_a_core_is_dealt_out_to_its_copies_by_what_they_did() {
        let mut before = Before::default();
        let loads = |at: u32, busy: u32, weights: [u64; 2]| {
            let copy = |(index, weight)| CopyLoad {
                id: CopyId::only(id(index)),
                weight,
                leads: true,
                fit: ReplicaSet::default(),
                is_well: true,
            };
            Loads { at: at * S, busy: busy * S, is_well: true, copies: (0..).zip(weights).map(copy).collect() }
        };
        let parts = |since: Option<Measured>| {
            since.map(|Measured { busy, copies }| (busy, copies.iter().map(|(_, part)| *part).collect::<Vec<_>>()))
        };
        assert_eq!(parts(before.since(CoreId(0), &loads(10, 5, [1000, 1000]))), None);
        assert_eq!(parts(before.since(CoreId(0), &loads(20, 13, [1300, 1100]))), Some((800, vec![600, 200])));
        // The first was opened anew, and nothing was done for the second.
        assert_eq!(parts(before.since(CoreId(0), &loads(30, 15, [7, 1100]))), Some((200, vec![200, 0])));
        assert_eq!(parts(before.since(CoreId(0), &loads(40, 15, [7, 1100]))), Some((0, vec![0, 0])));
    }

    #[test]
    fn a_copy_that_is_not_well_or_about_to_change_or_pinned_keeps_its_partition_where_it_is_and_no_other() {
        let three = Replication { replication_factor: 3, write_quorum: 2, read_quorum: 1 };
        let settings = LogSettings { replication: Some(three), ..LogSettings::default() };
        let create = |name: &str, partitions| CreateLog { name: name.parse().unwrap(), partitions, settings };
        let (catalog, still) = Catalog::default().with_log(&create("still", 3), (1, 0)).unwrap();
        let (catalog, changing) = catalog.with_log(&create("changing", 1), (1, 0)).unwrap();
        let catalog = catalog.with_founded(changing.uid);
        let copy = |log: LogUid, index, copy, is_well| {
            let id = CopyId { partition: PartitionId { log, index: PartitionIndex(index) }, copy: ReplicaId(copy) };
            CopyLoad { id, weight: 0, leads: copy == 0, fit: ReplicaSet::default(), is_well }
        };
        let mut copies: Vec<_> = (0..3).map(|index| copy(still.uid, index, 0, true)).collect();
        copies.extend([copy(still.uid, 1, 2, false), copy(changing.uid, 0, 0, true)]);
        let stay = |catalog: &Catalog| unfit(copies.iter(), catalog).into_iter().collect::<Vec<_>>();
        let ill = copies[1].id.partition;
        assert_eq!(stay(&catalog), [ill]);
        let to = Some(Replication { replication_factor: 2, ..three }.into());
        let changes = LogChanges { replication: to, ..LogChanges::default() };
        let (catalog, _) = catalog.with_changes(&AlterLog { name: changing.name.clone(), changes }).unwrap();
        assert_eq!(stay(&catalog), [ill, copies[4].id.partition]);
        let (pinned, catalog) = (copies[2].id.partition, catalog.with_pin(copies[2].id.partition, true));
        assert_eq!(stay(&catalog), [ill, pinned, copies[4].id.partition]);
    }
}
