//! Calls that we place, with events and responses in any order.

use super::pbx::{Pbx, channel};
use crate::ari::api::{CallKey, Input, NotTaken};
use crate::ari::bridging::callee::CalleeWish;
use crate::ari::bridging::words::{After, Cause, Tell};
use crate::ari::event::Event;
use crate::ari::request::{NORMAL, RestRequest};

fn wish() -> CalleeWish {
    CalleeWish {
        endpoint: "Local/1@out/n".into(),
        context: "out".into(),
        caller_id: "+49301".into(),
        timeout_s: 60,
    }
}

/// Begins a call. Returns its key and the callee's channel.
fn place(pbx: &mut Pbx) -> (CallKey, String) {
    let (call, _, channel) = pbx.app.place(pbx.now, wish()).expect("there is room");
    pbx.feed(Input::Accept(call, "127.0.0.1:4000".parse().expect("an address")));
    (call, channel)
}

fn answers(pbx: &mut Pbx, id: &str) {
    if let Some(here) = pbx.channels.get_mut(id) {
        *here = true;
        let mut channel = Box::new(channel(id, "Local/x"));
        channel.state = "Up".into();
        pbx.events.push_back(Event::StasisStart { channel, args: vec![] });
    }
}

fn dial(pbx: &mut Pbx, id: &str, status: &str) {
    let (channel, status) = (id.to_owned(), status.to_owned());
    pbx.events.push_back(Event::Dial { channel, status });
}

fn end(pbx: &mut Pbx, call: CallKey) {
    pbx.feed(Input::End(call, After::HangUp(NORMAL)));
}

#[test]
fn the_callee_is_called_once_the_media_are_in_the_bridge() {
    for seed in 0..100 {
        let mut pbx = Pbx::new(seed, 9);
        let (call, id) = place(&mut pbx);
        pbx.feed(Input::Answer(call));
        let originate = |pbx: &Pbx| {
            pbx.requests.iter().any(|(_, r)| matches!(r, RestRequest::Originate { .. }))
        };
        while !originate(&pbx) {
            assert!(pbx.step(), "seed {seed}: no callee is called");
        }
        let media = pbx.bridges.values().next().expect("a bridge");
        assert_eq!(media.len(), 1, "seed {seed}");
        pbx.settle();
        dial(&mut pbx, &id, "");
        dial(&mut pbx, &id, "RINGING");
        pbx.settle_for(90);
        assert!(pbx.tells_of(call).contains(&&Tell::Ringing), "seed {seed}: it may ring for long");
        answers(&mut pbx, &id);
        pbx.settle();
        assert!(pbx.tells_of(call).contains(&&Tell::Connected), "seed {seed}");
        assert_eq!(pbx.bridges.values().next().map(|members| members.len()), Some(2));
        match seed % 2 {
            0 => pbx.hang_up(&id),
            _ => end(&mut pbx, call),
        }
        pbx.settle_for(60);
        let ended = pbx.tells_of(call).contains(&&Tell::Ended(Cause::CallerHangup));
        assert_eq!(ended, seed % 2 == 0, "seed {seed}");
        pbx.assert_clean(seed);
    }
}

#[test]
fn a_callee_who_does_not_answer_is_reported_with_the_cause() {
    for seed in 0..50 {
        let mut pbx = Pbx::new(seed, 9);
        let (call, id) = place(&mut pbx);
        pbx.feed(Input::Answer(call));
        pbx.settle();
        dial(&mut pbx, &id, "BUSY");
        pbx.channels.remove(&id);
        pbx.events.push_back(Event::Destroyed { channel: id.clone(), cause: 17 });
        pbx.settle_for(60);
        let cause = Cause::Unanswered { cause: Some(17), dial: Some("BUSY".into()) };
        assert!(pbx.tells_of(call).contains(&&Tell::Ended(cause)), "seed {seed}");
        pbx.assert_clean(seed);
    }
}

/// Given up at any moment, whatever the PBX is doing then: no phone keeps ringing.
#[test]
fn a_call_that_is_given_up_leaves_nothing() {
    for seed in 0..600 {
        let mut pbx = Pbx::new(seed, 9);
        pbx.failure_percent = if seed % 3 == 0 { 20 } else { 0 };
        let (call, id) = place(&mut pbx);
        let mut steps = pbx.random.below(30);
        if seed % 7 != 0 {
            pbx.feed(Input::Answer(call));
        }
        let (mut answered, moment) = (false, pbx.random.below(30));
        while steps > 0 && pbx.step() {
            steps -= 1;
            if !answered && steps < moment && pbx.channels.contains_key(&id) {
                answered = true;
                match seed % 4 {
                    0 => answers(&mut pbx, &id),
                    1 => dial(&mut pbx, &id, "RINGING"),
                    2 => pbx.hang_up(&id),
                    _ => {}
                }
            }
        }
        end(&mut pbx, call);
        pbx.settle();
        // a channel that exists all the same may be answered later
        answers(&mut pbx, &id);
        pbx.failure_percent = 0;
        pbx.settle_for(300);
        pbx.assert_clean(seed);
    }
}

#[test]
fn no_callee_is_called_once_we_are_stopping() {
    for seed in 0..50 {
        let mut pbx = Pbx::new(seed, 9);
        let (call, id) = place(&mut pbx);
        pbx.settle();
        pbx.feed(Input::Stop);
        pbx.feed(Input::Answer(call));
        pbx.settle_for(60);
        assert!(!pbx.channels.contains_key(&id), "seed {seed}");
        assert!(pbx.tells_of(call).contains(&&Tell::Ended(Cause::NotCalled)), "seed {seed}");
        pbx.assert_clean(seed);
    }
}

#[test]
fn there_is_no_call_without_room_or_after_the_stop() {
    let mut pbx = Pbx::new(1, 1);
    let (call, _) = place(&mut pbx);
    assert_eq!(pbx.app.place(pbx.now, wish()).err(), Some(NotTaken::Full));
    end(&mut pbx, call);
    pbx.settle_for(60);
    assert!(pbx.app.place(pbx.now, wish()).is_ok_and(|(call, ..)| call > 0));
    pbx.feed(Input::Stop);
    assert_eq!(pbx.app.place(pbx.now, wish()).err(), Some(NotTaken::Stopping));
}
