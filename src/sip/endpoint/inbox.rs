//! Messages to the endpoint: what calls and handles ask for, and what its tasks have found out.

use crate::call::{Signal, SourceRequest};
use crate::sip::agent::{CallKey, Command, Input};
use crate::sip::endpoint::counters::count_refused;
use crate::sip::endpoint::{Endpoint, Internal};

impl Endpoint {
    pub(super) fn on_internal(&mut self, internal: Internal) {
        match internal {
            Internal::Place(account, new) => self.on_place(account, *new),
            Internal::Request(call, request) => self.on_request(call, request),
            Internal::Resolved(account, hosts, found) => {
                // the hosts may have changed meanwhile
                if let Some(routes) = self.on_resolved(account, &hosts, found) {
                    self.feed(Input::Resolved { account, routes });
                }
            }
            Internal::Change(change) => self.on_change(change),
            Internal::Closed { account, remote, was_open } => {
                // a firewall may reject the probes but let SIP pass: while registered, and if the
                // port was never found open, act on the first such report only
                let peer = &mut self.peers[account];
                let believed = was_open || !peer.registered || !peer.doubted;
                peer.doubted |= peer.registered && !was_open;
                if believed {
                    self.feed(Input::Unreachable { remote, gone: true });
                }
            }
            Internal::ResolveAgain(account) => self.resolve(account),
            Internal::Left(account, call) => {
                self.turn_away(account, call);
                self.drain();
            }
            Internal::AiDown(account, down) => self.on_ai_down(account, down),
            Internal::Idle(done) => {
                self.idle = Some(done);
                self.drain();
            }
            Internal::Shutdown(done) => {
                self.draining = true;
                self.stopping = Some(done);
                self.command(Command::Shutdown);
            }
        }
    }

    fn on_request(&mut self, call: CallKey, request: SourceRequest) {
        let Some(link) = self.calls.get_mut(&call) else { return };
        if link.outgoing && self.on_outgoing_request(call, &request) {
            return;
        }
        let Some(link) = self.calls.get_mut(&call) else { return };
        match request {
            SourceRequest::Answer => {
                link.answered = true;
                let rtp = link.rtp;
                self.command(Command::Answer { call, rtp });
                self.signal(call, Signal::Answered);
            }
            SourceRequest::Ringing => self.command(Command::Ringing { call }),
            SourceRequest::Capture(tap) => self.messages.capture(call, tap),
            SourceRequest::End { reason, .. } => {
                self.drop_transfer(call);
                let Some(link) = self.calls.get_mut(&call) else { return };
                let row = reason.row();
                let command = match link.answered {
                    true => Command::Hangup { call, q850: row.q850, text: row.label },
                    false => {
                        count_refused(Some("INVITE"), row.sip_status);
                        let (code, reason) = (row.sip_status, row.sip_reason);
                        Command::Reject { call, code, reason, retry_after_s: None }
                    }
                };
                self.command(command);
            }
            request => self.on_order(call, request),
        }
    }
}
