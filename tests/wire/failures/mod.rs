//! Every dialect under every failure of its AI: the steps of `on_ai_failure` are the same ones,
//! within the same time. `table` has the failures and what they mean, `voice` the dialects,
//! `server` the AIs. The calls of all cells run side by side in one process, beside a call that
//! must not notice any of it.

mod server;
mod table;
mod voice;

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures_util::{FutureExt as _, StreamExt as _};
use trunkless::call::ended::Record;

use crate::bridge::{Bridge, Net, Rig};
use crate::call::{CALLER, Call};
use crate::lines::Lines;
use crate::log::{Log, pass};
use crate::media::{Heard, indices, taken};
use crate::pbx::Pbx;
use crate::stream::AGENT;
use crate::strict::Ai;
use crate::wav::write_prompt;
use server::{Event, Server};
use table::{ANSWER_WAIT, Case, Failure, Outcome};

/// From the time at which a failure is known to the next step. The host runs other tests as well.
const STEP: Duration = Duration::from_millis(1500);
/// Cells of the table at once.
const AT_ONCE: usize = 36;
/// Frames that the next AI has to hear.
const ENOUGH: usize = 10;
/// Frames of the caller that may come too late on a busy host, and are silence then.
const MISSED: usize = 5;
const LIMIT: Duration = Duration::from_secs(20);

struct Table {
    rig: Rig,
    server: Server,
    cases: Vec<Case>,
    /// Records of calls that have ended.
    records: Log<Record>,
    lines: Lines,
    _prompt: tempfile::TempDir,
}

/// The AI that takes over from that of case `n`: in another dialect each time.
fn backup(n: usize) -> usize {
    (n * 7 + n / voice::ALL.len() + 3) % voice::ALL.len()
}

impl Table {
    async fn new(cases: Vec<Case>, more: &str) -> Table {
        let lines = Lines::of_calls();
        let net = Net::new();
        let (pbx, ai) = (Pbx::udp(net.pbx()).await, Ai::start(net.ai()).await);
        let server = Server::start(net.host(5), cases.clone()).await;
        let (prompt, path) = write_prompt(10);
        let address = server.address().to_string();
        let ca = prompt.path().join("ca.pem");
        let key = rcgen::generate_simple_self_signed(vec!["ai".to_owned()]).unwrap();
        std::fs::write(&ca, key.cert.pem()).unwrap();
        let ca = ca.to_str().unwrap();
        let mut config = format!(
            "[calls]\nanswer_wait = \"{}ms\"\nplayout_minutes = 1\nmax = 500\n{more}\n\
             [prompts]\nnote = {path:?}\n\
             [pbx.main.sip]\nusers = [\"8XXXX\"]\n",
            ANSWER_WAIT.as_millis()
        );
        for (n, voice) in voice::ALL.iter().enumerate() {
            let ai = voice.config(&address, &format!("/good/{n}"), ca);
            config.push_str(&format!("[endpoint.good{n}]\n{ai}"));
        }
        let closed = format!("{}:9", net.host(5));
        for (n, case) in cases.iter().enumerate() {
            let address = if case.failure == Failure::Refused { &closed } else { &address };
            let (ai, more) =
                (case.voice.config(address, &format!("/bad/{n:03}"), ca), case.config());
            let good = backup(n);
            config.push_str(&format!(
                "[endpoint.bad{n}]\n{ai}{more}\
                 [[route]]\nname = \"a{n}\"\nto = \"81{n:03}\"\nai = \"bad{n}\"\n\
                 on_ai_failure = [\"ai:good{good}\", \"hangup\"]\n\
                 [[route]]\nname = \"b{n}\"\nto = \"82{n:03}\"\nai = \"bad{n}\"\n\
                 on_ai_failure = [\"play:note\", \"hangup:busy\"]\n"
            ));
        }
        let rig = Rig::with(net, pbx, ai, &config).await;
        Table { rig, server, cases, records: Log::new(), lines, _prompt: prompt }
    }

    fn name(&self, n: usize) -> String {
        let Case { voice, failure, .. } = self.cases[n];
        format!("cell {n}, {} {failure:?}", voice.0)
    }

    fn bridge(&self) -> &Bridge {
        &self.rig.bridge
    }

    /// An INVITE to this user. `is_linear`: the caller hears audio that was linear on its way.
    async fn invite(&self, user: &str, is_linear: bool) -> Call {
        let mut call = self.rig.pbx.call(self.bridge()).await;
        call.target = call.target.replace("sip:ai@", &format!("sip:{user}@"));
        call.media.linear.store(is_linear, Ordering::Relaxed);
        call.invite().await;
        call
    }

    /// Keeps the records of calls that end.
    async fn collect(&self) -> std::convert::Infallible {
        loop {
            self.records.push(self.bridge().next_record().await);
        }
    }

    async fn record(&self, route: &str, count: usize) -> Record {
        let of = |records: &mut Vec<Record>| {
            let is = |record: &&Record| record.route.as_deref() == Some(route);
            records.iter().filter(is).nth(count).cloned()
        };
        let what = format!("the record of {route}");
        self.records.within(LIMIT, of).await.expect(&what)
    }

    /// The frames of a call that an AI has heard: the next one, or if the first one `stays`, that
    /// one. Also when the failure was there, and when the first of these frames was heard.
    async fn heard(
        &self,
        n: usize,
        number: u32,
        stays: bool,
    ) -> Option<(Instant, Instant, Vec<u32>)> {
        let good = voice::ALL[backup(n)];
        let of = |(at, event): &(Instant, Event)| match event {
            Event::Heard(voice, frame) if !stays => {
                assert_eq!(*voice, good);
                Some((*at, *frame))
            }
            Event::HeardAfter(frame) if stays => Some((*at, *frame)),
            _ => None,
        };
        let enough = |seen: &mut Vec<(Instant, Event)>| {
            let found: Vec<(Instant, u32)> = seen.iter().filter_map(of).collect();
            let frames = found.iter().map(|(_, frame)| *frame).collect();
            (found.len() >= ENOUGH).then(|| (seen[0].0, found[0].0, frames))
        };
        self.server.call(number).within(self.cases[n].known + LIMIT, enough).await
    }

    /// The caller gets to the next AI, which hears what the caller says, and is heard.
    async fn taken_over(&self, n: usize, count: usize) {
        let case = self.cases[n];
        let name = self.name(n);
        let number = 10_000 + count as u32 * 1000 + n as u32;
        let begun = Instant::now();
        let is_linear = voice::ALL[backup(n)].is_linear();
        let mut call = self.invite(&format!("81{n:03}"), is_linear).await;
        call.answered().await;
        let (to, mut talker) = (call.rtp.unwrap(), call.talker.clone());
        let stays = case.outcome == Outcome::Continues;
        let (failed, at, frames) = tokio::select! {
            () = call.media.say(to, &mut talker, number, 0..2000) => panic!("{name}: too late"),
            heard = self.heard(n, number, stays) => {
                heard.unwrap_or_else(|| panic!("{name}: no AI takes the caller"))
            }
        };
        let from = if case.failure.is_early() { begun } else { failed };
        let took = at.saturating_duration_since(from).saturating_sub(taken(from, at));
        assert!(took <= case.known + STEP, "{name}: after {took:?}");
        assert!(frames.is_sorted(), "{name}: {frames:?}");
        let all = (frames[frames.len() - 1] - frames[0] + 1) as usize;
        assert!(frames.len() + MISSED >= all, "{name}: {frames:?}");
        if !stays {
            let heard = |heard: &mut Vec<Heard>| {
                let numbers = indices(heard, AGENT);
                (numbers.len() >= ENOUGH).then_some(numbers)
            };
            let heard = call.media.heard.within(LIMIT, heard).await;
            assert_eq!(heard, Some(Vec::from_iter(0..ENOUGH as u32)), "{name}");
        }
        call.bye().await;
        call.forget();
        let record = self.record(&format!("a{n}"), count).await;
        assert_eq!(record.reason.label(), "caller_hangup", "{name}");
        match case.outcome {
            Outcome::Continues => {
                let again = case.failure == Failure::Again;
                assert_eq!(record.ai_end.is_some(), again, "{name}");
                assert_eq!(record.dialled.len(), 1 + usize::from(again), "{name}");
            }
            Outcome::Ladder(reason, _) => {
                assert!(record.ai_end.is_some(), "{name}");
                let first = record.dialled.first().and_then(|dialled| dialled.failure);
                let failed = case.failure.is_early() && reason == "ai_unreachable";
                assert_eq!(first.is_some(), failed, "{name}");
            }
            Outcome::HangUp => {}
        }
    }

    /// The caller hears the prompt, and then the cause of the ladder's last step.
    async fn dismissed(&self, n: usize) {
        let case = self.cases[n];
        let name = self.name(n);
        let number = 20_000 + n as u32;
        let mut call = self.invite(&format!("82{n:03}"), false).await;
        call.answered().await;
        let (to, mut talker) = (call.rtp.unwrap(), call.talker.clone());
        let end = async {
            if case.known > Duration::from_secs(4) {
                pass(case.known - Duration::from_secs(4)).await;
            }
            call.hung_up().await
        };
        let cause = tokio::select! {
            () = call.media.say(to, &mut talker, number, 0..2000) => panic!("{name}: too late"),
            cause = end => cause,
        };
        let (reason, expected, prompt) = match case.outcome {
            Outcome::Ladder(reason, _) => (reason, "Q.850;cause=17;text=\"busy\"", 10),
            _ => ("ai_hangup", "Q.850;cause=16;text=\"ai_hangup\"", 0),
        };
        assert_eq!(cause, expected, "{name}");
        let heard = |heard: &mut Vec<Heard>| (indices(heard, AGENT).len() == prompt).then_some(());
        let heard = call.media.heard.within(STEP, heard).await;
        assert_eq!(heard, Some(()), "{name}: not {prompt} frames of the prompt");
        call.forget();
        let record = self.record(&format!("b{n}"), 0).await;
        assert_eq!(record.reason.label(), reason, "{name}");
        // the call before it did not keep this one from its AI
        let spared = record.ai_end.is_some_and(|end| end.contains("not offered"));
        assert!(!spared, "{name}");
    }

    /// After three calls in a row that could not reach it, the AI is not offered the next one.
    async fn spared(&self, n: usize) {
        let case = self.cases[n];
        let name = self.name(n);
        self.taken_over(n, 1).await;
        let before = self.server.dialled(&format!("/bad/{n:03}"));
        self.taken_over(n, 2).await;
        let again = self.server.dialled(&format!("/bad/{n:03}")) - before;
        let record = self.record(&format!("a{n}"), 2).await;
        let spared = record.ai_end.is_some_and(|end| end.contains("not offered"));
        let unreachable = matches!(case.outcome, Outcome::Ladder("ai_unreachable", _));
        assert_eq!((spared, again), (unreachable, usize::from(!unreachable)), "{name}");
    }

    async fn run(&self, n: usize) {
        let case = self.cases[n];
        match case.outcome {
            Outcome::Continues => return self.taken_over(n, 0).await,
            Outcome::HangUp => return self.dismissed(n).await,
            Outcome::Ladder(..) if case.is_late() => {
                let reason = async {
                    if n.is_multiple_of(3) {
                        self.dismissed(n).await;
                    }
                };
                tokio::join!(self.taken_over(n, 0), reason);
            }
            Outcome::Ladder(..) => {
                self.taken_over(n, 0).await;
                if !case.failure.is_variant() {
                    self.dismissed(n).await;
                }
            }
        }
        let once = case.failure.is_variant() || case.failure == Failure::NeverReady;
        if case.failure.is_early() && !once {
            self.spared(n).await;
        }
    }

    /// True if the log has the failure of this cell, with the AI's URL.
    fn is_logged(&self, n: usize, lines: &[String]) -> bool {
        let Outcome::Ladder(_, words) = self.cases[n].outcome else { return true };
        let path = format!("/bad/{n:03}");
        let found = lines.iter().any(|line| line.contains(&path) && line.contains(words));
        if !found {
            println!("{}: nothing in the log with {words:?}", self.name(n));
        }
        found
    }

    /// Runs all cells side by side, and returns those that went wrong.
    async fn all(&self) -> Vec<Case> {
        let run = async |n: usize| {
            let went = AssertUnwindSafe(self.run(n)).catch_unwind().await;
            (n, went.is_ok())
        };
        let runs = futures_util::stream::iter((0..self.cases.len()).map(run));
        let went: Vec<(usize, bool)> = tokio::select! {
            went = runs.buffer_unordered(AT_ONCE).collect() => went,
            never = self.collect() => match never {},
        };
        let lines = self.lines.with(&format!("ws://{}:", self.server.address().ip()));
        let wrong = went.into_iter().filter(|(n, well)| !well || !self.is_logged(*n, &lines));
        wrong.map(|(n, _)| self.cases[n]).collect()
    }

    /// Runs all cells beside a call that must not notice any of it.
    async fn beside_a_bystander(&self) -> Vec<Case> {
        let (mut bystander, stream) = self.rig.call().await;
        let (to, mut talker) = (bystander.rtp.unwrap(), bystander.talker.clone());
        let frames = AtomicU32::new(0);
        let talk = async {
            loop {
                let n = frames.fetch_add(50, Ordering::Relaxed);
                stream.play_frames(n..n + 50).await;
                bystander.media.say(to, &mut talker, CALLER, n..n + 50).await;
            }
        };
        let wrong = tokio::select! {
            wrong = self.all() => wrong,
            never = talk => never,
        };
        let said = frames.load(Ordering::Relaxed) - 50;
        let played = bystander.media.numbered(AGENT, said as usize).await;
        assert_eq!(played, Vec::from_iter(0..played.len() as u32));
        bystander.bye().await;
        stream.stopped().await;
        let heard: Vec<u32> = stream.positions().into_iter().map(|(_, number)| number).collect();
        assert!(heard.is_sorted(), "{heard:?}");
        let record = self.bridge().record().await;
        // what this busy host delivered too late
        let received = &record.summary.received;
        let late = received.late() + received.timeline.left_out;
        let lost = received.sequence.lost + record.ai.dropped_audio;
        assert!(heard.len() as u64 + late + lost >= said.into(), "{} of {said}", heard.len());
        wrong
    }
}

/// Runs the cells that went wrong again, at most twice: a busy machine may spoil one run, but a
/// real fault spoils them all.
async fn steadily(mut cases: Vec<Case>, more: &str) {
    for _ in 0..3 {
        let table = Table::new(cases.clone(), more).await;
        match AssertUnwindSafe(table.beside_a_bystander()).catch_unwind().await {
            Ok(wrong) if wrong.is_empty() => return,
            Ok(wrong) => cases = wrong,
            Err(_) => {}
        }
    }
    panic!("{} cells: {cases:#?}", cases.len());
}

#[tokio::test]
async fn every_failure_leads_down_the_ladder_in_every_dialect() {
    steadily(table::all(), "").await;
}

#[tokio::test]
async fn a_stream_that_is_dialled_again_leads_down_the_ladder_after_five_seconds() {
    steadily(table::dialled_again(), "on_ai_close = \"reconnect\"").await;
}
