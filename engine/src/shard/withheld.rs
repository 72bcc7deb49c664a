//! Records of a copy that its drive does not give, though nothing says that they are damaged: a read of them fails.
//!
//! A read may fail once and not again, so each such place is looked at again a few times before anything follows from
//! it. From then on it counts as damage does: a leader that alone has what others wait for gives way to them, if they
//! can elect another; for what others have another leads, whom readers ask then, and the segment is written anew with
//! what they give. That is the same as if the drive had lost these records, and no other loss. It ends when the drive
//! gives them after all, or they are given up.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, time::Duration};

use bytes::Bytes;

use super::{
    control::Places,
    member::Member,
    owned::Owned,
    repairing::{NotNow, PAUSE, READER_PATIENCE, SHORT_PAUSE},
    wait_at_most,
};
use crate::{error::RequestError, log::read::ReadRange, runtime::Runtime, types::Offset};

/// How often a place is looked at before it counts as damaged.
pub(super) const LOOKS: u32 = 5;

/// Between these looks: a drive that only was busy with itself gets a second.
pub(super) const LOOK_PAUSE: Duration = Duration::from_millis(200);

/// How many places are remembered. Others are found again when they are read.
const REMEMBERED_MAX: usize = 64;

/// See the module.
#[derive(Default)]
pub(super) struct Withheld {
    /// The first record that a read was to give, and how often it was looked for since in vain.
    places: RefCell<BTreeMap<Offset, u32>>,
}

impl Withheld {
    /// Whether a read that begins at `offset` need not be tried.
    pub(super) fn has(&self, offset: Offset) -> bool {
        self.places.borrow().contains_key(&offset)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.borrow().is_empty()
    }

    /// Whether a place counts as damaged.
    pub(super) fn lasts(&self) -> bool {
        self.places.borrow().values().any(|looks| *looks >= LOOKS)
    }

    /// What is known of it, for whoever watches: how much there is from each place on nobody has tried.
    pub(super) fn known(&self) -> Option<Places> {
        let places = self.places.borrow();
        let (first_offset, _) = places.first_key_value()?;
        Some(Places { places: places.len() as u64, first_offset: *first_offset, records: None })
    }

    fn note(&self, offset: Offset) {
        let mut places = self.places.borrow_mut();
        if places.len() < REMEMBERED_MAX {
            places.entry(offset).or_default();
        }
    }

    fn forget(&self, offset: Offset) {
        self.places.borrow_mut().remove(&offset);
    }

    /// It was looked again in vain. Gives whether the place counts as damaged.
    fn looked(&self, offset: Offset) -> bool {
        let mut places = self.places.borrow_mut();
        let looks = places.entry(offset).or_default();
        *looks = looks.saturating_add(1);
        *looks >= LOOKS
    }

    fn all(&self) -> Vec<Offset> {
        self.places.borrow().keys().copied().collect()
    }
}

impl<R: Runtime> Member<R> {
    /// A read that was to give the record at `offset` first came to this. Nobody can do anything for an only copy.
    pub(super) fn note_withheld(&self, offset: Offset, error: &RequestError) {
        if matches!(error, RequestError::ReadFailed { .. }) && !self.is_alone() {
            self.withheld.note(offset);
        }
    }

    /// Looks again at what the drive did not give. Gives when to try again if something is left.
    pub(super) async fn see_to_withheld(self: &Rc<Self>, owned: &Rc<Owned<R>>) -> Result<(), Duration> {
        let mut pause = None;
        for from in self.withheld.all() {
            if self.is_closed() || self.is_changing() || owned.retired.get() || owned.is_gone() {
                break;
            }
            pause = pause.max(self.see_to_place(owned, from).await.err());
        }
        pause.map_or(Ok(()), Err)
    }

    async fn see_to_place(self: &Rc<Self>, owned: &Rc<Owned<R>>, from: Offset) -> Result<(), Duration> {
        let to = Offset(from.0 + 1);
        let is_there = owned.kept_start.get() <= from && from < owned.held.get().received;
        let range = ReadRange { offset: from, end: to, max_bytes: 1 };
        // What is damaged others see to.
        if !is_there || !matches!(owned.log.read(range).await, Err(RequestError::ReadFailed { .. })) {
            self.withheld.forget(from);
            return Ok(());
        }
        if !self.withheld.looked(from) {
            return Err(LOOK_PAUSE);
        }
        match self.do_without(owned, (from, to)).await {
            Ok(given) => {
                tracing::warn!(copy = %self.id, %from, given, "a segment that the drive does not give is written anew");
                self.metrics().batches_repaired.add(given);
                Err(SHORT_PAUSE)
            }
            Err(why) => Err(self.leave(owned, (from, to), &why).max(PAUSE)),
        }
    }

    /// Gives how many batches others gave.
    async fn do_without(self: &Rc<Self>, owned: &Rc<Owned<R>>, (from, to): (Offset, Offset)) -> Result<u64, NotNow> {
        self.check_final(from, to)?;
        if self.leads() && self.successors(self.members()).is_empty() {
            return Err(NotNow::Leads("no other copy keeps up".to_owned()));
        }
        self.renew(owned, to).await
    }

    /// A reader was not given what he asked for. Gives it if the drive does after all, within some time.
    ///
    /// Errors: `NotLeader` if this copy does not lead any more: whoever does may have it; or the last of the drive.
    pub(super) async fn read_again(
        self: &Rc<Self>,
        owned: &Rc<Owned<R>>,
        range: ReadRange,
    ) -> Result<Vec<Bytes>, RequestError> {
        let epoch = self.epoch();
        let deadline = self.now() + READER_PATIENCE;
        loop {
            self.withheld.note(range.offset);
            self.see_to_damage();
            wait_at_most(self.runtime(), &self.repairs.news, SHORT_PAUSE).await;
            if !self.leads() || self.epoch() != epoch {
                return Err(self.not_leader());
            }
            match owned.log.read_disk(range).await {
                Err(RequestError::ReadFailed { .. }) if self.now() < deadline => {}
                Err(RequestError::Corrupt { from, to, .. }) if from < to && self.now() < deadline => {
                    self.repaired(owned, range.offset).await?;
                }
                outcome => return outcome,
            }
        }
    }
}
