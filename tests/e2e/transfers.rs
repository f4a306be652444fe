//! Transfers: what the caller hears, which replies the AI gets, and what Asterisk has afterwards.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::ai::{Ai, Plan};
use crate::ari;
use crate::asterisk::Asterisk;
use crate::bridge::Bridge;
use crate::caller::Caller;
use crate::fixture::{Lab, Number};
use crate::{Pbx, assert_eventually, assert_no_channels, block_on};

pub const SECOND: Duration = Duration::from_secs(1);

/// The lab's extensions, as targets of transfers.
const TARGETS: &str = "extensions = [\"6XX\"]\ntargets = { echo = \"services,600,1\" }";

/// One PBX in one mode, with a bridge whose AI follows a plan.
pub struct Scene {
    pub asterisk: Asterisk,
    pub bridge: Bridge,
    /// The bridge's configuration.
    config: String,
    pub ai: Ai,
    extension: &'static str,
    /// Keeps the addresses of SIP mode.
    _number: Option<Number>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Sip(Pbx),
    Ari(u8, u8),
}

pub const MODES: [Mode; 5] = [
    Mode::Sip(Pbx::Sip16),
    Mode::Sip(Pbx::Pjsip16),
    Mode::Sip(Pbx::Pjsip22),
    Mode::Ari(16, 140),
    Mode::Ari(22, 141),
];

impl Mode {
    async fn scene(self, orders: &[(usize, Value)]) -> Scene {
        self.scene_with(Plan { orders: orders.to_vec(), ..Plan::default() }, "").await
    }

    /// Starts a scene with further tables of the configuration.
    pub async fn scene_with(self, plan: Plan, tables: &str) -> Scene {
        let ai = Ai::start(plan).await;
        match self {
            Mode::Sip(pbx) => {
                let lab = Lab::start(pbx);
                let mut setup = lab.setup(&ai.url);
                setup.tables = tables.to_owned();
                setup.sip_keys = format!("[pbx.main.transfer]\n{TARGETS}\n");
                let bridge = Bridge::registered(&setup);
                let Lab { asterisk, number, .. } = lab;
                let (extension, number) = (pbx.extension(), Some(number));
                let config = setup.config();
                Scene { asterisk, bridge, config, ai, extension, _number: number }
            }
            Mode::Ari(version, n) => {
                let asterisk = ari::start(version, n);
                let config = format!(
                    "{}\n[pbx.main.transfer]\ncontext = \"services\"\n{TARGETS}\n",
                    ari::config(&ai.url, "set_variables = [\"lead_*\"]", tables)
                );
                let bridge = ari::bridge(&config);
                Scene { asterisk, bridge, config, ai, extension: "8010", _number: None }
            }
        }
    }
}

/// The frames of the shipped prompt that the caller has heard, which has been transcoded if the
/// caller's law is another.
pub fn sorry(caller: &Caller) -> usize {
    let prompt = include_bytes!("../../src/call/assets/sorry.ulaw");
    let prompt: HashSet<&[u8]> = prompt.chunks(160).collect();
    let is_loud = |payload: &[u8]| payload.iter().any(|sample| *sample != payload[0]);
    let frames = caller.heard.iter().map(|heard| &heard.samples[..]);
    frames.filter(|payload| prompt.contains(payload) && is_loud(payload)).count()
}

fn transfer(id: &str, body: Value) -> Value {
    json!({"event": "transfer", "id": id, "transfer": body})
}

impl Scene {
    pub async fn call(&self) -> Caller {
        let to = self.asterisk.sip_addr();
        let mut caller = Caller::dial("127.0.9.1", to, self.extension, 1, u32::MAX).await;
        caller.answered().await;
        caller
    }

    /// Waits for the last reply to an order of the first call, and returns all statuses and the
    /// reason.
    async fn replied(
        &self,
        caller: &mut Caller,
        id: &str,
        limit: Duration,
    ) -> (Vec<String>, String) {
        self.replied_in(0, caller, id, limit).await
    }

    async fn replied_in(
        &self,
        call: usize,
        caller: &mut Caller,
        id: &str,
        limit: Duration,
    ) -> (Vec<String>, String) {
        let last = |ai: &Ai| {
            let stream = ai.streams().into_iter().nth(call).unwrap_or_default();
            let (statuses, reason) = stream.replies(id);
            let over = statuses.last().is_some_and(|s| s == "done" || s == "failed");
            over.then_some((statuses, reason))
        };
        for _ in 0..limit.as_millis() / 50 {
            if let Some(replies) = last(&self.ai) {
                return replies;
            }
            caller.wait(SECOND / 20).await;
        }
        panic!("no reply to {id}: {:?}\n{}", self.ai.streams()[call].own, self.bridge.log());
    }

    /// Asserts that the AI hears the caller again, and ends the call.
    async fn is_given_back(&self, mut caller: Caller, case: &str) {
        let heard = self.ai.streams()[0].numbers(1).len();
        caller.wait(SECOND).await;
        let more = self.ai.streams()[0].numbers(1).len() - heard;
        assert!(more > 40, "{case}: {more} frames\n{}", self.bridge.log());
        caller.hang_up().await;
        assert_no_channels(&self.asterisk);
    }
}

/// Waits until the caller hears the numbered audio of its own that was sent within `time`.
async fn hears_the_echo(caller: &mut Caller, time: Duration) -> bool {
    let before = caller.numbers(1).last().copied().unwrap_or(0);
    let sent = caller.sent.last().copied().unwrap_or(0);
    let newest = before.max(sent);
    caller.until(time, |c| c.numbers(1).last().is_some_and(|n| *n > newest)).await
}

/// How long the pair talks after the bridge was killed.
fn aftermath() -> Duration {
    let seconds = std::env::var("AFTERMATH").ok().and_then(|s| s.parse().ok());
    Duration::from_secs(seconds.unwrap_or(3))
}

async fn pair_survives(mode: Mode, body: Value, expected: &[&str]) {
    let mut scene = mode.scene(&[(50, transfer("t", body.clone()))]).await;
    let mut caller = scene.call().await;
    let (statuses, _) = scene.replied(&mut caller, "t", 10 * SECOND).await;
    assert_eq!(statuses, expected, "{mode:?} {body}\n{}", scene.bridge.log());
    scene.bridge.kill();
    assert!(hears_the_echo(&mut caller, 2 * SECOND).await, "{mode:?} {body}: not joined");
    // the next process removes what the killed one left, but not the pair
    scene.bridge = Bridge::run(&scene.config);
    caller.wait(aftermath()).await;
    assert!(hears_the_echo(&mut caller, 2 * SECOND).await, "{mode:?} {body}: cut");
    caller.hang_up().await;
    assert_no_channels(&scene.asterisk);
}

#[test]
fn after_a_transfer_the_pair_talks_without_us() {
    block_on(async {
        for mode in MODES {
            let ringing = ["accepted", "ringing", "answered", "done"];
            pair_survives(mode, json!({"to": "610"}), &ringing).await;
            let plain = json!({"to": "echo", "onFail": "hangup"});
            pair_survives(mode, plain, &["accepted", "done"]).await;
        }
    });
}

/// Asterisk finds the two halves of a Local channel in an order that differs from call to call.
#[test]
fn every_transfer_in_ari_mode_joins_the_caller_with_the_target() {
    block_on(async {
        for mode in [Mode::Ari(16, 140), Mode::Ari(22, 141)] {
            let scene = mode.scene(&[(50, transfer("t", json!({"to": "600"})))]).await;
            for call in 0..6 {
                let mut caller = scene.call().await;
                let (statuses, _) = scene.replied_in(call, &mut caller, "t", 10 * SECOND).await;
                assert_eq!(statuses.last().map(String::as_str), Some("done"), "{mode:?} {call}");
                let joined = hears_the_echo(&mut caller, 2 * SECOND).await;
                assert!(joined, "{mode:?}: call {call} is not joined\n{}", scene.bridge.log());
                caller.hang_up().await;
                assert_no_channels(&scene.asterisk);
            }
        }
    });
}

/// The shipped snippets send the caller where callers go without the AI.
#[test]
fn a_caller_whose_target_hung_up_on_the_way_is_not_cut_off() {
    let snippets = [
        ("asterisk", "trunkless-join@trunkless"),
        ("freepbx", "trunkless-join@trunkless"),
        ("vicidial", "trunkless-join@default"),
    ];
    for (dialplan, snippet) in snippets {
        for version in [16, 22] {
            let vars = [("DROPIN", "ari"), ("DIALPLAN", dialplan)];
            let asterisk = Asterisk::start_with(version, "e2e-142", "127.0.142.1", &vars);
            asterisk.cli("dialplan set global TRUNKLESS_PEER trunkless-trunkless-t-1-0000000000-1");
            asterisk.cli(&format!("channel originate Local/{snippet} application Wait 2"));
            let is_taken = || !asterisk.humans().is_empty();
            assert_eventually(is_taken, || format!("{dialplan} {version}: no human"));
        }
    }
}

#[test]
fn a_transfer_that_fails_gives_the_caller_back_with_the_reason() {
    block_on(async {
        for mode in MODES {
            for (to, reason) in [("611", "busy"), ("612", "no_answer"), ("699", "no_such_target")] {
                let body = json!({"to": to, "timeout": 2});
                let scene = mode.scene(&[(50, transfer("t", body))]).await;
                let mut caller = scene.call().await;
                let (statuses, why) = scene.replied(&mut caller, "t", 10 * SECOND).await;
                assert_eq!(statuses.last().map(String::as_str), Some("failed"), "{mode:?} {to}");
                assert_eq!(why, reason, "{mode:?} {to}: {statuses:?}\n{}", scene.bridge.log());
                scene.is_given_back(caller, &format!("{mode:?} {to}")).await;
            }
        }
    });
}

#[test]
fn an_attended_transfer_is_completed_or_cancelled_by_the_ai() {
    block_on(async {
        for mode in MODES {
            let attended = json!({"to": "600", "type": "attended"});
            let complete = transfer("c", json!({"action": "complete"}));
            let orders = [(50, transfer("t", attended.clone())), (150, complete)];
            let mut scene = mode.scene(&orders).await;
            let mut caller = scene.call().await;
            let (statuses, _) = scene.replied(&mut caller, "t", 10 * SECOND).await;
            let expected = ["accepted", "answered", "done"];
            assert_eq!(statuses, expected, "{mode:?}\n{}", scene.bridge.log());
            scene.bridge.kill();
            assert!(hears_the_echo(&mut caller, 2 * SECOND).await, "{mode:?}: not joined");
            scene.bridge = Bridge::run(&scene.config);
            caller.wait(2 * SECOND).await;
            assert!(hears_the_echo(&mut caller, 2 * SECOND).await, "{mode:?}: cut");
            caller.hang_up().await;
            assert_no_channels(&scene.asterisk);

            let cancel = transfer("c", json!({"action": "cancel"}));
            let scene = mode.scene(&[(50, transfer("t", attended)), (150, cancel)]).await;
            let mut caller = scene.call().await;
            let (_, why) = scene.replied(&mut caller, "t", 10 * SECOND).await;
            assert_eq!(why, "cancelled", "{mode:?}");
            scene.is_given_back(caller, &format!("{mode:?}")).await;
        }
    });
}

#[test]
fn a_target_that_hangs_up_during_the_consultation_gives_the_caller_back() {
    block_on(async {
        for mode in MODES {
            let attended = json!({"to": "613", "type": "attended"});
            let scene = mode.scene(&[(50, transfer("t", attended))]).await;
            let mut caller = scene.call().await;
            let (_, why) = scene.replied(&mut caller, "t", 10 * SECOND).await;
            assert_eq!(why, "target_hung_up", "{mode:?}\n{}", scene.bridge.log());
            scene.is_given_back(caller, &format!("{mode:?}")).await;
        }
    });
}

/// The way down of every caller in the next tests.
const LADDER: &str = "[calls]\non_ai_failure = [\"play:sorry\", \"transfer:echo\", \"hangup\"]\n";

#[test]
fn a_caller_whose_ai_dies_hears_a_prompt_and_gets_a_human() {
    block_on(async {
        for mode in MODES {
            let dies = Plan { drop_after: Some(50), ..Plan::default() };
            let scene = mode.scene_with(dies, LADDER).await;
            let mut caller = scene.call().await;
            let died = |scene: &Scene| !scene.bridge.lines("AI").is_empty();
            while !died(&scene) {
                caller.wait(SECOND / 50).await;
            }
            let told = caller.until(SECOND / 5, |c| sorry(c) > 0).await;
            assert!(told, "{mode:?}: no prompt\n{}", scene.bridge.log());
            assert!(hears_the_echo(&mut caller, 10 * SECOND).await, "{mode:?}: no human");
            assert!(sorry(&caller) > 100, "{mode:?}: {} frames of the prompt", sorry(&caller));
            caller.hang_up().await;
            assert_no_channels(&scene.asterisk);
        }
    });
}

#[test]
fn a_caller_who_cannot_be_taken_gets_a_human() {
    block_on(async {
        for mode in MODES {
            let ladder = format!("{LADDER}max = 1\n");
            let scene = mode.scene_with(Plan::default(), &ladder).await;
            let mut first = scene.call().await;
            let mut second = scene.call().await;
            assert!(hears_the_echo(&mut second, 5 * SECOND).await, "{mode:?}: no human");
            let refused = scene.bridge.lines("call refused");
            assert_eq!(refused.len(), 1, "{mode:?}\n{}", scene.bridge.log());
            assert_eq!(scene.ai.streams().len(), 1, "{mode:?}");
            for caller in [&mut first, &mut second] {
                caller.hang_up().await;
            }
            assert_no_channels(&scene.asterisk);
        }
    });
}
