//! AIs whose connection is up, but whose program hangs or answers late.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout_at;

use crate::bridge::Rig;
use crate::call::Call;
use crate::log::pass;

const SECOND: Duration = Duration::from_secs(1);
const PING: u8 = 0x89;

/// A call whose AI has sent one mark and does nothing by itself.
async fn call(rig: &Rig) -> (Call, TcpStream) {
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.invite().await;
    let mut handshake = rig.ai.handshake().await;
    handshake.accept().await;
    call.answered().await;
    let text = br#"{"event":"mark","mark":{"name":"here"}}"#;
    handshake.tcp.write_all(&[0x81, text.len() as u8]).await.unwrap();
    handshake.tcp.write_all(text).await.unwrap();
    (call, handshake.tcp)
}

/// Reads and discards frames for `time`, or until a ping arrives. True if one did.
async fn pinged(tcp: &mut TcpStream, time: Duration) -> bool {
    let until = (Instant::now() + time).into();
    let read = async {
        loop {
            let mut head = [0; 2];
            tcp.read_exact(&mut head).await.unwrap();
            let length = match head[1] & 0x7f {
                126 => usize::from(tcp.read_u16().await.unwrap()),
                short => usize::from(short),
            };
            // and the mask
            tcp.read_exact(&mut vec![0; length + 4]).await.unwrap();
            if head[0] == PING {
                return;
            }
        }
    };
    timeout_at(until, read).await.is_ok()
}

/// One test, because each part takes more than ten seconds.
#[tokio::test]
async fn a_quiet_ai_is_pinged_and_given_up_after_10_s_without_an_answer() {
    tokio::join!(
        an_ai_that_reads_but_does_not_answer_times_out(),
        an_ai_that_hangs_while_its_kernel_acknowledges_times_out(),
        an_ai_that_answers_after_9_s_is_alive(),
        an_ai_may_be_quiet_forever_if_pings_are_off(),
        an_ai_must_complete_a_message_within_10_s(&[0x81, 127, 0, 0, 0, 0, 0, 0x70, 0, 0], b"x"),
        an_ai_must_complete_a_message_within_10_s(&[0x01, 1, b'x'], &[0x00, 1, b'x']),
    );
}

/// The AI begins a message with `begin`, and sends `more` of it every half second.
async fn an_ai_must_complete_a_message_within_10_s(begin: &[u8], more: &[u8]) {
    let rig = Rig::new("").await;
    let (call, tcp) = call(&rig).await;
    let (mut input, mut output) = tcp.into_split();
    let started = Instant::now();
    output.write_all(begin).await.unwrap();
    let more = more.to_vec();
    let drip = tokio::spawn(async move {
        while output.write_all(&more).await.is_ok() {
            pass(SECOND / 2).await;
        }
    });
    let reading =
        tokio::spawn(async move { tokio::io::copy(&mut input, &mut tokio::io::sink()).await });
    pass(5 * SECOND).await;
    assert_eq!(call.hung_up().await, "Q.850;cause=111;text=\"ai_protocol\"");
    let took = started.elapsed();
    assert!(took > 9 * SECOND && took < 13 * SECOND, "{took:?}");
    assert_eq!(rig.bridge.end().await, "ai_protocol");
    drip.abort();
    reading.abort();
}

async fn an_ai_that_reads_but_does_not_answer_times_out() {
    let rig = Rig::new("[ai]\nping = \"500ms\"").await;
    let (call, mut tcp) = call(&rig).await;
    let begin = Instant::now();
    assert!(pinged(&mut tcp, 2 * SECOND).await);
    assert!(!pinged(&mut tcp, 5 * SECOND).await, "one ping, until it is answered");
    let reading =
        tokio::spawn(async move { tokio::io::copy(&mut tcp, &mut tokio::io::sink()).await });
    assert_eq!(call.hung_up().await, "Q.850;cause=38;text=\"ai_timeout\"");
    let took = begin.elapsed();
    assert!(took > 10 * SECOND && took < 13 * SECOND, "{took:?}");
    assert_eq!(rig.bridge.end().await, "ai_timeout");
    reading.abort();
}

async fn an_ai_that_hangs_while_its_kernel_acknowledges_times_out() {
    let rig = Rig::new("[ai]\nping = \"500ms\"").await;
    let (call, tcp) = call(&rig).await;
    let begin = Instant::now();
    pass(5 * SECOND).await;
    assert_eq!(call.hung_up().await, "Q.850;cause=38;text=\"ai_timeout\"");
    let took = begin.elapsed();
    assert!(took > 10 * SECOND && took < 13 * SECOND, "{took:?}");
    drop(tcp);
}

async fn an_ai_that_answers_after_9_s_is_alive() {
    let rig = Rig::new("[ai]\nping = \"500ms\"").await;
    let (mut call, mut tcp) = call(&rig).await;
    assert!(pinged(&mut tcp, 2 * SECOND).await);
    assert!(!pinged(&mut tcp, 9 * SECOND).await);
    tcp.write_all(&[0x8a, 0]).await.unwrap();
    assert!(pinged(&mut tcp, 2 * SECOND).await, "the next one");
    assert!(!pinged(&mut tcp, 2 * SECOND).await);
    call.bye().await;
    assert_eq!(rig.bridge.end().await, "caller_hangup");
}

async fn an_ai_may_be_quiet_forever_if_pings_are_off() {
    let rig = Rig::new("[ai]\nping = \"0s\"").await;
    let (mut call, mut tcp) = call(&rig).await;
    assert!(!pinged(&mut tcp, 12 * SECOND).await);
    call.bye().await;
    assert_eq!(rig.bridge.end().await, "caller_hangup");
}
