//! Each REST request of a call fails once, refused or unanswered: nothing of the call is left
//! behind, it has one record, and its caller is not stranded.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::{JoinSet, yield_now};

use crate::ari::ask::Verb;
use crate::ari::fake::{Fake, Trouble};
use crate::ari::rig::{APP, Rig, plain};
use crate::ari::world::{Channel, World};
use crate::bridge::{Bridge, Net};
use crate::log::pass;
use crate::media::assert_continuous;
use crate::stream::AGENT;
use crate::strict::{Ai, Handshake};

/// Longer than a request that times out, plus two searches for leftovers.
const LIMIT: Duration = Duration::from_secs(8);
/// Longer than starting all the bridges takes.
const LONG: Duration = Duration::from_secs(60);

/// The failures to try for a request. Where the bridge takes a status to mean that the caller or an
/// object to be removed is gone, it really is gone.
fn troubles(verb: Verb) -> [Trouble; 6] {
    let believed: &[u16] = match verb {
        Verb::Answer | Verb::Continue | Verb::Look | Verb::HangUp => &[404, 409],
        Verb::DropMedia | Verb::DropBridge => &[404, 409],
        Verb::AddCaller => &[422],
        _ => &[],
    };
    let status = |status: u16| match believed.contains(&status) {
        true => Trouble::Gone(status),
        false => Trouble::Status(status),
    };
    let [a, b, c, d] = [500, 404, 409, 422].map(status);
    [a, b, c, d, Trouble::Lost, Trouble::Unanswered]
}

#[tokio::test]
async fn each_request_of_a_call_may_fail_once() {
    let verbs = [
        Verb::Variable,
        Verb::Ring,
        Verb::Media,
        Verb::Bridge,
        Verb::AddMedia,
        Verb::Answer,
        Verb::AddCaller,
        Verb::SetVariable,
        Verb::Continue,
        Verb::Look,
        Verb::HangUp,
        Verb::DropMedia,
        Verb::DropBridge,
    ];
    fail_once(verbs.into_iter().flat_map(|verb| troubles(verb).map(|t| (verb, t)))).await;
}

/// Objects left by an earlier process are removed all the same.
#[tokio::test]
async fn each_request_of_a_start_may_fail_once() {
    let verbs = [Verb::Info, Verb::Filter, Verb::Channels, Verb::Bridges];
    let all = verbs.into_iter().flat_map(|verb| troubles(verb).map(|t| (verb, t)));
    // a 200 with something else than the expected body
    let broken = verbs.map(|verb| (verb, Trouble::Botched(200)));
    fail_once(all.chain(broken)).await;
}

/// For example, a proxy in front of the PBX timed out.
#[tokio::test]
async fn each_request_may_succeed_though_its_answer_is_a_failure() {
    let verbs = [
        Verb::Media,
        Verb::Bridge,
        Verb::AddMedia,
        Verb::Answer,
        Verb::AddCaller,
        Verb::Continue,
        Verb::HangUp,
        Verb::DropMedia,
        Verb::DropBridge,
    ];
    let botched = verbs.into_iter().map(|verb| (verb, Trouble::Botched(504)));
    // an answer without the RTP address it should contain
    fail_once(botched.chain([(Verb::Media, Trouble::Botched(200))])).await;
}

/// Asterisk may hang for minutes on some requests.
#[tokio::test]
async fn requests_that_hang_do_not_hold_up_other_calls() {
    let rig = Rig::new("").await;
    let (mut caller, stream) = rig.call("ai.0").await;
    rig.fake.stall(Verb::Media).await;
    // more than the limit of concurrent requests
    for n in 1..=70 {
        rig.enter(&format!("ai.{n}"));
    }
    rig.fake.asked(Verb::Media, "", 20).await;
    stream.play_frames(0..50).await;
    caller.say(0..50).await;
    assert_eq!(stream.heard(50).await, Vec::from_iter(0..50));
    assert_eq!(caller.external.media.numbered(AGENT, 50).await, Vec::from_iter(0..50));
    assert_continuous(&caller.external.media.packets());
    let begin = Instant::now();
    stream.close(1000).await;
    rig.fake.asked(Verb::HangUp, "ai.0", 1).await;
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    // each caller whose request hangs gets a human, and nothing of their calls is left
    let all = |w: &World| (w.continued.len() == 70).then_some(());
    let continued = rig.fake.within(Duration::from_secs(20), all).await;
    assert!(continued.is_some(), "{} of 70 callers continue", rig.fake.world().continued.len());
    rig.fake.is_clean(APP).await;
    let records = rig.bridge.all_records().await;
    assert_eq!(records.len(), 71);
}

/// Runs all cases at once, each with its own application and bridge.
async fn fail_once(cases: impl Iterator<Item = (Verb, Trouble)>) {
    let net = Net::new();
    let fake = Arc::new(Fake::start(net.pbx()).await);
    let ai = Ai::start(net.ai()).await;
    // slow cases start first
    let (silent, answered): (Vec<_>, Vec<_>) = cases.partition(|(_, trouble)| trouble.is_silent());
    let last_silent = silent.len();
    let (all_started, started) = watch::channel(false);
    let mut failures = Vec::new();
    let done = async {
        let mut running = JoinSet::new();
        for (n, (verb, trouble)) in silent.into_iter().chain(answered).enumerate() {
            let started = started.clone();
            let case = Case { app: format!("t{n}"), verb, trouble, started };
            let plain = plain(net.host(10 + n as u8), &case.app, fake.address, ai.address);
            let bridge = case.start(&fake, &plain).await;
            let fake = fake.clone();
            running.spawn(async move {
                let result = case.run(&fake, bridge).await;
                result.map_err(|why| format!("{:?} {:?}: {why}", case.verb, case.trouble))
            });
            // starting a bridge is slow and rarely yields: let the others run
            match n + 1 == last_silent {
                true => pass(Duration::from_millis(500)).await,
                false => yield_now().await,
            }
        }
        all_started.send_replace(true);
        while let Some(result) = running.join_next().await {
            failures.extend(result.unwrap().err());
        }
    };
    let serving = async {
        loop {
            if let Some(handshake) = ai.next().await {
                tokio::spawn(closing(handshake));
            }
        }
    };
    tokio::select! {
        () = serving => {}
        () = done => {}
    }
    failures.sort();
    assert!(failures.is_empty(), "{failures:#?}");
}

/// Serves one stream as an AI that soon closes.
async fn closing(handshake: Handshake) {
    let Some(opened) = handshake.open_if_open().await else { return };
    let Some(stream) = opened.started_unless_ended().await else { return };
    pass(Duration::from_millis(50)).await;
    stream.close_if_open().await;
    stream.over().await;
}

struct Case {
    app: String,
    /// The request that fails.
    verb: Verb,
    trouble: Trouble,
    /// True once all cases have started: time limits count from then on.
    started: watch::Receiver<bool>,
}

impl Case {
    /// True for requests that the bridge also makes at start, as a trial. The trial is not to fail.
    fn is_tried(&self) -> bool {
        matches!(self.verb, Verb::Bridge | Verb::DropBridge)
    }

    fn hangs_up(&self) -> bool {
        matches!(self.verb, Verb::Look | Verb::HangUp)
    }

    async fn start(&self, fake: &Fake, plain: &str) -> Bridge {
        let close = if self.hangs_up() { "hangup" } else { "continue" };
        let config = format!(
            "[calls]\non_ai_close = \"{close}\"\nringing = true\n\
             [pbx.main.ari]\nvariables = [\"A\"]"
        );
        if matches!(self.verb, Verb::Info | Verb::Filter | Verb::Channels | Verb::Bridges) {
            let stasis = Some((self.app.clone(), Vec::new()));
            let orphan = Channel { stasis, ..Channel::caller() };
            fake.world().channels.insert(format!("{}.0", self.app), orphan);
        }
        if !self.is_tried() {
            fake.trouble(&self.app, self.verb, self.trouble).await;
        }
        Bridge::launch(plain, &config).await
    }

    async fn run(&self, fake: &Fake, bridge: Bridge) -> Result<(), String> {
        let ready = |w: &World| w.sockets.contains_key(&self.app).then_some(());
        fake.within(LONG, ready).await.ok_or("no events")?;
        self.is_clean(fake).await.map_err(|left| format!("{left} of an earlier process"))?;
        if self.is_tried() {
            fake.trouble(&self.app, self.verb, self.trouble).await;
        }
        let caller = format!("{}.1", self.app);
        fake.world().enter(&caller, &self.app, &[], Channel::caller());
        self.is_clean(fake).await?;
        let records = bridge.all_records().await.len();
        if records != 1 {
            return Err(format!("{records} records"));
        }
        let of_caller = !matches!(self.verb, Verb::DropMedia | Verb::DropBridge);
        let gone = matches!(self.trouble, Trouble::Gone(_)) && of_caller;
        match gone || self.hangs_up() || fake.world().continued.contains(&caller) {
            true => Ok(()),
            false => Err("the caller does not continue in the dialplan".to_owned()),
        }
    }

    async fn is_clean(&self, fake: &Fake) -> Result<(), String> {
        let clean = |w: &World| w.left(&self.app).is_empty().then_some(());
        let limit = async {
            self.started.clone().wait_for(|started| *started).await.unwrap();
            pass(LIMIT).await;
        };
        tokio::select! {
            biased;
            Some(()) = fake.within(LONG, clean) => Ok(()),
            () = limit => Err(format!("left: {:?}", fake.world().left(&self.app))),
        }
    }
}
