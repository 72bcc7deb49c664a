//! Messages and effects in words, for logs and transcripts.

use std::fmt;

use super::{
    effect::{Effect, Stuck},
    epochs::EpochEnd,
    message::{Ack, Batches, Claim, Message, Probe, Session, Standing},
};
use crate::types::LeaderEpoch;

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}:{}", self.leader_life, self.round, self.life)
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.accepted, self.log_end)
    }
}

impl fmt::Display for EpochEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.epoch, self.end)
    }
}

impl<B> fmt::Display for Batches<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{} of epoch {}", self.from, self.end, self.epoch)
    }
}

/// ` forced=E` for an epoch that was begun by force.
struct Forced(LeaderEpoch);

impl fmt::Display for Forced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 > LeaderEpoch(0) { write!(f, " forced={}", self.0) } else { Ok(()) }
    }
}

/// ` round=R` of an election that takes several.
struct Round(u32);

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 > 0 { write!(f, " round={}", self.0) } else { Ok(()) }
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Probe { epoch, life, round, start, log_end, config, forced } = self;
        let forced = Forced(*forced);
        write!(f, "Probe epoch={epoch} life={life} round={round} start={start} end={log_end} config=[{config}]{forced}")
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Standing { epoch, session, last, durable, rebuilding } = self;
        write!(f, "Standing epoch={epoch} session={session} last={last} durable={durable}")?;
        f.write_str(if *rebuilding { " rebuilding" } else { "" })
    }
}

impl fmt::Display for Ack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ack { epoch, session, held, accepted, config, log_start, missing, damaged } = self;
        write!(f, "Ack epoch={epoch} session={session} held={held} log-start={log_start} config={config}")?;
        f.write_str(if *accepted { " accepted" } else { "" })?;
        f.write_str(if *missing { " missing" } else { "" })?;
        f.write_str(if *damaged { " damaged" } else { "" })
    }
}

impl<B> fmt::Display for Message<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Message::Elect { epoch, life, claim, config, forced, round } => {
                let (forced, round) = (Forced(*forced), Round(*round));
                write!(f, "Elect epoch={epoch} life={life} claim={claim} config=[{config}]{forced}{round}")
            }
            Message::Vote { epoch, life, committed, log_start, round, voter } => {
                write!(f, "Vote epoch={epoch} life={life} committed={committed} log-start={log_start}")?;
                // Nobody looks at the life otherwise.
                if *round > 0 { write!(f, "{} voter={voter}", Round(*round)) } else { Ok(()) }
            }
            Message::Refuse { epoch, life, promised, claim, config } => {
                write!(f, "Refuse epoch={epoch} life={life} promised={promised} ")?;
                match claim {
                    Some(claim) => write!(f, "claim={claim} config=[{config}]"),
                    None => write!(f, "without memory config=[{config}]"),
                }
            }
            Message::Deposed { promised } => write!(f, "Deposed promised={promised}"),
            Message::Probe(probe) => probe.fmt(f),
            Message::Standing(standing) => standing.fmt(f),
            Message::Align { epoch, session, until } => {
                write!(f, "Align epoch={epoch} session={session} until={until}")
            }
            Message::Restart { epoch, session, at } => write!(f, "Restart epoch={epoch} session={session} at={at}"),
            Message::Amnesia { epoch, session } => write!(f, "Amnesia epoch={epoch} session={session}"),
            Message::Append { epoch, session, committed, wanted, batches } => {
                write!(f, "Append epoch={epoch} session={session} {batches} committed={committed} wanted={wanted}")
            }
            Message::Beat { epoch, session, committed, log_start, config } => {
                write!(f, "Beat epoch={epoch} session={session} committed={committed} log-start={log_start} ")?;
                write!(f, "config=[{config}]")
            }
            Message::Ack(ack) => ack.fmt(f),
            Message::Stranger { epoch } => write!(f, "Stranger epoch={epoch}"),
            Message::Confirm { epoch, life, round } => write!(f, "Confirm epoch={epoch} life={life} round={round}"),
            Message::Confirmed { epoch, life, round } => write!(f, "Confirmed epoch={epoch} life={life} round={round}"),
            Message::TakeOver { epoch, session } => write!(f, "TakeOver epoch={epoch} session={session}"),
            Message::Retire { epoch, session } => write!(f, "Retire epoch={epoch} session={session}"),
            Message::Inquire { life } => write!(f, "Inquire life={life}"),
            Message::Known { life, promised, is_intact, config } => {
                let memory = if *is_intact { "" } else { "without memory " };
                write!(f, "Known life={life} {memory}promised={promised} config=[{config}]")
            }
            Message::Want { from, until } => write!(f, "Want {from}..{until}"),
            Message::Spare(batches) => write!(f, "Spare {batches}"),
        }
    }
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stuck { votes, without_memory, committed, log_end } = self;
        write!(f, "Stuck votes={votes} without-memory={without_memory} committed={committed} end={log_end}")
    }
}

impl<B> fmt::Display for Effect<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Effect::Send { to, message } => write!(f, "Send to={to} {message}"),
            Effect::Save { revision, ballot } => write!(f, "Save revision={revision} {ballot}"),
            Effect::Write { batches, wanted } => write!(f, "Write {batches} wanted={wanted}"),
            Effect::Truncate { to } => write!(f, "Truncate to={to}"),
            Effect::Restart { at } => write!(f, "Restart at={at}"),
            Effect::Trim { before } => write!(f, "Trim before={before}"),
            Effect::Load { to, from, until, bytes_max } => {
                write!(f, "Load for={to} from={from} until={until} bytes<={bytes_max}")
            }
            Effect::Lead { epoch, start } => write!(f, "Lead epoch={epoch} start={start}"),
            Effect::Established { epoch } => write!(f, "Established epoch={epoch}"),
            Effect::Begins { at } => write!(f, "Begins at={at}"),
            Effect::Moved(held) => write!(f, "Moved {held}"),
            Effect::Follow { leader: Some(leader), epoch } => write!(f, "Follow leader={leader} epoch={epoch}"),
            Effect::Follow { leader: None, epoch } => write!(f, "Follow nobody epoch={epoch}"),
            Effect::Answer { through } => write!(f, "Answer through={}", through.0),
            Effect::StillLeads { through } => write!(f, "StillLeads through={}", through.0),
            Effect::Drain => f.write_str("Drain"),
            Effect::Resume => f.write_str("Resume"),
            Effect::Stuck(stuck) => stuck.fmt(f),
            Effect::InSync { replica, keeps_up: true } => write!(f, "InSync replica={replica}"),
            Effect::InSync { replica, keeps_up: false } => write!(f, "OutOfSync replica={replica}"),
            Effect::Regressed { replica, had, has } => write!(f, "Regressed replica={replica} had={had} has={has}"),
            Effect::Rebuilt => f.write_str("Rebuilt"),
            Effect::Changed(members) => write!(f, "Changed {members}"),
            Effect::Retired => f.write_str("Retired"),
            Effect::LoadSpare { to, from, until } => write!(f, "LoadSpare for={to} {from}..{until}"),
            Effect::Rewrite(batches) => write!(f, "Rewrite {batches}"),
            Effect::Halt { committed, differs_at } => write!(f, "Halt committed={committed} differs-at={differs_at}"),
        }
    }
}
