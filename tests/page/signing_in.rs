//! Signing in and out, an empty page, and what the policy forbids.

use serde_json::json;

use crate::{DESK, Site};

#[tokio::test]
async fn only_a_token_opens_the_page() {
    let mut site = Site::open().await;
    let browser = &mut site.browser;
    browser.until("document.activeElement.id === 'token'").await;
    assert_eq!(browser.js("document.title").await, "Sign in – trunkless");
    assert_eq!(browser.js("document.querySelector('nav').hidden").await, true);
    site.look("sign-in").await;
    let browser = &mut site.browser;
    for wrong in ["not-the-token", "ein Schlüssel"] {
        browser.type_text(wrong).await;
        browser.press("Enter").await;
        browser.until("document.getElementById('sign-in-error').innerText.length > 20").await;
        browser.until("document.activeElement.id === 'token'").await;
        browser.js("document.getElementById('token').value = ''").await;
    }
    // the refusal is on the console
    let faults = browser.faults().await;
    assert!(faults.iter().all(|fault| fault.contains("401")), "{faults:?}");
    site.sign_in(DESK).await;
    let browser = &mut site.browser;
    browser.until("document.activeElement.id === 'live-title'").await;
    browser.until("!document.getElementById('live-empty').hidden").await;
    assert!(browser.text("#live-empty").await.starts_with("No live calls"));
    assert_eq!(browser.js("document.querySelector('#tiles b').innerText").await, "0");
    site.look("live-0").await;
    site.view("ended").await;
    site.browser.until("!document.getElementById('ended-empty').hidden").await;
    site.look("ended-0").await;
    site.view("health").await;
    let findings = site.browser.text("#findings").await;
    for part in ["PBX main (SIP)", "AI (ws://", "Recording", "takes calls"] {
        assert!(findings.contains(part), "{findings}");
    }
    site.look("health").await;
    // a reload keeps the token of this tab
    let url = format!("http://{}/#health", site.address);
    site.browser.js("location.reload()").await;
    site.browser.open(&url).await;
    site.browser.until("document.getElementById('link-state').innerText === 'Live'").await;
    site.browser.tab_to("#sign-out").await;
    site.browser.press("Enter").await;
    site.browser.until("document.activeElement.id === 'token'").await;
    let kept =
        site.browser.js("[sessionStorage.length, localStorage.length, document.cookie]").await;
    assert_eq!(kept, json!([0, 0, ""]));
    site.browser.has_no_faults().await;
}

#[tokio::test]
async fn landmarks_and_the_skip_link_are_there() {
    let mut site = Site::open().await;
    site.sign_in(DESK).await;
    let roles = site.browser.roles().await;
    for (role, name) in [
        ("banner", ""),
        ("navigation", "Views"),
        ("main", ""),
        ("region", "Live calls"),
        ("heading", "Live calls"),
        ("searchbox", "Filter the live calls"),
        ("list", "Totals"),
        ("status", ""),
    ] {
        let found = roles.iter().any(|(r, n)| r == role && n.starts_with(name));
        assert!(found, "{role} {name}: {roles:?}");
    }
    site.browser.js("document.activeElement.blur()").await;
    site.browser.press("Tab").await;
    site.browser.tab_to(".skip").await;
    site.browser.press("Enter").await;
    assert_eq!(site.browser.js("document.activeElement.id").await, "main");
    // the views are links
    site.browser.tab_to("nav a[href='#ended']").await;
    site.browser.press("Enter").await;
    site.browser.until("document.activeElement.id === 'ended-title'").await;
    assert_eq!(site.browser.js("document.title").await, "Last calls – trunkless");
    let current = "document.querySelector('nav [aria-current]').hash";
    assert_eq!(site.browser.js(current).await, "#ended");
    site.browser.has_no_faults().await;
}

#[tokio::test]
async fn the_policy_stops_scripts_that_are_made_of_text() {
    let mut site = Site::open().await;
    let browser = &mut site.browser;
    browser.has_no_faults().await;
    for attack in [
        "document.body.innerHTML = '<img src=x onerror=\"window.owned = 1\">'",
        "const script = document.createElement('script'); script.textContent = 'window.owned = 1';
         document.body.append(script)",
        "document.body.setAttribute('onclick', 'window.owned = 1'); document.body.click()",
        "eval('window.owned = 1')",
        "fetch('http://127.0.0.1:9/')",
    ] {
        browser.js(&format!("(() => {{ try {{ {attack} }} catch {{}} }})()")).await;
        // that a violation is noticed at all
        browser.js("new Promise((done) => setTimeout(done, 50))").await;
        assert!(!browser.faults().await.is_empty(), "{attack}");
    }
    assert_eq!(browser.js("window.owned ?? null").await, json!(null));
}
