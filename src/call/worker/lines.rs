//! The log lines of one call. Owns no I/O but the log.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tracing::field::display;
use tracing::{Level, debug, info, warn};

use crate::call::end::EndReason;
use crate::call::ladder::Rung;
use crate::call::words::MissingRtp;
use crate::call::words::Summary;
use crate::call::{Ai, Offer};
use crate::command::Cause;
use crate::faults::{NO_RTP, RTP_FROM_ELSEWHERE_CURE, RTP_NOT_HEARD};
use crate::media::frame::RATE;
use crate::stream::StreamInfo;
use crate::stream::closed::Closed;
use crate::telemetry::Masked;

/// Samples, and so bytes, in a millisecond of audio.
const SAMPLES_PER_MS: u64 = RATE / 1000;
/// The Q.850 cause with which Asterisk hangs up after its own RTP timeout.
const HEARD_NOTHING: u16 = 44;

/// The fields that the lines of a call share, and the addresses of its media.
#[derive(Debug, Clone)]
pub(super) struct Lines {
    call: String,
    pbx: std::sync::Arc<str>,
    /// Our RTP address, as the PBX has it.
    rtp: SocketAddr,
    /// The PBX's signalling address.
    signalling: IpAddr,
    /// The AI's URL, without secrets.
    url: String,
}

impl Lines {
    pub fn new(offer: &Offer, url: String) -> Lines {
        Lines {
            call: offer.id.clone(),
            pbx: offer.pbx.clone(),
            rtp: offer.leg.address(),
            signalling: offer.leg.signalling,
            url,
        }
    }

    /// Another AI has been dialled.
    pub fn dialled(&mut self, url: String) {
        info!(call = self.call, pbx = &*self.pbx, url, "dialling an AI again, or another one");
        self.url = url;
    }

    pub fn offered(&self, offer: &Offer, info: &StreamInfo, route: Option<&str>) {
        if offer.outgoing.is_some() {
            return info!(
                call = self.call,
                pbx = &*self.pbx,
                from = offer.from_number,
                to = %Masked(&offer.to_number),
                route,
                call_sid = info.call_sid,
                native_id = offer.native_id,
                "call out begins: the callee is called once the AI is connected"
            );
        }
        info!(
            call = self.call,
            pbx = &*self.pbx,
            from = %Masked(&offer.from_number),
            to = offer.to_number,
            route,
            call_sid = info.call_sid,
            native_id = offer.native_id,
            "call offered"
        );
    }

    pub fn unanswered(&self, reason: EndReason, code: Option<u16>) {
        let (call, pbx, reason) = (&self.call, &*self.pbx, reason.label());
        info!(call, pbx, reason, code, "the callee did not answer");
    }

    pub fn answered(&self, summary: &Summary) {
        let setup_ms = summary.setup.as_micros() as f64 / 1000.0;
        info!(call = self.call, pbx = &*self.pbx, setup_ms, "call answered");
    }

    pub fn missing_rtp(&self, missing: &MissingRtp) {
        let (call, pbx) = (&self.call, &*self.pbx);
        let (our_rtp, pbx_signalling) = (display(self.rtp), display(self.signalling));
        let pbx_rtp = missing.announced.map(display);
        let rejected_from = missing.rejected.map(display);
        match missing.stopped {
            false => warn!(call, pbx, our_rtp, pbx_rtp, pbx_signalling, rejected_from, "{NO_RTP}"),
            true => warn!(
                call,
                pbx,
                our_rtp,
                pbx_rtp,
                pbx_signalling,
                rejected_from,
                "RTP from the PBX has stopped for 2 s"
            ),
        }
    }

    pub fn hangup_cause(&self, cause: u16, announced: Option<SocketAddr>) {
        let (call, pbx) = (&self.call, &*self.pbx);
        if cause == HEARD_NOTHING {
            let (our_rtp, pbx_rtp) = (display(self.rtp), announced.map(display));
            warn!(call, pbx, our_rtp, pbx_rtp, "the PBX hung up with cause 44: {RTP_NOT_HEARD}");
        }
    }

    pub fn misdirected(&self, source: SocketAddr, named: SocketAddr) {
        warn!(
            call = self.call,
            pbx = &*self.pbx,
            "RTP comes from {source}, but the PBX's SDP names {named}: dropped; \
             {RTP_FROM_ELSEWHERE_CURE}"
        );
    }

    pub fn unagreed(&self, payload_type: u8) {
        warn!(
            call = self.call,
            pbx = &*self.pbx,
            "the PBX sends payload type {payload_type}, although another was agreed on; it is \
             decoded anyway"
        );
    }

    pub fn ai_unreachable(&self, error: &str) {
        warn!(call = self.call, pbx = &*self.pbx, url = self.url, "AI unreachable: {error}");
    }

    pub fn step(&self, rung: &Rung, ais: &[Ai]) {
        let (step, to) = match rung {
            Rung::Ai(place) | Rung::Next(place) => {
                ("ai", ais.get(*place).map(|ai| ai.name.as_str()))
            }
            Rung::Play(_) | Rung::PlayIfConnected(_) => ("play", None),
            Rung::Transfer(to) => ("transfer", Some(to.as_str())),
            // the line about the end of the call has these
            Rung::Continue | Rung::Hangup(_) => return,
        };
        info!(call = self.call, pbx = &*self.pbx, step, to, "next step of on_ai_failure");
    }

    /// The request before the socket was answered with a step instead. Returns it in words.
    pub fn instead(&self, rung: &Rung) -> &'static str {
        let (what, cause, to) = match rung {
            Rung::Transfer(to) => ("the server of [ai.create] transfers the call", None, Some(to)),
            Rung::Hangup(cause) => {
                ("the server of [ai.create] rejects the call", cause.map(Cause::name), None)
            }
            _ => ("the server of [ai.create] takes the call", None, None),
        };
        info!(call = self.call, pbx = &*self.pbx, cause, to, "{what}");
        what
    }

    pub fn ai_silent(&self, time: Duration) {
        let (call, pbx, url) = (&self.call, &*self.pbx, &self.url);
        warn!(
            call,
            pbx,
            url,
            "AI silent: no usable message for {time:?} after its start; raise silent_timeout \
             if it lets the caller speak first"
        );
    }

    pub fn ai_closed(&self, closed: &Closed) {
        let (call, pbx, url) = (&self.call, &*self.pbx, &self.url);
        match closed {
            Closed::Orderly(_) | Closed::HandOver => debug!(call, "AI stream closed: {closed}"),
            Closed::Failed(why) | Closed::Protocol(why) | Closed::SessionEnded(why) => {
                warn!(call, pbx, url, "AI stream lost: {why}");
            }
            Closed::Resumable(how) => {
                info!(call, pbx, url, "AI connection ended, its session continues: {how}");
            }
            Closed::Stalled => {
                warn!(call, pbx, url, "AI stream stalled: no data accepted for 5 s");
            }
            Closed::Unanswered => warn!(
                call,
                pbx, url, "AI stream dead: nothing received, and a ping not answered in 10 s"
            ),
        }
    }

    /// Figures that are 0 are left out. `cause`: the Q.850 cause of the PBX's hangup.
    pub fn ended(
        &self,
        reason: EndReason,
        cause: Option<u16>,
        summary: &Summary,
        ai_dropped: u64,
        unrecorded_ms: u64,
    ) {
        let row = reason.row();
        let some = |count: u64| (count > 0).then_some(count);
        let setup_ms = summary.setup.as_micros() as f64 / 1000.0;
        let talk_s = (summary.talk.as_secs_f64() * 1000.0).round() / 1000.0;
        let sequence = &summary.received.sequence;
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    call = self.call,
                    pbx = &*self.pbx,
                    reason = row.label,
                    cause,
                    answered = summary.answered,
                    setup_ms,
                    talk_s,
                    packets_in = sequence.received,
                    packets_out = summary.packets_sent,
                    lost = some(sequence.lost),
                    late = some(summary.received.late()),
                    late_kept = some(summary.received.late_kept()),
                    left_out = some(summary.received.timeline.left_out),
                    duplicates = some(sequence.duplicates),
                    wrong_source = some(summary.received.wrong_source),
                    ai_dropped_frames = some(ai_dropped),
                    ai_discarded_bytes = some(summary.playout_discarded),
                    ai_left_out = some(summary.playout_left_out),
                    ai_floor_ms = some(summary.playout_floor_bytes / SAMPLES_PER_MS),
                    preroll_dropped = some(summary.preroll_dropped),
                    unrecorded_ms = some(unrecorded_ms),
                    round_trip_ms = summary.round_trip.map(|d| d.as_millis() as u64),
                    "call ended"
                )
            };
        }
        match row.level {
            Level::ERROR => line!(error),
            Level::WARN => line!(warn),
            _ => line!(info),
        }
    }
}
