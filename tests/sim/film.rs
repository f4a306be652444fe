//! The recording of a call, assembled in memory as the writer assembles it in a file.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use trunkless::command::RecordCommand;
use trunkless::media::frame::{FRAME_SAMPLES, SILENCE};
use trunkless::media::g711::Law;
use trunkless::record::queue::{Job, Queue};
use trunkless::record::recording::{Ending, Recording, Tap};
use trunkless::record::sidecar::{CallInfo, Sidecar};

/// A recording in progress.
pub struct Film {
    /// `None` once finished.
    recording: Option<Recording>,
    /// The jobs for the writer.
    jobs: Receiver<Job>,
}

/// A finished recording, with its tracks separated.
pub struct Developed {
    pub caller: Vec<u8>,
    pub ai: Vec<u8>,
    pub sidecar: Sidecar,
}

fn sidecar() -> Sidecar {
    Sidecar::begun("sim", CallInfo::default(), Duration::ZERO, "sim".as_ref())
}

impl Film {
    pub fn new() -> Film {
        let (queue, jobs) = Queue::new(usize::MAX);
        let recording = Recording::new(1, queue, sidecar(), Law::Mu, 0, Arc::default());
        Film { recording: Some(recording), jobs }
    }

    pub fn tap(&mut self, tap: Tap) {
        self.recording.iter_mut().for_each(|r| r.tap(tap.clone()));
    }

    pub fn command(&mut self, command: RecordCommand) {
        self.recording.iter_mut().for_each(|r| r.command(command));
    }

    /// Finishes the recording.
    pub fn develop(&mut self) -> Developed {
        let recording = self.recording.take().expect("already finished");
        recording.finish(Ending::new("caller_hangup"));
        let (mut data, mut story, mut frames) = (Vec::new(), None, 0);
        for job in self.jobs.try_iter() {
            match job {
                Job::Block { block, .. } => {
                    data.resize(block.first as usize * 2 * FRAME_SAMPLES, SILENCE);
                    data.extend_from_slice(&block.samples);
                }
                Job::End { end, .. } => (story, frames) = (Some(end.sidecar), end.frames),
                _ => {}
            }
        }
        data.resize(frames as usize * 2 * FRAME_SAMPLES, SILENCE);
        let track = |n: usize| data.iter().skip(n).step_by(2).copied().collect();
        Developed {
            caller: track(0),
            ai: track(1),
            sidecar: story.expect("the recording sent no end"),
        }
    }
}
