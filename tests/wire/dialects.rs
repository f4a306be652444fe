//! Calls whose AI speaks another dialect than Twilio's: audio both ways, keys, marks, `clear` and
//! the end, against a server that takes the messages apart by itself.

use std::f64::consts::TAU;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::stream::SplitSink;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use trunkless::media::frame::{SILENCE, Samples};
use trunkless::media::g711;
use trunkless::peer::pattern;

use crate::bridge::Rig;
use crate::call::{CALLER, Call};
use crate::log::Log;
use crate::strict::Handshake;

/// The names of one dialect, as its vendor documents them.
#[derive(Clone, Copy)]
struct Words {
    dialect: &'static str,
    /// 0 for mu-law.
    rate: u32,
    /// The member with the stream's id.
    stream: &'static str,
    /// Messages before the audio.
    opening: usize,
}

const L16: Words = Words { dialect: "l16", rate: 8000, stream: "", opening: 1 };
const JAMBONZ: Words = Words { dialect: "jambonz", ..L16 };
const TELNYX: Words = Words { dialect: "telnyx", rate: 0, stream: "stream_id", opening: 2 };
const PLIVO: Words = Words { dialect: "plivo", stream: "streamId", opening: 1, ..TELNYX };
const EXOTEL: Words = Words { dialect: "exotel", rate: 8000, stream: "stream_sid", ..TELNYX };

impl Words {
    fn config(&self) -> String {
        let rate = match (self.dialect, self.rate) {
            (_, 0) => String::new(),
            (_, rate) => format!("sample_rate = {rate}\n"),
        };
        format!("[ai]\ndialect = \"{}\"\n{rate}", self.dialect)
    }

    /// Returns the audio in a message from the bridge.
    fn audio(&self, message: &Message) -> Option<Vec<u8>> {
        match message {
            Message::Binary(data) => Some(data.to_vec()),
            Message::Text(text) => {
                let value: Value = serde_json::from_str(text).expect("JSON");
                let payload = value["media"]["payload"].as_str()?;
                Some(BASE64.decode(payload).expect("base64"))
            }
            _ => None,
        }
    }

    /// A message with audio for the caller.
    fn say(&self, audio: &[u8], id: &str) -> Message {
        let payload = BASE64.encode(audio);
        let text = match self.dialect {
            "telnyx" => json!({"event": "media", "media": {"payload": payload}}),
            "plivo" => {
                let (kind, rate) = match self.rate {
                    0 => ("audio/x-mulaw", 8000),
                    rate => ("audio/x-l16", rate),
                };
                let media = json!({"contentType": kind, "sampleRate": rate, "payload": payload});
                json!({"event": "playAudio", "media": media, "streamId": id})
            }
            "exotel" => json!({"event": "media", "stream_sid": id, "media": {"payload": payload}}),
            _ => return Message::binary(audio.to_vec()),
        };
        Message::text(text.to_string())
    }

    fn mark(&self, name: &str, id: &str) -> Message {
        let text = match self.dialect {
            "l16" => json!({"action": "notify", "payload": {"name": name}}),
            "jambonz" => json!({"type": "mark", "data": {"name": name}}),
            "plivo" => json!({"event": "checkpoint", "streamId": id, "name": name}),
            "exotel" => json!({"event": "mark", "stream_sid": id, "mark": {"name": name}}),
            _ => json!({"event": "mark", "mark": {"name": name}}),
        };
        Message::text(text.to_string())
    }

    fn clear(&self, id: &str) -> Message {
        let text = match self.dialect {
            "l16" => json!({"action": "clear"}),
            "jambonz" => json!({"type": "killAudio"}),
            "plivo" => json!({"event": "clearAudio", "streamId": id}),
            "exotel" => json!({"event": "clear", "stream_sid": id}),
            _ => json!({"event": "clear"}),
        };
        Message::text(text.to_string())
    }

    /// The message to the AI once the audio before a mark has been played.
    fn marked(&self, name: &str) -> Value {
        match self.dialect {
            "l16" => json!({"event": "websocket:notify", "payload": {"name": name}}),
            "jambonz" => json!({"type": "mark", "data": {"name": name, "event": "playout"}}),
            "plivo" => json!({"event": "playedStream", "name": name}),
            _ => json!({"event": "mark", "mark": {"name": name}}),
        }
    }

    /// The message to the AI once the audio before a mark has been cleared.
    fn cleared(&self, name: &str) -> Value {
        match self.dialect {
            "l16" => json!({"event": "websocket:cleared"}),
            "jambonz" => json!({"type": "mark", "data": {"name": name, "event": "cleared"}}),
            "plivo" => json!({"event": "clearedAudio"}),
            _ => json!({"event": "mark", "mark": {"name": name}}),
        }
    }

    fn key(&self, digit: &str) -> Value {
        match self.dialect {
            "l16" => json!({"event": "websocket:dtmf", "digit": digit}),
            "jambonz" => json!({"event": "dtmf", "dtmf": digit}),
            _ => json!({"event": "dtmf", "dtmf": {"digit": digit}}),
        }
    }

    fn stops(&self) -> bool {
        matches!(self.dialect, "telnyx" | "exotel")
    }
}

/// True if `found` has all members of `wanted`, with the same values.
fn has(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => {
            wanted.iter().all(|(name, value)| found.get(name).is_some_and(|f| has(f, value)))
        }
        _ => found == wanted,
    }
}

/// One stream at the server.
struct Peer {
    words: Words,
    told: Arc<Log<(Instant, Message)>>,
    writer: SplitSink<WebSocketStream<TcpStream>, Message>,
    reader: JoinHandle<()>,
    id: String,
    opening: Vec<Value>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Peer {
    async fn open(words: Words, handshake: Handshake) -> Peer {
        let raw = handshake.open_with_behind(b"").await.into_std().unwrap();
        let tcp = TcpStream::from_std(raw.try_clone().unwrap()).unwrap();
        let socket = WebSocketStream::from_raw_socket(tcp, Role::Server, None).await;
        let (writer, mut messages) = socket.split();
        let told = Arc::new(Log::new());
        let log = told.clone();
        let reader = tokio::spawn(async move {
            while let Some(Ok(message)) = messages.next().await {
                log.push((Instant::now(), message));
            }
            // ends the connection, as servers do
            let _ = raw.shutdown(std::net::Shutdown::Both);
        });
        let mut peer = Peer { words, told, writer, reader, id: String::new(), opening: Vec::new() };
        let enough = |told: &mut Vec<(Instant, Message)>| {
            let first = told.get(..words.opening)?;
            Some(first.iter().map(|(_, m)| m.to_text().unwrap().to_owned()).collect())
        };
        let opening: Vec<String> = peer.told.wait("the opening messages", enough).await;
        peer.opening = opening.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
        let last = peer.opening.last().unwrap();
        last[words.stream].as_str().unwrap_or_default().clone_into(&mut peer.id);
        peer
    }

    async fn send(&mut self, message: Message) {
        self.writer.send(message).await.unwrap();
    }

    /// Waits for a message with these members.
    async fn told(&self, wanted: &Value) -> Instant {
        let found = |told: &mut Vec<(Instant, Message)>| {
            told.iter().find_map(|(at, message)| {
                let value: Value = serde_json::from_str(message.to_text().ok()?).ok()?;
                has(&value, wanted).then_some(*at)
            })
        };
        self.told.wait(&wanted.to_string(), found).await
    }

    /// The audio from the bridge so far.
    fn heard(&self) -> Vec<u8> {
        let words = self.words;
        self.told.look(|told| told.iter().filter_map(|(_, m)| words.audio(m)).flatten().collect())
    }

    /// Waits until the bridge has sent audio for this long, and returns all of it.
    async fn listen(&self, ms: usize) -> Vec<u8> {
        let words = self.words;
        let per_ms = if words.rate == 0 { 8 } else { words.rate as usize / 1000 * 2 };
        let enough = |told: &mut Vec<(Instant, Message)>| {
            let all: Vec<u8> = told.iter().filter_map(|(_, m)| words.audio(m)).flatten().collect();
            (all.len() >= ms * per_ms).then_some(all)
        };
        self.told.wait("audio of the caller", enough).await
    }

    /// Waits for the close frame, behind `stop` where the dialect has it.
    async fn stopped(&self) {
        let closed = |told: &mut Vec<(Instant, Message)>| {
            told.iter().find_map(|(_, message)| match message {
                Message::Close(frame) => frame.as_ref().map(|frame| u16::from(frame.code)),
                _ => None,
            })
        };
        assert_eq!(self.told.wait("the close frame", closed).await, 1000);
        let stop = |told: &mut Vec<(Instant, Message)>| {
            let (_, last) = &told[told.len() - 2];
            let text = last.to_text().ok()?;
            Some(serde_json::from_str::<Value>(text).ok()?["event"] == "stop")
        };
        assert_eq!(self.told.look(stop).unwrap_or(false), self.words.stops());
    }
}

async fn connect(rig: &Rig, words: Words) -> (Call, Peer) {
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.invite().await;
    let peer = Peer::open(words, rig.ai.handshake().await).await;
    call.answered().await;
    (call, peer)
}

/// Linear audio as bytes, from mu-law.
fn linear(audio: &[u8]) -> Vec<u8> {
    audio.iter().flat_map(|sample| g711::decode(*sample).to_le_bytes()).collect()
}

/// The frames of numbered audio with one of the two zeros of mu-law only, as after linear audio.
fn numbered(call: u32, count: u32) -> Vec<Samples> {
    let one_zero = |mut frame: Samples| {
        frame.iter_mut().filter(|byte| **byte == 0x7f).for_each(|byte| *byte = SILENCE);
        frame
    };
    (0..count).map(|index| one_zero(pattern::frame(call, index))).collect()
}

/// The caller speaks these frames, 20 ms apart.
async fn speak(call: &mut Call, frames: &[Samples]) {
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    for frame in frames {
        ticks.tick().await;
        let packet = call.talker.packet(frame);
        call.send_rtp(&packet).await;
    }
}

/// Waits until the caller has heard this audio, byte for byte.
async fn hears(call: &Call, audio: &[u8]) {
    let found = |heard: &mut Vec<crate::media::Heard>| {
        let all: Vec<u8> = heard.iter().flat_map(|packet| packet.samples()).collect();
        all.windows(audio.len()).any(|part| part == audio).then_some(())
    };
    call.media.heard.wait("the AI's audio in RTP, byte for byte", found).await;
}

async fn press(call: &mut Call, digit: &str) {
    let body = format!("Signal={digit}\r\nDuration=160\r\n");
    let response = call.request("INFO", "Content-Type: application/dtmf-relay\r\n", &body).await;
    assert_eq!(response.code(), Some(200));
}

/// A call with audio that arrives byte for byte, keys, marks, `clear`, and its end.
async fn exchange(words: Words) {
    let rig = Rig::new(&words.config()).await;
    let (mut call, mut peer) = connect(&rig, words).await;
    let raw = |mu_law: &[u8]| if words.rate == 0 { mu_law.to_vec() } else { linear(mu_law) };
    // from the caller
    let spoken = numbered(CALLER, 5);
    speak(&mut call, &spoken).await;
    let expected = raw(&spoken.concat());
    let mut heard = peer.listen(100).await;
    while !heard.windows(expected.len()).any(|part| part == expected) {
        heard = peer.listen(heard.len() / if words.rate == 0 { 8 } else { 16 } + 20).await;
        assert!(peer.heard().len() < 50 * expected.len(), "the caller's audio did not arrive");
    }
    press(&mut call, "5").await;
    peer.told(&words.key("5")).await;
    // to the caller, in pieces that end within a sample
    let played = numbered(2, 6).concat();
    for piece in raw(&played).chunks(333) {
        let message = words.say(piece, &peer.id);
        peer.send(message).await;
    }
    peer.send(words.mark("one", &peer.id)).await;
    hears(&call, &played).await;
    peer.told(&words.marked("one")).await;
    // two seconds, of which most is cleared
    let long = words.say(&raw(&[0x21; 16_000]), &peer.id);
    peer.send(long).await;
    peer.send(words.mark("two", &peer.id)).await;
    let loud = |packet: &crate::media::Heard| packet.samples() == [0x21; 160];
    call.media.until("the long audio", loud).await;
    peer.send(words.clear(&peer.id)).await;
    let cleared = peer.told(&words.cleared("two")).await;
    let after = |packet: &crate::media::Heard| packet.at > cleared && packet.is_silence();
    call.media.until("silence after clear", after).await;
    let packets = call.media.packets();
    let last = packets.iter().rposition(loud).expect("it was heard");
    assert!(packets[last + 1..].iter().all(|packet| packet.is_silence()));
    let count = packets.iter().filter(|packet| loud(packet)).count();
    assert!(count < 50, "{count} of 100 frames were played");
    call.bye().await;
    peer.stopped().await;
    assert_eq!(rig.bridge.end().await, "caller_hangup");
}

#[tokio::test]
async fn l16_carries_a_call() {
    exchange(L16).await;
}

#[tokio::test]
async fn jambonz_carries_a_call() {
    exchange(JAMBONZ).await;
}

#[tokio::test]
async fn telnyx_carries_a_call() {
    exchange(TELNYX).await;
}

#[tokio::test]
async fn plivo_carries_a_call() {
    exchange(PLIVO).await;
}

#[tokio::test]
async fn exotel_carries_a_call() {
    exchange(EXOTEL).await;
}

const TONE: f64 = 1000.0;

/// A tone of 1 kHz.
fn tone(rate: u32, ms: u32) -> Vec<i16> {
    let at = |n: u32| (TONE * TAU * f64::from(n) / f64::from(rate)).sin() * 12_000.0;
    (0..rate / 1000 * ms).map(|n| at(n).round() as i16).collect()
}

/// The ratio in dB of the tone to everything else in 100 ms of `audio`, where it is clearest.
fn clean(audio: &[i16], rate: u32) -> f64 {
    let length = rate as usize / 10;
    let ratios = audio.windows(length).step_by(rate as usize / 100).map(|part| {
        let (mut sine, mut cosine, mut energy) = (0.0, 0.0, 0.0);
        for (n, sample) in part.iter().enumerate() {
            let angle = TONE * TAU * n as f64 / f64::from(rate);
            sine += f64::from(*sample) * angle.sin();
            cosine += f64::from(*sample) * angle.cos();
            energy += f64::from(*sample).powi(2);
        }
        let tone = 2.0 * (sine * sine + cosine * cosine) / length as f64;
        if tone < 1e8 { 0.0 } else { 10.0 * (tone / (energy - tone).max(1.0)).log10() }
    });
    ratios.fold(0.0, f64::max)
}

/// At other rates, a tone is as clean in both directions as mu-law lets it be, about 38 dB.
async fn sounds_clean(words: Words) {
    let rig = Rig::new(&words.config()).await;
    let (mut call, mut peer) = connect(&rig, words).await;
    let mu_law: Vec<u8> = tone(8000, 240).iter().map(|sample| g711::encode(*sample)).collect();
    let frames: Vec<Samples> = mu_law.as_chunks::<160>().0.to_vec();
    speak(&mut call, &frames).await;
    let heard = peer.listen(300).await;
    let samples: Vec<i16> =
        heard.as_chunks::<2>().0.iter().map(|pair| i16::from_le_bytes(*pair)).collect();
    let ratio = clean(&samples, words.rate);
    assert!(ratio > 35.0, "{} at {} Hz to the AI: {ratio} dB", words.dialect, words.rate);
    let audio: Vec<u8> =
        tone(words.rate, 240).iter().flat_map(|sample| sample.to_le_bytes()).collect();
    for piece in audio.chunks(1001) {
        let message = words.say(piece, &peer.id);
        peer.send(message).await;
    }
    peer.send(words.mark("end", &peer.id)).await;
    peer.told(&words.marked("end")).await;
    let packets = call.media.packets();
    let played: Vec<i16> = packets.iter().flat_map(|p| p.samples()).map(g711::decode).collect();
    let ratio = clean(&played, 8000);
    assert!(ratio > 35.0, "{} at {} Hz to the caller: {ratio} dB", words.dialect, words.rate);
}

#[tokio::test]
async fn other_sample_rates_sound_clean() {
    let l16 = [16_000, 24_000].map(|rate| Words { rate, ..L16 });
    let jambonz = Words { rate: 48_000, ..JAMBONZ };
    let others = [PLIVO, EXOTEL].map(|words| Words { rate: 16_000, ..words });
    let [a, b] = l16;
    let [c, d] = others;
    tokio::join!(
        sounds_clean(a),
        sounds_clean(b),
        sounds_clean(c),
        sounds_clean(d),
        sounds_clean(jambonz)
    );
}

#[tokio::test]
async fn the_subprotocol_is_optional_for_the_server() {
    let config = "[ai]\ndialect = \"jambonz\"\nsubprotocol = \"audio.drachtio.org\"\n";
    let rig = Rig::new(config).await;
    for selects in [false, true] {
        let mut call = rig.pbx.call(&rig.bridge).await;
        call.invite().await;
        let handshake = rig.ai.handshake().await;
        assert_eq!(handshake.get("Sec-WebSocket-Protocol"), Some("audio.drachtio.org"));
        let peer = match selects {
            false => Peer::open(JAMBONZ, handshake).await,
            true => Peer::open(JAMBONZ, handshake.select("audio.drachtio.org")).await,
        };
        call.answered().await;
        assert_eq!(peer.opening[0]["sampleRate"], 8000);
        assert_eq!(peer.opening[0]["from"], "5550100");
        call.bye().await;
        peer.stopped().await;
    }
}

#[tokio::test]
async fn disconnect_ends_the_stream_as_a_close_does() {
    let rig = Rig::new(&JAMBONZ.config()).await;
    let (call, mut peer) = connect(&rig, JAMBONZ).await;
    peer.send(Message::text(r#"{"type":"disconnect"}"#)).await;
    call.hung_up().await;
    peer.stopped().await;
    let record = rig.bridge.record().await;
    assert_eq!(
        (record.reason.label(), record.ai_end.as_deref()),
        ("ai_hangup", Some("disconnect"))
    );
}

#[tokio::test]
async fn call_control_works_beside_every_dialect() {
    for words in [L16, JAMBONZ, TELNYX, PLIVO, EXOTEL] {
        let rig = Rig::new(&words.config()).await;
        let (call, mut peer) = connect(&rig, words).await;
        peer.send(Message::text(r#"{"event":"mute","id":"1","mute":{}}"#)).await;
        peer.told(&json!({"event": "result", "id": "1", "result": {"status": "done"}})).await;
        peer.send(Message::text(r#"{"event":"hangup","id":"2"}"#)).await;
        call.hung_up().await;
        peer.stopped().await;
    }
}

#[tokio::test]
async fn telnyxs_token_and_exotels_rate_are_in_the_handshake() {
    let telnyx = Rig::new("[ai]\ndialect = \"telnyx\"\nauth_token = \"a-token\"\n").await;
    let mut call = telnyx.pbx.call(&telnyx.bridge).await;
    call.invite().await;
    let handshake = telnyx.ai.handshake().await;
    assert_eq!(handshake.get("x-telnyx-streaming-auth-token"), Some("a-token"));
    let exotel = Words { rate: 16_000, ..EXOTEL };
    let rig = Rig::new(&exotel.config()).await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.invite().await;
    let handshake = rig.ai.handshake().await;
    assert!(handshake.text.starts_with("GET /media?sample-rate=16000 HTTP/1.1\r\n"));
}
