//! The four transaction state machines (RFC 3261 §17, with RFC 6026's Accepted state).
//!
//! Pure: each takes `now` and returns the action that is due. Timer letters are the RFCs'.
//!
//! ```text
//! INVITE server:      Proceeding ──2xx──> Accepted ──L──> Terminated
//!                         └──3xx-6xx──> Completed ──ACK──> Confirmed ──I──> Terminated
//!                                        (G: resend, H: time out)
//! non-INVITE server:  Trying ──1xx──> Proceeding ──final──> Completed ──J──> Terminated
//! INVITE client:      Calling ──1xx──> Proceeding ──2xx──> Accepted ──M──> Terminated
//!                       (A: resend, B: time out) └──3xx-6xx──> Completed ──D──> Terminated
//! non-INVITE client:  Trying ──1xx──> Proceeding ──final──> Completed ──K──> Terminated
//!                       (E: resend, F: time out)
//! ```
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::{Duration, Instant};

use crate::sip::message::Message;

/// Estimated round-trip time (RFC 3261 §17.1.1.1).
pub const T1: Duration = Duration::from_millis(500);
/// Maximum retransmission interval for requests other than INVITE and for responses to INVITE.
pub const T2: Duration = Duration::from_secs(4);
/// Maximum time a message remains in the network.
pub const T4: Duration = Duration::from_secs(5);
/// 64·T1: timers B, D, F, H, J, L and M, and the wait for the ACK of a 2xx.
pub const T1_64: Duration = Duration::from_secs(32);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Calling,
    Trying,
    Proceeding,
    Accepted,
    Completed,
    Confirmed,
    Terminated,
}

/// The action that is due when a timer fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    Nothing,
    /// Retransmit the last message.
    Resend,
    /// 64·T1 passed without a final response (for a client, the same as a 408) or without an ACK
    /// (for an INVITE server).
    TimedOut,
}

/// A retransmission timer, whose interval doubles up to a limit.
#[derive(Debug, Clone, Copy)]
struct Resend {
    /// Time of the next retransmission.
    at: Instant,
    /// Present interval.
    interval: Duration,
    /// Maximum interval.
    limit: Duration,
}

impl Resend {
    fn start(now: Instant, limit: Duration) -> Resend {
        Resend { at: now + T1, interval: T1, limit }
    }

    fn step(&mut self, now: Instant) {
        self.interval = (self.interval * 2).min(self.limit);
        self.at = now + self.interval;
    }
}

/// A server transaction, for an INVITE or another request.
#[derive(Debug)]
pub struct Server {
    /// True if the request is an INVITE.
    invite: bool,
    /// True if the transport is reliable.
    reliable: bool,
    pub state: State,
    /// The last response, for retransmissions.
    response: Option<Vec<u8>>,
    /// Timer G.
    resend: Option<Resend>,
    /// Timer H, I, J or L.
    end: Option<Instant>,
}

impl Server {
    pub fn new(invite: bool, reliable: bool) -> Server {
        let state = if invite { State::Proceeding } else { State::Trying };
        Server { invite, reliable, state, response: None, resend: None, end: None }
    }

    /// Handles a response; the caller sends it.
    pub fn respond(&mut self, now: Instant, code: u16, bytes: &[u8]) {
        self.response = Some(bytes.to_vec());
        if code < 200 {
            self.state = State::Proceeding;
        } else if !self.invite {
            self.state = State::Completed;
            self.end = Some(if self.reliable { now } else { now + T1_64 }); // J
        } else if code < 300 {
            // the dialog resends the 2xx until the ACK; the transaction only absorbs retransmitted
            // INVITEs
            self.state = State::Accepted;
            self.end = Some(now + T1_64); // L
        } else {
            self.state = State::Completed;
            self.resend = (!self.reliable).then(|| Resend::start(now, T2)); // G
            self.end = Some(now + T1_64); // H
        }
    }

    /// True if an INVITE was refused; only its retransmissions and its ACK can still arrive.
    pub fn is_refused(&self) -> bool {
        self.invite && matches!(self.state, State::Completed | State::Confirmed)
    }

    /// Returns the response to resend for a retransmitted request.
    pub fn on_retransmission(&self) -> Option<&[u8]> {
        match self.state {
            State::Proceeding | State::Completed => self.response.as_deref(),
            _ => None,
        }
    }

    /// Handles the ACK for a response of 300 or above.
    pub fn on_ack(&mut self, now: Instant) {
        if self.invite && self.state == State::Completed {
            self.state = State::Confirmed;
            self.resend = None;
            self.end = Some(if self.reliable { now } else { now + T4 }); // I
        }
    }

    pub fn response(&self) -> Option<&[u8]> {
        self.response.as_deref()
    }

    pub fn next_timeout(&self) -> Option<Instant> {
        earliest(self.resend, self.end)
    }

    pub fn on_timeout(&mut self, now: Instant) -> Due {
        if self.end.is_some_and(|end| end <= now) {
            let lost = self.invite && self.state == State::Completed;
            self.state = State::Terminated;
            (self.resend, self.end) = (None, None);
            return if lost { Due::TimedOut } else { Due::Nothing };
        }
        resend_due(&mut self.resend, now)
    }
}

/// A client transaction, for an INVITE or another request. The caller sends the request.
#[derive(Debug)]
pub struct Client {
    /// True if the request is an INVITE.
    invite: bool,
    /// True if the transport is reliable.
    reliable: bool,
    pub state: State,
    /// The request, for retransmissions.
    pub request: Vec<u8>,
    /// Timer A or E.
    resend: Option<Resend>,
    /// Timer B, D, F, K or M.
    end: Option<Instant>,
}

impl Client {
    pub fn new(now: Instant, invite: bool, reliable: bool, request: Vec<u8>) -> Client {
        let limit = if invite { T1_64 } else { T2 };
        Client {
            invite,
            reliable,
            state: if invite { State::Calling } else { State::Trying },
            request,
            resend: (!reliable).then(|| Resend::start(now, limit)), // A, E
            end: Some(now + T1_64),                                 // B, F
        }
    }

    /// Handles a response. Returns true if it goes to the transaction user: retransmitted final
    /// responses are absorbed, except a 2xx to INVITE, each of which needs an ACK (RFC 6026 §7.2).
    pub fn on_response(&mut self, now: Instant, code: u16) -> bool {
        let open = matches!(self.state, State::Calling | State::Trying | State::Proceeding);
        if code < 200 {
            if open {
                self.state = State::Proceeding;
                if self.invite {
                    (self.resend, self.end) = (None, None);
                } else if let Some(resend) = &mut self.resend {
                    resend.interval = T2;
                }
            }
            return open;
        }
        let wait = |long| if self.reliable { now } else { now + long };
        match (self.invite, code < 300) {
            (true, true) if open || self.state == State::Accepted => {
                if open {
                    self.end = Some(now + T1_64); // M
                }
                self.state = State::Accepted;
                self.resend = None;
                true
            }
            _ if open => {
                self.end = Some(wait(if self.invite { T1_64 } else { T4 })); // D, K
                self.state = State::Completed;
                self.resend = None;
                true
            }
            _ => false,
        }
    }

    /// Sends no more copies, because a newer request replaces it. A late response still counts.
    pub fn stop_resending(&mut self) {
        self.resend = None;
    }

    /// Starts a timer of 64·T1 once a CANCEL is sent, because an INVITE that received a 1xx has
    /// none and the peer may never send a final response (RFC 3261 §9.1).
    pub fn cancelled(&mut self, now: Instant) {
        if self.state == State::Proceeding {
            self.end.get_or_insert(now + T1_64);
        }
    }

    pub fn next_timeout(&self) -> Option<Instant> {
        earliest(self.resend, self.end)
    }

    pub fn on_timeout(&mut self, now: Instant) -> Due {
        if self.end.is_some_and(|end| end <= now) {
            let open = matches!(self.state, State::Calling | State::Trying | State::Proceeding);
            self.state = State::Terminated;
            (self.resend, self.end) = (None, None);
            return if open { Due::TimedOut } else { Due::Nothing };
        }
        resend_due(&mut self.resend, now)
    }
}

fn earliest(resend: Option<Resend>, end: Option<Instant>) -> Option<Instant> {
    resend.map(|r| r.at).into_iter().chain(end).min()
}

fn resend_due(resend: &mut Option<Resend>, now: Instant) -> Due {
    match resend {
        Some(timer) if timer.at <= now => {
            timer.step(now);
            Due::Resend
        }
        _ => Due::Nothing,
    }
}

/// Resends a 2xx to INVITE until its ACK arrives (RFC 3261 §13.3.1.4).
#[derive(Debug)]
pub struct AwaitAck {
    /// CSeq number of the INVITE, which its ACK shares.
    cseq: Option<u32>,
    /// The 2xx.
    pub response: Vec<u8>,
    /// Time of the next retransmission.
    resend: Resend,
    /// Time at which the wait for the ACK ends.
    end: Instant,
}

impl AwaitAck {
    /// Starts resending, on reliable transports too, because the ACK of a 2xx is end to end.
    pub fn new(now: Instant, invite: &Message, response: Vec<u8>) -> AwaitAck {
        let cseq = invite.cseq().map(|(number, _)| number);
        AwaitAck { cseq, response, resend: Resend::start(now, T2), end: now + T1_64 }
    }

    pub fn is_ack(&self, ack: &Message) -> bool {
        ack.cseq().map(|(number, _)| number) == self.cseq
    }

    pub fn next_timeout(&self) -> Instant {
        self.resend.at.min(self.end)
    }

    pub fn on_timeout(&mut self, now: Instant) -> Due {
        if self.end <= now {
            return Due::TimedOut;
        }
        if self.resend.at > now {
            return Due::Nothing;
        }
        self.resend.step(now);
        Due::Resend
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::start;

    /// Runs the timers until none is left. Returns each action that was due and its time in ms.
    macro_rules! timeline {
        ($machine:expr, $t0:expr) => {{
            let mut seen = Vec::new();
            while let Some(at) = $machine.next_timeout() {
                let due = $machine.on_timeout(at);
                if due != Due::Nothing {
                    seen.push(((at - $t0).as_millis() as u64, due));
                }
            }
            seen
        }};
    }

    #[test]
    fn invite_server_resends_a_refusal_until_the_ack() {
        let t0 = start();
        let mut tx = Server::new(true, false);
        tx.respond(t0, 100, b"100");
        assert_eq!(tx.on_retransmission(), Some(&b"100"[..]));
        tx.respond(t0, 486, b"486");
        let seen = timeline!(tx, t0);
        let times: Vec<u64> = seen.iter().map(|(t, _)| *t).collect();
        assert_eq!(times, [500, 1500, 3500, 7500, 11500, 15500, 19500, 23500, 27500, 31500, 32000]);
        assert_eq!(seen.last().unwrap().1, Due::TimedOut);
        let mut tx = Server::new(true, false);
        tx.respond(t0, 486, b"486");
        tx.on_ack(t0);
        assert_eq!(timeline!(tx, t0), []);
        assert_eq!(tx.state, State::Terminated);
    }

    #[test]
    fn clients_use_timers_a_b_e_and_f() {
        let t0 = start();
        let mut invite = Client::new(t0, true, false, Vec::new());
        let times: Vec<u64> = timeline!(invite, t0).iter().map(|(t, _)| *t).collect();
        assert_eq!(times, [500, 1500, 3500, 7500, 15500, 31500, 32000]);
        let mut options = Client::new(t0, false, false, Vec::new());
        let times: Vec<u64> = timeline!(options, t0).iter().map(|(t, _)| *t).collect();
        assert_eq!(times[..5], [500, 1500, 3500, 7500, 11500]);
        let mut tcp = Client::new(t0, false, true, Vec::new());
        assert_eq!(timeline!(tcp, t0), [(32000, Due::TimedOut)]);
    }

    #[test]
    fn final_responses_are_passed_on_once_but_a_2xx_to_invite_each_time() {
        let t0 = start();
        let mut options = Client::new(t0, false, false, Vec::new());
        assert!(options.on_response(t0, 100) && options.on_response(t0, 200));
        assert!(!options.on_response(t0, 200));
        let mut invite = Client::new(t0, true, false, Vec::new());
        assert!(invite.on_response(t0, 200) && invite.on_response(t0, 200));
        let mut refused = Client::new(t0, true, false, Vec::new());
        assert!(refused.on_response(t0, 486) && !refused.on_response(t0, 486));
    }

    #[test]
    fn a_2xx_is_resent_at_intervals_from_t1_to_t2() {
        let t0 = start();
        let mut wait = AwaitAck::new(t0, &Message::request("INVITE", "sip:a"), Vec::new());
        let mut times = Vec::new();
        loop {
            let at = wait.next_timeout();
            times.push((at - t0).as_millis());
            if wait.on_timeout(at) == Due::TimedOut {
                break;
            }
        }
        assert_eq!(times[..5], [500, 1500, 3500, 7500, 11500]);
        assert_eq!(*times.last().unwrap(), 32000);
    }
}
