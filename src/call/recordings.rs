//! The recordings of one call: usually one, more if recording is stopped and started again.

use crate::call::end::EndReason;
use crate::call::live::OUTBOUND;
use crate::call::parameters::recorded;
use crate::call::words::Summary;
use crate::call::{CallConfig, Offer};
use crate::command::RecordCommand;
use crate::media::frame::FRAME_SAMPLES;
use crate::media::g711::Law;
use crate::record::recorder::Recorder;
use crate::record::recording::{Ending, Recording, Tap};
use crate::record::sidecar::{CallInfo, Network, Outcome};
use crate::stream::StreamInfo;

/// The end reason in a recording that was stopped before its call ended.
const STOPPED: &str = "recording_stopped";

/// The recordings of one call, of which at most one is being made.
pub struct CallRecordings {
    recorder: Option<Recorder>,
    /// Identifies the call in its recordings.
    call: CallInfo,
    /// The recording being made.
    current: Option<Recording>,
    /// Ids of the finished recordings.
    made: Vec<String>,
    /// Audio missing from the finished recordings because the writer's queue was full.
    lost_ms: u64,
    /// True if the next recording starts paused, because recording was paused in the meantime or
    /// when the last one was stopped.
    paused: bool,
    /// True if the call may not continue unrecorded.
    required: bool,
    /// True once [`CallRecordings::tap`] has returned true.
    lack_reported: bool,
}

impl CallRecordings {
    pub fn new(config: &CallConfig, offer: &Offer, info: &StreamInfo) -> CallRecordings {
        let recorder = config.recorder.clone();
        let call = CallInfo {
            id: offer.id.clone(),
            call_sid: info.call_sid.clone(),
            stream_sid: info.stream_sid.clone(),
            native_id: offer.native_id.clone(),
            pbx: offer.pbx.to_string(),
            route: config.route.as_deref().map(str::to_owned),
            from_number: offer.from_number.clone(),
            from_name: offer.from_name.clone(),
            details: recorded(&info.parameters),
            to_number: offer.to_number.clone(),
            direction: offer.outgoing.as_ref().map_or("", |_| OUTBOUND).to_owned(),
        };
        CallRecordings {
            required: recorder.as_ref().is_some_and(Recorder::is_required),
            lack_reported: false,
            recorder,
            call,
            current: None,
            made: Vec::new(),
            lost_ms: 0,
            paused: false,
        }
    }

    /// Records a tap. Returns true, once, if the recording is required and lacks audio now.
    pub fn tap(&mut self, tap: Tap) -> bool {
        let Some(recording) = &mut self.current else { return false };
        recording.tap(tap);
        self.required && recording.has_gaps() && !std::mem::replace(&mut self.lack_reported, true)
    }

    /// `index` is the number of the call's next frame, `law` the leg's codec.
    pub fn command(&mut self, command: RecordCommand, index: u64, law: Law) {
        match (command, &mut self.current) {
            (RecordCommand::Start, None) => {
                let nth = self.made.len() as u32 + 1;
                let start = |r: &Recorder| r.start(&self.call, nth, law, index);
                self.current = self.recorder.as_ref().map(start);
                if let Some(recording) = self.current.as_mut().filter(|_| self.paused) {
                    recording.command(RecordCommand::Pause);
                }
            }
            (RecordCommand::Stop, _) => self.close(Ending::new(STOPPED)),
            (command, Some(recording)) => recording.command(command),
            (RecordCommand::Resume, None) => self.paused = false,
            (RecordCommand::Pause, None) => self.paused = true,
        }
    }

    /// True while the recording is paused, and before it starts if it will start paused.
    pub fn is_paused(&self) -> bool {
        self.current.as_ref().map_or(self.paused, Recording::is_paused)
    }

    /// More is known of the call now.
    pub fn learn(&mut self, parameters: &[(String, String)]) {
        self.call.details = recorded(parameters);
    }

    fn close(&mut self, ending: Ending) {
        let ending = Ending { details: self.call.details.clone(), ..ending };
        if let Some(recording) = self.current.take() {
            self.lost_ms += recording.lost_ms();
            self.paused = recording.is_paused();
            self.made.push(recording.finish(ending));
        }
    }

    /// Ends the call's recordings. Returns their ids and how much audio they lack, in milliseconds.
    pub fn finish(
        mut self,
        reason: EndReason,
        summary: &Summary,
        outcome: Outcome,
    ) -> (Vec<String>, u64) {
        let network = Some(network(summary));
        self.close(Ending { network, outcome, ..Ending::new(reason.label()) });
        (self.made, self.lost_ms)
    }
}

fn network(summary: &Summary) -> Network {
    let (sequence, timeline) = (summary.received.sequence, summary.received.timeline);
    let ms = |samples: u64| samples * 20 / FRAME_SAMPLES as u64;
    Network {
        packets_in: sequence.received,
        packets_out: summary.packets_sent.into(),
        lost: sequence.lost,
        late: summary.received.late(),
        duplicates: sequence.duplicates,
        concealed_ms: ms(timeline.concealed_samples),
        silence_ms: ms(timeline.silence_samples),
        round_trip_ms: summary.round_trip.map(|d| d.as_millis() as u64),
    }
}
