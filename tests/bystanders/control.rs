//! Attacks on the control API.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use trunkless::peer::phone::PhoneCommand;

use crate::rig::{Bystanders, Rig, Site, pass};

const TOKEN: &str = "a-token-for-the-attacked";
const READER: &str = "a-token-that-may-only-read";
/// Requests of the flood.
const FLOOD: usize = 10_000;
/// Threads that send them.
const THREADS: usize = 16;

/// A site, and where its bridge serves the control API.
fn site() -> (Site, SocketAddr) {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let at = free.expect("a free port");
    let site = Site::direct(&format!(
        "[http]\nlisten = \"{at}\"\n[control]\nlisten = \"{at}\"\n\
         [control.tokens.desk]\ntoken = \"{TOKEN}\"\n\
         [control.tokens.wall]\ntoken = \"{READER}\"\nscopes = [\"read\"]\n\
         [pbx.main.transfer]\ntargets = {{ humans = \"1001\" }}\nextensions = [\"10XX\"]\n\
         [pbx.fault.transfer]\ntargets = {{ humans = \"1001\" }}\nextensions = [\"10XX\"]\n"
    ));
    (site, at)
}

/// Sends a request and returns the response's status and body.
fn ask(at: SocketAddr, head: &str, headers: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(at).expect("a connection");
    let limit = Some(Duration::from_secs(10));
    stream.set_read_timeout(limit).expect("a socket option");
    let host = if headers.contains("Host:") { String::new() } else { format!("Host: {at}\r\n") };
    let length = body.len();
    let text = format!("{head} HTTP/1.1\r\n{host}{headers}Content-Length: {length}\r\n\r\n{body}");
    stream.write_all(text.as_bytes()).expect("sent");
    let mut response = Vec::new();
    // a connection beyond the limit is reset
    let _ = stream.read_to_end(&mut response);
    let text = String::from_utf8_lossy(&response).into_owned();
    let status = text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    (status, text.split("\r\n\r\n").nth(1).unwrap_or_default().to_owned())
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

/// Ids of the live calls whose caller's number has this text.
fn calls(at: SocketAddr, number: &str) -> Vec<String> {
    let (status, body) = ask(at, "GET /v1/calls", &bearer(TOKEN), "");
    assert_eq!(status, 200, "{body}");
    let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    let all = body["calls"].as_array().expect("calls").iter();
    let of = all.filter(|call| call["from_number"].as_str().is_some_and(|n| n.contains(number)));
    of.map(|call| call["id"].as_str().expect("an id").to_owned()).collect()
}

/// Strangers, half-trusted programs and wrong requests are refused, and no call notices.
#[tokio::test]
async fn requests_that_are_not_allowed_are_refused() {
    let (site, at) = site();
    let fault = async |rig: &Rig| {
        let (phone, stream) = rig.fault_call().await;
        pass(Duration::from_millis(200)).await;
        let attacked = rig.attack(move || {
            let own = calls(at, "offender").remove(0);
            let foreign = calls(at, "555").remove(0);
            let commands = |id: &str| format!("POST /v1/calls/{id}/commands");
            let hangup = r#"{"command":"hangup"}"#;
            let dial = |to: &str| format!(r#"{{"command":"transfer","to":"{to}"}}"#);
            let twilio = "POST /2010-04-01/Accounts/AC0/Calls/CA0.json";
            let other_host = format!("Host: evil.example\r\n{}", bearer(TOKEN));
            let page = format!("Origin: https://evil.example\r\n{}", bearer(TOKEN));
            for (head, headers, body, expected) in [
                (commands(&own), String::new(), hangup.to_owned(), 401),
                (commands(&own), bearer("guess"), hangup.to_owned(), 401),
                (commands(&own), bearer(&TOKEN[..10]), hangup.to_owned(), 401),
                (commands(&own), bearer(READER), hangup.to_owned(), 403),
                (commands(&foreign), bearer(READER), hangup.to_owned(), 403),
                (commands(&own), other_host.clone(), hangup.to_owned(), 403),
                (commands(&own), page, hangup.to_owned(), 403),
                (twilio.to_owned(), String::new(), "Status=completed".to_owned(), 401),
                (twilio.to_owned(), bearer(TOKEN), "Status=completed".to_owned(), 404),
                (commands("1795984598-0000000000"), bearer(TOKEN), hangup.to_owned(), 404),
                (commands(&own), bearer(TOKEN), dial("0019005550123"), 403),
                (commands(&own), bearer(TOKEN), dial("1001@evil.example"), 403),
                (commands(&own), bearer(TOKEN), dial("1001&SIP/premium"), 403),
                (commands(&own), bearer(TOKEN), dial("10${EXTEN}"), 403),
                (commands(&own), bearer(TOKEN), "{".repeat(10_000), 400),
                (commands(&own), bearer(TOKEN), "x".repeat(2_000_000), 413),
            ] {
                let (status, answer) = ask(at, &head, &headers, &body);
                assert_eq!(status, expected, "{head} {headers} {answer}");
            }
            assert_eq!(calls(at, "offender"), [own], "the call is still up");
        });
        attacked.await;
        phone.command(PhoneCommand::Hangup);
        drop(stream);
    };
    // the allocator keeps some of the memory for the largest bodies
    Bystanders::new(site).repeated().during(fault).await;
}

/// As many requests without a token as the machine can send.
#[tokio::test]
async fn a_flood_of_requests_is_refused() {
    let (site, at) = site();
    let fault = async |rig: &Rig| {
        let begin = Instant::now();
        let refused = rig.attack(move || {
            let flood = move || {
                let ask = |n: usize| {
                    let guess = || bearer(&n.to_string());
                    let token = if n.is_multiple_of(2) { String::new() } else { guess() };
                    ask(at, "POST /v1/calls/1/commands", &token, r#"{"command":"hangup"}"#).0
                };
                (0..FLOOD / THREADS).filter(|n| ask(*n) == 401).count()
            };
            // threads have the priority of the one that starts them
            let all: Vec<_> = (0..THREADS).map(|_| std::thread::spawn(flood)).collect();
            all.into_iter().map(|thread| thread.join().expect("no panic")).sum::<usize>()
        });
        let refused = refused.await;
        let rate = FLOOD as f64 / begin.elapsed().as_secs_f64();
        println!("{refused} of {FLOOD} requests refused, {rate:.0} a second");
        assert_eq!(refused, FLOOD);
        let (_, metrics) = ask(at, "GET /metrics", "", "");
        let counted = metrics.lines().find_map(|line| {
            line.strip_prefix("trunkless_control_requests_refused_total ")?.parse::<usize>().ok()
        });
        assert!(counted.is_some_and(|counted| counted >= FLOOD), "{counted:?}");
        let log = rig.log();
        let lines = log.matches("control request refused").count();
        assert!(lines <= 20 + begin.elapsed().as_secs() as usize, "{lines} lines in the log");
    };
    Bystanders::new(site).repeated().during(fault).await;
}
