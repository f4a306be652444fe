//! The verdict on one direction of a bystander's call: lost, repeated, swapped and altered frames,
//! gaps, and added delay. It takes times as arguments and touches no socket.

use std::ops::Range;
use std::time::{Duration, Instant};

use trunkless::media::frame::SILENCE;
use trunkless::peer::pattern;

use super::canary::{Stall, overlap};

pub const FRAME: Duration = Duration::from_millis(20);
/// At most this many frames of silence may separate two frames that were sent back to back.
const GAP: u32 = 1;
/// A pause of the host that is longer may cost the bridge a slot. The AI's frame then waits for
/// the next one, and so do all frames behind it.
const SLOT_LOST: Duration = Duration::from_millis(4);

/// The content of a received frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    Silence,
    Frame {
        call: u32,
        index: u32,
    },
    /// Neither silence nor exactly a numbered frame.
    Altered,
}

impl Content {
    pub fn of(samples: &[u8]) -> Content {
        if samples.iter().all(|s| *s | 0x80 == SILENCE) {
            return Content::Silence;
        }
        let read = pattern::read(samples);
        read.map_or(Content::Altered, |(call, index)| Content::Frame { call, index })
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    pub at: Instant,
    /// The place on the receiver's timeline, in frames: from the timestamp.
    pub position: i64,
    pub content: Content,
}

/// All that was sent and heard in one direction of a call.
#[derive(Debug, Clone, Default)]
pub struct Way {
    /// When each numbered frame was sent; the index is its number.
    pub sent: Vec<Instant>,
    /// All frames from the first numbered one on.
    pub heard: Vec<Arrival>,
}

/// The terms by which one direction is judged.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The call number in the frames.
    pub call: u32,
    /// Before the fault: gives the usual delay, from which the added delay counts.
    pub quiet: Range<Instant>,
    /// The fault and its aftermath: the frames whose added delay is bounded.
    pub fault: Range<Instant>,
    /// Bound of the usual delay.
    pub usual: Duration,
    /// Bound of the added delay, which 99 % of the frames must keep.
    pub added: Duration,
    /// The receiver plays at most one frame per slot of 20 ms, so a lost slot delays the rest.
    pub slots: bool,
    /// Frames sent in this time may be lost, and gaps may be between them.
    pub excused: Option<Range<Instant>>,
}

impl Rule {
    fn excuses(&self, sent: Instant) -> bool {
        self.excused.as_ref().is_some_and(|range| range.contains(&sent))
    }
}

/// The measurements of one direction.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    pub frames: usize,
    pub usual: Duration,
    /// 99 % of the frames in the fault had no more added delay than this.
    pub added_p99: Duration,
    pub added_max: Duration,
    pub longest_gap: u32,
    /// Frames lost that were excused.
    pub lost: usize,
}

impl Figures {
    /// The worse of each figure.
    pub fn worse(&self, other: &Figures) -> Figures {
        Figures {
            frames: self.frames.max(other.frames),
            usual: self.usual.max(other.usual),
            added_p99: self.added_p99.max(other.added_p99),
            added_max: self.added_max.max(other.added_max),
            longest_gap: self.longest_gap.max(other.longest_gap),
            lost: self.lost.max(other.lost),
        }
    }
}

/// Judges one direction. Returns its figures and its faults.
pub fn judge(way: &Way, rule: &Rule, stalls: &[Stall]) -> (Figures, Vec<String>) {
    let (lost, mut faults) = content(way, rule);
    let arrivals = in_order(way, rule.call);
    let (longest_gap, gaps) = gaps(way, &arrivals, rule, stalls);
    faults.extend(gaps);
    let mut figures = Figures { frames: arrivals.len(), longest_gap, lost, ..Figures::default() };
    faults.extend(delays(way, &arrivals, rule, stalls, &mut figures));
    (figures, faults)
}

/// The first arrival of each frame that arrived, in order of its number.
fn in_order(way: &Way, call: u32) -> Vec<(usize, Arrival)> {
    let mut first = vec![None; way.sent.len()];
    for arrival in &way.heard {
        if let Content::Frame { call: from, index } = arrival.content
            && from == call
            && let Some(place @ None) = first.get_mut(index as usize)
        {
            *place = Some(*arrival);
        }
    }
    first.into_iter().enumerate().filter_map(|(n, a)| Some((n, a?))).collect()
}

/// Frames that are missing, repeated, out of order, altered or from another call. Also returns the
/// number of frames whose loss is excused.
fn content(way: &Way, rule: &Rule) -> (usize, Vec<String>) {
    let call = rule.call;
    let (mut faults, mut numbers) = (Vec::new(), Vec::new());
    for arrival in &way.heard {
        match arrival.content {
            Content::Silence => {}
            Content::Frame { call: from, index } if from == call => numbers.push(index),
            Content::Frame { call: from, .. } => {
                faults.push(format!("a frame of call {from} arrived"));
            }
            Content::Altered => faults.push("a frame arrived altered".to_owned()),
        }
    }
    faults.truncate(3);
    let mut seen = vec![0u32; way.sent.len()];
    for index in &numbers {
        match seen.get_mut(*index as usize) {
            Some(count) => *count += 1,
            None => faults.push(format!("frame {index} arrived, which was not sent")),
        }
    }
    let of = |wanted: fn(u32) -> bool| -> Vec<usize> {
        (0..seen.len()).filter(|n| wanted(seen[*n])).collect()
    };
    let (mut lost, repeated) = (of(|n| n == 0), of(|n| n > 1));
    let all_lost = lost.len();
    lost.retain(|n| !rule.excuses(way.sent[*n]));
    let all = way.sent.len();
    if all == 0 {
        faults.push("no frame was sent".to_owned());
    }
    if !lost.is_empty() {
        faults.push(format!("{} of {all} frames lost: {}", lost.len(), ranges(&lost)));
    }
    if !repeated.is_empty() {
        faults.push(format!("{} frames repeated: {}", repeated.len(), ranges(&repeated)));
    }
    let swapped = numbers.windows(2).find(|pair| pair[1] < pair[0]);
    if let Some(pair) = swapped {
        faults.push(format!("frame {} arrived before frame {}", pair[0], pair[1]));
    }
    (all_lost - lost.len(), faults)
}

/// Writes 1, 2, 3, 7 as `1-3, 7`, at most five ranges of it.
fn ranges(numbers: &[usize]) -> String {
    let mut found: Vec<(usize, usize)> = Vec::new();
    for n in numbers {
        match found.last_mut() {
            Some((_, last)) if *last + 1 == *n => *last = *n,
            _ => found.push((*n, *n)),
        }
    }
    let shown = found.iter().take(5).map(|(a, b)| match a == b {
        true => a.to_string(),
        false => format!("{a}-{b}"),
    });
    let more = if found.len() > 5 { " and more" } else { "" };
    shown.collect::<Vec<_>>().join(", ") + more
}

/// Whole frames, rounded up.
fn frames(time: Duration) -> u32 {
    time.as_micros().div_ceil(FRAME.as_micros()) as u32
}

/// Silence or standstill between two frames that were sent one after the other. The sender's own
/// delay and the host's pauses do not count.
fn gaps(
    way: &Way,
    arrivals: &[(usize, Arrival)],
    rule: &Rule,
    stalls: &[Stall],
) -> (u32, Vec<String>) {
    let (mut longest, mut faults) = (0, Vec::new());
    for pair in arrivals.windows(2) {
        let [(a, before), (b, after)] = pair else { continue };
        // lost frames are reported as such
        if *b != a + 1 || rule.excuses(way.sent[*a]) {
            continue;
        }
        let late = way.sent[*b].duration_since(way.sent[*a]).saturating_sub(FRAME);
        // a little lateness does not cost a slot, because frames are sent ahead of their slots
        let late = frames(late.saturating_sub(SLOT_LOST));
        let allowed = late + frames(overlap(stalls, way.sent[*a], after.at));
        let inserted = (after.position - before.position - 1).max(0) as u32;
        let still = after.at.saturating_duration_since(before.at);
        let still = frames(still.saturating_sub(FRAME + rule.added));
        let gap = inserted.max(still).saturating_sub(allowed);
        longest = longest.max(gap);
        if gap > GAP {
            faults.push(format!(
                "a gap of {gap} frames before frame {b}: {inserted} inserted, {:?} after frame {a}",
                after.at.saturating_duration_since(before.at)
            ));
        }
    }
    let more = faults.len().saturating_sub(3);
    faults.truncate(3);
    if more > 0 {
        faults.push(format!("and {more} more gaps"));
    }
    (longest, faults)
}

/// The delay that the fault added: the delay of each frame, less the usual delay of its call and
/// less what the host's pauses account for.
fn delays(
    way: &Way,
    arrivals: &[(usize, Arrival)],
    rule: &Rule,
    stalls: &[Stall],
    figures: &mut Figures,
) -> Vec<String> {
    let within = |range: &Range<Instant>| -> Vec<(usize, Arrival)> {
        let arrivals = arrivals.iter().filter(|(n, _)| range.contains(&way.sent[*n]));
        arrivals.copied().collect()
    };
    let delay = |(n, arrival): &(usize, Arrival)| arrival.at.duration_since(way.sent[*n]);
    let mut faults = Vec::new();
    let quiet = within(&rule.quiet);
    let mut usual: Vec<Duration> = quiet.iter().map(delay).collect();
    usual.sort_unstable();
    let Some(usual) = usual.get(usual.len() / 2).copied() else {
        return vec!["no frame arrived before the fault".to_owned()];
    };
    // silence inserted since the beginning, in frames
    let drift = |(n, arrival): &(usize, Arrival)| arrival.position - *n as i64;
    let at_first = quiet.first().map_or(0, drift);
    let added = |frame: &(usize, Arrival)| {
        let mut excused = overlap(stalls, way.sent[frame.0], frame.1.at);
        if rule.slots {
            let began = |s: &&Stall| s.start >= rule.quiet.start && s.start < frame.1.at;
            let lengths = stalls.iter().filter(began).map(|s| s.end - s.start);
            let lost: u32 = lengths.filter(|length| *length > SLOT_LOST).map(frames).sum();
            let inserted = u32::try_from(drift(frame) - at_first).unwrap_or(0);
            excused += FRAME * lost.min(inserted);
        }
        delay(frame).saturating_sub(usual).saturating_sub(excused)
    };
    let mut all: Vec<Duration> = within(&rule.fault).iter().map(added).collect();
    all.sort_unstable();
    let Some(p99) = all.get((all.len() * 99).div_ceil(100).saturating_sub(1)).copied() else {
        return vec!["no frame arrived during the fault".to_owned()];
    };
    (figures.usual, figures.added_p99) = (usual, p99);
    figures.added_max = all.last().copied().unwrap_or_default();
    if usual > rule.usual {
        faults.push(format!("a delay of {usual:?} even before the fault"));
    }
    if p99 > rule.added {
        let late = all.iter().filter(|added| **added > rule.added).count();
        faults.push(format!(
            "{late} of {} frames delayed: p99 {p99:?}, at most {:?}, where {usual:?} is usual",
            all.len(),
            figures.added_max
        ));
    }
    faults
}
