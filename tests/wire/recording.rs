//! Recordings hold the audio that the caller and the AI heard, side by side.

use std::path::Path;

use trunkless::call::ended::Record;
use trunkless::command::RecordCommand;
use trunkless::folder::Root;
use trunkless::media::g711;
use trunkless::peer::pattern;
use trunkless::record::disk::with_ending;
use trunkless::record::sidecar::{Event, Sidecar, State, What};
use trunkless::record::{library, notice, wav};

use crate::bridge::Rig;
use crate::call::{Call, sdp};
use crate::http::{free, get, status};
use crate::stream::{AGENT, Stream};

fn config(directory: &tempfile::TempDir, more: &str) -> String {
    format!("[recording]\ndirectory = {:?}\n{more}", directory.path())
}

/// A finished recording.
struct Found {
    sidecar: Sidecar,
    caller: Vec<u8>,
    ai: Vec<u8>,
    /// The raw bytes of the WAV file.
    bytes: Vec<u8>,
}

fn find(directory: &Path, id: &str) -> Found {
    let root = Root::new(directory.to_owned());
    let path = library::find(&root, id).unwrap();
    let sidecar = library::read(&root, &path).unwrap();
    let bytes = std::fs::read(directory.join(with_ending(&path, "wav"))).unwrap();
    let [caller, ai] = wav::read(&bytes).unwrap().try_into().unwrap();
    Found { sidecar, caller, ai, bytes }
}

/// Hangs up, waits for the call's record and shuts the bridge down.
async fn end(rig: Rig, mut call: Call, stream: Stream) -> Record {
    call.bye().await;
    stream.stopped().await;
    let record = rig.bridge.record().await;
    rig.bridge.shutdown().await;
    record
}

/// The frame numbers in `track` that belong to call number `of`.
fn numbers(track: &[u8], of: u32) -> Vec<u32> {
    let frames = track.chunks_exact(160).filter_map(pattern::read);
    frames.filter(|(from, _)| *from == of).map(|(_, number)| number).collect()
}

#[tokio::test]
async fn both_sides_are_recorded_as_they_were_heard() {
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::new(&config(&directory, "")).await;
    let (mut call, stream) = rig.call().await;
    stream.play_frames(0..30).await;
    stream.mark("greeting").await;
    call.say(0..60).await;
    assert_eq!(stream.heard(60).await.len(), 60);
    assert_eq!(call.media.numbered(AGENT, 30).await.len(), 30);
    let info = "Content-Type: application/dtmf-relay\r\n";
    call.request("INFO", info, "Signal=7\r\nDuration=160\r\n").await;
    stream.pressed("7").await;
    call.bye().await;
    stream.stopped().await;
    let record = rig.bridge.record().await;
    let heard: Vec<u8> = stream.frames().into_iter().flat_map(|(_, samples)| samples).collect();
    rig.bridge.shutdown().await;
    let played: Vec<u8> = call.media.packets().into_iter().flat_map(|h| h.payload).collect();
    let found = find(directory.path(), &record.recordings[0]);
    let (caller, ai) = (&found.caller, &found.ai);
    assert_eq!(caller.len(), ai.len());
    // the recording may be a frame or two longer than what either side received
    assert!(caller[..heard.len()] == heard, "the caller's channel");
    assert!(caller[heard.len()..].iter().all(|s| *s == 0xff));
    assert!(ai[..played.len()] == played, "the AI's channel");
    assert!(ai.len() - played.len() <= 3 * 160, "{} and {}", ai.len(), played.len());
    let Sidecar { state, end_reason, call, events, network, .. } = found.sidecar;
    assert_eq!((state, &*end_reason, &*call.id), (State::Complete, "caller_hangup", &*record.id));
    assert_eq!(network.unwrap().packets_in, record.summary.received.sequence.received);
    let [Event { at_ms: mark, what: What::Mark(name) }, Event { what: What::Dtmf('7'), .. }] =
        &events[..]
    else {
        panic!("{events:?}")
    };
    // thirty frames, plus the silence before them
    assert!(name == "greeting" && (600..1000).contains(mark), "{name} {mark}");
}

#[tokio::test]
async fn commands_start_pause_and_stop_recordings() {
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::new(&config(&directory, "when = \"on_command\"")).await;
    let (mut call, stream) = rig.call().await;
    let mut said = 0;
    for command in [
        Some(RecordCommand::Start),
        Some(RecordCommand::Pause),
        Some(RecordCommand::Resume),
        Some(RecordCommand::Stop),
        Some(RecordCommand::Start),
        None,
    ] {
        call.say(said..said + 20).await;
        said += 20;
        stream.hears(said - 1).await;
        command.into_iter().for_each(|command| rig.bridge.record_command(command));
    }
    let record = end(rig, call, stream).await;
    assert_eq!(record.recordings, [record.id.clone(), format!("{}-2", record.id)]);
    // frames 0-19 before it, 20-39 recorded, 40-59 paused, 60-79 recorded, 80-99 after it
    let first = find(directory.path(), &record.recordings[0]);
    let heard = numbers(&first.caller, 1);
    // a command and the frame that has just arrived may overtake each other
    let near = |a: usize| (38..=42).contains(&a);
    assert!(near(heard.len()), "{heard:?}");
    assert!(heard.iter().all(|n| (19..=40).contains(n) || (59..=80).contains(n)), "{heard:?}");
    assert_eq!(first.sidecar.end_reason, "recording_stopped");
    assert_eq!(first.sidecar.pauses.len(), 1);
    let second = find(directory.path(), &record.recordings[1]);
    let heard = numbers(&second.caller, 1);
    assert!(heard.iter().all(|n| (99..=120).contains(n)) && heard.len() >= 19, "{heard:?}");
    assert!(second.sidecar.start_ms >= 1900, "{}", second.sidecar.start_ms);
}

#[tokio::test]
async fn the_announcement_is_played_first_whatever_the_ai_does() {
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::new(&config(&directory, "announce = \"beep\"")).await;
    let (mut call, stream) = rig.call().await;
    stream.clear().await;
    stream.play_frames(0..5).await;
    let last = |payload: &[u8]| pattern::read(payload).is_some_and(|(_, number)| number == 4);
    call.media.until("the AI's last frame", |h| last(&h.payload)).await;
    call.say(0..2).await;
    let record = end(rig, call, stream).await;
    let found = find(directory.path(), &record.recordings[0]);
    let beep = notice::beep();
    let at = found.ai.windows(beep.len()).position(|part| part == beep).expect("the beep");
    let first = found.ai.chunks_exact(160).position(|f| pattern::read(f).is_some());
    assert!(at / 160 <= 2 && first.unwrap() >= beep.len() / 160, "{at} {first:?}");
}

#[tokio::test]
async fn calls_of_an_excluded_pbx_are_not_recorded() {
    let directory = tempfile::tempdir().unwrap();
    let never = "[pbx.main.recording]\nwhen = \"never\"";
    let rig = Rig::new(&config(&directory, never)).await;
    let (mut call, stream) = rig.call().await;
    call.say(0..5).await;
    rig.bridge.record_command(RecordCommand::Start);
    call.say(5..10).await;
    let record = end(rig, call, stream).await;
    assert!(record.recordings.is_empty());
}

#[tokio::test]
async fn a_law_is_recorded_unchanged() {
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::new(&config(&directory, "")).await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.offer = Some(sdp(call.media.address(), "8 101", "sendrecv"));
    call.talker.payload_type = 8;
    call.invite().await;
    let stream = rig.ai.stream().await;
    call.answered().await;
    // every A-law byte, some of them twice to fill two frames
    let all: Vec<u8> = (0..=255u8).chain(0..=63).collect();
    for payload in all.chunks_exact(160) {
        let packet = call.talker.write(8, payload);
        call.send_rtp(&packet).await;
    }
    let mut played = [0x91; 160];
    stream.play(&played).await;
    call.media.until("speech", |h| !h.is_silence()).await;
    stream.listen(100).await;
    let record = end(rig, call, stream).await;
    let found = find(directory.path(), &record.recordings[0]);
    assert_eq!(found.sidecar.audio.format, "alaw");
    let track = |n: usize| found.bytes[58 + n..].iter().step_by(2).copied().collect::<Vec<u8>>();
    assert!(track(0).windows(320).any(|part| part == all), "the caller's bytes");
    g711::mu_to_a(&mut played);
    assert!(track(1).windows(160).any(|part| part == played), "the AI's bytes as sent");
}

#[tokio::test]
async fn a_call_is_refused_if_its_required_recording_is_impossible() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("recordings");
    std::fs::write(&directory, "a file in the way").unwrap();
    let net = crate::bridge::Net::new();
    let (pbx, ai) =
        (crate::pbx::Pbx::udp(net.pbx()).await, crate::strict::Ai::start(net.ai()).await);
    let http = free(net.bridge());
    let more = format!(
        "[recording]\ndirectory = {directory:?}\nrequire = true\n[http]\nlisten = \"{http}\""
    );
    let rig = Rig::with(net, pbx, ai, &more).await;
    let mut call = rig.pbx.call(&rig.bridge).await;
    call.invite().await;
    assert_eq!(call.refused().await.code(), Some(503));
    assert_eq!(rig.bridge.end().await, "not_recorded");
    assert_eq!(status(http, "/readyz").await, 503);
    let (code, metrics) = get(http, "/metrics").await;
    assert_eq!(code, 200);
    let has = |line: &str| metrics.lines().any(|l| l == line);
    assert!(has("trunkless_recording_ready 0") && has("trunkless_calls 0"), "{metrics}");
    // recording becomes ready again without a restart
    std::fs::remove_file(&directory).unwrap();
    let ready = tokio::time::timeout(std::time::Duration::from_secs(10), async {
        while status(http, "/readyz").await != 200 {
            tokio::task::yield_now().await;
        }
    });
    ready.await.expect("it is ready again");
    let (mut call, stream) = rig.call().await;
    call.say(0..5).await;
    let record = end(rig, call, stream).await;
    assert_eq!(find(&directory, &record.recordings[0]).sidecar.state, State::Complete);
}
