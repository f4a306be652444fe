//! Calls out through real Asterisk 16 and 22, in both modes.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::ai::Plan;
use crate::transfers::{MODES, Mode, SECOND, Scene};
use crate::{Pbx, assert_no_channels, block_on};

pub const TOKEN: &str = "a-token-that-may-dial";

/// The control API at a free port.
pub fn api() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address")
}

/// The tables of a bridge that may call the lab's extensions.
pub fn tables(api: SocketAddr, mode: Mode, more: &str) -> String {
    let context = match mode {
        Mode::Ari(..) => "context = \"services\"\n",
        Mode::Sip(_) => "",
    };
    format!(
        "[control]\nlisten = \"{api}\"\n[control.tokens.app]\ntoken = \"{TOKEN}\"\n\
         scopes = [\"read\", \"control\", \"numbers\", \"dial\"]\n\
         [pbx.main.dial]\nallow = [\"6XX\"]\ncaller_id = \"5551234\"\nper_second = 50\n\
         per_day = 100000\n{context}{more}\n"
    )
}

async fn request(api: SocketAddr, head: &str, body: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(api).await.expect("the control API");
    let length = body.len();
    let text = format!(
        "{head} HTTP/1.1\r\nHost: {api}\r\nAuthorization: Bearer {TOKEN}\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(text.as_bytes()).await.expect("it is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("a response");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
    (status, serde_json::from_str(body).unwrap_or_default())
}

/// Places a call, and returns its id.
async fn place(api: SocketAddr, body: &Value) -> String {
    let (status, call) = request(api, "POST /v1/calls", &body.to_string()).await;
    assert_eq!(status, 201, "{call}");
    call["id"].as_str().expect("an id").to_owned()
}

/// Waits until a call is as wanted, and returns it.
async fn until(api: SocketAddr, id: &str, scene: &Scene, wanted: impl Fn(&Value) -> bool) -> Value {
    let begin = Instant::now();
    loop {
        let (_, call) = request(api, &format!("GET /v1/calls/{id}"), "").await;
        if wanted(&call) {
            return call;
        }
        assert!(begin.elapsed() < 15 * SECOND, "{call}\n{}", scene.bridge.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn hang_up(api: SocketAddr, id: &str) {
    let body = json!({"command": "hangup"}).to_string();
    let path = format!("POST /v1/calls/{id}/commands?wait=5");
    assert_eq!(request(api, &path, &body).await.0, 200);
}

#[test]
fn a_callee_answers_is_busy_does_not_answer_does_not_exist_or_is_given_up() {
    block_on(async {
        for mode in MODES {
            let api = api();
            let plan = Plan { say: 500, after_heard: 0, ahead: Some(10), ..Plan::default() };
            let scene = mode.scene_with(plan, &tables(api, mode, "")).await;
            let ended = |call: &Value| call["state"] == "ended";
            for (to, timeout, reason) in
                [("611", 20, "busy"), ("612", 2, "no_answer"), ("699", 20, "invalid_number")]
            {
                let id = place(api, &json!({"to": to, "timeout": timeout})).await;
                let call = until(api, &id, &scene, ended).await;
                let log = scene.bridge.log();
                assert_eq!(call["end_reason"], reason, "{mode:?} {to}: {call}\n{log}");
                assert!(call["answered_at"].is_null(), "{mode:?} {to}: {call}");
                assert_no_channels(&scene.asterisk);
            }
            let id = place(api, &json!({"to": "612"})).await;
            until(api, &id, &scene, |call| call["ringing_at"].is_string()).await;
            hang_up(api, &id).await;
            assert_eq!(until(api, &id, &scene, ended).await["end_reason"], "api_hangup");
            assert_no_channels(&scene.asterisk);

            // rings, then an echo: what the AI says comes back
            let id = place(api, &json!({"to": "610", "parameters": {"lead": "7"}})).await;
            let stream = |scene: &Scene| scene.ai.streams().pop().expect("a stream");
            let begin = Instant::now();
            while stream(&scene).numbers(1000).len() < 100 {
                let late = begin.elapsed() > 15 * SECOND;
                assert!(!late, "{mode:?}: no echo\n{}", scene.bridge.log());
                tokio::time::sleep(SECOND / 20).await;
            }
            let parameters = stream(&scene).parameters;
            assert_eq!(
                (&parameters["direction"], &parameters["lead"]),
                (&json!("outbound"), &json!("7"))
            );
            assert_eq!(parameters["to_number"], "610");
            let call = until(api, &id, &scene, |call| call["state"] == "talking").await;
            assert!(call["ringing_at"].is_string(), "{mode:?}: {call}");
            hang_up(api, &id).await;
            until(api, &id, &scene, ended).await;
            assert_no_channels(&scene.asterisk);
        }
    });
}

#[test]
fn people_and_machines_are_told_apart() {
    block_on(async {
        for mode in [Mode::Sip(Pbx::Pjsip22), Mode::Ari(16, 141)] {
            let api = api();
            let plan = Plan { say: 0, after_heard: 1, ..Plan::default() };
            let scene = mode.scene_with(plan, &tables(api, mode, "")).await;
            let dial =
                async |to, until| place(api, &json!({"to": to, "machine_detection": until})).await;
            let ids = [
                (dial("614", "start").await, "human"),
                (dial("615", "start").await, "machine_start"),
                (dial("615", "message_end").await, "machine_end_beep"),
            ];
            for (id, by) in ids {
                let known = until(api, &id, &scene, |call| call["answered_by"].is_string()).await;
                assert_eq!(known["answered_by"], by, "{mode:?}: {known}\n{}", scene.bridge.log());
                hang_up(api, &id).await;
            }
            println!("{mode:?}: all distinguished");
            assert_no_channels(&scene.asterisk);
        }
    });
}

/// How long calls are placed; more by hand: `DIAL_SECONDS=60`.
fn seconds() -> u32 {
    std::env::var("DIAL_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(3)
}

#[test]
fn twenty_calls_per_second_are_placed() {
    block_on(async {
        for mode in [Mode::Sip(Pbx::Pjsip22), Mode::Ari(22, 141)] {
            let api = api();
            let plan = Plan { close_after: Some(50), ..Plan::default() };
            let scene = mode.scene_with(plan, &tables(api, mode, "")).await;
            let mut ticks = tokio::time::interval(SECOND / 20);
            let count = 20 * seconds() as usize;
            for _ in 0..count {
                ticks.tick().await;
                place(api, &json!({"to": "600"})).await;
            }
            let begin = Instant::now();
            let over = || scene.bridge.lines("reason=\"ai_hangup\"").len();
            while over() < count {
                let late = begin.elapsed() > 15 * SECOND;
                assert!(!late, "{mode:?}: {} of {count}\n{}", over(), scene.bridge.log());
                tokio::time::sleep(SECOND / 20).await;
            }
            assert_eq!(scene.bridge.lines("answered=true").len(), count, "{mode:?}");
            assert_no_channels(&scene.asterisk);
            println!("{mode:?}: {count} calls, {:?} of CPU time", scene.bridge.cpu());
        }
    });
}
