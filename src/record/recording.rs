//! A recording of one call: lays both tracks side by side, and hands them to the writer in blocks.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::command::RecordCommand;
use crate::media::frame::{FRAME_SAMPLES, FRAME_TIME, Samples};
use crate::media::g711::Law;
use crate::record::align::{Aligner, Place};
use crate::record::queue::{Block, End, Job, Queue};
use crate::record::sidecar::{Event, Interval, Network, Outcome, Sidecar, State, What};

/// Frames per block: 200 ms, so that a crash loses little.
pub const BLOCK_FRAMES: u64 = 10;
const BLOCK_BYTES: usize = BLOCK_FRAMES as usize * FRAME_SAMPLES * 2;
/// Frames by which one track may be ahead of the other, as after a stall of this process.
const WINDOW: u64 = 10 * BLOCK_FRAMES;
const MAX_EVENTS: usize = 10_000;
/// Total bytes of the marks' names.
const MAX_NAMES: usize = 1 << 20;

/// Input of a recording. Frames are numbered from the call's time 0.
#[derive(Debug, Clone, PartialEq)]
pub enum Tap {
    /// `heard_at`: arrival after time 0, for a frame that was received and not made up.
    Caller {
        index: u64,
        law: Law,
        samples: Samples,
        heard_at: Option<Duration>,
    },
    /// A frame that was played to the caller, mu-law.
    Ai {
        index: u64,
        samples: Samples,
    },
    Digit(char),
    Mark(String),
}

#[derive(Debug, Clone, Copy)]
enum Track {
    Caller,
    Ai,
}

/// Details for the sidecar that are known only at the end.
#[derive(Debug, Clone)]
pub struct Ending {
    /// The call's end reason, or another word for the sidecar.
    pub reason: &'static str,
    pub network: Option<Network>,
    pub outcome: Outcome,
    /// See [`CallInfo::details`].
    pub details: BTreeMap<String, String>,
}

impl Ending {
    pub fn new(reason: &'static str) -> Ending {
        let (outcome, details) = (Outcome::default(), BTreeMap::new());
        Ending { reason, network: None, outcome, details }
    }
}

/// A recording in progress. Dropping it ends it too.
pub struct Recording {
    /// The recording's number in the queue.
    key: u64,
    queue: Queue,
    /// The sidecar so far; completed at the end.
    sidecar: Sidecar,
    /// Law of the blocks.
    law: Law,
    /// The call's frame at which the file begins.
    first: u64,
    /// The file's frame at which the first of `blocks` begins.
    base: u64,
    /// Blocks not handed over yet; a block is empty until a track writes to it.
    blocks: VecDeque<Vec<u8>>,
    /// The file's next frame on each track.
    next: [u64; 2],
    aligner: Aligner,
    /// The file's frame at which the current pause began.
    paused_at: Option<u64>,
    /// Bytes of the marks' names so far.
    named: usize,
    /// Milliseconds of audio that the writer has dropped, or cannot write at the moment.
    unwritten_ms: Arc<AtomicU64>,
    /// True once the writer has been sent the end.
    ended: bool,
}

fn ms(frames: u64) -> u64 {
    frames * FRAME_TIME.as_millis() as u64
}

impl Recording {
    /// Creates a recording for which the writer already has a [`Job::Begin`]. `first` is the call's
    /// frame at which the file begins.
    pub fn new(
        key: u64,
        queue: Queue,
        sidecar: Sidecar,
        law: Law,
        first: u64,
        unwritten_ms: Arc<AtomicU64>,
    ) -> Recording {
        Recording {
            key,
            queue,
            sidecar,
            law,
            first,
            base: 0,
            blocks: VecDeque::new(),
            next: [0, 0],
            aligner: Aligner::default(),
            paused_at: None,
            named: 0,
            unwritten_ms,
            ended: false,
        }
    }

    /// Adds audio or an event.
    pub fn tap(&mut self, tap: Tap) {
        match tap {
            Tap::Caller { index, law, mut samples, heard_at } => {
                let mut place = self.aligner.place(index, heard_at, law, &samples);
                // its position has been handed over already: better late in the file than lost
                let written = self.first + self.base;
                if let Place::At(at) | Place::Twice(at) = place
                    && at < written
                    && index >= self.first
                {
                    self.aligner.move_on(written - at);
                    place = Place::At(written);
                }
                law.convert(self.law, &mut samples);
                match place {
                    Place::At(at) => self.put(Track::Caller, at, &samples),
                    Place::Twice(at) => {
                        self.put(Track::Caller, at.saturating_sub(1), &samples);
                        self.put(Track::Caller, at, &samples);
                    }
                    Place::Nowhere => {}
                }
            }
            Tap::Ai { index, mut samples } => {
                Law::Mu.convert(self.law, &mut samples);
                // the same for an AI that is slower than real time
                let free = self.base.max(self.next[Track::Ai as usize]);
                let late = index >= self.first && index < self.first + free;
                self.put(Track::Ai, if late { self.first + free } else { index }, &samples);
            }
            Tap::Digit(digit) => {
                // recordings are paused in order to hide keys
                if self.paused_at.is_none() {
                    self.event(Track::Caller, What::Dtmf(digit));
                }
            }
            Tap::Mark(name) => {
                self.named += name.len();
                self.event(Track::Ai, What::Mark(name));
            }
        }
    }

    fn event(&mut self, track: Track, what: What) {
        if self.sidecar.events.len() >= MAX_EVENTS || self.named > MAX_NAMES {
            self.sidecar.events_dropped += 1;
            return;
        }
        let at_ms = ms(self.next[track as usize]);
        self.sidecar.events.push(Event { at_ms, what });
    }

    pub fn is_paused(&self) -> bool {
        self.paused_at.is_some()
    }

    /// Pauses or resumes; the owner of this recording handles `Start` and `Stop`.
    pub fn command(&mut self, command: RecordCommand) {
        match command {
            RecordCommand::Pause if self.paused_at.is_none() => {
                self.paused_at = Some(self.next[0].min(self.next[1]));
            }
            RecordCommand::Resume => self.resume(),
            _ => {}
        }
    }

    fn resume(&mut self) {
        if let Some(from) = self.paused_at.take() {
            let to = self.next[0].max(self.next[1]);
            self.sidecar.pauses.push(Interval { from_ms: ms(from), to_ms: ms(to) });
        }
    }

    fn put(&mut self, track: Track, index: u64, samples: &Samples) {
        let Some(at) = index.checked_sub(self.first) else { return };
        self.make_room(at);
        let next = &mut self.next[track as usize];
        *next = (*next).max(at + 1);
        if let Some(relative) = at.checked_sub(self.base).filter(|_| self.paused_at.is_none()) {
            let (block, frame) = (relative / BLOCK_FRAMES, relative % BLOCK_FRAMES);
            let block = block as usize;
            if self.blocks.len() <= block {
                self.blocks.resize_with(block + 1, Vec::new);
            }
            let block = &mut self.blocks[block];
            if block.is_empty() {
                block.resize(BLOCK_BYTES, self.law.silence());
            }
            let start = frame as usize * FRAME_SAMPLES * 2 + track as usize;
            let places = block[start..].iter_mut().step_by(2);
            places.zip(samples).for_each(|(place, sample)| *place = *sample);
        }
        while self.next[0].min(self.next[1]) >= self.base + BLOCK_FRAMES {
            self.hand_over(BLOCK_FRAMES);
        }
    }

    /// Makes room for frame `at`, by handing over blocks even if one track has not filled them.
    fn make_room(&mut self, at: u64) {
        while at >= self.base + WINDOW {
            // a stall of hours is handed over as one block of silence
            let far = (at - self.base - WINDOW) / BLOCK_FRAMES + 1;
            let blocks = if self.blocks.is_empty() { far } else { 1 };
            self.hand_over(blocks * BLOCK_FRAMES);
        }
    }

    /// Queues the next `frames` for the writer, or notes a gap if the queue is full.
    fn hand_over(&mut self, frames: u64) {
        let first = self.base;
        self.base += frames;
        let mut samples = self.blocks.pop_front().unwrap_or_default();
        samples.truncate(frames as usize * FRAME_SAMPLES * 2);
        if !self.queue.block(self.key, Block { first, frames, samples }) {
            let (from_ms, to_ms) = (ms(first), ms(first + frames));
            match self.sidecar.gaps.last_mut().filter(|gap| gap.to_ms == from_ms) {
                Some(gap) => gap.to_ms = to_ms,
                None => self.sidecar.gaps.push(Interval { from_ms, to_ms }),
            }
        }
    }

    /// True if audio has been dropped, which can never be in the file.
    pub fn has_gaps(&self) -> bool {
        !self.sidecar.gaps.is_empty()
    }

    /// Returns the milliseconds of audio that are missing from the file: dropped because the queue
    /// was full, or not written because of the disk. The latter may still be written later.
    pub fn lost_ms(&self) -> u64 {
        let dropped: u64 = self.sidecar.gaps.iter().map(|gap| gap.to_ms - gap.from_ms).sum();
        let here = match self.unwritten_ms.load(Ordering::Relaxed) {
            0 => 0,
            // what has not been handed over waits for the same disk
            unwritten => unwritten + ms(self.next[0].max(self.next[1]).saturating_sub(self.base)),
        };
        dropped + here
    }

    /// Hands over the remaining audio, ends the recording and returns its id.
    pub fn finish(mut self, ending: Ending) -> String {
        self.end(ending);
        self.sidecar.id.clone()
    }

    fn end(&mut self, ending: Ending) {
        self.ended = true;
        self.resume();
        let frames = self.next[0].max(self.next[1]);
        while self.base < frames {
            self.hand_over(BLOCK_FRAMES.min(frames - self.base));
        }
        let mut sidecar = self.sidecar.clone();
        sidecar.state = if sidecar.gaps.is_empty() { State::Complete } else { State::Partial };
        sidecar.duration_ms = ms(frames);
        ending.reason.clone_into(&mut sidecar.end_reason);
        sidecar.network = ending.network;
        sidecar.outcome = ending.outcome;
        sidecar.call.details.extend(ending.details);
        sidecar.alignment.steps = self.aligner.steps;
        sidecar.alignment.offset_ms = self.aligner.offset_us as f64 / 1000.0;
        self.queue.send(Job::End { key: self.key, end: Box::new(End { sidecar, frames }) });
    }
}

impl Drop for Recording {
    /// Ends the recording of a call that panicked.
    fn drop(&mut self) {
        if !self.ended {
            self.end(Ending::new("internal"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::Receiver;

    use super::*;
    use crate::media::frame::SILENCE;
    use crate::record::sidecar::CallInfo;

    fn sidecar() -> Sidecar {
        Sidecar::begun("1-a", CallInfo::default(), Duration::ZERO, "x/1-a".as_ref())
    }

    struct Rig {
        recording: Option<Recording>,
        jobs: Receiver<Job>,
    }

    impl Rig {
        fn new(limit: usize, law: Law, first: u64) -> Rig {
            let (queue, jobs) = Queue::new(limit);
            let recording = Recording::new(1, queue, sidecar(), law, first, Arc::default());
            Rig { recording: Some(recording), jobs }
        }

        fn caller(&mut self, index: u64, byte: u8) {
            let (law, samples) = (Law::Mu, [byte; FRAME_SAMPLES]);
            let tap = Tap::Caller { index, law, samples, heard_at: None };
            self.recording.as_mut().unwrap().tap(tap);
        }

        fn ai(&mut self, index: u64, byte: u8) {
            let samples = [byte; FRAME_SAMPLES];
            self.recording.as_mut().unwrap().tap(Tap::Ai { index, samples });
        }

        fn command(&mut self, command: RecordCommand) {
            self.recording.as_mut().unwrap().command(command);
        }

        /// Returns the first byte of each frame, caller and AI, as in the written file, and the
        /// sidecar.
        fn finish(mut self) -> (Vec<(u8, u8)>, Sidecar) {
            let ending = Ending::new("caller_hangup");
            self.recording.take().unwrap().finish(ending);
            let mut frames = Vec::new();
            for job in self.jobs.try_iter() {
                match job {
                    Job::Block { block, .. } => {
                        frames.resize((block.first + block.frames) as usize, (SILENCE, SILENCE));
                        let each = block.samples.chunks_exact(2 * FRAME_SAMPLES);
                        for (n, frame) in each.enumerate() {
                            frames[block.first as usize + n] = (frame[0], frame[1]);
                            assert!(frame.chunks(2).all(|pair| pair == &frame[..2]));
                        }
                    }
                    Job::End { end, .. } => {
                        frames.resize(end.frames as usize, (SILENCE, SILENCE));
                        return (frames, end.sidecar);
                    }
                    _ => panic!("unexpected job"),
                }
            }
            panic!("the recording did not end")
        }
    }

    #[test]
    fn late_frames_of_the_ai_are_kept() {
        let mut rig = Rig::new(1 << 20, Law::Mu, 0);
        for n in 0..300 {
            rig.caller(n, 1);
            // the AI needs 30 ms for 20 ms of audio
            if n % 3 < 2 {
                rig.ai(n / 3 * 2 + n % 3, 2);
            }
        }
        let (frames, _) = rig.finish();
        assert_eq!(frames.iter().filter(|(_, ai)| *ai == 2).count(), 200);
    }

    #[test]
    fn tracks_are_side_by_side_whichever_is_ahead() {
        for ahead in [-60i64, -7, 0, 7, 60] {
            let mut rig = Rig::new(1000, Law::Mu, 0);
            for n in -70..210i64 {
                if (0..133).contains(&n) {
                    rig.caller(n as u64, n as u8);
                }
                if (0..133).contains(&(n + ahead)) {
                    rig.ai((n + ahead) as u64, (n + ahead) as u8);
                }
            }
            let (frames, sidecar) = rig.finish();
            let wanted: Vec<(u8, u8)> = (0..133).map(|n| (n, n)).collect();
            assert_eq!(frames, wanted, "{ahead}");
            assert_eq!((sidecar.state, sidecar.duration_ms), (State::Complete, 2660));
        }
    }

    #[test]
    fn a_stall_and_a_track_that_ends_early_become_silence() {
        let mut rig = Rig::new(1000, Law::Mu, 0);
        rig.caller(0, 1);
        rig.ai(0, 2);
        // the machine was suspended for an hour
        rig.ai(180_000, 3);
        let (frames, sidecar) = rig.finish();
        assert_eq!((frames.len(), frames[0], frames[180_000]), (180_001, (1, 2), (SILENCE, 3)));
        assert!(frames[1..180_000].iter().all(|f| *f == (SILENCE, SILENCE)));
        assert_eq!(sidecar.state, State::Complete);
    }

    #[test]
    fn dropped_blocks_become_silence_of_the_same_length() {
        let mut rig = Rig::new(2, Law::Mu, 0);
        for n in 0..45 {
            rig.caller(n, 5);
            rig.ai(n, 6);
        }
        let (frames, sidecar) = rig.finish();
        assert_eq!(frames.len(), 45);
        assert!(frames[..20].iter().all(|f| *f == (5, 6)));
        assert!(frames[20..].iter().all(|f| *f == (SILENCE, SILENCE)));
        assert_eq!(sidecar.state, State::Partial);
        assert_eq!(sidecar.gaps, [Interval { from_ms: 400, to_ms: 900 }]);
    }

    #[test]
    fn a_pause_is_silence_and_hides_keys() {
        let mut rig = Rig::new(1000, Law::Mu, 0);
        for n in 0..90u64 {
            match n {
                30 => rig.command(RecordCommand::Pause),
                60 => rig.command(RecordCommand::Resume),
                _ => {}
            }
            rig.caller(n, 5);
            rig.ai(n, 6);
            if n % 20 == 5 {
                rig.recording.as_mut().unwrap().tap(Tap::Digit('4'));
            }
        }
        let (frames, sidecar) = rig.finish();
        let silent = |n: usize| frames[n] == (SILENCE, SILENCE);
        assert!((0..90).all(|n| silent(n) == (30..60).contains(&n)));
        assert_eq!(sidecar.pauses, [Interval { from_ms: 600, to_ms: 1200 }]);
        let at: Vec<u64> = sidecar.events.iter().map(|event| event.at_ms).collect();
        assert_eq!(at, [120, 520, 1320, 1720]);
    }

    #[test]
    fn a_recording_started_mid_call_begins_there() {
        let mut rig = Rig::new(1000, Law::Mu, 500);
        for n in 495..520 {
            rig.caller(n, 5);
            rig.ai(n, 6);
        }
        let (frames, _) = rig.finish();
        assert_eq!(frames, vec![(5, 6); 20]);
    }

    #[test]
    fn dropping_a_recording_ends_it() {
        let mut rig = Rig::new(1000, Law::Mu, 0);
        rig.caller(0, 1);
        drop(rig.recording.take());
        let ends = rig.jobs.try_iter().filter_map(|job| match job {
            Job::End { end, .. } => Some(end.sidecar.end_reason),
            _ => None,
        });
        assert_eq!(ends.collect::<Vec<_>>(), ["internal"]);
    }

    #[test]
    fn the_callers_a_law_is_kept_and_the_ais_mu_law_converted() {
        let mut rig = Rig::new(1000, Law::A, 0);
        let (law, samples) = (Law::A, [0x12; FRAME_SAMPLES]);
        let tap = Tap::Caller { index: 0, law, samples, heard_at: None };
        rig.recording.as_mut().unwrap().tap(tap);
        rig.ai(0, 0x34);
        let mut played = [0x34];
        Law::Mu.convert(Law::A, &mut played);
        assert_eq!(rig.finish().0, [(0x12, played[0])]);
    }

    #[test]
    fn events_are_bounded() {
        let mut rig = Rig::new(1000, Law::Mu, 0);
        for n in 0..MAX_EVENTS + 5 {
            rig.recording.as_mut().unwrap().tap(Tap::Mark(n.to_string()));
        }
        let sidecar = rig.finish().1;
        assert_eq!((sidecar.events.len(), sidecar.events_dropped), (MAX_EVENTS, 5));
    }
}
