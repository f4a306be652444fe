//! The page at the control port, in a real browser: the bridge in this process with calls on real
//! sockets, and Chromium. Each test has a browser of its own. With `TRUNKLESS_SCREENS=DIRECTORY`
//! they leave screenshots.

#[allow(dead_code, reason = "the wire tests use the rest")]
#[path = "../wire/bridge.rs"]
mod bridge;
#[allow(dead_code, reason = "the wire tests use the rest")]
#[path = "../wire/call.rs"]
mod call;
#[allow(dead_code, reason = "the bystanders use the rest")]
#[path = "../bystanders/rig/canary.rs"]
mod canary;
#[allow(dead_code, reason = "the wire tests use the rest")]
#[path = "../wire/checker.rs"]
mod checker;
#[allow(dead_code, reason = "the wire tests use the rest")]
#[path = "../wire/log.rs"]
mod log;
#[allow(dead_code, reason = "the wire tests use the rest")]
#[path = "../wire/media.rs"]
mod media;
#[path = "../fixtures/overlay.rs"]
mod overlay;
#[allow(dead_code, reason = "the wire tests use the rest")]
#[path = "../wire/pbx.rs"]
mod pbx;
#[allow(dead_code, reason = "the wire tests use the rest")]
#[path = "../wire/stream.rs"]
mod stream;
#[allow(dead_code, reason = "the wire tests use the rest")]
#[path = "../wire/strict.rs"]
mod strict;

mod browser;
mod ended;
mod live;
mod signing_in;
mod talk;

use std::net::SocketAddr;

use bridge::{Net, Rig};
use browser::Browser;

/// May do everything.
pub const DESK: &str = "a-token-for-everything";
/// May only look.
pub const WALL: &str = "a-token-that-only-looks";

/// A bridge whose page is open.
pub struct Site {
    pub rig: Rig,
    pub address: SocketAddr,
    pub browser: Browser,
    _recordings: tempfile::TempDir,
}

impl Site {
    pub async fn open() -> Site {
        let net = Net::new();
        let listener = std::net::TcpListener::bind((net.bridge(), 0)).unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let recordings = tempfile::tempdir().unwrap();
        let config = format!(
            "[control]\nlisten = \"{address}\"\nlisten_in = true\n\
             [control.tokens.desk]\ntoken = \"{DESK}\"\n\
             scopes = [\"read\", \"control\", \"numbers\", \"recordings\", \"listen\"]\n\
             [control.tokens.wall]\ntoken = \"{WALL}\"\nscopes = [\"read\"]\n\
             [recording]\ndirectory = {:?}\nwhen = \"on_command\"\n\
             [calls]\nmedia_timeout = \"0s\"\n\
             [pbx.main.transfer]\ntargets = {{ humans = \"1001\" }}\nextensions = [\"20XX\"]\n",
            recordings.path()
        );
        let pbx = pbx::Pbx::udp(net.pbx()).await;
        let ai = strict::Ai::start(net.ai()).await;
        let rig = Rig::with(net, pbx, ai, &config).await;
        let mut browser = Browser::start().await;
        browser.open(&format!("http://{address}/")).await;
        Site { rig, address, browser, _recordings: recordings }
    }

    /// Signs in with the keyboard.
    pub async fn sign_in(&mut self, token: &str) {
        self.browser.until("document.activeElement.id === 'token'").await;
        self.browser.type_text(token).await;
        self.browser.press("Enter").await;
        self.browser.until("document.getElementById('link-state').innerText === 'Live'").await;
    }

    /// Opens a view of the page.
    pub async fn view(&mut self, name: &str) {
        self.browser.js(&format!("location.hash = '#{name}'")).await;
        self.browser.until(&format!("!document.getElementById('{name}').hidden")).await;
    }

    /// Looks at the page in both colours and both widths. `name` is that of the screenshots.
    pub async fn look(&mut self, name: &str) {
        let browser = &mut self.browser;
        browser.controls_have_names().await;
        for scheme in ["dark", "light"] {
            browser.colours(scheme).await;
            browser.phone().await;
            browser.fits().await;
            browser.has_contrast().await;
            browser.screenshot(&format!("{name}-phone-{scheme}")).await;
            browser.desktop().await;
            browser.fits().await;
            browser.has_contrast().await;
            browser.screenshot(&format!("{name}-desktop-{scheme}")).await;
        }
        browser.has_no_faults().await;
    }
}
