//! What a crash has left under `incomplete/`: each recording gets its header, its sidecar with
//! `truncated`, and its place. One that another process still makes is locked, and left alone.
//! Owns files.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use tracing::{info, warn};

use crate::record::disk::{self, Part, Root, incomplete};
use crate::record::layout::{INCOMPLETE, Layout};
use crate::record::sidecar::{self, Alignment, Audio, CallInfo, Sidecar, State};
use crate::record::wav::Encoding;

/// As in [`Sidecar::end_reason`] of a call whose end nobody saw.
const KILLED: &str = "internal_kill";

type Announce<'a> = &'a dyn Fn(&str, &Path) -> io::Result<()>;

/// How many recordings were closed. What fails is told in the log and tried again later.
pub fn repair(root: &Root, layout: &Layout, durable: bool, announce: Announce<'_>) -> u64 {
    let mut repaired = 0;
    for id in leftovers(root) {
        match close(root, layout, &id, durable, announce) {
            Ok(None) => {}
            Ok(Some(sidecar)) => {
                repaired += 1;
                let (state, seconds) = (sidecar.state.label(), sidecar.duration_ms / 1000);
                info!(recording = id, state, seconds, file = sidecar.path, "recording repaired");
            }
            // another process makes it
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => warn!(recording = id, %error, "a recording cannot be repaired"),
        }
    }
    repaired
}

fn leftovers(root: &Root) -> BTreeSet<String> {
    let Ok(entries) = std::fs::read_dir(root.path().join(INCOMPLETE)) else {
        return BTreeSet::new();
    };
    let names = entries.flatten().filter_map(|e| e.file_name().into_string().ok());
    let ours = names.filter(|n| !n.starts_with('.'));
    ours.filter_map(|n| {
        let id = n.strip_suffix(".wav").or_else(|| n.strip_suffix(".json"))?;
        Some(id.to_owned())
    })
    .collect()
}

fn close(
    root: &Root,
    layout: &Layout,
    id: &str,
    durable: bool,
    announce: Announce<'_>,
) -> io::Result<Option<Sidecar>> {
    let story = story(root, id);
    let wav = incomplete(id, "wav");
    let has_audio = root.exists(&wav);
    match story {
        // it was whole already, and on its way
        Some(sidecar) if sidecar.state != State::Recording => {
            if has_audio {
                drop(Part::adopt(root, id, String::new(), Encoding::Mu)?);
            }
            announce(id, Path::new(&sidecar.path))?;
            disk::move_pair(root, id, Path::new(&sidecar.path), durable)?;
            Ok(Some(sidecar))
        }
        Some(_) if !has_audio => {
            warn!(recording = id, "a recording's audio is gone, its sidecar is deleted");
            root.remove(&incomplete(id, "json"))?;
            Ok(None)
        }
        story => {
            let encoding = encoding(root, id)?;
            let sidecar = match story {
                Some(sidecar) => sidecar,
                None => stranger(root, layout, id)?,
            };
            let mut part = Part::adopt(root, id, sidecar.text(), encoding)?;
            let mut sidecar = Sidecar {
                state: State::Truncated,
                end_reason: KILLED.to_owned(),
                duration_ms: part.samples() / 8,
                ..sidecar
            };
            let path = Path::new(&sidecar.path).to_owned();
            part.publish(&mut sidecar, &path, durable, |place| announce(id, place))?;
            Ok(Some(sidecar))
        }
    }
}

/// The sidecar as it was when the recording began, if it can be read.
fn story(root: &Root, id: &str) -> Option<Sidecar> {
    let mut text = String::new();
    root.open(&incomplete(id, "json")).ok()?.read_to_string(&mut text).ok()?;
    let sidecar: Sidecar = serde_json::from_str(&text).ok()?;
    // its path is ours, but the file may have been edited
    let inside = Path::new(&sidecar.path).components();
    let mut parts = inside.map(|part| matches!(part, std::path::Component::Normal(_)));
    parts.all(|good| good).then_some(sidecar)
}

fn encoding(root: &Root, id: &str) -> io::Result<Encoding> {
    let mut head = [0; 22];
    // a file that ends in its header holds no audio
    let _ = root.open(&incomplete(id, "wav"))?.read_exact(&mut head);
    Ok(Encoding::of(u16::from_le_bytes([head[20], head[21]])))
}

/// A sidecar for a recording without one.
fn stranger(root: &Root, layout: &Layout, id: &str) -> io::Result<Sidecar> {
    let changed = root.open(&incomplete(id, "wav"))?.metadata()?.modified()?;
    let unix = changed.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let path = layout.path(unix, "unknown", id);
    Ok(Sidecar {
        version: sidecar::VERSION,
        id: id.to_owned(),
        state: State::Recording,
        call: CallInfo { id: id.to_owned(), ..CallInfo::default() },
        started_at: sidecar::rfc3339(unix),
        start_ms: 0,
        duration_ms: 0,
        end_reason: String::new(),
        path: path.to_string_lossy().into_owned(),
        audio: Audio { channels: vec!["caller".to_owned(), "ai".to_owned()], ..Audio::default() },
        network: None,
        alignment: Alignment::default(),
        pauses: Vec::new(),
        gaps: Vec::new(),
        events: Vec::new(),
        events_dropped: 0,
        write_errors: 0,
        upload: None,
    })
}
