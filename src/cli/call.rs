//! `trunkless call`: a SIP phone for the command line. Owns its clock.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use secrecy::SecretString;
use tokio::time::{Interval, interval, sleep_until};

use crate::cli::{Stop, block_on};
use crate::media::dtmf;
use crate::media::frame::{SILENCE, Samples, level_dbfs};
use crate::peer::phone::{Heard, Keys, Phone, PhoneCommand, PhoneConfig, PhoneEvent};
use crate::record::wav;
use crate::sip::agent::CallEnd;
use crate::sip::endpoint::resolve::routes;
use crate::sip::flow::Transport;
use crate::sip::sdp;
use crate::sip::uri::Uri;

/// The exit codes, for `--help`.
const EXIT_CODES: &str = "Exit codes:
  0  the call was answered and audio was heard
  1  an error on this side: a socket or file cannot be opened
  2  a mistake on the command line
  3  the call was refused, for example with 401, 404 or 503
  4  no answer: nothing came back, or the call was not answered within 60 s
  5  answered, but no audio was heard: no packets, or only silence
  6  the other side hung up with an error: the AI failed, or the PBX lost the call";

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct CallArguments {
    /// URI to call: sip:EXTENSION@HOST[:PORT]
    uri: String,
    /// User name to call as and to authenticate as.
    #[arg(long, default_value = "trunkless-call")]
    user: String,
    /// Name of the environment variable with the password.
    #[arg(long, value_name = "NAME")]
    password_env: Option<String>,
    /// Audio to play: a WAV (8 kHz, mu-law or 16-bit PCM) or raw mu-law (.ulaw).
    #[arg(long, value_name = "FILE")]
    play: Option<PathBuf>,
    /// WAV file to write the received audio to.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Hang up this many seconds after the answer.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Keys to press, one every 400 ms, starting one second after the answer.
    #[arg(long, value_name = "KEYS")]
    dtmf: Option<String>,
    /// Local address to use; by default the route's.
    #[arg(long, value_name = "ADDRESS")]
    local: Option<IpAddr>,
}

const EXIT_REFUSED: u8 = 3;
const EXIT_NO_ANSWER: u8 = 4;
const EXIT_SILENT: u8 = 5;
const EXIT_BROKEN: u8 = 6;
/// Audio below this level is silence.
const SILENT_DBFS: f64 = -60.0;

pub fn main(arguments: &CallArguments) -> ExitCode {
    block_on(async {
        let password = arguments.password_env.as_ref().map(|name| {
            let value = std::env::var(name);
            value.map_err(|_| anyhow!("--password-env: the variable {name} is not set"))
        });
        place(arguments, password.transpose()?.map(SecretString::from)).await
    })
}

/// Places a test call of ten seconds.
///
/// # Errors
/// Returns an error if it cannot be placed.
pub async fn test_call(uri: String, user: &str, password: SecretString) -> Result<ExitCode> {
    let arguments = CallArguments {
        uri,
        user: user.to_owned(),
        password_env: None,
        play: None,
        record: None,
        seconds: 10,
        dtmf: None,
        local: None,
    };
    place(&arguments, Some(password)).await
}

async fn place(arguments: &CallArguments, password: Option<SecretString>) -> Result<ExitCode> {
    let uri = Uri::parse(&arguments.uri)
        .map_err(|e| anyhow!("{}: {e}; write sip:EXTENSION@HOST[:PORT]", arguments.uri))?;
    let keys = arguments.dtmf.as_deref().unwrap_or("");
    if let Some(bad) = keys.chars().find(|c| dtmf::event_code(*c).is_none()) {
        bail!("--dtmf: {bad} is not a key; use 0 to 9, *, # and A to D");
    }
    if let Some(path) = &arguments.record {
        std::fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let any = arguments.local.unwrap_or(IpAddr::from([0, 0, 0, 0]));
    let found = routes(&uri.host, uri.port, Transport::Udp, any).await.map_err(|e| anyhow!(e))?;
    let route = found.first().ok_or_else(|| anyhow!("{} has no address", uri.host))?;
    let audio = arguments.play.as_deref().map(read_audio).transpose()?;
    let mut config = PhoneConfig::new(route.local, &arguments.user);
    config.codecs = sdp::all_codecs().to_vec();
    config.password = password;
    config.source = Box::new(move |index| frame_of(audio.as_deref()?, index));
    let phone = Phone::start(config)
        .await
        .with_context(|| format!("cannot bind to {}; give another --local", route.local))?;
    outln!("calling {} at {}", arguments.uri, route.remote);
    phone.command(PhoneCommand::Dial { uri: arguments.uri.clone(), target: route.remote });
    converse(phone, arguments, route.remote).await
}

/// Frame `index` of `audio`, or `None` past its end.
pub fn frame_of(audio: &[u8], index: u64) -> Option<Samples> {
    let rest = audio.get(index as usize * 160..).filter(|rest| !rest.is_empty())?;
    let mut samples = [SILENCE; 160];
    let n = rest.len().min(160);
    samples[..n].copy_from_slice(&rest[..n]);
    Some(samples)
}

async fn converse(
    mut phone: Phone,
    arguments: &CallArguments,
    target: SocketAddr,
) -> Result<ExitCode> {
    let mut stop = Stop::new()?;
    let far = Instant::now() + Duration::from_secs(60 * 60 * 24);
    let mut deadline = Instant::now() + Duration::from_secs(60);
    let mut keys: Vec<char> = arguments.dtmf.iter().flat_map(|k| k.chars()).rev().collect();
    let mut next_key: Option<Interval> = None;
    let mut heard: Vec<Heard> = Vec::new();
    let mut answered = None;
    loop {
        let key = async {
            match &mut next_key {
                Some(ticks) => {
                    ticks.tick().await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = phone.events.recv() => match event {
                Some(PhoneEvent::Progress(code)) => outln!("{code} from {target}"),
                Some(PhoneEvent::Answered { at }) => {
                    outln!("answered");
                    answered = Some(at);
                    deadline = at + Duration::from_secs(arguments.seconds);
                    next_key = Some(interval(Duration::from_millis(400)));
                }
                Some(PhoneEvent::Heard(packet)) => heard.push(packet),
                Some(PhoneEvent::Ended(end)) => {
                    return finish(arguments, &heard, &end, answered);
                }
                Some(_) => {}
                None => bail!("the phone stopped unexpectedly"),
            },
            () = sleep_until(deadline.into()) => {
                deadline = far;
                outln!("hanging up");
                phone.command(PhoneCommand::Hangup);
            }
            () = key => {
                let late_enough = answered.is_some_and(|at| at.elapsed() >= Duration::from_secs(1));
                if late_enough && let Some(digit) = keys.pop() {
                    outln!("key {digit}");
                    phone.command(PhoneCommand::Press(digit, Keys::Rtp));
                }
            }
            () = stop.asked() => {
                deadline = far;
                phone.command(PhoneCommand::Hangup);
            }
        }
    }
}

fn finish(
    arguments: &CallArguments,
    heard: &[Heard],
    end: &CallEnd,
    answered: Option<Instant>,
) -> Result<ExitCode> {
    let how = match end {
        CallEnd::HungUp => "we hung up".to_owned(),
        CallEnd::Bye { cause } => match cause {
            Some(cause) => format!("the other side hung up (Q.850 cause {cause})"),
            None => "the other side hung up".to_owned(),
        },
        CallEnd::Refused { code: 401 | 407, reason } => {
            format!(
                "refused: 401 {reason}: wrong password, or --user and --password-env are missing"
            )
        }
        CallEnd::Refused { code, reason } => format!("refused: {code} {reason}"),
        other => format!("{other:?}"),
    };
    outln!("ended: {how}");
    let audio: Vec<u8> = heard.iter().flat_map(|h| h.samples.iter().copied()).collect();
    outln!(
        "heard {} packets, {:.1} s, level {:.1} dBFS",
        heard.len(),
        audio.len() as f64 / 8000.0,
        level_dbfs(&audio)
    );
    if let Some(path) = &arguments.record {
        let mut file = wav::Encoding::Mu.header(1, audio.len() as u64);
        file.extend_from_slice(&audio);
        std::fs::write(path, file).with_context(|| format!("cannot write {}", path.display()))?;
        outln!("wrote {}", path.display());
    }
    let outcome = outcome(end, answered.is_some(), &audio);
    if let Some(problem) = outcome.1 {
        outln!("failed: {problem}");
    }
    Ok(ExitCode::from(outcome.0))
}

/// Returns the exit code, and the problem if there was one.
fn outcome(end: &CallEnd, answered: bool, audio: &[u8]) -> (u8, Option<&'static str>) {
    match end {
        CallEnd::Refused { .. } => (EXIT_REFUSED, Some("the call was refused")),
        _ if !answered => (EXIT_NO_ANSWER, Some("no answer")),
        // 16 is normal clearing, 31 unspecified
        CallEnd::Bye { cause: Some(cause) } if !matches!(cause, 0 | 16 | 31) => {
            (EXIT_BROKEN, Some("the other side ended the call with an error"))
        }
        CallEnd::Bye { .. } | CallEnd::HungUp if level_dbfs(audio) < SILENT_DBFS => {
            (EXIT_SILENT, Some("no audio was heard"))
        }
        CallEnd::Bye { .. } | CallEnd::HungUp => (0, None),
        _ => (EXIT_BROKEN, Some("the call was lost")),
    }
}

fn read_audio(path: &Path) -> Result<Vec<u8>> {
    let name = path.display();
    let file = std::fs::read(path).with_context(|| format!("cannot read {name}"))?;
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("wav")) {
        let channels = wav::read(&file).map_err(|e| anyhow!("{name}: {e}"))?;
        return channels.into_iter().next().ok_or_else(|| anyhow!("{name} contains no audio"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_has_its_exit_code() {
        let bye = |cause| CallEnd::Bye { cause };
        let refused = CallEnd::Refused { code: 503, reason: "x".into() };
        let (speech, silence) = ([0x20; 1600], [SILENCE; 1600]);
        for (end, answered, audio, code) in [
            (CallEnd::HungUp, true, &speech[..], 0),
            (bye(Some(16)), true, &speech[..], 0),
            (bye(None), true, &speech[..], 0),
            (refused, false, &[][..], EXIT_REFUSED),
            (CallEnd::HungUp, false, &[][..], EXIT_NO_ANSWER),
            (CallEnd::Lost, false, &[][..], EXIT_NO_ANSWER),
            (CallEnd::HungUp, true, &[][..], EXIT_SILENT),
            (CallEnd::HungUp, true, &silence[..], EXIT_SILENT),
            (bye(Some(38)), true, &speech[..], EXIT_BROKEN),
            (bye(Some(38)), true, &silence[..], EXIT_BROKEN),
            (CallEnd::Lost, true, &speech[..], EXIT_BROKEN),
        ] {
            assert_eq!(outcome(&end, answered, audio).0, code, "{end:?}, {answered}");
        }
    }
}
