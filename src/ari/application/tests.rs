//! Tests the application against a simulated Asterisk in virtual time.

mod pbx;
mod placing;
mod transfers;

use std::collections::BTreeSet;
use std::time::Duration;

use crate::ari::api::Input;
use crate::ari::application::tests::pbx::Pbx;
use crate::ari::bridging::words::{After, Cause, Tell};
use crate::ari::event::Event;
use crate::ari::request::NORMAL;
use crate::ari::sweep::is_ours;

#[test]
fn a_complete_call() {
    let mut pbx = Pbx::new(1, 10);
    pbx.call("1.1");
    pbx.settle();
    let call = pbx.offered[0];
    let to = "127.0.0.1:10000".parse().expect("an address");
    assert_eq!(pbx.tells_of(call), [&Tell::Media(to)], "the AI is not connected yet");
    pbx.feed(Input::Answer(call));
    pbx.settle();
    assert_eq!(pbx.tells_of(call).last(), Some(&&Tell::Connected));
    assert_eq!(pbx.bridges.values().next().map(BTreeSet::len), Some(2));
    pbx.events.push_back(Event::Digit { channel: "1.1".into(), digit: '5' });
    pbx.hang_up("1.1");
    pbx.settle();
    let (cause, ended) = (Tell::HangupCause(16), Tell::Ended(Cause::CallerHangup));
    assert_eq!(pbx.tells_of(call)[2..], [&Tell::Digit('5'), &cause, &ended]);
    pbx.assert_clean(1);
}

/// The caller hangs up, the call is ended and commands fail at any moment of the set-up.
#[test]
fn any_order_of_events_and_responses_leaves_nothing_behind() {
    for seed in 0..3000 {
        let mut pbx = Pbx::new(seed, 10);
        pbx.failure_percent = [0, 0, 20][seed as usize % 3];
        pbx.call("1.1");
        pbx.call("1.2");
        let (hangup, answer, end) =
            (pbx.random.below(40), pbx.random.below(30), pbx.random.below(60));
        for n in 0..60 {
            if n == answer {
                pbx.offered.clone().into_iter().for_each(|call| pbx.feed(Input::Answer(call)));
            }
            if n == hangup {
                pbx.hang_up("1.1");
            }
            if n == end {
                let after = [After::HangUp(NORMAL), After::Continue("drain".into())];
                let after = after[pbx.random.below(2)].clone();
                pbx.offered
                    .clone()
                    .into_iter()
                    .for_each(|c| pbx.feed(Input::End(c, after.clone())));
            }
            pbx.step();
        }
        pbx.settle();
        // end the calls that are still up
        for call in pbx.offered.clone() {
            pbx.feed(Input::End(call, After::HangUp(NORMAL)));
        }
        pbx.failure_percent = 0;
        pbx.settle_for(10);
        pbx.hang_up("1.2");
        pbx.settle();
        assert_eq!(pbx.finished, 2, "seed {seed}");
        pbx.assert_clean(seed);
        for call in pbx.offered.clone() {
            let ends = pbx.tells_of(call).iter().filter(|t| matches!(t, Tell::Ended(_))).count();
            assert!(ends <= 1, "seed {seed}: call {call} ended {ends} times");
        }
    }
}

#[test]
fn calls_over_the_cap_continue_in_the_dialplan() {
    let mut pbx = Pbx::new(3, 2);
    for n in 0..20 {
        pbx.call(&format!("1.{n}"));
    }
    pbx.settle();
    assert_eq!((pbx.offered.len(), pbx.continued), (2, 18));
    let media = pbx.channels.keys().filter(|id| is_ours("trunkless-ai-", id)).count();
    assert_eq!(media, 2);
}

/// After a crash, the earlier process's objects are still on the PBX. Some of its callers have left
/// our application.
#[test]
fn orphans_are_removed_and_other_objects_are_kept() {
    let mut pbx = Pbx::new(4, 10);
    let before = "trunkless-ai-m-1794000000-00000000aa";
    for (id, here) in [("1.1", true), ("1.2", false), (before, true), ("em-9", false)] {
        pbx.channels.insert(id.into(), here);
    }
    pbx.bridges.insert("trunkless-ai-b-1794000000-00000000aa".into(), BTreeSet::new());
    pbx.bridges.insert("foreign".into(), BTreeSet::new());
    pbx.feed(Input::Disconnected);
    pbx.feed(Input::Connected([127, 0, 0, 1].into()));
    let begin = pbx.now;
    pbx.settle_for(1);
    assert!(pbx.now - begin < Duration::from_millis(500));
    assert_eq!(pbx.channels.get("1.1"), Some(&false), "continues in the dialplan, not hung up");
    assert_eq!(pbx.channels.keys().collect::<Vec<_>>(), ["1.1", "1.2", "em-9"]);
    assert_eq!(pbx.bridges.keys().collect::<Vec<_>>(), ["foreign"]);
}

#[test]
fn after_a_lost_socket_live_calls_continue_and_ended_ones_are_cleaned_up() {
    let mut pbx = Pbx::new(5, 10);
    pbx.call("1.1");
    pbx.call("1.2");
    pbx.settle();
    pbx.offered.clone().into_iter().for_each(|call| pbx.feed(Input::Answer(call)));
    pbx.settle();
    pbx.feed(Input::Disconnected);
    pbx.hang_up("1.1");
    pbx.events.clear();
    pbx.feed(Input::Connected([127, 0, 0, 1].into()));
    pbx.settle();
    assert_eq!((pbx.app.call_count(), pbx.finished), (1, 1));
    let ended = pbx.tells.iter().filter(|(_, t)| *t == Tell::Ended(Cause::CallerHangup)).count();
    assert_eq!(ended, 1);
    assert_eq!(pbx.bridges.len(), 1);
}

#[test]
fn a_lost_external_media_channel_is_replaced_once() {
    let mut pbx = Pbx::new(6, 10);
    pbx.call("1.1");
    pbx.settle();
    let call = pbx.offered[0];
    pbx.feed(Input::Answer(call));
    pbx.settle();
    for times in 0..2 {
        let media = pbx.channels.keys().find(|id| is_ours("trunkless-ai-", id)).cloned();
        pbx.hang_up(&media.expect("external media"));
        pbx.settle();
        let media = pbx.tells_of(call).iter().filter(|t| matches!(t, Tell::Media(_))).count();
        assert_eq!(media, 2);
        if times == 0 {
            assert_eq!(pbx.bridges.values().next().map(BTreeSet::len), Some(2));
        }
    }
    assert!(matches!(pbx.tells_of(call).last(), Some(Tell::Ended(Cause::Failed(_)))));
    assert_eq!(pbx.continued, 1, "the caller continues in the dialplan");
    pbx.assert_clean(6);
}

#[test]
fn a_transfer_is_not_a_hangup() {
    let mut pbx = Pbx::new(7, 10);
    pbx.call("1.1");
    pbx.settle();
    pbx.channels.insert("1.1".into(), false);
    pbx.events.push_back(Event::StasisEnd { channel: "1.1".into() });
    pbx.settle();
    let call = pbx.offered[0];
    assert_eq!(pbx.tells_of(call).last(), Some(&&Tell::Ended(Cause::Transferred)));
    assert!(pbx.channels.contains_key("1.1"), "never hung up by us");
    pbx.assert_clean(7);
}

/// No external media channel is created until the number left by an earlier process is known.
#[test]
fn the_cap_includes_channels_left_by_an_earlier_process() {
    let mut pbx = Pbx::new(8, 2);
    pbx.feed(Input::Disconnected);
    for n in 0..2 {
        pbx.channels.insert(format!("trunkless-ai-m-1794000000-00000000a{n}"), true);
    }
    pbx.feed(Input::Connected([127, 0, 0, 1].into()));
    pbx.call("1.1");
    pbx.settle();
    assert_eq!((pbx.offered.len(), pbx.continued), (0, 1), "the cap is reached");
    pbx.settle_for(2);
    pbx.call("1.2");
    pbx.settle();
    assert_eq!(pbx.offered.len(), 1, "the orphans are deleted");
}

/// On shutdown, remaining callers return to the dialplan. If another program took over the
/// application, they are its callers and are left alone.
#[test]
fn on_close_remaining_callers_continue_unless_the_application_was_taken_over() {
    for taken in [false, true] {
        let mut pbx = Pbx::new(9, 2);
        if taken {
            pbx.events.push_back(Event::Replaced);
            pbx.settle();
        }
        pbx.channels.insert("1.1".into(), true);
        pbx.feed(Input::Stop);
        pbx.feed(Input::Close);
        assert!(pbx.app.is_closed() == taken, "at least one reading unless taken over");
        pbx.settle_for(1);
        assert!(pbx.app.is_closed());
        assert_eq!(pbx.channels.get("1.1"), Some(&taken));
    }
}

/// A restarted PBX has none of the old calls. A call that arrived after the restart is kept.
#[test]
fn a_restart_ends_the_old_calls_only() {
    let mut pbx = Pbx::new(10, 5);
    pbx.call("1.1");
    pbx.settle();
    pbx.feed(Input::Disconnected);
    pbx.channels.clear();
    pbx.bridges.clear();
    pbx.startup = "2".into();
    pbx.now += Duration::from_secs(1);
    pbx.feed(Input::Connected([127, 0, 0, 1].into()));
    pbx.now += Duration::from_millis(1);
    pbx.call("2.1");
    pbx.settle();
    let (old, new) = (pbx.offered[0], pbx.offered[1]);
    assert_eq!(pbx.tells_of(old).last(), Some(&&Tell::Ended(Cause::Restarted)));
    assert!(!pbx.tells_of(new).iter().any(|t| matches!(t, Tell::Ended(_))));
    pbx.feed(Input::Answer(new));
    pbx.settle();
    assert_eq!(pbx.tells_of(new).last(), Some(&&Tell::Connected));
}

/// VICIdial transfers the caller while our release is on its way: the caller is left alone.
#[test]
fn a_caller_who_left_gets_no_commands() {
    for after in [After::HangUp(NORMAL), After::Continue("ai_hangup".into())] {
        let mut pbx = Pbx::new(11, 5);
        pbx.call("1.1");
        pbx.settle();
        pbx.feed(Input::End(pbx.offered[0], after));
        pbx.channels.insert("1.1".into(), false);
        pbx.settle();
        assert_eq!(pbx.channels.get("1.1"), Some(&false), "still where VICIdial put the caller");
        assert_eq!(pbx.continued, 0);
    }
}
