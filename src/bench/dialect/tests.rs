//! Both ends of a stream in every dialect: our codec, and the AI of the bench.

use bytes::BytesMut;
use serde_json::json;

use super::*;
use crate::bench::stamp::{Kind, Scope};
use crate::stream::dialect::{Codec, Extensions, Form, Session};
use crate::stream::{FromAi, Message, Received, StreamInfo, ToAi};

const EXACT: [Dialect; 10] = [
    Dialect::Twilio,
    Dialect::Telnyx,
    Dialect::Plivo,
    Dialect::Exotel,
    Dialect::L16,
    Dialect::Jambonz,
    Dialect::OpenAiRealtime,
    Dialect::Deepgram,
    Dialect::ElevenLabs,
    Dialect::Ultravox,
];

fn frame(number: u32) -> (Stamp, Samples) {
    let stamp = Stamp {
        sender: 7,
        hears: Some(1),
        number,
        due_us: 123_456_789,
        scope: Scope::Measured,
        sent_late: false,
        kind: Kind::Paced,
    };
    let mut samples = [0; FRAME_SAMPLES];
    stamp.write(&mut samples);
    (stamp, samples)
}

/// Returns the messages in a server's WebSocket frames.
fn unframed(mut bytes: &[u8]) -> Vec<Message> {
    let mut messages = Vec::new();
    while let [first, second, rest @ ..] = bytes {
        let (length, rest) = match second {
            126 => (usize::from(u16::from_be_bytes([rest[0], rest[1]])), &rest[2..]),
            short => (usize::from(*short), rest),
        };
        let (payload, after) = rest.split_at(length);
        messages.push(match first & 0x0f {
            BINARY => Message::Binary(payload.to_vec()),
            _ => Message::Text(String::from_utf8(payload.to_vec()).unwrap()),
        });
        bytes = after;
    }
    messages
}

/// trunkless' side of a stream, and the AI's.
struct Pair {
    codec: Box<dyn Codec>,
    ai: Messages,
    hint: usize,
    /// The meaning of all messages without audio that the AI has read.
    said: Vec<Said>,
}

impl Pair {
    fn new(dialect: Dialect, session: &Session) -> Pair {
        let info = StreamInfo {
            stream_sid: "MZ1".into(),
            parameters: vec![("from_number".into(), "2000017".into())],
            ..StreamInfo::default()
        };
        let codec = dialect.codec(info, Extensions::OnUse, session);
        Pair { codec, ai: Messages::new(dialect), hint: 0, said: Vec::new() }
    }

    /// Passes a message to trunkless. Returns its audio, and whether audio was cleared.
    fn give_codec(&mut self, message: &Message) -> (Vec<u8>, bool) {
        let received = match message {
            Message::Text(text) => Received::Text(text),
            Message::Binary(data) => Received::Binary(data),
        };
        let (mut found, mut cleared) = (Vec::new(), false);
        self.codec.decode(received, &mut Vec::new(), &mut |said| match said {
            FromAi::Audio(audio) => found.extend_from_slice(audio),
            FromAi::Clear => cleared = true,
            other => panic!("{other:?}"),
        });
        while let Some(message) = self.codec.next_message() {
            self.give_ai(&message);
        }
        (found, cleared)
    }

    /// Passes a message without audio to the AI, and its answer back.
    fn give_ai(&mut self, message: &Message) {
        let Message::Text(text) = message else { panic!("{message:?}") };
        assert_eq!(self.ai.audio_of_text(text.as_bytes(), &mut self.hint), None, "{text}");
        let said = self.ai.read(text.as_bytes()).unwrap();
        if let Some(reply) = said.reply.clone() {
            self.give_codec(&Message::Text(reply));
        }
        self.said.push(said);
    }

    /// Opens the stream.
    fn open(&mut self) {
        if let Some(hello) = self.ai.hello() {
            self.give_codec(&Message::Text(hello.to_owned()));
        }
        self.codec.hello().iter().for_each(|message| self.give_ai(message));
        assert!(self.codec.is_ready());
        self.codec.opening().iter().for_each(|message| self.give_ai(message));
    }

    /// Passes audio of the caller to the AI.
    fn hears(&mut self, samples: Samples) -> Read {
        let mut out = BytesMut::new();
        let form = self.codec.encode(&ToAi::Audio { samples, t_ms: 20 }, &mut out);
        match form {
            Form::Text => self.ai.audio_of_text(&out, &mut self.hint).expect("audio"),
            Form::Binary => self.ai.read_audio(&out),
        }
    }

    /// Passes the AI's frame to trunkless. Returns what is played.
    fn speaks(&mut self, samples: &Samples) -> Vec<u8> {
        let media = self.ai.media(samples).to_vec();
        let [message] = &unframed(&media)[..] else { panic!("not one message") };
        self.give_codec(message).0
    }

    fn begins_talkspurt(&mut self) {
        let mut out = Vec::new();
        self.ai.begin_talkspurt(&mut out);
        for message in unframed(&out) {
            assert_eq!(self.give_codec(&message), (Vec::new(), false));
        }
    }
}

#[test]
fn both_sides_understand_each_other() {
    for dialect in EXACT {
        let session = Session {
            settings: Some(json!({"instructions": "{from_number}"})),
            greeting: (dialect == Dialect::Deepgram).then(|| "{from_number}".to_owned()),
            ..Session::default()
        };
        assert_eq!(why_not(dialect), None);
        let mut pair = Pair::new(dialect, &session);
        pair.open();
        let starts = pair.said.iter().filter(|said| said.starts).count();
        assert_eq!(starts, usize::from(!pair.ai.starts_with_audio()), "{dialect:?}");
        let caller = pair.said.iter().find_map(|said| said.caller);
        let expected = (dialect != Dialect::Ultravox).then_some(2_000_017);
        assert_eq!(caller, expected, "{dialect:?}");
        let silence = [crate::media::frame::SILENCE; FRAME_SAMPLES];
        assert_eq!(pair.hears(silence), Read::Silence, "{dialect:?}");
        for round in 0..3 {
            pair.begins_talkspurt();
            for number in [0, 1, 1000] {
                let (stamp, samples) = frame(round * 1001 + number);
                assert_eq!(pair.hears(samples), Read::Ours(stamp), "{dialect:?}");
                assert_eq!(pair.speaks(&samples), samples, "{dialect:?}, round {round}");
            }
            let mut out = Vec::new();
            pair.ai.clear(&mut out);
            let answers: Vec<_> = unframed(&out).iter().map(|m| pair.give_codec(m)).collect();
            assert_eq!(answers.iter().filter(|(_, cleared)| *cleared).count(), 1, "{dialect:?}");
        }
    }
}

#[test]
fn damage_is_noticed_in_every_dialect() {
    for dialect in EXACT {
        let mut pair = Pair::new(dialect, &Session::default());
        pair.open();
        let (_, mut samples) = frame(5);
        samples[100] ^= 1;
        assert_eq!(pair.hears(samples), Read::Damaged, "{dialect:?}");
    }
    let linear = Messages::new(Dialect::L16);
    assert_eq!(linear.read_audio(&[0; LINEAR_BYTES]), Read::Silence);
    assert_eq!(linear.read_audio(&[0; LINEAR_BYTES - 2]), Read::Damaged);
}

/// Asterisk's chan_websocket.
#[test]
fn a_raw_bridge_gets_raw_audio() {
    let mut ai = Messages::new(Dialect::Twilio);
    assert!(ai.read(br#"{"event":"MEDIA_START","format":"ulaw"}"#).unwrap().starts);
    let mut out = Vec::new();
    ai.begin_talkspurt(&mut out);
    assert!(out.is_empty());
    let (stamp, samples) = frame(1);
    assert_eq!(unframed(ai.media(&samples)), [Message::Binary(samples.to_vec())]);
    assert_eq!(ai.read_audio(&samples), Read::Ours(stamp));
    ai.clear(&mut out);
    assert_eq!(unframed(&out), [Message::Text(r#"{"command":"FLUSH_MEDIA"}"#.to_owned())]);
}

#[test]
fn other_sample_rates_are_refused() {
    for dialect in [Dialect::Plivo, Dialect::Exotel, Dialect::L16, Dialect::Jambonz] {
        let session = Session { sample_rate: Some(16_000), ..Session::default() };
        let mut pair = Pair::new(dialect, &session);
        let opening = pair.codec.opening();
        let read = opening.iter().map(|message| match message {
            Message::Text(text) => pair.ai.read(text.as_bytes()),
            Message::Binary(_) => panic!("{message:?}"),
        });
        let why = read.last().unwrap().unwrap_err();
        assert!(why.contains("8 kHz"), "{dialect:?}: {why}");
    }
    assert!(why_not(Dialect::GeminiLive).unwrap().contains("not at 8 kHz"));
}
