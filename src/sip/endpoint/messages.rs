//! The SIP messages of each call, for packet captures: the first and the last ones are kept, so
//! that a capture that begins in mid-call still has the INVITE and its answer.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::capture::tap::Tap;
use crate::capture::{Captured, Direction, Kind};
use crate::sip::agent::CallKey;
use crate::sip::flow::{Flow, Transport};

/// Of one call, at most this many messages are kept.
const MAX_KEPT: usize = 16;
/// The first ones, up to this number, are kept. Of the others, the last ones are kept.
const FIRST: usize = 8;
/// At most this many bytes of one call are kept.
const MAX_KEPT_BYTES: usize = 24 << 10;

/// A message, with its time since 1970.
struct Kept {
    at: Duration,
    direction: Direction,
    flow: Flow,
    data: Vec<u8>,
}

/// The messages with one Call-ID.
#[derive(Default)]
struct Entry {
    /// `None` while the INVITE is not a call yet.
    call: Option<CallKey>,
    kept: Vec<Kept>,
    /// The bytes of `kept`.
    bytes: usize,
    /// Our address and the capture, while there is one.
    tap: Option<Tap>,
    local: Option<SocketAddr>,
}

/// The messages of all calls.
#[derive(Default)]
pub(super) struct CallMessages {
    /// By Call-ID.
    entries: HashMap<String, Entry>,
    by_call: HashMap<CallKey, String>,
    /// The Call-ID of an INVITE that is not a call yet.
    fresh: Option<String>,
    /// Calls that have ended, whose last messages are yet to come.
    over: Vec<CallKey>,
}

impl CallMessages {
    /// Notes a message that was received or sent, if it belongs to a call or may begin one.
    pub fn note(&mut self, at: Duration, direction: Direction, flow: Flow, data: &[u8]) {
        let Some(id) = call_id(data) else { return };
        let begins = direction == Direction::Received && data.starts_with(b"INVITE ");
        if begins && !self.entries.contains_key(id) {
            self.entries.insert(id.to_owned(), Entry::default());
            self.fresh = Some(id.to_owned());
        }
        let Some(entry) = self.entries.get_mut(id) else { return };
        let kept = Kept { at, direction, flow, data: data.to_vec() };
        let open =
            entry.tap.as_ref().is_some_and(|tap| tap.add(captured(&kept, entry.local, false)));
        if !open {
            entry.tap = None;
        }
        entry.keep(kept);
    }

    /// The INVITE with this Call-ID has become a call. `local`: our address in it.
    pub fn begin(&mut self, call: CallKey, sip_call_id: &str, local: SocketAddr) {
        let entry = self.entries.entry(sip_call_id.to_owned()).or_default();
        if entry.call.is_none() {
            (entry.call, entry.local) = (Some(call), Some(local));
            self.by_call.insert(call, sip_call_id.to_owned());
        }
    }

    /// Passes the messages of a call to a capture: those that were kept, and all further ones.
    pub fn capture(&mut self, call: CallKey, tap: Tap) {
        let entry = self.by_call.get(&call).and_then(|id| self.entries.get_mut(id));
        let Some(entry) = entry else { return };
        for kept in &entry.kept {
            // whether the recording was paused then is not known
            tap.add(captured(kept, entry.local, true));
        }
        entry.tap = Some(tap);
    }

    /// The call has ended. What is sent and received for it until [`CallMessages::tidy`] is still
    /// noted.
    pub fn end(&mut self, call: CallKey) {
        self.over.push(call);
    }

    /// Drops the messages of calls that have ended, and those of an INVITE that was refused.
    pub fn tidy(&mut self) {
        for call in self.over.drain(..) {
            if let Some(id) = self.by_call.remove(&call) {
                self.entries.remove(&id);
            }
        }
        if let Some(id) = self.fresh.take()
            && self.entries.get(&id).is_some_and(|entry| entry.call.is_none())
        {
            self.entries.remove(&id);
        }
    }
}

impl Entry {
    fn keep(&mut self, kept: Kept) {
        self.bytes += kept.data.len();
        self.kept.push(kept);
        while (self.kept.len() > MAX_KEPT || self.bytes > MAX_KEPT_BYTES) && !self.kept.is_empty() {
            let oldest = FIRST.min(self.kept.len() - 1);
            self.bytes -= self.kept.remove(oldest).data.len();
        }
    }
}

fn captured(kept: &Kept, local: Option<SocketAddr>, is_private: bool) -> Captured {
    let Kept { at, direction, flow, data } = kept;
    let local = local.unwrap_or(SocketAddr::new([0, 0, 0, 0].into(), 0));
    Captured {
        at: *at,
        kind: Kind::Sip { tcp: flow.transport == Transport::Tcp },
        direction: *direction,
        between: (local, flow.remote),
        data: data.clone(),
        length: data.len(),
        is_private,
    }
}

/// The Call-ID of a message; `None` if there is none in its header, or it is not UTF-8.
fn call_id(data: &[u8]) -> Option<&str> {
    let mut lines = data.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let header = lines.by_ref().skip(1).take_while(|line| !line.is_empty());
    let mut values = header.filter_map(|line| {
        let (name, value) = line.split_at(line.iter().position(|byte| *byte == b':')?);
        let name = name.trim_ascii();
        let is_it = name.eq_ignore_ascii_case(b"call-id") || name.eq_ignore_ascii_case(b"i");
        is_it.then_some(value[1..].trim_ascii())
    });
    str::from_utf8(values.next()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOW: Flow = Flow {
        transport: Transport::Udp,
        remote: SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 5060),
    };

    fn message(line: &str, id: &str) -> Vec<u8> {
        format!("{line} SIP/2.0\r\nVia: x\r\ncall-id : {id}\r\n\r\nCall-ID: not-this").into_bytes()
    }

    fn note(messages: &mut CallMessages, line: &str, id: &str) {
        messages.note(Duration::ZERO, Direction::Received, FLOW, &message(line, id));
    }

    #[test]
    fn the_call_id_is_that_of_the_header() {
        for (text, id) in [
            ("BYE x\r\nCall-ID: a@b\r\n\r\n", Some("a@b")),
            ("BYE x\ni:a\n\n", Some("a")),
            ("BYE x\r\nVia: i\r\n\r\nCall-ID: a\r\n", None),
            ("Call-ID: first-line", None),
            ("", None),
        ] {
            assert_eq!(call_id(text.as_bytes()), id, "{text}");
        }
    }

    #[test]
    fn only_calls_are_kept_until_their_end() {
        let mut messages = CallMessages::default();
        note(&mut messages, "OPTIONS sip:a", "o");
        note(&mut messages, "INVITE sip:a", "refused");
        messages.tidy();
        assert!(messages.entries.is_empty());
        note(&mut messages, "INVITE sip:a", "a");
        messages.begin(CallKey(1), "a", FLOW.remote);
        messages.tidy();
        note(&mut messages, "BYE sip:a", "a");
        messages.end(CallKey(1));
        assert_eq!(messages.entries["a"].kept.len(), 2);
        messages.tidy();
        assert!(messages.entries.is_empty() && messages.by_call.is_empty());
    }

    #[test]
    fn the_first_and_the_last_messages_are_kept() {
        let mut messages = CallMessages::default();
        note(&mut messages, "INVITE sip:a", "a");
        messages.begin(CallKey(1), "a", FLOW.remote);
        (0..40).for_each(|n| note(&mut messages, &format!("INFO sip:{n}"), "a"));
        let entry = &messages.entries["a"];
        let line = |kept: &Kept| String::from_utf8_lossy(&kept.data[..11]).into_owned();
        assert_eq!(entry.kept.len(), MAX_KEPT);
        assert!(line(&entry.kept[0]).starts_with("INVITE"));
        assert!(line(&entry.kept[7]).starts_with("INFO sip:6"));
        assert!(line(&entry.kept[8]).starts_with("INFO sip:32"));
        let long = "x".repeat(MAX_KEPT_BYTES + 1);
        note(&mut messages, &format!("INFO {long}"), "a");
        let entry = &messages.entries["a"];
        assert!(entry.bytes <= MAX_KEPT_BYTES && line(&entry.kept[0]).starts_with("INVITE"));
        assert_eq!(entry.bytes, entry.kept.iter().map(|kept| kept.data.len()).sum::<usize>());
    }
}
