//! Counts the system calls of processes with perf or strace, whichever is installed. Owns the
//! processes it starts.

use std::process::{Command, Stdio};
use std::time::Duration;

/// How long system calls are counted.
const TIME: Duration = Duration::from_secs(2);

/// The rate of system calls.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Traced {
    /// System calls per second; `None` if not measured.
    pub a_second: Option<f64>,
    /// The tool that counted them, or the reason why they were not measured.
    pub by: &'static str,
}

impl Traced {
    const NOT: Traced = Traced { a_second: None, by: "not measured: install perf or strace" };
    pub const NOT_STEADY: Traced =
        Traced { a_second: None, by: "not measured: the number of calls is not steady" };
}

/// Counts the system calls of these processes for two seconds.
pub fn count_system_calls(processes: &[u32]) -> Traced {
    let counted = by_perf(processes).map(|n| (n, "perf")).or_else(|| {
        // strace slows the processes down, so there may be fewer frames meanwhile
        by_strace(processes).map(|n| (n, "strace"))
    });
    counted.map_or(Traced::NOT, |(count, by)| Traced {
        a_second: Some(count as f64 / TIME.as_secs_f64()),
        by,
    })
}

fn list(processes: &[u32]) -> String {
    processes.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

fn by_perf(processes: &[u32]) -> Option<u64> {
    let output = Command::new("perf")
        .args(["stat", "-x,", "-e", "raw_syscalls:sys_enter", "-p", &list(processes), "--"])
        .args(["sleep", &TIME.as_secs().to_string()])
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .ok()?;
    parse_perf(&String::from_utf8_lossy(&output.stderr))
}

fn parse_perf(text: &str) -> Option<u64> {
    let line = text.lines().find(|l| l.contains("raw_syscalls:sys_enter"))?;
    line.split(',').next()?.trim().parse().ok()
}

fn by_strace(processes: &[u32]) -> Option<u64> {
    let mut command = Command::new("timeout");
    command.args(["-s", "INT", &TIME.as_secs().to_string(), "strace", "-f", "-c"]);
    processes.iter().for_each(|pid| {
        command.args(["-p", &pid.to_string()]);
    });
    let output = command.stdin(Stdio::null()).output().ok()?;
    parse_strace(&String::from_utf8_lossy(&output.stderr))
}

/// Reads the last line of the table: `100.00 0.123 45 6789 12 total`.
fn parse_strace(text: &str) -> Option<u64> {
    let total = text.lines().rev().find(|l| l.trim_end().ends_with("total"))?;
    total.split_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_the_output_of_perf_and_strace() {
        assert_eq!(parse_perf("1234,,raw_syscalls:sys_enter,2000,100.00,,\n"), Some(1234));
        assert_eq!(parse_perf("<not counted>,,raw_syscalls:sys_enter,0,100.00,,\n"), None);
        assert_eq!(parse_perf("perf: not found"), None);
        let table = "% time     seconds  usecs/call     calls    errors syscall\n\
                     ------ ----------- ----------- --------- --------- ----------------\n \
                     50.00    0.000100          10        10         2 read\n\
                     ------ ----------- ----------- --------- --------- ----------------\n\
                     100.00    0.000200          10        20         2 total\n";
        assert_eq!(parse_strace(table), Some(20));
        assert_eq!(parse_strace("strace: attach: Operation not permitted"), None);
    }
}
