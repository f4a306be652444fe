//! Small runs of `trunkless bench`, as a user would start it. They are judged by the frames that
//! arrived, never by times.

use std::process::{Command, Output};

use serde_json::Value;

fn bench(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trunkless"));
    command.arg("bench").args(arguments).output().expect("starting trunkless")
}

#[track_caller]
fn report(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}\n{error}"))
}

#[track_caller]
fn assert_all_arrived(report: &Value, at_least: u64) {
    for way in ["to_ai", "to_caller"] {
        let way = &report[way];
        assert!(way["sent"].as_u64() >= Some(at_least), "{way}");
        assert!(way["first_second_sent"].as_u64() > Some(0), "{way}");
        let faults = ["lost", "first_second_lost", "swapped", "repeated", "damaged", "misrouted"];
        for fault in faults {
            assert_eq!(way[fault], 0, "{fault}: {report}");
        }
    }
    assert_only_times_are_wrong(report);
}

/// A run with these options, repeated if it has faults and the machine held up the generator for
/// longer than a bridge waits for a packet.
#[track_caller]
fn undisturbed(options: &[&str]) -> Value {
    undisturbed_calls("5", options)
}

#[track_caller]
fn undisturbed_calls(calls: &str, options: &[&str]) -> Value {
    let arguments = [&["--calls", calls, "--json"][..], options].concat();
    let held_up = |report: &Value| {
        let lateness = &report["generator"]["callers_lateness"]["max_ms"];
        let paused = report["generator"]["read_after_pause"] != 0;
        report["faults"] != Value::Array(Vec::new()) && (lateness.as_f64() > Some(40.0) || paused)
    };
    let mut last = report(&bench(&arguments));
    for _ in 0..3 {
        if !held_up(&last) {
            break;
        }
        last = report(&bench(&arguments));
    }
    last
}

/// On a busy machine, frames may be late, and silence may be played or left out in their place.
#[track_caller]
fn assert_only_times_are_wrong(report: &Value) {
    let faults = report["faults"].as_array().expect("a list");
    let of_time = |fault: &Value| {
        let fault = fault.as_str().unwrap_or_default();
        ["ms late", "holes in speech", "out of step", "before a clear"]
            .iter()
            .any(|text| fault.contains(text))
    };
    assert!(faults.iter().all(of_time), "{report}");
}

#[test]
fn five_calls_lose_nothing_and_are_recorded() {
    let output = bench(&["--calls", "5", "--seconds", "3", "--record", "--json"]);
    let report = report(&output);
    assert_all_arrived(&report, 5 * 2 * 50);
    assert_eq!((&report["calls"]["asked"], &report["calls"]["answered"]), (&5.into(), &5.into()));
    assert_eq!(report["recordings_complete"], 5);
    assert_eq!(output.status.success(), report["faults"] == Value::Array(Vec::new()));
}

#[test]
fn churning_calls_lose_nothing() {
    let arguments = ["--calls", "4", "--seconds", "6", "--hold", "4", "--rate", "4", "--json"];
    let output = bench(&arguments);
    let report = report(&output);
    assert_all_arrived(&report, 4 * 50);
    let asked = report["calls"]["asked"].as_u64().expect("a number");
    assert!(asked > 4, "{report}");
    assert_eq!(report["calls"]["answered"], asked);
}

/// The simulated Stasis decides how the media channels are created, bridged and deleted.
#[test]
fn calls_over_ari_lose_nothing() {
    let output =
        bench(&["--source", "ari", "--calls", "5", "--seconds", "3", "--record", "--json"]);
    let steady = report(&output);
    assert_all_arrived(&steady, 5 * 2 * 50);
    assert_eq!(
        (&steady["calls"]["answered"], &steady["recordings_complete"]),
        (&5.into(), &5.into())
    );
    let churn = ["--calls", "4", "--seconds", "6", "--hold", "4", "--rate", "4", "--json"];
    let output = bench(&[&["--source", "ari"][..], &churn].concat());
    let churn = report(&output);
    assert_all_arrived(&churn, 4 * 50);
    assert!(churn["calls"]["asked"].as_u64() > Some(4), "{churn}");
    assert_eq!(churn["calls"]["answered"], churn["calls"]["asked"]);
}

/// Frames that the generator loses are not the bridge's loss.
#[test]
fn lossy_calls_lose_only_what_the_generator_leaves_out() {
    let network = ["--loss", "2", "--jitter", "20", "--ptime", "60"];
    let report = undisturbed(&[&["--seconds", "3"][..], &network].concat());
    assert_all_arrived(&report, 5 * 2 * 50);
    assert!(report["generator"]["frames_dropped"].as_u64() > Some(0), "{report}");
    assert_eq!(
        report["conditions"],
        serde_json::json!(["loss 2 %", "jitter 20 ms", "ptime 60 ms"])
    );
}

/// Packets of 30 ms are cut in the middle of every other frame.
#[test]
fn calls_with_long_packets_a_law_and_tls_lose_nothing() {
    let options = ["--jitter", "10", "--ptime", "30", "--alaw", "--tls", "--ai-jitter", "5"];
    let report = undisturbed(&[&["--seconds", "3"][..], &options].concat());
    assert_all_arrived(&report, 5 * 2 * 50);
}

#[test]
fn slow_readers_lose_nothing() {
    let report = undisturbed(&["--seconds", "5", "--slow-reader", "--burst", "2"]);
    assert_all_arrived(&report, 5 * 2 * 50);
}

/// All at once, because most of the time of a run is spent waiting.
#[test]
fn calls_in_every_dialect_lose_nothing() {
    let dialects = [
        "telnyx",
        "plivo",
        "exotel",
        "l16",
        "jambonz",
        "openai-realtime",
        "deepgram-agent",
        "elevenlabs",
        "ultravox",
    ];
    std::thread::scope(|scope| {
        for dialect in dialects {
            scope.spawn(move || {
                let options = ["--dialect", dialect, "--seconds", "2"];
                let report = undisturbed_calls("2", &options);
                assert_eq!(report["dialect"], dialect);
                assert_all_arrived(&report, 2 * 50);
            });
        }
    });
}

#[test]
fn options_out_of_range_are_errors() {
    let table = [
        (["--loss", "51"], "--loss 51 is out of range: it must be 0 to 50 percent"),
        (["--loss", "NaN"], "--loss NaN is out of range"),
        (["--jitter", "301"], "--jitter 301 is out of range: it must be at most 300 ms"),
        (["--ai-jitter", "1000"], "--ai-jitter 1000 is out of range"),
        (["--burst", "0"], "--burst 0 is out of range: it must be 1 to 25 packets"),
        (["--burst", "25"], "--burst 25 with --ptime 20 takes 500 ms: at most 300 ms"),
        (["--ptime", "25"], "--ptime 25 is not supported: it must be 10, 20, 30, 40, 50 or 60 ms"),
        (["--jitter", "-1"], "unexpected argument '-1' found"),
        (["--dialect", "twillio"], "\"twillio\" is not one of: twilio, l16, jambonz"),
        (["--dialect", "gemini-live"], "--dialect gemini-live cannot be measured: its audio"),
    ];
    for (arguments, text) in table {
        let output = bench(&arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(text) && !output.status.success(), "{arguments:?}: {error}");
    }
}

#[test]
fn a_bridge_that_exits_at_the_start_is_an_error() {
    let output = bench(&["--bridge", "echo broken; exit 7"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("exit status: 7") && error.contains("broken"), "{error}");
    assert!(!output.status.success());
}
