//! `dlog recover`: the way out of a partition that nobody leads, for whoever accepts what it costs. It says first what
//! that is, as far as the copies that are left know.

use pyralog_net::client::{
    CopyStanding, LogId, Offset, PartitionId, PyralogClient, RecoveryReport, ReplicaId, ReplicaRole, Replication,
};
use serde_json::json;

use super::{
    Fault, Outcome,
    log::{count, partition},
};
use crate::output::say;

/// The flags.
#[derive(Debug, clap::Args)]
pub struct RecoverArgs {
    /// LOG/NUMBER, such as orders/0 or eu/orders/3.
    #[arg(value_name = "LOG/PARTITION", value_parser = partition)]
    partition: (LogId, PartitionId),
    /// The copy that is to lead. If none is named, that which loses least, as far as is known.
    #[arg(long, value_name = "N")]
    copy: Option<u8>,
    /// Do it: what the chosen copy has not is lost, also where it was acknowledged. There is no way back.
    #[arg(long)]
    accept_data_loss: bool,
}

/// Says what there is to know, and does it if that is accepted.
pub async fn run(client: &PyralogClient, args: &RecoverArgs, json: bool) -> Outcome {
    let (log, index) = &args.partition;
    let wanted = (args.copy.map(ReplicaId), args.accept_data_loss);
    let report = client.recover(log, *index, wanted).await?;
    let chosen = chosen(&report);
    if json {
        let losses = chosen.map_or_else(Vec::new, |chosen| losses(chosen, &report));
        say!("{}", json!({ "report": report, "losses": losses }));
    } else {
        print(&report, chosen);
    }
    match (report.begun, report.leader, chosen) {
        (Some(_), ..) => Ok(()),
        (None, Some(leader), _) => Err(Fault::new(format!("copy {leader} leads: there is nothing to recover"))),
        (None, None, None) => Err(Fault::new("no copy can lead: bring one back first")),
        (None, None, Some(_)) => {
            Err(Fault::new("nothing was done").with_help("add --accept-data-loss to have that copy lead"))
        }
    }
}

fn chosen(report: &RecoveryReport) -> Option<&CopyStanding> {
    report.copies.iter().find(|copy| Some(copy.replica) == report.chosen)
}

fn print(report: &RecoveryReport, chosen: Option<&CopyStanding>) {
    let RecoveryReport { log, partition, replication, copies, leader, begun, .. } = report;
    let Replication { replication_factor, write_quorum, .. } = replication;
    let needed = replication_factor - write_quorum + 1;
    match leader {
        Some(leader) => say!("partition {partition} of {log} is led by copy {leader}"),
        None => say!(
            "nobody leads partition {partition} of {log}: of {replication_factor} copies with write quorum \
             {write_quorum}, {needed} that have their memory must be there to elect a leader without loss"
        ),
    }
    say!(
        "{:>5} {:>5} {:<11} {:<7} {:>8} {:>12} {:>12} {:>15}",
        "COPY",
        "CORE",
        "ROLE",
        "MEMORY",
        "EPOCH",
        "START",
        "END",
        "KNOWN COMMITTED",
    );
    for copy in copies {
        let core = copy.core.map_or_else(|| "-".to_owned(), |core| core.to_string());
        if let (None, Some(problem)) = (copy.role, &copy.problem) {
            say!("{:>5} {core:>5} {problem}", copy.replica.to_string());
            continue;
        }
        say!(
            "{:>5} {core:>5} {:<11} {:<7} {:>8} {:>12} {:>12} {:>15}",
            copy.replica.to_string(),
            copy.role.map_or("-", role),
            if copy.is_intact { "intact" } else { "lost" },
            copy.accepted.to_string(),
            copy.start_offset.to_string(),
            copy.end_offset.to_string(),
            copy.committed.to_string(),
        );
    }
    let Some(chosen) = chosen.filter(|_| leader.is_none()) else { return };
    let leads = if begun.is_some() { "leads from now on" } else { "would lead" };
    say!("copy {} {leads}, with the records before offset {}:", chosen.replica, chosen.end_offset);
    losses(chosen, report).iter().for_each(|loss| say!("  {loss}"));
}

fn role(role: ReplicaRole) -> &'static str {
    match role {
        ReplicaRole::Leader => "leader",
        ReplicaRole::Follower => "follower",
        ReplicaRole::Candidate => "candidate",
        ReplicaRole::Rebuilding => "rebuilding",
        ReplicaRole::Halted => "halted",
        ReplicaRole::Closed => "closed",
        ReplicaRole::Unreadable => "unreadable",
    }
}

/// What is lost if `chosen` leads, as far as the copies know.
fn losses(chosen: &CopyStanding, report: &RecoveryReport) -> Vec<String> {
    let mut losses = Vec::new();
    let range = |from: Offset, to: Offset| {
        let records = count(to.0 - from.0, "record");
        format!("{records}, offsets {from} to {}", to.0 - 1)
    };
    let committed = report.copies.iter().map(|copy| copy.committed).max().unwrap_or_default();
    if committed > chosen.end_offset {
        losses.push(format!("{} were acknowledged as durable and are lost", range(chosen.end_offset, committed)));
    }
    for copy in &report.copies {
        let number = copy.replica;
        if number == chosen.replica {
            continue;
        }
        if copy.end_offset > chosen.end_offset {
            losses.push(format!("{} are cut off from copy {number}", range(chosen.end_offset, copy.end_offset)));
        } else if copy.accepted > chosen.accepted {
            losses.push(format!(
                "copy {number} followed a later leader: what it has and copy {} has not is cut off",
                chosen.replica
            ));
        }
        if !copy.is_intact {
            losses
                .push(format!("what was acknowledged and only copy {number} had is lost: nobody knows what that was"));
        }
    }
    if !chosen.is_intact {
        losses.push(format!("copy {} may lack what it acknowledged itself", chosen.replica));
    }
    if losses.is_empty() {
        losses.push("no copy that can be asked knows of anything that is lost".to_owned());
    }
    losses
}

#[cfg(test)]
mod tests {
    use pyralog_engine::types::{CoreId, LeaderEpoch, PartitionIndex};

    use super::*;

    fn copy(number: u8, is_intact: bool, accepted: u32, (end, committed): (u64, u64)) -> CopyStanding {
        CopyStanding {
            replica: ReplicaId(number),
            core: Some(CoreId(u16::from(number))),
            role: Some(ReplicaRole::Follower),
            is_intact,
            accepted: LeaderEpoch(accepted),
            start_offset: Offset(0),
            end_offset: Offset(end),
            committed: Offset(committed),
            problem: None,
        }
    }

    fn words(copies: Vec<CopyStanding>, chosen: usize) -> Vec<String> {
        let replication = Replication { replication_factor: 3, write_quorum: 2, read_quorum: 1 };
        let chosen = copies[chosen].clone();
        let report = RecoveryReport {
            log: "default/a".to_owned(),
            partition: PartitionIndex(0),
            replication,
            copies,
            leader: None,
            chosen: Some(chosen.replica),
            begun: None,
        };
        losses(&chosen, &report)
    }

    #[test]
    fn what_may_be_lost_is_said_of_each_copy() {
        let two = vec![copy(0, true, 8, (10, 8)), copy(1, false, 0, (0, 0))];
        assert_eq!(words(two, 0), ["what was acknowledged and only copy 1 had is lost: nobody knows what that was"]);
        let shorter = vec![copy(0, true, 8, (5, 3)), copy(1, true, 8, (9, 8))];
        assert_eq!(
            words(shorter, 0),
            [
                "3 records, offsets 5 to 7 were acknowledged as durable and are lost",
                "4 records, offsets 5 to 8 are cut off from copy 1"
            ]
        );
        let older = vec![copy(0, true, 8, (9, 3)), copy(1, true, 9, (9, 3))];
        assert!(words(older, 0)[0].starts_with("copy 1 followed a later leader"));
        assert_eq!(words(vec![copy(0, false, 0, (1, 0))], 0), ["copy 0 may lack what it acknowledged itself"]);
        assert!(words(vec![copy(0, true, 8, (9, 9))], 0)[0].starts_with("no copy that can be asked knows"));
    }
}
