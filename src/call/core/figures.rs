//! The state of a call that its worker reads: what its audio lacks, and its figures at the end.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::call::core::{Call, Phase};
use crate::call::vitals::{AiState, Figures};
use crate::call::words::{Output, Summary};
use crate::media::frame::{FRAME_TIME, RATE};

/// The AI counts as speaking until this long after its last frame.
const SPOKEN: Duration = Duration::from_millis(400);
/// Audio of an AI that speaks has a peak of at least this: -50 dBFS.
const AUDIBLE: u16 = 104;

impl Call {
    /// Sends an RTCP report, if the PBX takes one.
    pub(super) fn report(&mut self, now: Instant, unix: Duration) {
        let receiver = &self.hearing.receiver;
        let lost = receiver.counts().sequence.lost;
        let passed =
            self.past.answered.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let index = (passed.as_micros() / FRAME_TIME.as_micros()) as u64;
        let (reception, sender) = (receiver.reception(), &self.playing.sender);
        let packet = self.rtcp.report(now, unix, sender, index, reception, lost);
        self.out.push_back(Output::Report);
        let acknowledged = self.remote.filter(|_| !self.unacknowledged);
        let to = acknowledged.map(|r| r.rtcp).filter(|to| !to.ip().is_unspecified());
        if let (Some(packet), Some(to)) = (packet, to) {
            self.out.push_back(Output::Rtcp { to, packet });
        }
    }

    /// True if no RTP has arrived for long enough that the timeline is about to insert silence.
    pub fn misses_audio(&self, now: Instant) -> bool {
        let due = self.hearing.receiver.next_timeout();
        self.past.answered.is_some() && due.is_some_and(|at| at <= now)
    }

    /// True if silence is about to be sent after the AI's speech, because nothing more has come.
    pub fn misses_speech(&self, now: Instant) -> bool {
        self.playing.misses_speech(now)
    }

    /// The source of RTP that is being dropped and the address announced by the PBX, if RTP keeps
    /// arriving from elsewhere and none from there.
    pub fn misdirected(&self) -> Option<(SocketAddr, SocketAddr)> {
        self.hearing.misdirected()
    }

    /// AI audio that stayed queued throughout the last two seconds of streaming.
    pub fn playout_floor_bytes(&self) -> u64 {
        self.playing.playout.floor_bytes()
    }

    /// The first payload type that arrived although another law was agreed.
    pub fn unagreed(&self) -> Option<u8> {
        self.hearing.receiver.unagreed()
    }

    /// Makes both sides' frames [`Output::Tap`]s, for those who listen in.
    ///
    /// [`Output::Tap`]: crate::call::words::Output::Tap
    pub fn set_listened(&mut self, on: bool) {
        self.listened = on;
    }

    /// The figures of a live call. The levels are those since the last call of this.
    pub fn figures(&mut self, now: Instant) -> Figures {
        let counts = self.hearing.receiver.counts();
        let timeline = counts.timeline;
        let ms = |samples: u64| samples * 1000 / RATE;
        let peaks = std::mem::take(&mut self.peaks);
        Figures {
            ai: self.ai_state(now, peaks.ai),
            peaks,
            packets_in: counts.sequence.received,
            packets_out: self.playing.sender.packets(),
            lost: counts.sequence.lost,
            concealed_ms: ms(timeline.concealed_samples),
            jitter_ms: self.hearing.receiver.reception().map(|(_, units)| ms(units.into())),
            round_trip: self.rtcp.peer.and_then(|peer| peer.round_trip),
            playout_floor_ms: ms(self.playout_floor_bytes()),
        }
    }

    /// `peak`: the level of the last second. Some AIs send silence when they do not speak.
    fn ai_state(&self, now: Instant, peak: u16) -> AiState {
        let played = self.playing.played_at().is_some_and(|at| now < at + SPOKEN);
        let speaks = played && peak >= AUDIBLE;
        match self.phase {
            Phase::Connecting if self.falling.is_some() => AiState::Failed,
            Phase::Connecting => AiState::Dialling,
            Phase::Talking if speaks => AiState::Speaking,
            Phase::Talking => AiState::Listening,
            Phase::Finishing { .. } | Phase::Leaving { .. } | Phase::Ended => AiState::Gone,
        }
    }

    fn first_audio(&self) -> Option<Duration> {
        Some(self.playing.first_ai_audio()?.saturating_duration_since(self.past.answered?))
    }

    pub fn summary(&self, now: Instant) -> Summary {
        Summary {
            talk: self.past.answered.map_or(Duration::ZERO, |at| now.saturating_duration_since(at)),
            setup: self.past.answered.unwrap_or(now).saturating_duration_since(self.created),
            answered: self.past.answered.is_some(),
            first_audio: self.first_audio(),
            received: self.hearing.receiver.counts(),
            packets_sent: self.playing.sender.packets(),
            preroll_dropped: self.hearing.preroll_dropped(),
            playout_discarded: self.playing.playout.discarded_bytes,
            playout_left_out: self.playing.playout.left_out,
            playout_floor_bytes: self.playing.playout.floor_bytes(),
            jitter: self
                .hearing
                .receiver
                .reception()
                .map(|(_, units)| Duration::from_micros(u64::from(units) * 1_000_000 / RATE)),
            round_trip: self.rtcp.peer.and_then(|p| p.round_trip),
            turn_latency: self.turns.as_ref().and_then(|turns| turns.latency()),
        }
    }
}
