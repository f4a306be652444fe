//! Tests of the file, the environment, and the error messages of both.

mod ai;

use super::*;

use secrecy::ExposeSecret;

const GOOD: &str = r#"
[ai]
url = "ws://127.0.0.1:8080"
parameters = { LeadSource = "Web" }

[pbx.main]
mode = "sip"

[pbx.main.sip]
registrar = "192.0.2.1"
username = "8001"
password = "001234"
"#;

fn source(text: &str) -> Source {
    Source { name: "trunkless.toml".into(), text: text.into() }
}

fn env(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn plan(text: &str, pairs: &[(&str, &str)]) -> Result<plan::Plan, ConfigError> {
    let source = source(text);
    let environment = env(pairs);
    let settings = load(&source, &environment)?;
    resolve::resolve(&source, settings, &environment)
}

fn error(text: &str, pairs: &[(&str, &str)]) -> String {
    plan(text, pairs).err().expect("an error").to_string()
}

fn password(plan: &plan::Plan) -> &str {
    plan.sip[0].account.registration.as_ref().unwrap().password.expose_secret()
}

#[test]
fn a_password_of_digits_is_not_read_as_a_number() {
    assert_eq!(password(&plan(GOOD, &[]).unwrap()), "001234");
    let text = GOOD.replace("password = \"001234\"\n", "");
    let name = "TRUNKLESS_PBX__MAIN__SIP__PASSWORD";
    assert_eq!(password(&plan(&text, &[(name, "001234")]).unwrap()), "001234");
    assert_eq!(password(&plan(GOOD, &[(name, "0x1F")]).unwrap()), "0x1F");
    let named = text.clone() + "password_env = \"PBX_PW\"\n";
    assert_eq!(password(&plan(&named, &[("PBX_PW", "007")]).unwrap()), "007");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "00 12\n").unwrap();
    let named = format!("{text}password_file = \"{}\"\n", file.path().display());
    assert_eq!(password(&plan(&named, &[]).unwrap()), "00 12");
}

#[test]
fn errors_name_file_line_and_key() {
    let table = [
        (
            "mode = \"sip\"",
            "mode = \"sips\"",
            "trunkless.toml:7: pbx.main.mode: \"sips\" is not one of: sip, ari",
        ),
        (
            "registrar =",
            "registar =",
            "trunkless.toml:10: pbx.main.sip.registar: unknown field `registar`",
        ),
        (
            "password = \"001234\"",
            "expires = 30",
            "trunkless.toml:12: pbx.main.sip.expires: invalid type",
        ),
        (
            "password = \"001234\"",
            "expires = \"soon\"",
            "trunkless.toml:12: pbx.main.sip.expires: \"soon\" is not a duration",
        ),
        (
            "password = \"001234\"",
            "password = 001234",
            "trunkless.toml:12: pbx.main.sip.password: ",
        ),
        ("\"192.0.2.1\"", "\"192.0.2.1:x\"", "trunkless.toml:10: pbx.main.sip.registrar: "),
        (
            "[pbx.main]",
            "[pbx.Main]",
            "trunkless.toml:6: pbx.Main: \"Main\" is not a valid PBX name",
        ),
        (
            "ws://127",
            "http://127",
            "trunkless.toml:3: ai.url: \"http://127.0.0.1:8080\" is not a ws://",
        ),
        ("password = \"001234\"", "", "trunkless.toml:9: pbx.main.sip.password: is missing"),
        (
            "[ai]",
            "[media]\nports = \"9-5\"\n[ai]",
            "trunkless.toml:3: media.ports: \"9-5\" is not a valid port range",
        ),
    ];
    for (old, new, expected) in table {
        let message = error(&GOOD.replacen(old, new, 1), &[]);
        assert!(message.starts_with(expected), "{new}: {message}");
    }
}

#[test]
fn errors_in_the_environment_name_the_variable() {
    let table = [
        ("TRUNKLESS_PBX__MAIN__MODE", "telnet", "is not one of: sip, ari"),
        ("TRUNKLESS_CALLS__MAX", "many", "invalid type"),
        ("TRUNKLESS_CALS__MAX", "5", "unknown field `cals`"),
        ("TRUNKLESS_CALLS__ANSWER_WAIT", "soon", "is not a duration"),
    ];
    for (name, value, expected) in table {
        let message = error(GOOD, &[(name, value), ("TRUNKLESS_CALLS__RINGING", "true")]);
        assert!(message.starts_with(&format!("the environment: {name}: ")), "{message}");
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn the_environment_overrides_the_file() {
    let pairs = [
        ("TRUNKLESS_CALLS__MAX", "7"),
        ("TRUNKLESS_PBX__MAIN__SIP__MEDIA_PEERS", "10.0.0.0/8, ::1"),
        ("TRUNKLESS_AI__URL", "ws://10.0.0.1/x"),
    ];
    let plan = plan(GOOD, &pairs).unwrap();
    assert_eq!(plan.settings.calls.max, 7);
    assert_eq!(plan.sip[0].account.media_peers.len(), 2);
    assert_eq!(plan.sip[0].ai.target.url(), "ws://10.0.0.1/x");
    // names in tables keep their upper-case letters
    assert_eq!(plan.sip[0].ai.parameters, [("LeadSource".to_owned(), "Web".to_owned())]);
}

#[test]
fn a_variable_switches_the_mode() {
    let ari = "[pbx.main.ari]\nusername = \"trunkless\"\npassword = \"x\"\n";
    let text = format!("{GOOD}{ari}");
    assert_eq!(plan(&text, &[]).unwrap().ari.len(), 0);
    let switched = plan(&text, &[("TRUNKLESS_PBX__MAIN__MODE", "ari")]).unwrap();
    assert_eq!((switched.sip.len(), switched.ari.len()), (0, 1));
    let (pbx, _) = &switched.ari[0];
    assert_eq!(
        (pbx.target.base.as_str(), pbx.app.as_str()),
        ("http://127.0.0.1:8088", "trunkless")
    );
}

#[test]
fn two_pbxs_cannot_share_an_application() {
    let pbx = |name: &str, app: &str| {
        format!(
            "[pbx.{name}]\nmode = \"ari\"\n[pbx.{name}.ari]\nusername = \"u\"\npassword = \"p\"\n\
             app = \"{app}\"\n"
        )
    };
    let text = |app: &str| format!("[ai]\nurl = \"ws://ai\"\n{}{}", pbx("a", "x"), pbx("b", app));
    assert_eq!(plan(&text("y"), &[]).unwrap().ari.len(), 2);
    let message = error(&text("x"), &[]);
    assert!(message.contains("pbx.b.ari: another PBX has the same url and app"), "{message}");
}

#[test]
fn errors_in_ari_mode() {
    let ari = |lines: &str| {
        let text = GOOD.replace("mode = \"sip\"", "mode = \"ari\"");
        error(&format!("{text}[pbx.main.ari]\n{lines}\n"), &[])
    };
    let good = "username = \"u\"\npassword = \"p\"\n";
    for (lines, wanted) in [
        ("", "pbx.main.ari.username: is missing"),
        ("username = \"u\"", "TRUNKLESS_PBX__MAIN__ARI__PASSWORD"),
        (&format!("{good}url = \"127.0.0.1\""), "pbx.main.ari.url: \"127.0.0.1\" is not a URL"),
        (&format!("{good}app = \"a,b\""), "not a valid Stasis application name"),
        (&format!("{good}max_media = 0"), "must be at least 1"),
        (&format!("{good}format = \"slin\""), "\"slin\" is not one of: ulaw, alaw"),
    ] {
        let message = ari(lines);
        assert!(message.contains(wanted), "{lines}: {message}");
    }
    let none = error(&GOOD.replace("mode = \"sip\"", "mode = \"ari\""), &[]);
    assert!(none.contains("needs a table [pbx.main.ari]"), "{none}");
}

#[test]
fn a_pbx_may_override_the_ai() {
    let text =
        GOOD.to_owned() + "[pbx.main.ai]\nurl = \"ws://other\"\nparameters = { x = \"1\" }\n";
    let plan = plan(&text, &[]).unwrap();
    assert_eq!(plan.sip[0].ai.target.url(), "ws://other");
    assert_eq!(plan.sip[0].ai.parameters.len(), 2);
}

#[test]
fn a_trunk_needs_peers() {
    let text = GOOD.replace("registrar = \"192.0.2.1\"", "register = false");
    assert!(error(&text, &[]).contains("pbx.main.sip.peers: is missing"));
    let plan =
        plan(&text.replace("register = false", "register = false\npeers = [\"192.0.2.1\"]"), &[]);
    assert!(plan.unwrap().sip[0].account.registration.is_none());
}

#[test]
fn peers_may_be_ranges_and_users_patterns() {
    let keys = "register = false\nusers = [\"8010\", \"80XX\"]\n\
                peers = [\"10.0.0.0/24\", \"2001:db8::/32\", \"192.0.2.1:5080\"]";
    let plan = plan(&GOOD.replace("registrar = \"192.0.2.1\"", keys), &[]).unwrap();
    let pbx = &plan.sip[0];
    assert_eq!((pbx.account.ranges.len(), pbx.hosts.len(), pbx.account.users.len()), (2, 1, 2));
    for (key, bad) in [("peers", "10.0.0.0/33"), ("users", "80[1-3]X")] {
        let keys = "register = false\npeers = [\"10.0.0.1\"]\nusers = []\n";
        let keys =
            keys.lines().filter(|line| !line.starts_with(key)).collect::<Vec<_>>().join("\n");
        let text = GOOD.replace("registrar", &format!("{keys}\n{key} = [\"{bad}\"]\nregistrar"));
        assert!(error(&text, &[]).contains(&format!("pbx.main.sip.{key}")), "{bad}");
    }
}

#[test]
fn pbxs_whose_calls_cannot_be_distinguished_are_refused() {
    let trunk = |keys: &str| {
        format!("[ai]\nurl = \"ws://127.0.0.1:1\"\n{}{}", pbx("a", keys), pbx("b", keys))
    };
    fn pbx(name: &str, keys: &str) -> String {
        let port = if name == "a" { "5060" } else { "5062" };
        let keys = keys.replace("PORT", port).replace("NAME", name);
        format!("[pbx.{name}]\nmode = \"sip\"\n[pbx.{name}.sip]\npassword = \"x\"\n{keys}\n")
    }
    let table = [
        ("register = false\npeers = [\"10.0.0.1\"]", false),
        ("register = false\npeers = [\"10.0.0.1:PORT\"]", true),
        ("register = false\npeers = [\"10.0.0.1\"]\nusers = [\"NAME\"]", true),
        ("register = false\npeers = [\"10.0.0.1\"]\nusers = [\"80XX\"]", false),
        ("register = false\npeers = [\"10.0.0.0/24\"]", false),
        ("registrar = \"pbx.test\"\nusername = \"ai\"", false),
        ("registrar = \"pbx.test:PORT\"\nusername = \"ai\"", true),
        ("registrar = \"pbx.test\"\nusername = \"NAME\"", true),
        ("registrar = \"pbx.test\"\nusername = \"NAME\"\nusers = [\"any\"]", false),
    ];
    for (keys, good) in table {
        match plan(&trunk(keys), &[]) {
            Ok(_) => assert!(good, "{keys}"),
            Err(error) => {
                let text = error.to_string();
                assert!(
                    !good && text.contains("pbx.b.sip") && text.contains("[pbx.a.sip]"),
                    "{text}"
                );
            }
        }
    }
}

#[test]
fn errors_in_the_ladder_name_what_is_missing() {
    let text = |rung: &str| {
        let transfer =
            |pbx: &str, to: &str| format!("[pbx.{pbx}.transfer]\nextensions = [\"{to}\"]\n");
        format!(
            "{GOOD}[calls]\non_ai_failure = [\"{rung}\", \"hangup\"]\n{}\
             [pbx.second]\nmode = \"sip\"\n[pbx.second.sip]\npassword = \"x\"\n\
             registrar = \"192.0.2.2\"\nusername = \"ai\"\n{}",
            transfer("main", "60X"),
            transfer("second", "600"),
        )
    };
    assert!(plan(&text("transfer:600"), &[]).is_ok());
    let table = [
        ("transfer:601", "[pbx.second.transfer] does not allow 601"),
        ("transfer:700", "[pbx.main.transfer] does not allow 700"),
        ("play:sory", "[prompts] has no sory"),
        ("ai:spare", "there is no table [endpoint.spare]"),
    ];
    for (rung, expected) in table {
        let message = error(&text(rung), &[]);
        assert!(message.contains("calls.on_ai_failure: "), "{rung}: {message}");
        assert!(message.contains(expected), "{rung}: {message}");
    }
}

#[test]
fn the_sample_is_valid() {
    let sample = include_str!("../../trunkless.toml");
    let plan = plan(sample, &[("TRUNKLESS_PBX__MAIN__SIP__PASSWORD", "x")]);
    plan.map(|_| ()).unwrap();
}

/// The sample is also valid if the keys in its comments are enabled.
#[test]
fn the_keys_in_the_samples_comments_are_valid() {
    let sample = include_str!("../../trunkless.toml");
    let key = |line: &str| {
        let name = line.split('=').next().unwrap_or("").trim();
        line.contains('=') && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
    };
    let all = sample.lines().map(|line| match line.strip_prefix("# ") {
        Some(rest) if key(rest) || rest.starts_with('[') => rest,
        _ => line,
    });
    let text = all.collect::<Vec<_>>().join("\n");
    assert!(text.matches("\nmax_duration").count() == 1);
    load(&source(&text), &env(&[])).map(|_| ()).unwrap();
}

#[test]
fn errors_in_a_variables_value_name_the_variable() {
    let table = [
        ("TRUNKLESS_AI__URL", "http://x", "is not a ws://"),
        ("TRUNKLESS_CALLS__MAX", "0", "must be at least 1"),
        ("TRUNKLESS_PBX__MAIN__SIP__PASSWORD", "", "is empty"),
        ("TRUNKLESS_LOG__LEVEL", "loud", "is not one of: off, error"),
        ("TRUNKLESS_PBX__MIAN__SIP__USERNAME", "x", "table [pbx.mian] does not exist"),
    ];
    for (name, value, expected) in table {
        let message = error(GOOD, &[(name, value)]);
        assert!(message.starts_with(&format!("the environment: {name}: ")), "{message}");
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn recording_is_per_pbx_and_its_errors_name_the_key() {
    let text = GOOD.to_owned() + "[recording]\ndirectory = \"/tmp/r\"\n";
    let found = plan(&text, &[]).unwrap();
    assert_eq!(found.record["main"].when, crate::record::When::Always);
    assert!(found.record["main"].notice.is_empty() && !found.recording.unwrap().settings.outbox);
    let never = plan(&text, &[("TRUNKLESS_PBX__MAIN__RECORDING__WHEN", "never")]).unwrap();
    assert!(never.record.is_empty() && never.recording.is_some());
    let variables = [
        ("TRUNKLESS_RECORDING__KEEP_GB", "1.5"),
        ("TRUNKLESS_RECORDING__KEEP", "90d"),
        ("TRUNKLESS_RECORDING__REQUIRE", "true"),
        ("TRUNKLESS_RECORDING__KEEP_FREE_PERCENT", "0"),
        ("TRUNKLESS_RECORDING__FORMAT", "pcm16"),
        ("TRUNKLESS_RECORDING__ANNOUNCE", "beep"),
        ("TRUNKLESS_RECORDING__UPLOAD__URL", "s3://calls"),
        ("TRUNKLESS_RECORDING__UPLOAD__ACCESS_KEY_ID", "0123"),
        ("TRUNKLESS_RECORDING__UPLOAD__SECRET_ACCESS_KEY", "0456"),
        ("TRUNKLESS_RECORDING__UPLOAD__ENDPOINT", "http://127.0.0.1:9000"),
    ];
    let found = plan(&text, &variables).unwrap();
    assert!(!found.record["main"].notice.is_empty());
    let recording = found.recording.unwrap();
    let settings = recording.settings;
    assert_eq!(settings.keep_bytes, Some(1_500_000_000));
    assert!(settings.require && settings.outbox && settings.keep_free_percent == 0.0);
    let upload = recording.upload.unwrap();
    assert_eq!(upload.secret_access_key.unwrap().expose_secret(), "0456");
    let table = [
        ("require = true\n", "recording.directory: is missing"),
        ("directory = \"/r\"\nlayout = \"{from}/{id}\"\n", "{date}"),
        ("directory = \"/r\"\nkeep = \"0d\"\n", "90d"),
        ("directory = \"/r\"\nkeep_gb = 0\n", "recording.keep_gb: must be more than 0"),
        ("directory = \"/r\"\nkeep_free_percent = 99\n", "0 to 90"),
        ("directory = \"/r\"\nannounce = \"/no/such.wav\"\n", "recording.announce: /no/such.wav"),
        ("directory = \"/r\"\n[recording.upload]\nurl = \"http://x\"\n", "s3://bucket"),
        (
            "directory = \"/r\"\n[recording.upload]\nurl = \"s3://x\"\nendpoint = \"y:9000\"\n",
            "recording.upload.endpoint: must be",
        ),
        (
            "directory = \"/r\"\n[recording.upload]\nurl = \"s3://x\"\naccess_key_id = \"a\"\n",
            "must be set together",
        ),
        ("directory = \"/r\"\n[recording.webhook]\nurl = \"crm\"\n", "recording.webhook.url"),
        (
            "directory = \"/r\"\n[recording.webhook]\nurl = \"http://c/\"\nsecret = \"x\"\n",
            "recording.webhook.secret: must be base64",
        ),
        ("[pbx.main.recording]\nwhen = \"always\"\n", "[recording] directory"),
    ];
    for (keys, wanted) in table {
        let message = error(&format!("{GOOD}[recording]\n{keys}"), &[]);
        assert!(message.contains(wanted), "{keys}: {message}");
        assert!(message.starts_with("trunkless.toml:"), "{keys}: {message}");
    }
}

#[test]
fn header_fields_with_credentials_are_refused() {
    let with = |names: &str| format!("{GOOD}[pbx.main.ai]\nsip_headers = {names}\n");
    let ai = &plan(&with("[\"Diversion\", \"s\"]"), &[]).unwrap().sip[0].ai;
    assert_eq!(ai.sip_headers, ["Diversion", "Subject"]);
    let many = format!("[{}]", "\"a\", ".repeat(33));
    for (names, why) in [
        ("[\"Authorization\"]", "contains credentials"),
        ("[\"Privacy\", \"proxy-AUTHORIZATION\"]", "contains credentials"),
        ("[\"*\"]", "is not the name of a header field"),
        ("[\"a b\"]", "is not the name of a header field"),
        ("[\"\"]", "is not the name of a header field"),
        (&many, "has more than 32 names"),
    ] {
        let error = plan(&with(names), &[]).err().unwrap().to_string();
        assert!(error.contains("pbx.main.ai.sip_headers") && error.contains(why), "{error}");
    }
}

#[test]
fn sip_headers_in_ari_mode_are_a_warning() {
    let text = "[ai]\nurl = \"ws://ai\"\nsip_headers = [\"Diversion\"]\n[pbx.a]\nmode = \"ari\"\n\
        [pbx.a.ari]\nusername = \"u\"\npassword = \"p\"\nvariables = [\"PJSIP_HEADER(read,X)\"]\n";
    let (plan, report) = inspect(&source(text), &env(&[]));
    assert_eq!(plan.unwrap().ari[0].0.variables, ["PJSIP_HEADER(read,X)"]);
    let warnings: Vec<String> = report.findings.warnings.iter().map(|w| w.to_string()).collect();
    let about = |w: &&String| w.contains("ai.sip_headers: has no effect in ARI mode");
    assert_eq!(warnings.iter().filter(about).count(), 1, "{warnings:?}");
}
