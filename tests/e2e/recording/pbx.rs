//! Calls through real Asterisk: the tracks of caller and AI are byte-exact and aligned.

use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use trunkless::media::g711::Law;
use trunkless::peer::phone::{Keys, PhoneCommand};
use trunkless::record::sidecar::{State, What};
use trunkless::sip::sdp::Codec;

use super::file::{AI, CALLER, HEAD, Recording};
use super::{SECOND, file, incomplete, is_punctual, table, verify};
use crate::ai::{Ai, Plan};
use crate::asterisk::Asterisk;
use crate::bridge::Bridge;
use crate::caller::Caller;
use crate::{Pbx, ari, assert_all, block_on};

/// 14 s each way.
const FRAMES: u32 = 700;
const KEYS: &str = "12#";

#[derive(Clone, Copy)]
enum Through {
    Sip(Pbx),
    Ari(u8),
    /// `chan_pjsip` of 22, A-law from end to end.
    ALaw,
}

impl Through {
    /// Starts Asterisk and a bridge that takes calls from it; returns the extension as well.
    fn start(self, n: u8, ai: &str, recording: &str) -> (Asterisk, Bridge, &'static str) {
        let (pbx, username, extension) = match self {
            Through::Ari(version) => {
                let asterisk = ari::start(version, n);
                let bridge = ari::bridge(&ari::config(ai, "", recording));
                return (asterisk, bridge, "8010");
            }
            Through::Sip(Pbx::Sip16) => (Pbx::Sip16, "cc100", "710"),
            Through::Sip(pbx) => (pbx, "ai", "700"),
            Through::ALaw => (Pbx::Pjsip22, "ai-alaw", "v-ai-alaw"),
        };
        let asterisk = pbx.start(n);
        let mut setup = pbx.setup(&asterisk, n, ai);
        setup.username = username;
        setup.tables = recording.to_owned();
        let bridge = Bridge::registered(&setup);
        (asterisk, bridge, extension)
    }

    fn law(self) -> Law {
        if matches!(self, Through::ALaw) { Law::A } else { Law::Mu }
    }
}

/// On a busy machine the caller itself is late, which proves nothing about the recording: the call
/// is repeated, at most twice.
async fn a_recorded_call(through: Through, n: u8) {
    for last in [false, false, true] {
        if try_a_recorded_call(through, n, last).await {
            return;
        }
        println!("the machine is too busy for the caller: trying again");
    }
}

/// Returns false if the caller was late; the last try must succeed all the same.
async fn try_a_recorded_call(through: Through, n: u8, last: bool) -> bool {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let directory = directory.path();
    let ai = Ai::start(Plan { say: FRAMES, marks: true, ..Plan::default() }).await;
    let (asterisk, mut bridge, extension) = through.start(n, &ai.url, &table(directory, ""));
    let codec = if through.law() == Law::A { Codec::Pcma } else { Codec::Pcmu };
    let (from, at) = ("127.0.9.1", asterisk.sip_addr());
    let mut caller = Caller::dial_with(from, at, extension, 1, FRAMES, vec![codec]).await;
    caller.answered().await;
    let said = |c: &Caller| c.sent.len() as u32 == FRAMES;
    assert!(caller.until(20 * SECOND, said).await, "{} frames sent", caller.sent.len());
    caller.wait(SECOND).await;
    for digit in KEYS.chars() {
        caller.command(PhoneCommand::Press(digit, Keys::Rtp));
        caller.wait(SECOND / 2).await;
    }
    caller.hang_up().await;
    ai.until("the close", 5 * SECOND, |s| s.closed.is_some()).await;
    if through.law() == Law::Mu {
        assert_all(&caller.numbers(1000), FRAMES, "the caller");
    }
    if !is_punctual(&caller) && !last {
        return false;
    }
    let talk_s: f64 = bridge.ended("talk_s").parse().expect("seconds");
    assert_eq!(bridge.terminate(10 * SECOND), 0);

    let recording = file::only(directory);
    assert_eq!(incomplete(directory), [""; 0]);
    assert_story(&recording, through.law(), &bridge.ended("reason"), talk_s);
    assert_side_by_side(&recording);
    assert_verified(&recording, directory);
    true
}

fn assert_story(recording: &Recording, law: Law, reason: &str, talk_s: f64) {
    let sidecar = &recording.sidecar;
    assert_eq!(sidecar.state, State::Complete);
    assert_eq!((sidecar.end_reason.as_str(), reason), ("caller_hangup", "caller_hangup"));
    assert_eq!((&sidecar.gaps[..], &sidecar.pauses[..]), (&[][..], &[][..]));
    assert_eq!((sidecar.start_ms, sidecar.write_errors, sidecar.alignment.steps), (0, 0, 0));
    assert_eq!(sidecar.audio.format, if law == Law::A { "alaw" } else { "mulaw" });
    assert_eq!(sidecar.call.from_number, "5551234");
    // the last frames may still be on their way
    let recorded_s = sidecar.duration_ms as f64 / 1000.0;
    assert!((recorded_s - talk_s).abs() < 0.2, "{recorded_s} s of {talk_s} s");
    let network = sidecar.network.expect("the network figures of an ended call");
    assert_eq!((network.lost, network.late, network.concealed_ms), (0, 0, 0), "{network:?}");
}

/// Asserts that both tracks are complete and in order and keep their distance from beginning to
/// end, and that keys and marks are where they were heard.
fn assert_side_by_side(recording: &Recording) {
    let heard = recording.assert_track(CALLER, 1, FRAMES);
    let said = recording.assert_track(AI, 1000, FRAMES);
    // further apart than this, the AI would not have spoken after the caller's first half second
    assert!(heard.abs_diff(said) < 150, "caller at {heard}, AI at {said}");
    let last = ((heard + FRAMES as usize) * 20) as u64;
    let (mut keys, mut marks) = (Vec::new(), 0);
    for event in &recording.sidecar.events {
        match &event.what {
            What::Dtmf(digit) => keys.push((event.at_ms, *digit)),
            What::Mark(name) => {
                let frames: usize = name.parse().expect("frames said before it");
                assert_eq!(event.at_ms, ((said + frames) * 20) as u64, "mark {name}");
                marks += 1;
            }
        }
    }
    assert_eq!(marks, FRAMES.div_ceil(7));
    assert_eq!(keys.iter().map(|(_, digit)| *digit).collect::<String>(), KEYS);
    for (nth, (at_ms, digit)) in keys.iter().enumerate() {
        // the first key is a second after the last number, the others follow every half second;
        // Asterisk may report a key only when it ends
        let pressed = last + 1000 + 500 * nth as u64;
        let late = at_ms.checked_sub(pressed - 100);
        assert!(late.is_some_and(|ms| ms < 500), "{digit} at {at_ms} ms, pressed at {pressed}");
    }
}

/// Asserts that the command accepts the recording and notices a single changed byte.
fn assert_verified(recording: &Recording, directory: &std::path::Path) {
    assert!(verify(directory));
    let file = std::fs::OpenOptions::new().write(true).open(&recording.wav).expect("the audio");
    let sample = recording.tracks[AI][100][80];
    let place = (HEAD + (100 * 160 + 80) * 2 + 1) as u64;
    file.write_all_at(&[!sample], place).expect("it is written");
    assert!(!verify(directory), "one byte is changed");
    file.write_all_at(&[sample], place).expect("it is written");
    assert!(verify(directory));
}

#[test]
fn a_call_through_pjsip_22_is_recorded() {
    block_on(a_recorded_call(Through::Sip(Pbx::Pjsip22), 151));
}

#[test]
fn a_call_through_pjsip_16_is_recorded() {
    block_on(a_recorded_call(Through::Sip(Pbx::Pjsip16), 152));
}

#[test]
fn a_call_through_chan_sip_16_is_recorded() {
    block_on(a_recorded_call(Through::Sip(Pbx::Sip16), 153));
}

#[test]
fn a_call_through_ari_22_is_recorded() {
    block_on(a_recorded_call(Through::Ari(22), 154));
}

#[test]
fn a_call_through_ari_16_is_recorded() {
    block_on(a_recorded_call(Through::Ari(16), 155));
}

#[test]
fn a_call_in_a_law_is_recorded() {
    block_on(a_recorded_call(Through::ALaw, 156));
}

/// The AI ends one call, shutdown another: both recordings are complete and state the reason.
#[test]
fn other_end_reasons_are_recorded() {
    block_on(async {
        for reason in ["ai_hangup", "drain"] {
            let directory = tempfile::tempdir().expect("a temporary directory");
            let close_after = (reason == "ai_hangup").then_some(100);
            let ai = Ai::start(Plan { close_after, ..Plan::default() }).await;
            let tables = format!("[calls]\ndrain = \"0s\"\n{}", table(directory.path(), ""));
            let (asterisk, mut bridge, extension) =
                Through::Sip(Pbx::Pjsip22).start(157, &ai.url, &tables);
            let at = asterisk.sip_addr();
            let mut caller = Caller::dial("127.0.9.1", at, extension, 1, 50).await;
            caller.answered().await;
            caller.wait(3 * SECOND).await;
            assert_eq!(bridge.terminate(10 * SECOND), 0);
            let recording = file::only(directory.path());
            assert_eq!(recording.sidecar.end_reason, reason);
            assert_eq!(recording.sidecar.state, State::Complete);
            recording.assert_track(CALLER, 1, 50);
            let least = Duration::from_millis(1800).as_millis() as u64;
            assert!(recording.sidecar.duration_ms > least, "{:?}", recording.sidecar);
        }
    });
}
