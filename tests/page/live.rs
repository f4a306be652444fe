//! The page with live calls.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::talk::{Talk, keep, place, talk};
use crate::{DESK, Site, WALL};

const ROWS: &str = "document.querySelectorAll('#live-rows tr').length";

/// Names that a caller may have chosen.
const HOSTILE: [&str; 4] = [
    "<img src=x onerror=window.owned=1>",
    "<script>window.owned=1</script>",
    "javascript:window.owned=1//&lt;b&gt;",
    "A very long name without any spaces: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
];

const NAMES: [&str; 8] = [
    "Anna Schmidt",
    "Bob Miller",
    "",
    "Clínica Sur",
    "Dr. Yılmaz",
    "Eve Adams",
    "Łukasz Żak",
    "Front Desk",
];

async fn calls(site: &Site, numbers: std::ops::Range<u32>) -> Vec<Talk> {
    let mut all = Vec::new();
    for n in numbers {
        let name = HOSTILE.get(n as usize).unwrap_or(&NAMES[n as usize % NAMES.len()]);
        let (call, stream) = place(&site.rig, &format!("4930555{n:04}"), name).await;
        // some of them over a bad line; most are silent, to spare the machine
        let skip = (n % 16 == 7).then_some(17);
        all.push(match n % 4 {
            0 | 3 => talk(call, stream, n, skip),
            _ => keep(call, stream),
        });
    }
    all
}

/// The caller's number and name in each row.
async fn callers(site: &mut Site) -> Vec<Value> {
    let rows = "[...document.querySelectorAll('#live-rows .who-cell')].map((cell) =>
                  [...cell.children].map((part) => part.textContent))";
    site.browser.js(rows).await.as_array().expect("rows").clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_appears_is_listened_to_and_is_hung_up_with_the_keyboard() {
    let mut site = Site::open().await;
    site.sign_in(DESK).await;
    let _talk = calls(&site, 0..1).await;
    site.browser.until(&format!("{ROWS} === 1")).await;
    assert_eq!(callers(&mut site).await, [json!(["49305550000", HOSTILE[0]])]);
    // levels of both sides, by their names for screen readers
    for side in ["Caller level", "AI level"] {
        let level = format!("document.querySelector('[aria-label=\"{side}\"]').ariaValueNow");
        site.browser.until(&format!("Number({level}) > -30")).await;
    }
    site.browser
        .until("document.querySelector('#live-rows [data-label=AI]').innerText.match(/Speaking/)")
        .await;
    site.browser
        .until("document.querySelector('#live-rows .time-cell').innerText.match(/0:0[2-9]/)")
        .await;
    site.look("live-1").await;
    // focus stays in the row while it is drawn again
    site.browser.tab_to("#live-rows .open").await;
    let time = site.browser.text("#live-rows .time-cell").await;
    site.browser
        .until(&format!("document.querySelector('#live-rows .time-cell').innerText !== {time:?}"))
        .await;
    assert_eq!(site.browser.js("document.activeElement.matches('#live-rows .open')").await, true);
    site.browser.press("Enter").await;
    site.browser.until("document.getElementById('detail').open").await;
    site.browser.until("document.activeElement.id === 'detail-title'").await;
    site.browser
        .until("/Packets in\\s+\\d+/.test(document.querySelector('#detail').innerText)")
        .await;
    let roles = site.browser.roles().await;
    for (role, name) in [
        ("dialog", "49305550000"),
        ("button", "Listen in"),
        ("button", "Hang up"),
        ("combobox", "Transfer target"),
        ("meter", "Caller level"),
        ("button", "Close"),
    ] {
        assert!(roles.iter().any(|(r, n)| r == role && n == name), "{role} {name}: {roles:?}");
    }
    site.look("call").await;
    listen_in(&mut site).await;
    transfer_elsewhere(&mut site).await;
    // hanging up asks first, and the safe answer has focus
    site.browser.tab_to(".confirm .danger").await;
    site.browser.press("Enter").await;
    site.browser.until("document.activeElement.innerText === 'Keep the call'").await;
    site.browser.press("Enter").await;
    site.browser.until("document.activeElement.innerText === 'Hang up'").await;
    site.browser.press("Enter").await;
    site.browser.tab_to(".confirm .danger").await;
    site.browser.press("Enter").await;
    let record = site.rig.bridge.record().await;
    assert_eq!(record.reason.label(), "api_hangup");
    assert_eq!(
        record.commands.last().map(|given| given.by.to_string()).as_deref(),
        Some("http:desk")
    );
    // the dialog continues with the ended call
    let timeline = "document.querySelector('#detail .timeline')?.innerText";
    site.browser.until(&format!("{timeline}.includes('Hang up, by desk: done')")).await;
    site.browser.press("Escape").await;
    site.browser.until("!document.getElementById('detail').open").await;
    site.browser.until(&format!("{ROWS} === 0")).await;
    assert_eq!(site.browser.js("window.owned ?? null").await, Value::Null);
    site.browser.has_no_faults().await;
}

async fn listen_in(site: &mut Site) {
    site.browser.tab_to(".actions [aria-pressed]").await;
    site.browser.press("Enter").await;
    site.browser.until("document.activeElement.innerText === 'Stop listening'").await;
    // others see that someone listens
    let listeners =
        |n: u32| format!("document.querySelector('#detail').innerText.match(/Listeners\\s+{n}/)");
    site.browser.until(&listeners(1)).await;
    site.browser.has_no_faults().await;
    site.browser.press("Enter").await;
    site.browser.until("document.activeElement.innerText === 'Listen in'").await;
    site.browser.until(&listeners(0)).await;
}

/// The scripted PBX takes the call to the target, but its answer has no audio.
async fn transfer_elsewhere(site: &mut Site) {
    site.browser.tab_to(".transfer select").await;
    let options = site.browser.text(".transfer select").await;
    assert!(options.contains("humans") && options.contains("Other extension"), "{options}");
    site.browser.press("End").await;
    site.browser.tab_to(".transfer input").await;
    site.browser.type_text("1999").await;
    site.browser.press("Enter").await;
    site.browser
        .until("document.getElementById('announcer').innerText.includes('Transfer to 1999')")
        .await;
    let said = site.browser.text("#announcer").await;
    assert!(said.contains("allow"), "{said}");
    // the refusal is on the console
    let faults = site.browser.faults().await;
    assert!(faults.iter().all(|fault| fault.contains("403")), "{faults:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_calls_and_numbers_are_masked_without_the_scope() {
    let mut site = Site::open().await;
    site.sign_in(WALL).await;
    let mut talks = calls(&site, 0..50).await;
    site.browser.until(&format!("{ROWS} === 50")).await;
    let callers = callers(&mut site).await;
    for (n, caller) in callers.iter().enumerate() {
        assert_eq!(caller[0], format!("*********{:02}", n % 100), "{caller}");
    }
    let source = site.browser.js("document.documentElement.outerHTML").await;
    assert!(!source.as_str().expect("text").contains("49305550"), "a number in full");
    for (n, name) in HOSTILE.iter().enumerate() {
        assert_eq!(callers[n][1], *name);
    }
    assert_eq!(
        site.browser
            .js("document.querySelectorAll('#live-rows img, #live-rows script').length")
            .await,
        0
    );
    assert_eq!(site.browser.js("document.querySelector('#tiles b').innerText").await, "50");
    // loss of the last seconds
    site.browser.until("document.querySelectorAll('#live-rows .warn-text').length > 0").await;
    site.look("live-50").await;
    // this token gives no commands, and the page says why
    site.browser.tab_to("#live-rows tr:nth-child(3) .open").await;
    site.browser.press("Enter").await;
    site.browser.until("document.getElementById('detail').open").await;
    let text = site.browser.text("#detail").await;
    assert!(
        text.contains("lacks the scope control") && text.contains("lacks the scope listen"),
        "{text}"
    );
    site.browser.press("Escape").await;
    site.browser.until("document.activeElement.matches('#live-rows tr:nth-child(3) .open')").await;
    // the row that has focus disappears: its neighbour gets it
    let ids =
        "[...document.querySelectorAll('#live-rows tr')].slice(2, 4).map((row) => row.dataset.id)";
    let ids = site.browser.js(ids).await;
    site.rig.bridge.hang_up(ids[0].as_str().expect("an id"));
    site.browser.until(&format!("{ROWS} === 49")).await;
    let focus = "document.activeElement.closest('tr').dataset.id";
    assert_eq!(site.browser.js(focus).await, ids[1]);
    // the filter
    site.browser.js("document.getElementById('live-filter').focus()").await;
    site.browser.type_text("Łukasz").await;
    site.browser
        .until("document.querySelectorAll('#live-rows tr:not([hidden])').length === 6")
        .await;
    // none of this was announced
    assert_eq!(site.browser.text("#announcer").await, "");
    talks.clear();
    assert_eq!(site.browser.js("window.owned ?? null").await, Value::Null);
    site.browser.has_no_faults().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_bridge_is_announced_once() {
    let mut site = Site::open().await;
    let way = Way::to(site.address).await;
    site.browser.open(&format!("http://{}/", way.address)).await;
    site.sign_in(DESK).await;
    way.cut();
    let state = "document.getElementById('link-state').innerText";
    site.browser.until(&format!("{state} === 'Connection lost'")).await;
    let said = "document.getElementById('announcer').innerText";
    site.browser.until(&format!("{said}.includes('is lost')")).await;
    site.browser.screenshot("connection-lost").await;
    // it comes back by itself, on the same port
    let _way = Way::at(way.address, site.address).await;
    site.browser.until(&format!("{state} === 'Live'")).await;
    site.browser
        .until("document.getElementById('announcer').innerText === 'Connected again'")
        .await;
}

/// A way to the control port that can be cut.
struct Way {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Way {
    async fn to(bridge: SocketAddr) -> Way {
        Way::at(SocketAddr::new(bridge.ip(), 0), bridge).await
    }

    async fn at(address: SocketAddr, bridge: SocketAddr) -> Way {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            // dropping the set ends all connections
            let mut open = JoinSet::new();
            while let Ok((mut from, _)) = listener.accept().await {
                let mut to = TcpStream::connect(bridge).await.unwrap();
                open.spawn(async move { copy_bidirectional(&mut from, &mut to).await });
            }
        });
        Way { address, task }
    }

    fn cut(&self) {
        self.task.abort();
    }
}
