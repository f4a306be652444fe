//! Session timers (RFC 4028): refreshes by either side, and expiry without one.

use super::rig::{Dialog, Rig, Text, sdp};
use crate::sip::agent::{CallEnd, Command};
use crate::sip::message::Message;
use crate::sip::sdp::Direction;

const TIMER: &str = "Supported: timer";

/// Establishes a call with a timer of 90 s: a refresh by us is due after 45 s, expiry after 60 s.
fn up(rig: &mut Rig, refresher: &str, allow: &str) -> Dialog {
    let expires = format!("Session-Expires: 90;refresher={refresher}");
    rig.up_with(&Text::invite().line(&expires).line(TIMER).line(allow))
}

/// Waits for our refresh, checks it and returns it.
fn ours(rig: &mut Rig, method: &str) -> Message {
    rig.wait(45.1);
    let request = rig.one();
    assert_eq!(request.method(), Some(method));
    assert_eq!(request.get("Session-Expires"), Some("90;refresher=uac"));
    request
}

#[test]
fn our_200_names_the_refresher() {
    let other = "Supported: replaces";
    for (asked, supported, answer, require) in [
        ("Session-Expires: 1800", TIMER, "1800;refresher=uac", Some("timer")),
        ("x: 90;refresher=uas", TIMER, "90;refresher=uas", None),
        ("x: 90;refresher=UAS", "k: Timer", "90;refresher=uas", None),
        // added by a proxy: the caller's phone knows nothing of it
        ("Session-Expires: 1800", other, "1800;refresher=uas", None),
        ("Session-Expires: 30;refresher=uac", other, "30;refresher=uas", None),
    ] {
        let mut rig = Rig::trunk();
        let (_, ok) = rig.answered(&Text::invite().line(asked).line(supported));
        assert_eq!(ok.get("Session-Expires"), Some(answer));
        assert_eq!(ok.get("Require"), require);
    }
}

#[test]
fn refreshes_by_the_peer_keep_the_call_up() {
    let mut rig = Rig::trunk();
    let dialog = up(&mut rig, "uac", "Subject: none");
    for i in 0..10 {
        rig.wait(45.0);
        let update = dialog.request("UPDATE", 20 + 2 * i);
        rig.pbx(&update.line("Session-Expires: 90;refresher=uac").line(TIMER));
        let ok = rig.one();
        assert_eq!(ok.get("Session-Expires"), Some("90;refresher=uac"));
        rig.wait(45.0);
        let body = sdp(4000, "sendrecv");
        let invite = dialog.request("INVITE", 21 + 2 * i).sdp(&body);
        rig.pbx(&invite.line("Session-Expires: 90").line(TIMER));
        rig.pbx(&dialog.ack(21 + 2 * i));
        assert_eq!(rig.told(), ["200"]);
    }
    assert_eq!(rig.ended(), None);
    rig.wait(59.9);
    assert_eq!(rig.told(), [""; 0]);
    rig.wait(0.2);
    assert_eq!(rig.told(), ["BYE"]);
    assert_eq!(rig.ended(), Some(CallEnd::SessionExpired));
    rig.assert_empty();
}

#[test]
fn a_refresh_without_session_expires_ends_the_timer() {
    let day = 86_400.0;
    for method in ["UPDATE", "INVITE"] {
        let mut rig = Rig::trunk();
        let dialog = up(&mut rig, "uac", "Subject: none");
        rig.wait(45.0);
        let refresh = dialog.request(method, 20);
        let refresh =
            if method == "INVITE" { refresh.sdp(&sdp(4000, "sendrecv")) } else { refresh };
        rig.pbx(&refresh);
        assert_eq!(rig.one().get("Session-Expires"), None);
        if method == "INVITE" {
            rig.pbx(&dialog.ack(20));
        }
        rig.wait(day);
        assert_eq!((rig.told().len(), rig.ended()), (0, None), "{method} by the peer");
    }
    for (method, allow) in [("UPDATE", "Allow: UPDATE"), ("INVITE", "Subject: none")] {
        let mut rig = Rig::trunk();
        up(&mut rig, "uas", allow);
        let refresh = ours(&mut rig, method);
        let body = if method == "INVITE" { sdp(4000, "sendrecv") } else { String::new() };
        rig.answer_with(&refresh, 200, "", &body);
        rig.told();
        rig.wait(day);
        assert_eq!((rig.told().len(), rig.ended()), (0, None), "{method} by us");
    }
}

#[test]
fn a_refresh_with_too_short_an_interval_is_refused() {
    let mut rig = Rig::trunk();
    let dialog = up(&mut rig, "uac", "Subject: none");
    rig.pbx(&dialog.request("UPDATE", 20).line("Session-Expires: 30").line(TIMER));
    let refusal = rig.one();
    assert_eq!((refusal.code(), refusal.get("Min-SE")), (Some(422), Some("90")));
}

#[test]
fn we_refresh_by_update() {
    let mut rig = Rig::trunk();
    up(&mut rig, "uas", "Allow: INVITE, UPDATE");
    for _ in 0..5 {
        let update = ours(&mut rig, "UPDATE");
        assert!(update.body.is_empty());
        rig.answer_with(&update, 200, "Session-Expires: 90;refresher=uac\r\n", "");
    }
    assert_eq!(rig.ended(), None);
}

#[test]
fn we_refresh_by_reinvite_if_the_peer_does_not_support_update() {
    let mut rig = Rig::trunk();
    let (dialog, ok) = rig.answered(&Text::invite().line("x: 90;refresher=uas").line(TIMER));
    rig.pbx(&dialog.ack(10));
    for _ in 0..2 {
        let invite = ours(&mut rig, "INVITE");
        assert_eq!(invite.body, ok.body, "the SDP is the same, with the same version");
        rig.answer_with(&invite, 200, "Session-Expires: 90\r\n", &sdp(4000, "sendrecv"));
        assert_eq!(rig.told(), ["ACK"]);
    }
    for code in [400, 403, 405, 415, 420, 488, 500, 501, 503, 603] {
        let mut rig = Rig::trunk();
        up(&mut rig, "uas", "Allow: UPDATE");
        let update = ours(&mut rig, "UPDATE");
        rig.answer(&update, code);
        let invite = rig.one();
        assert_eq!(invite.method(), Some("INVITE"));
        rig.answer_with(&invite, 200, "Session-Expires: 90\r\n", &sdp(4000, "sendrecv"));
        assert_eq!(rig.told(), ["ACK"]);
        ours(&mut rig, "INVITE");
    }
}

#[test]
fn a_refresh_answered_408_or_481_or_not_at_all_ends_the_call() {
    for code in [408, 481] {
        let mut rig = Rig::trunk();
        up(&mut rig, "uas", "Allow: UPDATE");
        let update = ours(&mut rig, "UPDATE");
        rig.answer(&update, code);
        assert_eq!(rig.told(), ["BYE"]);
        assert_eq!(rig.ended(), Some(CallEnd::Lost));
        rig.assert_empty();
    }
    let mut rig = Rig::trunk();
    up(&mut rig, "uas", "Allow: UPDATE");
    ours(&mut rig, "UPDATE");
    rig.wait(14.8);
    assert!(rig.told().iter().all(|t| t == "UPDATE"));
    rig.wait(0.2);
    assert_eq!(rig.ended(), Some(CallEnd::SessionExpired));
    rig.assert_empty();
}

#[test]
fn a_refresh_without_a_final_response_does_not_stop_the_timer() {
    let mut rig = Rig::trunk();
    up(&mut rig, "uas", "Subject: none");
    let invite = ours(&mut rig, "INVITE");
    rig.answer(&invite, 100);
    rig.wait(15.0);
    assert_eq!(rig.told(), ["BYE"]);
    assert_eq!(rig.ended(), Some(CallEnd::SessionExpired));
    rig.assert_empty();
}

#[test]
fn a_422_raises_the_interval_once() {
    let mut rig = Rig::trunk();
    up(&mut rig, "uas", "Allow: UPDATE");
    let update = ours(&mut rig, "UPDATE");
    rig.answer_with(&update, 422, "Min-SE: 300\r\n", "");
    let again = rig.one();
    assert_eq!(again.get("Session-Expires"), Some("300;refresher=uac"));
    rig.answer_with(&again, 422, "Min-SE: 300\r\n", "");
    assert_eq!(rig.told(), [""; 0], "the same minimum does not trigger another refresh at once");
    rig.wait(105.0);
    assert_eq!(rig.told(), ["UPDATE"]);
}

#[test]
fn a_refresh_is_retried_after_glare() {
    let mut rig = Rig::trunk();
    up(&mut rig, "uas", "Allow: UPDATE");
    for wait in [45.1, 3.0, 3.0] {
        rig.wait(wait);
        let update = rig.one();
        rig.answer(&update, 491);
    }
    rig.wait(3.0);
    let update = rig.one();
    rig.answer_with(&update, 200, "Session-Expires: 90\r\n", "");
    ours(&mut rig, "UPDATE");
}

#[test]
fn a_call_expires_if_every_refresh_is_refused() {
    let mut rig = Rig::trunk();
    up(&mut rig, "uas", "Allow: UPDATE");
    rig.wait(45.1);
    let update = rig.one();
    rig.answer(&update, 500);
    for _ in 0..5 {
        let invite = rig.one();
        assert_eq!(invite.method(), Some("INVITE"), "UPDATE is not tried again");
        rig.answer(&invite, 500);
        assert_eq!(rig.told(), ["ACK"]);
        rig.wait(3.0);
    }
    assert_eq!(rig.told(), ["BYE"]);
    assert_eq!(rig.ended(), Some(CallEnd::SessionExpired));
}

#[test]
fn only_one_reinvite_at_a_time() {
    let mut rig = Rig::trunk();
    let dialog = up(&mut rig, "uas", "Subject: none");
    rig.wait(44.0);
    let invite = dialog.request("INVITE", 11).sdp(&sdp(4000, "sendrecv"));
    rig.pbx(&invite.line("Session-Expires: 90;refresher=uas").line(TIMER));
    assert_eq!(rig.told(), ["200"]);
    rig.command(Command::Direction { call: dialog.key, direction: Direction::SendOnly });
    assert_eq!(rig.told(), [""; 0]);
    rig.pbx(&dialog.ack(11));
    // the change of direction that had to wait
    let hold = rig.one();
    assert!(String::from_utf8_lossy(&hold.body).contains("a=sendonly"));
    let timer = "Session-Expires: 90;refresher=uac\r\n";
    rig.answer_with(&hold, 200, timer, &sdp(4000, "recvonly"));
    assert_eq!(rig.told(), ["ACK"]);
    ours(&mut rig, "INVITE");
}

#[test]
fn a_short_interval_by_a_proxy_is_kept() {
    let mut rig = Rig::trunk();
    rig.up_with(&Text::invite().line("Session-Expires: 30").line("Allow: UPDATE"));
    for _ in 0..5 {
        rig.wait(15.1);
        let update = rig.one();
        assert_eq!(update.get("Session-Expires"), Some("30;refresher=uac"));
        assert_eq!(update.get("Min-SE"), Some("30"), "not above the interval");
        rig.answer_with(&update, 200, "Session-Expires: 30;refresher=uac\r\n", "");
    }
    assert_eq!((rig.told().len(), rig.ended()), (0, None));
}

const CHALLENGE: &str = "Proxy-Authenticate: Digest realm=\"pbx\", nonce=\"n\", qop=\"auth\"\r\n";

/// Answers requests with 407 until they carry credentials. Returns the last one.
fn challenged(rig: &mut Rig, method: &str) -> Message {
    let first = rig.one();
    assert_eq!((first.method(), first.get("Proxy-Authorization")), (Some(method), None));
    rig.answer_with(&first, 407, CHALLENGE, "");
    let again = rig.sent().pop().unwrap();
    assert_eq!(again.method(), Some(method));
    let answer = again.get("Proxy-Authorization").expect("credentials");
    assert!(
        answer.contains("username=\"ai\"") && answer.contains(&format!("uri=\"{}", again.uri()))
    );
    assert!(again.cseq().unwrap().0 > first.cseq().unwrap().0);
    again
}

#[test]
fn the_pbx_may_ask_for_the_password_within_a_call() {
    for (method, allow) in [("UPDATE", "Allow: UPDATE"), ("INVITE", "Subject: none")] {
        let mut rig = Rig::registering();
        rig.sent();
        let dialog = up(&mut rig, "uas", allow);
        rig.sent();
        rig.agent.timers.retain(|(_, key)| !matches!(key, crate::sip::agent::TimerKey::Account(_)));
        rig.agent.clients.clear();
        rig.wait(45.1);
        let refresh = challenged(&mut rig, method);
        let body = if method == "INVITE" { sdp(4000, "sendrecv") } else { String::new() };
        rig.answer_with(&refresh, 200, "Session-Expires: 90\r\n", &body);
        rig.sent();
        rig.wait(45.1);
        let refresh = rig.one();
        assert!(refresh.get("Proxy-Authorization").unwrap().contains("nc=00000002"));
        rig.answer_with(&refresh, 407, CHALLENGE, "");
        let again = rig.sent().pop().unwrap();
        rig.answer_with(&again, 407, CHALLENGE, "");
        assert_eq!(rig.ended(), None);
        assert_eq!(dialog.call_id, "call-1");
    }
}

#[test]
fn a_bye_is_sent_again_with_the_password() {
    let mut rig = Rig::registering();
    rig.sent();
    let dialog = rig.up();
    rig.hang_up(&dialog);
    let bye = challenged(&mut rig, "BYE");
    assert!(bye.get("Reason").is_some());
    assert_eq!(rig.ended(), None);
    rig.answer(&bye, 200);
    assert_eq!(rig.ended(), Some(CallEnd::HungUp));
    // a trunk has no password
    let mut rig = Rig::trunk();
    let dialog = rig.up();
    rig.hang_up(&dialog);
    let bye = rig.one();
    rig.answer_with(&bye, 407, CHALLENGE, "");
    assert_eq!(rig.told(), [""; 0]);
    assert_eq!(rig.ended(), Some(CallEnd::HungUp));
}
