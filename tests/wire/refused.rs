//! Messages of unusual devices, and the trace that a refused INVITE leaves.

use std::time::Duration;

use crate::bridge::{Net, Rig};
use crate::http::{free, get};
use crate::lines::Lines;
use crate::pbx::Pbx;
use crate::strict::Ai;

/// The value of a metric, 0 if it is not on the page.
async fn metric(http: std::net::SocketAddr, name: &str) -> u64 {
    let page = get(http, "/metrics").await.1;
    let line = page.lines().find_map(|line| line.strip_prefix(&format!("trunkless_{name} ")));
    line.map_or(0, |value| value.parse().expect("a number"))
}

#[tokio::test]
async fn each_refused_invite_leaves_a_log_line_and_a_count() {
    let (lines, net) = (Lines::new(), Net::new());
    let http = free(net.bridge());
    let (pbx, ai) = (Pbx::udp(net.pbx()).await, Ai::start(net.ai()).await);
    let rig = Rig::with(net, pbx, ai, &format!("[http]\nlisten = \"{http}\"")).await;
    let good = rig.pbx.call(&rig.bridge).await.offer.unwrap();
    let g729 = good.replace("0 8 101", "18");
    let table: [(u16, &str, &str, &str, &str); 10] = [
        (400, "", "To: <sip:pbx>", &good, "more than once"),
        (404, "other", "", &good, "user \"other\""),
        (406, "", "Accept: text/plain", "", "Accept"),
        (415, "", "Content-Type: text/plain", &good, "text/plain"),
        (415, "", "Content-Type: multipart/mixed;boundary=x", "--x\r\n\r\n--x--", "multipart"),
        (416, "urn:service:sos", "", &good, "URI"),
        (420, "", "Require: precondition", &good, "precondition"),
        (422, "", "Session-Expires: 30", &good, "90 s"),
        (488, "", "", &g729, "PCMU"),
        (481, "", "", &good, "no such call"),
    ];
    let mut counted = std::collections::BTreeMap::new();
    for (status, user, header, body, why) in table {
        let mut call = rig.pbx.call(&rig.bridge).await;
        match user {
            "" => {}
            uri if uri.contains(':') => call.target = uri.to_owned(),
            user => call.target = format!("sip:{user}@{}", rig.bridge.address()),
        }
        if status == 481 {
            call.to_tag = "unknown".to_owned();
        }
        if status == 415 && header.contains("multipart") {
            let part = "Content-Disposition: x;handling=required";
            call.offer = Some(body.replacen("--x\r\n", &format!("--x\r\n{part}\r\n"), 1));
        } else {
            call.offer = Some(body.to_owned());
        }
        call.headers = if header.is_empty() { String::new() } else { format!("{header}\r\n") };
        call.invite().await;
        assert_eq!(call.refused().await.code(), Some(status), "{header}");
        let line = lines.until(&call.id).await;
        for part in ["WARN", "INVITE refused: ", why, &format!("status={status}"), "*****00"] {
            assert!(line.contains(part), "{part} in {line}");
        }
        assert!(line.contains(&format!("source={}", rig.pbx.address)), "{line}");
        *counted.entry(status).or_insert(0) += 1;
        let name = format!("sip_invites_refused_total{{status=\"{status}\"}}");
        // the counter belongs to the process, in which other tests run as well
        assert!(metric(http, &name).await >= counted[&status], "{name}");
    }
    assert!(rig.ai.is_left_alone(Duration::from_millis(10)).await);
}

#[tokio::test]
async fn a_refused_reinvite_leaves_a_log_line_and_the_call_continues() {
    let (lines, rig) = (Lines::new(), Rig::new("").await);
    let (mut call, stream) = rig.call().await;
    let offer = call.offer.clone().unwrap();
    call.send("INVITE", "", &offer.replace("0 8 101", "18")).await;
    assert_eq!(call.refused().await.code(), Some(488));
    let line = lines.until("INVITE refused").await;
    assert!(line.contains("status=488") && line.contains(&call.id), "{line}");
    call.say(0..5).await;
    assert_eq!(stream.heard(5).await, [0, 1, 2, 3, 4]);
    call.bye().await;
    stream.stopped().await;
}

#[tokio::test]
async fn the_session_description_is_found_in_a_multipart_body() {
    let rig = Rig::new("").await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    let location = "Content-Type: application/pidf+xml\r\n\
        Content-Disposition: by-reference;handling=optional\r\n\r\n<presence/>";
    let wrap = |sdp: &str| {
        format!(
            "--b\r\n{location}\r\n--b\r\nContent-Type: application/sdp\r\n\r\n{sdp}\r\n--b--\r\n"
        )
    };
    let offer = call.offer.clone().unwrap();
    let mixed = "Content-Type: multipart/mixed; boundary=\"b\"\r\n";
    (call.headers, call.offer) = (mixed.to_owned(), Some(wrap(&offer)));
    call.invite().await;
    let stream = rig.ai.stream().await;
    call.answered().await;
    call.say(0..5).await;
    assert_eq!(stream.heard(5).await, [0, 1, 2, 3, 4]);
    let held = call.reinvite(mixed, &wrap(&offer.replace("sendrecv", "sendonly"))).await;
    assert!(String::from_utf8(held.body).unwrap().contains("a=recvonly"));
    call.bye().await;
    stream.stopped().await;
}

#[tokio::test]
async fn responses_name_the_source_of_the_request() {
    let over_udp = Rig::new("").await;
    let net = Net::new();
    let (pbx, ai) = (Pbx::tcp(net.pbx()).await, Ai::start(net.ai()).await);
    let over_tcp = Rig::with(net, pbx, ai, "[pbx.main.sip]\ntransport = \"tcp\"").await;
    for rig in [over_udp, over_tcp] {
        let mut call = rig.pbx.call(&rig.bridge).await;
        call.invite().await;
        let stream = rig.ai.stream().await;
        let trying = call.response(1, "INVITE", 100).await;
        let answer = call.answered().await;
        let bye = call.request("BYE", "", "").await;
        stream.stopped().await;
        for response in [trying, answer, bye] {
            let via = response.get("Via").unwrap();
            assert!(via.contains(&format!(";received={}", rig.net.pbx())), "{via}");
            let port = via.split_once(";rport=").expect("rport").1.split(';').next().unwrap();
            let port: u16 = port.parse().expect("the source's port");
            // over TCP, the bridge has opened the connection, to the PBX's port
            assert_eq!(port, rig.pbx.address.port(), "{via}");
        }
    }
}

#[tokio::test]
async fn stray_bytes_between_messages_on_tcp_lose_no_call() {
    let net = Net::new();
    let (pbx, ai) = (Pbx::tcp(net.pbx()).await, Ai::start(net.ai()).await);
    let rig = Rig::with(net, pbx, ai, "[pbx.main.sip]\ntransport = \"tcp\"").await;
    for stray in ["\0", " ", "\r\n\r\n", "\0\t\0\r\n"] {
        rig.pbx.send(stray.as_bytes(), rig.bridge.address()).await;
        let (mut call, stream) = rig.call().await;
        rig.pbx.send(stray.as_bytes(), rig.bridge.address()).await;
        call.bye().await;
        stream.stopped().await;
    }
    assert_eq!(rig.pbx.connections(), 1);
}

#[tokio::test]
async fn a_caller_without_session_timers_is_not_asked_to_refresh() {
    let rig = Rig::new("").await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    // the Session-Expires was added by a proxy
    let (old, new) = ("Supported: timer, replaces", "Session-Expires: 90");
    call.replace = Some((old.to_owned(), new.to_owned()));
    call.invite().await;
    let stream = rig.ai.stream().await;
    let answer = call.answered().await;
    assert_eq!(answer.get("Session-Expires"), Some("90;refresher=uas"));
    assert_eq!(answer.get("Require"), None);
    call.bye().await;
    stream.stopped().await;
}
