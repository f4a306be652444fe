//! Transfers: the sweep spares their targets, and whoever hangs up whenever, neither the caller nor
//! the target is left in silence.

use std::time::Duration;

use crate::ari::api::{CallKey, Input, Wish};
use crate::ari::application::tests::pbx::{Pbx, channel};
use crate::ari::bridging::transfer::TransferWish;
use crate::ari::bridging::words::{After, Cause, Tell};
use crate::ari::event::Event;
use crate::ari::request::{NORMAL, Outcome, RestRequest};
use crate::ari::sweep::is_ours;
use crate::command::{Destination, Failure, TransferKind};

const ORDER: u32 = 5;

impl Pbx {
    fn transfer(&mut self, call: CallKey, kind: TransferKind) {
        let destination =
            Destination { context: None, exten: "600".into(), priority: 1, in_group: false };
        let timeout = Duration::from_secs(20);
        let wish = TransferWish { destination, kind, timeout, plain: false };
        self.feed(Input::Transfer { call, order: ORDER, wish });
    }

    /// Connects a caller and calls the target of a transfer.
    fn calling(seed: u64, kind: TransferKind) -> (Pbx, CallKey) {
        let mut pbx = Pbx::new(seed, 10);
        let call = pbx.connected("1.1");
        pbx.transfer(call, kind);
        pbx.settle();
        assert!(pbx.target().is_some());
        (pbx, call)
    }

    fn target(&self) -> Option<String> {
        self.channels.keys().find(|id| id.contains("-t-")).cloned()
    }

    /// The target answers. Returns its id.
    fn target_answers(&mut self) -> Option<String> {
        let target = self.target()?;
        self.channels.insert(target.clone(), true);
        let channel = Box::new(channel(&target, "Local/600@services-1;1"));
        self.events.push_back(Event::StasisStart { channel, args: vec![] });
        Some(target)
    }

    fn take_events(&mut self) {
        while let Some(event) = self.events.pop_front() {
            self.feed(Input::Event(event));
        }
    }

    /// Carries out and answers requests of one kind only.
    fn answer(&mut self, kind: impl Fn(&RestRequest) -> bool) {
        while let Some(at) = self.requests.iter().position(|(_, request)| kind(request)) {
            let (id, request) = self.requests.remove(at);
            let outcome = self.serve(request);
            self.feed(Input::Outcome(id, outcome));
        }
    }

    /// Answers the only request of this kind with this outcome, without carrying it out.
    fn refuse(&mut self, outcome: Outcome, kind: impl Fn(&RestRequest) -> bool) {
        let at = self.requests.iter().position(|(_, request)| kind(request));
        let (id, _) = self.requests.remove(at.expect("such a request"));
        self.feed(Input::Outcome(id, outcome));
    }

    fn is_asked(&self, kind: impl Fn(&RestRequest) -> bool) -> bool {
        self.requests.iter().any(|(_, request)| kind(request))
    }

    /// Reads the lists twice, as the sweep does.
    fn sweep(&mut self) {
        self.app.sweep.now(self.now);
        for _ in 0..2 {
            self.feed(Input::Timeout);
            self.answer(|r| matches!(r, RestRequest::Channels | RestRequest::Bridges));
            self.now += Duration::from_millis(250);
        }
    }

    fn is_in_bridge(&self, id: &str) -> bool {
        self.bridges.values().any(|members| members.contains(id))
    }

    fn replies(&self, call: CallKey) -> Vec<Result<(), Failure>> {
        let reply = |tell: &&Tell| match tell {
            Tell::Replied(ORDER, result) => Some(*result),
            _ => None,
        };
        self.tells_of(call).iter().filter_map(reply).collect()
    }

    fn end(&self, call: CallKey) -> Option<&Cause> {
        self.tells_of(call).into_iter().find_map(|tell| match tell {
            Tell::Ended(cause) => Some(cause),
            _ => None,
        })
    }
}

fn answered(status: u16) -> Outcome {
    Outcome::Answered { status, body: "{}".into() }
}

fn is_originate(request: &RestRequest) -> bool {
    matches!(request, RestRequest::Originate { .. })
}

fn is_music(request: &RestRequest) -> bool {
    matches!(request, RestRequest::Music { .. })
}

#[test]
fn the_sweep_spares_the_target_of_a_live_transfer() {
    let (mut pbx, call) = Pbx::calling(1, TransferKind::Attended);
    pbx.sweep();
    pbx.settle();
    let target = pbx.target_answers().expect("still called");
    pbx.settle();
    pbx.sweep();
    pbx.settle();
    assert!(pbx.is_in_bridge(&target) && !pbx.is_in_bridge("1.1"));
    pbx.feed(Input::CompleteTransfer(call));
    pbx.sweep();
    // the bridge's end must not meet the target in it
    pbx.answer(|r| !matches!(r, RestRequest::Continue { .. }));
    assert!(!pbx.is_in_bridge(&target) && pbx.channels[&target]);
    pbx.settle();
    assert_eq!(pbx.joined.get("1.1"), Some(&target));
    assert_eq!((pbx.replies(call), pbx.end(call)), (vec![Ok(())], None));
    assert_eq!(pbx.music.get("1.1"), Some(&false));
    // the pair is left alone, and the other objects are gone
    pbx.sweep();
    pbx.settle();
    pbx.hang_up("1.1");
    pbx.settle();
    pbx.assert_clean(1);
}

#[test]
fn a_caller_who_hangs_up_before_the_snippet_leaves_no_target_behind() {
    for known in [true, false] {
        let (mut pbx, call) = Pbx::calling(2, TransferKind::Blind);
        let target = pbx.target_answers().expect("a target");
        pbx.take_events();
        let is_continue = |r: &RestRequest| matches!(r, RestRequest::Continue { .. });
        pbx.answer(|r| !is_continue(r));
        assert!(pbx.is_asked(is_continue));
        pbx.hang_up("1.1");
        if known {
            pbx.take_events();
        }
        pbx.answer(is_continue);
        pbx.settle();
        assert_eq!((pbx.replies(call), pbx.end(call)), (vec![], Some(&Cause::CallerHangup)));
        assert!(!pbx.channels.contains_key(&target));
        pbx.assert_clean(2);
    }
}

#[test]
fn a_caller_who_was_not_sent_off_has_not_been_transferred() {
    for (status, cause) in [
        // the hang-up and the way to the snippet crossed
        (204, Cause::CallerHangup),
        (404, Cause::CallerHangup),
        (409, Cause::Transferred),
        (500, Cause::Failed("continue: answered 500".into())),
    ] {
        let (mut pbx, call) = Pbx::calling(3, TransferKind::Blind);
        pbx.target_answers();
        pbx.take_events();
        let is_continue = |r: &RestRequest| matches!(r, RestRequest::Continue { .. });
        pbx.answer(|r| !is_continue(r));
        if status == 204 {
            pbx.feed(Input::Event(Event::HangupRequest { channel: "1.1".into(), cause: 16 }));
        }
        pbx.refuse(answered(status), is_continue);
        pbx.settle_for(5);
        assert_eq!((pbx.replies(call), pbx.end(call)), (vec![], Some(&cause)), "{status}");
        assert_eq!(pbx.target(), None);
        // after an error of the PBX, the sweep finds the caller
        assert_eq!(pbx.continued, usize::from(status == 500));
    }
}

#[test]
fn a_target_that_hangs_up_while_being_joined_gives_the_caller_back() {
    for kind in [TransferKind::Blind, TransferKind::Attended] {
        let (mut pbx, call) = Pbx::calling(4, kind);
        let target = pbx.target_answers().expect("a target");
        if kind == TransferKind::Attended {
            pbx.settle();
            pbx.feed(Input::CompleteTransfer(call));
        }
        pbx.take_events();
        pbx.hang_up(&target);
        pbx.take_events();
        pbx.settle();
        assert_eq!(pbx.replies(call), [Err(Failure::TargetHungUp)], "{kind:?}");
        assert_eq!(pbx.music.get("1.1"), Some(&false));
        assert!(pbx.is_in_bridge("1.1"));
    }
}

#[test]
fn a_transfer_can_be_cancelled_until_the_caller_is_sent_off() {
    let (mut pbx, call) = Pbx::calling(5, TransferKind::Blind);
    pbx.target_answers();
    pbx.take_events();
    pbx.feed(Input::CancelTransfer(call));
    pbx.settle();
    assert_eq!(pbx.replies(call), [Err(Failure::Cancelled)]);
    assert!(pbx.is_in_bridge("1.1") && pbx.target().is_none());

    let (mut pbx, call) = Pbx::calling(5, TransferKind::Blind);
    pbx.target_answers();
    pbx.take_events();
    pbx.answer(is_music);
    pbx.answer(|r| matches!(r, RestRequest::SetVariable { .. }));
    pbx.feed(Input::CancelTransfer(call));
    pbx.settle();
    assert_eq!(pbx.replies(call), [Ok(())], "too late");
    assert!(pbx.joined.contains_key("1.1"));
}

#[test]
fn a_target_whose_creation_seemed_to_fail_is_dropped() {
    for outcome in [answered(500), Outcome::Unknown] {
        for late in [true, false] {
            let mut pbx = Pbx::new(6, 10);
            let call = pbx.connected("1.1");
            pbx.transfer(call, TransferKind::Blind);
            pbx.answer(|r| matches!(r, RestRequest::Variable { .. }));
            let originate = pbx.requests.iter().find(|(_, r)| is_originate(r)).cloned();
            let (_, originate) = originate.expect("a call to the target");
            if !late {
                pbx.execute(originate.clone());
            }
            pbx.refuse(outcome.clone(), is_originate);
            pbx.settle();
            assert_eq!(pbx.replies(call), [Err(Failure::NoSuchTarget)]);
            if late {
                pbx.execute(originate);
                pbx.target_answers();
                pbx.settle();
            }
            assert_eq!(pbx.target(), None, "{outcome:?} {late}");
        }
    }
}

/// The response to the creation was lost, but the target has been heard of.
#[test]
fn a_target_that_rings_exists_whatever_was_answered() {
    let mut pbx = Pbx::new(7, 10);
    let call = pbx.connected("1.1");
    pbx.transfer(call, TransferKind::Blind);
    pbx.answer(|r| matches!(r, RestRequest::Variable { .. }));
    let originate = pbx.requests.iter().find(|(_, r)| is_originate(r)).cloned();
    pbx.execute(originate.expect("a call to the target").1);
    let target = pbx.target().expect("a target");
    pbx.feed(Input::Event(Event::Dial { channel: target.clone(), status: "RINGING".into() }));
    pbx.refuse(Outcome::Unknown, is_originate);
    pbx.target_answers();
    pbx.settle();
    assert_eq!(pbx.replies(call), [Ok(())]);
    assert_eq!(pbx.joined.get("1.1"), Some(&target));
}

#[test]
fn what_became_of_the_target_without_events_is_noticed() {
    for ended in [true, false] {
        let (mut pbx, call) = Pbx::calling(8, TransferKind::Attended);
        if ended {
            pbx.target_answers();
            pbx.settle();
        }
        pbx.feed(Input::Disconnected);
        pbx.now += Duration::from_secs(1);
        let target = pbx.target().expect("a target");
        match ended {
            true => pbx.hang_up(&target),
            false => drop(pbx.target_answers()),
        }
        pbx.events.clear();
        pbx.feed(Input::Connected([127, 0, 0, 1].into()));
        pbx.settle();
        assert_eq!(pbx.is_in_bridge("1.1"), ended);
        assert_eq!(pbx.is_in_bridge(&target), !ended);
        let reply = ended.then_some(Err(Failure::TargetHungUp));
        assert_eq!(pbx.replies(call), Vec::from_iter(reply));
    }
}

#[test]
fn a_bridge_that_was_lost_without_events_is_replaced() {
    let (mut pbx, _) = Pbx::calling(9, TransferKind::Attended);
    let target = pbx.target_answers().expect("a target");
    pbx.settle();
    pbx.now += Duration::from_secs(1);
    pbx.bridges.clear();
    pbx.sweep();
    pbx.settle();
    assert!(pbx.is_in_bridge(&target) && !pbx.is_in_bridge("1.1"));
    assert_eq!(pbx.app.next_timeout(), pbx.app.sweep.next_timeout(), "no time limit is left");
}

#[test]
fn the_requests_about_a_caller_keep_their_order() {
    let (mut pbx, call) = Pbx::calling(10, TransferKind::Attended);
    pbx.target_answers();
    pbx.take_events();
    // the caller is not put back before being out
    let is_remove = |r: &RestRequest| matches!(r, RestRequest::RemoveChannel { .. });
    let is_add = |r: &RestRequest| matches!(r, RestRequest::AddChannel { .. });
    assert!(pbx.is_asked(is_remove) && !pbx.is_asked(is_add));
    pbx.feed(Input::CancelTransfer(call));
    assert!(!pbx.is_asked(is_add));
    pbx.answer(is_remove);
    assert!(pbx.is_asked(is_add));
    // music is switched on after it is off
    pbx.feed(Input::Order { call, order: 9, wish: Wish::Hold(true) });
    pbx.feed(Input::Order { call, order: 10, wish: Wish::Hold(false) });
    pbx.feed(Input::Order { call, order: 11, wish: Wish::Hold(true) });
    assert_eq!(pbx.requests.iter().filter(|(_, r)| is_music(r)).count(), 1);
    pbx.settle();
    assert_eq!(pbx.music.get("1.1"), Some(&true));
    assert!(pbx.tells_of(call).contains(&&Tell::Replied(11, Ok(()))));
    assert!(pbx.is_in_bridge("1.1"));
}

#[test]
fn nobody_is_called_for_a_caller_who_has_hung_up() {
    let mut pbx = Pbx::new(11, 10);
    let call = pbx.connected("1.1");
    pbx.transfer(call, TransferKind::Blind);
    pbx.hang_up("1.1");
    pbx.take_events();
    pbx.answer(|r| matches!(r, RestRequest::Variable { .. }));
    assert!(!pbx.is_asked(is_originate));
    pbx.settle();
    assert_eq!(pbx.end(call), Some(&Cause::CallerHangup));
    pbx.assert_clean(11);
}

/// The next step of the ladder may be another transfer.
#[test]
fn another_transfer_need_not_wait_for_the_end_of_the_last_target() {
    let (mut pbx, call) = Pbx::calling(12, TransferKind::Attended);
    pbx.target_answers();
    pbx.settle();
    let first = pbx.target().expect("a target");
    pbx.feed(Input::CancelTransfer(call));
    pbx.transfer(call, TransferKind::Blind);
    pbx.settle();
    let second = pbx.target().expect("another target");
    assert!(first != second && pbx.is_in_bridge("1.1"));
    pbx.target_answers();
    pbx.settle();
    assert_eq!(pbx.replies(call), [Err(Failure::Cancelled), Ok(())]);
    assert_eq!(pbx.joined.get("1.1"), Some(&second));
}

/// Answer, hang-ups, cancelling, the end of the call and failed requests at any moment.
#[test]
fn any_order_of_events_and_responses_ends_a_transfer_cleanly() {
    for seed in 0..3000 {
        let mut pbx = Pbx::new(seed, 10);
        let call = pbx.connected("1.1");
        pbx.failure_percent = [0, 0, 20][seed as usize % 3];
        let kind = [TransferKind::Blind, TransferKind::Attended][pbx.random.below(2)];
        pbx.transfer(call, kind);
        let moments = [(); 6].map(|()| pbx.random.below(60));
        let mut target_ended = false;
        for n in 0..40 {
            for (action, _) in moments.iter().enumerate().filter(|(_, at)| **at == n) {
                match action {
                    0 => drop(pbx.target_answers()),
                    1 => pbx.hang_up("1.1"),
                    2 => {
                        if let Some(target) = pbx.target() {
                            target_ended = true;
                            pbx.hang_up(&target);
                        }
                    }
                    3 => pbx.feed(Input::CancelTransfer(call)),
                    4 => pbx.feed(Input::CompleteTransfer(call)),
                    _ => pbx.sweep(),
                }
            }
            pbx.step();
        }
        pbx.settle();
        let replies = pbx.replies(call);
        assert!(replies.len() <= 1, "seed {seed}: {replies:?}");
        let joined = pbx.joined.contains_key("1.1");
        if pbx.failure_percent == 0 {
            let gone = !pbx.channels.contains_key("1.1");
            let over = joined || target_ended || gone;
            assert!(replies != [Ok(())] || over, "seed {seed}: the caller is nowhere");
            assert!(!gone || replies == [Ok(())] || pbx.end(call).is_some(), "seed {seed}: no end");
        }
        if joined && pbx.failure_percent == 0 {
            assert_eq!(pbx.music.get("1.1"), Some(&false), "seed {seed}");
        }
        pbx.failure_percent = 0;
        pbx.feed(Input::End(call, After::HangUp(NORMAL)));
        pbx.settle_for(90);
        let left =
            |pbx: &Pbx| pbx.channels.keys().filter(|id| is_ours("trunkless-ai-", id)).count();
        assert_eq!(left(&pbx), usize::from(pbx.joined.contains_key("1.1") && !target_ended));
        pbx.hang_up("1.1");
        pbx.settle();
        pbx.assert_clean(seed);
    }
}
