//! The server side of the page: its files, live audio, and parts of recordings. The page itself is
//! tested in tests/page.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use trunkless::command::RecordCommand;
use trunkless::peer::pattern;
use trunkless::record::wav;

use crate::bridge::{Net, Rig};
use crate::call::CALLER;
use crate::control::{TOKEN, bearer, request, rig};
use crate::http::free;
use crate::stream::AGENT;

/// Sends a GET and returns the connection.
async fn send(to: SocketAddr, path: &str, headers: &str) -> TcpStream {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let host = if headers.contains("Host:") { String::new() } else { format!("Host: {to}\r\n") };
    let text = format!("GET {path} HTTP/1.0\r\n{host}{headers}\r\n");
    stream.write_all(text.as_bytes()).await.unwrap();
    stream
}

/// Sends a GET and returns head and body.
async fn get(to: SocketAddr, path: &str, headers: &str) -> (String, Vec<u8>) {
    let mut answer = Vec::new();
    send(to, path, headers).await.read_to_end(&mut answer).await.unwrap();
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    (String::from_utf8_lossy(&answer[..end]).to_lowercase(), answer.split_off(end))
}

#[tokio::test]
async fn the_files_are_served_to_everyone_under_a_strict_policy() {
    let (_rig, api) = rig("").await;
    let (head, body) = get(api, "/", "").await;
    assert!(head.starts_with("http/1.0 200"), "{head}");
    let page = String::from_utf8(body).unwrap();
    for name in [
        "content-security-policy: default-src 'none'; script-src 'self'",
        "x-content-type-options: nosniff",
        "content-type: text/html",
    ] {
        assert!(head.contains(name), "{name}: {head}");
    }
    // everything that it names is there, and comes from here
    let names = page.split('"').filter(|text| text.starts_with("page/"));
    let mut files: Vec<String> = names.map(str::to_owned).collect();
    assert!(files.len() >= 3 && !page.contains("://"), "{files:?}");
    let mut seen = std::collections::BTreeSet::new();
    while let Some(file) = files.pop() {
        if !seen.insert(file.clone()) {
            continue;
        }
        let (head, body) = get(api, &format!("/{file}"), "").await;
        assert!(head.starts_with("http/1.0 200") && head.contains("etag: "), "{file}: {head}");
        let text = String::from_utf8(body).unwrap();
        let imports = text.split("from \"./").skip(1).filter_map(|rest| rest.split('"').next());
        files.extend(imports.map(|name| format!("page/{name}")));
        let tag = head.split("etag: ").nth(1).unwrap().split("\r\n").next().unwrap().to_owned();
        let (head, _) = get(api, &format!("/{file}"), &format!("If-None-Match: {tag}\r\n")).await;
        assert!(head.starts_with("http/1.0 304"), "{file}: {head}");
    }
    assert!(seen.len() >= 12, "{seen:?}");
    assert!(get(api, "/page/none.js", "").await.0.starts_with("http/1.0 404"));
    let (head, _) = get(api, "/", "Host: evil.example\r\n").await;
    assert!(head.starts_with("http/1.0 403"), "{head}");
}

/// A rig that records on command, whose token may do everything.
async fn open(directory: &tempfile::TempDir, listen_in: bool) -> (Rig, SocketAddr) {
    let net = Net::new();
    let address = free(net.bridge());
    let config = format!(
        "[control]\nlisten = \"{address}\"\nlisten_in = {listen_in}\n\
         [control.tokens.desk]\ntoken = \"{TOKEN}\"\n\
         scopes = [\"read\", \"listen\", \"recordings\"]\n\
         [recording]\ndirectory = {:?}\nwhen = \"on_command\"\n",
        directory.path()
    );
    let pbx = crate::pbx::Pbx::udp(net.pbx()).await;
    let ai = crate::strict::Ai::start(net.ai()).await;
    (Rig::with(net, pbx, ai, &config).await, address)
}

#[tokio::test]
async fn a_listener_hears_both_sides_until_the_call_ends() {
    let directory = tempfile::tempdir().unwrap();
    let (rig, api) = open(&directory, true).await;
    let (mut call, stream) = rig.call().await;
    let path = format!("/v1/calls/{}/listen", stream.call_sid);
    let mut listener = send(api, &path, &bearer(TOKEN)).await;
    // the file's header follows the response's head
    let mut heard = vec![0; 1];
    listener.read_exact(&mut heard).await.unwrap();
    while !heard.ends_with(b"data\xff\xff\xff\xff") {
        heard.push(listener.read_u8().await.unwrap());
    }
    let start = heard.windows(4).position(|four| four == b"RIFF").unwrap();
    // the call has the listener once audio arrives
    heard.extend([listener.read_u8().await.unwrap()]);
    stream.play_frames(0..30).await;
    call.say(0..30).await;
    assert_eq!(stream.heard(30).await.len(), 30);
    assert_eq!(call.media.numbered(AGENT, 30).await.len(), 30);
    call.bye().await;
    listener.read_to_end(&mut heard).await.unwrap();
    stream.stopped().await;
    let [caller, ai] = wav::read(&heard[start..]).unwrap().try_into().unwrap();
    let numbers = |track: &[u8], of: u32| {
        let frames = track.chunks_exact(160).filter_map(pattern::read);
        frames.filter(|(from, _)| *from == of).map(|(_, number)| number).collect::<Vec<_>>()
    };
    let (caller, ai) = (numbers(&caller, CALLER), numbers(&ai, AGENT));
    // a test that stood still may have missed some
    for (side, all) in [("caller", caller), ("ai", ai)] {
        assert!(all.len() >= 20 && all.is_sorted(), "{side}: {all:?}");
    }
    rig.bridge.record().await;
    assert_eq!(request(api, &format!("GET {path}"), &bearer(TOKEN), "").await.0, 409);
}

#[tokio::test]
async fn nobody_listens_in_unless_it_is_switched_on() {
    let directory = tempfile::tempdir().unwrap();
    let (rig, api) = open(&directory, false).await;
    let (mut call, stream) = rig.call().await;
    let path = format!("GET /v1/calls/{}/listen", stream.call_sid);
    let (status, body) = request(api, &path, &bearer(TOKEN), "").await;
    assert_eq!(status, 403);
    assert!(body["error"]["message"].as_str().is_some_and(|m| m.contains("listen_in = true")));
    call.bye().await;
    stream.stopped().await;
}

#[tokio::test]
async fn parts_of_a_recording_make_up_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let (rig, api) = open(&directory, false).await;
    let (mut call, stream) = rig.call().await;
    rig.bridge.record_command(RecordCommand::Start);
    stream.play_frames(0..50).await;
    call.say(0..50).await;
    assert_eq!(stream.heard(50).await.len(), 50);
    call.bye().await;
    stream.stopped().await;
    let record = rig.bridge.record().await;
    rig.bridge.shutdown().await;
    // the same directory, after a restart: the recording is still there
    let (_rig, again) = open(&directory, false).await;
    assert_ne!(api, again);
    let path = format!("/v1/recordings/{}", record.recordings[0]);
    let (head, whole) = get(again, &format!("{path}/audio"), &bearer(TOKEN)).await;
    assert!(head.contains(" 200 ") && head.contains("audio/wav"), "{head}");
    assert_eq!(wav::read(&whole).unwrap().len(), 2);
    let mut parts = Vec::new();
    while parts.len() < whole.len() {
        let range =
            format!("{}Range: bytes={}-{}\r\n", bearer(TOKEN), parts.len(), parts.len() + 999);
        let (head, part) = get(again, &format!("{path}/audio"), &range).await;
        let end = (parts.len() + 1000).min(whole.len()) - 1;
        let place = format!("content-range: bytes {}-{end}/{}", parts.len(), whole.len());
        assert!(head.contains(" 206 ") && head.contains(&place), "{head}");
        parts.extend(part);
    }
    assert!(parts == whole);
    let (status, shown) = request(again, &format!("GET {path}"), &bearer(TOKEN), "").await;
    assert_eq!((status, &shown["bytes"]), (200, &whole.len().into()));
    let peaks = shown["waveform"]["ai"].as_array().expect("a waveform");
    assert!(peaks.iter().any(|peak| peak.as_u64() > Some(20)), "{peaks:?}");
}
