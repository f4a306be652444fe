//! Refused requests and their status codes; unknown addresses get no response.

use super::rig::{PBX, RTP, Rig, STRANGER, Text, response, sdp};
use crate::sip::agent::{Command, Event};

/// Replacements in a valid INVITE, with the status code of the response.
const FAULTS: [(&str, &str, u16); 30] = [
    ("sip:ai@10.0.0.1:5070 SIP", "urn:service:sos SIP", 416),
    ("sip:ai@10.0.0.1:5070 SIP", "tel: SIP", 416),
    ("sip:ai@10.0.0.1:5070 SIP", "sip:ai@10.0.0.1:port SIP", 400),
    ("sip:ai@10.0.0.1:5070 SIP", "sip:ai@10.0.0.1?Route=%3Csip:x%3E SIP", 400),
    ("5070 SIP/2.0", "5070 SIP/3.0", 505),
    ("5070 SIP/2.0", "5070  SIP/2.0", 400),
    ("Content-Length: ", "Content-Length: 9", 400),
    ("Content-Length: ", "Content-Length: -", 400),
    ("CSeq: 10 INVITE", "CSeq: 10 BYE", 400),
    ("CSeq: 10 INVITE", "CSeq: 4294967296 INVITE", 400),
    ("To: <sip:ai", "To: <sip:ai@10.0.0.1>\r\nTo: <sip:ai", 400),
    ("To: <sip:ai@10.0.0.1:5070>", "To: <sip:ai@10.0.0.1:5070>;tag=old", 481),
    ("Content-Type: application/sdp\r\n", "Accept: text/plain\r\nl: 0\r\n\r\n", 406),
    ("Type: application/sdp", "Type: text/plain", 415),
    ("Type: application/sdp", "Type: multipart/mixed;boundary=b", 415),
    ("Max-Forwards: 70", "Max-Forwards: 70\r\nContent-Encoding: gzip", 415),
    ("Max-Forwards: 70", "Max-Forwards: 70\r\nRequire: timer, Replaces", 420),
    ("Max-Forwards: 70", "Supported: timer\r\nSession-Expires: 89", 422),
    ("RTP/AVP 0 101", "RTP/AVP 18 101", 488),
    ("RTP/AVP 0 101", "RTP/SAVP 0 101", 488),
    ("audio 4000", "audio 0000", 488),
    ("c=IN IP4 10.0.0.2", "c=IN IP4 127.0.0.1", 488),
    ("c=IN IP4 10.0.0.2", "c=IN IP4 224.0.0.1", 488),
    ("c=IN IP4 10.0.0.2", "c=IN IP6 2001:db8::5", 488),
    ("v=0", "x=0", 488),
    ("INVITE", "DANCE", 501),
    ("INVITE", "invite", 501),
    ("INVITE", "REGISTER", 405),
    ("INVITE", "SUBSCRIBE", 405),
    ("INVITE", "BYE", 481),
];

#[test]
fn each_fault_has_its_status() {
    for (old, new, code) in FAULTS {
        let mut rig = Rig::trunk();
        let good = Text::invite().render();
        assert!(good.contains(old), "{old}");
        rig.feed(PBX, &good.replace(old, new));
        let refusal = rig.one();
        assert_eq!(refusal.code(), Some(code), "{new}");
        let refused = rig.events();
        let [Event::Refused(event)] = &refused[..] else { panic!("{new}: {refused:?}") };
        let method = match (old, new) {
            ("INVITE", "DANCE" | "invite") => None,
            ("INVITE", other) => Some(other),
            _ => Some("INVITE"),
        };
        assert_eq!((event.method, event.code), (method, Some(code)), "{new}");
        assert!(!event.why.is_empty() && event.source == PBX.parse().unwrap(), "{new}");
        assert_eq!(event.sip_call_id, "call-1", "{new}");
        let has = |name| refusal.get(name).is_some();
        let explained = match code {
            405 | 501 => has("Allow"),
            415 => refusal.get("Accept").is_some_and(|a| a.contains("application/sdp")),
            420 => refusal.get("Unsupported") == Some("replaces"),
            422 => refusal.get("Min-SE") == Some("90"),
            400 | 488 => has("Warning"),
            _ => true,
        };
        assert!(explained, "{new}: {refusal:?}");
        rig.assert_empty();
    }
}

#[test]
fn unanswerable_messages_are_dropped() {
    let good = Text::invite().render();
    let silent = [
        ("Via: SIP/2.0/UDP", "Via: SIP/3.0/UDP"),
        ("CSeq: 10 INVITE\r\n", ""),
        ("Call-ID: call-1\r\n", ""),
        ("Call-ID: call-1", "Call-ID: "),
        ("To: <sip:ai@10.0.0.1:5070>\r\n", ""),
        ("INVITE sip:ai@10.0.0.1:5070 SIP/2.0", "INVITE"),
        ("INVITE sip:ai@10.0.0.1:5070 SIP/2.0", "SIP/2.0 200 OK"),
        ("\r\n\r\n", "\r\n"),
    ];
    for (old, new) in silent {
        let mut rig = Rig::trunk();
        assert!(good.contains(old), "{old}");
        rig.feed(PBX, &good.replace(old, new));
        assert_eq!(rig.told(), [""; 0], "{new}");
        let events = rig.events();
        match &events[..] {
            [Event::Refused(event)] => assert_eq!(event.code, None, "{new}"),
            [Event::Unreadable { source, .. }] => assert_eq!(*source, PBX.parse().unwrap()),
            [] => assert!(new.starts_with("SIP/2.0 200"), "{new}: a stray response"),
            _ => panic!("{new}: {events:?}"),
        }
        rig.assert_empty();
    }
    // an HTTP request line is taken for a malformed SIP one
    let mut rig = Rig::trunk();
    rig.feed(PBX, &good.replace("INVITE sip:ai@10.0.0.1:5070 SIP/2.0", "GET / HTTP/1.1"));
    assert_eq!(rig.told(), ["400"]);
    assert!(matches!(&rig.events()[..], [Event::Refused(event)] if event.method.is_none()));
    rig.assert_empty();
    let mut rig = Rig::trunk();
    for keep_alive in ["\r\n\r\n", "\0", "", " \t\0\r\n"] {
        rig.feed(PBX, keep_alive);
    }
    assert_eq!(rig.agent.counts, Rig::trunk().agent.counts, "keep-alives are not counted");
    rig.feed(PBX, "junk");
    assert_eq!(rig.agent.counts.unreadable, 1);
}

#[test]
fn an_ack_is_never_answered() {
    let mut rig = Rig::trunk();
    rig.pbx(&Text::new("ACK", 10).tagged("x"));
    rig.feed(PBX, &Text::new("ACK", 10).render().replace("CSeq: 10 ACK", "CSeq: 10 BYE"));
    assert_eq!(rig.told(), [""; 0]);
    for event in rig.events() {
        let Event::Refused(refused) = event else { panic!("{event:?}") };
        assert_eq!((refused.method, refused.code), (Some("ACK"), None));
    }
    rig.assert_empty();
}

#[test]
fn the_called_user_selects_the_account() {
    let to = |user: &str| Text::invite().uri(&format!("sip:{user}@10.0.0.1:5070"));
    let table = [
        ("sip:+15551234;npdi;rn=+15550000@10.0.0.1", "+15551234"),
        ("sip:%2B15551234;phone-context=x@10.0.0.1;user=phone", "+15551234"),
        ("tel:+1-555-1234;cpc=ordinary", "+15551234"),
        ("sip:10.0.0.1;", ""),
    ];
    for (uri, number) in table {
        let mut trunk = Rig::trunk();
        trunk.pbx(&Text::invite().uri(uri));
        let events = trunk.events();
        assert!(matches!(&events[0], Event::Invite(i) if i.to_user == number), "{uri}: {events:?}");
    }
    let mut trunk = Rig::trunk();
    trunk.pbx(&to("8%3001"));
    let events = trunk.events();
    assert!(matches!(&events[0], Event::Invite(i) if i.to_user == "8001"), "{events:?}");

    let mut rig = Rig::registering();
    rig.sent();
    rig.pbx(&to("ai;phone-context=x"));
    assert_eq!(rig.told(), ["100"]);
    rig.pbx(&to("somebody").branch("b").call_id("call-2"));
    assert_eq!(rig.told(), ["404"]);
    let last_hop = to("somebody").branch("c").call_id("call-3").render();
    rig.feed(PBX, &last_hop.replace("Max-Forwards: 70", "Max-Forwards: 0"));
    assert_eq!(rig.told(), ["483"]);
}

#[test]
fn the_caller_is_taken_from_identity_headers_or_from() {
    let table = [
        ("", "100", Some("Caller")),
        ("P-Asserted-Identity: <tel:+1-555-0001;phone-context=x>", "+15550001", None),
        ("P-Asserted-Identity: BELL, A & Co <sip:%2B1;cpc=ordinary@x>", "+1", Some("BELL,A & Co")),
        ("P-Asserted-Identity: <sip:anonymous.invalid>, <tel:+1>", "+1", None),
        ("P-Asserted-Identity: <urn:x:y>\r\nP-Asserted-Identity: <tel:+2>", "+2", None),
        ("Remote-Party-ID: \"R\" <sip:2@x>;party=calling", "2", Some("R")),
        ("P-Asserted-Identity: <sip:1@x>, <tel:+1>\r\nRemote-Party-ID: <sip:2@x>", "1", None),
        ("P-Asserted-Identity: <sip:anonymous.invalid>", "100", Some("Caller")),
    ];
    for (line, user, name) in table {
        let mut rig = Rig::trunk();
        rig.feed(
            PBX,
            &Text::invite().line(line).render().replace("\r\n\r\nContent", "\r\nContent"),
        );
        let events = rig.events();
        let Event::Invite(invite) = &events[0] else { panic!("{events:?}") };
        assert_eq!((invite.from_user.as_str(), invite.from_name.as_deref()), (user, name));
    }
}

#[test]
fn unknown_addresses_get_no_response() {
    let mut rig = Rig::trunk();
    let (dialog, _) = rig.answered(&Text::invite());
    let inside = [
        dialog.ack(10),
        dialog.request("BYE", 11),
        dialog.request("INVITE", 12),
        Text { branch: Text::invite().branch, ..Text::new("CANCEL", 10) },
        Text::invite().call_id("call-2"),
        Text::new("OPTIONS", 1),
    ];
    for text in &inside {
        rig.feed(STRANGER, &text.render());
    }
    rig.feed(STRANGER, "junk");
    assert_eq!(rig.told(), [""; 0]);
    assert!(rig.events().is_empty());
    assert_eq!(rig.agent.counts.strangers, inside.len() as u64 + 1);
    assert_eq!(rig.agent.call_count(), 1);
    rig.pbx(&dialog.ack(10));
    rig.hang_up(&dialog);
    let bye = rig.one();
    rig.feed(STRANGER, &response(&bye, 200, "", ""));
    assert_eq!(rig.ended(), None);
    rig.answer(&bye, 200);
    assert!(rig.ended().is_some());
    rig.assert_empty();
}

#[test]
fn stray_responses_are_counted() {
    let mut rig = Rig::trunk();
    let request = Text::new("OPTIONS", 1).render();
    let (request, _) = crate::sip::message::Message::parse(request.as_bytes()).unwrap();
    for code in [100, 200, 401, 503] {
        rig.answer(&request, code);
    }
    assert_eq!(rig.told(), [""; 0]);
    assert_eq!(rig.agent.counts.stray_responses, 4);
}

#[test]
fn wrong_tags_and_old_cseqs_are_refused() {
    let mut rig = Rig::trunk();
    let dialog = rig.up();
    rig.pbx(&Text { from_tag: "other".to_owned(), ..dialog.request("BYE", 11) });
    assert_eq!(rig.told(), ["481"]);
    rig.pbx(&Text::new("BYE", 12).tagged("other"));
    assert_eq!(rig.told(), ["481"]);
    rig.pbx(&dialog.request("BYE", 13).call_id("call-2"));
    assert_eq!(rig.told(), ["481"]);
    rig.pbx(&dialog.request("OPTIONS", 20));
    rig.pbx(&dialog.request("BYE", 19));
    assert_eq!(rig.told(), ["200", "500"]);
    assert_eq!(rig.ended(), None);
    rig.pbx(&dialog.request("BYE", 21));
    assert!(rig.ended().is_some());
    rig.told();
    rig.pbx(&dialog.request("BYE", 22));
    assert_eq!(rig.told(), ["481"], "the call is over");
    rig.assert_empty();
}

#[test]
fn merged_requests_are_refused() {
    let mut rig = Rig::trunk();
    rig.pbx(&Text::invite());
    rig.pbx(&Text::invite().branch("other-path"));
    assert_eq!(rig.told(), ["100", "482"]);
    let call = rig.offered();
    rig.command(Command::Answer { call, rtp: RTP.parse().unwrap() });
    assert_eq!(rig.told(), ["200"], "the first INVITE can still be answered");
}

#[test]
fn responses_go_to_the_source_of_the_request() {
    let mut rig = Rig::trunk();
    let text = Text::new("OPTIONS", 1).render();
    rig.feed("10.0.0.2:6000", &text);
    rig.feed("10.0.0.2:6000", &text.replace(";rport", ";x").replace("OPTIONS;", "two;"));
    let places: Vec<String> = rig.sent_to().into_iter().map(|(to, _)| to).collect();
    assert_eq!(
        places,
        ["10.0.0.2:6000", "10.0.0.2:5060"],
        "without rport, the response goes to the Via's port"
    );
}

#[test]
fn a_branch_without_the_magic_cookie_is_matched_by_other_fields() {
    let mut rig = Rig::trunk();
    let invite = Text { branch: "1".to_owned(), ..Text::invite() };
    rig.pbx(&invite);
    rig.pbx(&invite);
    rig.offered();
    assert_eq!(rig.told(), ["100", "100"]);
    rig.pbx(&Text { branch: "1".to_owned(), ..Text::new("CANCEL", 10) });
    assert_eq!(rig.told(), ["200", "487"]);
    rig.pbx(&Text { branch: "1".to_owned(), ..Text::new("ACK", 10) });
    rig.wait(5.1);
    assert_eq!(rig.told(), [""; 0]);
    rig.assert_empty();
}

#[test]
fn refused_requests_of_all_methods_are_reported() {
    let mut rig = Rig::trunk();
    let dialog = rig.up();
    let table = [
        (dialog.request("INFO", 11).body("text/plain", "x"), 415),
        (dialog.request("INFO", 12).body("application/dtmf", "x"), 400),
        (dialog.request("UPDATE", 13).body("text/plain", "x"), 415),
        (dialog.request("UPDATE", 14).sdp(&sdp(4000, "sendrecv").replace("AVP 0", "AVP 18")), 488),
        (dialog.request("OPTIONS", 15).line("Require: x"), 420),
        (dialog.request("REFER", 16), 405),
        (Text::new("OPTIONS", 17).line("CSeq: 1 OPTIONS"), 400),
        (Text::new("MESSAGE", 18), 405),
        (Text::new("SUBSCRIBE", 19), 405),
        (Text::new("BYE", 20).tagged("old"), 481),
    ];
    for (request, code) in table {
        rig.feed(PBX, &request.render().replacen("Max-Forwards: 70\r\n", "", 1));
        assert_eq!(rig.told(), [code.to_string()]);
        let events = rig.events();
        let [Event::Refused(refused)] = &events[..] else { panic!("{code}: {events:?}") };
        assert_eq!((refused.method, refused.code), (Some(request.method), Some(code)));
    }
}
