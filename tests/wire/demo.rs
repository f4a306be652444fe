//! `trunkless demo --ai`, as a process of its own, with a bot that works and with bots that do not.

use std::process::{Command, Output};

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::accept_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use trunkless::peer::ai;

/// Runs the demo against a bot; also returns the WAV files that it left.
async fn demo(url: &str) -> (Output, Vec<String>) {
    let output = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_trunkless"));
    command.args(["demo", "--ai", url, "--output"]).arg(output.path());
    let done = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let mut open = vec![output.path().to_owned()];
    let mut files = Vec::new();
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => open.push(path),
                false => files.push(path.display().to_string()),
            }
        }
    }
    files.retain(|file| file.ends_with(".wav"));
    (done, files)
}

fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8(both).unwrap()
}

async fn fails(url: &str, why: &str) {
    let (output, _) = demo(url).await;
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(why), "no \"{why}\" in:\n{text}");
}

/// A bot that takes `connected` and `start`, sends what it is given, and goes on reading.
async fn bot(replies: Vec<Message>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(talk(stream, replies.clone()));
        }
    });
    url
}

async fn talk(stream: TcpStream, replies: Vec<Message>) {
    let mut socket = accept_async(stream).await.unwrap();
    for _ in 0..2 {
        let _ = socket.next().await;
    }
    for reply in replies {
        socket.send(reply).await.unwrap();
    }
    while let Some(Ok(_)) = socket.next().await {}
}

#[tokio::test]
async fn a_bot_that_is_heard() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    tokio::spawn(ai::serve(listener, None));
    let (output, recordings) = demo(&url).await;
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    for line in [
        "the bot is heard",
        "the caller presses 1",
        "  connected  ",
        "  first audio  ",
        "returned: greeting, 1",
        "the caller hung up; trunkless sent stop and closed with code 1000",
        "All well: your bot connected and was heard.",
    ] {
        assert!(text.contains(line), "no \"{line}\" in:\n{text}");
    }
    assert_eq!(recordings.len(), 1, "{recordings:?}");
    assert!(text.contains(&recordings[0]), "{text}");
}

#[tokio::test]
async fn a_bot_that_is_not_there() {
    let url = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("ws://{}", listener.local_addr().unwrap())
    };
    fails(&url, &format!("FAILED: cannot connect to {url}: ")).await;
    fails("http://127.0.0.1:1", "--ai: \"http://127.0.0.1:1\" is not a ws:// or wss:// URL").await;
}

#[tokio::test]
async fn a_bot_that_hangs_up_at_once() {
    let close =
        |code: u16| Message::Close(Some(CloseFrame { code: code.into(), reason: "".into() }));
    fails(&bot(vec![close(1000)]).await, "(close frame 1000), before it was heard").await;
    fails(&bot(vec![close(1011)]).await, "the bot's connection failed").await;
}

#[tokio::test]
async fn a_bot_that_is_silent() {
    let url = bot(vec![Message::Text("nonsense".into())]).await;
    let (output, recordings) = demo(&url).await;
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("FAILED: silence: the bot connected"), "{text}");
    assert!(text.contains("not understood  1 of the bot's messages"), "{text}");
    assert_eq!(recordings.len(), 1);
}
