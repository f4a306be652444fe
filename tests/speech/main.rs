//! Voice activity and machine detection on recordings that make.sh makes: delays and errors. Needs
//! espeak-ng and sox; tests/run.sh installs them. `--nocapture` prints the figures of
//! docs/speech.md.

use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use trunkless::call::speech::{Listener, SpeechSettings};
use trunkless::media::frame::{Frame, Kind, Samples};
use trunkless::media::g711::Law;
use trunkless::media::machine::Finding;
use trunkless::media::quiet::energy;
use trunkless::stream::HeardSign;

const PAUSE: Duration = Duration::from_millis(200);

static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/speech/make.sh");
    let output = Command::new("bash").arg(script).arg(folder.path()).output().expect("bash runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    folder
});

fn recording(name: &str) -> Vec<Samples> {
    let path = FOLDER.path().join(format!("{name}.ulaw"));
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    bytes.as_chunks::<160>().0.to_vec()
}

/// The names of the recordings that begin like this.
fn named(prefix: &str) -> Vec<String> {
    let entries = std::fs::read_dir(FOLDER.path()).expect("the folder");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    let names = names.filter_map(|name| Some(Path::new(&name).file_stem()?.to_str()?.to_owned()));
    let mut names: Vec<String> = names.filter(|name| name.starts_with(prefix)).collect();
    names.sort();
    names
}

/// The signs heard in a recording.
fn signs(frames: &[Samples]) -> Vec<HeardSign> {
    let (events, pause, machine_detection) = (true, PAUSE, true);
    let settings = SpeechSettings { events, pause, machine_detection, ..Default::default() };
    let mut listener = Listener::new(settings, None);
    let (mut found, now) = (Vec::new(), Instant::now());
    for (n, samples) in frames.iter().enumerate() {
        let frame = Frame { samples: *samples, law: Law::Mu, kind: Kind::Heard };
        listener.caller(now, &frame, (n as u64 + 1) * 20, true, &mut |sign| found.push(sign));
    }
    found
}

/// The stretches of speech that were found, in ms, from the time of each event.
fn stretches(frames: &[Samples]) -> Vec<(u64, u64)> {
    let (mut all, mut began) = (Vec::new(), None);
    for sign in signs(frames) {
        match sign {
            HeardSign::SpeechStarted { at_ms } => began = Some(at_ms),
            // the event comes after the pause
            HeardSign::SpeechStopped { at_ms } => {
                all.push((began.take().expect("a begin"), at_ms + PAUSE.as_millis() as u64));
            }
            HeardSign::Answer { .. } => {}
        }
    }
    all.extend(began.map(|began| (began, frames.len() as u64 * 20)));
    all
}

/// The sentences of the clean recording, in ms: there is a second of silence around each.
fn sentences() -> Vec<(u64, u64)> {
    let frames = recording("speech-clean");
    let mut all: Vec<(u64, u64)> = Vec::new();
    for (n, samples) in frames.iter().enumerate() {
        if energy(Law::Mu, samples) < 330 * 330 * 160 {
            continue;
        }
        let (from, to) = (n as u64 * 20, n as u64 * 20 + 20);
        match all.last_mut().filter(|last| from < last.1 + 1000) {
            Some(last) => last.1 = to,
            None => all.push((from, to)),
        }
    }
    all
}

fn median(values: &mut [i64]) -> i64 {
    values.sort_unstable();
    values[values.len() / 2]
}

/// How much later each sentence is reported than its first sound, and its end than the pause after
/// the last one.
fn delays(name: &str) -> (Vec<i64>, Vec<i64>) {
    let (sentences, found) = (sentences(), stretches(&recording(name)));
    assert_eq!(sentences.len(), 8, "{sentences:?}");
    let (mut begins, mut ends) = (Vec::new(), Vec::new());
    for (from, to) in sentences {
        let of = found.iter().filter(|(f, t)| *f < to + 500 && *t > from);
        let of: Vec<_> = of.collect();
        assert!(!of.is_empty(), "{name}: the sentence at {from} ms was not heard: {found:?}");
        begins.push(of[0].0 as i64 - from as i64);
        ends.push(of[of.len() - 1].1 as i64 - to as i64 - PAUSE.as_millis() as i64);
    }
    println!("{name}: begin {begins:?} ms, end {ends:?} ms");
    (begins, ends)
}

#[test]
fn speech_is_reported_within_60_ms() {
    let (mut begins, mut ends) = delays("speech-clean");
    assert!(begins.iter().all(|late| (0..=60).contains(late)), "{begins:?}");
    assert!(ends.iter().all(|late| (-100..=100).contains(late)), "{ends:?}");
    println!("clean: median begin {} ms, end {} ms", median(&mut begins), median(&mut ends));
}

#[test]
fn speech_in_noise_is_reported_soon() {
    for name in ["speech-white", "speech-pink"] {
        let (mut begins, mut ends) = delays(name);
        let (begin, end) = (median(&mut begins), median(&mut ends));
        println!("{name}: median begin {begin} ms, end {end} ms");
        assert!(begin <= 100 && begins.iter().all(|late| *late <= 240), "{begins:?}");
        assert!(end.abs() <= 200, "{ends:?}");
    }
}

#[test]
fn noise_and_tones_are_not_speech() {
    for name in named("noise-") {
        let frames = recording(&name);
        let found = stretches(&frames);
        let speech: u64 = found.iter().map(|(from, to)| to - from).sum();
        let share = speech as f64 / (frames.len() as f64 * 20.0);
        let n = found.len();
        println!(
            "{name}: {n} times in {} s, {:.1} % of the time",
            frames.len() / 50,
            share * 100.0
        );
        match name.as_str() {
            // plucked notes have the onsets of words
            "noise-music" => assert!(share < 0.9, "{found:?}"),
            _ => assert_eq!(found, [], "{name}"),
        }
    }
}

#[test]
fn people_and_machines_are_told_apart() {
    let (mut wrong, mut times) = (Vec::new(), Vec::new());
    let all = [named("human-"), named("machine-")].concat();
    for name in &all {
        let is_machine = name.starts_with("machine-");
        let found = signs(&recording(name));
        let verdict = found.iter().find_map(|sign| match sign {
            HeardSign::Answer { finding: Finding::AnsweredBy { machine, confidence }, at_ms } => {
                Some((*machine, *confidence, *at_ms))
            }
            _ => None,
        });
        println!("{name}: {verdict:?}");
        match verdict {
            Some((machine, _, at_ms)) if machine == is_machine => times.push(at_ms as i64),
            _ => wrong.push(name.as_str()),
        }
    }
    println!("{} of {} wrong: {wrong:?}; median {} ms", wrong.len(), all.len(), median(&mut times));
    assert!(wrong.len() * 10 <= all.len(), "{wrong:?}");
}

#[test]
fn every_beep_is_found_and_nothing_else() {
    for name in named("machine-") {
        let frames = recording(&name);
        let beeps: Vec<(u64, Finding)> = beeps(&frames);
        println!("{name}: {beeps:?}");
        let [(at_ms, Finding::Beep { .. })] = beeps[..] else { panic!("{name}: {beeps:?}") };
        // the beep ends 3 s before the recording does
        let late = at_ms as i64 - (frames.len() as i64 * 20 - 3000);
        assert!((0..=60).contains(&late), "{name}: {late} ms");
    }
    for name in [named("human-"), named("speech-"), named("noise-music")].concat() {
        assert_eq!(beeps(&recording(&name)), [], "{name}");
    }
}

fn beeps(frames: &[Samples]) -> Vec<(u64, Finding)> {
    let beep = |sign| match sign {
        HeardSign::Answer { finding: finding @ Finding::Beep { .. }, at_ms } => {
            Some((at_ms, finding))
        }
        _ => None,
    };
    signs(frames).into_iter().filter_map(beep).collect()
}
