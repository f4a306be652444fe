//! The AI's speech, in ticks of 20 ms: paced speech, then a second of audio in one piece. Every
//! other such piece is a flood that a `clear` cuts short. A pause follows.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

/// Frames in a piece of audio: one second.
pub const PIECE_FRAMES: u8 = 50;
/// Eight seconds of paced speech …
const PACED: u32 = 400;
/// … then the flood, 300 ms later the clear …
const CLEAR: u32 = PACED + 15;
/// … and a pause of 400 ms.
const PAUSE: u32 = 20;
/// The second half of the cycle: paced speech again …
const SECOND: u32 = CLEAR + PAUSE;
/// … and a piece that is played whole …
const QUEUED: u32 = SECOND + PACED;
/// … before the same pause.
const CYCLE: u32 = QUEUED + PIECE_FRAMES as u32 + PAUSE;
/// Pause of half a second after the greeting, so that its one frame stands alone.
const BEFORE: u32 = 25;

/// The messages due at a tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Utterance {
    Nothing,
    /// The first frame of a talkspurt.
    First,
    Paced,
    /// A second of audio, to be cleared.
    Flood,
    Clear,
    /// A second of audio, to be played whole.
    Queued,
}

/// One stream's position in the cycle.
#[derive(Debug, Clone, Copy)]
pub struct Speech {
    /// Ticks left until the cycle starts.
    wait: u32,
    /// The next tick of the cycle.
    tick: u32,
    /// True if the previous tick was paced speech.
    talking: bool,
}

impl Speech {
    /// Creates a stream. Streams start at different points of the cycle, so that their floods do
    /// not coincide, and every other one starts in the second half.
    pub fn new(stream: u32) -> Speech {
        let tick = (f64::from(stream) * 0.618).fract() * f64::from(PACED);
        let half = if stream.is_multiple_of(2) { 0 } else { SECOND };
        Speech { wait: BEFORE, tick: half + tick as u32, talking: false }
    }

    /// Returns what is due at the next tick.
    pub fn advance(&mut self) -> Utterance {
        if self.wait > 0 {
            self.wait -= 1;
            return Utterance::Nothing;
        }
        let paced = self.tick < PACED || (SECOND..QUEUED).contains(&self.tick);
        let utterance = match self.tick {
            _ if paced && self.talking => Utterance::Paced,
            _ if paced => Utterance::First,
            PACED => Utterance::Flood,
            CLEAR => Utterance::Clear,
            QUEUED => Utterance::Queued,
            _ => Utterance::Nothing,
        };
        self.talking = paced;
        self.tick = (self.tick + 1) % CYCLE;
        utterance
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_cycle() {
        let mut speech = Speech::new(0);
        let all: Vec<Utterance> = (0..BEFORE + 2 * CYCLE).map(|_| speech.advance()).collect();
        let cycle = &all[BEFORE as usize..][..CYCLE as usize];
        assert!(all[..BEFORE as usize].iter().all(|u| *u == Utterance::Nothing));
        for half in [0, SECOND as usize] {
            assert_eq!(cycle[half], Utterance::First);
            assert!(cycle[half + 1..half + 400].iter().all(|u| *u == Utterance::Paced));
        }
        assert_eq!((cycle[400], cycle[415]), (Utterance::Flood, Utterance::Clear));
        assert_eq!(cycle[835], Utterance::Queued);
        let quiet = cycle.iter().filter(|u| **u == Utterance::Nothing).count();
        assert_eq!(quiet, 14 + 19 + 69, "no speech while a piece is played, and in the pauses");
        assert_eq!(&all[(BEFORE + CYCLE) as usize..], cycle);
    }

    #[test]
    fn streams_start_apart_and_always_with_a_first_frame() {
        let pieces: std::collections::HashSet<usize> = (0..100)
            .map(|stream| {
                let mut speech = Speech::new(stream);
                let all: Vec<Utterance> = (0..BEFORE + CYCLE).map(|_| speech.advance()).collect();
                assert_eq!(all[BEFORE as usize], Utterance::First);
                let piece = if stream % 2 == 0 { Utterance::Flood } else { Utterance::Queued };
                all.iter().position(|u| *u == piece).unwrap()
            })
            .collect();
        assert!(pieces.len() > 90, "{}", pieces.len());
    }
}
