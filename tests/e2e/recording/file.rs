//! Recordings as files: both tracks read back frame by frame, and the position of each number.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use trunkless::folder::Root;
use trunkless::media::frame::FRAME_SAMPLES;
use trunkless::media::g711::Law;
use trunkless::peer::pattern;
use trunkless::record::disk::{sha256, with_ending};
use trunkless::record::library;
use trunkless::record::sidecar::Sidecar;
use trunkless::record::wav::Encoding;

/// The length of a G.711 file's header.
pub const HEAD: usize = 58;
pub const CALLER: usize = 0;
pub const AI: usize = 1;
/// More frames than any call in these tests has.
const MOST: u32 = 5000;

/// A finished recording, checked against its sidecar.
pub struct Recording {
    pub sidecar: Sidecar,
    pub wav: PathBuf,
    pub law: Law,
    /// The frames of the caller and of the AI.
    pub tracks: [Vec<Vec<u8>>; 2],
}

/// All finished recordings below a directory.
pub fn all(directory: &Path) -> Vec<Recording> {
    let root = Root::new(directory.to_owned());
    let mut paths = Vec::new();
    library::walk(&root, &mut |path, _| paths.push(path.to_owned())).expect("the directory");
    paths.iter().map(|path| Recording::read(&root, path)).collect()
}

/// The only recording, found by its call's id.
pub fn only(directory: &Path) -> Recording {
    let all = all(directory);
    assert_eq!(all.len(), 1, "one recording");
    let root = Root::new(directory.to_owned());
    let found = library::find(&root, &all[0].sidecar.call.id).expect("it is found by its id");
    Recording::read(&root, &found)
}

/// The number of sample bytes in a file's header. The header must be complete, and the file at
/// least that long.
pub fn named_bytes(file: &[u8], law: Law) -> usize {
    assert!(file.len() >= HEAD, "{} bytes", file.len());
    let named = u32::from_le_bytes(file[HEAD - 4..HEAD].try_into().expect("four bytes"));
    assert_eq!(file[..HEAD], Encoding::from(law).header(2, named.into()), "the header");
    assert!(HEAD + named as usize <= file.len(), "{named} of {} bytes", file.len());
    named as usize
}

impl Recording {
    fn read(root: &Root, path: &Path) -> Recording {
        let sidecar = library::read(root, path).expect("a sidecar");
        let wav = root.path().join(with_ending(path, "wav"));
        let file = std::fs::read(&wav).expect("the audio");
        let law = if sidecar.audio.format == "alaw" { Law::A } else { Law::Mu };
        let (audio, data) = (&sidecar.audio, &file[HEAD..]);
        assert_eq!(named_bytes(&file, law), data.len(), "{}: the header", wav.display());
        assert_eq!(audio.bytes, file.len() as u64);
        assert_eq!(audio.samples * 2, data.len() as u64);
        assert_eq!(audio.sha256, sha256(&file[..]).expect("bytes"), "{}", wav.display());
        assert_eq!(Path::new(&sidecar.path), path);
        for ending in ["wav", "json"] {
            let of = root.path().join(with_ending(path, ending));
            let mode = std::fs::metadata(&of).expect("it is there").permissions().mode();
            assert_eq!(mode & 0o7777, 0o640, "{}", of.display());
        }
        let track = |nth: usize| -> Vec<Vec<u8>> {
            let samples: Vec<u8> = data.iter().skip(nth).step_by(2).copied().collect();
            samples.chunks(FRAME_SAMPLES).map(<[u8]>::to_vec).collect()
        };
        Recording { tracks: [track(CALLER), track(AI)], sidecar, wav, law }
    }

    /// The call number, which is the caller's number too (`Caller::dial_direct`).
    pub fn call(&self) -> u32 {
        self.sidecar.call.from_number.parse().expect("a call's number")
    }

    /// Position and number of each numbered frame of `call` in a track.
    pub fn numbers(&self, track: usize, call: u32) -> Vec<(usize, u32)> {
        let table: HashMap<Vec<u8>, u32> = match self.law {
            Law::Mu => HashMap::new(),
            // some mu-law samples share an A-law sample
            Law::A => (0..MOST).map(|n| (said(call, n, Law::A), n)).collect(),
        };
        let number = |frame: &Vec<u8>| match self.law {
            Law::Mu => pattern::read(frame).map(|(of, number)| {
                assert_eq!(of, call, "audio of another call in {}", self.wav.display());
                number
            }),
            Law::A => table.get(frame).copied(),
        };
        let placed = self.tracks[track].iter().enumerate();
        placed.filter_map(|(place, frame)| Some((place, number(frame)?))).collect()
    }

    /// True if, by the sidecar, the frame at this position could not be written.
    pub fn in_gap(&self, place: usize) -> bool {
        let ms = place as u64 * 20;
        self.sidecar.gaps.iter().any(|gap| (gap.from_ms..gap.to_ms).contains(&ms))
    }

    pub fn lost_ms(&self) -> u64 {
        self.sidecar.gaps.iter().map(|gap| gap.to_ms - gap.from_ms).sum()
    }

    /// Asserts that a track holds `0, 1, 2 … frames-1` of `call` in this order, with silence
    /// anywhere between them. No more of them may be missing than there is room for in gaps.
    pub fn assert_whole(&self, track: usize, call: u32, frames: u32) {
        let who = format!("{}, track {track}", self.wav.display());
        let numbers: Vec<u32> = self.numbers(track, call).into_iter().map(|(_, n)| n).collect();
        let in_order = numbers.windows(2).all(|pair| pair[0] < pair[1]);
        assert!(in_order && numbers.iter().all(|n| *n < frames), "{who}: {numbers:?}");
        let gaps = (0..self.tracks[track].len()).filter(|place| self.in_gap(*place)).count();
        let missing = frames as usize - numbers.len();
        assert!(missing <= gaps, "{who}: {missing} missing, room for {gaps} in gaps: {numbers:?}");
    }

    /// Asserts that a track holds `0, 1, 2 … frames-1` of `call` in a row, with silence before them
    /// and in gaps. Returns the position of number 0.
    pub fn assert_track(&self, track: usize, call: u32, frames: u32) -> usize {
        let who = format!("{}, track {track}", self.wav.display());
        let silence = self.law.silence();
        let numbers = self.numbers(track, call);
        let (place, number) = numbers.first().unwrap_or_else(|| panic!("{who}: no numbers"));
        let first = place.checked_sub(*number as usize);
        let first = first.unwrap_or_else(|| panic!("{who}: {number} at {place}"));
        let at: HashMap<usize, u32> = numbers.iter().copied().collect();
        for (place, frame) in self.tracks[track].iter().enumerate() {
            let quiet = frame.iter().all(|sample| *sample == silence);
            let number = place.checked_sub(first).map(|n| n as u32).filter(|n| *n < frames);
            match number {
                _ if self.in_gap(place) => assert!(quiet, "{who}: {place} is in a gap"),
                Some(number) => assert_eq!(at.get(&place), Some(&number), "{who}: at {place}"),
                None if place < first => assert!(quiet, "{who}: {place} is before the first"),
                None => assert_eq!(at.get(&place), None, "{who}: at {place}, after the last"),
            }
        }
        let end = first + frames as usize;
        assert!(self.tracks[track].len() >= end, "{who}: ends at {}", self.tracks[track].len());
        first
    }
}

/// A numbered frame as it goes over the wire.
fn said(call: u32, number: u32, law: Law) -> Vec<u8> {
    let mut samples = pattern::frame(call, number);
    Law::Mu.convert(law, &mut samples);
    samples.to_vec()
}
