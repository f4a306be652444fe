//! `trunkless vicidial check` and `plan`.

use crate::vicidial::fake::{PASSWORD, Vicidial};

struct Output {
    good: bool,
    text: String,
}

async fn run(vicidial: &Vicidial, command: &'static str, config: String) -> Output {
    let file = vicidial.directory.path().join("trunkless.toml");
    std::fs::write(&file, config).unwrap();
    let run = move || {
        let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_trunkless"));
        program.args(["vicidial", command, "--config"]).arg(&file).output().unwrap()
    };
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.contains("canary"), "{text}");
    Output { good: output.status.success(), text }
}

fn config(vicidial: &Vicidial, more: &str) -> String {
    format!(
        "[ai]\nurl = \"ws://127.0.0.1:1\"\n[calls]\nmax = 10\n[pbx.main]\nmode = \"sip\"\n\
         [pbx.main.sip]\nregistrar = \"192.0.2.1\"\nusername = \"8001\"\npassword = \"x\"\n{}",
        vicidial.config(&format!("remote_agent = \"7001\"\n{more}"))
    )
}

/// The faults in the text.
fn faults(text: &str) -> Vec<&str> {
    text.lines().filter(|line| line.trim_start().starts_with("FAULT")).collect()
}

/// Each function that is forbidden is named, and nothing is changed.
#[tokio::test]
async fn what_the_api_user_lacks_is_named() {
    let vicidial = Vicidial::start().await;
    vicidial.world().agents.push(("7001".to_owned(), String::new()));
    let good = config(&vicidial, "in_group = \"SALESLINE\"");
    let output = run(&vicidial, "check", good.clone()).await;
    assert!(output.good, "{}", output.text);
    for function in [
        "ra_call_control",
        "logged_in_agents",
        "callid_info",
        "lead_all_info",
        "lead_field_info",
        "update_lead",
        "update_log_entry",
        "update_remote_agent",
        "add_dnc_phone",
        "version",
    ] {
        vicidial.world().forbidden = vec![function];
        let output = run(&vicidial, "check", good.clone()).await;
        let named = faults(&output.text).iter().any(|line| line.contains(function));
        assert!(!output.good && named, "{function}: {}", output.text);
    }
    vicidial.world().forbidden.clear();
    let output = run(&vicidial, "check", good.replace(PASSWORD, "wrong-canary")).await;
    assert!(!output.good && output.text.contains("wrong user or password"), "{}", output.text);
    let world = vicidial.world();
    assert!(world.calls.is_empty() && world.remote_agent.is_none(), "nothing was changed");
    assert_eq!(world.wrong, 1);
}

#[tokio::test]
async fn what_does_not_fit_together_is_named() {
    let vicidial = Vicidial::start().await;
    let agents = |first: u32, count: u32| -> Vec<(String, String)> {
        (first..first + count).map(|user| (user.to_string(), String::new())).collect()
    };
    for (agents, more, fault) in
        [(agents(7001, 11), "", "Number of Lines"), (agents(7005, 3), "", "no agent 7001")]
    {
        vicidial.world().agents = agents;
        let output = run(&vicidial, "check", config(&vicidial, more)).await;
        let named = faults(&output.text).iter().any(|line| line.contains(fault));
        assert!(!output.good && named, "{fault}: {}", output.text);
    }
    vicidial.world().agents = agents(7001, 10);
    let output = run(&vicidial, "check", config(&vicidial, "in_group = \"NOPE\"")).await;
    assert!(output.good && output.text.contains("WARN   in-group NOPE"), "{}", output.text);
    let other = config(&vicidial, "").replace("remote_agent = \"7001\"", "remote_agent = \"7\"");
    let output = run(&vicidial, "check", other).await;
    assert!(faults(&output.text).iter().any(|line| line.contains("User Start")), "{}", output.text);
}

/// Values that cannot work are refused, with their key.
#[tokio::test]
async fn wrong_configurations_are_refused() {
    let vicidial = Vicidial::start().await;
    let check = async |config: String| {
        let file = vicidial.directory.path().join("wrong.toml");
        std::fs::write(&file, config).unwrap();
        let run = move || {
            let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_trunkless"));
            program.args(["run", "--check", "--config"]).arg(&file).output().unwrap()
        };
        let output = tokio::task::spawn_blocking(run).await.unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let good = config(&vicidial, "");
    assert_eq!(check(good.clone()).await.0, Some(0));
    let url = format!("url = \"{}\"", vicidial.server.uri());
    for (from, to, key) in [
        (&*url, "url = \"192.0.2.1\"", "vicidial.url"),
        (&*url, "url = \"http://h/vicidial/non_agent_api.php\"", "vicidial.url"),
        (&*url, "url = \"http://u:p@h\"", "vicidial.url"),
        ("user = \"apiuser\"", "user = \"a b\"", "vicidial.user"),
        (PASSWORD, "p@ss word", "vicidial.password"),
        ("remote_agent = \"7001\"", "remote_agent = \"agentX\"", "vicidial.remote_agent"),
        ("remote_agent", "in_group = \"A B\"\nremote_agent", "vicidial.in_group"),
        ("remote_agent", "wait_for_lead = \"1s\"\nremote_agent", "vicidial.wait_for_lead"),
        ("remote_agent", "statuses = { hangup = \"TOOLONG\" }\nremote_agent", "statuses.hangup"),
        ("remote_agent", "statuses = { hangup = \"DROP\" }\nremote_agent", "statuses.hangup"),
        ("remote_agent", "statuses = { bye = \"X\" }\nremote_agent", "statuses.bye"),
        ("remote_agent", "custom_fields = [\"pass\"]\nremote_agent", "vicidial.custom_fields"),
        ("first_name = \"name\"", "firstname = \"name\"", "fields.firstname"),
        ("first_name = \"name\"", "first_name = \"\"", "fields.first_name"),
        ("desk = \"1001\"", "desk = \"default,1001,1\"", "targets.desk"),
        ("username =", "when_ai_is_down = \"unregister\"\nusername =", "when_ai_is_down"),
        ("remote_agent", "nonsense = 1\nremote_agent", "nonsense"),
    ] {
        assert!(good.contains(from), "{from}");
        let (code, text) = check(good.replacen(from, to, 1)).await;
        assert!(code == Some(2) && text.contains(key), "{to}: {code:?} {text}");
        assert!(!text.contains("canary"), "{text}");
    }
}

/// Every value that an admin has to enter is there.
#[tokio::test]
async fn the_plan_names_every_value() {
    let vicidial = Vicidial::start().await;
    let output = run(&vicidial, "plan", config(&vicidial, "in_group = \"SALESLINE\"")).await;
    assert!(output.good, "{}", output.text);
    for part in [
        "7001 to 7010",
        "Number of Lines 10",
        "External Extension 8001",
        "On-Hook Agent N",
        "Phone Ring Timeout 25",
        "Registration Password",
        "Unavailable Dialplan Forward",
        "5060",
        "5061",
        "add_dnc_phone",
        "version",
        "Modify Lists 1",
        "Modify Custom Dialplans",
        "SALESLINE",
        "AINSP",
        "8368",
    ] {
        assert!(output.text.contains(part), "{part}: {}", output.text);
    }
    assert!(output.text.lines().all(|line| line.len() <= 100), "{}", output.text);
}
