//! The resources that this process uses, for `/metrics`, with the names that Prometheus' own client
//! libraries use. Owns reading `/proc` and the clock.

use std::fmt::Write as _;
use std::fs;
use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// When the program started, as time since 1970.
static STARTED: LazyLock<f64> = LazyLock::new(|| {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
});

/// Notes that the program has started.
pub fn started() {
    LazyLock::force(&STARTED);
}

/// Returns the metrics. Those that cannot be read are left out.
pub fn text() -> String {
    let mut out = String::new();
    let mut put = |name: &str, kind: &str, help: &str, value: Option<f64>| {
        let Some(value) = value else { return };
        let _ = writeln!(out, "# HELP process_{name} {help}\n# TYPE process_{name} {kind}");
        let _ = writeln!(out, "process_{name} {value}");
    };
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let cpu = cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9;
    put("cpu_seconds_total", "counter", "CPU time used.", Some(cpu));
    let files = fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as f64);
    put("open_fds", "gauge", "Open file descriptors.", files);
    let limit = getrlimit(Resource::Nofile).current.map(|limit| limit as f64);
    put("max_fds", "gauge", "Limit of open file descriptors.", limit);
    put("resident_memory_bytes", "gauge", "Memory in use.", resident());
    put("start_time_seconds", "gauge", "Start of the program, since 1970.", Some(*STARTED));
    out
}

fn resident() -> Option<f64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_all_of_them() {
        let text = text();
        for name in [
            "cpu_seconds_total",
            "open_fds",
            "max_fds",
            "resident_memory_bytes",
            "start_time_seconds",
        ] {
            let value = text.lines().find_map(|l| l.strip_prefix(&format!("process_{name} ")));
            assert!(value.is_some_and(|v| v.parse::<f64>().unwrap() > 0.0), "{name}: {text}");
        }
    }
}
