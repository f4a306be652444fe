//! Finished recordings: `GET /v1/recordings/{id}` and `GET /v1/recordings/{id}/audio`. Owns tasks
//! that read files.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use tracing::info;

use crate::command::Sender;
use crate::control::Control;
use crate::control::calls::json;
use crate::control::connections::{Lasting, Purpose};
use crate::control::guard::Granted;
use crate::control::problem::Problem;
use crate::control::tokens::Scope;
use crate::record::player::{Opened, Player};
use crate::record::settings::RecordSettings;

/// Files that are read at once.
const MAX_READERS: usize = 2;
/// Parts into which a waveform divides a recording.
const POINTS: usize = 1000;
/// A part of a file that is asked for has at most this many bytes.
const MAX_PART: u64 = 1 << 20;
/// Bytes that are read at once for a whole file.
const PIECE: usize = 65_536;
/// The members of a sidecar that are passed on.
const MEMBERS: [&str; 9] =
    ["id", "state", "started_at", "start_ms", "duration_ms", "events", "pauses", "gaps", "turns"];

/// The recordings that can be played.
#[derive(Clone)]
pub struct Recordings {
    player: Arc<Player>,
    readers: Arc<Semaphore>,
}

impl Recordings {
    pub fn new(settings: &RecordSettings) -> Recordings {
        let (player, readers) = (Player::new(settings), Semaphore::new(MAX_READERS));
        Recordings { player: Arc::new(player), readers: Arc::new(readers) }
    }

    /// Reads from the disk, on a thread that may block, with few others at the same time.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Player) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Problem> {
        let player = self.player.clone();
        let permit = self.readers.clone().acquire_owned().await;
        let result = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work(&player)
        });
        let result = result.await.unwrap_or_else(|why| Err(io::Error::other(why)));
        result.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => no_such_recording(),
            _ => {
                let why = format!("the recording cannot be read: {error}");
                Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "unreadable", why)
            }
        })
    }
}

fn no_such_recording() -> Problem {
    let why = "no finished recording has this id; it may have been uploaded and deleted";
    Problem::new(StatusCode::NOT_FOUND, "not_found", why)
}

fn recordings(control: &Control, granted: &Granted) -> Result<Recordings, Problem> {
    granted.require(Scope::Recordings)?;
    control.access.borrow().recordings.clone().ok_or_else(no_such_recording)
}

/// A recording's times, events and waveform.
pub async fn show(
    State(control): State<Control>,
    Extension(granted): Extension<Granted>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let recordings = recordings(&control, &granted)?;
    let work = move |player: &Player| {
        let opened = player.open(&id)?;
        Ok((opened.waveform(POINTS)?, opened))
    };
    let ([caller, ai], opened) = recordings.read(work).await?;
    let mut shown = Map::new();
    for name in MEMBERS {
        let value = opened.sidecar.get(name).cloned();
        shown.insert(name.to_owned(), value.unwrap_or_else(|| json!([])));
    }
    let audio = &opened.sidecar["audio"];
    shown.insert("format".to_owned(), audio["format"].clone());
    shown.insert("samples".to_owned(), audio["samples"].clone());
    shown.insert("bytes".to_owned(), opened.bytes.into());
    shown.insert("waveform".to_owned(), json!({ "caller": caller, "ai": ai }));
    Ok(json(StatusCode::OK, &Value::Object(shown)))
}

/// The WAV file, or a part of it.
pub async fn audio(
    State(control): State<Control>,
    Extension(granted): Extension<Granted>,
    Extension(lasting): Extension<Lasting>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let recordings = recordings(&control, &granted)?;
    let range = headers.get(header::RANGE).and_then(|range| range.to_str().ok());
    // other units are ignored, as RFC 9110 §14.2 demands
    let range = range.filter(|range| range.starts_with("bytes="));
    let (wanted, by) = (range.map(str::to_owned), Sender::Http(granted.name().to_owned()));
    let recording = id.clone();
    let work = move |player: &Player| {
        let opened = player.open(&id)?;
        let part = wanted.map(|range| part_of(&range, opened.bytes));
        let bytes = match &part {
            Some(Some(part)) => opened.read(part.start, (part.end - part.start) as usize)?,
            _ => Vec::new(),
        };
        Ok((opened, part, bytes))
    };
    let (opened, part, bytes) = recordings.read(work).await?;
    let size = opened.bytes;
    if part.as_ref().is_none_or(|part| part.as_ref().is_some_and(|part| part.start == 0)) {
        info!(recording, %by, "recording read over the control API");
    }
    let kind = [(header::CONTENT_TYPE, "audio/wav"), (header::CACHE_CONTROL, "no-store")];
    let ranges = [(header::ACCEPT_RANGES, "bytes")];
    match part {
        Some(Some(part)) => {
            let place = format!("bytes {}-{}/{size}", part.start, part.end - 1);
            let place = [(header::CONTENT_RANGE, place)];
            Ok((StatusCode::PARTIAL_CONTENT, kind, ranges, place, bytes).into_response())
        }
        Some(None) => {
            let why = format!("the recording has {size} bytes");
            Err(Problem::new(StatusCode::RANGE_NOT_SATISFIABLE, "range", why))
        }
        None => {
            // without a place, the client has the time of an ordinary response
            let _ = lasting.keep(Purpose::Audio, granted.name());
            let length = [(header::CONTENT_LENGTH, size.to_string())];
            Ok((kind, ranges, length, whole(recordings, opened)).into_response())
        }
    }
}

/// Reads a file piece by piece, as fast as the client takes it.
fn whole(recordings: Recordings, opened: Opened) -> Body {
    let state = (recordings, Arc::new(opened), 0u64);
    Body::from_stream(stream::unfold(state, |(recordings, opened, at)| async move {
        if at >= opened.bytes {
            return None;
        }
        let file = opened.clone();
        let length = usize::try_from(opened.bytes - at).unwrap_or(PIECE).min(PIECE);
        let piece = recordings.read(move |_| file.read(at, length)).await;
        let piece = match piece {
            Ok(piece) if piece.len() == length => Ok(Bytes::from(piece)),
            Ok(_) => Err(io::Error::other("the recording has become shorter")),
            Err(problem) => Err(io::Error::other(problem.message)),
        };
        let next = if piece.is_ok() { at + length as u64 } else { opened.bytes };
        Some((piece, (recordings, opened, next)))
    }))
}

/// Reads the header field `Range` of a file with `size` bytes. Returns at most [`MAX_PART`] bytes,
/// or `None` if the range is not a single one within the file.
fn part_of(range: &str, size: u64) -> Option<Range<u64>> {
    let (first, last) = range.strip_prefix("bytes=").and_then(|r| r.split_once('-'))?;
    let (start, end) = match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(first), Ok(last)) => (first, last.saturating_add(1).min(size)),
        (Ok(first), Err(_)) if last.trim().is_empty() => (first, size),
        (Err(_), Ok(count)) if first.trim().is_empty() => (size.saturating_sub(count), size),
        _ => return None,
    };
    (start < end).then(|| start..end.min(start.saturating_add(MAX_PART)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_bounded() {
        let large = 3 * MAX_PART;
        for (range, size, expected) in [
            ("bytes=0-9", 100, Some(0..10)),
            ("bytes=90-", 100, Some(90..100)),
            ("bytes=90-900", 100, Some(90..100)),
            ("bytes=-10", 100, Some(90..100)),
            ("bytes=-900", 100, Some(0..100)),
            ("bytes=0-", large, Some(0..MAX_PART)),
            ("bytes=5-18446744073709551615", large, Some(5..5 + MAX_PART)),
            ("bytes=100-", 100, None),
            ("bytes=18446744073709551615-", 100, None),
            ("bytes=9-5", 100, None),
            ("bytes=-0", 100, None),
            ("bytes=0-1,5-9", 100, None),
            ("bytes=a-b", 100, None),
            ("frames=0-1", 100, None),
        ] {
            assert_eq!(part_of(range, size), expected, "{range}");
        }
    }
}
