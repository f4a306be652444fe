//! The verdict on one direction of a call, for made-up arrivals: each kind of harm is found, and
//! pauses of the host are excused only where they may be.

use std::time::{Duration, Instant};

use crate::rig::canary::Stall;
use crate::rig::judge::{Arrival, Content, FRAME, Rule, Way, judge};

const MS: Duration = Duration::from_millis(1);
const CALL: u32 = 7;
/// Frames per call: one second before the fault and two in it.
const FRAMES: u32 = 150;

struct Case {
    begin: Instant,
    way: Way,
    stalls: Vec<Stall>,
    slots: bool,
}

impl Case {
    /// A call in which every frame takes 3 ms.
    fn new() -> Case {
        let begin = Instant::now();
        let mut way = Way::default();
        for index in 0..FRAMES {
            let sent = begin + FRAME * index;
            let content = Content::Frame { call: CALL, index };
            way.sent.push(sent);
            way.heard.push(Arrival { at: sent + 3 * MS, position: index.into(), content });
        }
        Case { begin, way, stalls: Vec::new(), slots: false }
    }

    /// Delays the frames from `from` to `to`.
    fn delay(&mut self, from: usize, to: usize, by: Duration) {
        self.way.heard[from..to].iter_mut().for_each(|a| a.at += by);
    }

    /// Shifts everything from frame `from` on along the receiver's timeline.
    fn insert(&mut self, from: usize, frames: i64) {
        self.way.heard[from..].iter_mut().for_each(|a| a.position += frames);
    }

    /// The host stands still for `length`, beginning when frame `index` is sent.
    fn stall(&mut self, index: u32, length: Duration) {
        let from = self.begin + FRAME * index;
        self.stalls.push(from..from + length);
    }

    fn faults(&self) -> String {
        let (quiet, end) = (self.begin..self.begin + 50 * FRAME, self.begin + FRAMES * FRAME);
        let rule = Rule {
            call: CALL,
            fault: quiet.end..end,
            quiet,
            usual: 10 * MS,
            added: 5 * MS,
            slots: self.slots,
            excused: None,
        };
        judge(&self.way, &rule, &self.stalls).1.join("; ")
    }
}

#[track_caller]
fn assert_found(case: &Case, text: &str) {
    let found = case.faults();
    assert!(found.contains(text), "\"{text}\" in \"{found}\"");
}

#[test]
fn an_undisturbed_call_has_no_faults() {
    assert_eq!(Case::new().faults(), "");
}

#[test]
fn every_frame_counts() {
    let mut lost = Case::new();
    lost.way.heard.remove(80);
    assert_found(&lost, "1 of 150 frames lost: 80");
    // a pause of the host is not an excuse for a loss
    lost.stall(79, 100 * MS);
    assert_found(&lost, "1 of 150 frames lost: 80");

    let mut last = Case::new();
    last.way.heard.pop();
    assert_found(&last, "1 of 150 frames lost: 149");

    let mut repeated = Case::new();
    repeated.way.heard.insert(81, repeated.way.heard[80]);
    assert_found(&repeated, "1 frames repeated: 80");

    let mut swapped = Case::new();
    swapped.way.heard.swap(80, 81);
    assert_found(&swapped, "frame 81 arrived before frame 80");

    let mut altered = Case::new();
    altered.way.heard[80].content = Content::Altered;
    assert_found(&altered, "a frame arrived altered");

    let mut foreign = Case::new();
    foreign.way.heard[80].content = Content::Frame { call: 8, index: 80 };
    assert_found(&foreign, "a frame of call 8 arrived");
}

#[test]
fn a_gap_may_be_one_frame_long() {
    let mut one = Case::new();
    one.insert(80, 1);
    assert_eq!(one.faults(), "");
    let mut two = Case::new();
    two.insert(80, 2);
    assert_found(&two, "a gap of 2 frames before frame 80");
    two.stall(79, 19 * MS);
    assert_eq!(two.faults(), "", "the host took one of the two frames");

    let mut still = Case::new();
    // one frame alone is within the 1 % whose delay is not bounded
    still.delay(80, 81, 45 * MS);
    assert_found(&still, "a gap of 2 frames before frame 80");
}

#[test]
fn the_sender_may_be_late() {
    let mut late = Case::new();
    for index in 80..FRAMES as usize {
        late.way.sent[index] += 10 * FRAME;
        late.way.heard[index].at += 10 * FRAME;
    }
    late.insert(80, 10);
    assert_eq!(late.faults(), "");
}

#[test]
fn one_frame_of_a_hundred_may_be_delayed() {
    let mut one = Case::new();
    one.delay(80, 81, 15 * MS);
    assert_eq!(one.faults(), "");
    let mut three = Case::new();
    three.delay(80, 83, 6 * MS);
    assert_found(&three, "3 of 100 frames delayed: p99 6ms");
    let mut usual = Case::new();
    usual.delay(0, FRAMES as usize, 12 * MS);
    assert_found(&usual, "a delay of 15ms even before the fault");
}

#[test]
fn only_the_time_that_the_host_took_is_excused() {
    let mut case = Case::new();
    case.delay(80, 83, 12 * MS);
    case.stall(80, 7 * MS);
    assert_found(&case, "2 of 100 frames delayed: p99 12ms");
    case.stall(81, 7 * MS);
    case.stall(82, 7 * MS);
    assert_eq!(case.faults(), "");
}

/// Where each packet has its slot, a frame that missed it delays all behind it.
#[test]
fn a_slot_that_the_host_took_delays_all_later_frames() {
    let mut case = Case::new();
    case.delay(80, FRAMES as usize, 20 * MS);
    case.insert(80, 1);
    case.stall(80, 9 * MS);
    assert_found(&case, "70 of 100 frames delayed");
    case.slots = true;
    assert_eq!(case.faults(), "");
}
