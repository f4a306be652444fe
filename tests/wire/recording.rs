//! Recordings hold what was heard and what was played, side by side.

use trunkless::record::disk::{Root, with_ending};
use trunkless::record::{library, wav};

use crate::bridge::Rig;
use crate::stream::AGENT;

#[tokio::test]
async fn both_voices_are_recorded_as_they_were_heard() {
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::new(&format!("[recording]\ndirectory = {:?}", directory.path())).await;
    let (mut call, stream) = rig.call().await;
    stream.play_frames(0..30).await;
    call.say(0..60).await;
    assert_eq!(stream.heard(60).await.len(), 60);
    assert_eq!(call.media.numbered(AGENT, 30).await.len(), 30);
    call.bye().await;
    stream.stopped().await;
    let record = rig.bridge.record().await;
    let played: Vec<u8> = call.media.packets().into_iter().flat_map(|h| h.payload).collect();
    let heard: Vec<u8> = stream.frames().into_iter().flat_map(|(_, samples)| samples).collect();
    rig.bridge.shutdown().await;
    let root = Root::new(directory.path().to_owned());
    let path = library::find(&root, &record.recordings[0]).unwrap();
    let file = std::fs::read(directory.path().join(with_ending(&path, "wav"))).unwrap();
    let [caller, ai] = &wav::read(&file).unwrap()[..] else { panic!("not stereo") };
    assert_eq!(caller.len(), ai.len());
    // one side may be a frame or two longer than what the other was told
    assert!(caller[..heard.len()] == heard, "the caller's channel");
    assert!(caller[heard.len()..].iter().all(|s| *s == 0xff));
    assert!(ai[..played.len()] == played, "the AI's channel");
    assert!(ai.len() - played.len() <= 3 * 160, "{} and {}", ai.len(), played.len());
}
