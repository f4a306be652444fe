//! The page with ended calls and a recording.

use trunkless::command::RecordCommand;

use crate::talk::{place, voice};
use crate::{DESK, Site};

const ROWS: &str = "document.querySelectorAll('#ended-rows tr').length";
/// Calls that are placed at once.
const BATCH: u32 = 10;

/// Lets calls come and go.
async fn replay(site: &Site, calls: u32) {
    for batch in 0..calls / BATCH {
        let mut open = Vec::new();
        for n in 0..BATCH {
            let number = format!("4989{:07}", batch * BATCH + n);
            open.push(place(&site.rig, &number, "Caller of the replay").await);
        }
        for (mut call, stream) in open {
            call.bye().await;
            stream.stopped().await;
            site.rig.bridge.record().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_ended_calls_are_listed_in_pages() {
    let mut site = Site::open().await;
    replay(&site, 480).await;
    site.sign_in(DESK).await;
    site.view("ended").await;
    site.browser.until(&format!("{ROWS} === 50")).await;
    assert_eq!(site.browser.text("#ended-count").await, "50 of 480");
    // those that end now are added at the top
    replay(&site, 20).await;
    site.browser.until("document.getElementById('ended-count').innerText === '50 of 500'").await;
    let first = "document.querySelector('#ended-rows .open').innerText";
    assert_eq!(site.browser.js(first).await, "49890000019");
    site.look("ended-500").await;
    site.browser.tab_to("#ended-more").await;
    site.browser.press("Enter").await;
    site.browser.until(&format!("{ROWS} === 100")).await;
    // reading continues at the first new row
    let focus = "[...document.querySelectorAll('#ended-rows tr')]
                   .indexOf(document.activeElement.closest('tr'))";
    assert_eq!(site.browser.js(focus).await, 50);
    site.browser.js("document.getElementById('ended-filter').focus()").await;
    site.browser.type_text("49890000333").await;
    site.browser.until(&format!("{ROWS} === 1")).await;
    site.browser.tab_to("#ended-rows .open").await;
    site.browser.press("Enter").await;
    site.browser.until("document.getElementById('detail').open").await;
    let text = site.browser.text("#detail").await;
    for part in ["49890000333", "Caller hung up", "Offered by the PBX", "Answered", "callSid"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    site.browser.has_no_faults().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recording_is_played() {
    let mut site = Site::open().await;
    let (mut call, stream) = place(&site.rig, "4930901820", "Anna Schmidt").await;
    site.rig.bridge.record_command(RecordCommand::Start);
    let packets: Vec<_> = (0..450).map(|n| call.talker.packet(&voice(n, 2))).collect();
    let ai: Vec<u8> = (0..400).flat_map(|n| voice(n, 3)).collect();
    stream.play(&ai).await;
    stream.mark("greeting <b>").await;
    let mut ticks = tokio::time::interval(std::time::Duration::from_millis(20));
    for (n, packet) in packets.iter().enumerate() {
        ticks.tick().await;
        call.send_rtp(packet).await;
        if n == 150 {
            let info = "Content-Type: application/dtmf-relay\r\n";
            call.request("INFO", info, "Signal=5\r\nDuration=160\r\n").await;
        }
    }
    stream.marked("greeting <b>").await;
    call.bye().await;
    stream.stopped().await;
    let made = site.rig.bridge.record().await;
    assert_eq!(made.recordings.len(), 1);
    site.sign_in(DESK).await;
    site.view("ended").await;
    site.browser.tab_to("#ended-rows .open").await;
    site.browser.press("Enter").await;
    // it may not be finished yet
    play(&mut site).await;
    site.look("recording").await;
}

async fn play(site: &mut Site) {
    // until it is finished, the page says that it is not here, and it can be opened again
    let shown = "(() => {
      if (document.querySelector('.waveform')) return true;
      if (document.querySelector('.recording')?.innerText.includes('not here')) {
        document.getElementById('detail').close();
        document.querySelector('#ended-rows .open').click();
      }
      return false;
    })()";
    site.browser.until(shown).await;
    // both sides of the waveform have something in them
    let ink = "(() => {
      const shown = document.querySelector('.waveform');
      const copy = Object.assign(document.createElement('canvas'),
        { width: shown.width, height: shown.height });
      const d = copy.getContext('2d', { willReadFrequently: true });
      d.drawImage(shown, 0, 0);
      const count = (from, to) => d.getImageData(0, from, copy.width, to - from).data
        .reduce((sum, value, n) => sum + (n % 4 === 3 && value > 0), 0);
      return [count(0, copy.height * 0.4), count(copy.height * 0.6, copy.height)];
    })()";
    site.browser.until(&format!("{ink}.every(count => count > 2000)")).await;
    site.browser.js("document.querySelector('.events summary').click()").await;
    let text = site.browser.text(".events").await;
    for part in ["Key 5", "Mark “greeting <b>”"] {
        assert!(text.contains(part), "{text}");
    }
    let roles = site.browser.roles().await;
    for (role, name) in
        [("button", "Play"), ("slider", "Position"), ("checkbox", "Caller"), ("checkbox", "AI")]
    {
        assert!(roles.iter().any(|(r, n)| r == role && n == name), "{role} {name}: {roles:?}");
    }
    site.browser.tab_to(".play").await;
    site.browser.press("Space").await;
    site.browser.until("document.activeElement.innerText === 'Pause'").await;
    // time passes only while there is sound
    site.browser
        .until("Number(document.querySelector('[aria-label=Position]').value) > 1000")
        .await;
    site.browser.press("Space").await;
    site.browser.until("document.activeElement.innerText === 'Play'").await;
    // an event is a place to go to
    site.browser.tab_to(".events .at").await;
    site.browser.press("Enter").await;
    site.browser
        .until("Number(document.querySelector('[aria-label=Position]').value) > 2000")
        .await;
}
