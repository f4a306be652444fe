//! Helpers for the tests of dialects.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::BytesMut;
use serde_json::Value;

use crate::command::Reply;
use crate::stream::dialect::{Codec, Form};
use crate::stream::{FromAi, HeardSign, Message, OrderReply, Received, StreamInfo, ToAi};

pub(super) fn info() -> StreamInfo {
    let parameters = [("from_number", "+1\"5"), ("to_number", "8010")];
    StreamInfo {
        account_sid: "AC1".into(),
        call_sid: "CA1".into(),
        stream_sid: "MZ1".into(),
        parameters: parameters.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        ..StreamInfo::default()
    }
}

/// Messages that are the same in all tests.
pub(super) struct Common {
    pub cleared: ToAi,
    pub speech: ToAi,
    pub reply: ToAi,
}

pub(super) fn all() -> Common {
    let (played, discarded) = (Duration::from_millis(20), Duration::from_millis(40));
    let reply = OrderReply { id: "7".into(), command: "hold", reply: Reply::Done, why: None };
    Common {
        cleared: ToAi::Cleared { played, discarded, at: 0, by_caller: false },
        speech: ToAi::Heard(HeardSign::SpeechStarted { at_ms: 1240 }),
        reply: ToAi::Reply(Box::new(reply)),
    }
}

/// Encodes a message that is text, or nothing.
pub(super) fn text(codec: &mut dyn Codec, message: &ToAi) -> String {
    let mut out = BytesMut::new();
    assert_eq!(codec.encode(message, &mut out), Form::Text);
    String::from_utf8(out.to_vec()).unwrap()
}

/// Returns what a message without audio says.
pub(super) fn said(codec: &mut dyn Codec, message: Received<'_>) -> Vec<FromAi<'static>> {
    let mut all = Vec::new();
    codec.decode(message, &mut Vec::new(), &mut |message| {
        all.push(match message {
            FromAi::Audio(_) => panic!("audio"),
            FromAi::Mark(name) => FromAi::Mark(name),
            FromAi::Clear => FromAi::Clear,
            FromAi::Order(order) => FromAi::Order(order),
            FromAi::Tool(tool) => FromAi::Tool(tool),
            FromAi::Failed(why) => FromAi::Failed(why),
            FromAi::Done(how) => FromAi::Done(how),
            FromAi::SessionEnded(why) => FromAi::SessionEnded(why),
            FromAi::Warning(why) => FromAi::Warning(why),
            FromAi::Ignored(why) => FromAi::Ignored(why),
        });
    });
    all
}

/// The messages that open the stream.
pub(super) fn opening(codec: &mut dyn Codec) -> Vec<Value> {
    let json = |message| match message {
        Message::Text(text) => serde_json::from_str(&text).unwrap(),
        Message::Binary(data) => panic!("{data:?}"),
    };
    codec.opening().into_iter().map(json).collect()
}

/// The audio in a `media` message.
pub(super) fn audio_of(text: &str) -> Vec<u8> {
    let message: Value = serde_json::from_str(text).unwrap();
    BASE64.decode(message["media"]["payload"].as_str().unwrap()).unwrap()
}

/// Returns the meaning of each part of a message in a few words.
pub(super) fn in_words(codec: &mut dyn Codec, message: Received<'_>) -> Vec<String> {
    let mut said = Vec::new();
    codec.decode(message, &mut vec![9; 9], &mut |message| {
        said.push(match message {
            FromAi::Audio(audio) => format!("audio {audio:?}"),
            FromAi::Clear => "clear".to_owned(),
            FromAi::Order(order) => match *order {
                Ok(order) => format!("order {}", order.id),
                Err(unusable) => format!("unusable {}", unusable.id),
            },
            FromAi::Tool(tool) => format!("tool {} {}", tool.name, tool.arguments),
            FromAi::Failed(why) | FromAi::SessionEnded(why) | FromAi::Warning(why) => why,
            FromAi::Ignored(why) | FromAi::Done(why) => why.to_owned(),
            FromAi::Mark(name) => name,
        });
    });
    said
}

/// Returns the messages that the codec sends by itself.
pub(super) fn sent(codec: &mut dyn Codec) -> Vec<Value> {
    let json = |message| match message {
        Message::Text(text) => serde_json::from_str(&text).unwrap(),
        Message::Binary(data) => panic!("{data:?}"),
    };
    std::iter::from_fn(|| codec.next_message()).map(json).collect()
}

/// Encodes a message of either form, for comparisons.
pub(super) fn encoded(codec: &mut dyn Codec, message: &ToAi) -> String {
    let mut out = BytesMut::new();
    codec.encode(message, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}
