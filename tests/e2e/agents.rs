//! The dialects of Deepgram and ElevenLabs against the vendors' released SDKs, on calls through a
//! real Asterisk.

use std::time::Duration;

use trunkless::peer::phone::{Keys, PhoneCommand};

use crate::bridge::Bridge;
use crate::caller::Caller;
use crate::examples::Program;
use crate::fixture::Lab;
use crate::{Pbx, assert_no_channels, block_on};

const SECOND: Duration = Duration::from_secs(1);

/// Waits until the agents have printed a text.
async fn printed(agents: &Program, caller: &mut Caller, bridge: &Bridge, text: &str) {
    for _ in 0..200 {
        let log = agents.log();
        assert!(!log.contains("failed "), "{log}\n{}", bridge.log());
        if log.contains(text) {
            return;
        }
        caller.wait(SECOND / 20).await;
    }
    panic!("no \"{text}\" in:\n{}\n{}", agents.log(), bridge.log());
}

#[test]
fn the_sdks_of_deepgram_and_elevenlabs_accept_each_message() {
    block_on(async {
        let pbx = Pbx::Pjsip22;
        let lab = Lab::start(pbx);
        let agents = Program::start("tests/e2e/examples/agents.py", &[]);
        let greeting = "greeting = \"Hello {from_number}\"";
        for (vendor, keys) in [
            ("deepgram", "url = \"ws://ADDRESS/v1/agent/converse\"\ndialect = \"deepgram-agent\""),
            (
                "elevenlabs",
                "url = \"ws://ADDRESS/v1/convai/conversation\"\ndialect = \"elevenlabs\"\n\
                 session = { agent_id = \"agent_1\" }",
            ),
        ] {
            let keys = keys.replace("ADDRESS", &agents.address);
            let ai = format!("[ai]\n{keys}\nauth_token = \"a-key\"\n{greeting}\n");
            let plain = lab.setup("ws://unused").config();
            let config = plain.replace("[ai]\nurl = \"ws://unused\"\n", &ai);
            let bridge = Bridge::run(&config);
            bridge.wait_for("registered pbx=\"main\"", 10 * SECOND);
            let to = lab.asterisk.sip_addr();
            let mut caller = Caller::dial("127.0.9.1", to, pbx.extension(), 1, u32::MAX).await;
            caller.answered().await;
            // the agent echoes the caller
            let heard = |c: &Caller| c.numbers(1).len() > 20;
            assert!(caller.until(5 * SECOND, heard).await, "{}", bridge.log());
            let press = "press\n";
            for _ in 0..200 {
                if agents.log().matches(press).count() == usize::from(vendor == "elevenlabs") + 1 {
                    break;
                }
                caller.wait(SECOND / 20).await;
            }
            for key in ['4', '2', '#'] {
                caller.command(PhoneCommand::Press(key, Keys::Rtp));
                caller.wait(SECOND / 4).await;
            }
            printed(&agents, &mut caller, &bridge, &format!("closed {vendor}")).await;
            assert!(caller.until(2 * SECOND, |c| c.ended.is_some()).await, "{vendor}");
            assert_eq!(bridge.ended("reason"), "ai_hangup");
            // audio from before the interruption is not heard
            assert!(!caller.heard.iter().any(|heard| heard.samples == [0x11; 160]), "{vendor}");
        }
        for (text, count) in [
            ("AgentV1Settings ok", 1),
            ("functions hang_up send_dtmf set_disposition", 1),
            ("AgentV1SendFunctionCallResponse ok", 2),
            ("result set_disposition done", 1),
            ("result look_up failed", 1),
            ("AgentV1InjectUserMessage ok", 1),
            ("ConversationInitiationClientDataRequestInput ok", 1),
            ("greeting Hello 5551234", 1),
            ("as the SDK's", 3),
            ("keys [keys pressed: 42#]", 2),
        ] {
            assert_eq!(agents.log().matches(text).count(), count, "{text}:\n{}", agents.log());
        }
        assert_no_channels(&lab.asterisk);
    });
}
