//! Released software for other carriers than Twilio on calls through a real Asterisk: Pipecat's
//! serializers for Vonage, Telnyx, Plivo and Exotel, Plivo's SDK, and the SDK of jambonz.

use std::time::Duration;

use trunkless::peer::pattern;
use trunkless::peer::phone::{Keys, PhoneCommand};

use crate::bridge::Bridge;
use crate::caller::Caller;
use crate::examples::Program;
use crate::fixture::Lab;
use crate::{Pbx, assert_no_channels, block_on};

const SECOND: Duration = Duration::from_secs(1);

/// Waits until the bot has printed a line that contains a text.
async fn printed(caller: &mut Caller, bot: &Program, text: &str) {
    for _ in 0..100 {
        if bot.log().contains(text) {
            return;
        }
        caller.wait(SECOND / 20).await;
    }
    panic!("no \"{text}\" in:\n{}", bot.log());
}

/// True if the frame is the same after linear audio, which has only one zero.
fn survives(index: u32) -> bool {
    !pattern::frame(1, index).contains(&0x7f)
}

/// Calls the bot, which plays the caller's audio back: what is heard must be what was said, byte
/// for byte. Presses `keys`, each with what the bot prints then. The last one ends the call.
async fn call(lab: &Lab, bot: &Program, dialect: &str, lines: &str, keys: &[(char, &str)]) {
    let mut setup = lab.setup(&format!("ws://{}/{dialect}", bot.address));
    setup.tables = format!("[pbx.main.ai]\ndialect = \"{dialect}\"\n{lines}");
    let bridge = Bridge::registered(&setup);
    let mut caller = lab.dial(u32::MAX).await;
    caller.answered().await;
    let enough = |caller: &Caller| caller.numbers(1).len() >= 25;
    assert!(caller.until(8 * SECOND, enough).await, "{dialect}: {:?}", caller.numbers(1));
    let heard = caller.numbers(1);
    let all = heard[0]..=heard[heard.len() - 1];
    assert_eq!(heard, all.filter(|n| survives(*n)).collect::<Vec<u32>>(), "{dialect}");
    for (key, expected) in keys {
        caller.command(PhoneCommand::Press(*key, Keys::Rtp));
        printed(&mut caller, bot, &format!("key {key}")).await;
        printed(&mut caller, bot, expected).await;
    }
    assert!(caller.until(2 * SECOND, |c| c.ended.is_some()).await, "{dialect}: still up");
    assert_eq!(bridge.lines("reason=\"ai_hangup\"").len(), 1, "{}", bridge.log());
}

#[test]
fn pipecat_serves_calls_of_its_carriers() {
    block_on(async {
        let lab = Lab::start(Pbx::Pjsip22);
        let bot = Program::start("tests/e2e/examples/dialects.py", &[]);
        let cleared = r#"l16 got {"event": "websocket:cleared"}"#;
        let notified = r#"l16 got {"event": "websocket:notify", "payload": {"name": "m"}}"#;
        call(&lab, &bot, "l16", "", &[('1', cleared), ('2', notified), ('9', "l16 closed 1000")])
            .await;
        let played = r#""event": "playedStream""#;
        let keys = [('1', r#""event": "clearedAudio""#), ('2', played), ('9', "plivo closed 1000")];
        call(&lab, &bot, "plivo", "", &keys).await;
        for dialect in ["telnyx", "exotel"] {
            let marked = format!(r#"{dialect} got {{"event": "mark""#);
            let closed = format!("{dialect} closed 1000");
            call(&lab, &bot, dialect, "", &[('2', &marked), ('9', &closed)]).await;
        }
        for dialect in ["telnyx", "exotel", "plivo"] {
            let numbers = if dialect == "plivo" { "None None" } else { "5551234 ai" };
            let detected = format!("detected {dialect} {dialect} {numbers}");
            assert!(bot.log().contains(&detected), "no {detected:?} in:\n{}", bot.log());
        }
        assert!(!bot.log().contains("error"), "{}", bot.log());
        assert_no_channels(&lab.asterisk);
    });
}

#[test]
fn jambonzs_sdk_serves_calls() {
    block_on(async {
        let lab = Lab::start(Pbx::Pjsip22);
        let bot = Program::node("tests/e2e/examples/jambonz.mjs", "@jambonz/sdk");
        let keys = [
            ('1', "key 1"),
            ('2', "mark m playout"),
            ('3', "mark n cleared"),
            ('9', "closed 1000"),
        ];
        let subprotocol = "subprotocol = \"audio.drachtio.org\"\n";
        call(&lab, &bot, "jambonz", subprotocol, &keys).await;
        let connected = " 8000 5551234 ai mono audio.drachtio.org\n";
        assert!(bot.log().contains(connected), "{}", bot.log());
        assert_no_channels(&lab.asterisk);
    });
}
