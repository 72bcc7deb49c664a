//! Who may enter. The only place that says "overloaded".
//!
//! Decides about connections and requests from counts alone; `mod.rs` and `connection.rs` carry the decisions out.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    net::IpAddr,
    rc::Rc,
};

use super::limits::ServerLimits;
use crate::wire::code::ErrorCode;

/// One core's doorkeeper.
pub(super) struct Admission {
    limits: ServerLimits,
    connections: Cell<usize>,
    half_open: Cell<usize>,
    per_ip: RefCell<BTreeMap<IpAddr, usize>>,
    draining: Cell<bool>,
}

/// What to do with a connection attempt.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Let it in.
    Admit,
    /// Have it prove its address first.
    Retry,
    /// Shake hands and close with the reason: the client learns what is wrong.
    Explain(Refusal),
    /// Answer with QUIC's CONNECTION_REFUSED: costs no handshake.
    Refuse,
}

/// Why a connection is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The core has as many connections as it takes.
    ServerFull { connections_max: usize },
    /// The address has as many connections as it may have.
    AddressFull { connections_max: usize },
    /// The server is stopping.
    ShuttingDown,
}

impl Refusal {
    /// The code with which the connection is closed: an error's, as in frames.
    pub fn code(self) -> ErrorCode {
        match self {
            Refusal::ServerFull { .. } | Refusal::AddressFull { .. } => ErrorCode::OVERLOADED,
            Refusal::ShuttingDown => ErrorCode::SHUTTING_DOWN,
        }
    }

    /// The reason in words.
    pub fn reason(self) -> String {
        match self {
            Refusal::ServerFull { connections_max } => {
                format!("overloaded: this core takes {connections_max} connections, and has them")
            }
            Refusal::AddressFull { connections_max } => {
                format!("overloaded: one address may have {connections_max} connections to a core, and yours has them")
            }
            Refusal::ShuttingDown => "the server is shutting down".to_owned(),
        }
    }
}

/// A place among the connections, given back when dropped.
pub(super) struct Place {
    admission: Rc<Admission>,
    ip: IpAddr,
}

/// A place among the handshakes under way, given back when dropped.
pub(super) struct HalfOpen {
    admission: Rc<Admission>,
}

impl Admission {
    pub fn new(limits: ServerLimits) -> Rc<Self> {
        Rc::new(Admission {
            limits,
            connections: Cell::new(0),
            half_open: Cell::new(0),
            per_ip: RefCell::default(),
            draining: Cell::new(false),
        })
    }

    pub fn limits(&self) -> &ServerLimits {
        &self.limits
    }

    pub fn connections(&self) -> usize {
        self.connections.get()
    }

    /// From now on nobody enters.
    pub fn close(&self) {
        self.draining.set(true);
    }

    pub fn is_closed(&self) -> bool {
        self.draining.get()
    }

    /// Decides about an attempt from `ip`, which is `validated` if the client proved that it receives there.
    pub fn decide(&self, ip: IpAddr, validated: bool) -> Decision {
        let crowded = self.half_open.get() >= self.limits.half_open_before_retry;
        if crowded && !validated {
            // Spoofed addresses end here: a Retry is smaller than what it answers, and keeps no state.
            return Decision::Retry;
        }
        match self.refusal(ip) {
            None => Decision::Admit,
            Some(_) if crowded => Decision::Refuse,
            Some(refusal) => Decision::Explain(refusal),
        }
    }

    fn refusal(&self, ip: IpAddr) -> Option<Refusal> {
        if self.draining.get() {
            return Some(Refusal::ShuttingDown);
        }
        let ip = ip.to_canonical();
        let connections_max = if ip.is_loopback() {
            self.limits.connections_per_loopback_ip_max
        } else {
            self.limits.connections_per_ip_max
        };
        if self.per_ip.borrow().get(&ip).is_some_and(|count| *count >= connections_max) {
            return Some(Refusal::AddressFull { connections_max });
        }
        let connections_max = self.limits.connections_max;
        (self.connections.get() >= connections_max).then_some(Refusal::ServerFull { connections_max })
    }

    /// Takes a place for an admitted connection, from before its handshake on.
    pub fn enter(self: &Rc<Self>, ip: IpAddr) -> Place {
        let ip = ip.to_canonical();
        self.connections.set(self.connections.get() + 1);
        *self.per_ip.borrow_mut().entry(ip).or_default() += 1;
        Place { admission: Rc::clone(self), ip }
    }

    /// Counts a handshake.
    pub fn begin_handshake(self: &Rc<Self>) -> HalfOpen {
        self.half_open.set(self.half_open.get() + 1);
        HalfOpen { admission: Rc::clone(self) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.admission.connections.set(self.admission.connections.get() - 1);
        let mut per_ip = self.admission.per_ip.borrow_mut();
        let left = per_ip.get(&self.ip).map_or(0, |count| count - 1);
        if left == 0 {
            per_ip.remove(&self.ip);
        } else {
            per_ip.insert(self.ip, left);
        }
    }
}

impl Drop for HalfOpen {
    fn drop(&mut self) {
        self.admission.half_open.set(self.admission.half_open.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const AWAY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn door() -> Rc<Admission> {
        Admission::new(ServerLimits {
            connections_max: 4,
            connections_per_ip_max: 2,
            connections_per_loopback_ip_max: 3,
            half_open_before_retry: 1,
            ..ServerLimits::default()
        })
    }

    #[test]
    fn an_address_has_its_share_and_the_core_its_total_and_places_come_back() {
        let door = door();
        let away = [door.enter(AWAY), door.enter(AWAY)];
        assert_eq!(door.decide(AWAY, false), Decision::Explain(Refusal::AddressFull { connections_max: 2 }));
        let home = [door.enter(HOME), door.enter(HOME)];
        assert_eq!(door.decide(HOME, false), Decision::Explain(Refusal::ServerFull { connections_max: 4 }));
        drop(away);
        assert_eq!(door.decide(AWAY, false), Decision::Admit);
        drop(home);
        assert!(door.per_ip.borrow().is_empty(), "addresses must not be kept: there are many");
        assert_eq!(door.connections(), 0);
    }

    #[test]
    fn while_many_shake_hands_a_stranger_must_prove_its_address_and_refusals_are_short() {
        let door = door();
        let handshake = door.begin_handshake();
        assert_eq!(door.decide(AWAY, false), Decision::Retry);
        assert_eq!(door.decide(AWAY, true), Decision::Admit);
        door.close();
        assert_eq!(door.decide(AWAY, true), Decision::Refuse);
        drop(handshake);
        assert_eq!(door.decide(AWAY, true), Decision::Explain(Refusal::ShuttingDown));
    }
}
