//! How much room the drive has, and how much of it is kept back.
//!
//! A log that runs into the end of its drive can do nothing about it: what it holds in memory has no place to go, the
//! catalogue cannot be replaced, and so not even a deletion, which would help, can be carried out. So writes are
//! refused while there is a reserve left, which belongs to what was accepted before. The numbers come from the file
//! system, a few times a second, and what this core itself takes meanwhile is subtracted at once. Pure.

use std::cell::Cell;

/// The room on the drive of the data directory, as this core knows it.
#[derive(Debug)]
pub struct Room {
    free_bytes: Cell<u64>,
    reserve_bytes: u64,
    /// Logs whose last try to grow the drive refused, whatever it says of its free bytes.
    refused: Cell<usize>,
}

impl Room {
    /// A drive of which `reserve_bytes` are kept back. It has endless room until [`Room::look`].
    pub fn new(reserve_bytes: u64) -> Self {
        Room { free_bytes: Cell::new(u64::MAX), reserve_bytes, refused: Cell::new(0) }
    }

    /// The file system says that so much is free.
    pub fn look(&self, free_bytes: u64) {
        self.free_bytes.set(free_bytes);
    }

    /// A file of ours took `bytes` since the last look.
    pub fn take(&self, bytes: u64) {
        self.free_bytes.set(self.free_bytes.get().saturating_sub(bytes));
    }

    /// What is free.
    pub fn free_bytes(&self) -> u64 {
        self.free_bytes.get()
    }

    /// What is kept back.
    pub fn reserve_bytes(&self) -> u64 {
        self.reserve_bytes
    }

    /// Whether only the reserve is left: nothing new may be accepted.
    pub fn is_low(&self) -> bool {
        self.has_less_than(0)
    }

    /// Whether taking `bytes` would begin to use the reserve.
    pub fn has_less_than(&self, bytes: u64) -> bool {
        self.free_bytes.get() < self.reserve_bytes.saturating_add(bytes)
    }

    /// The drive refused to let a log grow that it had not refused before.
    pub fn refuse(&self) {
        self.refused.set(self.refused.get() + 1);
    }

    /// A log that was refused is so no longer.
    pub fn admit(&self) {
        assert!(self.refused.get() > 0, "a log was admitted that had not been refused");
        self.refused.set(self.refused.get() - 1);
    }

    /// Whether writes are refused anywhere on this core.
    pub fn is_full(&self) -> bool {
        self.is_low() || self.refused.get() > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_begins_at_its_last_byte() {
        let room = Room::new(1000);
        assert!(!room.is_low() && !room.has_less_than(u64::MAX - 1000), "a drive nobody looked at is endless");
        room.look(1500);
        assert_eq!((room.free_bytes(), room.reserve_bytes()), (1500, 1000));
        assert_eq!((room.has_less_than(500), room.has_less_than(501)), (false, true));
        room.take(500);
        assert!(!room.is_low(), "the whole reserve is there");
        room.take(1);
        assert!(room.is_low() && room.is_full());
        room.take(5000);
        assert_eq!(room.free_bytes(), 0);
        room.look(1000);
        assert!(!room.is_low(), "room that came back is room");
    }

    #[test]
    fn a_drive_that_refuses_is_full_whatever_it_says() {
        let room = Room::new(0);
        room.refuse();
        room.refuse();
        room.admit();
        assert!(room.is_full() && !room.is_low());
        room.admit();
        assert!(!room.is_full());
    }
}
