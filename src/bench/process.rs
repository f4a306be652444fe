//! Resource usage of processes, and a description of the machine, from /proc. Owns file reading.

use std::fs::read_to_string;
use std::time::Duration;

use serde::Serialize;

/// Ticks per second of the times in /proc (`USER_HZ`): the same on every Linux architecture.
const TICKS: u64 = 100;

/// The fields of `/proc/PID/stat` used here.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stat {
    name: String,
    parent: u32,
    user: Duration,
    system: Duration,
    threads: u64,
}

fn parse_stat(text: &str) -> Option<Stat> {
    // the name may contain spaces and parentheses
    let (name, rest) = text.split_once('(')?.1.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let time = |index: usize| Some(Duration::from_millis(number(index)? * 1000 / TICKS));
    Some(Stat {
        name: name.to_owned(),
        parent: number(1)? as u32,
        user: time(11)?,
        system: time(12)?,
        threads: number(17)?,
    })
}

/// Returns the number after a name in `/proc/PID/status`.
fn status_field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Resources used so far by a set of processes together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub user: Duration,
    pub system: Duration,
    pub resident_kb: u64,
    pub threads: u64,
    pub voluntary_switches: u64,
    pub involuntary_switches: u64,
}

impl Usage {
    pub fn cpu(&self) -> Duration {
        self.user + self.system
    }
}

fn numbers_in(folder: &str) -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok())
}

/// Returns a process and all its descendants.
pub fn tree(root: u32) -> Vec<u32> {
    let parent = |pid: u32| {
        Some((pid, parse_stat(&read_to_string(format!("/proc/{pid}/stat")).ok()?)?.parent))
    };
    let all: Vec<(u32, u32)> = numbers_in("/proc").filter_map(parent).collect();
    let mut tree = vec![root];
    let mut next = 0;
    while next < tree.len() {
        let above = tree[next];
        tree.extend(all.iter().filter(|(_, parent)| *parent == above).map(|(pid, _)| *pid));
        next += 1;
    }
    tree
}

pub fn usage(processes: &[u32]) -> Usage {
    let mut sum = Usage::default();
    for pid in processes {
        let read = |file: &str| read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        if let Some(stat) = parse_stat(&read("stat")) {
            sum.user += stat.user;
            sum.system += stat.system;
            sum.threads += stat.threads;
        }
        sum.resident_kb += status_field(&read("status"), "VmRSS").unwrap_or(0);
        for task in numbers_in(&format!("/proc/{pid}/task")) {
            let status = read(&format!("task/{task}/status"));
            let field = |name| status_field(&status, name).unwrap_or(0);
            sum.voluntary_switches += field("voluntary_ctxt_switches");
            sum.involuntary_switches += field("nonvoluntary_ctxt_switches");
        }
    }
    sum
}

/// Returns the CPU time of this process's threads with this name.
pub fn own_thread(name: &str) -> Duration {
    let stat =
        |task: u32| parse_stat(&read_to_string(format!("/proc/self/task/{task}/stat")).ok()?);
    let of = |stat: Stat| (stat.name == name).then_some(stat.user + stat.system);
    numbers_in("/proc/self/task").filter_map(|task| of(stat(task)?)).sum()
}

/// CPU time of all cores together since the machine started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MachineTime {
    pub idle: Duration,
    /// Time that the host of a virtual machine withheld (steal).
    pub stolen: Duration,
    /// Time spent in processes, without interrupts.
    pub busy: Duration,
}

/// Parses `/proc/stat` (proc(5)): user, nice, system, idle, iowait, irq, softirq, steal.
fn parse_machine_time(text: &str) -> MachineTime {
    let line = text.lines().next().unwrap_or("");
    let fields: Vec<u64> =
        line.split_whitespace().skip(1).map(|field| field.parse().unwrap_or(0)).collect();
    let time = |wanted: &[usize]| {
        let ticks: u64 = wanted.iter().filter_map(|field| fields.get(*field)).sum();
        Duration::from_millis(ticks * 1000 / TICKS)
    };
    MachineTime { idle: time(&[3, 4]), stolen: time(&[7]), busy: time(&[0, 1, 2]) }
}

pub fn machine_time() -> MachineTime {
    parse_machine_time(&read_to_string("/proc/stat").unwrap_or_default())
}

/// The machine on which the figures were measured.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    pub cores: usize,
    pub cpu: String,
    pub kernel: String,
}

pub fn machine() -> Machine {
    let cpu = read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": "));
    let kernel = read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Machine {
        cores: std::thread::available_parallelism().map_or(0, usize::from),
        cpu: model.map_or("unknown", |(_, model)| model).to_owned(),
        kernel: kernel.trim().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_a_stat_name_with_parentheses() {
        let text = "7 (a (b) c) S 3 7 7 0 -1 4 0 0 0 0 150 25 0 0 20 0 9 0 100 1 2";
        let stat = parse_stat(text).unwrap();
        assert_eq!((stat.name.as_str(), stat.parent, stat.threads), ("a (b) c", 3, 9));
        assert_eq!(stat.user, Duration::from_millis(1500));
        assert_eq!(stat.system, Duration::from_millis(250));
        assert_eq!(parse_stat("7 (a) S"), None);
    }

    #[test]
    fn parses_status_fields() {
        let text = "VmRSS:\t   5120 kB\nvoluntary_ctxt_switches:\t7\n\
                    nonvoluntary_ctxt_switches:\t8\n";
        assert_eq!(status_field(text, "VmRSS"), Some(5120));
        assert_eq!(status_field(text, "voluntary_ctxt_switches"), Some(7));
        assert_eq!(status_field(text, "nonvoluntary_ctxt_switches"), Some(8));
        assert_eq!(status_field(text, "Vm"), None);
    }

    #[test]
    fn parses_the_time_of_all_cores() {
        let text = "cpu  100 20 30 400 50 6 7 8 0 0\ncpu0 1 2 3 4\n";
        let [idle, stolen, busy] = [4500, 80, 1500].map(Duration::from_millis);
        assert_eq!(parse_machine_time(text), MachineTime { idle, stolen, busy });
        assert_eq!(parse_machine_time(""), MachineTime::default());
    }

    #[test]
    fn reads_the_usage_of_this_process() {
        let own = std::process::id();
        assert_eq!(tree(own)[0], own);
        let usage = usage(&[own]);
        assert!(usage.resident_kb > 0 && usage.threads > 0);
        assert!(machine().cores > 0);
    }
}
