//! Packet captures over HTTP, read back with an independent reader: their contents, their bounds,
//! and who may have them.

use std::net::SocketAddr;
use std::time::Duration;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use pcap_parser::{Block, PcapBlockOwned, PcapNGReader, traits::PcapReaderIterator};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use trunkless::command::RecordCommand;

use crate::bridge::{Net, Rig};
use crate::call::Call;
use crate::control::{TOKEN, bearer, request};
use crate::http::free;
use crate::pbx::Pbx;
use crate::stream::Stream;
use crate::strict::Ai;

const CAPTURER: &str = "a-token-that-captures";
const LIMIT: Duration = Duration::from_secs(20);
/// Secrets of the configuration and of the messages. None may be in a capture.
const CANARIES: [&str; 7] = [
    "canary-of-the-configuration",
    "canary-in-a-header",
    "canary-in-the-response",
    "canary-of-the-ai",
    "canary-in-a-url",
    CAPTURER,
    "Signal=7",
];

async fn rig(pbx: Pbx, net: Net, more: &str) -> (Rig, SocketAddr) {
    let address = free(net.bridge());
    let config = format!(
        "[control]\nlisten = \"{address}\"\n\
         [control.tokens.desk]\ntoken = \"{TOKEN}\"\n\
         [control.tokens.lab]\ntoken = \"{CAPTURER}\"\nscopes = [\"read\", \"capture\"]\n\
         [pbx.main.sip]\npassword = \"canary-of-the-configuration\"\n{more}\n"
    );
    let ai = Ai::start(net.ai()).await;
    (Rig::with(net, pbx, ai, &config).await, address)
}

async fn plain() -> (Rig, SocketAddr) {
    let net = Net::new();
    rig(Pbx::udp(net.pbx()).await, net, "").await
}

/// Starts a capture.
async fn capture(api: SocketAddr, path: &str) -> reqwest::Response {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
    let request = client.get(format!("http://{api}/v1/calls/{path}")).bearer_auth(CAPTURER);
    timeout(LIMIT, request.send()).await.expect("an answer").expect("an answer")
}

/// Starts a capture that is not read, over a connection that holds little.
async fn slow_client(api: SocketAddr, path: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut client = socket.connect(api).await.unwrap();
    let bearer = bearer(CAPTURER);
    let text = format!("GET /v1/calls/{path} HTTP/1.1\r\nHost: {api}\r\n{bearer}\r\n");
    client.write_all(text.as_bytes()).await.unwrap();
    let mut status = [0; 12];
    client.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 200");
    client
}

/// The body of a response that came in chunks.
fn body(response: &[u8]) -> Vec<u8> {
    let after = |data: &[u8], end: &[u8]| {
        let found = data.windows(end.len()).position(|part| part == end);
        found.expect("a whole response") + end.len()
    };
    let (mut body, mut rest) = (Vec::new(), &response[after(response, b"\r\n\r\n")..]);
    loop {
        let start = after(rest, b"\r\n");
        let length = std::str::from_utf8(&rest[..start - 2]).expect("a length");
        match usize::from_str_radix(length, 16).expect("a length") {
            0 => return body,
            length => {
                body.extend_from_slice(&rest[start..start + length]);
                rest = &rest[start + length + 2..];
            }
        }
    }
}

/// Reads a capture to its end.
async fn read(response: reqwest::Response) -> File {
    assert_eq!(response.status(), 200);
    let bytes = timeout(LIMIT, response.bytes()).await.expect("an end").expect("a whole file");
    File::parse(bytes.to_vec())
}

/// A packet of a capture, taken apart.
#[derive(Debug)]
struct Packet {
    from: SocketAddr,
    to: SocketAddr,
    is_tcp: bool,
    payload: Vec<u8>,
    /// The bytes that are missing at the end.
    missing: usize,
}

#[derive(Default)]
struct File {
    bytes: Vec<u8>,
    title: String,
    packets: Vec<Packet>,
    /// The comment and the text of each message.
    messages: Vec<(String, Value)>,
    end: String,
    /// The packets and messages that are missing.
    dropped: u64,
}

impl File {
    fn parse(bytes: Vec<u8>) -> File {
        let mut file = File { bytes: bytes.clone(), ..File::default() };
        let mut reader = PcapNGReader::new(4 << 20, bytes.as_slice()).expect("a pcapng file");
        loop {
            match reader.next() {
                Ok((length, PcapBlockOwned::NG(block))) => {
                    file.add(&block);
                    reader.consume(length);
                }
                Ok(_) => panic!("not pcapng"),
                Err(pcap_parser::PcapError::Eof) => break,
                Err(pcap_parser::PcapError::Incomplete(_)) => reader.refill().expect("memory"),
                Err(error) => panic!("{error:?}"),
            }
        }
        assert!(!file.end.is_empty(), "no statistics at the end");
        file
    }

    fn add(&mut self, block: &Block<'_>) {
        let text = |options: &[pcap_parser::PcapNGOption<'_>]| {
            let comment = options.iter().find(|o| o.code == pcap_parser::OptionCode::Comment);
            let value = comment.map(|o| &o.value()[..o.len.into()]).unwrap_or_default();
            String::from_utf8(value.to_vec()).unwrap()
        };
        match block {
            Block::SectionHeader(header) => self.title = text(&header.options),
            Block::InterfaceStatistics(end) => {
                self.end = text(&end.options);
                let dropped = end.options.iter().find(|o| o.code.0 == 5).expect("isb_ifdrop");
                self.dropped += u64::from_le_bytes(*dropped.value().first_chunk().unwrap());
            }
            Block::EnhancedPacket(packet) if packet.if_id == 0 => {
                let kept = &packet.data[..packet.caplen as usize];
                let missing = (packet.origlen - packet.caplen) as usize;
                self.packets.push(taken_apart(kept, missing));
            }
            Block::EnhancedPacket(packet) => {
                let pdu = &packet.data[..packet.caplen as usize];
                // a port before it may have the byte of a brace
                let start = pdu.windows(2).position(|two| two == b"{\"").expect("JSON");
                let message = serde_json::from_slice(&pdu[start..]).expect("JSON");
                self.messages.push((text(&packet.options), message));
            }
            Block::InterfaceDescription(_) => {}
            other => panic!("{other:?}"),
        }
    }

    /// The first lines of the SIP messages.
    fn sip(&self) -> Vec<String> {
        let is_sip =
            |packet: &&Packet| String::from_utf8_lossy(&packet.payload).contains("SIP/2.0");
        let first = |packet: &Packet| {
            String::from_utf8_lossy(&packet.payload).lines().next().unwrap_or_default().to_owned()
        };
        self.packets.iter().filter(is_sip).map(first).collect()
    }

    /// The RTP packets from or to an address of the PBX.
    fn rtp(&self, from: impl Fn(&Packet) -> bool) -> Vec<&Packet> {
        let is_rtp = |p: &&Packet| p.payload.len() >= 12 && p.payload[0] == 0x80 && from(p);
        self.packets
            .iter()
            .filter(is_rtp)
            .filter(|p| p.payload[1] & 0x7f < 0x40 || p.payload[1] & 0x7f == 101)
            .collect()
    }

    fn assert_no_secrets(&self) {
        for canary in CANARIES {
            let found = self.bytes.windows(canary.len()).any(|part| part == canary.as_bytes());
            assert!(!found, "{canary}");
        }
    }
}

fn taken_apart(data: &[u8], missing: usize) -> Packet {
    // the lengths in the headers count the missing bytes, too
    let mut whole = data.to_vec();
    whole.resize(data.len() + missing, 0);
    let sliced = SlicedPacket::from_ip(&whole).expect("IP");
    let (from, to) = match sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header();
            (header.source_addr().into(), header.destination_addr().into())
        }
        other => panic!("{other:?}"),
    };
    let (ports, is_tcp, payload) = match sliced.transport {
        Some(TransportSlice::Udp(udp)) => {
            ((udp.source_port(), udp.destination_port()), false, udp.payload().to_vec())
        }
        Some(TransportSlice::Tcp(tcp)) => {
            ((tcp.source_port(), tcp.destination_port()), true, tcp.payload().to_vec())
        }
        other => panic!("{other:?}"),
    };
    let (from, to): (std::net::IpAddr, std::net::IpAddr) = (from, to);
    Packet {
        from: SocketAddr::new(from, ports.0),
        to: SocketAddr::new(to, ports.1),
        is_tcp,
        payload: payload[..payload.len() - missing].to_vec(),
        missing,
    }
}

/// Asserts that `lines` contains these starts, in this order.
fn assert_in_order(lines: &[String], starts: &[&str]) {
    let mut rest = lines.iter();
    for start in starts {
        assert!(rest.any(|line| line.starts_with(start)), "{start}: {lines:?}");
    }
}

/// Sends the INVITE with secrets in it.
async fn invite(call: &mut Call) {
    call.headers = "X-Api-Token: canary-in-a-header\r\nX-Lead-ID: 42\r\n\
        X-Copy: canary-of-the-configuration\r\n\
        Authorization: Digest username=\"pbx\", realm=\"r\", nonce=\"n\", uri=\"sip:a\", \
        response=\"canary-in-the-response\"\r\n"
        .to_owned();
    call.invite().await;
}

/// Sends secrets as the AI, in a text and in a binary message.
async fn tell_secrets(stream: &Stream) {
    stream
        .say(&json!({
            "event": "note", "password": "canary-of-the-ai", "at": "wss://h/p?t=canary-in-a-url",
        }))
        .await;
    stream.send(Message::binary(r#"{"event":"binary","password":"canary-in-binary"}"#)).await;
}

#[tokio::test]
async fn the_next_call_is_captured_from_its_invite_to_its_bye_without_secrets() {
    let (rig, api) = plain().await;
    let response = capture(api, "next/capture?pbx=main").await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    invite(&mut call).await;
    let stream = rig.ai.stream().await;
    call.answered().await;
    call.say(0..25).await;
    for packet in call.talker.press(7) {
        call.send_rtp(&packet).await;
    }
    stream.pressed("7").await;
    let kind = "Content-Type: application/dtmf-relay\r\n";
    call.request("INFO", kind, "Signal=7\r\nDuration=160\r\n").await;
    tell_secrets(&stream).await;
    stream.play_frames(0..25).await;
    stream.mark("end").await;
    stream.marked("end").await;
    call.bye().await;
    stream.until_stop().await;
    let file = read(response).await;

    file.assert_no_secrets();
    assert_eq!((file.end.as_str(), file.dropped), ("capture ended: the call has ended", 0));
    assert!(file.title.contains("the next call of main, by lab"), "{}", file.title);
    assert_in_order(
        &file.sip(),
        &[
            "INVITE ",
            "SIP/2.0 100",
            "SIP/2.0 200",
            "ACK ",
            "INFO ",
            "SIP/2.0 200",
            "BYE ",
            "SIP/2.0 200",
        ],
    );
    let (ours, theirs) = (call.rtp.unwrap(), call.media.address());
    let to_us = file.rtp(|p| p.from == theirs && p.to == ours);
    assert_eq!(to_us.len(), 25 + call.talker.press(7).len());
    let pressed: Vec<u8> =
        to_us.iter().filter(|p| p.payload[1] & 0x7f == 101).map(|p| p.payload[12]).collect();
    assert!(!pressed.is_empty() && pressed.iter().all(|key| *key == 0xff), "{pressed:?}");
    let to_them = file.rtp(|p| p.from == ours && p.to == theirs);
    let heard = call.media.packets().len();
    assert!(to_them.len() >= heard && heard >= 25, "{} {heard}", to_them.len());
    assert!(file.packets[0].payload.starts_with(b"INVITE "));

    let of = |label: &str| -> Vec<&Value> {
        file.messages.iter().filter(|(l, _)| l == label).map(|(_, m)| m).collect()
    };
    let to_ai = of("to the AI");
    let events: Vec<&str> = to_ai.iter().filter_map(|m| m["event"].as_str()).collect();
    assert_eq!((events[0], events[1], events[events.len() - 1]), ("connected", "start", "stop"));
    let parameters = &to_ai[1]["start"]["customParameters"];
    assert_eq!(
        (&parameters["lead_id"], &parameters["api_token"]),
        (&json!("42"), &json!("removed"))
    );
    assert!(to_ai.iter().any(|m| m["dtmf"]["digit"] == "hidden"));
    let from_ai = of("from the AI");
    assert!(from_ai.iter().any(|m| m["password"] == "removed" && m["at"] == "wss://h/p?removed"));
    assert!(from_ai.iter().any(|m| m["event"] == "binary" && m["password"] == "removed"));
    assert!(from_ai.iter().any(|m| m["media"]["payload"].as_str().is_some_and(|p| p.len() > 100)));
}

#[tokio::test]
async fn a_capture_in_mid_call_still_has_the_invite_and_its_answer() {
    let net = Net::new();
    let (rig, api) = rig(Pbx::tcp(net.pbx()).await, net, "transport = \"tcp\"").await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    invite(&mut call).await;
    let stream = rig.ai.stream().await;
    call.answered().await;
    call.say(0..5).await;
    stream.hears(4).await;
    let path = format!("{}/capture?keys=true", stream.call_sid);
    let response = capture(api, &path).await;
    for packet in call.talker.press(7) {
        call.send_rtp(&packet).await;
    }
    stream.pressed("7").await;
    call.bye().await;
    stream.until_stop().await;
    let file = read(response).await;
    assert_in_order(&file.sip(), &["INVITE ", "SIP/2.0 200", "ACK ", "BYE ", "SIP/2.0 200"]);
    assert!(file.packets.iter().any(|p| p.is_tcp && p.payload.starts_with(b"INVITE ")));
    let theirs = call.media.address();
    let pressed = file.rtp(|p| p.from == theirs);
    assert!(pressed.iter().any(|p| p.payload[12] == 7), "{pressed:?}");
    assert!(!file.title.contains("keys"), "{}", file.title);
    // the messages before the capture are not kept
    assert!(file.messages.iter().all(|(_, message)| message["event"] != "start"));
}

#[tokio::test]
async fn audio_and_keys_are_left_out_while_the_recording_is_paused() {
    let net = Net::new();
    let folder = tempfile::tempdir().unwrap();
    let more = format!("[recording]\ndirectory = {:?}\n", folder.path());
    let (rig, api) = rig(Pbx::udp(net.pbx()).await, net, &more).await;
    let (mut call, stream) = rig.call().await;
    call.say(0..5).await;
    stream.hears(4).await;
    rig.bridge.record_command(RecordCommand::Pause);
    // commands are carried out in order
    let response = capture(api, &format!("{}/capture?keys=true", stream.call_sid)).await;
    call.say(5..10).await;
    stream.hears(9).await;
    for packet in call.talker.press(7) {
        call.send_rtp(&packet).await;
    }
    stream.pressed("7").await;
    rig.bridge.record_command(RecordCommand::Resume);
    call.say(10..30).await;
    stream.hears(29).await;
    call.bye().await;
    stream.until_stop().await;
    let file = read(response).await;
    let theirs = call.media.address();
    let all = file.rtp(|p| p.from == theirs);
    let (hidden, shown): (Vec<&Packet>, Vec<&Packet>) = all.iter().partition(|p| p.missing > 0);
    assert!(hidden.len() > 5 && hidden.iter().all(|p| p.payload.len() == 12), "{hidden:?}");
    assert!(shown.len() >= 19 && shown.iter().all(|p| p.payload[1] & 0x7f != 101), "{shown:?}");
    let media = |payload: &str| {
        file.messages
            .iter()
            .filter(|(_, m)| {
                (m["media"]["payload"] == "hidden") == (payload == "hidden")
                    && m["event"] == "media"
            })
            .count()
    };
    assert!(media("hidden") >= 5 && media("") >= 19);
    let digits = file.messages.iter().filter(|(_, m)| m["event"] == "dtmf");
    assert!(
        digits.clone().count() == 1 && digits.clone().all(|(_, m)| m["dtmf"]["digit"] == "hidden")
    );
}

#[tokio::test]
async fn a_capture_ends_at_its_limits() {
    let (rig, api) = plain().await;
    let (call, stream) = rig.call().await;
    let sid = stream.call_sid.clone();
    let file = read(capture(api, &format!("{sid}/capture?seconds=1")).await).await;
    assert_eq!(file.end, "capture ended: the time limit of 1 s is reached");
    let response = capture(api, &format!("{sid}/capture?megabytes=1")).await;
    let note = json!({"event": "note", "text": "x".repeat(100_000)});
    for _ in 0..15 {
        stream.say(&note).await;
    }
    let file = read(response).await;
    assert_eq!(file.end, "capture ended: the size limit of 1 MB is reached");
    assert!((1_000_000..1_300_000).contains(&file.bytes.len()), "{}", file.bytes.len());
    // the call is none the worse
    stream.play_frames(0..5).await;
    assert_eq!(call.media.numbered(crate::stream::AGENT, 5).await.len(), 5);
}

#[tokio::test]
async fn a_client_that_reads_slowly_loses_packets_and_the_call_loses_none() {
    let (rig, api) = plain().await;
    let (mut call, stream) = rig.call().await;
    let mut client = slow_client(api, &format!("{}/capture", stream.call_sid)).await;
    // more than the queue and the buffers of the connection hold
    let note = json!({"event": "note", "text": "x".repeat(60_000)});
    for _ in 0..200 {
        stream.say(&note).await;
    }
    stream.mark("read").await;
    stream.marked("read").await;
    call.say(0..25).await;
    stream.hears(24).await;
    assert_eq!(stream.heard(25).await, (0..25).collect::<Vec<u32>>());
    stream.play_frames(0..25).await;
    assert_eq!(call.media.numbered(crate::stream::AGENT, 25).await.len(), 25);
    call.bye().await;
    stream.until_stop().await;
    let mut response = Vec::new();
    let all = client.read_to_end(&mut response);
    timeout(LIMIT, all).await.expect("an end").expect("a whole response");
    let file = File::parse(body(&response));
    assert!(file.dropped > 0);
    let words = format!("{} packets and messages are missing", file.dropped);
    assert!(file.end.contains(&words), "{}", file.end);
}

#[tokio::test]
async fn a_client_that_goes_away_ends_its_capture() {
    let (rig, api) = plain().await;
    let (_call, stream) = rig.call().await;
    let path = format!("{}/capture", stream.call_sid);
    let first = capture(api, &path).await;
    assert_eq!((first.status().as_u16(), capture(api, &path).await.status().as_u16()), (200, 409));
    drop(first);
    let again = async {
        loop {
            let response = capture(api, &path).await;
            if response.status() == 200 {
                return response;
            }
            assert_eq!(response.status(), 409);
        }
    };
    timeout(LIMIT, again).await.expect("the place is free again");
}

#[tokio::test]
async fn captures_at_once_have_a_call_each_and_a_bound() {
    let (rig, api) = plain().await;
    let ((mut one, first), (mut two, second)) = (rig.call().await, rig.call().await);
    let paths = [&first, &second].map(|stream| format!("{}/capture", stream.call_sid));
    let (a, b) = (capture(api, &paths[0]).await, capture(api, &paths[1]).await);
    let waiting = (capture(api, "next/capture").await, capture(api, "next/capture").await);
    let fifth = capture(api, "next/capture").await;
    assert_eq!(fifth.status(), 503);
    let body = fifth.text().await.unwrap();
    assert!(body.contains("4 captures are running"), "{body}");
    one.say(0..10).await;
    two.say(0..10).await;
    first.hears(9).await;
    second.hears(9).await;
    one.bye().await;
    two.bye().await;
    first.until_stop().await;
    second.until_stop().await;
    for (response, own, other) in [(a, &one, &two), (b, &two, &one)] {
        let file = read(response).await;
        let (own, other) = (own.media.address(), other.media.address());
        assert_eq!(file.rtp(|p| p.from == own).len(), 10);
        assert!(file.rtp(|p| p.from == other || p.to == other).is_empty());
        assert_eq!(file.sip().iter().filter(|line| line.starts_with("INVITE ")).count(), 1);
    }
    drop(waiting);
}

#[tokio::test]
async fn only_a_token_with_the_scope_may_capture() {
    let (rig, api) = plain().await;
    let (call, stream) = rig.call().await;
    let get = |path: &str| format!("GET /v1/calls/{path}");
    let own = format!("{}/capture", stream.call_sid);
    for (token, path, status, words) in [
        // its scopes are those that a token has by default
        (TOKEN, own.clone(), 403, "the scope capture"),
        (TOKEN, "next/capture".to_owned(), 403, "the scope capture"),
        (CAPTURER, "CA0/capture".to_owned(), 404, "no live call has this id"),
        (CAPTURER, "next/capture?pbx=nain".to_owned(), 404, "there is no [pbx.nain]"),
        (CAPTURER, format!("{own}?seconds=0"), 400, "seconds is not a number from 1 to 3600"),
        (CAPTURER, format!("{own}?megabytes=1001"), 400, "megabytes is not a number"),
        (CAPTURER, format!("{own}?keys=yes"), 400, "keys is not true or false"),
        (CAPTURER, format!("{own}?minutes=1"), 400, "\\\"minutes\\\" is not a parameter"),
    ] {
        let (seen, body) = request(api, &get(&path), &bearer(token), "").await;
        assert_eq!(seen, status, "{path} {body}");
        assert!(body.to_string().contains(words), "{path} {body}");
    }
    let mut call = call;
    call.bye().await;
    stream.until_stop().await;
    rig.bridge.record().await;
    let (status, body) = request(api, &get(&own), &bearer(CAPTURER), "").await;
    assert_eq!((status, &body["error"]["code"]), (409, &json!("ended")));
}
