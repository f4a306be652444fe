//! Turns the results of the threads and the samples from /proc into a report. Owns the reading of
//! recordings.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::bench::ai::AiResults;
use crate::bench::callers::CallersResults;
use crate::bench::floods::Floods;
use crate::bench::floor::Floor;
use crate::bench::ledger::{Sent, Tally};
use crate::bench::process::{self, MachineTime, Usage};
use crate::bench::report::{BridgeUse, Calls, Generator, MachineUse, Report, Way};
use crate::bench::run::Options;
use crate::bench::trace::Traced;
use crate::bench::verdict;
use crate::bench::waiting::grain_ns;
use crate::folder::Root;
use crate::record::library;
use crate::record::sidecar::State;

/// A sample taken at the start or end of the measured time.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub at: Instant,
    /// Usage of the bridge.
    pub usage: Usage,
    /// CPU time of the callers' thread.
    pub callers: Duration,
    /// CPU time of the AI thread.
    pub ai: Duration,
    /// CPU time of this whole process.
    pub own: Duration,
    pub machine: MachineTime,
    /// Calls in progress.
    pub calls: u32,
}

/// Everything in the report that the threads did not count.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// Length of the measured time.
    pub seconds: f64,
    pub start_ms: Option<f64>,
    pub binary_bytes: Option<u64>,
    /// Usage of the bridge before the first call.
    pub before: Usage,
    pub at_open: Sample,
    pub at_close: Sample,
    pub traced: Traced,
    pub exit_code: Option<i32>,
    /// The kernel's floor, if it could be measured.
    pub floor: Option<Floor>,
    pub recordings_complete: Option<u32>,
}

impl Outcome {
    /// Returns CPU time as a percentage of one core over the measured time.
    fn percent(&self, from: Duration, to: Duration) -> f64 {
        to.saturating_sub(from).as_secs_f64() / self.seconds * 100.0
    }
}

pub fn report(
    options: &Options,
    outcome: Outcome,
    callers: CallersResults,
    ai: AiResults,
) -> Report {
    let heard = &callers.heard;
    let ai_jitter_us = u64::from(options.ai_jitter_ms) * 1000;
    let floods = Floods::compare(&ai.clears, &heard.flood_ends, ai_jitter_us);
    let late = [("callers", &callers.own_lateness), ("AI", &ai.own_lateness)];
    let late = late.iter().filter_map(|(who, times)| verdict::why_not_valid(who, times));
    let held_up = [
        ("callers", callers.read_after_pause, callers.packets_in),
        ("AI", ai.read_after_pause, ai.messages_in),
    ];
    let held_up = held_up.iter().filter_map(|(who, n, all)| verdict::why_held_up(who, *n, *all));
    let not_valid = late.chain(held_up);
    let mut report = Report {
        machine: process::machine(),
        profile: env!("BUILD_PROFILE"),
        calls_wanted: options.calls,
        seconds: outcome.seconds,
        dialect: options.dialect.name(),
        conditions: options.conditions(),
        ai_jitter_ms: options.ai_jitter_ms,
        real_pbx: options.pbx.is_some(),
        calls: calls(&callers),
        to_ai: way(callers.sent, &ai.tally),
        to_caller: way(ai.sent, &heard.tally),
        talkspurt: heard.talkspurt.spread(),
        queued: heard.queued.spread(),
        rtp_lateness: heard.lateness.spread(),
        holes_in_speech: heard.holes,
        timestamp_jumps: heard.timestamp_jumps,
        holes_ms: heard.hole_frames * 20,
        lost_tails: floods.lost_tails,
        clear_to_silence: floods.clear_to_silence.spread(),
        ai_connections_broken: ai.broken,
        ai_why_broken: ai.why_broken,
        ai_sends_blocked: ai.blocked,
        packets_refused: callers.refused,
        bridge: bridge(&outcome, callers.packets_in + callers.frames_out),
        generator: Generator {
            callers_lateness: callers.own_lateness.spread(),
            ai_lateness: ai.own_lateness.spread(),
            callers_cpu_percent: outcome.percent(outcome.at_open.callers, outcome.at_close.callers),
            ai_cpu_percent: outcome.percent(outcome.at_open.ai, outcome.at_close.ai),
            read_after_pause: callers.read_after_pause + ai.read_after_pause,
            frames_dropped: callers.frames_dropped,
            grain_us: grain_ns(options.calls as usize) / 1000,
        },
        recordings_complete: outcome.recordings_complete,
        machine_use: machine_use(&outcome),
        not_valid: not_valid.collect(),
        faults: Vec::new(),
    };
    report.faults = verdict::faults(&report);
    report
}

/// Returns what the cores of the machine did in the measured time.
fn machine_use(outcome: &Outcome) -> MachineUse {
    let Outcome { at_open: from, at_close: to, .. } = outcome;
    let cores = process::machine().cores.max(1) as f64;
    let percent = |from, to| outcome.percent(from, to) / cores;
    let busy = percent(from.machine.busy, to.machine.busy);
    let bench = percent(from.own + from.usage.cpu(), to.own + to.usage.cpu());
    MachineUse {
        idle_percent: percent(from.machine.idle, to.machine.idle),
        stolen_percent: percent(from.machine.stolen, to.machine.stolen),
        others_percent: (busy - bench).max(0.0),
    }
}

fn calls(callers: &CallersResults) -> Calls {
    let first_us = callers.first_dial_us.unwrap_or(0);
    let took_s = callers.last_answer_us.saturating_sub(first_us) as f64 / 1e6;
    let rate = if took_s > 0.0 { f64::from(callers.answered) / took_s } else { 0.0 };
    Calls {
        asked: callers.asked,
        answered: callers.answered,
        failed_by_status: callers.failed.clone(),
        dropped: callers.dropped,
        answered_per_second: rate,
        invite_to_answer: callers.invite_to_answer.spread(),
        invite_to_first_packet: callers.invite_to_packet.spread(),
        invite_to_first_speech: callers.invite_to_speech.spread(),
    }
}

fn way(sent: Sent, tally: &Tally) -> Way {
    Way {
        // of a flood, the part counts that was played
        sent: sent.measured + tally.flood_arrived + tally.flood_holes,
        lost: tally.lost(sent),
        first_second_sent: sent.first_second,
        first_second_lost: tally.lost_in_first_second(sent),
        late: tally.late,
        swapped: tally.swapped,
        repeated: tally.repeated,
        damaged: tally.damaged,
        misrouted: tally.misrouted,
        latency: tally.latency.spread(),
    }
}

fn bridge(outcome: &Outcome, frames: u64) -> BridgeUse {
    let Outcome { before, at_open, at_close, traced, .. } = outcome;
    let (from, to) = (&at_open.usage, &at_close.usage);
    let per_frame = |from: u64, to: u64| to.saturating_sub(from) as f64 / frames.max(1) as f64;
    let frames_a_second = frames as f64 / outcome.seconds;
    // a call has 50 frames per second in each direction
    let calls = (frames_a_second / 100.0).max(1.0);
    let (user, system) =
        (outcome.percent(from.user, to.user), outcome.percent(from.system, to.system));
    let grown_kb = to.resident_kb.saturating_sub(before.resident_kb);
    BridgeUse {
        start_ms: outcome.start_ms,
        binary_bytes: outcome.binary_bytes,
        cpu_user_percent: user,
        cpu_system_percent: system,
        cpu_percent_per_call: (user + system) / calls,
        resident_before_kb: before.resident_kb,
        resident_kb: to.resident_kb,
        resident_kb_per_call: grown_kb as f64 / f64::from(at_close.calls.max(1)),
        threads: to.threads,
        frames,
        voluntary_switches_per_frame: per_frame(from.voluntary_switches, to.voluntary_switches),
        involuntary_switches_per_frame: per_frame(
            from.involuntary_switches,
            to.involuntary_switches,
        ),
        system_calls_per_frame: traced.a_second.map(|n| n / frames_a_second.max(1.0)),
        system_calls_by: traced.by,
        floor: outcome.floor,
        cpu_times_floor: outcome.floor.map(|f| (user + system) / calls / f.cpu_percent_per_call),
        exit_code: outcome.exit_code,
    }
}

/// Counts the recordings below a directory that are complete and last at least `seconds`.
///
/// # Errors
/// Returns an error if the directory or a sidecar cannot be read.
pub fn complete_recordings(directory: &Path, seconds: f64) -> io::Result<u32> {
    let root = Root::new(directory.to_owned());
    let (mut complete, mut failed) = (0, None);
    library::walk(&root, &mut |path, _| match library::read(&root, path) {
        Ok(sidecar) => {
            let long = sidecar.duration_ms as f64 >= seconds * 1000.0;
            complete += u32::from(long && sidecar.state == State::Complete);
        }
        Err(why) => failed = Some(why),
    })?;
    failed.map_or(Ok(complete), Err)
}
