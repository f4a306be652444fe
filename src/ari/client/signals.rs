//! From the application's notices to the signals of a call. Owns no I/O but the log.

use tracing::{debug, warn};

use crate::ari::api::CallKey;
use crate::ari::bridging::words::{Cause, Tell};
use crate::ari::client::Source;
use crate::call::end::EndReason;
use crate::call::outgoing::by_cause;
use crate::call::{RemoteMedia, Signal};
use crate::media::g711::Law;
use crate::media::receiver::Format;

impl Source {
    pub(super) fn send_signal(&mut self, call: CallKey, tell: Tell) {
        let law = self.config.pbx.law;
        let payload_type = if law == Law::A { 8 } else { 0 };
        let Some(link) = self.calls.get_mut(&call) else { return };
        let signal = match tell {
            Tell::Media(rtp) => {
                let remote = RemoteMedia {
                    rtp,
                    // external media channels have no RTCP
                    rtcp: ([0, 0, 0, 0], 0).into(),
                    format: Format { law, payload_type, dtmf_payload_type: None },
                    wants_audio: true,
                    sends_audio: !link.held,
                    early: true,
                    trusted: true,
                };
                link.remote = Some(remote);
                Signal::Media(remote)
            }
            Tell::Hold(on) => {
                link.held = on;
                let Some(remote) = &mut link.remote else { return };
                remote.sends_audio = !on;
                Signal::Media(*remote)
            }
            Tell::Replied(order, result) => Signal::Replied { order, result },
            Tell::Progress(order, state) => Signal::Progress { order, state },
            Tell::Ringing => Signal::Ringing,
            Tell::Connected => Signal::Connected,
            Tell::Ended(Cause::Unanswered { cause, dial }) => {
                let reason = match (cause, &dial) {
                    (None, _) => EndReason::DialFailed,
                    // the dialplan has no such extension
                    (Some(_), None) => EndReason::InvalidNumber,
                    (Some(cause), Some(dial)) => by_cause(cause, dial),
                };
                Signal::Unanswered { reason, code: cause.filter(|cause| *cause != 0) }
            }
            Tell::Ended(Cause::NotCalled) => {
                Signal::Unanswered { reason: EndReason::Drain, code: None }
            }
            Tell::Digit(digit) => Signal::Digit(digit),
            Tell::HangupCause(cause) => Signal::HangupCause(cause),
            // a link that only falls silent is given up after 10 s
            Tell::Lost => Signal::PbxLost { gone: true },
            Tell::Back => Signal::PbxConfirms,
            Tell::Ended(cause) => Signal::Ended(match cause {
                Cause::CallerHangup | Cause::Unanswered { .. } | Cause::NotCalled => {
                    EndReason::CallerHangup
                }
                Cause::Transferred => EndReason::Transferred,
                Cause::Restarted => EndReason::PbxLost,
                Cause::Failed(why) => {
                    warn!(call = link.id, pbx = &*self.name, why, "call failed on the PBX");
                    EndReason::PbxError
                }
            }),
        };
        if link.signals.try_send(signal).is_err() {
            debug!(
                call = link.id,
                ?signal,
                "signal not delivered: call ended or its queue is full"
            );
        }
    }
}
