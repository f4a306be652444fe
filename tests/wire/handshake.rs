//! Everything the AI receives before the first frame: header fields of the handshake, ids and
//! parameters.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::json;
use sha1::Sha1;

use crate::bridge::Rig;

#[tokio::test]
async fn the_handshake_is_signed_and_has_the_configured_headers() {
    let config = "[ai]\nauth_token = \"token\"\nheaders = { Authorization = \"Bearer x\" }";
    let rig = Rig::new(config).await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.invite().await;
    let handshake = rig.ai.handshake().await.allow(&["x-twilio-signature", "authorization"]);
    assert_eq!(handshake.get("Authorization"), Some("Bearer x"));
    let mut mac = Hmac::<Sha1>::new_from_slice(b"token").unwrap();
    mac.update(format!("ws://{}/media", rig.ai.address).as_bytes());
    let expected = BASE64.encode(mac.finalize().into_bytes());
    assert_eq!(handshake.get("X-Twilio-Signature"), Some(&*expected));
    let stream = handshake.open().await.started().await;
    call.answered().await;
    call.bye().await;
    stream.stopped().await;
}

#[tokio::test]
async fn the_parameters_name_caller_callee_and_headers() {
    let config = "[ai]\nparameters = { campaign = \"demo\", more = \"common\" }\n\
                  [pbx.main.ai]\nparameters = { more = \"own\" }";
    let rig = Rig::new(config).await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    let long = "é".repeat(600);
    call.headers = format!(
        "X-Lead-ID: 42\r\nx-quoted: a \"b\" \\c\r\nX-Long: {long}\r\nX-Empty: \r\n\
         X-Campaign: none\r\nX-From-Number: 1\r\nX-To-Number: 2\r\nX-PBX: 3\r\n\
         X-Sip-Call-ID: 4\r\nX-Lead_ID: 43\r\nDiversion: <sip:9@pbx>\r\n"
    );
    call.invite().await;
    let stream = rig.ai.stream().await;
    call.answered().await;
    let expected = json!({
        "from_number": "5550100",
        "from_name": "Alice",
        "to_number": "ai",
        "pbx": "main",
        "sip_call_id": call.id,
        "lead_id": "42",
        "quoted": "a \"b\" \\c",
        "long": "é".repeat(499),
        "X-Lead-ID": "42",
        "x-quoted": "a \"b\" \\c",
        "X-Long": "é".repeat(499),
        "X-Campaign": "none",
        "X-From-Number": "1",
        "X-To-Number": "2",
        "X-PBX": "3",
        "X-Sip-Call-ID": "4",
        "X-Lead_ID": "43",
        "campaign": "demo",
        "more": "own",
    });
    assert_eq!(stream.parameters, expected);
}

#[tokio::test]
async fn p_asserted_identity_names_the_caller() {
    let rig = Rig::new("[ai]\nx_headers = [\"X-Lead-ID\"]").await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.headers = "P-Asserted-Identity: \"Bob\" <sip:+15550177@pbx>\r\n\
                    X-Lead-ID: 42\r\nX-Secret: no\r\n"
        .to_owned();
    call.invite().await;
    let stream = rig.ai.stream().await;
    call.answered().await;
    let expected = json!({
        "from_number": "+15550177",
        "from_name": "Bob",
        "to_number": "ai",
        "pbx": "main",
        "sip_call_id": call.id,
        "lead_id": "42",
        "X-Lead-ID": "42",
    });
    assert_eq!(stream.parameters, expected);
}

#[tokio::test]
async fn a_caller_without_a_name_gets_none_from_a_header() {
    let rig = Rig::new("").await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.headers = "P-Asserted-Identity: <tel:+1-555-0177;phone-context=x>\r\n\
                    Privacy: id\r\nX-From-Name: Eve\r\nX-Privacy: none\r\n"
        .to_owned();
    call.invite().await;
    let stream = rig.ai.stream().await;
    call.answered().await;
    let expected = json!({
        "from_number": "+15550177",
        "to_number": "ai",
        "pbx": "main",
        "sip_call_id": call.id,
        "privacy": "id",
        "X-From-Name": "Eve",
        "X-Privacy": "none",
    });
    assert_eq!(stream.parameters, expected);
}

#[tokio::test]
async fn configured_header_fields_reach_the_ai() {
    let config = "[ai]\nx_headers = []\n\
        sip_headers = [\"diversion\", \"History-Info\", \"User-to-User\", \"s\", \"Missing\"]";
    let rig = Rig::new(config).await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    let long = "x".repeat(600);
    call.headers = format!(
        "Diversion: \"A, B\" <sip:1@pbx>;reason=no-answer\r\nHistory-Info: <sip:2@pbx>;index=1\r\n\
         HISTORY-INFO: <sip:3@pbx>;index=1.1\r\nUser-to-User: {long}\r\ns: help\r\n\
         Authorization: Digest secret\r\nX-Diversion: no\r\n"
    );
    call.invite().await;
    let stream = rig.ai.stream().await;
    call.answered().await;
    let value = |name: &str| stream.parameters[name].as_str().map(str::to_owned);
    assert_eq!(value("diversion").unwrap(), "\"A, B\" <sip:1@pbx>;reason=no-answer");
    assert_eq!(value("history_info").unwrap(), "<sip:2@pbx>;index=1, <sip:3@pbx>;index=1.1");
    assert_eq!(value("user_to_user").unwrap(), long[..499]);
    assert_eq!(value("subject").unwrap(), "help");
    assert_eq!((value("missing"), value("X-Diversion")), (None, None));
    assert!(!stream.parameters.to_string().contains("secret"));
}

#[tokio::test]
async fn the_account_sid_may_be_configured() {
    let sid = "AC0123456789abcdef0123456789abcdef";
    let rig = Rig::new(&format!("[ai]\naccount_sid = \"{sid}\"")).await;
    let (_call, stream) = rig.call().await;
    assert_eq!(stream.account_sid, sid);
}

/// The Connection field is a list, to which proxies add their own words.
#[tokio::test]
async fn connection_may_hold_other_words_besides_upgrade() {
    let rig = Rig::new("").await;
    for lines in [
        "Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n",
        "upgrade: WebSocket\r\nconnection: UPGRADE, close\r\n",
        "Connection: keep-alive\r\nUpgrade: websocket\r\nConnection: upgrade\r\n",
    ] {
        let mut call = rig.pbx.call(&rig.bridge).await;
        call.invite().await;
        let stream = rig.ai.handshake().await.open_with(lines).await.started().await;
        call.answered().await;
        call.say(0..5).await;
        assert_eq!(stream.heard(5).await, [0, 1, 2, 3, 4], "{lines:?}");
        call.bye().await;
        stream.stopped().await;
        assert_eq!(rig.bridge.end().await, "caller_hangup");
    }
}

#[tokio::test]
async fn a_handshake_that_does_not_upgrade_is_refused() {
    let rig = Rig::new("").await;
    for lines in [
        "Upgrade: websocket\r\nConnection: keep-alive\r\n",
        "Upgrade: h2c\r\nConnection: keep-alive, Upgrade\r\n",
    ] {
        let mut call = rig.pbx.call(&rig.bridge).await;
        call.invite().await;
        let opened = rig.ai.handshake().await.open_with(lines).await;
        assert_eq!(call.refused().await.code(), Some(503), "{lines:?}");
        drop(opened);
        assert_eq!(rig.bridge.end().await, "ai_unreachable");
    }
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.invite().await;
    rig.ai.handshake().await.open_wrongly().await;
    assert_eq!(call.refused().await.code(), Some(503), "another accept key");
    assert_eq!(rig.bridge.end().await, "ai_unreachable");
}
