//! Continues after a panic of the agent or the endpoint: the event is lost, and at most the call
//! that it belongs to ends. Owns the clock.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use tracing::error;

use crate::call::Signal;
use crate::call::end::EndReason;
use crate::sip::agent::{CallKey, Command};
use crate::sip::endpoint::{Endpoint, Turn};

/// After this many panics in a row, the endpoint shuts down.
const MAX_PANICS: u32 = 10;

impl Endpoint {
    /// Handles an event. If that panics, all other calls continue.
    pub(super) fn guarded(&mut self, turn: Turn, buffer: &[u8]) {
        let is_timeout = matches!(turn, Turn::Timeout);
        let panicked = catch_unwind(AssertUnwindSafe(|| self.on_turn(turn, buffer))).is_err();
        match (is_timeout, panicked) {
            // anyone may send messages that panic, but timeouts come from our own state
            (true, true) => self.failed_timeouts += 1,
            (true, false) => self.failed_timeouts = 0,
            (false, _) => {}
        }
        if panicked {
            self.recover();
        }
    }

    /// True once the endpoint keeps panicking.
    pub(super) fn is_broken(&self) -> bool {
        *self.broken.borrow()
    }

    fn recover(&mut self) {
        error!("internal error: the SIP endpoint panicked; all other calls continue");
        let mut settled = false;
        for _ in 0..MAX_PANICS {
            settled = catch_unwind(AssertUnwindSafe(|| self.settle())).is_ok();
            if settled {
                break;
            }
        }
        if (!settled || self.failed_timeouts >= MAX_PANICS) && !self.is_broken() {
            error!("internal error: the SIP endpoint keeps panicking; shutting down");
            self.broken.send_replace(true);
        }
    }

    /// Ends the calls whose events were lost: those that only the agent or only the endpoint has,
    /// and those that nothing listens for.
    fn settle(&mut self) {
        self.agent.recover(Instant::now());
        self.drain();
        let row = EndReason::Internal.row();
        let known = self.agent.call_keys();
        let over = known.iter().copied().filter(|call| self.is_over(*call));
        for call in over.collect::<Vec<CallKey>>() {
            let (code, reason) = (row.sip_status, row.sip_reason);
            self.command(Command::Reject { call, code, reason, retry_after_s: None });
            self.command(Command::Hangup { call, q850: row.q850, text: row.label });
        }
        // a callee who has not been called yet is not known to the agent
        let called = self.calls.iter().filter(|(_, link)| link.dial.is_none());
        let lost = called.map(|(call, _)| *call).filter(|call| !known.contains(call));
        for call in lost.collect::<Vec<CallKey>>() {
            self.signal(call, Signal::Ended(EndReason::Internal));
            self.drop_transfer(call);
            self.calls.remove(&call);
            self.messages.end(call);
        }
        self.messages.tidy();
    }

    /// True if nothing ends the call any more. A consultation ends with the call that it belongs
    /// to, and a call that was handed over a moment later.
    fn is_over(&self, call: CallKey) -> bool {
        if self.consults.contains_key(&call) || self.lingering.iter().any(|(_, of)| *of == call) {
            return false;
        }
        self.calls.get(&call).is_none_or(|link| link.signals.is_closed())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};

    use tokio::sync::mpsc;

    use super::*;
    use crate::call::admission::{Admission, CallLimits};
    use crate::call::ports::PortPool;
    use crate::sip::endpoint::{CallLink, EndpointConfig};

    const IP: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    async fn endpoint() -> Endpoint {
        let limits = CallLimits { max: Some(9), per_second: None };
        let ports = PortPool::new(IP, 40_000, 40_099);
        let config = EndpointConfig {
            listen: SocketAddr::new(IP, 0),
            peers: Vec::new(),
            max_calls: 9,
            max_unacknowledged: 9,
            admission: Admission::new(&limits, [], ports, mpsc::channel(9).0),
        };
        Endpoint::bind(config).await.expect("a free port").0
    }

    fn link(signals: mpsc::Sender<Signal>) -> CallLink {
        CallLink {
            signals,
            account: 0,
            rtp: SocketAddr::new(IP, 40_000),
            signalling: IP,
            answered: true,
            outgoing: false,
            dial: None,
            holding: None,
            keys: VecDeque::new(),
            media: None,
            transfer: None,
        }
    }

    #[tokio::test]
    async fn a_panic_ends_no_consultation_and_no_call_that_is_being_handed_over() {
        let mut endpoint = endpoint().await;
        let [call, consult, ended, lingering, unknown] = [1, 2, 3, 4, 5].map(CallKey);
        let (signals, _open) = mpsc::channel(9);
        endpoint.calls.insert(call, link(signals));
        endpoint.consults.insert(consult, call);
        for key in [ended, lingering] {
            endpoint.calls.insert(key, link(mpsc::channel(9).0));
        }
        endpoint.lingering.insert((Instant::now(), lingering));
        let over = [call, consult, ended, lingering, unknown].map(|key| endpoint.is_over(key));
        assert_eq!(over, [false, false, true, false, true]);
    }
}
