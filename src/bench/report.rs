//! The results of a measurement, as text and as JSON with the same figures.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use serde::Serialize;

use crate::bench::figures::Spread;
use crate::bench::floor::Floor;
use crate::bench::process::Machine;
use crate::bench::verdict;

/// The results of a measurement. Times are `None` if nothing was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub machine: Machine,
    /// Cargo profile of trunkless.
    pub profile: &'static str,
    /// Concurrent calls requested.
    pub calls_wanted: u32,
    /// Length of the measured time.
    pub seconds: f64,
    /// The dialect of the AI.
    pub dialect: &'static str,
    /// Conditions that differ from a plain run, such as loss.
    pub conditions: Vec<String>,
    /// Longest delay of messages from the AI.
    pub ai_jitter_ms: u32,
    /// True if the callers dialled through a real PBX.
    pub real_pbx: bool,
    pub calls: Calls,
    pub to_ai: Way,
    pub to_caller: Way,
    /// From the due time of a message to RTP, for the first frame of a talkspurt: no other
    /// frame is queued before it.
    pub talkspurt: Option<Spread>,
    /// For audio that the AI sent ahead in one piece: from the time at which a frame was due to be
    /// played, to RTP.
    pub queued: Option<Spread>,
    /// Lateness of speech in RTP against a steady playout clock: what the jitter buffer of
    /// a phone has to absorb.
    pub rtp_lateness: Option<Spread>,
    /// Times that silence interrupted speech that the AI sent without a pause …
    pub holes_in_speech: u64,
    /// … and the length of this silence in total.
    pub holes_ms: u64,
    /// RTP packets to the callers whose timestamp does not follow from the packet before.
    pub timestamp_jumps: u64,
    /// Frames of audio with a `clear` that there was time to play before it, but that did not
    /// arrive.
    pub lost_tails: u64,
    /// From sending `clear` to the last frame of the audio that it ended.
    pub clear_to_silence: Option<Spread>,
    /// Connections that the AI dropped because of an error.
    pub ai_connections_broken: u64,
    /// The last reason for dropping one.
    pub ai_why_broken: Option<&'static str>,
    /// Number of sends that the AI's socket did not accept completely.
    pub ai_sends_blocked: u64,
    /// RTP packets that could not be sent to the bridge.
    pub packets_refused: u64,
    pub bridge: BridgeUse,
    pub generator: Generator,
    pub recordings_complete: Option<u32>,
    pub machine_use: MachineUse,
    /// Reasons why the figures are invalid; empty if they are valid.
    pub not_valid: Vec<String>,
    /// Faults found; empty if there are none.
    pub faults: Vec<String>,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Calls {
    /// Calls attempted.
    pub asked: u32,
    pub answered: u32,
    /// Unanswered calls by SIP status; 0 if no status was received.
    pub failed_by_status: BTreeMap<u16, u32>,
    /// Answered calls that the other side ended.
    pub dropped: u32,
    /// Average from the first INVITE to the last answer.
    pub answered_per_second: f64,
    pub invite_to_answer: Option<Spread>,
    pub invite_to_first_packet: Option<Spread>,
    pub invite_to_first_speech: Option<Spread>,
}

/// Judged frames of one direction. Times count from when a frame was due at its sender.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Way {
    pub sent: u64,
    pub lost: u64,
    /// Frames sent in the first second of a call, which are not among those above.
    pub first_second_sent: u64,
    pub first_second_lost: u64,
    /// Frames that arrived more than 20 ms late.
    pub late: u64,
    pub swapped: u64,
    pub repeated: u64,
    pub damaged: u64,
    pub misrouted: u64,
    /// From packet to message, or from message to packet, for speech sent in real time.
    pub latency: Option<Spread>,
}

/// The use of all cores over the measured time, as shares.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct MachineUse {
    pub idle_percent: f64,
    /// Steal time: the share that the host of a virtual machine withheld.
    pub stolen_percent: f64,
    /// Share of processes that do not belong to the measurement.
    pub others_percent: f64,
}

/// Resources used by the bridge's process and its descendants. A frame is 20 ms of one call in one
/// direction.
#[derive(Debug, Clone, Default, Serialize)]
pub struct BridgeUse {
    /// From exec until it was ready for calls.
    pub start_ms: Option<f64>,
    pub binary_bytes: Option<u64>,
    pub cpu_user_percent: f64,
    pub cpu_system_percent: f64,
    pub cpu_percent_per_call: f64,
    pub resident_before_kb: u64,
    pub resident_kb: u64,
    pub resident_kb_per_call: f64,
    pub threads: u64,
    /// Frames in the measured time, both directions, including silence.
    pub frames: u64,
    pub voluntary_switches_per_frame: f64,
    pub involuntary_switches_per_frame: f64,
    pub system_calls_per_frame: Option<f64>,
    /// The tool that counted them, or the reason why they were not measured.
    pub system_calls_by: &'static str,
    /// The least that the kernel's part of the work costs, measured right after the calls.
    pub floor: Option<Floor>,
    /// CPU per call as a multiple of this floor.
    pub cpu_times_floor: Option<f64>,
    pub exit_code: Option<i32>,
}

/// Timing and CPU time of the load generator itself.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Generator {
    pub callers_lateness: Option<Spread>,
    pub ai_lateness: Option<Spread>,
    pub callers_cpu_percent: f64,
    pub ai_cpu_percent: f64,
    /// Packets and messages that the generator read after a pause of its own.
    pub read_after_pause: u64,
    /// Frames of the callers in the measured time of which the simulated network lost a part. They
    /// are not among the frames sent.
    pub frames_dropped: u64,
    /// Time resolution. With many calls, recorded arrival times are late by up to this much.
    pub grain_us: u64,
}

impl Report {
    pub fn is_valid(&self) -> bool {
        self.not_valid.is_empty()
    }

    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("numbers and strings always serialise")
    }

    /// Returns the CPU time of bridge and generator as a percentage of all cores.
    pub fn used_percent(&self) -> f64 {
        let generator = self.generator.callers_cpu_percent + self.generator.ai_cpu_percent;
        (self.cpu_percent() + generator) / self.machine.cores.max(1) as f64
    }

    /// Returns the CPU time of the bridge as a percentage of one core.
    pub fn cpu_percent(&self) -> f64 {
        self.bridge.cpu_user_percent + self.bridge.cpu_system_percent
    }
}

impl BridgeUse {
    fn write_floor(&self, out: &mut String) {
        let _ = write!(out, "  CPU per call {:.3} % of a core", self.cpu_percent_per_call);
        let _ = match self.floor.zip(self.cpu_times_floor) {
            Some((floor, times)) => writeln!(
                out,
                ", {times:.1} x the floor of the kernel's four system calls ({:.3} %: RTP in \
                 {:.2}, message out {:.2}, message in {:.2}, RTP out {:.2} us)",
                floor.cpu_percent_per_call,
                floor.receive_rtp_us,
                floor.send_message_us,
                floor.receive_message_us,
                floor.send_rtp_us
            ),
            None => writeln!(out, "; floor of the kernel's system calls not measured"),
        };
    }
}

fn line(out: &mut String, name: &str, spread: &Option<Spread>) {
    let _ = match spread {
        Some(s) => writeln!(
            out,
            "  {name:33} p50 {:7.3}  p90 {:7.3}  p99 {:7.3}  max {:8.3} ms  ({})",
            s.p50_ms, s.p90_ms, s.p99_ms, s.max_ms, s.count
        ),
        None => writeln!(out, "  {name:33} not measured"),
    };
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = String::new();
        let Machine { cores, cpu, kernel } = &self.machine;
        let conditions = self.conditions.iter().map(|condition| format!(", {condition}"));
        let conditions: String = conditions.collect();
        let _ = writeln!(
            out,
            "{} calls, {:.0} s, dialect {}{conditions}; {cores} cores, {cpu}, Linux {kernel}; \
             profile {}",
            self.calls_wanted, self.seconds, self.dialect, self.profile
        );
        self.write_calls(&mut out);
        self.write_ways(&mut out);
        self.write_bridge(&mut out);
        self.write_generator(&mut out);
        for why in &self.not_valid {
            let _ = writeln!(out, "NOT VALID: the generator was late: {why}");
        }
        if let Some(why) = verdict::why_times_are_excused(self) {
            let _ = writeln!(out, "faults that a delay explains do not count: {why}");
        }
        for fault in &self.faults {
            let _ = writeln!(out, "FAULT: {fault}");
        }
        if self.faults.is_empty() && self.is_valid() {
            let _ = writeln!(out, "nothing lost, swapped or damaged");
        }
        f.write_str(&out)
    }
}

impl Report {
    fn write_calls(&self, out: &mut String) {
        let calls = &self.calls;
        let _ = writeln!(out, "calls");
        let failed = calls.failed_by_status.iter().map(|(code, n)| format!(", {n} × {code}"));
        let _ = writeln!(
            out,
            "  dialled {}, answered {} ({:.1} per second){}, ended by the other side {}",
            calls.asked,
            calls.answered,
            calls.answered_per_second,
            failed.collect::<String>(),
            calls.dropped
        );
        line(out, "call to answer", &calls.invite_to_answer);
        line(out, "call to first RTP packet", &calls.invite_to_first_packet);
        line(out, "call to first speech from the AI", &calls.invite_to_first_speech);
    }

    fn write_ways(&self, out: &mut String) {
        let ways = [
            ("caller to AI", &self.to_ai, "RTP packet to message"),
            ("AI to caller", &self.to_caller, "message to RTP packet"),
        ];
        for (name, way, what) in ways {
            let _ = writeln!(out, "{name}");
            let _ = writeln!(
                out,
                "  frames sent {}, lost {}, late {}, swapped {}, repeated {}, damaged {}, \
                 misrouted {}",
                way.sent, way.lost, way.late, way.swapped, way.repeated, way.damaged, way.misrouted
            );
            let _ = writeln!(
                out,
                "  first second of the calls: frames sent {}, lost {}",
                way.first_second_sent, way.first_second_lost
            );
            line(out, what, &way.latency);
        }
        line(out, "first frame of a talkspurt", &self.talkspurt);
        line(out, "audio sent ahead, from its time", &self.queued);
        line(out, "RTP against a steady playout", &self.rtp_lateness);
        line(out, "clear to silence", &self.clear_to_silence);
        let _ = writeln!(
            out,
            "  silence within speech: {} times, {} ms in total; RTP timestamps out of step: {}",
            self.holes_in_speech, self.holes_ms, self.timestamp_jumps
        );
        let _ = writeln!(out, "  frames missing before a clear: {}", self.lost_tails);
        if let Some(why) = self.ai_why_broken {
            let _ = writeln!(
                out,
                "  AI connections broken: {}; last reason: {why}",
                self.ai_connections_broken
            );
        }
        if self.ai_sends_blocked + self.packets_refused > 0 {
            let _ = writeln!(
                out,
                "  incomplete sends on the AI's sockets: {}; RTP packets not sent: {}",
                self.ai_sends_blocked, self.packets_refused
            );
        }
    }

    fn write_bridge(&self, out: &mut String) {
        let b = &self.bridge;
        let _ = writeln!(out, "bridge (a frame is 20 ms of one call in one direction)");
        let start = b.start_ms.map_or("not measured".to_owned(), |ms| format!("{ms:.0} ms"));
        let size =
            b.binary_bytes.map_or(String::new(), |n| format!(", binary {:.1} MB", n as f64 / 1e6));
        let _ = writeln!(out, "  exec to ready: {start}{size}");
        let _ = writeln!(
            out,
            "  CPU user {:.1} %, system {:.1} % of one core; machine idle {:.0} %, \
             stolen by its host {:.1} %, other processes {:.1} %",
            b.cpu_user_percent,
            b.cpu_system_percent,
            self.machine_use.idle_percent,
            self.machine_use.stolen_percent,
            self.machine_use.others_percent
        );
        b.write_floor(out);
        let _ = writeln!(
            out,
            "  resident {} kB ({} kB before the calls, {:.1} kB per call); {} threads",
            b.resident_kb, b.resident_before_kb, b.resident_kb_per_call, b.threads
        );
        let calls = match b.system_calls_per_frame {
            Some(calls) => format!("{calls:.2} (by {})", b.system_calls_by),
            None => b.system_calls_by.to_owned(),
        };
        let _ = writeln!(
            out,
            "  per frame: context switches {:.3} voluntary, {:.3} involuntary; \
             system calls {calls}",
            b.voluntary_switches_per_frame, b.involuntary_switches_per_frame
        );
        if let Some(complete) = self.recordings_complete {
            let _ = writeln!(out, "  recordings complete: {complete} of {}", self.calls.answered);
        }
    }

    fn write_generator(&self, out: &mut String) {
        let g = &self.generator;
        let _ = writeln!(out, "generator");
        line(out, "lateness of callers' frames", &g.callers_lateness);
        line(out, "lateness of frames from the AI", &g.ai_lateness);
        let _ = writeln!(out, "  read after a pause of its own: {}", g.read_after_pause);
        if g.frames_dropped > 0 {
            let _ = writeln!(out, "  callers' frames lost on purpose: {}", g.frames_dropped);
        }
        let _ = writeln!(
            out,
            "  CPU: callers {:.1} %, AI {:.1} % of one core; time resolution {} us",
            g.callers_cpu_percent, g.ai_cpu_percent, g.grain_us
        );
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    fn spread() -> Option<Spread> {
        Some(Spread { count: 7, p50_ms: 0.25, p90_ms: 0.5, p99_ms: 1.0, p999_ms: 2.0, max_ms: 3.5 })
    }

    /// A report without a fault.
    pub fn good() -> Report {
        let way = Way { sent: 100, latency: spread(), ..Way::default() };
        Report {
            profile: "release",
            machine: Machine { cores: 2, cpu: "a \"CPU\"".to_owned(), kernel: "6.1".to_owned() },
            calls_wanted: 2,
            seconds: 3.0,
            dialect: "twilio",
            conditions: Vec::new(),
            ai_jitter_ms: 0,
            real_pbx: false,
            calls: Calls { asked: 2, answered: 2, ..Calls::default() },
            to_ai: way.clone(),
            to_caller: way,
            talkspurt: None,
            queued: None,
            rtp_lateness: None,
            holes_in_speech: 0,
            holes_ms: 0,
            timestamp_jumps: 0,
            lost_tails: 0,
            clear_to_silence: None,
            ai_connections_broken: 0,
            ai_why_broken: None,
            ai_sends_blocked: 0,
            packets_refused: 0,
            bridge: BridgeUse::default(),
            generator: Generator::default(),
            recordings_complete: None,
            machine_use: MachineUse::default(),
            not_valid: Vec::new(),
            faults: Vec::new(),
        }
    }

    #[test]
    fn json_keys_contain_the_units() {
        let mut report = good();
        report.calls.failed_by_status.insert(503, 4);
        let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(json["to_ai"]["latency"]["p99_ms"], 1.0);
        assert_eq!(json["machine"]["cpu"], "a \"CPU\"");
        assert_eq!(json["calls"]["failed_by_status"]["503"], 4);
        assert!(json["clear_to_silence"].is_null());
    }

    #[test]
    fn the_text_reports_a_late_generator() {
        let mut report = good();
        let text = report.to_string();
        assert!(text.contains("nothing lost") && text.contains("2 calls, 3 s, dialect twilio; 2"));
        report.not_valid.push("callers: p99 3.0 ms".to_owned());
        let text = report.to_string();
        assert!(text.contains("NOT VALID: the generator was late: callers"), "{text}");
        assert!(!text.contains("nothing lost"));
    }

    #[test]
    fn the_text_compares_the_cpu_with_the_floor() {
        let mut report = good();
        assert!(report.to_string().contains("CPU per call 0.000 % of a core; floor"));
        report.bridge.cpu_percent_per_call = 0.22;
        report.bridge.cpu_times_floor = Some(2.34);
        report.bridge.floor = Some(Floor {
            receive_rtp_us: 1.0,
            send_message_us: 9.0,
            receive_message_us: 1.5,
            send_rtp_us: 7.0,
            cpu_percent_per_call: 0.0925,
        });
        let text = report.to_string();
        let row = "CPU per call 0.220 % of a core, 2.3 x the floor of the kernel's four";
        assert!(text.contains(row), "{text}");
    }

    #[test]
    fn the_text_shows_queues_and_holes() {
        let mut report = good();
        (report.holes_in_speech, report.holes_ms) = (3, 80);
        let text = report.to_string();
        assert!(text.contains("silence within speech: 3 times, 80 ms in total"), "{text}");
        let row = "message to RTP packet             p50   0.250  p90   0.500  p99   1.000";
        assert!(text.contains(row), "{text}");
        assert!(text.contains("first second of the calls: frames sent 0, lost 0"), "{text}");
    }
}
