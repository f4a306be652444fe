//! The results of a measurement, as text and as JSON with the same figures.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use serde::Serialize;

use crate::bench::figures::Spread;
use crate::bench::process::Machine;

/// The results of a measurement. Times are `None` if nothing was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub machine: Machine,
    /// Cargo profile of trunkless; published figures are measured with `dist`.
    pub profile: &'static str,
    /// Concurrent calls requested.
    pub calls_wanted: u32,
    /// Length of the measured time.
    pub seconds: f64,
    pub recorded: bool,
    pub calls: Calls,
    pub to_ai: Way,
    pub to_caller: Way,
    /// From the AI's message to RTP, including the wait for the slot. A bridge that always holds
    /// speech back shows it here and in the first frame of a talkspurt.
    pub message_to_rtp: Option<Spread>,
    /// Time that the AI's frames waited for their 20 ms slots. As much of it as the first frame of
    /// the talkspurt took is due to the bridge; for the rest, the AI was early.
    pub slot_wait: Option<Spread>,
    /// From the AI's message to RTP, for the first frame of a talkspurt: no other frame is queued
    /// before it.
    pub talkspurt: Option<Spread>,
    /// Lateness of the bridge's RTP packets, including silence, against their timestamps.
    pub rtp_lateness: Option<Spread>,
    /// Frames of continuous speech that arrived after silence.
    pub silence_within_speech: u64,
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
    /// Idle share of all cores over the measured time.
    pub machine_idle_percent: f64,
    /// Steal time: the share of all cores that the host of a virtual machine withheld. Late frames
    /// may be due to it.
    pub machine_stolen_percent: f64,
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

/// Judged frames of one direction.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Way {
    pub sent: u64,
    pub lost: u64,
    /// Frames with more than 20 ms of added latency.
    pub late: u64,
    pub swapped: u64,
    pub repeated: u64,
    pub damaged: u64,
    pub misrouted: u64,
    pub added: Option<Spread>,
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
    /// RTP packets in the measured time, both directions, including silence.
    pub frames: u64,
    pub voluntary_switches_per_frame: f64,
    pub involuntary_switches_per_frame: f64,
    pub system_calls_per_frame: Option<f64>,
    /// The tool that counted them, or the reason why they were not measured.
    pub system_calls_by: &'static str,
    pub exit_code: Option<i32>,
}

/// Timing and CPU time of the load generator itself.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Generator {
    pub callers_lateness: Option<Spread>,
    pub ai_lateness: Option<Spread>,
    pub callers_cpu_percent: f64,
    pub ai_cpu_percent: f64,
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

fn line(out: &mut String, name: &str, spread: &Option<Spread>) {
    let _ = match spread {
        Some(s) => writeln!(
            out,
            "  {name:33} p50 {:8.3}  p99 {:8.3}  p99.9 {:8.3}  max {:8.3} ms  ({})",
            s.p50_ms, s.p99_ms, s.p999_ms, s.max_ms, s.count
        ),
        None => writeln!(out, "  {name:33} not measured"),
    };
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = String::new();
        let Machine { cores, cpu, kernel } = &self.machine;
        let recorded = if self.recorded { ", recorded" } else { "" };
        let _ = writeln!(
            out,
            "{} calls, {:.0} s{recorded}; {cores} cores, {cpu}, Linux {kernel}; profile {}",
            self.calls_wanted, self.seconds, self.profile
        );
        self.write_calls(&mut out);
        self.write_ways(&mut out);
        self.write_bridge(&mut out);
        self.write_generator(&mut out);
        for why in &self.not_valid {
            let _ = writeln!(out, "NOT VALID: the generator was late: {why}");
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
        for (name, way) in [("caller to AI", &self.to_ai), ("AI to caller", &self.to_caller)] {
            let _ = writeln!(out, "{name}");
            let _ = writeln!(
                out,
                "  frames sent {}, lost {}, late {}, swapped {}, repeated {}, damaged {}, \
                 misrouted {}",
                way.sent, way.lost, way.late, way.swapped, way.repeated, way.damaged, way.misrouted
            );
            line(out, "added latency", &way.added);
        }
        line(out, "wait for the slot (not included)", &self.slot_wait);
        line(out, "message to RTP, including wait", &self.message_to_rtp);
        line(out, "first frame of a talkspurt", &self.talkspurt);
        line(out, "RTP lateness against timestamps", &self.rtp_lateness);
        line(out, "clear to silence", &self.clear_to_silence);
        let _ =
            writeln!(out, "  interruptions of speech by silence: {}", self.silence_within_speech);
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
            "  CPU user {:.1} %, system {:.1} % of one core; {:.3} % per call; \
             machine idle {:.0} %, stolen by its host {:.1} %",
            b.cpu_user_percent,
            b.cpu_system_percent,
            b.cpu_percent_per_call,
            self.machine_idle_percent,
            self.machine_stolen_percent
        );
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
        let _ = writeln!(
            out,
            "  CPU: callers {:.1} %, AI {:.1} % of one core; time resolution {} us",
            g.callers_cpu_percent, g.ai_cpu_percent, g.grain_us
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::verdict::faults;

    fn spread() -> Option<Spread> {
        Some(Spread { count: 7, p50_ms: 0.25, p99_ms: 1.0, p999_ms: 2.0, max_ms: 3.5 })
    }

    fn good() -> Report {
        let way = Way { sent: 100, added: spread(), ..Way::default() };
        Report {
            profile: "release",
            machine: Machine { cores: 2, cpu: "a \"CPU\"".to_owned(), kernel: "6.1".to_owned() },
            calls_wanted: 2,
            seconds: 3.0,
            recorded: false,
            calls: Calls { asked: 2, answered: 2, ..Calls::default() },
            to_ai: way.clone(),
            to_caller: way,
            message_to_rtp: None,
            slot_wait: None,
            talkspurt: None,
            rtp_lateness: None,
            silence_within_speech: 0,
            clear_to_silence: None,
            ai_connections_broken: 0,
            ai_why_broken: None,
            ai_sends_blocked: 0,
            packets_refused: 0,
            bridge: BridgeUse::default(),
            generator: Generator::default(),
            recordings_complete: None,
            machine_idle_percent: 50.0,
            machine_stolen_percent: 0.0,
            not_valid: Vec::new(),
            faults: Vec::new(),
        }
    }

    #[test]
    fn json_keys_contain_the_units() {
        let mut report = good();
        report.calls.failed_by_status.insert(503, 4);
        let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(json["to_ai"]["added"]["p99_ms"], 1.0);
        assert_eq!(json["machine"]["cpu"], "a \"CPU\"");
        assert_eq!(json["calls"]["failed_by_status"]["503"], 4);
        assert!(json["clear_to_silence"].is_null());
    }

    #[test]
    fn every_fault_is_listed_and_late_frames_are_not_faults() {
        assert_eq!(faults(&good()), Vec::<String>::new());
        let changes: [fn(&mut Report); 10] = [
            |r| r.to_ai.lost = 1,
            |r| r.to_caller.swapped = 1,
            |r| r.to_caller.damaged = 1,
            |r| r.to_ai.repeated = 1,
            |r| r.to_ai.misrouted = 1,
            |r| r.calls.answered = 1,
            |r| r.calls.dropped = 1,
            |r| r.recordings_complete = Some(1),
            |r| r.bridge.exit_code = Some(1),
            |r| r.to_caller.sent = 0,
        ];
        for (index, change) in changes.into_iter().enumerate() {
            let mut report = good();
            change(&mut report);
            assert_eq!(faults(&report).len(), 1, "{index}: {:?}", faults(&report));
        }
        let mut slow = good();
        slow.to_ai.late = 100;
        assert_eq!(faults(&slow), Vec::<String>::new());
    }

    #[test]
    fn the_text_reports_a_late_generator() {
        let mut report = good();
        assert!(report.to_string().contains("nothing lost"));
        report.not_valid.push("callers: p99 3.0 ms".to_owned());
        let text = report.to_string();
        assert!(text.contains("NOT VALID: the generator was late: callers"), "{text}");
        assert!(!text.contains("nothing lost"));
    }
}
