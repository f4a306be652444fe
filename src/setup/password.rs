//! New passwords for the PBX, from random bytes.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

/// Length of a password. In old versions, VICIdial's fields for them had room for 20 characters.
const LENGTH: usize = 20;
/// Letters and digits that are not mistaken for each other. Asterisk's files, FreePBX's and
/// VICIdial's pages and its API take them unchanged, unlike `;`, `#`, `&` and others.
const CHARACTERS: &[u8] = b"abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789";

/// Makes a password of about 116 bits from random bytes, which `fill` provides. It has small and
/// capital letters and digits.
///
/// # Errors
/// Returns the error of `fill`.
pub fn password<E>(mut fill: impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<String, E> {
    // the largest multiple of the number of characters, so that each is equally likely
    let fair = 256 - 256 % CHARACTERS.len();
    loop {
        let mut password = String::new();
        while password.len() < LENGTH {
            let mut bytes = [0; 64];
            fill(&mut bytes)?;
            let fair = bytes.iter().map(|b| usize::from(*b)).filter(|b| *b < fair);
            let characters = fair.map(|b| char::from(CHARACTERS[b % CHARACTERS.len()]));
            password.extend(characters.take(LENGTH - password.len()));
        }
        if is_mixed(&password) {
            return Ok(password);
        }
    }
}

fn is_mixed(password: &str) -> bool {
    let has = |is: fn(&u8) -> bool| password.bytes().any(|b| is(&b));
    has(u8::is_ascii_lowercase) && has(u8::is_ascii_uppercase) && has(u8::is_ascii_digit)
}

/// Checks a password that was chosen elsewhere: the files for the PBX must be able to hold it.
///
/// # Errors
/// Returns the reason.
pub fn check(password: &str) -> Result<(), &'static str> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-.+/=_".contains(c);
    if password.len() < 8 {
        return Err("is shorter than 8 characters");
    }
    if !password.chars().all(good) {
        return Err("has characters that Asterisk's files or VICIdial would change; use letters, \
                    digits, and - . + / = _");
    }
    let plain: String = password.chars().filter(char::is_ascii_alphanumeric).collect();
    match plain.eq_ignore_ascii_case("changeme") {
        true => Err("is the placeholder of the samples"),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_long_mixed_and_different() {
        let mut seed = 7_u64;
        let mut next = || {
            password(|bytes: &mut [u8]| {
                for byte in bytes {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    *byte = (seed >> 33) as u8;
                }
                Ok::<(), ()>(())
            })
            .unwrap()
        };
        let all: std::collections::BTreeSet<String> = (0..500).map(|_| next()).collect();
        assert_eq!(all.len(), 500);
        for password in &all {
            assert_eq!(password.len(), LENGTH);
            assert!(is_mixed(password) && check(password).is_ok(), "{password}");
        }
        let used: std::collections::BTreeSet<char> = all.iter().flat_map(|p| p.chars()).collect();
        assert_eq!(used.len(), CHARACTERS.len(), "every character occurs");
        assert_eq!(password(|_| Err("no random bytes")), Err("no random bytes"));
    }

    #[test]
    fn passwords_that_the_pbx_would_change_are_refused() {
        assert_eq!(check("Bridge-secret_1"), Ok(()));
        for bad in ["short", "with;semicolon", "with space1", "CHANGE-ME", "change-me"] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
