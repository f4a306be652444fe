//! Released client libraries act on calls through a real Asterisk: Twilio's SDK and Pipecat.

use std::time::{Duration, Instant};

use trunkless::stream::dialect::sid;

use crate::ai::Plan;
use crate::bridge::Bridge;
use crate::caller::Caller;
use crate::dialout;
use crate::examples::Program;
use crate::fixture::Lab;
use crate::transfers::Mode;
use crate::{Pbx, assert_no_channels, block_on};

const SECOND: Duration = Duration::from_secs(1);
const TOKEN: &str = "a-token-for-the-tests";

#[test]
fn twilios_sdk_and_pipecat_end_and_transfer_calls() {
    block_on(async {
        let pbx = Pbx::Pjsip22;
        let lab = Lab::start(pbx);
        let api = format!("{}:8072", lab.address(2));
        let actions = "sdk_hangup sdk_transfer pipecat_hangup pipecat_transfer";
        let environment = [
            ("API", format!("http://{api}")),
            ("TOKEN", TOKEN.to_owned()),
            ("ACTIONS", actions.to_owned()),
        ];
        let bot = Program::start("tests/e2e/examples/clients.py", &environment);
        let mut setup = lab.setup(&format!("ws://{}", bot.address));
        setup.tables = format!("[control]\nlisten = \"{api}\"\ntokens.app.token = \"{TOKEN}\"\n");
        setup.sip_keys = "[pbx.main.transfer]\nextensions = [\"6XX\"]\n".to_owned();
        let bridge = Bridge::registered(&setup);
        for (n, action) in actions.split(' ').enumerate() {
            let to = lab.asterisk.sip_addr();
            let mut caller = Caller::dial("127.0.9.1", to, pbx.extension(), 1, u32::MAX).await;
            caller.answered().await;
            let done = format!("closed {action}");
            let closed = |bot: &Program| bot.log().contains(&done);
            for _ in 0..200 {
                if closed(&bot) {
                    break;
                }
                caller.wait(SECOND / 20).await;
            }
            assert!(closed(&bot), "{action}:\n{}\n{}", bot.log(), bridge.log());
            if action.ends_with("hangup") {
                assert!(caller.until(2 * SECOND, |c| c.ended.is_some()).await, "{action}");
            } else {
                let newest = caller.sent.last().copied().unwrap_or(0);
                let echo = |c: &Caller| c.numbers(1).last().is_some_and(|heard| *heard > newest);
                assert!(caller.until(3 * SECOND, echo).await, "{action}: no echo");
                caller.hang_up().await;
            }
            let reason = if action.ends_with("hangup") { "api_hangup" } else { "transferred" };
            assert_eq!(bridge.lines(&format!("reason=\"{reason}\"")).len(), n / 2 + 1, "{action}");
        }
        for (text, count) in [
            ("fetched True in-progress 5551234 True", 2),
            ("wrong token 401 20003", 2),
            ("wrong call 404 20404", 2),
            ("wrong TwiML 400 12100", 2),
            ("wrong target 403 21215", 2),
            ("updated completed", 1),
            ("again True", 1),
            ("redirected 400 21220", 1),
            ("updated in-progress", 1),
            ("result done", 1),
        ] {
            assert_eq!(bot.log().matches(text).count(), count, "{text}:\n{}", bot.log());
        }
        assert_no_channels(&lab.asterisk);
    });
}

#[test]
fn twilios_sdk_places_a_call_and_accepts_its_status_callbacks() {
    block_on(async {
        let mode = Mode::Sip(Pbx::Pjsip22);
        let (api, callbacks) = (dialout::api(), dialout::api());
        let more = format!("callback_hosts = [\"{callbacks}\"]");
        let scene = mode.scene_with(Plan::default(), &dialout::tables(api, mode, &more)).await;
        let environment = [
            ("API", format!("http://{api}")),
            ("TOKEN", dialout::TOKEN.to_owned()),
            ("ACCOUNT", sid("AC", "main")),
            ("STREAM", scene.ai.url.clone()),
            ("PORT", callbacks.port().to_string()),
        ];
        let program = Program::start("tests/e2e/examples/calls_create.py", &environment);
        let expected = [
            "premium 403 21215",
            "digits 400 20001",
            "created queued outbound-api 610",
            "callback initiated True 610",
            "callback ringing True 610",
            "callback in-progress True 610",
            "updated completed",
            "callback completed True 610",
            "asked queued True 614",
            "detected human True",
            "callback completed True 614",
        ];
        let begin = Instant::now();
        while !expected.iter().all(|line| program.log().contains(line)) {
            let late = begin.elapsed() > 15 * SECOND;
            assert!(!late, "{}\n{}", program.log(), scene.bridge.log());
            tokio::time::sleep(SECOND / 20).await;
        }
        assert_eq!(scene.ai.streams()[0].parameters["lead"], "7");
        assert_no_channels(&scene.asterisk);
    });
}
