//! Listening in: `GET /v1/calls/{id}/listen`, the audio of a live call as a WAV that has no end.
//! Owns the clock.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tracing::info;

use crate::call::listening::{self, Earpiece, Overheard};
use crate::call::live::LiveCall;
use crate::command::Sender;
use crate::control::Control;
use crate::control::calls::no_such_call;
use crate::control::connections::{Lasting, Purpose};
use crate::control::guard::{Granted, revoked};
use crate::control::problem::Problem;
use crate::control::tokens::Scope;
use crate::record::wav::Encoding;

/// Frames by which one side may be ahead of the other. After that, the other is silent.
const MAX_AHEAD: usize = 5;
/// Frames that are taken at once.
const MAX_TAKEN: usize = 16;

/// The two sides of a call, each in its order.
#[derive(Default)]
struct Mixer([VecDeque<[u8; 160]>; 2]);

impl Mixer {
    fn push(&mut self, frame: &Overheard) {
        self.0[usize::from(!frame.is_caller)].push_back(frame.samples);
    }

    /// Appends the frames of which both sides are there, side by side.
    fn drain(&mut self, out: &mut Vec<u8>) {
        let waits = |sides: &[VecDeque<_>; 2]| sides.iter().any(VecDeque::is_empty);
        while !waits(&self.0) || self.0.iter().any(|side| side.len() > MAX_AHEAD) {
            let silence = [Encoding::Mu.silence(); 160];
            let [caller, ai] = self.0.each_mut().map(|side| side.pop_front().unwrap_or(silence));
            out.extend(caller.into_iter().zip(ai).flat_map(|(left, right)| [left, right]));
        }
    }
}

/// Someone who listens. Its end is logged.
struct Listening {
    call: Arc<LiveCall>,
    by: Sender,
    since: Instant,
    earpiece: Earpiece,
    mixer: Mixer,
    /// True once the header has been sent.
    begun: bool,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.call.listener_left();
        let (call, by, missed) = (&self.call.id, &self.by, self.earpiece.missed());
        info!(call, %by, seconds = self.since.elapsed().as_secs(), missed, "listening in ended");
    }
}

impl Listening {
    /// The next bytes of the file; `None` once the call has ended.
    async fn next(&mut self) -> Option<Bytes> {
        if !std::mem::replace(&mut self.begun, true) {
            return Some(Encoding::Mu.header(2, u64::MAX).into());
        }
        let (mut taken, mut bytes) = (Vec::new(), Vec::new());
        while bytes.is_empty() {
            if self.earpiece.frames.recv_many(&mut taken, MAX_TAKEN).await == 0 {
                return None;
            }
            taken.drain(..).for_each(|frame| self.mixer.push(&frame));
            self.mixer.drain(&mut bytes);
        }
        Some(bytes.into())
    }
}

pub async fn listen(
    State(control): State<Control>,
    Extension(granted): Extension<Granted>,
    Extension(lasting): Extension<Lasting>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    granted.require(Scope::Listen)?;
    if !control.access.borrow().listen_in {
        let why = "listening in is off; set [control] listen_in = true";
        return Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", why));
    }
    let call = control.switchboard.find(&id).ok_or_else(no_such_call)?;
    let busy = |why: &str| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", why);
    if !call.listener_came() {
        return Err(busy("too many listen to this call already"));
    }
    let (listener, earpiece) = listening::listener();
    let by = Sender::Http(granted.name().to_owned());
    info!(call = call.id, %by, "listening in begins");
    // from here on, dropping it notes the end
    let since = Instant::now();
    let (mixer, begun) = (Mixer::default(), false);
    let listening = Listening { call: call.clone(), by, since, earpiece, mixer, begun };
    lasting.keep(Purpose::Listening, granted.name()).map_err(busy)?;
    if control.switchboard.listen(&call.id, listener).is_err() {
        let why = "the call has ended, or too many commands are open in it";
        return Err(Problem::new(StatusCode::CONFLICT, "ended", why));
    }
    let state = (listening, control.access.clone(), granted);
    let audio = stream::unfold(state, |(mut listening, mut access, granted)| async {
        let bytes = tokio::select! {
            bytes = listening.next() => bytes?,
            () = revoked(&mut access, &granted, Scope::Listen) => return None,
        };
        Some((Ok::<_, Infallible>(bytes), (listening, access, granted)))
    });
    let headers = [(header::CONTENT_TYPE, "audio/wav"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(audio)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_are_side_by_side_and_a_missing_one_is_silent() {
        let mut mixer = Mixer::default();
        let frame = |is_caller, byte| Overheard { is_caller, samples: [byte; 160] };
        let mut out = Vec::new();
        mixer.push(&frame(true, 1));
        mixer.drain(&mut out);
        assert!(out.is_empty());
        mixer.push(&frame(false, 2));
        mixer.drain(&mut out);
        assert_eq!((out.len(), &out[..4]), (320, &[1, 2, 1, 2][..]));
        out.clear();
        (0..7).for_each(|n| mixer.push(&frame(false, n)));
        mixer.drain(&mut out);
        assert_eq!((out.len(), out[1], out[321]), (640, 0, 1));
        assert!(out.iter().step_by(2).all(|byte| *byte == 0xff));
    }
}
