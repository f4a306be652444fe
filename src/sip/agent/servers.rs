//! The server transactions, bounded in number and in bytes. Initial INVITEs and requests within
//! calls are bounded separately, so that neither can use up the room of the other, and so are the
//! requests of each call. Requests that change nothing, and INVITEs that are refused at once, are
//! answered without a transaction (RFC 3261 §8.2.7).
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::Instant;

use sha2::{Digest, Sha256};

use crate::sip::agent::CallKey;
use crate::sip::flow::Flow;
use crate::sip::header::NameAddr;
use crate::sip::message::Message;
use crate::sip::transaction::Server;

/// Maximum number of transactions per kind.
pub(super) const MAX_TRANSACTIONS: usize = 8192;
/// Maximum size of the stored responses per kind. An ordinary response has 500 to 1500 bytes.
pub(super) const MAX_BYTES: usize = 16 << 20;
/// The same for the requests of one call.
pub(super) const MAX_PER_CALL: usize = 512;
const MAX_BYTES_PER_CALL: usize = 1 << 20;
/// Longer keys are replaced by their hash, because branches and Call-IDs may have 60 kB.
const MAX_KEY: usize = 128;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// An INVITE outside a dialog.
    NewCall,
    /// A request within this call.
    InCall(CallKey),
    /// A request that changes nothing here, or nothing more when it arrives again: its transaction
    /// is removed as soon as it is answered, so that a flood of such requests uses no memory.
    Brief,
}

/// A server transaction and its context.
pub(super) struct ServerEntry {
    pub tx: Server,
    /// Destination of the responses.
    pub flow: Flow,
    /// The call that this INVITE created.
    pub call: Option<CallKey>,
    pub kind: Kind,
    /// Call-ID, CSeq and From tag, to detect merged requests.
    merge_key: Option<String>,
    /// Size of the stored response.
    bytes: usize,
}

/// The number and size of the transactions of one kind, or of one call.
#[derive(Debug, Clone, Copy, Default)]
struct Load {
    count: usize,
    bytes: usize,
}

impl Load {
    fn is_below(self, count: usize, bytes: usize) -> bool {
        self.count < count && self.bytes < bytes
    }
}

#[derive(Default)]
pub(super) struct Servers {
    /// By RFC 3261 §17.2.3 key.
    entries: HashMap<String, ServerEntry>,
    merge_keys: HashSet<String>,
    new_calls: Load,
    in_calls: Load,
    by_call: HashMap<CallKey, Load>,
}

impl Servers {
    pub fn has_room(&self, kind: Kind) -> bool {
        match kind {
            Kind::NewCall => self.new_calls.is_below(MAX_TRANSACTIONS, MAX_BYTES),
            Kind::InCall(call) => {
                let own = self.by_call.get(&call).copied().unwrap_or_default();
                self.in_calls.is_below(MAX_TRANSACTIONS, MAX_BYTES)
                    && own.is_below(MAX_PER_CALL, MAX_BYTES_PER_CALL)
            }
            Kind::Brief => true,
        }
    }

    /// Returns the older half of the refused INVITEs, which make room for new ones.
    pub fn oldest_refused(&self) -> Vec<String> {
        let new = self.entries.iter().filter(|(_, entry)| entry.kind == Kind::NewCall);
        let refused = new.filter(|(_, entry)| entry.tx.is_refused());
        let mut refused: Vec<_> =
            refused.map(|(key, entry)| (entry.tx.next_timeout(), key)).collect();
        refused.sort_unstable();
        let half = refused.len().div_ceil(2);
        refused.into_iter().take(half).map(|(_, key)| key.clone()).collect()
    }

    /// Changes the number and size of the transactions of a kind.
    fn count(&mut self, kind: Kind, change: impl Fn(&mut Load)) {
        match kind {
            Kind::NewCall => change(&mut self.new_calls),
            Kind::InCall(call) => {
                change(&mut self.in_calls);
                let own = self.by_call.entry(call).or_default();
                change(own);
                if own.count == 0 {
                    self.by_call.remove(&call);
                }
            }
            Kind::Brief => {}
        }
    }

    /// Adds the transaction of a request. Returns false if the request is merged: a copy that came
    /// over another path (RFC 3261 §8.2.2.2).
    pub fn insert(&mut self, key: &str, request: &Message, flow: Flow, kind: Kind) -> bool {
        let invite = request.method() == Some("INVITE");
        let tx = Server::new(invite, flow.transport.reliable());
        let merge_key = if kind == Kind::NewCall { merge_key(request) } else { None };
        let merged = merge_key.as_ref().is_some_and(|k| self.merge_keys.contains(k));
        let merge_key = merge_key.filter(|_| !merged);
        self.merge_keys.extend(merge_key.clone());
        let entry = ServerEntry { tx, flow, call: None, kind, merge_key, bytes: 0 };
        self.count(kind, |load| load.count += 1);
        self.entries.insert(key.to_owned(), entry);
        !merged
    }

    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.entries.keys()
    }

    pub fn find(&self, key: &str) -> Option<&ServerEntry> {
        self.entries.get(key)
    }

    pub fn find_mut(&mut self, key: &str) -> Option<&mut ServerEntry> {
        self.entries.get_mut(key)
    }

    /// Stores a response in its transaction. Returns the response's destination.
    pub fn respond(&mut self, now: Instant, key: &str, code: u16, bytes: &[u8]) -> Option<Flow> {
        let entry = self.entries.get_mut(key)?;
        entry.tx.respond(now, code, bytes);
        let before = std::mem::replace(&mut entry.bytes, bytes.len());
        let (kind, flow) = (entry.kind, entry.flow);
        self.count(kind, |load| load.bytes = load.bytes + bytes.len() - before);
        Some(flow)
    }

    pub fn remove(&mut self, key: &str) {
        let Some(ended) = self.entries.remove(key) else { return };
        self.count(ended.kind, |load| {
            load.count -= 1;
            load.bytes -= ended.bytes;
        });
        if let Some(merge) = ended.merge_key {
            self.merge_keys.remove(&merge);
        }
    }

    /// Removes the transactions without a response. Each request receives one while it is handled,
    /// so these are left by a panic.
    pub fn remove_unanswered(&mut self) {
        let unanswered = self.entries.iter().filter(|(_, entry)| entry.tx.response().is_none());
        let keys: Vec<String> = unanswered.map(|(key, _)| key.clone()).collect();
        keys.iter().for_each(|key| self.remove(key));
    }

    /// True if a transaction's responses go to this address.
    pub fn answers(&self, ip: IpAddr) -> bool {
        self.entries.values().any(|entry| entry.flow.remote.ip() == ip)
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if nothing is left of any transaction.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        let loads = [self.new_calls, self.in_calls];
        let unused = loads.iter().all(|load| load.count + load.bytes == 0);
        let no_call = self.by_call.is_empty() && self.merge_keys.is_empty();
        unused && no_call && self.entries.is_empty()
    }
}

/// Returns the key of a request's server transaction (RFC 3261 §17.2.3).
pub(super) fn server_key(request: &Message) -> String {
    match request.method() {
        Some("ACK") | None => key_for(request, "INVITE"),
        Some(method) => key_for(request, method),
    }
}

/// Returns the key of the INVITE that a CANCEL cancels.
pub(super) fn cancelled_key(cancel: &Message) -> String {
    key_for(cancel, "INVITE")
}

/// For a branch without the magic cookie, the key consists of the fields that RFC 2543 matches.
fn key_for(request: &Message, method: &str) -> String {
    let Some(via) = request.top_via() else { return method.to_owned() };
    let port = via.port.map(|p| p.to_string()).unwrap_or_default();
    short(match via.branch() {
        Some(branch) if branch.len() > 7 && branch.starts_with("z9hG4bK") => {
            format!("{branch}|{}:{port}|{method}", via.host)
        }
        _ => {
            let from = request.from();
            let tag = from.as_ref().and_then(NameAddr::tag).unwrap_or("");
            let number = request.cseq().map_or(0, |(n, _)| n);
            format!("2543|{}|{number}|{tag}|{}|{method}", request.call_id(), via.host)
        }
    })
}

/// Returns a key that is the same for copies of a request over different paths.
fn merge_key(request: &Message) -> Option<String> {
    let from = request.from()?;
    let number = request.cseq()?.0;
    Some(short(format!("{}|{number}|{}", request.call_id(), from.tag().unwrap_or(""))))
}

fn short(key: String) -> String {
    if key.len() <= MAX_KEY {
        return key;
    }
    Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sip::flow::Transport;
    use crate::testing::start;

    const FLOW: Flow = Flow {
        transport: Transport::Udp,
        remote: std::net::SocketAddr::V4(std::net::SocketAddrV4::new(
            std::net::Ipv4Addr::new(10, 0, 0, 2),
            5060,
        )),
    };

    /// Adds transactions with large responses until there is no room. Returns their keys.
    fn fill(servers: &mut Servers, kind: Kind, method: &str) -> Vec<String> {
        let request = Message::request(method, "sip:a");
        let mut keys = Vec::new();
        while servers.has_room(kind) {
            let key = format!("{kind:?}{}", keys.len());
            assert!(servers.insert(&key, &request, FLOW, kind));
            servers.respond(start(), &key, 100, &[0; 300]);
            servers.respond(start(), &key, 200, &[0; 60_000]);
            keys.push(key);
        }
        keys
    }

    #[test]
    fn each_kind_and_each_call_is_bounded_in_bytes() {
        let mut servers = Servers::default();
        let mut keys = fill(&mut servers, Kind::NewCall, "INVITE");
        assert_eq!(keys.len(), MAX_BYTES.div_ceil(60_000));
        let one = fill(&mut servers, Kind::InCall(CallKey(1)), "INFO");
        assert_eq!(one.len(), MAX_BYTES_PER_CALL.div_ceil(60_000));
        assert!(servers.has_room(Kind::InCall(CallKey(2))), "another call has its own bound");
        keys.extend(one);
        for call in 2..20 {
            keys.extend(fill(&mut servers, Kind::InCall(CallKey(call)), "INFO"));
        }
        assert!(!servers.has_room(Kind::InCall(CallKey(99))), "all calls have one as well");
        keys.iter().for_each(|key| servers.remove(key));
        assert!(servers.is_empty());
    }

    #[test]
    fn keys_are_short_and_still_differ() {
        let long = "x".repeat(60_000);
        let (a, b) = (short(format!("{long}a")), short(format!("{long}b")));
        assert!(a.len() <= MAX_KEY && a != b, "{a} {b}");
    }
}
