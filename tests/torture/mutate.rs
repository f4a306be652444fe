//! Feeds the agent messages with a few random changes. The random generator has a fixed seed.

use std::time::{Duration, Instant};

use crate::subject::{MAX_CALLS, Subject, Who};

const MESSAGES: usize = 300_000;
/// Time limit. A slow machine gets through fewer messages, but in the same order.
const TIME: Duration = Duration::from_secs(4);
const SEED: u64 = 0x5eed_4475_5118;
/// Pieces of text that matter to a parser and so find more errors than random octets.
const PIECES: [&[u8]; 24] = [
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b"\r",
    b" ",
    b"\t",
    b"\0",
    b"\"",
    b"\\",
    b"<",
    b">",
    b";",
    b",",
    b"=",
    b":",
    b"@",
    b"%",
    b"[",
    b"]",
    b"4294967296",
    b"-1",
    b"\xff\xfe",
    b";tag=",
    b"SIP/2.0",
];

/// The random generator, xorshift64*: repeatable, and good enough to choose octets.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).expect("31 bits") % limit.max(1)
    }
}

pub fn run(seeds: &[Vec<u8>]) {
    let began = Instant::now();
    let mut dice = Dice(SEED);
    let mut subjects = [Subject::new(Who::Extension), Subject::new(Who::Trunk)];
    let mut made = 0;
    while made < MESSAGES && began.elapsed() < TIME {
        for _ in 0..100 {
            let mut data = seeds[dice.below(seeds.len())].clone();
            for _ in 0..=dice.below(4) {
                change(&mut data, &mut dice, seeds);
            }
            subjects[made % 2].feed(&data);
            made += 1;
        }
        for subject in &mut subjects {
            subject.wait(Duration::from_millis(400));
            assert!(subject.agent.call_count() <= MAX_CALLS);
            assert!(subject.agent.transaction_count() <= 3 * 8192);
        }
    }
    println!("mutations: {made} messages, seed {SEED:#x}");
    for subject in &mut subjects {
        assert!(subject.is_alive());
        // not long enough for every call to end: a mutation may ask for a session timer of years
        subject.wait(Duration::from_secs(200));
        let open = subject.agent.transaction_count();
        assert!(open <= MAX_CALLS + 4, "{open} transactions are still open");
    }
}

fn change(data: &mut Vec<u8>, dice: &mut Dice, seeds: &[Vec<u8>]) {
    let at = dice.below(data.len());
    match dice.below(6) {
        0 if !data.is_empty() => data[at] = u8::try_from(dice.below(256)).expect("an octet"),
        1 if !data.is_empty() => drop(data.remove(at)),
        2 => {
            let piece = PIECES[dice.below(PIECES.len())];
            data.splice(at..at, piece.iter().copied());
        }
        3 => data.truncate(at),
        4 => {
            let end = (at + dice.below(40)).min(data.len());
            let copy = data[at..end].to_vec();
            data.splice(at..at, copy);
        }
        _ => {
            let other = &seeds[dice.below(seeds.len())];
            let from = dice.below(other.len());
            let end = (from + dice.below(80)).min(other.len());
            let replaced = (at + end - from).min(data.len());
            data.splice(at..replaced, other[from..end].iter().copied());
        }
    }
}
