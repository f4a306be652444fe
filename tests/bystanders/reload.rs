//! Reloads of the configuration beside 50 calls.

use std::time::Duration;

use rustix::process::Signal;
use toml::Table;
use trunkless::peer::phone::PhoneCommand;

use crate::rig::{Bystanders, Rig, Site, until};

const LIMIT: Duration = Duration::from_secs(10);

fn table(text: &str) -> toml::Value {
    text.parse::<Table>().expect("TOML").into()
}

/// Another AI for the bystanders' PBX, other limits, another PBX; a mistake; a storm of signals;
/// and everything as before.
async fn reloads(rig: &Rig) {
    let before = rig.configuration();
    let (code, text) = rig
        .reload(|tables| {
            tables["ai"] = table("url = 'ws://127.0.0.1:9/elsewhere'\nping = '20s'");
            tables.insert("calls".to_owned(), table("max = 60\nmax_duration = '1h'"));
            let trunk = "mode = 'sip'\nsip = { register = false, peers = ['127.1.2.3'] }";
            tables["pbx"].as_table_mut().expect("PBXs").insert("extra".to_owned(), table(trunk));
        })
        .await;
    assert_eq!(code, Some(0), "{text}");
    for line in ["changed: ai.url", "changed: calls.max", "PBX added: extra"] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
    // a new call
    let (phone, stream) = rig.fault_call().await;
    phone.command(PhoneCommand::Hangup);
    drop(stream);
    let (code, text) = rig.reload_text(&format!("{before}\n[calls]\nmaximum = 1\n")).await;
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("trunkless.toml:") && text.contains("unknown field"), "{text}");
    assert!(rig.log().contains("the one from before stays"), "{}", rig.log());
    let count = || rig.log().matches(" reloaded").count();
    let reloads = count();
    rig.write_configuration(&before);
    (0..100).for_each(|_| rig.signal(Signal::HUP));
    assert!(until(LIMIT, || count() > reloads).await, "{}", rig.log());
    assert!(rig.log().contains("removed=\"extra\""), "{}", rig.log());
    let (code, text) = rig.reload_text(&before).await;
    assert!(code == Some(0) && text.contains("nothing has changed"), "{code:?} {text}");
    assert!(count() < reloads + 20, "{} reloads for 100 signals", count() - reloads);
}

#[tokio::test]
async fn the_configuration_is_reloaded() {
    Bystanders::new(Site::direct("")).calls(50).repeated().during(reloads).await;
}
