//! The bots in `examples/`, as they are, on calls through a real Asterisk. The services that the
//! Pipecat bot uses have stand-ins in `examples/services.py`.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use trunkless::media::frame::{SILENCE, Samples, level_dbfs};
use trunkless::media::g711;
use trunkless::peer::phone::{Keys, Phone, PhoneCommand, PhoneConfig, PhoneEvent};
use trunkless::sip::agent::CallEnd;

use crate::asterisk::{Asterisk, cache};
use crate::bridge::Bridge;
use crate::{Pbx, assert_no_channels, block_on};

/// Recorded speech: mu-law, 8 kHz.
const SPEECH: &[u8] = include_bytes!("../../src/cli/assets/caller.ulaw");
/// The frames of "Can you hear me?" in it. There is no pause within, so it is one turn.
const PHRASE: std::ops::Range<usize> = 32..72;
/// Quieter frames count as silence.
const AUDIBLE_DBFS: f64 = -45.0;
/// Frames of silence after which the bot has stopped: 400 ms.
const PAUSE: usize = 20;
/// Starting Python with Pipecat takes a while on a slow machine.
const START: Duration = Duration::from_secs(90);
const SECOND: Duration = Duration::from_secs(1);

/// A program in Python or Node with its output in a file; dropping it kills it.
pub struct Program {
    child: Child,
    directory: tempfile::TempDir,
    pub address: String,
}

impl Program {
    /// Starts a program and waits until it prints the address that it listens on.
    pub fn start(script: &str, environment: &[(&str, String)]) -> Program {
        let python = cache().join("python-examples/bin/python");
        assert!(
            python.exists(),
            "no Python environment in {}: run tests/e2e/lab/fetch-python.sh",
            python.display()
        );
        let mut command = Command::new(python);
        command.arg("-u");
        Program::run(command, script, environment)
    }

    /// The same for Node. The environment has the path of this package as SDK.
    pub fn node(script: &str, package: &str) -> Program {
        let sdk = cache().join("node/node_modules").join(package);
        assert!(sdk.exists(), "no {}: run tests/e2e/lab/fetch-node.sh", sdk.display());
        Program::run(Command::new("node"), script, &[("SDK", sdk.display().to_string())])
    }

    fn run(mut command: Command, script: &str, environment: &[(&str, String)]) -> Program {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let output = File::create(directory.path().join("log")).expect("the log can be made");
        let child = command
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join(script))
            .env("PORT", "0")
            .envs(environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a second handle"))
            .stderr(output)
            .spawn()
            .expect("it starts");
        let mut program = Program { child, directory, address: String::new() };
        let begin = Instant::now();
        while program.address.is_empty() {
            assert!(begin.elapsed() < START, "{script} does not listen:\n{}", program.log());
            let ended = program.child.try_wait().expect("the child can be asked");
            assert_eq!(ended, None, "{script} has ended:\n{}", program.log());
            std::thread::sleep(Duration::from_millis(20));
            program.address = listening(&program.log()).unwrap_or_default();
        }
        program
    }

    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.directory.path().join("log")).expect("a log");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until the program has printed a text.
    fn printed(&self, text: &str) {
        let begin = Instant::now();
        while !self.log().contains(text) {
            assert!(begin.elapsed() < 5 * SECOND, "no \"{text}\" in:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the program's log:\n{}", self.log());
        }
    }
}

/// The address in a whole line like `listening on ws://127.0.0.1:8080`.
fn listening(log: &str) -> Option<String> {
    let (whole, _) = log.rsplit_once('\n')?;
    let line = whole.lines().find(|l| l.contains("listening on ") || l.contains("running on "))?;
    let port = line.split("127.0.0.1:").nth(1)?.split(|c: char| !c.is_ascii_digit()).next()?;
    Some(format!("127.0.0.1:{port}"))
}

/// A caller with a voice, who keeps every audible frame.
struct Caller {
    phone: Phone,
    /// Set to speak the phrase.
    speaking: Arc<AtomicBool>,
    /// Frames of speech sent so far.
    spoken: usize,
    /// The audible frames.
    audible: Vec<Vec<u8>>,
    /// Silent frames since the last audible one.
    quiet: usize,
    answered: bool,
    ended: Option<CallEnd>,
}

impl Caller {
    /// Calls the bridge's extension; returns when the call is answered.
    async fn dial(asterisk: &Asterisk) -> Caller {
        let mut config = PhoneConfig::new("127.0.9.1".parse().expect("an address"), "5551234");
        let speaking = Arc::new(AtomicBool::new(false));
        let (on, mut frames) = (speaking.clone(), SPEECH.chunks_exact(160).take(PHRASE.end));
        frames.nth(PHRASE.start - 1);
        config.source = Box::new(move |_| {
            let frame = on.load(Ordering::Relaxed).then(|| frames.next())??;
            Samples::try_from(frame).ok()
        });
        let phone = Phone::start(config).await.expect("the phone starts");
        let target = asterisk.sip_addr();
        let uri = format!("sip:{}@{target}", Pbx::Pjsip22.extension());
        phone.command(PhoneCommand::Dial { uri, target });
        let (spoken, audible, quiet, answered, ended) = Default::default();
        let mut caller = Caller { phone, speaking, spoken, audible, quiet, answered, ended };
        caller.until("the answer", 10 * SECOND, |c| c.answered).await;
        caller
    }

    async fn until(&mut self, what: &str, limit: Duration, wanted: impl Fn(&Caller) -> bool) {
        let deadline = tokio::time::Instant::now() + limit;
        while !wanted(self) {
            match tokio::time::timeout_at(deadline, self.phone.events.recv()).await {
                Ok(Some(PhoneEvent::Answered { .. })) => self.answered = true,
                Ok(Some(PhoneEvent::Sent { .. })) => self.spoken += 1,
                Ok(Some(PhoneEvent::Heard(heard))) => self.hear(heard.samples),
                Ok(Some(PhoneEvent::Ended(end))) => self.ended = Some(end),
                Ok(Some(_)) => {}
                _ => panic!(
                    "not within {limit:?}: {what}; {} audible frames, ended {:?}",
                    self.audible.len(),
                    self.ended
                ),
            }
        }
    }

    fn hear(&mut self, samples: Vec<u8>) {
        let silent = samples.iter().all(|s| *s == SILENCE);
        if silent || level_dbfs(&samples) < AUDIBLE_DBFS {
            self.quiet += 1;
        } else {
            self.quiet = 0;
            self.audible.push(samples);
        }
    }

    /// Audible frames with a steady tone of this frequency.
    fn tones(&self, hz: f64) -> usize {
        self.audible.iter().filter(|frame| is_tone(frame, hz)).count()
    }

    /// Speaks, once per call, and waits until the bot is silent. Returns the number of audible
    /// frames until then.
    async fn interrupt(&mut self) -> usize {
        self.speaking.store(true, Ordering::Relaxed);
        self.until("silence after the interruption", 5 * SECOND, |c| c.quiet >= PAUSE).await;
        let heard = self.audible.len();
        self.until("the end of the phrase", 5 * SECOND, |c| c.spoken == PHRASE.len()).await;
        heard
    }

    fn press(&mut self, key: char) {
        self.audible.clear();
        self.phone.command(PhoneCommand::Press(key, Keys::Rtp));
    }

    /// Waits for the hang-up by the other side.
    async fn hung_up(&mut self) {
        self.until("the hang-up", 15 * SECOND, |c| c.ended.is_some()).await;
        assert!(matches!(self.ended, Some(CallEnd::Bye { .. })), "{:?}", self.ended);
    }
}

/// True if more than half of a frame's energy is at this frequency (Goertzel's algorithm).
fn is_tone(frame: &[u8], hz: f64) -> bool {
    let samples: Vec<f64> = frame.iter().map(|s| f64::from(g711::decode(*s))).collect();
    let step = std::f64::consts::TAU * hz / 8000.0;
    let (mut s1, mut s2) = (0.0, 0.0);
    for sample in &samples {
        (s1, s2) = (sample + 2.0 * step.cos() * s1 - s2, s1);
    }
    let power = s1 * s1 + s2 * s2 - 2.0 * step.cos() * s1 * s2;
    let energy: f64 = samples.iter().map(|s| s * s).sum();
    power > 0.5 * energy * samples.len() as f64 / 2.0
}

fn bridge(asterisk: &Asterisk, n: u8, bot: &Program) -> Bridge {
    let setup = Pbx::Pjsip22.setup(asterisk, n, &format!("ws://{}", bot.address));
    Bridge::registered(&setup)
}

#[test]
fn bot_greets_is_interrupted_beeps_says_goodbye_and_hangs_up() {
    block_on(async {
        let asterisk = Pbx::Pjsip22.start(191);
        let bot = Program::start("examples/bot.py", &[]);
        let bridge = bridge(&asterisk, 191, &bot);
        let mut caller = Caller::dial(&asterisk).await;

        caller.until("the greeting", 10 * SECOND, |c| c.audible.len() >= 40).await;
        let heard = caller.interrupt().await;
        assert!(heard < 200, "{heard} frames of a greeting of 225: it was not interrupted");
        bot.printed("interrupted");

        caller.press('3');
        caller.until("the first beep", 10 * SECOND, |c| c.tones(880.0) > 0).await;
        caller.until("the end of the beeps", 10 * SECOND, |c| c.quiet >= PAUSE).await;
        let beeps = caller.tones(880.0);
        assert!((40..=46).contains(&beeps), "{beeps} frames of 45");

        caller.press('#');
        caller.hung_up().await;
        let notes = [784.0, 659.0, 523.0].map(|hz| caller.tones(hz));
        assert!(
            notes.iter().all(|n| (10..=16).contains(n)),
            "goodbye of 15 frames each: {notes:?}"
        );
        assert_eq!(bridge.ended("reason"), "ai_hangup");
        bot.printed("mark goodbye");
        assert_no_channels(&asterisk);
    });
}

/// The stand-in for Cartesia speaks in tones: 400 Hz, 600 Hz about keys, 800 Hz for the goodbye.
#[test]
fn pipecat_bot_greets_is_interrupted_answers_keys_says_goodbye_and_hangs_up() {
    block_on(async {
        let asterisk = Pbx::Pjsip22.start(192);
        let services = Program::start("tests/e2e/examples/services.py", &[]);
        let at = &services.address;
        let bot = Program::start(
            "examples/pipecat_bot.py",
            &[
                ("DEEPGRAM_API_KEY", "deepgram-key".to_owned()),
                ("DEEPGRAM_URL", format!("ws://{at}")),
                ("OPENAI_API_KEY", "openai-key".to_owned()),
                ("OPENAI_BASE_URL", format!("http://{at}/v1")),
                ("CARTESIA_API_KEY", "cartesia-key".to_owned()),
                ("CARTESIA_VOICE_ID", "a-voice".to_owned()),
                ("CARTESIA_URL", format!("ws://{at}/tts/websocket")),
            ],
        );
        let bridge = bridge(&asterisk, 192, &bot);
        let mut caller = Caller::dial(&asterisk).await;

        caller.until("the greeting", 30 * SECOND, |c| c.tones(400.0) >= 30).await;
        let heard = caller.interrupt().await;
        assert!(heard < 200, "{heard} frames of a greeting of 222: it was not interrupted");
        caller.audible.clear();
        caller.until("an answer", 20 * SECOND, |c| c.tones(400.0) >= 10).await;
        caller.until("the end of the answer", 10 * SECOND, |c| c.quiet >= 50).await;
        services.printed("llm user: hello");
        services.printed("tts I heard you say hello.");

        caller.press('5');
        caller.until("a word about the key", 20 * SECOND, |c| c.tones(600.0) >= 10).await;
        services.printed("llm developer: The caller pressed 5 ");

        caller.press('0');
        caller.hung_up().await;
        let goodbye = caller.tones(800.0);
        assert!(goodbye >= 70, "{goodbye} frames of a goodbye of 80");
        assert_eq!(bridge.ended("reason"), "ai_hangup");

        // once more, and now it is the model that hangs up
        let mut caller = Caller::dial(&asterisk).await;
        caller.until("the greeting", 30 * SECOND, |c| c.tones(400.0) >= 10).await;
        caller.press('9');
        caller.hung_up().await;
        assert!(caller.tones(800.0) >= 70, "{} frames of a goodbye of 80", caller.tones(800.0));
        assert_no_channels(&asterisk);
        assert_eq!(bridge.lines("reason=\"ai_hangup\"").len(), 2);
    });
}
