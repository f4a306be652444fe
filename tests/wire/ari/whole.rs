//! Complete calls of a Stasis application: start parameters, audio both ways, and how they end.

use std::time::Duration;

use serde_json::json;
use trunkless::media::g711;

use crate::ari::ask::Verb;
use crate::ari::rig::{APP, Rig};
use crate::ari::world::Channel;
use crate::media::assert_continuous;
use crate::stream::AGENT;

#[tokio::test]
async fn a_complete_call_has_all_start_parameters_and_exact_audio() {
    let config = "[pbx.main.ari]\nvariables = [\"CAMPCUST\", \"MISSING\"]\n\
                  [ai]\nparameters = { campaign = \"demo\" }";
    let rig = Rig::new(config).await;
    let variables = [("CAMPCUST".to_owned(), "DEMO".to_owned())].into();
    let caller = Channel { variables, ..Channel::caller() };
    rig.fake.world().enter("ai.1", APP, &["lead_id=42", "plain"], caller);
    let handshake = rig.ai.handshake().await;
    let media = rig.fake.external().await.media;
    // because Asterisk 16 is slow with channels that receive no audio
    media.until("silence", |h| h.is_silence()).await;
    assert_eq!(rig.fake.count(Verb::Answer, "ai.1"), 0);
    let stream = handshake.open().await.started().await;
    let expected = json!({
        "from_number": "5550100", "to_number": "8010", "sip_call_id": "3b3d57ca7af36a43@carrier",
        "pbx": "main",
        "context": "from-carrier", "exten": "8010", "channel_id": "ai.1",
        "channel_name": "PJSIP/carrier-0000000a", "lead_id": "42", "arg2": "plain",
        "campcust": "DEMO", "CAMPCUST": "DEMO", "campaign": "demo",
    });
    assert_eq!(stream.parameters, expected);
    let mut caller = rig.caller("ai.1").await;
    stream.play_frames(0..50).await;
    caller.say(0..50).await;
    assert_eq!(stream.heard(50).await, Vec::from_iter(0..50));
    assert_eq!(media.numbered(AGENT, 50).await, Vec::from_iter(0..50));
    let packets = media.packets();
    assert_continuous(&packets);
    assert!(packets.iter().all(|p| p.payload_type == 0 && p.from == caller.external.host));
    caller.hang_up();
    stream.stopped().await;
    let record = rig.bridge.record().await;
    assert_eq!(record.reason.label(), "caller_hangup");
    assert_eq!((record.summary.received.sequence.lost, record.summary.received.late()), (0, 0));
    rig.fake.is_clean(APP).await;
    assert_eq!(rig.fake.count(Verb::Answer, ""), 1);
}

/// The first argument of a name counts, and the caller's details cannot be overridden.
#[tokio::test]
async fn odd_arguments_make_a_readable_start() {
    let rig = Rig::new("").await;
    let (long, wide) = ("x".repeat(2000), "é".repeat(700));
    let args = [
        "a=1",
        "a=2",
        "from_number=1",
        "X-From-Number=1",
        "From-Name=Eve",
        "Lead-ID=7",
        "channel_id=x",
        "=",
        "b=",
        "",
        " c = d ",
        "\"\\\u{1}=\n",
        &format!("{long}={long}"),
        &format!("{wide}={wide}"),
    ];
    rig.fake.world().enter("ai.1", APP, &args, Channel::caller());
    let stream = rig.ai.stream().await;
    let has = |name: &str, value: &str| assert_eq!(stream.parameters[name], value);
    has("a", "1");
    has("from_number", "5550100");
    has("channel_id", "ai.1");
    has("c", " d ");
    has("arg8", "=");
    has("lead_id", "7");
    has("Lead-ID", "7");
    assert_eq!(stream.parameters.get("from_name"), None);
    has(&long[..256], &long[..499]);
    has(&"é".repeat(256), &"é".repeat(499));
    assert_eq!(stream.parameters.get("b"), None);
}

#[tokio::test]
async fn a_caller_answered_by_the_dialplan_is_not_answered_again() {
    let rig = Rig::new("[calls]\nringing = true").await;
    rig.fake.world().enter("ai.1", APP, &[], Channel { up: true, ..Channel::caller() });
    let stream = rig.ai.stream().await;
    let mut caller = rig.caller("ai.1").await;
    caller.say(0..5).await;
    assert_eq!(stream.heard(5).await, [0, 1, 2, 3, 4]);
    assert_eq!((rig.fake.count(Verb::Answer, ""), rig.fake.count(Verb::Ring, "")), (0, 0));
}

#[tokio::test]
async fn a_law_media_is_converted() {
    let rig = Rig::new("[pbx.main.ari]\nformat = \"alaw\"").await;
    let (caller, stream) = rig.call("ai.1").await;
    assert_eq!(rig.fake.asked(Verb::Media, "", 1).await.ask.get("format"), "alaw");
    // samples that survive conversion in either direction
    let mut tone = [0u8; 160];
    tone.iter_mut().enumerate().for_each(|(i, s)| *s = 0x80 + (i % 32) as u8);
    g711::mu_to_a(&mut tone);
    let a_law = tone;
    g711::a_to_mu(&mut tone);
    stream.play(&tone).await;
    let heard = caller.external.media.until("speech", |h| !h.is_silence()).await;
    assert_eq!((heard.payload_type, &heard.payload[..]), (8, &a_law[..]));
}

#[tokio::test]
async fn each_key_press_is_reported_once() {
    let rig = Rig::new("").await;
    let (caller, stream) = rig.call("ai.1").await;
    for digit in ["1", "1", "#", "5", "A"] {
        caller.press(digit);
    }
    stream.pressed("11#5A").await;
    stream.listen(100).await;
    assert_eq!(stream.digits(), "11#5A");
}

#[tokio::test]
async fn missing_rtp_is_tolerated_only_on_hold() {
    let rig = Rig::new("[calls]\nmedia_timeout = \"300ms\"").await;
    let (mut caller, stream) = rig.call("ai.1").await;
    caller.say(0..5).await;
    stream.hears(4).await;
    caller.hold(true);
    stream.listen(700).await;
    caller.hold(false);
    caller.say(5..10).await;
    assert_eq!(stream.heard(10).await, Vec::from_iter(0..10));
    stream.stopped().await;
    assert_eq!(rig.bridge.end().await, "media_timeout");
    caller.continued().await;
}

#[tokio::test]
async fn a_caller_who_is_transferred_is_left_alone() {
    let rig = Rig::new("").await;
    let (caller, stream) = rig.call("ai.1").await;
    rig.fake.world().leave("ai.1");
    stream.stopped().await;
    assert_eq!(rig.bridge.end().await, "transferred");
    rig.fake.is_clean(APP).await;
    for verb in [Verb::HangUp, Verb::Continue, Verb::SetVariable] {
        assert_eq!(rig.fake.count(verb, ""), 0, "{verb:?}");
    }
    assert!(rig.fake.world().channels.contains_key("ai.1"));
    // no RTP is sent after the caller left
    while !caller.external.media.is_quiet(Duration::from_millis(60)).await {}
}

#[tokio::test]
async fn removed_media_and_bridge_are_created_again_once() {
    let rig = Rig::new("").await;
    let (_caller, stream) = rig.call("ai.1").await;
    let media = rig.fake.world().media_of("ai.1").expect("external media");
    rig.fake.world().hang_up(&media);
    rig.fake.asked(Verb::AddMedia, "", 2).await;
    let mut caller = rig.caller("ai.1").await;
    caller.say(0..5).await;
    stream.play_frames(0..5).await;
    assert_eq!(stream.heard(5).await, [0, 1, 2, 3, 4]);
    assert_eq!(caller.external.media.numbered(AGENT, 5).await, [0, 1, 2, 3, 4]);
    let bridge = rig.fake.world().bridge_of("ai.1").expect("a bridge");
    rig.fake.world().remove_bridge(&bridge);
    // the first one was the trial at the start
    rig.fake.asked(Verb::Bridge, "", 3).await;
    let again = rig.fake.until("the caller is back", |w| w.bridge_of("ai.1")).await;
    assert_ne!(again, bridge);
    caller.say(5..10).await;
    assert_eq!(stream.heard(10).await, Vec::from_iter(0..10));
    rig.fake.world().remove_bridge(&again);
    stream.stopped().await;
    assert_eq!(rig.bridge.end().await, "pbx_error");
    caller.continued().await;
}
