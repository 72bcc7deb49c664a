//! What recovery does about the last segment of a log when records in it that were durable are damaged: nothing is cut
//! off, and what is intact behind the damage is found.

use super::{
    LogContext, LogFault,
    last_segment::LastSegment,
    scan::Located,
    segment::Segment,
    survey::{Found, Lost, Survey},
};
use crate::{
    runtime::{File, Runtime},
    types::Offset,
};

/// Goes on behind the first damage of a last segment, of which nothing is cut off: what is intact behind it is found as
/// well, up to the first place where records are missing of which none is known to have been durable. That is a flush
/// that was cut off, and what is behind it was never acknowledged as durable and might be taken back by a repair.
pub(super) async fn read_behind_damage<R: Runtime>(
    context: &LogContext<R>,
    last: &Segment<R>,
    file: &R::File,
    found: &mut LastSegment,
) -> Result<Vec<Lost>, LogFault> {
    let fault = |error: std::io::Error| LogFault::unread("reading", &last.path, &error);
    let size = file.size().await.map_err(fault)?;
    let span = (found.cut_position, size);
    let new_survey = || Survey::new(&last.header, span, (found.end_offset, Offset(u64::MAX)));
    let mut durable = found.durable_hint;
    let mut hints = |shown| {
        if let Found::Batch(batch) = shown {
            durable = durable.max(batch.header.durable_hint);
        }
    };
    run_survey(context, file, &mut new_survey(), &mut hints).await.map_err(fault)?;
    let (mut losses, mut ended) = (Vec::new(), false);
    let mut survey = new_survey();
    let mut gather = |shown| match shown {
        // A hole between two records that follow each other: a group in a wrong place leaves it where it belongs. A
        // flush that was cut off lacks records.
        Found::Lost(lost) if lost.from == lost.to => {}
        Found::Lost(lost) => {
            ended |= lost.from >= durable;
            if !ended {
                // In the log of a replica all of a segment is of one reign.
                found.reigns.note(last.header.leader_epoch, lost.from);
                losses.push(lost);
            }
        }
        Found::Batch(_) if ended => {}
        Found::Batch(Located { position, header }) => {
            found.index.note(header.base_offset, position, header.max_timestamp_ms);
            found.end_offset = header.end_offset();
            let end = position + header.batch_len() as u64;
            found.end_position = end.next_multiple_of(u64::from(last.header.block_bytes));
            found.epoch = found.epoch.max(header.leader_epoch);
            found.reigns.note(header.leader_epoch, header.base_offset);
        }
    };
    run_survey(context, file, &mut survey, &mut gather).await.map_err(fault)?;
    found.durable_hint = durable;
    Ok(losses)
}

/// Gives a survey the bytes that it wants, as the file has them.
pub(super) async fn run_survey<R: Runtime>(
    context: &LogContext<R>,
    file: &R::File,
    survey: &mut Survey,
    see: &mut impl FnMut(Found),
) -> std::io::Result<()> {
    run_survey_until(context, file, (survey, see), || false).await
}

/// The same until it `is_enough`.
pub(super) async fn run_survey_until<R: Runtime>(
    context: &LogContext<R>,
    file: &R::File,
    (survey, see): (&mut Survey, &mut impl FnMut(Found)),
    is_enough: impl Fn() -> bool,
) -> std::io::Result<()> {
    let align = file.alignment();
    while !is_enough()
        && let Some((position, len)) = survey.wants()
    {
        let from = position - position % align;
        let wanted = (position - from) as usize..(position - from) as usize + len;
        let bytes = file.read_at(from, wanted.end.next_multiple_of(align as usize)).await?;
        survey.take(&bytes[wanted.start.min(bytes.len())..wanted.end.min(bytes.len())], see);
        context.runtime.yield_now().await;
    }
    Ok(())
}
