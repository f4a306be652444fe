//! Commands whose output goes to a pipe that is closed already, as that of `head` is.

use std::io::{PipeReader, pipe};
use std::path::Path;
use std::process::{Command, Stdio};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use trunkless::sip::message::Message;

use crate::bridge::{Net, Rig};
use crate::pbx::Pbx;

/// Runs a command, with its stdout or also its stderr closed. Returns its exit code and its stderr.
async fn run(arguments: &[&str], close_stderr: bool) -> (Option<i32>, String) {
    let closed = || {
        let (reader, writer): (PipeReader, _) = pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    let mut command = Command::new(env!("CARGO_BIN_EXE_trunkless"));
    command.args(arguments).stdin(Stdio::null()).stdout(closed());
    command.stderr(if close_stderr { closed() } else { Stdio::piped() });
    let child = command.spawn().unwrap();
    let output = tokio::task::spawn_blocking(|| child.wait_with_output()).await.unwrap().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// Asserts that a command does its work and ends with one of these codes.
async fn survives(arguments: &[&str], codes: &[i32]) {
    let (code, stderr) = run(arguments, false).await;
    assert!(!stderr.contains("panicked"), "{arguments:?}: {stderr}");
    assert!(code.is_some_and(|code| codes.contains(&code)), "{arguments:?}: {code:?}: {stderr}");
}

#[tokio::test]
async fn help_and_version() {
    let commands = ["run", "demo", "echo-agent", "call", "bench", "health", "recordings"]
        .map(|c| [c, "--help"]);
    for arguments in commands.iter().map(|c| &c[..]).chain([&["--help"][..], &["--version"][..]]) {
        survives(arguments, &[0]).await;
        let (code, _) = run(arguments, true).await;
        assert_eq!(code, Some(0), "{arguments:?}");
    }
    let (code, _) = run(&["unknown"], true).await;
    assert_eq!(code, Some(2));
}

#[tokio::test]
async fn check_and_health() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let http = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n{}\n").await;
        }
    });
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("trunkless.toml");
    let text = format!(
        "[ai]\nurl = \"ws://127.0.0.1:1\"\n[http]\nlisten = \"{http}\"\n\
         [pbx.main]\nmode = \"sip\"\n[pbx.main.sip]\nregister = false\npeers = [\"192.0.2.1\"]\n"
    );
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    survives(&["run", "--config", file, "--check"], &[0]).await;
    survives(&["health", "--config", file], &[0]).await;
    // and an error, with stderr closed as well
    let missing = directory.path().join("none.toml");
    for arguments in [["run", "--check"], ["health", "--ready"], ["recordings", "ls"]] {
        let config = ["--config", missing.to_str().unwrap()];
        let (code, _) = run(&[arguments, config].concat(), true).await;
        assert_eq!(code, Some(2), "{arguments:?}");
    }
}

#[tokio::test]
async fn recordings() {
    let directory = tempfile::tempdir().unwrap();
    let path: &Path = directory.path();
    let rig = Rig::new(&format!("[recording]\ndirectory = {path:?}")).await;
    let (mut call, stream) = rig.call().await;
    call.say(0..5).await;
    call.bye().await;
    stream.stopped().await;
    let record = rig.bridge.record().await;
    rig.bridge.shutdown().await;
    let at = ["--directory", path.to_str().unwrap()];
    let show = ["show", &record.recordings[0]];
    for arguments in [&["ls"][..], &["ls", "--json"][..], &show[..], &["verify"][..]] {
        survives(&[&["recordings"][..], arguments, &at[..]].concat(), &[141]).await;
    }
}

#[tokio::test]
async fn demo_call_and_bench() {
    let output = tempfile::tempdir().unwrap();
    survives(&["demo", "--output", output.path().to_str().unwrap()], &[0, 1]).await;
    let pbx = Pbx::udp(Net::new().pbx()).await;
    pbx.answer_with(|request| Some(Message::response(request, 486, "Busy Here", "pbx")));
    survives(&["call", &format!("sip:ai@{}", pbx.address)], &[3]).await;
    survives(&["bench", "--calls", "1", "--seconds", "2"], &[0, 1]).await;
}
