//! The frame path without sockets: the work of a worker between its system calls, for one call in
//! both directions.

#[path = "../fixtures/call_config.rs"]
mod call_config;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use call_config::call_config;
use trunkless::call::core::Call;
use trunkless::call::words::{Input, Output, Seeds};
use trunkless::call::{RemoteMedia, Signal};
use trunkless::media::g711::Law;
use trunkless::media::receiver::Format;
use trunkless::media::sender::Sender;
use trunkless::peer::pattern;
use trunkless::stream::dialect::Codec as _;
use trunkless::stream::dialect::Extensions;
use trunkless::stream::twilio::{Encoder, decode};
use trunkless::stream::{StreamInfo, ToAi};

const SID: &str = "MZ0123456789abcdef0123456789abcdef";
const TICK: Duration = Duration::from_millis(20);

/// One call with audio in both directions.
pub struct FramePath {
    call: Call,
    /// Simulated time.
    now: Instant,
    pbx: SocketAddr,
    caller: Sender,
    /// Packets sent by the caller.
    sent: u64,
    encoder: Encoder,
    /// Buffer for encoded messages.
    text: BytesMut,
    /// The `media` message that the AI sends repeatedly.
    said: String,
    /// Buffer for decoded audio.
    audio: Vec<u8>,
    /// Audio messages sent to the AI.
    pub messages: u64,
    /// RTP packets sent to the caller.
    pub packets: u64,
    /// RTCP packets sent, which do not count as frames.
    pub reports: u64,
}

impl FramePath {
    /// Creates a call that is not recorded, because a recording allocates a block every 200 ms.
    pub fn new() -> FramePath {
        let now = Instant::now();
        let pbx: SocketAddr = "10.0.0.2:4000".parse().expect("an address");
        let remote = RemoteMedia {
            rtp: pbx,
            rtcp: pbx,
            format: Format { law: Law::Mu, payload_type: 0, dtmf_payload_type: Some(101) },
            wants_audio: true,
            sends_audio: true,
            early: false,
            trusted: true,
        };
        let seeds = Seeds { ssrc: 1, sequence: 0, timestamp: 0 };
        let call =
            Call::new(now, &call_config(), pbx.ip(), Some(remote), false, seeds, "bench".into());
        let info = StreamInfo {
            account_sid: "AC0".into(),
            call_sid: "CA0".into(),
            stream_sid: SID.into(),
            parameters: Vec::new(),
            targets: Vec::new(),
            resumed: false,
            resumption: None,
        };
        let mut path = FramePath {
            call,
            now,
            pbx,
            caller: Sender::new(7, 0, 0),
            sent: 0,
            encoder: Encoder::new(info, Extensions::Off),
            text: BytesMut::new(),
            said: media_from_ai(),
            audio: Vec::new(),
            messages: 0,
            packets: 0,
            reports: 0,
        };
        path.call.handle(now, Input::AiOpen);
        path.call.handle(now, Input::Signal(Signal::Connected));
        path.drain();
        path
    }

    /// Simulates 20 ms: a packet from the caller becomes a message, and a message from the AI
    /// becomes a packet.
    pub fn tick(&mut self) {
        self.now += TICK;
        let packet = self.caller.audio(0, self.sent, &[0x55; 160], false);
        self.sent += 1;
        self.call.handle(self.now, Input::Rtp { from: self.pbx, data: &packet });
        self.drain();
        // a worker asks for the next timeout after each input
        std::hint::black_box(self.call.next_timeout());
        let message = decode(&self.said, SID, &mut self.audio);
        self.call.handle(self.now, Input::Ai(message));
        self.drain();
        // a frame of a paced AI leaves with its message, so a timeout is rare
        if self.call.next_timeout().is_some_and(|at| at <= self.now) {
            self.call.handle(self.now, Input::Timeout { unix: Duration::from_secs(1_700_000_000) });
            self.drain();
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.call.poll() {
            match output {
                Output::Ai(message) => {
                    self.messages += u64::from(matches!(message, ToAi::Audio { .. }));
                    self.text.reserve(512);
                    self.encoder.encode(&message, &mut self.text);
                    std::hint::black_box(self.text.split().freeze());
                }
                Output::Rtp { packet, .. } => {
                    self.packets += 1;
                    std::hint::black_box(packet);
                }
                Output::Rtcp { .. } => self.reports += 1,
                _ => {}
            }
        }
    }
}

/// Returns a `media` message as servers write it.
pub fn media_from_ai() -> String {
    use base64::Engine as _;
    let payload = base64::engine::general_purpose::STANDARD.encode(pattern::frame(1, 2));
    format!(r#"{{"event":"media","streamSid":"{SID}","media":{{"payload":"{payload}"}}}}"#)
}
