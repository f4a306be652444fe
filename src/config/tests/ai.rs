//! Tests of the tables of AIs: dialects, parameters, and what is made of speech for them.

use std::time::Duration;

use super::*;

#[test]
fn speech_that_cannot_work_has_a_reason() {
    let with = |keys: &str| format!("{GOOD}\n[speech]\n{keys}\n");
    for (keys, wanted) in [
        ("pause = \"20ms\"", "speech.pause: must be from 40ms to 5s"),
        ("barge_in_after = \"10s\"", "speech.barge_in_after: must be from 40ms to 5s, or 0s"),
        ("protect_first = \"1s\"", "speech.protect_first: needs barge_in_after"),
    ] {
        let message = error(&with(keys), &[]);
        assert!(message.contains(wanted), "{message}");
    }
    let off = with("barge_in_after = \"0s\"");
    assert!(!plan(&off, &[]).unwrap().settings.speech.settings().wanted());
    for (ai, wanted) in [
        ("extensions = \"off\"", Some("speech.events: has no effect on an AI with extensions")),
        ("dialect = \"openai-realtime\"", Some("speech.events: has no effect on a model")),
        ("dialect = \"l16\"", None),
    ] {
        let text = with("events = true").replacen("[ai]\n", &format!("[ai]\n{ai}\n"), 1);
        let (_, report) = inspect(&source(&text), &env(&[]));
        let warnings: Vec<String> =
            report.findings.warnings.iter().map(|w| w.to_string()).collect();
        let found = warnings.iter().find(|warning| warning.contains("speech."));
        match wanted {
            Some(wanted) => assert!(found.is_some_and(|w| w.contains(wanted)), "{warnings:?}"),
            None => assert_eq!(found, None),
        }
    }
}

#[test]
fn parameters_are_measured_in_characters() {
    let with = |value: &str| {
        let table = format!("[pbx.main.ai]\nparameters = {{ x = \"{value}\" }}\n");
        GOOD.to_owned() + &table
    };
    // 499 characters of two bytes each
    assert!(plan(&with(&"\u{436}".repeat(499)), &[]).is_ok());
    let error = error(&with(&"\u{436}".repeat(500)), &[]);
    assert!(error.contains("pbx.main.ai.parameters.x"), "{error}");
    assert!(error.contains("at most 499 characters"), "{error}");
}

#[test]
fn agents_of_vendors_have_a_url_of_their_own() {
    let with = |lines: &str| GOOD.replace("url = \"ws://127.0.0.1:8080\"", lines);
    let url = |lines: &str| plan(&with(lines), &[]).unwrap().sip[0].ai.target.url().to_owned();
    let deepgram = "dialect = \"deepgram-agent\"\ngreeting = \"Hello\"";
    assert_eq!(url(deepgram), "wss://agent.deepgram.com/v1/agent/converse");
    let elevenlabs = "dialect = \"elevenlabs\"\n";
    assert_eq!(
        url(&format!("{elevenlabs}session = {{ agent_id = \"agent_1\" }}")),
        "wss://api.elevenlabs.io/v1/convai/conversation?agent_id=agent_1"
    );
    let message = error(&with(elevenlabs), &[]);
    assert!(message.contains("ai.session.agent_id: is missing"), "{message}");
    let gemini = "dialect = \"gemini-live\"\n";
    assert!(url(gemini).starts_with("wss://generativelanguage.googleapis.com/ws/google.ai."));
    let ai = &plan(&with(gemini), &[]).unwrap().sip[0].ai;
    // it may answer a ping after half a minute, and is silent until the caller speaks
    assert_eq!((ai.ping, ai.silent_timeout), (Duration::ZERO, Duration::ZERO));
    for (key, wanted) in [
        ("sample_rate = 24000", "ai.sample_rate: 24000 is not one of: 8000, 16000"),
        ("session = { tools = { a = 1 } }", "ai.session.tools: must be a list"),
    ] {
        let message = error(&with(&format!("{gemini}{key}")), &[]);
        assert!(message.contains(wanted), "{message}");
    }
}

#[test]
fn a_call_at_ultravox_is_created_with_the_key() {
    let with = |lines: &str| GOOD.replace("url = \"ws://127.0.0.1:8080\"", lines);
    let ultravox = "dialect = \"ultravox\"\nauth_token = \"a-secret-key\"\n";
    let created = |lines: &str| plan(&with(lines), &[]).unwrap().sip[0].ai.create.clone();
    assert_eq!(created(ultravox).unwrap().secrets(), ["a-secret-key"]);
    // the socket of a call that the user has created
    assert!(created(&format!("{ultravox}url = \"ws://127.0.0.1:1\"")).is_none());
    let agent = "create = { url = \"https://api.ultravox.ai/api/agents/1/calls\" }";
    assert_eq!(created(&format!("{ultravox}{agent}")).unwrap().secrets(), ["a-secret-key"]);
    // a server of the user's gets no key that it was not given
    let other = "create = { url = \"https://example.com/x\", allow_hosts = [\"*.ultravox.ai\"] }";
    assert_eq!(created(&format!("{ultravox}{other}")).unwrap().secrets(), [""; 0]);
    let message = error(&with("dialect = \"ultravox\""), &[]);
    assert!(message.contains("ai.auth_token: is missing"), "{message}");
}

#[test]
fn a_model_needs_a_key_and_its_audio_is_that_of_the_telephone() {
    let with = |ai: &str| GOOD.replace("url = \"ws://127.0.0.1:8080\"\n", ai);
    let model = "dialect = \"openai-realtime\"\n";
    let good = with(&format!("{model}auth_token = \"sk-1\"\nsession = {{ model = \"m\" }}\n"));
    let ai = &plan(&good, &[]).unwrap().sip[0].ai;
    assert_eq!(ai.target.url(), "wss://api.openai.com/v1/realtime?model=m");
    // without a greeting, it may be the caller who speaks first
    assert_eq!(ai.silent_timeout, Duration::ZERO);
    let greets = format!("{good}[pbx.main.ai]\ngreeting = \"Hello!\"\nsession = {{ voice = 1 }}\n");
    assert_eq!(plan(&greets, &[]).unwrap().sip[0].ai.silent_timeout, Duration::from_secs(15));
    let url = "url = \"ws://127.0.0.1:8080\"\n";
    for (keys, wanted) in [
        (
            format!("{model}[ai.session.audio.input]\nformat = {{ type = \"audio/pcm\" }}\n"),
            "ai.session.audio.input.format: must be",
        ),
        (format!("{model}tools = [\"sing\"]\n"), "ai.tools: \"sing\" is not one of: hang_up"),
        (format!("{model}tool_webhook = \"ftp://x/\"\n"), "ai.tool_webhook: must be an http"),
        (
            format!("{model}tool_webhook = \"http://x/\"\ntool_webhook_secret = \"x\"\n"),
            "ai.tool_webhook_secret: must be base64",
        ),
        (format!("{url}greeting = \"Hello!\"\n"), "ai.greeting: applies only to the dialect of a"),
        (format!("{url}tool_webhook = \"http://x/\"\n"), "ai.tool_webhook: applies only to"),
    ] {
        // keys before tables
        let text = GOOD.replace(
            "[ai]\nurl = \"ws://127.0.0.1:8080\"\nparameters = { LeadSource = \"Web\" }\n",
            "",
        );
        let message = error(&format!("{text}[ai]\n{keys}"), &[]);
        assert!(message.contains(wanted), "{keys}: {message}");
    }
}
