//! The content of one simulated file: what reads see, what a loss of power cannot take, and what lies between the two,
//! sector by sector.

use std::{collections::BTreeMap, ops::Range, rc::Rc, time::Duration};

use super::random::SimRandom;

/// Bytes that survive or perish together.
pub(super) const SECTOR: usize = 512;
pub(super) const PAGE: usize = 4096;
const SECTORS: usize = PAGE / SECTOR;

type Page = [u8; PAGE];

/// Content by page; absent pages are zeros, so preparing a file costs next to nothing.
#[derive(Clone, Default)]
struct Pages(BTreeMap<u64, Rc<Page>>);

impl Pages {
    fn read(&self, position: u64, into: &mut [u8]) {
        let mut done = 0;
        while done < into.len() {
            let at = position + done as u64;
            let within = at as usize % PAGE;
            let count = (PAGE - within).min(into.len() - done);
            match self.0.get(&(at / PAGE as u64)) {
                Some(page) => into[done..done + count].copy_from_slice(&page[within..within + count]),
                None => into[done..done + count].fill(0),
            }
            done += count;
        }
    }

    fn sector(&self, page: u64, sector: usize) -> [u8; SECTOR] {
        let mut bytes = [0; SECTOR];
        if let Some(content) = self.0.get(&page) {
            bytes.copy_from_slice(&content[sector * SECTOR..(sector + 1) * SECTOR]);
        }
        bytes
    }

    fn set_sector(&mut self, page: u64, sector: usize, bytes: &[u8; SECTOR]) {
        let content = match self.0.get_mut(&page) {
            Some(content) => content,
            None if *bytes == [0; SECTOR] => return,
            None => self.0.entry(page).or_insert_with(|| Rc::new([0; PAGE])),
        };
        Rc::make_mut(content)[sector * SECTOR..(sector + 1) * SECTOR].copy_from_slice(bytes);
    }

    /// Zeros everything from `len` on.
    fn cut(&mut self, len: u64) {
        let last = len / PAGE as u64;
        self.0.split_off(&(last + 1));
        if let Some(page) = self.0.get_mut(&last) {
            Rc::make_mut(page)[len as usize % PAGE..].fill(0);
        }
    }
}

/// What is known of the sectors of a page that differ from what is durable, or may.
#[derive(Clone, Default)]
struct Dirty {
    /// The write each sector was last written by; 0 for clean ones.
    version: [u64; SECTORS],
    /// The write has completed: the next sync covers it.
    completed: [bool; SECTORS],
    /// A change of length did it, not a write: file systems keep a journal of those, so it is lost with the length or
    /// not at all.
    journaled: [bool; SECTORS],
}

/// A file.
#[derive(Default)]
pub(super) struct Inode {
    visible: Pages,
    visible_len: u64,
    durable: Pages,
    durable_len: u64,
    dirty: BTreeMap<u64, Dirty>,
    /// How many syncs began, and which of them was the newest to end well.
    syncs_begun: u64,
    newest_sync: u64,
    /// When the last of the writes under way will end.
    busy_until: Duration,
    /// What should stand in sectors that a flipped bit or a misdirected write spoiled.
    wounds: BTreeMap<u64, [u8; SECTOR]>,
    /// The length that durable writes need: no sync that began before them takes it back.
    durable_writes_end: u64,
    /// Bytes that the drive does not give any more: a read of any of them fails. What is written there anew it gives.
    pub(super) unreadable: Vec<Range<u64>>,
    /// Pages that are mapped, once for each mapping.
    pub(super) mapped: Vec<Range<u64>>,
    /// How many openings keep it from being mapped.
    pub(super) claims: u32,
}

/// What a sync will make durable: what was completed when it began.
pub(super) struct SyncPoint {
    number: u64,
    sectors: Vec<(u64, usize, u64, [u8; SECTOR])>,
    len: u64,
}

/// What a loss of power did to a file.
#[derive(Default)]
pub(super) struct Losses {
    pub(super) lost: u64,
    pub(super) torn: u64,
    pub(super) size: bool,
}

impl Inode {
    /// A file with this content, durably.
    pub(super) fn with_content(content: &[u8]) -> Self {
        let mut pages = Pages::default();
        for (index, chunk) in content.chunks(SECTOR).enumerate() {
            let (page, sector) = place((index * SECTOR) as u64);
            let mut bytes = [0; SECTOR];
            bytes[..chunk.len()].copy_from_slice(chunk);
            pages.set_sector(page, sector, &bytes);
        }
        let len = content.len() as u64;
        Inode { visible: pages.clone(), visible_len: len, durable: pages, durable_len: len, ..Inode::default() }
    }

    pub(super) fn len(&self) -> u64 {
        self.visible_len
    }

    pub(super) fn read(&self, position: u64, len: usize) -> Vec<u8> {
        let count = self.visible_len.saturating_sub(position).min(len as u64) as usize;
        let mut bytes = vec![0; count];
        self.visible.read(position, &mut bytes);
        bytes
    }

    /// Whether a read would fail however often it is tried.
    pub(super) fn is_unreadable(&self, position: u64, len: usize) -> bool {
        let end = self.visible_len.min(position + len as u64);
        self.unreadable.iter().any(|bytes| bytes.start < end && position < bytes.end)
    }

    /// A write is under way, also if its process dies, until then.
    pub(super) fn be_busy_until(&mut self, ends: Duration) {
        self.busy_until = self.busy_until.max(ends);
    }

    /// When the last of the writes under way ends.
    pub(super) fn busy_until(&self) -> Duration {
        self.busy_until
    }

    /// Somebody else than a process changes what stands at `position`, which is there.
    pub(super) fn put_bytes(&mut self, position: u64, bytes: &[u8]) {
        for (byte, at) in bytes.iter().zip(position..self.visible_len) {
            let (page, sector) = place(at);
            let mut content = self.visible.sector(page, sector);
            content[at as usize % SECTOR] = *byte;
            self.visible.set_sector(page, sector, &content);
        }
    }

    /// Whether a loss of power may take something that was written.
    pub(super) fn is_at_risk(&self) -> bool {
        self.dirty.iter().any(|(page, dirty)| {
            let at_risk = |sector: &usize| dirty.version[*sector] != 0 && !dirty.journaled[*sector];
            let differs = |sector| self.visible.sector(*page, sector) != self.durable.sector(*page, sector);
            (0..SECTORS).filter(at_risk).any(differs)
        })
    }

    /// A write begins: reads see it, nothing protects it.
    pub(super) fn write(&mut self, position: u64, bytes: &[u8], version: u64) {
        if !self.wounds.is_empty() {
            let from = position / SECTOR as u64;
            let to = from + (bytes.len() / SECTOR) as u64;
            self.wounds.retain(|sector, _| !(from..to).contains(sector));
        }
        let end = position + bytes.len() as u64;
        self.unreadable.retain(|bytes| end <= bytes.start || bytes.end <= position);
        self.put(position, bytes, version);
        self.visible_len = self.visible_len.max(end);
    }

    /// A write for `position` begins and goes to `target`.
    pub(super) fn write_misdirected(&mut self, (position, target): (u64, u64), bytes: &[u8], version: u64) {
        for (index, hit) in (target / SECTOR as u64..).take(bytes.len() / SECTOR).enumerate() {
            let (page, sector) = place(target + (index * SECTOR) as u64);
            let right = self.visible.sector(page, sector);
            self.wounds.entry(hit).or_insert(right);
        }
        for (chunk, missed) in bytes.chunks_exact(SECTOR).zip(position / SECTOR as u64..) {
            let content: [u8; SECTOR] = chunk.try_into().expect("a whole sector"); // why: chunks_exact
            self.wounds.insert(missed, content);
        }
        self.put(target, bytes, version);
        self.visible_len = self.visible_len.max(position + bytes.len() as u64);
    }

    fn put(&mut self, position: u64, bytes: &[u8], version: u64) {
        for (index, chunk) in bytes.chunks_exact(SECTOR).enumerate() {
            let (page, sector) = place(position + (index * SECTOR) as u64);
            let content: &[u8; SECTOR] = chunk.try_into().expect("a whole sector"); // why: chunks_exact
            self.visible.set_sector(page, sector, content);
            self.touch(page, sector, version).completed[sector] = false;
        }
    }

    /// The whole content as it should be, if it is not.
    pub(super) fn right_content(&self) -> Option<Vec<u8>> {
        let mut content = self.read(0, self.visible_len as usize);
        let mut wounded = false;
        for (index, right) in &self.wounds {
            let from = (*index as usize * SECTOR).min(content.len());
            let to = (from + SECTOR).min(content.len());
            wounded |= content[from..to] != right[..to - from];
            content[from..to].copy_from_slice(&right[..to - from]);
        }
        wounded.then_some(content)
    }

    fn touch(&mut self, page: u64, sector: usize, version: u64) -> &mut Dirty {
        let dirty = self.dirty.entry(page).or_default();
        dirty.version[sector] = version;
        dirty.completed[sector] = true;
        dirty.journaled[sector] = false;
        dirty
    }

    /// A write ends; the next sync covers it.
    pub(super) fn complete(&mut self, position: u64, len: usize, version: u64) {
        for index in 0..len / SECTOR {
            let (page, sector) = place(position + (index * SECTOR) as u64);
            if let Some(dirty) = self.dirty.get_mut(&page)
                && dirty.version[sector] == version
            {
                dirty.completed[sector] = true;
            }
        }
    }

    /// Makes durable what write `version` wrote. `false` if that is not all there any more.
    pub(super) fn make_durable(&mut self, position: u64, len: usize, version: u64) -> bool {
        let mut whole = true;
        for index in 0..len / SECTOR {
            let (page, sector) = place(position + (index * SECTOR) as u64);
            let Some(dirty) = self.dirty.get_mut(&page).filter(|dirty| dirty.version[sector] == version) else {
                whole = false;
                continue;
            };
            dirty.version[sector] = 0;
            if dirty.version == [0; SECTORS] {
                self.dirty.remove(&page);
            }
            let content = self.visible.sector(page, sector);
            self.durable.set_sector(page, sector, &content);
        }
        self.durable_writes_end = self.durable_writes_end.max(self.visible_len.min(position + len as u64));
        self.durable_len = self.durable_len.max(self.durable_writes_end);
        whole
    }

    /// A write fails: each of its sectors may have its old content or the new.
    pub(super) fn fail(&mut self, position: u64, len: usize, version: u64, random: &mut SimRandom) {
        for index in 0..len / SECTOR {
            let (page, sector) = place(position + (index * SECTOR) as u64);
            if random.happens(5_000) {
                let old = self.durable.sector(page, sector);
                self.visible.set_sector(page, sector, &old);
            }
        }
        self.complete(position, len, version);
    }

    pub(super) fn truncate(&mut self, len: u64, version: u64) {
        self.check_cut(len);
        let old = self.visible_len;
        self.visible.cut(len);
        self.visible_len = len;
        self.wounds.split_off(&len.div_ceil(SECTOR as u64));
        self.durable_writes_end = self.durable_writes_end.min(len);
        // What was cut off is durable until the next sync; what is new is zero and not durable.
        let from = old.min(len) / SECTOR as u64;
        let to = old.max(len).max(self.durable_len).div_ceil(SECTOR as u64);
        for index in from..to {
            let (page, sector) = place(index * SECTOR as u64);
            if index * (SECTOR as u64) < self.durable_len || self.dirty.contains_key(&page) {
                self.touch(page, sector, version).journaled[sector] = true;
            }
        }
    }

    pub(super) fn begin_sync(&mut self) -> SyncPoint {
        self.syncs_begun += 1;
        let mut sectors = Vec::new();
        for (page, dirty) in &self.dirty {
            for sector in 0..SECTORS {
                if dirty.version[sector] != 0 && dirty.completed[sector] {
                    sectors.push((*page, sector, dirty.version[sector], self.visible.sector(*page, sector)));
                }
            }
        }
        SyncPoint { number: self.syncs_begun, sectors, len: self.visible_len }
    }

    pub(super) fn end_sync(&mut self, point: SyncPoint) {
        // A sync that began later may end first; it covered this one.
        if point.number < self.newest_sync {
            return;
        }
        self.newest_sync = point.number;
        for (page, sector, version, content) in point.sectors {
            // Clean by now: a durable write was faster, with the same content or a newer one.
            let Some(dirty) = self.dirty.get_mut(&page).filter(|dirty| dirty.version[sector] != 0) else { continue };
            self.durable.set_sector(page, sector, &content);
            if dirty.version[sector] == version {
                dirty.version[sector] = 0;
            }
            if dirty.version == [0; SECTORS] {
                self.dirty.remove(&page);
            }
        }
        self.durable_len = point.len.max(self.durable_writes_end);
    }

    /// A sync fails: about half of what it should have covered falls out of the drive's cache, and no later sync brings
    /// it back, though it succeeds.
    pub(super) fn fail_sync(&mut self, random: &mut SimRandom) {
        for (page, dirty) in &mut self.dirty {
            for sector in 0..SECTORS {
                let at_stake = dirty.version[sector] != 0 && dirty.completed[sector] && !dirty.journaled[sector];
                if at_stake && random.happens(5_000) {
                    self.visible.set_sector(*page, sector, &self.durable.sector(*page, sector));
                    dirty.version[sector] = 0;
                }
            }
        }
        self.dirty.retain(|_, dirty| dirty.version != [0; SECTORS]);
    }

    /// The power is lost: the device decides for each sector, and for the length, what is left.
    pub(super) fn lose_power(&mut self, (lost, torn, size): (u32, u32, u32), random: &mut SimRandom) -> Losses {
        let mut losses = Losses::default();
        self.busy_until = Duration::ZERO;
        if self.visible_len != self.durable_len && random.happens(size) {
            losses.size = true;
            self.visible_len = self.durable_len;
        }
        for (page, dirty) in std::mem::take(&mut self.dirty) {
            for sector in 0..SECTORS {
                if dirty.version[sector] == 0 {
                    continue;
                }
                let old = self.durable.sector(page, sector);
                let new = self.visible.sector(page, sector);
                let kept = if dirty.journaled[sector] {
                    if losses.size { old } else { new }
                } else if random.happens(torn) {
                    losses.torn += 1;
                    if random.happens(3_000) { [0; SECTOR] } else { garbage(random) }
                } else if old != new && random.happens(lost) {
                    losses.lost += 1;
                    old
                } else {
                    new
                };
                self.visible.set_sector(page, sector, &kept);
            }
        }
        self.visible.cut(self.visible_len);
        self.durable = self.visible.clone();
        self.durable_len = self.visible_len;
        losses
    }

    /// Turns one bit of the content over, of the byte at `at` or of any. `false` if there is none.
    pub(super) fn flip_bit(&mut self, at: Option<u64>, random: &mut SimRandom) -> bool {
        if at.map_or(0, |at| at) >= self.visible_len {
            return false;
        }
        let at = at.unwrap_or_else(|| random.below(self.visible_len));
        let bit = 1 << random.below(8);
        let (page, sector) = place(at);
        self.wounds.entry(at / SECTOR as u64).or_insert(self.visible.sector(page, sector));
        for pages in [&mut self.visible, &mut self.durable] {
            let mut bytes = pages.sector(page, sector);
            bytes[at as usize % SECTOR] ^= bit;
            pages.set_sector(page, sector, &bytes);
        }
        true
    }

    /// The sectors from `from` on came to stand at `to` as well, durably: a write that went there before it went where
    /// it belongs.
    pub(super) fn misdirect(&mut self, from: u64, to: u64, sectors: u64) -> bool {
        let end = from.max(to) + sectors * SECTOR as u64;
        if end > self.visible_len || from == to {
            return false;
        }
        let copies: Vec<_> = (0..sectors)
            .map(|at| {
                let (page, sector) = place(from + at * SECTOR as u64);
                self.visible.sector(page, sector)
            })
            .collect();
        for (at, copy) in (to / SECTOR as u64..).zip(copies) {
            let (page, sector) = place(at * SECTOR as u64);
            self.wounds.entry(at).or_insert(self.visible.sector(page, sector));
            self.visible.set_sector(page, sector, &copy);
            self.durable.set_sector(page, sector, &copy);
        }
        true
    }
}

fn place(position: u64) -> (u64, usize) {
    (position / PAGE as u64, position as usize % PAGE / SECTOR)
}

fn garbage(random: &mut SimRandom) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    bytes.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(&random.next_u64().to_le_bytes()));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALWAYS: u32 = 10_000;

    fn random() -> SimRandom {
        SimRandom::new(1, 1)
    }

    fn synced(byte: u8) -> Inode {
        let mut inode = Inode::default();
        inode.write(0, &[byte; 2 * PAGE], 1);
        inode.complete(0, 2 * PAGE, 1);
        let point = inode.begin_sync();
        inode.end_sync(point);
        inode
    }

    #[test]
    fn what_was_synced_survives_and_what_was_not_is_lost() {
        let mut inode = synced(1);
        inode.write(SECTOR as u64, &[2; SECTOR], 2);
        inode.complete(SECTOR as u64, SECTOR, 2);
        assert_eq!(inode.read(SECTOR as u64, SECTOR), [2; SECTOR], "reads see what is not synced");
        let losses = inode.lose_power((ALWAYS, 0, ALWAYS), &mut random());
        assert_eq!((losses.lost, losses.torn), (1, 0));
        assert_eq!(inode.read(0, 2 * PAGE), vec![1; 2 * PAGE]);
    }

    #[test]
    fn a_sync_covers_what_was_complete_when_it_began() {
        let mut inode = synced(1);
        inode.write(0, &[2; SECTOR], 2);
        let point = inode.begin_sync();
        inode.complete(0, SECTOR, 2);
        inode.end_sync(point);
        inode.lose_power((ALWAYS, 0, 0), &mut random());
        assert_eq!(inode.read(0, SECTOR), [1; SECTOR]);
    }

    #[test]
    fn a_failed_sync_is_not_made_good_by_the_next() {
        let mut inode = synced(1);
        inode.write(0, &[2; PAGE], 2);
        inode.complete(0, PAGE, 2);
        inode.fail_sync(&mut random());
        let point = inode.begin_sync();
        inode.end_sync(point);
        assert_eq!(inode.lose_power((ALWAYS, 0, 0), &mut random()).lost, 0, "what is left was synced");
        let sectors = inode.read(0, PAGE).chunks(SECTOR).filter(|sector| **sector == [1; SECTOR]).count();
        assert!((1..8).contains(&sectors), "{sectors} of 8 sectors were lost");
    }

    #[test]
    fn syncs_may_end_in_another_order_than_they_began() {
        let mut inode = synced(1);
        let first = inode.begin_sync();
        inode.write(0, &[2; SECTOR], 2);
        inode.complete(0, SECTOR, 2);
        let second = inode.begin_sync();
        inode.end_sync(second);
        inode.end_sync(first);
        inode.lose_power((ALWAYS, 0, ALWAYS), &mut random());
        assert_eq!(inode.read(0, SECTOR), [2; SECTOR]);
    }

    #[test]
    fn a_durable_write_covers_itself_and_its_length_whatever_syncs_run_beside_it() {
        let mut inode = synced(1);
        let before = inode.begin_sync();
        inode.write(0, &[2; SECTOR], 2);
        inode.complete(0, SECTOR, 2);
        inode.write(2 * PAGE as u64, &[3; PAGE], 3);
        inode.complete(2 * PAGE as u64, PAGE, 3);
        assert!(inode.make_durable(2 * PAGE as u64, PAGE, 3));
        inode.end_sync(before);
        let losses = inode.lose_power((ALWAYS, 0, ALWAYS), &mut random());
        assert_eq!((losses.lost, losses.size), (1, false), "only the other write is lost");
        assert_eq!(inode.read(2 * PAGE as u64, 2 * PAGE), [3; PAGE]);
    }

    #[test]
    fn a_durable_write_whose_bytes_a_failed_sync_took_is_no_success() {
        let mut inode = synced(1);
        inode.write(0, &[2; PAGE], 2);
        inode.complete(0, PAGE, 2);
        inode.fail_sync(&mut random());
        assert!(!inode.make_durable(0, PAGE, 2));
    }

    #[test]
    fn an_unsynced_length_is_lost_with_what_it_cut_off() {
        let mut inode = synced(1);
        inode.truncate(SECTOR as u64, 2);
        assert_eq!(inode.read(0, PAGE), [1; SECTOR]);
        let losses = inode.lose_power((ALWAYS, 0, ALWAYS), &mut random());
        assert!(losses.size);
        assert_eq!(inode.read(0, 2 * PAGE), vec![1; 2 * PAGE]);
    }

    #[test]
    fn a_misdirected_write_spoils_two_places_and_a_write_heals_each() {
        let mut inode = synced(1);
        inode.write_misdirected((0, PAGE as u64), &[2; SECTOR], 2);
        assert_eq!((inode.read(0, SECTOR), inode.read(PAGE as u64, SECTOR)), (vec![1; SECTOR], vec![2; SECTOR]));
        let right = inode.right_content().unwrap();
        assert_eq!((right[0], right[PAGE]), (2, 1));
        inode.write(0, &[3; SECTOR], 3);
        assert_eq!(inode.right_content().unwrap()[0], 3);
        inode.write(PAGE as u64, &[3; SECTOR], 4);
        assert_eq!(inode.right_content(), None);
    }

    #[test]
    fn only_what_was_not_synced_is_torn() {
        let mut inode = synced(1);
        inode.write(0, &[2; SECTOR], 2);
        assert_eq!(inode.lose_power((0, ALWAYS, 0), &mut random()).torn, 1);
        assert_ne!(inode.read(0, SECTOR), [2; SECTOR]);
        assert_eq!(inode.read(SECTOR as u64, PAGE), [1; PAGE]);
    }
}
