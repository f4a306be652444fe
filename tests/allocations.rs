//! The frame path does not allocate: memory allocated for the first frames serves all later ones.

#[path = "bench/frame_path.rs"]
mod frame_path;

use std::alloc::System;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use frame_path::FramePath;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use trunkless::stream::dialect::{Codec as _, Dialect, Extensions, Form, Session};
use trunkless::stream::openai::Realtime;
use trunkless::stream::{FromAi, Received, StreamInfo, ToAi};

/// The dialect of a model, with the same audio in both directions.
struct Model {
    codec: Realtime,
    text: BytesMut,
    said: String,
    audio: Vec<u8>,
}

impl Model {
    fn new() -> Model {
        let said = format!(
            "{{\"type\":\"response.output_audio.delta\",\"event_id\":\"e\",\"response_id\":\"r\",\
             \"item_id\":\"i\",\"output_index\":0,\"content_index\":0,\"delta\":\"{}\"}}",
            STANDARD.encode([0x55; 160])
        );
        let codec = Realtime::new(StreamInfo::default(), Session::default());
        Model { codec, text: BytesMut::new(), said, audio: Vec::new() }
    }

    fn tick(&mut self) {
        self.text.clear();
        self.codec.encode(&ToAi::Audio { samples: [0x55; 160], t_ms: 0 }, &mut self.text);
        let mut played = 0;
        self.codec.decode(Received::Text(&self.said), &mut self.audio, &mut |message| {
            played += usize::from(matches!(message, FromAi::Audio(_)));
        });
        assert!(played == 1 && self.codec.next_message().is_none());
    }
}

#[global_allocator]
static COUNTING: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Returns the allocations and reallocations of a dialect in 50 frames each way.
fn allocated_by(dialect: Dialect, rate: u32) -> (usize, usize) {
    let session = Session { sample_rate: Some(rate), ..Session::default() };
    let mut codec = dialect.codec(StreamInfo::default(), Extensions::Off, &session);
    let linear = "AAEA".repeat(rate as usize / 50 * 2 / 3);
    let said = match dialect {
        Dialect::Plivo => format!(
            r#"{{"event":"playAudio","media":{{"contentType":"audio/x-l16","sampleRate":{rate},"payload":"{linear}"}}}}"#
        ),
        _ => format!(r#"{{"event":"media","media":{{"payload":"{linear}"}}}}"#),
    };
    let (mut out, mut audio, mut heard) = (BytesMut::new(), Vec::new(), 0);
    let binary = vec![1; rate as usize / 50 * 2];
    let mut frame = |t_ms| {
        out.clear();
        let form = codec.encode(&ToAi::Audio { samples: [0x55; 160], t_ms }, &mut out);
        let message = match form {
            Form::Binary => Received::Binary(&binary),
            Form::Text => Received::Text(&said),
        };
        codec.decode(message, &mut audio, &mut |_| heard += 1);
    };
    // the buffers reach their size
    (0..5).for_each(&mut frame);
    let region = Region::new(COUNTING);
    (5..55).for_each(&mut frame);
    let allocated = region.change();
    assert_eq!(heard, 55);
    (allocated.allocations, allocated.reallocations)
}

/// The only test in this program, so that no other test adds to the counts.
#[test]
fn the_frame_path_does_not_allocate() {
    let mut path = FramePath::new();
    // two seconds, in which the queues reach their size
    (0..100).for_each(|_| path.tick());
    let mut seconds = 0;
    for _ in 0..20 {
        let (messages, packets, reports) = (path.messages, path.packets, path.reports);
        let region = Region::new(COUNTING);
        (0..50).for_each(|_| path.tick());
        let allocated = region.change();
        assert_eq!((path.messages - messages, path.packets - packets), (50, 50));
        // the RTCP report every few seconds may allocate
        if path.reports == reports {
            seconds += 1;
            assert_eq!((allocated.allocations, allocated.reallocations), (0, 0), "{allocated:?}");
        }
    }
    assert!(seconds >= 10, "{seconds}");
    let mut model = Model::new();
    (0..10).for_each(|_| model.tick());
    let region = Region::new(COUNTING);
    (0..50).for_each(|_| model.tick());
    let allocated = region.change();
    assert_eq!((allocated.allocations, allocated.reallocations), (0, 0), "{allocated:?}");
    assert_eq!(model.audio, [0x55; 160]);
    for (dialect, rate) in [
        (Dialect::L16, 8000),
        (Dialect::L16, 24_000),
        (Dialect::Jambonz, 16_000),
        (Dialect::Telnyx, 8000),
        (Dialect::Plivo, 16_000),
        (Dialect::Exotel, 16_000),
    ] {
        let allocated = allocated_by(dialect, rate);
        assert_eq!(allocated, (0, 0), "{dialect:?} at {rate} Hz");
    }
    agents_of_vendors();
    // check that an allocation does show up in the counts
    let region = Region::new(COUNTING);
    std::hint::black_box(Vec::<u8>::with_capacity(160));
    assert_eq!(region.change().allocations, 1);
}

/// A second of audio in both directions, in the dialects of vendors.
fn agents_of_vendors() {
    let metadata = |format: &str| {
        format!(
            r#"{{"type":"conversation_initiation_metadata","conversation_initiation_metadata_event":{{"agent_output_audio_format":"{format}","user_input_audio_format":"{format}"}}}}"#
        )
    };
    let audio = format!(
        r#"{{"type":"audio","audio_event":{{"audio_base_64":"{}","event_id":1}}}}"#,
        "AAAA".repeat(80)
    );
    let audio = Received::Text(&audio);
    let welcome = [r#"{"type":"Welcome"}"#, r#"{"type":"SettingsApplied"}"#].map(str::to_owned);
    for (dialect, greetings, said) in [
        (Dialect::Deepgram, Vec::from(welcome), Received::Binary(&[0x55; 160])),
        (Dialect::ElevenLabs, vec![metadata("ulaw_8000")], audio),
        (Dialect::ElevenLabs, vec![metadata("pcm_8000")], audio),
        (Dialect::ElevenLabs, vec![metadata("pcm_16000")], audio),
    ] {
        let info = StreamInfo::default();
        let mut codec = dialect.codec(info, Extensions::Off, &Session::default());
        let (mut out, mut heard, mut bytes) = (BytesMut::new(), Vec::new(), 0);
        for greeting in greetings {
            codec.decode(Received::Text(&greeting), &mut heard, &mut |_| {});
        }
        while codec.next_message().is_some() {}
        assert!(codec.is_ready());
        let mut second = || {
            for n in 0..50 {
                out.clear();
                codec.encode(&ToAi::Audio { samples: [0x55; 160], t_ms: 20 * n }, &mut out);
                codec.decode(said, &mut heard, &mut |message| match message {
                    FromAi::Audio(audio) => bytes += audio.len(),
                    other => panic!("{other:?}"),
                });
                assert!(codec.next_message().is_none());
            }
        };
        second();
        let region = Region::new(COUNTING);
        second();
        let allocated = region.change();
        assert_eq!((allocated.allocations, allocated.reallocations), (0, 0), "{dialect:?}");
        assert!(bytes >= 100 * 60, "{bytes}");
    }
}
