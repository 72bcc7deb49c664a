//! The newest bytes of a partition, in memory: the group that is being filled, those that wait for the device, and
//! written ones that are kept for consumers near the end.
//!
//! A batch is copied once, into the aligned buffer that the device will read, and stamped there. A group is padded to
//! the device's block when it is sealed, so that a sector which was written is never written again.

use std::{collections::VecDeque, rc::Rc};

use bytes::Bytes;

use super::{
    scan::{Check, Step, Walk},
    segment::Segment,
};
use crate::{
    limits::DEVICE_BLOCK_BYTES_MAX,
    record::{BatchHeader, ServerFields, stamp},
    runtime::{Buffer, Runtime, share},
    types::Offset,
};

/// The largest buffer a group is given, unless one batch is larger. Device bandwidth is reached from here on, and more
/// of them are written side by side.
const GROUP_BYTES_MAX: usize = 512 << 10;

/// How far a reader walks in memory at most to find his first record, unless one batch is longer: behind so many bytes
/// stands the next mark. 8 bytes of memory each.
const MARK_BYTES: usize = 1 << 10;

/// A batch of a group that can be gone to at once.
#[derive(Clone, Copy)]
struct Mark {
    /// From the group's first offset on.
    records: u32,
    /// From the group's begin on.
    at: u32,
}

/// The last mark at or before `records`, which is in the group.
fn marked(marks: &[Mark], records: u64) -> u64 {
    let at = marks.partition_point(|mark| u64::from(mark.records) <= records);
    at.checked_sub(1).map_or(0, |at| u64::from(marks[at].at))
}

/// A batch on its way into the tail.
pub struct Admitted<'a> {
    /// The client's bytes, checked.
    pub bytes: &'a [u8],
    /// Their header.
    pub header: &'a BatchHeader,
    /// What to stamp them with.
    pub stamp: ServerFields,
}

/// A full group, on its way to the device or there already.
pub struct Group<R: Runtime> {
    /// The segment it belongs to.
    pub segment: Rc<Segment<R>>,
    /// Where in the file.
    pub position: u64,
    /// The batches end to end, without the padding.
    pub bytes: Bytes,
    /// What the device reads: the batches and the padding.
    pub buffer: Rc<R::Buffer>,
    /// Length of that: a multiple of the device's block.
    pub padded_bytes: usize,
    /// The memory it takes.
    pub allocated_bytes: usize,
    /// The offset of its first record.
    pub base_offset: Offset,
    /// The offset after its last record.
    pub end_offset: Offset,
    /// Some of its batches, in their order.
    marks: Vec<Mark>,
}

impl<R: Runtime> Group<R> {
    /// A copy of its batches before the one at `to`.
    fn until(&self, runtime: &R, to: Offset) -> Self {
        let header = &self.segment.header;
        let mut walk = Walk::new(&self.bytes, 0, (header.block_bytes, header.incarnation), Check::Known);
        let mut len = 0;
        while let Step::Batch(batch) = walk.step()
            && batch.header.base_offset < to
        {
            len = batch.position as usize + batch.header.batch_len();
        }
        assert!(len > 0 && len < self.bytes.len(), "the first {len} bytes of {} are before {to}", self.bytes.len());
        let padded_bytes = padded(&self.segment, len);
        let mut buffer = runtime.allocate(padded_bytes.next_multiple_of(DEVICE_BLOCK_BYTES_MAX as usize));
        let allocated_bytes = buffer.bytes().len();
        buffer.bytes_mut()[..len].copy_from_slice(&self.bytes[..len]);
        buffer.trim(padded_bytes);
        let buffer = Rc::new(buffer);
        Group {
            segment: Rc::clone(&self.segment),
            bytes: share(&buffer).slice(..len),
            buffer,
            padded_bytes,
            allocated_bytes,
            end_offset: to,
            marks: self.marks.iter().copied().filter(|mark| (mark.at as usize) < len).collect(),
            ..*self
        }
    }
}

struct OpenGroup<R: Runtime> {
    segment: Rc<Segment<R>>,
    position: u64,
    buffer: R::Buffer,
    capacity: usize,
    len: usize,
    base_offset: Offset,
    end_offset: Offset,
    marks: Vec<Mark>,
}

impl<R: Runtime> OpenGroup<R> {
    /// Notes where a batch begins, if the last one noted is far enough.
    fn mark(&mut self, offset: Offset) {
        if self.marks.last().is_none_or(|last| self.len >= last.at as usize + MARK_BYTES) {
            self.marks.push(Mark { records: (offset.0 - self.base_offset.0) as u32, at: self.len as u32 });
        }
    }
}

/// See the module.
pub struct Tail<R: Runtime> {
    /// Written groups first, then those that are not, oldest first.
    groups: VecDeque<Rc<Group<R>>>,
    /// How many at the front of `groups` are written.
    written: usize,
    unwritten_bytes: usize,
    open: Option<OpenGroup<R>>,
    /// What the next group is expected to need, from the last ones.
    expected_bytes: usize,
}

impl<R: Runtime> Default for Tail<R> {
    fn default() -> Self {
        Tail { groups: VecDeque::new(), written: 0, unwritten_bytes: 0, open: None, expected_bytes: 0 }
    }
}

impl<R: Runtime> Tail<R> {
    /// Bytes that are not written yet.
    pub fn unwritten_bytes(&self) -> usize {
        self.unwritten_bytes
    }

    /// Whether a group is full: nothing is gained by waiting before it is written.
    pub fn has_full_group(&self) -> bool {
        self.groups.len() > self.written
    }

    /// How many bytes the active segment would have if a batch of `batch_bytes` were added.
    pub fn end_with(&self, segment: &Segment<R>, batch_bytes: usize) -> u64 {
        let open = self.open.as_ref().map_or(0, |open| padded(&open.segment, open.len));
        segment.end_position.get() + (open + padded(segment, batch_bytes)) as u64
    }

    /// Adds a batch to `segment`, which is the active one. Returns where in the file it begins.
    pub fn push(&mut self, runtime: &R, segment: &Rc<Segment<R>>, batch: &Admitted<'_>) -> u64 {
        let fits =
            |open: &OpenGroup<R>| Rc::ptr_eq(&open.segment, segment) && open.capacity - open.len >= batch.bytes.len();
        if !self.open.as_ref().is_some_and(fits) {
            self.seal();
            self.open = Some(self.begin(runtime, segment, batch));
        }
        let open = self.open.as_mut().expect("a group was just begun"); // why: set in the lines above
        let place = &mut open.buffer.bytes_mut()[open.len..open.len + batch.bytes.len()];
        place.copy_from_slice(batch.bytes);
        stamp(place, batch.stamp);
        let position = open.position + open.len as u64;
        open.mark(batch.stamp.base_offset);
        open.len += batch.bytes.len();
        open.end_offset = batch.stamp.base_offset.advance(u64::from(batch.header.record_count));
        self.unwritten_bytes += batch.bytes.len();
        position
    }

    fn begin(&self, runtime: &R, segment: &Rc<Segment<R>>, batch: &Admitted<'_>) -> OpenGroup<R> {
        let need = batch.bytes.len();
        let position = segment.end_position.get();
        // Less would take the same memory.
        let wish = self.expected_bytes.next_power_of_two().clamp(DEVICE_BLOCK_BYTES_MAX as usize, GROUP_BYTES_MAX);
        let capacity = padded(segment, need.max(wish));
        let allocated = capacity.next_multiple_of(DEVICE_BLOCK_BYTES_MAX as usize);
        let buffer = runtime.allocate_unfilled(allocated);
        assert!(buffer.bytes().len() >= capacity, "asked for {allocated} bytes");
        let base_offset = batch.stamp.base_offset;
        let segment = Rc::clone(segment);
        let end_offset = base_offset;
        OpenGroup { segment, position, buffer, capacity, len: 0, base_offset, end_offset, marks: Vec::new() }
    }

    /// Closes the group that is being filled: pads it, and lets the device have it.
    pub fn seal(&mut self) {
        let Some(open) = self.open.take() else { return };
        assert!(open.len > 0, "a group is begun for a batch");
        let padded_bytes = padded(&open.segment, open.len);
        let expected_end = open.segment.end_position.get();
        assert!(open.position == expected_end, "group at {} behind {expected_end}", open.position);
        open.segment.end_position.set(open.position + padded_bytes as u64);
        // Grow fast and shrink slowly: a burst should not be cut into small groups because one quiet commit came before
        // it.
        self.expected_bytes = (open.len * 2).max(self.expected_bytes / 2);
        let mut buffer = open.buffer;
        let allocated_bytes = buffer.bytes().len();
        buffer.trim(padded_bytes);
        buffer.bytes_mut()[open.len..].fill(0);
        let buffer = Rc::new(buffer);
        let group = Group {
            segment: open.segment,
            position: open.position,
            bytes: share(&buffer).slice(..open.len),
            buffer,
            padded_bytes,
            allocated_bytes,
            base_offset: open.base_offset,
            end_offset: open.end_offset,
            marks: open.marks,
        };
        self.groups.push_back(Rc::new(group));
    }

    /// The offset of the first record that the device has not; `None` if it has all.
    pub fn unwritten_from(&self) -> Option<Offset> {
        let waiting = self.groups.get(self.written).map(|group| group.base_offset);
        waiting.or(self.open.as_ref().map(|open| open.base_offset))
    }

    /// Drops what waits for the device from the batch at `to` on.
    pub fn cut(&mut self, runtime: &R, to: Offset) {
        self.seal();
        while self.groups.len() > self.written
            && self.groups.back().is_some_and(|group| group.end_offset > to)
            && let Some(group) = self.groups.pop_back()
        {
            self.unwritten_bytes -= group.bytes.len();
            group.segment.end_position.set(group.position);
            if group.base_offset < to {
                let group = group.until(runtime, to);
                self.unwritten_bytes += group.bytes.len();
                group.segment.end_position.set(group.position + group.padded_bytes as u64);
                self.groups.push_back(Rc::new(group));
            }
        }
    }

    /// The groups that wait for the device, up to `bytes_max` of them but at least one, all of one segment.
    pub fn waiting(&self, bytes_max: usize) -> Vec<Rc<Group<R>>> {
        let mut taken: Vec<Rc<Group<R>>> = Vec::new();
        let mut bytes = 0;
        for group in self.groups.iter().skip(self.written) {
            bytes += group.padded_bytes;
            let other = taken.last().is_some_and(|last| !Rc::ptr_eq(&last.segment, &group.segment));
            if other || (bytes > bytes_max && !taken.is_empty()) {
                break;
            }
            taken.push(Rc::clone(group));
        }
        taken
    }

    /// The first `count` waiting groups were written. They stay until they are forgotten.
    pub fn mark_written(&mut self, count: usize) {
        assert!(self.written + count <= self.groups.len(), "{count} groups written of {}", self.groups.len());
        for group in self.groups.iter().skip(self.written).take(count) {
            self.unwritten_bytes -= group.bytes.len();
        }
        self.written += count;
    }

    /// Forgets the oldest group, if it is written.
    pub fn forget_oldest(&mut self) {
        if let Some(written) = self.written.checked_sub(1) {
            self.groups.pop_front();
            self.written = written;
        }
    }

    /// The bytes in memory of `segment` from `position` on, as far as they are contiguous without padding: a slice of a
    /// sealed group, or a copy of the open one, of that not many more than `wanted`. `None` if they are not in memory.
    pub fn bytes_at(&self, segment: &Rc<Segment<R>>, position: u64, wanted: usize) -> Option<TailBytes> {
        if let Some(open) = &self.open
            && Rc::ptr_eq(&open.segment, segment)
            && position >= open.position
        {
            let from = (position - open.position) as usize;
            // A group that ends with a block ends where the next position is: nothing is there yet, and to say "no
            // bytes, go on here" would have a reader ask for ever.
            let enough = open.marks.partition_point(|mark| (mark.at as usize) < from.saturating_add(wanted));
            let (to, end) = match open.marks.get(enough) {
                Some(mark) => (mark.at as usize, mark.at as usize),
                None => (open.len, padded(&open.segment, open.len)),
            };
            let bytes = open.buffer.bytes().get(from..to).filter(|bytes| !bytes.is_empty())?;
            let next = open.position + end as u64;
            return Some(TailBytes { bytes: Bytes::copy_from_slice(bytes), next });
        }
        let at = self.groups.partition_point(|group| {
            (group.segment.base_offset(), group.position) <= (segment.base_offset(), position)
        });
        let group = self.groups.get(at.checked_sub(1)?)?;
        let from = usize::try_from(position - group.position.min(position)).ok()?;
        if !Rc::ptr_eq(&group.segment, segment) || from >= group.padded_bytes {
            return None;
        }
        let next = group.position + group.padded_bytes as u64;
        Some(TailBytes { bytes: group.bytes.slice(from.min(group.bytes.len())..), next })
    }

    /// Where in `segment` a batch begins that holds `offset` or is not far before the one that does; `None` if that one
    /// is not in memory.
    pub fn start_of(&self, segment: &Rc<Segment<R>>, offset: Offset) -> Option<u64> {
        let at = self.groups.partition_point(|group| group.end_offset <= offset);
        if let Some(group) = self.groups.get(at) {
            // The oldest group in memory may begin after the record.
            let here = Rc::ptr_eq(&group.segment, segment) && group.base_offset <= offset;
            return here.then(|| group.position + marked(&group.marks, offset.0 - group.base_offset.0));
        }
        let open = self.open.as_ref()?;
        let here = Rc::ptr_eq(&open.segment, segment) && open.base_offset <= offset && offset < open.end_offset;
        here.then(|| open.position + marked(&open.marks, offset.0 - open.base_offset.0))
    }

    /// The position in `segment` up to which the device has everything.
    pub fn written_end(&self, segment: &Rc<Segment<R>>) -> u64 {
        let waiting = self.groups.iter().skip(self.written).find(|group| Rc::ptr_eq(&group.segment, segment));
        waiting.map_or(segment.end_position.get(), |group| group.position)
    }

    /// The offset of the first record of `segment` that the device has not; `None` if it has all of them.
    pub fn unwritten_offset(&self, segment: &Rc<Segment<R>>) -> Option<Offset> {
        let waiting = self.groups.iter().skip(self.written).find(|group| Rc::ptr_eq(&group.segment, segment));
        let open = self.open.as_ref().filter(|open| Rc::ptr_eq(&open.segment, segment));
        waiting.map(|group| group.base_offset).or(open.map(|open| open.base_offset))
    }
}

/// `len` and its padding. To the block of the segment, which may have been made when the device's was taken for a
/// larger one: whoever reads the segment goes by its header.
fn padded<R: Runtime>(segment: &Segment<R>, len: usize) -> usize {
    len.next_multiple_of(segment.header.block_bytes as usize)
}

/// Bytes found in memory.
pub struct TailBytes {
    /// Whole batches, if asked for at a batch.
    pub bytes: Bytes,
    /// The position where what follows begins: behind the padding, if there is some.
    pub next: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        log::{
            fixture::{P, batch_of},
            segment::SegmentHeader,
        },
        record::check_produced,
        runtime::sim::{Sim, SimConfig, SimRuntime},
        types::{Incarnation, LeaderEpoch},
    };

    const BLOCK: usize = 512;

    fn segment() -> Rc<Segment<SimRuntime>> {
        let header = SegmentHeader {
            partition: P,
            block_bytes: BLOCK as u32,
            base_offset: Offset(0),
            created_ms: 0,
            incarnation: Incarnation(1),
            leader_epoch: LeaderEpoch(1),
        };
        Rc::new(Segment::planned(std::path::Path::new("/d"), header))
    }

    fn stamped(base_offset: u64) -> ServerFields {
        ServerFields {
            base_offset: Offset(base_offset),
            durable_hint: Offset(0),
            leader_epoch: LeaderEpoch(1),
            incarnation: Incarnation(1),
        }
    }

    #[test]
    fn groups_are_found_by_offset_whether_they_wait_or_are_being_filled() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let (segment, bytes) = (segment(), batch_of(BLOCK));
        let header = check_produced(&bytes).unwrap();
        let mut tail = Tail::default();
        let mut starts = Vec::new();
        for offset in 0..3 {
            let batch = Admitted { bytes: &bytes, header: &header, stamp: stamped(offset) };
            starts.push(tail.push(&cores[0], &segment, &batch));
            if offset < 2 {
                tail.seal();
            }
        }
        let found: Vec<_> = (0..4).map(|offset| tail.start_of(&segment, Offset(offset))).collect();
        assert_eq!(found, [Some(starts[0]), Some(starts[1]), Some(starts[2]), None]);
        let other = self::segment();
        assert_eq!((0..4).find_map(|offset| tail.start_of(&other, Offset(offset))), None, "of another segment");
        assert!(tail.unwritten_offset(&other).is_none() && tail.bytes_at(&other, starts[0], 1).is_none());
        let unwritten = |tail: &Tail<_>| (tail.has_full_group(), tail.unwritten_offset(&segment));
        assert_eq!(unwritten(&tail), (true, Some(Offset(0))));
        tail.mark_written(2);
        assert_eq!(unwritten(&tail), (false, Some(Offset(2))), "the third is still being filled");
        tail.seal();
        assert_eq!(unwritten(&tail), (true, Some(Offset(2))));
        tail.mark_written(1);
        assert_eq!((unwritten(&tail), tail.unwritten_bytes()), ((false, None), 0));
    }

    #[test]
    fn a_reader_in_memory_begins_near_his_record_and_takes_little_more_than_he_wants() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let (segment, bytes) = (segment(), batch_of(200));
        let header = check_produced(&bytes).unwrap();
        let mut tail = Tail::default();
        let positions: Vec<u64> = (0..200)
            .map(|offset| {
                tail.push(&cores[0], &segment, &Admitted { bytes: &bytes, header: &header, stamp: stamped(offset) })
            })
            .collect();
        for _ in 0..2 {
            let copied_from = tail.open.as_ref().map_or(u64::MAX, |open| open.position);
            for (offset, position) in positions.iter().enumerate() {
                let start = tail.start_of(&segment, Offset(offset as u64)).unwrap();
                assert!(positions.contains(&start) && (start..start + MARK_BYTES as u64 + 200).contains(position));
                let found = tail.bytes_at(&segment, *position, 300).unwrap();
                let ends_at_a_batch = positions.contains(&found.next) || found.next >= positions[199] + 200;
                assert!(ends_at_a_batch && found.bytes.len() >= 200 && found.bytes.len().is_multiple_of(200));
                let copied = if *position < copied_from { 0 } else { found.bytes.len() };
                assert!(copied < 300 + MARK_BYTES + 200, "{copied} bytes");
            }
            tail.seal();
        }
    }

    #[test]
    fn groups_are_given_out_up_to_a_number_of_bytes_and_what_is_forgotten_is_not_found() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let (segment, bytes) = (segment(), batch_of(BLOCK));
        let header = check_produced(&bytes).unwrap();
        let mut tail = Tail::default();
        for offset in 0..3 {
            let batch = Admitted { bytes: &bytes, header: &header, stamp: stamped(offset) };
            tail.push(&cores[0], &segment, &batch);
            tail.seal();
        }
        let given = |bytes_max| tail.waiting(bytes_max).len();
        assert_eq!([1, 2 * BLOCK - 1, 2 * BLOCK, 3 * BLOCK].map(given), [1, 1, 2, 3]);
        tail.forget_oldest();
        assert!(tail.start_of(&segment, Offset(0)).is_some(), "what is not written is not forgotten");
        tail.mark_written(1);
        tail.forget_oldest();
        assert_eq!(tail.start_of(&segment, Offset(0)), None);
        assert!(tail.start_of(&segment, Offset(1)).is_some());
    }

    #[test]
    fn a_group_that_fills_its_block_ends_there_for_readers_before_and_after_it_is_sealed() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let (segment, bytes) = (segment(), batch_of(BLOCK));
        let mut tail = Tail::default();
        let header = check_produced(&bytes).unwrap();
        let stamp = stamped(0);
        let begin = tail.push(&cores[0], &segment, &Admitted { bytes: &bytes, header: &header, stamp });
        for sealed in [false, true] {
            let found = tail.bytes_at(&segment, begin, BLOCK).unwrap();
            assert_eq!((found.bytes.len(), found.next), (BLOCK, begin + BLOCK as u64), "sealed: {sealed}");
            assert!(
                tail.bytes_at(&segment, found.next, 1).is_none(),
                "a reader would go on at its place, sealed: {sealed}"
            );
            tail.seal();
        }
    }

    /// The groups that are made of batches of these lengths, each sealed by itself.
    fn groups_of(lens: &[usize]) -> (Tail<SimRuntime>, Vec<Rc<Group<SimRuntime>>>) {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let (segment, mut tail) = (segment(), Tail::default());
        for (offset, len) in (0..).zip(lens) {
            let bytes = batch_of(*len);
            let header = check_produced(&bytes).unwrap();
            tail.push(&cores[0], &segment, &Admitted { bytes: &bytes, header: &header, stamp: stamped(offset) });
            tail.seal();
        }
        let groups = tail.waiting(usize::MAX);
        (tail, groups)
    }

    #[test]
    fn a_group_has_room_for_twice_what_the_last_one_needed_and_after_a_quiet_one_for_half_of_it() {
        let (_, groups) = groups_of(&[300, 60_000, 300, 300, 300, 300]);
        let allocated: Vec<usize> = groups.iter().map(|group| group.allocated_bytes).collect();
        let blocks = 60_000_usize.next_multiple_of(4096);
        assert_eq!(allocated, [4096, blocks, 128 << 10, 64 << 10, 32 << 10, 16 << 10]);
        let (_, groups) = groups_of(&[700_000, 300]);
        assert_eq!(groups[1].allocated_bytes, GROUP_BYTES_MAX, "never for more than this");
    }

    #[test]
    fn what_is_cut_off_within_a_group_leaves_a_shorter_group_in_its_place() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let (segment, bytes) = (segment(), batch_of(BLOCK));
        let header = check_produced(&bytes).unwrap();
        let mut tail = Tail::default();
        // A group that is written, one of three batches, and one that is being filled.
        for offset in 0..5 {
            tail.push(&cores[0], &segment, &Admitted { bytes: &bytes, header: &header, stamp: stamped(offset) });
            if [0, 3].contains(&offset) {
                tail.seal();
            }
        }
        tail.mark_written(1);
        assert_eq!(tail.unwritten_from(), Some(Offset(1)));
        tail.cut(&cores[0], Offset(3));
        let left = tail.waiting(usize::MAX);
        let [group] = &left[..] else { panic!("{} groups", left.len()) };
        assert_eq!((group.base_offset, group.end_offset, group.bytes.len()), (Offset(1), Offset(3), 2 * BLOCK));
        assert_eq!((group.padded_bytes, group.buffer.bytes().len()), (2 * BLOCK, 2 * BLOCK));
        assert_eq!(segment.end_position.get(), group.position + 2 * BLOCK as u64);
        assert_eq!((tail.unwritten_bytes(), tail.unwritten_from()), (2 * BLOCK, Some(Offset(1))));
        tail.cut(&cores[0], Offset(1));
        assert_eq!((tail.waiting(usize::MAX).len(), tail.unwritten_bytes()), (0, 0));
        assert_eq!(segment.end_position.get(), group.position);
        tail.cut(&cores[0], Offset(0));
        assert!(tail.start_of(&segment, Offset(0)).is_some(), "what is written is cut off on the device");
    }

    #[test]
    fn what_the_device_has_not_begins_with_the_group_that_waits_or_else_with_the_one_that_is_filled() {
        let sim = Sim::new(1, &SimConfig::default());
        let (_, cores) = sim.process(1);
        let (segment, bytes) = (segment(), batch_of(BLOCK));
        let header = check_produced(&bytes).unwrap();
        let mut tail = Tail::default();
        assert_eq!((tail.unwritten_from(), tail.written_end(&segment)), (None, 4096));
        for offset in 0..2 {
            tail.push(&cores[0], &segment, &Admitted { bytes: &bytes, header: &header, stamp: stamped(offset) });
            assert_eq!((tail.unwritten_from(), tail.written_end(&segment)), (Some(Offset(0)), 4096));
            if offset == 0 {
                tail.seal();
            }
        }
        assert_eq!(tail.end_with(&segment, 1), 4096 + 3 * BLOCK as u64, "each group in blocks of its own");
        tail.mark_written(1);
        assert_eq!((tail.unwritten_from(), tail.written_end(&segment)), (Some(Offset(1)), 4096 + BLOCK as u64));
    }
}
