//! Calls as VICIdial places them, through a real Asterisk 16: with chan_sip, chan_pjsip and in ARI
//! mode. Its API is a stand-in that does what VICIdial does: it takes the customer's channel away,
//! some time after it has accepted the order.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use wiremock::matchers::any;
use wiremock::{Mock, MockServer, Request, Respond, ResponseTemplate};

use crate::ai::{Ai, Plan};
use crate::asterisk::{Asterisk, Console};
use crate::bridge::Bridge;
use crate::caller::Caller;
use crate::fixture::Number;
use crate::{Pbx, ari, assert_eventually, assert_no_channels, block_on};

const SECOND: Duration = Duration::from_secs(1);
const CALLER: &str = "127.0.9.1";
/// VICIdial takes a customer away this long after it has accepted the order.
const CARRIED_OUT: Duration = Duration::from_millis(700);

/// How the dialler reaches the bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Sip,
    Pjsip,
    Ari,
}

const MODES: [Mode; 3] = [Mode::Sip, Mode::Pjsip, Mode::Ari];

impl Mode {
    fn extension(self, nth: u32) -> String {
        let prefix = match self {
            Mode::Pjsip => 740,
            Mode::Sip => 741,
            Mode::Ari => 742,
        };
        format!("{prefix}{nth:02}")
    }
}

fn call_id(nth: &str) -> String {
    format!("V12314561500004020{nth}")
}

/// An order, as the API received it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Order {
    call: String,
    stage: String,
    status: String,
}

/// The calls that VICIdial has, and the orders so far.
#[derive(Default)]
struct World {
    orders: Vec<Order>,
    /// The status of each call that is over for VICIdial.
    over: HashMap<String, String>,
}

struct Api {
    console: Console,
    world: Arc<Mutex<World>>,
}

impl Respond for Api {
    fn respond(&self, request: &Request) -> ResponseTemplate {
        let form = String::from_utf8_lossy(&request.body).into_owned();
        let value = |name: &str| {
            let mut all = form.split('&').filter_map(|pair| pair.split_once('='));
            let found = all.find(|(known, _)| *known == name);
            found.map(|(_, value)| value.to_owned()).unwrap_or_default()
        };
        let text = match &*value("function") {
            "ra_call_control" => self.control(value("value"), value("stage"), value("status")),
            "logged_in_agents" => self.agents(),
            "callid_info" => {
                let world = self.world.lock().unwrap();
                let status = world.over.get(&value("call_id")).map_or("QUEUE", |status| status);
                format!("call_id|campaign_id|status\n{}|AITEST|{status}\n", value("call_id"))
            }
            "lead_field_info" => "XFER".to_owned(),
            "update_log_entry" | "update_lead" => "SUCCESS: updated - x".to_owned(),
            _ => "ERROR: x LEAD NOT FOUND: x".to_owned(),
        };
        ResponseTemplate::new(200).set_body_string(text)
    }
}

impl Api {
    fn control(&self, call: String, stage: String, status: String) -> String {
        {
            let mut world = self.world.lock().unwrap();
            if world.over.contains_key(&call) {
                return format!("ERROR: no active call found - {call}");
            }
            world.over.insert(call.clone(), status.clone());
            world.orders.push(Order { call: call.clone(), stage: stage.clone(), status });
        }
        let (console, nth) = (self.console.clone(), call[18..].to_owned());
        std::thread::spawn(move || {
            std::thread::sleep(CARRIED_OUT);
            let Some(customer) = customer(&console, &nth) else { return };
            match stage.as_str() {
                "HANGUP" => console.run(&format!("channel request hangup {customer}")),
                _ => console.run(&format!("channel redirect {customer} services,600,1")),
            };
        });
        format!("SUCCESS: ra_call_control - 7001|{call}|")
    }

    /// One agent for each call that is not over.
    fn agents(&self) -> String {
        let world = self.world.lock().unwrap();
        let calls = (0..100).map(|nth| call_id(&format!("{nth:02}")));
        let calls = calls.filter(|call| !world.over.contains_key(call)).enumerate();
        let rows = calls.map(|(nth, call)| format!("{}|AITEST|8001|{call}\n", 7001 + nth));
        format!("user|campaign_id|session_id|callerid\n{}", rows.collect::<String>())
    }
}

/// The customer's channel: the one that dialled `74` and the mode, and ends in `nth`.
fn customer(console: &Console, nth: &str) -> Option<String> {
    let channels = console.run("core show channels concise");
    let of = |line: &&str| {
        let exten = line.split('!').nth(2).unwrap_or_default();
        line.starts_with("PJSIP/carrier") && exten.starts_with("74") && exten[3..] == *nth
    };
    channels.lines().find(of).and_then(|line| line.split('!').next()).map(str::to_owned)
}

struct Scene {
    mode: Mode,
    asterisk: Asterisk,
    config: String,
    bridge: Bridge,
    ai: Ai,
    world: Arc<Mutex<World>>,
    _number: Number,
    _server: MockServer,
    _directory: tempfile::TempDir,
}

/// A bridge as VICIdial's phone, or as its Stasis application. `ai_url` replaces that of the AI.
async fn scene(mode: Mode, plan: Plan, ai_url: Option<&str>) -> Scene {
    let (ai, number) = (Ai::start(plan).await, Number::claim());
    let asterisk = match mode {
        Mode::Sip => Pbx::Sip16.start(number.n),
        Mode::Pjsip => Pbx::Pjsip16.start(number.n),
        Mode::Ari => ari::start(16, number.n),
    };
    let (server, world) = (MockServer::start().await, Arc::<Mutex<World>>::default());
    let api = Api { console: asterisk.console(), world: world.clone() };
    Mock::given(any()).respond_with(api).mount(&server).await;
    let directory = tempfile::tempdir().expect("a folder");
    let tables = format!(
        "[pbx.main.vicidial]\nurl = \"{}\"\nuser = \"api\"\npassword = \"x\"\n\
         in_group = \"SALESLINE\"\ndirectory = {:?}\n\
         [pbx.main.transfer]\ntargets = {{ sales = \"ingroup:SALESLINE\" }}\n",
        server.uri(),
        directory.path()
    );
    let url = ai_url.unwrap_or(&ai.url);
    let config = match mode {
        Mode::Ari => ari::config(url, &tables, ""),
        _ => {
            let pbx = if mode == Mode::Sip { Pbx::Sip16 } else { Pbx::Pjsip16 };
            let mut setup = pbx.setup(&asterisk, number.n, url);
            setup.sip_keys = tables;
            setup.config()
        }
    };
    let bridge = start(mode, &config);
    Scene {
        mode,
        asterisk,
        config,
        bridge,
        ai,
        world,
        _number: number,
        _server: server,
        _directory: directory,
    }
}

fn start(mode: Mode, config: &str) -> Bridge {
    if mode == Mode::Ari {
        return ari::bridge(config);
    }
    let bridge = Bridge::run(config);
    bridge.wait_for("registered pbx=\"main\"", 20 * SECOND);
    bridge
}

impl Scene {
    async fn dial(&self, nth: u32) -> Caller {
        let extension = self.mode.extension(nth);
        let sip = self.asterisk.sip_addr();
        let mut caller = Caller::dial(CALLER, sip, &extension, nth, u32::MAX).await;
        caller.answered().await;
        caller
    }

    fn orders(&self) -> Vec<(String, String)> {
        let world = self.world.lock().unwrap();
        world.orders.iter().map(|order| (order.stage.clone(), order.status.clone())).collect()
    }

    /// Waits until the customer hears a human: the echo of what was said.
    async fn reaches_a_human(&self, caller: &mut Caller, nth: u32) {
        let said = caller.sent.last().copied().unwrap_or(0);
        let heard = |c: &Caller| c.numbers(nth).last().is_some_and(|n| *n > said);
        let log = self.bridge.log();
        assert!(caller.until(10 * SECOND, heard).await, "{:?} {nth}: {log}", self.mode);
    }

    /// Neither a voicemail nor the fallback had a customer, and no customer heard ring-back tone.
    fn assert_clean(&self) {
        for word in ["LAB-VOICEMAIL", "LAB-FALLBACK"] {
            assert_eq!(self.asterisk.verbose(word).len(), 0, "{:?}: {word}", self.mode);
        }
        assert!(!self.asterisk.log().contains(" is ringing"), "{:?}", self.mode);
        assert_no_channels(&self.asterisk);
    }
}

/// The AI hangs up, its socket closes at once: VICIdial ends the call.
#[test]
fn the_customer_is_released_by_vicidial() {
    block_on(async {
        for mode in MODES {
            let orders =
                vec![(60, json!({"event": "disposition", "disposition": {"status": "NI"}}))];
            let plan = Plan { orders, close_after: Some(100), ..Plan::default() };
            let scene = scene(mode, plan, None).await;
            let mut caller = scene.dial(27).await;
            assert!(caller.until(10 * SECOND, |c| c.ended.is_some()).await, "{mode:?}");
            assert_eq!(scene.orders(), [("HANGUP".to_owned(), "NI".to_owned())], "{mode:?}");
            assert_eq!(scene.bridge.ended("reason"), "ai_hangup", "{mode:?}");
            let setup: f64 = scene.bridge.ended("setup_ms").parse().expect("a number");
            assert!(setup < 100.0, "{mode:?}: answered after {setup} ms");
            assert_eq!(scene.ai.streams()[0].parameters["lead_id"], "402027");
            scene.assert_clean();
        }
    });
}

/// The AI transfers the customer, and closes its socket at once.
#[test]
fn the_customer_is_transferred_by_vicidial() {
    block_on(async {
        for mode in MODES {
            let body = json!({"to": "sales", "status": "WARM"});
            let orders = vec![(60, json!({"event": "transfer", "transfer": body}))];
            let plan = Plan { orders, close_after: Some(62), ..Plan::default() };
            let scene = scene(mode, plan, None).await;
            let mut caller = scene.dial(27).await;
            assert_eventually(|| !scene.orders().is_empty(), || scene.bridge.log());
            scene.reaches_a_human(&mut caller, 27).await;
            let order = ("INGROUPTRANSFER".to_owned(), "WARM".to_owned());
            assert_eq!(scene.orders(), [order], "{mode:?}");
            assert_eq!(scene.bridge.ended("reason"), "transferred", "{mode:?}");
            caller.hang_up().await;
            scene.assert_clean();
        }
    });
}

/// No AI is there: the customer goes to a human without our answer, and never to voicemail.
#[test]
fn the_customer_of_a_dead_ai_goes_to_a_human() {
    block_on(async {
        for mode in MODES {
            let scene = scene(mode, Plan::default(), Some("ws://127.0.0.1:9")).await;
            let mut caller = scene.dial(27).await;
            scene.reaches_a_human(&mut caller, 27).await;
            let order = ("INGROUPTRANSFER".to_owned(), "AIERR".to_owned());
            assert_eq!(scene.orders(), [order], "{mode:?}");
            assert!(scene.bridge.lines("call answered").is_empty(), "{mode:?}");
            caller.hang_up().await;
            scene.assert_clean();
        }
    });
}

/// The AI dies in mid-call: the customer goes to a human.
#[test]
fn the_customer_of_an_ai_that_dies_goes_to_a_human() {
    block_on(async {
        for mode in MODES {
            let plan = Plan { drop_after: Some(100), ..Plan::default() };
            let scene = scene(mode, plan, None).await;
            let mut caller = scene.dial(27).await;
            assert!(caller.until(10 * SECOND, |_| !scene.orders().is_empty()).await);
            scene.reaches_a_human(&mut caller, 27).await;
            let order = ("INGROUPTRANSFER".to_owned(), "AIERR".to_owned());
            assert_eq!(scene.orders(), [order], "{mode:?}");
            caller.hang_up().await;
            scene.assert_clean();
        }
    });
}

/// Another program hangs up or transfers the customer through VICIdial.
#[test]
fn the_end_reason_is_that_of_vicidial() {
    block_on(async {
        for mode in MODES {
            let scene = scene(mode, Plan::default(), None).await;
            for (nth, command, status, reason) in [
                (27, "channel request hangup", "NI", "api_hangup"),
                (28, "channel redirect", "RAXFER", "transferred"),
                (29, "", "XFER", "caller_hangup"),
            ] {
                let mut caller = scene.dial(nth).await;
                let heard = |ai: &Ai| ai.streams().last().is_some_and(|s| s.frames.len() > 30);
                assert!(caller.until(5 * SECOND, |_| heard(&scene.ai)).await, "{mode:?}");
                let id = call_id(&nth.to_string());
                scene.world.lock().unwrap().over.insert(id, status.to_owned());
                let console = scene.asterisk.console();
                let channel = customer(&console, &nth.to_string()).expect("a customer");
                match command {
                    "" => caller.hang_up().await,
                    "channel redirect" => {
                        console.run(&format!("{command} {channel} services,600,1"));
                    }
                    _ => drop(console.run(&format!("{command} {channel}"))),
                }
                let ended = |count| scene.bridge.lines("call ended").len() == count;
                let count = (nth - 26) as usize;
                assert!(caller.until(5 * SECOND, |_| ended(count)).await, "{mode:?} {reason}");
                let line = scene.bridge.lines("call ended").pop().expect("a line");
                assert!(
                    line.contains(&format!("reason=\"{reason}\"")),
                    "{mode:?} {reason}: {line}"
                );
                if reason == "transferred" {
                    caller.hang_up().await;
                }
            }
            // the customer of the second one is with a human
            assert!(scene.orders().is_empty(), "{mode:?}: {:?}", scene.orders());
            scene.assert_clean();
        }
    });
}

/// trunkless is killed with 20 calls up: the next one has each customer taken to a human, once. In
/// ARI mode the customers stay in the application until then.
#[test]
fn no_customer_of_a_killed_process_is_lost() {
    const CALLS: u32 = 20;
    block_on(async {
        for mode in MODES {
            let mut scene = scene(mode, Plan::default(), None).await;
            let mut callers = Vec::new();
            for nth in 0..CALLS {
                callers.push(scene.dial(nth).await);
            }
            let talk = |ai: &Ai| {
                let streams = ai.streams();
                streams.len() == CALLS as usize && streams.iter().all(|s| s.frames.len() > 10)
            };
            assert!(callers[0].until(10 * SECOND, |_| talk(&scene.ai)).await, "{mode:?}");
            scene.bridge.kill();
            let begin = std::time::Instant::now();
            scene.bridge = Bridge::run(&scene.config);
            let all = || scene.orders().len() == CALLS as usize;
            assert!(callers[0].until(10 * SECOND, |_| all()).await, "{}", scene.bridge.log());
            let took = begin.elapsed();
            println!("{mode:?}: {CALLS} customers ordered {took:?} after the restart");
            assert!(took < SECOND * 2, "{mode:?}: {took:?}");
            for (nth, caller) in callers.iter_mut().enumerate() {
                scene.reaches_a_human(caller, nth as u32).await;
            }
            let orders = scene.world.lock().unwrap().orders.clone();
            let mut calls: Vec<&str> = orders.iter().map(|order| &*order.call).collect();
            calls.sort_unstable();
            calls.dedup();
            assert_eq!(calls.len(), CALLS as usize, "{mode:?}: {orders:?}");
            assert!(orders.iter().all(|o| o.stage == "INGROUPTRANSFER" && o.status == "AIERR"));
            for caller in &mut callers {
                caller.hang_up().await;
            }
            scene.assert_clean();
        }
    });
}
