//! The cost of each piece of the frame path, of the whole path, and of parsing SIP.
//!
//!     cargo bench --bench pieces [-- NAME]
//!     cargo bench --bench pieces -- frames COUNT    (for callgrind: tests/bench/instructions.sh)
//!     cargo bench --bench pieces -- floor CALLS     (the kernel alone)

mod frame_path;

use std::hint::black_box;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use criterion::Criterion;
use frame_path::{FramePath, media_from_ai};
use trunkless::bench::floor;
use trunkless::media::Settings;
use trunkless::media::g711::Law;
use trunkless::media::g711::{a_to_mu, mu_to_a};
use trunkless::media::playout::{Budget, Playout};
use trunkless::media::receiver::{Format, Receiver};
use trunkless::media::rtp::Packet;
use trunkless::media::sender::Sender;
use trunkless::media::speech::Speech;
use trunkless::sip::message::Message;
use trunkless::stream::dialect::Codec as _;
use trunkless::stream::dialect::{Dialect, Extensions, Session};
use trunkless::stream::openai::Realtime;
use trunkless::stream::twilio::{Encoder, decode};
use trunkless::stream::{Received, StreamInfo, ToAi};

const SID: &str = "MZ0123456789abcdef0123456789abcdef";

fn main() {
    let words: Vec<String> = std::env::args().filter(|word| word != "--bench").collect();
    if let [_, frames, count] = &words[..]
        && frames == "frames"
    {
        let count: u64 = count.parse().expect("COUNT is not a number");
        let mut path = FramePath::new();
        (0..count).for_each(|_| path.tick());
        println!("{} messages, {} packets", path.messages, path.packets);
        return;
    }
    if let [_, floor, calls] = &words[..]
        && floor == "floor"
    {
        let calls = calls.parse().expect("CALLS is not a number");
        return println!("{:#?}", floor::measure(calls).expect("socket error"));
    }
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    media(&mut criterion);
    speech(&mut criterion);
    stream(&mut criterion);
    model(&mut criterion);
    sip(&mut criterion);
    let mut path = FramePath::new();
    criterion.bench_function("a frame each way, all together", |b| b.iter(|| path.tick()));
    criterion.final_summary();
}

fn speech(criterion: &mut Criterion) {
    let frames = include_bytes!("../../src/cli/assets/caller.ulaw").as_chunks::<160>().0;
    let mut detector = Speech::new(Duration::from_millis(200));
    let mut next = frames.iter().cycle();
    criterion.bench_function("voice activity in a frame", |b| {
        b.iter(|| detector.hears(Law::Mu, black_box(next.next().expect("endless")), false));
    });
}

fn media(criterion: &mut Criterion) {
    let packet = Sender::new(7, 0, 0).audio(0, 0, &[0x55; 160], false);
    criterion.bench_function("RTP: parse", |b| b.iter(|| Packet::parse(black_box(&packet))));

    let pbx = "10.0.0.2:4000".parse().expect("an address");
    let mut now = Instant::now();
    let mut receiver = Receiver::new("10.0.0.2".parse().expect("an address"), &Settings::default());
    let format = Format { law: Law::Mu, payload_type: 0, dtmf_payload_type: Some(101) };
    receiver.set_remote(pbx, format);
    receiver.start(now);
    let (mut caller, mut index) = (Sender::new(7, 0, 0), 0);
    criterion.bench_function("receiver: packet in, frame out", |b| {
        b.iter(|| {
            now += Duration::from_millis(20);
            index += 1;
            let packet = caller.audio(0, index, &[0x55; 160], false);
            receiver.on_packet(now, pbx, &packet);
            receiver.next_frame()
        });
    });

    let mut playout = Playout::new(1 << 20, Budget::new(1 << 20));
    criterion.bench_function("playout: audio in, frame out", |b| {
        b.iter(|| {
            now += Duration::from_millis(20);
            playout.push_audio(now, black_box(&[0x55; 160]));
            playout.next_frame(now)
        });
    });

    let mut samples = [0x55u8; 160];
    criterion.bench_function("G.711: frame to A-law and back", |b| {
        b.iter(|| {
            mu_to_a(black_box(&mut samples));
            a_to_mu(black_box(&mut samples));
        });
    });
}

fn stream(criterion: &mut Criterion) {
    let info = StreamInfo {
        account_sid: "AC0".into(),
        call_sid: "CA0".into(),
        stream_sid: SID.into(),
        parameters: Vec::new(),
        targets: Vec::new(),
        resumed: false,
        resumption: None,
    };
    let mut encoder = Encoder::new(info, Extensions::Off);
    let (message, mut text) = (ToAi::Audio { samples: [0x55; 160], t_ms: 20 }, BytesMut::new());
    criterion.bench_function("Twilio: encode a frame", |b| {
        b.iter(|| {
            text.clear();
            encoder.encode(black_box(&message), &mut text);
        });
    });
    let (said, mut audio) = (media_from_ai(), Vec::new());
    criterion.bench_function("Twilio: decode a frame", |b| {
        b.iter(|| {
            black_box(decode(black_box(&said), SID, &mut audio));
        });
    });
    for (name, dialect, rate) in [
        ("l16 at 8 kHz", Dialect::L16, 8000),
        ("l16 at 16 kHz", Dialect::L16, 16_000),
        ("l16 at 24 kHz", Dialect::L16, 24_000),
        ("exotel at 8 kHz", Dialect::Exotel, 8000),
        ("telnyx", Dialect::Telnyx, 8000),
    ] {
        let session = Session { sample_rate: Some(rate), ..Session::default() };
        let info = StreamInfo { stream_sid: SID.into(), ..StreamInfo::default() };
        let mut codec = dialect.codec(info, Extensions::Off, &session);
        // once, for runs in which this piece is not selected
        text.clear();
        codec.encode(&message, &mut text);
        criterion.bench_function(&format!("{name}: encode a frame"), |b| {
            b.iter(|| {
                text.clear();
                codec.encode(black_box(&message), &mut text);
            });
        });
        // the AI's frame is as long as our own
        let said = match dialect {
            Dialect::L16 => text.to_vec(),
            _ => media_of_a_carrier(&text),
        };
        criterion.bench_function(&format!("{name}: decode a frame"), |b| {
            b.iter(|| {
                let message = match dialect {
                    Dialect::L16 => Received::Binary(&said),
                    _ => Received::Text(str::from_utf8(&said).expect("JSON")),
                };
                codec.decode(black_box(message), &mut audio, &mut |message| {
                    black_box(message);
                });
            });
        });
    }
    // a message that the fast parser leaves to the general one
    let odd = said.replacen("\"media\"", "\"m\\u0065dia\"", 1);
    criterion.bench_function("Twilio: decode a frame with escapes", |b| {
        b.iter(|| {
            black_box(decode(black_box(&odd), SID, &mut audio));
        });
    });
}

/// The API's event with a piece of audio, up to the audio.
const DELTA: &str = concat!(
    r#"{"type":"response.output_audio.delta","event_id":"event_CbN4xQyVXyXEJ4Tz2ZJqR","#,
    r#""response_id":"resp_CbN4x0R3mnqBCKyyKFEmx","item_id":"item_CbN4xDGsOvzDlzB6iHZFB","#,
    r#""output_index":0,"content_index":0,"delta":""#,
);

fn model(criterion: &mut Criterion) {
    let mut codec = Realtime::new(StreamInfo::default(), Session::default());
    let (message, mut text) = (ToAi::Audio { samples: [0x55; 160], t_ms: 20 }, BytesMut::new());
    criterion.bench_function("OpenAI: encode a frame", |b| {
        b.iter(|| {
            text.clear();
            codec.encode(black_box(&message), &mut text);
        });
    });
    // of one length each: a frame, and what the API sends at once
    for (name, bytes) in [("a frame", 160), ("200 ms", 1600)] {
        let said = format!("{DELTA}{}\"}}", STANDARD.encode(vec![0x55; bytes]));
        let mut audio = Vec::new();
        criterion.bench_function(&format!("OpenAI: decode {name}"), |b| {
            b.iter(|| {
                codec.decode(Received::Text(black_box(&said)), &mut audio, &mut |message| {
                    black_box(message);
                });
            });
        });
    }
}

/// A `media` message of the AI with the same audio as ours.
fn media_of_a_carrier(ours: &[u8]) -> Vec<u8> {
    let ours: serde_json::Value = serde_json::from_slice(ours).expect("JSON");
    let payload = &ours["media"]["payload"];
    format!(r#"{{"event":"media","media":{{"payload":{payload}}}}}"#).into_bytes()
}

fn sip(criterion: &mut Criterion) {
    let invite = "INVITE sip:ai@10.0.0.9:5060 SIP/2.0\r\n\
        Via: SIP/2.0/UDP 10.0.0.2:5060;rport;branch=z9hG4bKPj1b1f\r\n\
        From: \"Ann\" <sip:5551234@10.0.0.2>;tag=1c2d\r\nTo: <sip:ai@10.0.0.9>\r\n\
        Contact: <sip:asterisk@10.0.0.2:5060>\r\nCall-ID: 0c0a7c9b-6f3d-4e37\r\n\
        CSeq: 18721 INVITE\r\nAllow: OPTIONS, INVITE, ACK, BYE, CANCEL, UPDATE, INFO\r\n\
        Supported: 100rel, timer, replaces\r\nSession-Expires: 1800\r\nMin-SE: 90\r\n\
        Max-Forwards: 70\r\nUser-Agent: Asterisk PBX 22.6.0\r\n\
        Content-Type: application/sdp\r\nContent-Length: 4\r\n\r\nv=0\r\n";
    assert!(Message::parse(invite.as_bytes()).is_ok());
    criterion.bench_function("SIP: parse an INVITE", |b| {
        b.iter(|| {
            let _ = black_box(Message::parse(black_box(invite.as_bytes())));
        });
    });
}
