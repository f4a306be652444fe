//! Chromium, driven over the DevTools protocol
//! (<https://chromedevtools.github.io/devtools-protocol/>).

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

/// Names of the program, in Debian and elsewhere.
const PROGRAMS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "chrome"];
/// The longest wait for anything on the page.
const PATIENCE: Duration = Duration::from_secs(30);
/// The directory for screenshots, if any are wanted.
const SCREENS: &str = "TRUNKLESS_SCREENS";

/// A browser with one page.
pub struct Browser {
    process: Child,
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    session: String,
    next: u64,
    /// Errors on the console, uncaught exceptions and violations of the policy.
    faults: Vec<String>,
    _profile: tempfile::TempDir,
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Browser {
    pub async fn start() -> Browser {
        let profile = tempfile::tempdir().unwrap();
        let (process, address) = launch(&profile);
        let (socket, _) = connect_async(address).await.expect("DevTools");
        let mut browser = Browser {
            process,
            socket,
            session: String::new(),
            next: 0,
            faults: Vec::new(),
            _profile: profile,
        };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"})).await;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let attached = browser.call("Target.attachToTarget", attach).await;
        browser.session = attached["sessionId"].as_str().expect("a session").to_owned();
        for domain in ["Page", "Runtime", "Log", "Accessibility"] {
            browser.call(&format!("{domain}.enable"), json!({})).await;
        }
        browser.desktop().await;
        browser
    }

    /// Calls a method and returns its result.
    pub async fn call(&mut self, method: &str, params: Value) -> Value {
        self.next += 1;
        let mut message = json!({"id": self.next, "method": method, "params": params});
        if !self.session.is_empty() {
            message["sessionId"] = self.session.clone().into();
        }
        self.socket.send(Message::text(message.to_string())).await.expect("DevTools");
        loop {
            let message = timeout(2 * PATIENCE, self.socket.next()).await;
            let message = message.unwrap_or_else(|_| panic!("{method}: no answer"));
            let Message::Text(text) = message.expect("DevTools").expect("a message") else {
                continue;
            };
            let value: Value = serde_json::from_str(&text).expect("JSON");
            if value["id"] == self.next {
                assert!(value["error"].is_null(), "{method}: {}", value["error"]);
                return value["result"].clone();
            }
            self.note(&value);
        }
    }

    fn note(&mut self, event: &Value) {
        let params = &event["params"];
        let fault = match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => Some(&params["exceptionDetails"]),
            Some("Runtime.consoleAPICalled") if params["type"] != "log" => Some(params),
            Some("Log.entryAdded") if params["entry"]["level"] != "verbose" => {
                Some(&params["entry"])
            }
            _ => None,
        };
        self.faults.extend(fault.map(ToString::to_string));
    }

    /// Returns the faults so far, and forgets them.
    pub async fn faults(&mut self) -> Vec<String> {
        // what was reported until now comes before this answer
        self.js("0").await;
        std::mem::take(&mut self.faults)
    }

    pub async fn has_no_faults(&mut self) {
        let faults = self.faults().await;
        assert!(faults.is_empty(), "{faults:#?}");
    }

    pub async fn open(&mut self, url: &str) {
        self.call("Page.navigate", json!({"url": url})).await;
        self.until("document.readyState === 'complete'").await;
    }

    /// Evaluates an expression and returns its value.
    pub async fn js(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "awaitPromise": true, "returnByValue": true,
            "allowUnsafeEvalBlockedByCSP": false});
        let result = self.call("Runtime.evaluate", params).await;
        assert!(result["exceptionDetails"].is_null(), "{expression}: {result:#}");
        result["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    pub async fn until(&mut self, expression: &str) {
        let limit = PATIENCE.as_millis();
        let waiting = format!(
            "new Promise((resolve) => {{ const end = Date.now() + {limit};
               const look = () => {{ let is; try {{ is = ({expression}); }} catch {{ is = false; }}
                 if (is) resolve(true);
                 else if (Date.now() > end) resolve(false);
                 else setTimeout(look, 30); }}; look(); }})"
        );
        if self.js(&waiting).await != true {
            let text = self.js("document.body.innerText").await;
            panic!("never true: {expression}\n{}\n{:#?}", text.as_str().unwrap(), self.faults);
        }
    }

    pub async fn text(&mut self, selector: &str) -> String {
        let expression = format!("document.querySelector({selector:?})?.innerText ?? '(none)'");
        self.js(&expression).await.as_str().expect("a text").to_owned()
    }

    /// Presses a key: a named one, or a character.
    pub async fn press(&mut self, key: &str) {
        let (code, number, text) = match key {
            "Enter" => ("Enter", 13, "\r"),
            "Tab" | "Shift+Tab" => ("Tab", 9, ""),
            "Escape" => ("Escape", 27, ""),
            "Space" => ("Space", 32, " "),
            "End" => ("End", 35, ""),
            _ => ("", 0, key),
        };
        let modifiers = if key.starts_with("Shift+") { 8 } else { 0 };
        let name = match key {
            "Space" => " ",
            key => key.trim_start_matches("Shift+"),
        };
        for kind in ["keyDown", "keyUp"] {
            let typed = if kind == "keyDown" { text } else { "" };
            let params = json!({"type": kind, "key": name, "code": code, "modifiers": modifiers,
                "windowsVirtualKeyCode": number, "text": typed});
            self.call("Input.dispatchKeyEvent", params).await;
        }
    }

    pub async fn type_text(&mut self, text: &str) {
        self.call("Input.insertText", json!({"text": text})).await;
    }

    /// Presses Tab until the element has focus.
    pub async fn tab_to(&mut self, selector: &str) {
        let expression = format!("document.activeElement?.matches({selector:?}) ?? false");
        for _ in 0..60 {
            if self.js(&expression).await == true {
                return;
            }
            self.press("Tab").await;
        }
        panic!("Tab never reaches {selector}");
    }

    pub async fn desktop(&mut self) {
        self.size(1360, 860, 1.0, false).await;
    }

    pub async fn phone(&mut self) {
        self.size(390, 844, 2.0, true).await;
    }

    async fn size(&mut self, width: u32, height: u32, scale: f64, mobile: bool) {
        let params = json!({"width": width, "height": height, "deviceScaleFactor": scale,
            "mobile": mobile});
        self.call("Emulation.setDeviceMetricsOverride", params).await;
    }

    /// `light` or `dark`.
    pub async fn colours(&mut self, scheme: &str) {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.call("Emulation.setEmulatedMedia", json!({"features": features})).await;
    }

    /// Fails if the page can be scrolled sideways.
    pub async fn fits(&mut self) {
        let widths = self.js(WIDTHS).await;
        let wide =
            widths[0].as_i64() > widths[1].as_i64() || widths[2].as_i64() > widths[1].as_i64();
        assert!(!wide, "wider than the window: {widths}");
    }

    /// The nodes of the accessibility tree that are not ignored: role and name.
    pub async fn roles(&mut self) -> Vec<(String, String)> {
        let tree = self.call("Accessibility.getFullAXTree", json!({})).await;
        let nodes = tree["nodes"].as_array().expect("nodes").iter();
        let text = |value: &Value| value["value"].as_str().unwrap_or_default().to_owned();
        nodes
            .filter(|node| node["ignored"] == false)
            .map(|node| (text(&node["role"]), text(&node["name"])))
            .collect()
    }

    /// Fails if a control has no name for screen readers.
    pub async fn controls_have_names(&mut self) {
        const CONTROLS: [&str; 11] = [
            "button",
            "link",
            "textbox",
            "searchbox",
            "checkbox",
            "slider",
            "combobox",
            "meter",
            "dialog",
            "table",
            "image",
        ];
        for (role, name) in self.roles().await {
            assert!(!CONTROLS.contains(&&*role) || !name.is_empty(), "a {role} without a name");
        }
    }

    /// Fails if a text has too little contrast with what is behind it (WCAG 2.2, 1.4.3).
    pub async fn has_contrast(&mut self) {
        let poor = self.js(CONTRAST).await;
        assert_eq!(poor, json!([]), "too little contrast");
    }

    /// Keeps a picture of the page, if a directory for them is given.
    pub async fn screenshot(&mut self, name: &str) {
        let Some(directory) = std::env::var_os(SCREENS) else { return };
        // what moves has arrived
        self.js("Promise.allSettled(document.getAnimations().map((a) => a.finished))").await;
        let shot = self.call("Page.captureScreenshot", json!({"format": "png"})).await;
        let png = BASE64.decode(shot["data"].as_str().expect("data")).expect("base64");
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(std::path::Path::new(&directory).join(format!("{name}.png")), png).unwrap();
    }
}

/// Texts whose contrast is below 4.5, or 3 if they are large.
const CONTRAST: &str = include_str!("contrast.js");
/// The widths of the page, of the window and of the dialog, and what is outside of the window.
const WIDTHS: &str = include_str!("widths.js");

/// Starts the browser and returns it with the address of its DevTools.
fn launch(profile: &tempfile::TempDir) -> (Child, String) {
    for program in PROGRAMS {
        let started = Command::new(program)
            .args(["--headless=new", "--remote-debugging-port=0", "--no-sandbox", "--disable-gpu"])
            .args(["--no-first-run", "--disable-extensions", "--disable-dev-shm-usage"])
            .args(["--disable-background-networking", "--force-color-profile=srgb"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let Ok(mut process) = started else { continue };
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let address = lines.by_ref().find_map(|line| {
            Some(line.ok()?.strip_prefix("DevTools listening on ")?.trim().to_owned())
        });
        // its later lines are read, so that it does not block
        std::thread::spawn(move || lines.for_each(drop));
        return (process, address.expect("the browser starts"));
    }
    panic!("no Chromium: apt-get install chromium");
}
