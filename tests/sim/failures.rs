//! A caller whose AI fails, leaves or is replaced, and the orders that are open then.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use trunkless::call::end::EndReason;
use trunkless::call::ladder::Rung;
use trunkless::call::transfers::TransferRules;
use trunkless::call::words::Input;
use trunkless::call::{CallConfig, Signal, SourceRequest};
use trunkless::command::{
    ANSWERED, Cause, Command, Destination, Digits, Failure, OnFail, Redirect, Reply, Sender, Side,
    Then, Transfer, TransferKind, When,
};
use trunkless::peer::pattern;
use trunkless::stream::closed::Closed;
use trunkless::stream::{CallState, FromAi};

use crate::world::{World, config};

const AGENT: u32 = 9;
/// The samples of the prompts.
const SORRY: u8 = 0x31;
const GOODBYE: u8 = 0x32;
const HANGUP: Command = Command::Hangup { cause: Cause::Normal, status: None };

pub fn failed() -> Closed {
    Closed::Failed("reset".into())
}

fn orderly() -> Closed {
    Closed::Orderly("close frame 1000".into())
}

/// A configuration with three AIs, a target and two prompts of a second.
fn with_ladder(ladder: &[Rung]) -> CallConfig {
    let mut config = config();
    for name in ["backup", "other"] {
        let mut ai = config.ais[0].clone();
        ai.name = name.to_owned();
        config.ais = config.ais.iter().cloned().chain([ai]).collect();
    }
    let humans = Destination { context: None, exten: "1001".into(), priority: 1, in_group: false };
    let targets = [("humans".to_owned(), humans)].into();
    config.transfers = TransferRules { targets, ..TransferRules::default() };
    let prompt = |sample| Bytes::from(vec![sample; 8000]);
    let prompts = BTreeMap::from([("goodbye".to_owned(), prompt(GOODBYE))]);
    CallConfig { ladder: ladder.into(), prompts: prompts.into(), ..config }
}

fn sorry() -> Rung {
    Rung::Play(Bytes::from(vec![SORRY; 8000]))
}

pub fn world(ladder: &[Rung]) -> World {
    let mut world = World::of(400, &with_ladder(ladder));
    world.run_to(500);
    world
}

fn to_humans(kind: TransferKind, on_fail: OnFail) -> Command {
    let timeout = Duration::from_secs(20);
    Command::Transfer(Transfer { to: "humans".into(), kind, timeout, on_fail, status: None })
}

fn blind() -> Command {
    to_humans(TransferKind::Blind, OnFail::Resume)
}

/// The AI sends numbered frames, all at once.
fn say(world: &mut World, frames: u32) {
    let audio: Vec<u8> = (0..frames).flat_map(|n| pattern::frame(AGENT, n)).collect();
    world.say(FromAi::Audio(&audio));
}

fn heard(world: &World) -> usize {
    world.heard.caller.iter().filter(|(.., number)| number.is_some()).count()
}

pub fn outcome(world: &mut World, order: u32, result: Result<(), Failure>) {
    world.feed(Input::Signal(Signal::Replied { order, result }));
}

fn replies(world: &World, order: u32) -> Vec<Reply> {
    let all = world.heard.replies.iter().filter(|(_, number, _)| *number == order);
    all.map(|(.., reply)| reply.clone()).collect()
}

/// True if the source was asked to transfer the caller.
pub fn transfers(world: &World) -> bool {
    world.heard.requests.iter().any(|r| matches!(r, SourceRequest::Transfer { .. }))
}

pub fn humans() -> Rung {
    Rung::Transfer("humans".into())
}

/// A second AI that fails as soon as it has the caller: the next rung follows, and not the first
/// one again.
#[test]
fn each_rung_is_tried_once() {
    let mut world = world(&[Rung::Ai(1), humans(), Rung::Hangup(None)]);
    for _ in 0..2 {
        world.feed(Input::AiClosed(&failed()));
        world.feed(Input::AiOpen);
        world.run_to((world.now - world.t0).as_millis() as u64 + 1000);
    }
    assert_eq!(world.heard.dialled, [1]);
    assert!(transfers(&world));
    outcome(&mut world, 0, Err(Failure::Busy));
    assert_eq!(world.heard.ended, Some(EndReason::AiClosed));
}

/// An AI that has worked for a while may be followed by the whole ladder again.
#[test]
fn an_ai_that_fails_after_a_while_begins_at_the_top() {
    let mut world = world(&[Rung::Ai(1), Rung::Ai(2)]);
    world.feed(Input::AiClosed(&failed()));
    world.feed(Input::AiOpen);
    world.run_to(90_000);
    world.feed(Input::AiClosed(&failed()));
    assert_eq!(world.heard.dialled, [1, 1]);
}

/// The AI closes its stream, or loses it, behind a transfer that waits for its last words.
#[test]
fn a_transfer_after_the_audio_is_not_cut_by_the_end_of_the_stream() {
    for closed in [orderly(), failed()] {
        for late in [0, 1, 990, 1010] {
            let mut world = world(&[sorry()]);
            say(&mut world, 50);
            let order = world.order_when(When::AfterAudio, blind());
            world.run_to(500 + late);
            world.feed(Input::AiClosed(&closed));
            world.run_to(5000);
            assert_eq!(heard(&world), 50, "{closed} {late}");
            assert!(transfers(&world), "{closed} {late}");
            assert_eq!(world.heard.ended, None, "{closed} {late}");
            assert_eq!(replies(&world, order), [Reply::Accepted, Reply::Accepted]);
            // without an AI the call cannot be resumed
            outcome(&mut world, order, Err(Failure::Busy));
            world.run_to(8000);
            assert!(world.heard.sounds.contains(&SORRY), "{closed} {late}");
            assert!(world.heard.ended.is_some());
        }
    }
}

#[test]
fn a_transfer_begins_while_the_last_audio_is_played() {
    let mut config = with_ladder(&[]);
    config.drain_on_close = Duration::from_secs(3);
    let mut world = World::of(401, &config);
    world.run_to(500);
    say(&mut world, 100);
    world.feed(Input::AiClosed(&orderly()));
    world.run_to(1000);
    world.order_by(Sender::Http("admin".into()), When::Now, blind());
    world.run_to(20_000);
    assert_eq!(world.heard.ended, None);
}

/// An order behind the audio that cannot be carried out any more leaves no caller in silence.
#[test]
fn an_order_that_fails_after_the_end_of_the_stream_ends_the_call_or_leads_down_the_ladder() {
    for (closed, reason) in [(orderly(), EndReason::AiHangup), (failed(), EndReason::AiClosed)] {
        let mut world = world(&[sorry()]);
        say(&mut world, 50);
        let transfer = to_humans(TransferKind::Blind, OnFail::Resume);
        let first = world.order_when(When::AfterAudio, transfer.clone());
        world.order_when(When::AfterAudio, transfer);
        world.feed(Input::AiClosed(&closed));
        world.run_to(3000);
        outcome(&mut world, first, Err(Failure::Refused));
        world.run_to(6000);
        assert!(world.heard.ended.is_some(), "{reason:?}");
    }
}

#[test]
fn prompts_and_keys_are_waited_for() {
    for (order, until) in [
        (Command::Play("goodbye".into()), 1470),
        (Command::SendDigits(Digits::new("1234").unwrap()), 1200),
    ] {
        for spoken in [0, 5] {
            let mut world = world(&[]);
            world.order(order.clone());
            if spoken > 0 {
                say(&mut world, spoken);
            }
            world.order_when(When::AfterAudio, HANGUP);
            world.run_to(until);
            assert_eq!(world.heard.ended, None, "{order:?}");
            world.run_to(3000);
            assert_eq!(world.heard.ended, Some(EndReason::AiHangup));
            assert_eq!(replies(&world, 1), [Reply::Accepted, Reply::Done], "{order:?}");
        }
    }
}

/// The AI closes its stream behind a prompt or keys.
#[test]
fn prompts_and_keys_are_not_cut_by_the_end_of_the_stream() {
    for order in
        [Command::Play("goodbye".into()), Command::SendDigits(Digits::new("1234").unwrap())]
    {
        for when in [When::Now, When::AfterAudio] {
            let mut world = world(&[]);
            say(&mut world, 5);
            world.order_when(when, order.clone());
            world.feed(Input::AiClosed(&orderly()));
            world.run_to(3000);
            assert_eq!(replies(&world, 1).last(), Some(&Reply::Done), "{order:?} {when:?}");
            assert_eq!(world.heard.ended, Some(EndReason::AiHangup));
        }
    }
}

#[test]
fn a_caller_on_hold_or_muted_hears_the_prompt_and_the_next_ai_hears_the_caller() {
    let mut world = world(&[sorry(), Rung::Ai(1)]);
    let hold = world.order(Command::Hold(true));
    outcome(&mut world, hold, Ok(()));
    world.order(Command::Mute { side: Side::Ai, on: true });
    world.order(Command::Mute { side: Side::Caller, on: true });
    world.run_to(1000);
    world.feed(Input::AiClosed(&failed()));
    assert!(world.heard.requests.contains(&SourceRequest::Hold { order: u32::MAX, on: false }));
    world.run_to(1700);
    assert!(world.heard.sounds.contains(&SORRY));
    world.run_to(2500);
    assert_eq!(world.heard.dialled, [1]);
    world.feed(Input::AiOpen);
    let before = world.heard.ai.iter().filter(|(_, number)| number.is_some()).count();
    world.run_to(3500);
    let after = world.heard.ai.iter().filter(|(_, number)| number.is_some()).count();
    assert!(after >= before + 45, "{before} {after}");
}

/// The caller is not put on hold by an order whose AI is gone.
#[test]
fn a_hold_in_progress_does_not_outlast_its_ai() {
    let mut world = world(&[sorry()]);
    let hold = world.order(Command::Hold(true));
    world.feed(Input::AiClosed(&failed()));
    outcome(&mut world, hold, Ok(()));
    assert_eq!(
        world.heard.requests.last(),
        Some(&SourceRequest::Hold { order: u32::MAX, on: false })
    );
    world.run_to(1700);
    assert!(world.heard.sounds.contains(&SORRY));
}

/// The source took the caller off hold for the ladder's transfer, which it has not completed.
#[test]
fn the_end_of_a_hold_is_not_taken_for_the_end_of_a_transfer() {
    let mut world = world(&[humans(), sorry()]);
    let hold = world.order(Command::Hold(true));
    outcome(&mut world, hold, Ok(()));
    world.feed(Input::AiClosed(&failed()));
    let order = |request: &SourceRequest| match request {
        SourceRequest::Hold { order, on: false } => Some(*order),
        _ => None,
    };
    let unhold = world.heard.requests.iter().find_map(order).unwrap();
    outcome(&mut world, unhold, Ok(()));
    assert_eq!(world.heard.ended, None);
    outcome(&mut world, 0, Err(Failure::Busy));
    world.run_to(1400);
    assert!(world.heard.sounds.contains(&SORRY));
}

/// Both orders come in one message after the other, and the transfer fails.
#[test]
fn a_hold_that_a_transfer_overtakes_does_not_stay() {
    for ai_leaves in [false, true] {
        let mut world = world(&[sorry()]);
        let hold = world.order(Command::Hold(true));
        let transfer = world.order(blind());
        if ai_leaves {
            world.feed(Input::AiClosed(&orderly()));
        }
        let before = world.heard.requests.len();
        outcome(&mut world, hold, Ok(()));
        assert_eq!(world.heard.requests.len(), before, "the transfer keeps the music");
        outcome(&mut world, transfer, Err(Failure::Busy));
        say(&mut world, 10);
        world.run_to(1500);
        let back =
            if ai_leaves { world.heard.sounds.contains(&SORRY) } else { heard(&world) == 10 };
        assert!(back, "{ai_leaves}");
    }
}

/// A caller who was on hold before a transfer hears no music after it has failed.
#[test]
fn a_failed_transfer_ends_an_earlier_hold() {
    let mut world = world(&[]);
    let hold = world.order(Command::Hold(true));
    outcome(&mut world, hold, Ok(()));
    let transfer = world.order(blind());
    outcome(&mut world, transfer, Err(Failure::NoSnippet));
    let last = world.heard.requests.last();
    assert_eq!(last, Some(&SourceRequest::Hold { order: u32::MAX, on: false }));
}

/// A shutdown or a lost recording cuts neither a prompt nor a goodbye, and no AI follows.
#[test]
fn a_second_failure_cuts_no_prompt() {
    for second in [Input::End(EndReason::Drain), Input::RecordingLost] {
        let mut world = world(&[sorry(), Rung::Ai(1), Rung::Hangup(Some(Cause::Busy))]);
        world.feed(Input::AiClosed(&failed()));
        world.run_to(800);
        world.feed(second);
        world.run_to(1400);
        assert_eq!(world.heard.ended, None);
        world.run_to(2000);
        assert!(world.heard.ended.is_some() && world.heard.dialled.is_empty());
    }
    let mut config = with_ladder(&[sorry()]);
    config.drain_on_close = Duration::from_secs(5);
    let mut world = World::of(405, &config);
    world.run_to(500);
    say(&mut world, 100);
    world.feed(Input::AiClosed(&orderly()));
    world.run_to(800);
    world.feed(Input::End(EndReason::Drain));
    world.run_to(5000);
    assert_eq!((heard(&world), world.heard.ended), (100, Some(EndReason::AiHangup)));
}

/// An AI that has talked for long begins at the top of the ladder, also if it was dialled again.
#[test]
fn a_long_talk_before_a_reconnect_counts() {
    let config = CallConfig { reconnect: true, ..with_ladder(&[Rung::Ai(1), humans()]) };
    let mut world = World::of(406, &config);
    world.run_to(500);
    world.feed(Input::AiClosed(&failed()));
    world.feed(Input::AiOpen);
    world.run_to(90_000);
    world.feed(Input::AiClosed(&orderly()));
    world.feed(Input::AiFailed);
    assert_eq!(world.heard.dialled, [1, 1, 1]);
}

/// An AI that closes its stream as soon as it has opened is not dialled forever.
#[test]
fn an_ai_that_keeps_closing_is_given_up_after_five_seconds() {
    let config = CallConfig { reconnect: true, ..with_ladder(&[sorry(), humans()]) };
    let mut world = World::of(402, &config);
    world.run_to(10_000);
    while !world.heard.sounds.contains(&SORRY) {
        assert!((world.now - world.t0) < Duration::from_secs(17));
        world.feed(Input::AiClosed(&orderly()));
        let at = (world.now - world.t0).as_millis() as u64;
        world.run_to(at + 600);
        world.feed(Input::AiOpen);
        world.run_to(at + 700);
    }
    assert!((5..=10).contains(&world.heard.dialled.len()), "{:?}", world.heard.dialled);
    world.run_to(20_000);
    assert!(transfers(&world));
}

/// The muted words of a caller are not kept for the AI while it is dialled again.
#[test]
fn a_muted_caller_stays_muted_while_the_ai_is_dialled_again() {
    let config = CallConfig { reconnect: true, ..with_ladder(&[]) };
    let mut world = World::of(403, &config);
    world.run_to(6000);
    world.order(Command::Mute { side: Side::Caller, on: true });
    let before = world.heard.ai.iter().filter(|(_, number)| number.is_some()).count();
    world.feed(Input::AiClosed(&orderly()));
    world.feed(Input::Signal(Signal::Digit('5')));
    world.run_to(7000);
    world.feed(Input::AiOpen);
    world.run_to(7500);
    let after = world.heard.ai.iter().filter(|(_, number)| number.is_some()).count();
    assert_eq!((after - before, world.heard.digits.as_str()), (0, ""));
}

#[test]
fn an_ai_that_only_gives_orders_is_not_silent() {
    let mut config = with_ladder(&[]);
    std::sync::Arc::make_mut(&mut config.ais)[0].silent_timeout = Duration::from_secs(5);
    let mut world = World::of(404, &config);
    world.run_to(4000);
    world.order(Command::Mute { side: Side::Ai, on: false });
    world.run_to(20_000);
    assert_eq!(world.heard.ended, None);
}

/// A caller who waits for a human needs no stream any more, which may be paid for.
#[test]
fn an_ai_that_is_silent_is_closed_before_the_next_step() {
    for rung in [humans(), sorry()] {
        let mut config = with_ladder(&[rung]);
        std::sync::Arc::make_mut(&mut config.ais)[0].silent_timeout = Duration::from_secs(5);
        let mut world = World::of(407, &config);
        world.feed(Input::Ai(FromAi::Ignored("not JSON")));
        world.run_to(4900);
        assert!(!world.heard.closed);
        world.run_to(5900);
        assert!(world.heard.closed);
        assert!(transfers(&world) || world.heard.sounds.contains(&SORRY));
        assert_eq!(world.heard.ended, None);
    }
}

#[test]
fn a_transfer_outlasts_an_ai_that_is_being_dialled() {
    let mut world = world(&[Rung::Ai(1), Rung::Hangup(None)]);
    world.feed(Input::AiClosed(&failed()));
    let order = world.order_by(Sender::Http("admin".into()), When::Now, blind());
    world.feed(Input::AiFailed);
    world.run_to(5000);
    assert_eq!(world.heard.ended, None);
    outcome(&mut world, order, Ok(()));
    assert_eq!(world.heard.ended, Some(EndReason::Transferred));
}

/// A dial that began before the call went elsewhere has no effect.
#[test]
fn a_late_outcome_of_a_dial_has_no_effect() {
    for late in [Input::AiFailed, Input::AiOpen] {
        let mut world = world(&[Rung::Ai(1), sorry(), Rung::Hangup(Some(Cause::Busy))]);
        world.feed(Input::AiClosed(&failed()));
        let keys = Digits::new("ww");
        let then = Then::Hangup(Cause::Normal);
        let redirect = Box::new(Redirect { keys, then });
        world.order_by(Sender::Http("admin".into()), When::Now, Command::Redirect(redirect));
        world.feed(late);
        world.run_to(700);
        assert_eq!(world.heard.ended, None);
        world.run_to(3000);
        assert_eq!(world.heard.ended, Some(EndReason::ApiHangup));
        assert!(!world.heard.sounds.contains(&SORRY));
    }
}

/// A redirect takes the call out of its AI's hands, and the last one counts.
#[test]
fn a_redirect_supersedes_what_was_ordered_before() {
    let mut world = world(&[humans()]);
    say(&mut world, 200);
    let old = world.order_when(When::AfterAudio, HANGUP);
    let api = Sender::Http("admin".into());
    let redirect = |keys, then| Command::Redirect(Box::new(Redirect { keys, then }));
    let pause = redirect(Digits::new("wwww"), Then::Hangup(Cause::Normal));
    let first = world.order_by(api.clone(), When::Now, pause);
    world.run_to(1000);
    let second = world.order_by(api, When::Now, redirect(None, Then::Ai("backup".into())));
    assert_eq!(replies(&world, old), [Reply::Accepted, Reply::Failed(Failure::Cancelled)]);
    assert_eq!(replies(&world, first), [Reply::Accepted, Reply::Failed(Failure::Cancelled)]);
    assert_eq!(replies(&world, second), [Reply::Done]);
    world.feed(Input::AiOpen);
    world.run_to(10_000);
    assert_eq!((world.heard.ended, &world.heard.dialled[..]), (None, &[1][..]));
    world.feed(Input::AiClosed(&failed()));
    assert!(transfers(&world), "the ladder, and not the old order");
}

/// The target is on the line when the AI is lost.
#[test]
fn a_consultation_whose_ai_is_lost_is_completed() {
    for closed in [orderly(), failed()] {
        for early in [false, true] {
            let mut world = world(&[sorry()]);
            let order = world.order(to_humans(TransferKind::Attended, OnFail::Resume));
            let answered = Signal::Progress { order, state: ANSWERED };
            if early {
                world.feed(Input::AiClosed(&closed));
                world.feed(Input::Signal(answered));
            } else {
                world.feed(Input::Signal(answered));
                world.feed(Input::AiClosed(&closed));
            }
            let completed = world.heard.requests.contains(&SourceRequest::CompleteTransfer);
            assert!(completed, "{closed} {early}");
            outcome(&mut world, order, Ok(()));
            assert_eq!(world.heard.ended, Some(EndReason::Transferred));
        }
    }
}

#[test]
fn hold_and_transfer_do_not_mix() {
    let mut world = world(&[]);
    let hold = world.order(Command::Hold(true));
    let early = world.order(Command::Hold(false));
    assert_eq!(replies(&world, early), [Reply::Failed(Failure::WrongState)]);
    outcome(&mut world, hold, Ok(()));
    let keys = world.order(Command::SendDigits(Digits::new("1").unwrap()));
    assert_eq!(replies(&world, keys), [Reply::Failed(Failure::WrongState)]);
    let order = world.order(blind());
    let unhold = world.order(Command::Hold(false));
    assert_eq!(replies(&world, unhold), [Reply::Failed(Failure::WrongState)]);
    outcome(&mut world, order, Err(Failure::Busy));
    say(&mut world, 10);
    world.run_to(1500);
    assert_eq!(heard(&world), 10, "the caller is back, and no longer on hold");
}

/// The AI cancels its transfer: it has the caller back, whatever was to happen on a failure.
#[test]
fn a_cancelled_transfer_returns_the_caller() {
    for on_fail in [OnFail::Resume, OnFail::Ladder, OnFail::Hangup] {
        let mut world = world(&[sorry()]);
        let order = world.order(to_humans(TransferKind::Attended, on_fail));
        let cancel = world.order(Command::CancelTransfer);
        assert_eq!(replies(&world, cancel), [Reply::Accepted]);
        outcome(&mut world, order, Err(Failure::Cancelled));
        assert_eq!(replies(&world, cancel), [Reply::Accepted, Reply::Done]);
        say(&mut world, 10);
        world.run_to(1500);
        assert_eq!((world.heard.ended, heard(&world)), (None, 10));
        assert_eq!(
            world.heard.states,
            [CallState::Transferring, CallState::TransferFailed(Failure::Cancelled)]
        );
    }
}

#[test]
fn an_order_to_cancel_that_comes_too_late_fails() {
    let mut world = world(&[]);
    let order = world.order(to_humans(TransferKind::Attended, OnFail::Resume));
    let cancel = world.order(Command::CancelTransfer);
    outcome(&mut world, order, Ok(()));
    assert_eq!(replies(&world, cancel), [Reply::Accepted, Reply::Failed(Failure::WrongState)]);
}

/// A transfer of a shutdown that fails is followed by the next rung.
#[test]
fn a_shutdown_tries_every_rung() {
    let mut world = world(&[Rung::Ai(1), humans(), sorry()]);
    world.feed(Input::End(EndReason::Drain));
    assert!(world.heard.dialled.is_empty());
    outcome(&mut world, 0, Err(Failure::Refused));
    world.run_to(1400);
    assert!(world.heard.sounds.contains(&SORRY));
    world.run_to(3000);
    assert_eq!(world.heard.ended, Some(EndReason::Drain));
}

/// A call that may not continue unrecorded leads to someone who may take it, but to no other AI.
#[test]
fn a_required_recording_that_lacks_audio_leads_down_the_ladder() {
    let mut world = world(&[Rung::Ai(1), sorry(), Rung::Hangup(Some(Cause::Congestion))]);
    world.feed(Input::RecordingLost);
    world.run_to(1400);
    assert!(world.heard.sounds.contains(&SORRY) && world.heard.dialled.is_empty());
    world.run_to(3000);
    assert_eq!(world.heard.ended, Some(EndReason::NotRecorded));
}

/// Each order has a final reply, also if the call ends first.
#[test]
fn orders_that_are_open_at_the_end_fail() {
    let mut world = world(&[]);
    say(&mut world, 100);
    let waits = world.order_when(When::AfterAudio, Command::Play("goodbye".into()));
    world.feed(Input::Signal(Signal::Ended(EndReason::CallerHangup)));
    assert_eq!(replies(&world, waits), [Reply::Accepted, Reply::Failed(Failure::Ended)]);
}
