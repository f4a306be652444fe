//! Questions on the terminal, each with its default in brackets. Without a terminal a default is
//! taken, and what has none is a mistake that names the flag. Owns stdin.

use std::io::{BufRead as _, IsTerminal as _, stdin};

use crate::cli::output::print_error;

/// One answer that init needs.
pub struct Question<'a> {
    pub flag: &'a str,
    pub text: &'a str,
}

pub struct Questions {
    /// Ask, rather than take the defaults.
    asks: bool,
    /// The flags that are missing or wrong, each with the reason.
    pub mistakes: Vec<String>,
}

impl Questions {
    pub fn new() -> Questions {
        Questions { asks: stdin().is_terminal(), mistakes: Vec::new() }
    }

    /// Returns the answer of the flag, of the person at the terminal, or the default.
    pub fn decide<T>(
        &mut self,
        question: &Question<'_>,
        given: Option<&str>,
        default: Option<&str>,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let Question { flag, text } = question;
        if given.is_some() || !self.asks {
            let Some(answer) = given.or(default) else {
                self.mistakes.push(format!("{flag} is missing: {text}"));
                return None;
            };
            let answer = read(answer).map_err(|why| format!("{flag}: {why}"));
            return answer.map_err(|why| self.mistakes.push(why)).ok();
        }
        loop {
            let default_text = default.map_or(String::new(), |default| format!(" [{default}]"));
            print_error(format_args!("{text}{default_text}: "));
            let Some(line) = self.line() else {
                self.mistakes.push(format!("{flag} is missing: the input ended"));
                return None;
            };
            let answer = if line.is_empty() { default.unwrap_or("") } else { &line };
            if answer.is_empty() {
                errln!("An answer is needed here.");
                continue;
            }
            match read(answer) {
                Ok(answer) => return Some(answer),
                Err(why) => errln!("{why}."),
            }
        }
    }

    /// Asks for consent; `None` without a terminal.
    pub fn consent(&mut self, text: &str) -> Option<bool> {
        if !self.asks {
            return None;
        }
        print_error(format_args!("{text} [no]: "));
        let line = self.line().unwrap_or_default().to_ascii_lowercase();
        Some(line == "y" || line == "yes")
    }

    /// Reads a line; `None` at the end of the input, after which nothing more is asked.
    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        match stdin().lock().read_line(&mut line) {
            Ok(length) if length > 0 => Some(line.trim().to_owned()),
            _ => {
                self.asks = false;
                None
            }
        }
    }
}
