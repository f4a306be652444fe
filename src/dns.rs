//! Looks up the addresses of names for all of trunkless, by the system's own rules (`/etc/hosts`,
//! `nsswitch.conf`). Such a lookup blocks a thread until a silent DNS server is given up, so each
//! name is looked up only once at a time, and all who ask meanwhile share the answer or use the
//! last one. A slow name delays no other. Owns threads.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use reqwest::dns::{Addrs, Name as HttpName, Resolve, Resolving};
use tokio::sync::watch;
use tokio::time::timeout_at;
use tracing::warn;

/// Names whose last answer is kept; also the most that are looked up at once.
const MAX_NAMES: usize = 256;
/// Threads that always exist, because at the limit of threads no more can be started. Others are
/// started while these are busy.
const THREADS: usize = 2;
/// How long a new answer is waited for, from the beginning of its lookup, if there is an old one.
const PATIENCE: Duration = Duration::from_millis(250);
/// How long an answer is used while there is no newer one.
const MAX_AGE: Duration = Duration::from_secs(3600);

static RESOLVER: LazyLock<Resolver> = LazyLock::new(|| Resolver::new(Box::new(system)));

/// Starts the threads.
pub fn start() {
    LazyLock::force(&RESOLVER);
}

/// Returns the addresses of a host, in the system's order. An address needs no lookup.
///
/// # Errors
/// Returns the reason as the system gives it.
pub async fn lookup(host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    RESOLVER.lookup(host, port).await
}

/// For the HTTP clients.
pub struct HttpLookup;

impl Resolve for HttpLookup {
    fn resolve(&self, name: HttpName) -> Resolving {
        Box::pin(async move {
            let found = lookup(name.as_str(), 0).await?;
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

fn system(host: &str) -> io::Result<Vec<SocketAddr>> {
    Ok((host, 0).to_socket_addrs()?.collect())
}

type Answer = Result<Vec<SocketAddr>, String>;
type Look = Box<dyn Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync>;

/// The answers for one name.
struct Name {
    /// The last addresses found, and when.
    good: Option<(Instant, Vec<SocketAddr>)>,
    pending: Option<Pending>,
    used: Instant,
    /// True if the last lookup failed.
    failing: bool,
}

/// A lookup under way.
#[derive(Clone)]
struct Pending {
    since: Instant,
    answer: watch::Receiver<Option<Answer>>,
}

#[derive(Default)]
struct State {
    names: HashMap<String, Name>,
    /// Lookups that no thread has begun.
    queue: VecDeque<(String, watch::Sender<Option<Answer>>)>,
    /// Threads that wait for a lookup.
    idle: usize,
}

struct Shared {
    state: Mutex<State>,
    queued: Condvar,
    look: Look,
}

struct Resolver(Arc<Shared>);

impl Resolver {
    fn new(look: Look) -> Resolver {
        let shared = Shared { state: Mutex::default(), queued: Condvar::new(), look };
        let resolver = Resolver(Arc::new(shared));
        for _ in 0..THREADS {
            resolver.start_thread(true);
        }
        resolver
    }

    /// Starts a thread, which ends when nothing is queued unless it `stays`. If there can be no
    /// more threads, the lookup waits for the others.
    fn start_thread(&self, stays: bool) {
        let shared = self.0.clone();
        let thread = thread::Builder::new().name("dns".to_owned());
        let _ = thread.spawn(move || shared.serve(stays));
    }

    async fn lookup(&self, host: &str, port: u16) -> Answer {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        let (mut pending, old) = self.ask(host)?;
        let patience = pending.since + PATIENCE;
        let new = async {
            let answer = pending.answer.wait_for(Option::is_some).await;
            answer.ok().and_then(|answer| answer.clone())
        };
        let found = match old {
            Some(old) => match timeout_at(patience.into(), new).await {
                Ok(Some(Ok(new))) => new,
                _ => old,
            },
            None => new.await.unwrap_or_else(|| Err("the lookup was dropped".to_owned()))?,
        };
        let with_port = |mut address: SocketAddr| {
            address.set_port(port);
            address
        };
        Ok(found.into_iter().map(with_port).collect())
    }

    /// Begins a lookup, unless one is under way. Returns it with the last answer.
    fn ask(&self, host: &str) -> Result<(Pending, Option<Vec<SocketAddr>>), String> {
        let now = Instant::now();
        let mut state = self.0.lock();
        let State { names, queue, .. } = &mut *state;
        let before = queue.len();
        if !names.contains_key(host) {
            make_room(names)?;
            let name = Name { good: None, pending: None, used: now, failing: false };
            names.insert(host.to_owned(), name);
        }
        let name = names.get_mut(host).ok_or("the lookup was dropped")?;
        name.used = now;
        let pending = name.pending.get_or_insert_with(|| {
            let (sender, answer) = watch::channel(None);
            queue.push_back((host.to_owned(), sender));
            Pending { since: now, answer }
        });
        let good = name.good.as_ref().filter(|(at, _)| now.duration_since(*at) < MAX_AGE);
        let asked = (pending.clone(), good.map(|(_, found)| found.clone()));
        if state.queue.len() > before && state.idle < state.queue.len() {
            self.start_thread(false);
        }
        drop(state);
        self.0.queued.notify_one();
        Ok(asked)
    }
}

/// Forgets the name unused for longest if there are too many.
fn make_room(names: &mut HashMap<String, Name>) -> Result<(), String> {
    if names.len() < MAX_NAMES {
        return Ok(());
    }
    let idle = names.iter().filter(|(_, name)| name.pending.is_none());
    let oldest = idle.min_by_key(|(_, name)| name.used).map(|(host, _)| host.clone());
    let oldest = oldest.ok_or("too many names are being looked up")?;
    names.remove(&oldest);
    Ok(())
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, stays: bool) {
        let mut state = self.lock();
        loop {
            if let Some((host, answer)) = state.queue.pop_front() {
                drop(state);
                self.answer(&host, &answer);
                state = self.lock();
            } else if stays {
                state.idle += 1;
                state = self.queued.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            } else {
                return;
            }
        }
    }

    fn answer(&self, host: &str, answer: &watch::Sender<Option<Answer>>) {
        let found = catch_unwind(AssertUnwindSafe(|| (self.look)(host)));
        let found = match found {
            Ok(Ok(found)) if found.is_empty() => Err("the name has no address".to_owned()),
            Ok(found) => found.map_err(|why| why.to_string()),
            Err(_) => Err("internal error".to_owned()),
        };
        let mut state = self.lock();
        if let Some(name) = state.names.get_mut(host) {
            name.pending = None;
            let failed_before = std::mem::replace(&mut name.failing, found.is_err());
            match &found {
                Ok(found) => name.good = Some((Instant::now(), found.clone())),
                Err(why) if name.good.is_some() && !failed_before => {
                    warn!(name = host, "DNS lookup failed: {why}; the last addresses are used");
                }
                Err(_) => {}
            }
        }
        drop(state);
        answer.send_replace(Some(found));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use futures_util::future::join_all;
    use tokio::time::timeout;

    use super::*;

    const IP: [u8; 4] = [192, 0, 2, 1];

    /// A resolver for which names that begin with `slow` are not answered, nor any while `down`.
    fn resolver(down: &Arc<AtomicBool>, lookups: &Arc<AtomicUsize>) -> Resolver {
        let (down, lookups) = (down.clone(), lookups.clone());
        Resolver::new(Box::new(move |host| {
            lookups.fetch_add(1, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(20));
            while host.starts_with("slow") || down.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(20));
            }
            match host {
                "absent" => Err(io::Error::other("absent")),
                _ => Ok(vec![SocketAddr::from((IP, 0))]),
            }
        }))
    }

    fn threads() -> usize {
        let all = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm"));
        all.filter_map(|task| name(task).ok()).filter(|n| n == "dns\n").count()
    }

    #[tokio::test]
    async fn a_silent_name_delays_no_other_and_holds_one_thread() {
        let (down, lookups) = (Arc::default(), Arc::default());
        let resolver = Arc::new(resolver(&down, &lookups));
        for n in 0..8 {
            for _ in 0..100 {
                let resolver = resolver.clone();
                tokio::spawn(async move { resolver.lookup(&format!("slow{n}"), 80).await });
            }
        }
        tokio::task::yield_now().await;
        for _ in 0..5 {
            let begin = Instant::now();
            assert_eq!(resolver.lookup("quick", 80).await, Ok(vec![(IP, 80).into()]));
            assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
        }
        // those of the other tests included
        assert!(threads() < 40, "{}", threads());
        assert_eq!(lookups.load(Ordering::Relaxed), 8 + 5);
        assert_eq!(resolver.lookup("absent", 80).await, Err("absent".to_owned()));
    }

    #[tokio::test]
    async fn the_last_answer_is_used_while_the_server_is_silent() {
        let (down, lookups) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let resolver = resolver(&down, &lookups);
        assert!(resolver.lookup("a", 80).await.is_ok());
        down.store(true, Ordering::Relaxed);
        assert!(resolver.lookup("a", 80).await.is_ok());
        let begin = Instant::now();
        let all = join_all((0..100).map(|_| resolver.lookup("a", 81))).await;
        assert!(all.iter().all(|found| *found == Ok(vec![(IP, 81).into()])));
        assert!(begin.elapsed() < Duration::from_millis(200), "{:?}", begin.elapsed());
        assert_eq!(lookups.load(Ordering::Relaxed), 2);
        // a name without an earlier answer waits
        let new = timeout(Duration::from_millis(100), resolver.lookup("b", 80)).await;
        assert!(new.is_err());
        down.store(false, Ordering::Relaxed);
        assert!(resolver.lookup("b", 80).await.is_ok());
    }

    #[tokio::test]
    async fn names_are_bounded() {
        let (down, lookups) = (Arc::default(), Arc::default());
        let resolver = resolver(&down, &lookups);
        for n in 0..MAX_NAMES + 10 {
            let names: &mut HashMap<String, Name> = &mut resolver.0.lock().names;
            let name = Name { good: None, pending: None, used: Instant::now(), failing: false };
            make_room(names).unwrap();
            names.insert(n.to_string(), name);
        }
        assert!(resolver.lookup("one more", 80).await.is_ok());
        assert_eq!(resolver.0.lock().names.len(), MAX_NAMES);
    }

    #[tokio::test]
    async fn an_address_needs_no_lookup() {
        let (down, lookups) = (Arc::default(), Arc::default());
        let resolver = resolver(&down, &lookups);
        let found = resolver.lookup("::1", 80).await.unwrap();
        assert!(found[0].is_ipv6() && found[0].port() == 80);
        assert_eq!(lookups.load(Ordering::Relaxed), 0);
    }
}
