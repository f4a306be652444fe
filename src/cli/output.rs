//! The printed output of the commands. Unlike with `println!`, a reader that closes the pipe early,
//! as `head` does, causes no panic. Owns stdout and stderr.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

/// The status that shells report for a program that a closed pipe has ended (128 + SIGPIPE).
const EXIT_CLOSED: i32 = 141;

/// See [`exit_when_closed`].
static EXIT: AtomicBool = AtomicBool::new(false);

/// From now on, the program exits when nothing reads its output any more. Only for commands that
/// have nothing to clean up; without this, they finish their work quietly.
pub fn exit_when_closed() {
    EXIT.store(true, Ordering::Relaxed);
}

pub fn print(text: Arguments<'_>) {
    let mut stdout = std::io::stdout().lock();
    if let Err(error) = stdout.write_fmt(text)
        && error.kind() == ErrorKind::BrokenPipe
        && EXIT.load(Ordering::Relaxed)
    {
        std::process::exit(EXIT_CLOSED);
    }
}

pub fn print_error(text: Arguments<'_>) {
    let _ = std::io::stderr().lock().write_fmt(text);
}

/// `print!`, without the panic.
macro_rules! out {
    ($($text:tt)*) => { $crate::cli::output::print(format_args!($($text)*)) };
}

/// `println!`, without the panic.
macro_rules! outln {
    () => { $crate::cli::output::print(format_args!("\n")) };
    ($($text:tt)*) => {
        $crate::cli::output::print(format_args!("{}\n", format_args!($($text)*)))
    };
}

/// `eprintln!`, without the panic.
macro_rules! errln {
    ($($text:tt)*) => {
        $crate::cli::output::print_error(format_args!("{}\n", format_args!($($text)*)))
    };
}
