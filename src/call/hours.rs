//! The hours of a week in which a route applies, in the local time of a zone. Daylight saving
//! time follows the zone's rules: an hour that the clock skips matches nothing, and one that it
//! repeats matches twice.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ZonedDateTime};

const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const DAY_MINUTES: u16 = 24 * 60;

/// An IANA time zone, such as `Europe/Berlin`.
#[derive(Debug, Clone, PartialEq)]
pub struct Zone(TimeZone);

impl FromStr for Zone {
    type Err = String;

    fn from_str(name: &str) -> Result<Zone, String> {
        TimeZone::get(name).map(Zone).map_err(|_| {
            format!("\"{name}\" is not a time zone; write a name such as \"Europe/Berlin\" or UTC")
        })
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.iana_name().unwrap_or("UTC"))
    }
}

/// A moment on the wall clock of a zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Local {
    /// 0 is Monday.
    day: u8,
    minute: u16,
}

impl Local {
    /// `now`: time since 1970.
    pub fn at(now: Duration, zone: &Zone) -> Local {
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let moment = Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX);
        let clock = zone.0.to_datetime(moment);
        let day = clock.weekday().to_monday_zero_offset() as u8;
        let minute = clock.hour() as u16 * 60 + clock.minute() as u16;
        Local { day, minute }
    }
}

impl fmt::Display for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let day = DAYS.get(usize::from(self.day)).copied().unwrap_or_default();
        write!(f, "{day} {:02}:{:02}", self.minute / 60, self.minute % 60)
    }
}

/// `Mon-Fri 09:00-17:30`, `Sat,Sun`, or `22:00-06:00`, which belongs to the day on which it begins.
/// The end does not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hours {
    /// From Monday.
    days: [bool; 7],
    /// Minutes of the day.
    from: u16,
    to: u16,
    text: String,
}

impl Hours {
    pub fn contains(&self, local: Local) -> bool {
        let on = |day: u8| self.days[usize::from(day) % 7];
        match self.from < self.to {
            true => on(local.day) && (self.from..self.to).contains(&local.minute),
            false => {
                (on(local.day) && local.minute >= self.from)
                    || (on(local.day + 6) && local.minute < self.to)
            }
        }
    }
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Hours {
    type Err = String;

    fn from_str(text: &str) -> Result<Hours, String> {
        let error = || {
            format!(
                "\"{text}\" is not a time of the week: write \"Mon-Fri 09:00-17:30\", \"Sat,Sun\" \
                 or \"22:00-06:00\""
            )
        };
        let parts: Vec<&str> = text.split_whitespace().collect();
        let is_time = |part: &str| part.contains(':');
        let (days, time) = match parts[..] {
            [time] if is_time(time) => (None, Some(time)),
            [days] => (Some(days), None),
            [days, time] if is_time(time) => (Some(days), Some(time)),
            _ => return Err(error()),
        };
        let days = days.map_or(Some([true; 7]), days_of).ok_or_else(error)?;
        let (from, to) = time.map_or(Some((0, DAY_MINUTES)), span_of).ok_or_else(error)?;
        Ok(Hours { days, from, to, text: parts.join(" ") })
    }
}

/// Reads `Mon-Fri,Sun`.
fn days_of(text: &str) -> Option<[bool; 7]> {
    let index = |name: &str| DAYS.iter().position(|day| day.eq_ignore_ascii_case(name));
    let mut days = [false; 7];
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (mut day, last) = (index(first)?, index(last)?);
        days[day] = true;
        while day != last {
            day = (day + 1) % 7;
            days[day] = true;
        }
    }
    Some(days)
}

/// Reads `09:00-17:30`.
fn span_of(text: &str) -> Option<(u16, u16)> {
    let minute = |text: &str| {
        let (hour, minute) = text.split_once(':')?;
        let digits = |text: &str| text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
        let good = digits(hour) && digits(minute);
        let (hour, minute): (u16, u16) = (hour.parse().ok()?, minute.parse().ok()?);
        let total = hour * 60 + minute;
        (good && minute < 60 && total <= DAY_MINUTES).then_some(total)
    };
    let (from, to) = text.split_once('-')?;
    let (from, to) = (minute(from)?, minute(to)?);
    (from != to && from < DAY_MINUTES && to > 0).then_some((from, to))
}

/// Reads a date and time, as time since 1970: `2026-11-30T09:00+01:00`, or local time in `zone`.
///
/// # Errors
/// Returns what is wrong with the text.
pub fn moment(text: &str, zone: Option<&Zone>) -> Result<Duration, String> {
    let written = "write 2026-11-30T09:00, with Z, +01:00 or [Europe/Berlin] behind it if it is \
                   not local time";
    let error = || format!("\"{text}\" is not a date and time; {written}");
    let spaced = text.replacen(' ', "T", 1);
    let timestamp = match (spaced.parse::<Timestamp>(), spaced.parse::<ZonedDateTime>()) {
        (Ok(moment), _) => moment,
        (_, Ok(zoned)) => zoned.timestamp(),
        _ => {
            let clock: DateTime = spaced.parse().map_err(|_| error())?;
            let zone = zone.map_or(TimeZone::UTC, |zone| zone.0.clone());
            zone.to_timestamp(clock).map_err(|_| error())?
        }
    };
    u64::try_from(timestamp.as_second()).map(Duration::from_secs).map_err(|_| error())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn berlin() -> Zone {
        "Europe/Berlin".parse().unwrap()
    }

    fn within(hours: &str, at: &str) -> bool {
        let hours: Hours = hours.parse().unwrap();
        hours.contains(Local::at(moment(at, Some(&berlin())).unwrap(), &berlin()))
    }

    #[test]
    fn hours_are_those_of_the_zone() {
        // 2026-11-30 is a Monday
        for (hours, inside, outside) in [
            ("Mon-Fri 09:00-17:30", "2026-11-30T09:00", "2026-11-30T17:30"),
            ("Mon-Fri 09:00-17:30", "2026-11-30T16:29:59Z", "2026-11-30T16:30Z"),
            ("mon-fri  09:00-17:30", "2026-12-04T17:29", "2026-12-05T10:00"),
            ("Sat,Sun", "2026-12-05T00:00", "2026-12-07T00:00"),
            ("Sat-Mon", "2026-11-30T23:59", "2026-12-01T00:00"),
            ("22:00-06:00", "2026-11-30T05:59", "2026-11-30T06:00"),
            // it begins on Friday and ends on Saturday
            ("Fri 22:00-06:00", "2026-12-05T05:00", "2026-12-04T05:00"),
            ("Sun 22:00-06:00", "2026-11-30T05:00", "2026-12-01T05:00"),
            ("12:00-24:00", "2026-11-30T23:59", "2026-11-30T11:59"),
            ("Mon 20:00-00:30", "2026-12-01T00:15", "2026-12-02T00:15"),
        ] {
            assert!(within(hours, inside), "{hours} {inside}");
            assert!(!within(hours, outside), "{hours} {outside}");
        }
    }

    #[test]
    fn summer_time_moves_the_hours() {
        // 09:00 in Berlin is 08:00 UTC in winter and 07:00 UTC in summer
        for (inside, outside) in [
            ("2026-03-27T08:00Z", "2026-03-27T07:59Z"),
            ("2026-03-30T07:00Z", "2026-03-30T06:59Z"),
            ("2026-10-23T07:00Z", "2026-10-23T06:59Z"),
            ("2026-10-26T08:00Z", "2026-10-26T07:59Z"),
        ] {
            assert!(within("Mon-Fri 09:00-17:00", inside), "{inside}");
            assert!(!within("Mon-Fri 09:00-17:00", outside), "{outside}");
        }
        // the night of 25 October has 02:30 twice, and that of 29 March has none
        assert!(within("02:00-03:00", "2026-10-25T00:30Z"));
        assert!(within("02:00-03:00", "2026-10-25T01:30Z"));
        assert!(!within("02:00-03:00", "2026-03-29T00:59Z"));
        assert!(!within("02:00-03:00", "2026-03-29T01:00Z"));
    }

    #[test]
    fn mistakes_are_refused() {
        for bad in [
            "",
            "Mon-",
            "Monday",
            "Mon 9:00-17:00",
            "09:00-09:00",
            "09:00",
            "25:00-26:00",
            "09:60-10:00",
            "24:00-08:00",
            "Mon 09:00-10:00 x",
            "09:00-10:00 Mon",
            "22:00-00:00x",
            "+9:00-10:00",
        ] {
            assert!(bad.parse::<Hours>().is_err(), "{bad}");
        }
        assert!("Mars/Base".parse::<Zone>().is_err() && "Berlin".parse::<Zone>().is_err());
        for bad in ["", "09:00", "2026-13-01T09:00", "1969-01-01T00:00Z"] {
            assert!(moment(bad, None).is_err(), "{bad}");
        }
    }

    #[test]
    fn moments_have_several_forms() {
        let utc = moment("2026-11-30T08:00Z", None).unwrap();
        for same in [
            "2026-11-30T09:00+01:00",
            "2026-11-30T09:00[Europe/Berlin]",
            "2026-11-30T09:00",
            "2026-11-30 09:00",
        ] {
            assert_eq!(moment(same, Some(&berlin())), Ok(utc), "{same}");
        }
        assert_eq!(Local::at(utc, &berlin()).to_string(), "Mon 09:00");
    }
}
