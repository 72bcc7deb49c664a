//! How many copies of a partition there are, how many of them a decision takes, and what that guarantees, in words.
//! Pure. Why it is so: `docs/REPLICATION.md`, "Numbers".

/// Copies that a partition may have at most: each has a slot of its own, and the slots of a set are the bits of a byte.
pub const COPIES_MAX: u64 = 8;

/// See the module. Each quorum is at least 1 and at most `factor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copies {
    /// Copies of each partition: N.
    pub factor: u64,
    /// How many must have a record before it is acknowledged: W.
    pub write: u64,
    /// How many must confirm that their leader leads before it answers a read: R.
    pub read: u64,
}

/// More than half of `factor`: the write quorum of whoever names none.
pub fn majority(factor: u64) -> u64 {
    factor / 2 + 1
}

impl Copies {
    /// How many copies may be lost, whichever, without an acknowledged record being lost.
    pub fn losses(&self) -> u64 {
        self.write - 1
    }

    /// How many copies may be missing, the leader's among them, while writes go on: whoever is left must elect a leader
    /// and be a write quorum.
    pub fn missing(&self) -> u64 {
        self.losses().min(self.factor - self.write)
    }

    /// Whether a read sees every write that was acknowledged before it came.
    pub fn is_linearizable(&self) -> bool {
        self.read + self.write > self.factor
    }

    /// What these numbers guarantee, where the copies are on `drives` drives.
    pub fn guarantee(&self, drives: u64) -> String {
        let Copies { factor, write, read } = *self;
        if factor == 1 {
            return "one of each partition: what a failed drive takes is lost".to_owned();
        }
        let place = match drives {
            1 => ", on cores of their own but all on one drive, whose loss takes them all".to_owned(),
            _ if drives >= factor => ", each on a core and a drive of its own".to_owned(),
            _ => format!(", on cores of their own, spread over {drives} drives"),
        };
        format!(
            "{factor} of each partition{place}; write quorum {write}, read quorum {read}: {}; {}; {}",
            self.words_of_losses(),
            self.words_of_writes(),
            self.words_of_reads(),
        )
    }

    fn words_of_losses(&self) -> String {
        match self.losses() {
            0 => {
                "asynchronous: a write is acknowledged when the leader's copy has it, the others follow, and the loss \
                  of the leader's copy loses what had not reached another"
                    .to_owned()
            }
            losses => format!("what is acknowledged survives the loss of any {losses} of them"),
        }
    }

    fn words_of_writes(&self) -> String {
        match (self.missing(), self.factor - self.write) {
            (_, 0) => "writes wait while one is missing".to_owned(),
            (0, most) => {
                format!("writes go on with {most} missing, but while the leader's is, nobody leads")
            }
            (any, most) if any == most => format!("writes go on with any {any} missing"),
            (any, most) => format!("writes go on with any {any} missing, with {most} if the leader is there"),
        }
    }

    fn words_of_reads(&self) -> String {
        let Copies { factor, write, read } = *self;
        if self.is_linearizable() {
            format!("reads are linearizable (R + W > N: {read} + {write} > {factor})")
        } else {
            format!(
                "reads are not linearizable (R + W <= N: {read} + {write} <= {factor}): a leader that was deposed and \
                 does not know it yet may answer from its past"
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn copies(factor: u64, write: u64, read: u64) -> Copies {
        Copies { factor, write, read }
    }

    /// The table of `docs/REPLICATION.md`.
    #[test]
    fn the_numbers_are_those_of_the_protocol() {
        let of = |copies: Copies| (copies.losses(), copies.missing(), copies.is_linearizable());
        assert_eq!(of(copies(3, 2, 2)), (1, 1, true));
        assert_eq!(of(copies(3, 2, 1)), (1, 1, false));
        assert_eq!(of(copies(5, 3, 3)), (2, 2, true));
        assert_eq!(of(copies(5, 5, 3)), (4, 0, true));
        assert_eq!(of(copies(2, 2, 2)), (1, 0, true));
        assert_eq!(of(copies(3, 1, 1)), (0, 0, false));
        assert_eq!(of(copies(5, 2, 1)), (1, 1, false));
        assert_eq!((1..=8).map(majority).collect::<Vec<_>>(), [1, 2, 2, 3, 3, 4, 4, 5]);
    }

    #[test]
    fn they_are_said_in_words() {
        assert_eq!(copies(1, 1, 1).guarantee(1), "one of each partition: what a failed drive takes is lost");
        assert_eq!(
            copies(2, 2, 2).guarantee(1),
            "2 of each partition, on cores of their own but all on one drive, whose loss takes them all; write quorum \
             2, read quorum 2: what is acknowledged survives the loss of any 1 of them; writes wait while one is \
             missing; reads are linearizable (R + W > N: 2 + 2 > 2)"
        );
        assert_eq!(
            copies(3, 1, 1).guarantee(3),
            "3 of each partition, each on a core and a drive of its own; write quorum 1, read quorum 1: asynchronous: \
             a write is acknowledged when the leader's copy has it, the others follow, and the loss of the leader's \
             copy loses what had not reached another; writes go on with 2 missing, but while the leader's is, nobody \
             leads; reads are not linearizable (R + W <= N: 1 + 1 <= 3): a leader that was deposed and does not know \
             it yet may answer from its past"
        );
        assert!(copies(3, 2, 1).guarantee(2).contains("writes go on with any 1 missing; "));
        assert!(copies(5, 2, 1).guarantee(2).contains("any 1 missing, with 3 if the leader is there"));
        assert!(copies(3, 2, 1).guarantee(2).contains("spread over 2 drives"));
    }
}
