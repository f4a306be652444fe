//! The AI's speech, in ticks of 20 ms: paced speech, then a second of audio in one piece, then a
//! `clear` in the middle of it, then a pause.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

/// Frames in a flood: one second.
pub const FLOOD_FRAMES: u8 = 50;
/// Eight seconds of paced speech …
const PACED: u32 = 400;
/// … then the flood, 300 ms later the clear …
const CLEAR: u32 = PACED + 15;
/// … and 400 ms after that the cycle starts again.
const CYCLE: u32 = CLEAR + 20;
/// Pause of half a second after the greeting, so that its one frame stands alone.
const BEFORE: u32 = 25;

/// The messages due at a tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Say {
    Nothing,
    /// The first frame of a talkspurt.
    First,
    Paced,
    Flood,
    Clear,
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
    /// not coincide.
    pub fn new(stream: u32) -> Speech {
        let tick = (f64::from(stream) * 0.618).fract() * f64::from(PACED);
        Speech { wait: BEFORE, tick: tick as u32, talking: false }
    }

    /// Returns what is due at the next tick, and advances.
    pub fn say(&mut self) -> Say {
        if self.wait > 0 {
            self.wait -= 1;
            return Say::Nothing;
        }
        let say = match self.tick {
            0..PACED if self.talking => Say::Paced,
            0..PACED => Say::First,
            PACED => Say::Flood,
            CLEAR => Say::Clear,
            _ => Say::Nothing,
        };
        self.talking = self.tick < PACED;
        self.tick = (self.tick + 1) % CYCLE;
        say
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_cycle() {
        let mut speech = Speech::new(0);
        let says: Vec<Say> = (0..BEFORE + 2 * CYCLE).map(|_| speech.say()).collect();
        let cycle = &says[BEFORE as usize..][..CYCLE as usize];
        assert!(says[..BEFORE as usize].iter().all(|s| *s == Say::Nothing));
        assert_eq!(cycle[0], Say::First);
        assert!(cycle[1..400].iter().all(|s| *s == Say::Paced));
        assert_eq!((cycle[400], cycle[415]), (Say::Flood, Say::Clear));
        assert_eq!(cycle.iter().filter(|s| **s == Say::Nothing).count(), 33);
        assert_eq!(&says[(BEFORE + CYCLE) as usize..], cycle);
    }

    #[test]
    fn streams_start_apart_and_always_with_a_first_frame() {
        let floods: std::collections::HashSet<usize> = (0..100)
            .map(|stream| {
                let mut speech = Speech::new(stream);
                let says: Vec<Say> = (0..BEFORE + CYCLE).map(|_| speech.say()).collect();
                assert_eq!(says[BEFORE as usize], Say::First);
                says.iter().position(|s| *s == Say::Flood).unwrap()
            })
            .collect();
        assert!(floods.len() > 90, "{}", floods.len());
    }
}
