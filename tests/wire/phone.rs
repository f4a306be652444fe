//! The exit codes of `trunkless call`, run as a program.

use std::process::{Command, Output};

use crate::bridge::Rig;

/// A test call to the bridge, from the address of its PBX.
async fn place(rig: &Rig) -> Output {
    let uri = format!("sip:ai@{}", rig.bridge.address());
    let mut command = Command::new(env!("CARGO_BIN_EXE_trunkless"));
    command.args(["call", &uri, "--seconds", "1", "--local", &rig.net.pbx().to_string()]);
    let output = tokio::task::spawn_blocking(move || command.output()).await;
    output.expect("no panic").expect("the program runs")
}

fn assert_exit(output: &Output, code: i32, part: &str) {
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.contains(part), "{text}");
}

#[tokio::test]
async fn a_call_that_is_heard_exits_with_0() {
    let rig = Rig::new("").await;
    let ai = async {
        let stream = rig.ai.stream().await;
        stream.play_frames(0..100).await;
        stream.stopped().await;
    };
    let (output, ()) = tokio::join!(place(&rig), ai);
    assert_exit(&output, 0, "ended: we hung up");
}

#[tokio::test]
async fn a_refused_call_exits_with_3() {
    let rig = Rig::new("").await;
    let ai = async { rig.ai.handshake().await.refuse("404 Not Found").await };
    let (output, ()) = tokio::join!(place(&rig), ai);
    assert_exit(&output, 3, "failed: the call was refused");
}

#[tokio::test]
async fn a_silent_call_exits_with_5() {
    let rig = Rig::new("").await;
    let ai = async { rig.ai.stream().await.stopped().await };
    let (output, ()) = tokio::join!(place(&rig), ai);
    assert_exit(&output, 5, "failed: no audio was heard");
}

#[tokio::test]
async fn a_call_whose_ai_crashes_exits_with_6() {
    let rig = Rig::new("").await;
    let ai = async {
        let stream = rig.ai.stream().await;
        stream.play_frames(0..10).await;
        stream.reset().await;
    };
    let (output, ()) = tokio::join!(place(&rig), ai);
    assert_exit(&output, 6, "failed: the other side ended the call with an error");
}
