//! Values of flags: times, shares, numbers with a meaning.

use std::time::Duration;

/// Reads a share: `1%`, `0.5%`; without a sign it is percent, too.
pub fn share(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim();
    let percent = number.parse::<f64>().ok().filter(|percent| *percent > 0.0 && *percent <= 100.0);
    percent.map(|percent| percent / 100.0).ok_or_else(|| format!("`{text}` is not a share: write it like 1% or 0.5%"))
}

/// The id of a process.
pub fn pid(text: &str) -> Result<u32, String> {
    text.parse()
        .ok()
        .filter(|pid| *pid != 0)
        .ok_or_else(|| format!("`{text}` is not the id of a process: a number above 0"))
}

/// A time in which something can be seen.
pub fn lasting(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    if time.is_zero() { Err("it has to last some time".into()) } else { Ok(time) }
}

/// A time with a unit; a bare number is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits_end);
    let value: f64 =
        number.parse().map_err(|_| format!("`{text}` is not a time: write it like 30s, 500ms, 100us or 2m"))?;
    let seconds = match unit.trim() {
        "" | "s" => 1.0,
        "ms" => 1e-3,
        "us" | "µs" => 1e-6,
        "ns" => 1e-9,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        other => return Err(format!("unknown unit `{other}`: use ns, us, ms, s, m or h")),
    };
    Duration::try_from_secs_f64(value * seconds).map_err(|_| format!("`{text}` is too long a time"))
}

pub fn threshold(text: &str) -> Result<(String, f64), String> {
    let (name, value) = text.split_once('=').ok_or("write it like handles=50")?;
    let value: f64 = value.parse().map_err(|_| format!("`{value}` is not a number"))?;
    Ok((name.to_owned(), value))
}

pub fn window(text: &str) -> Result<Duration, String> {
    let window = duration(text)?;
    if window < Duration::from_millis(100) || window > Duration::from_mins(1) {
        return Err("a window lasts from 100ms to 60s".into());
    }
    Ok(window)
}

/// Two numbers of requests.
pub fn requests(text: &str) -> Result<(f64, f64), String> {
    let number = |text: &str| text.trim().parse::<f64>().ok().filter(|n| n.is_finite() && *n > 0.0);
    text.split_once(',')
        .and_then(|(before, after)| number(before).zip(number(after)))
        .ok_or_else(|| "two numbers above 0 with a comma between them, as in 12000,13500".into())
}

pub fn ring_size(text: &str) -> Result<u32, String> {
    let bytes: u32 = text.parse().map_err(|_| format!("`{text}` is not a number of bytes"))?;
    if !bytes.is_power_of_two() || bytes < 4096 {
        return Err("a power of two, at least 4096".into());
    }
    Ok(bytes)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(duration("30s").unwrap(), Duration::from_secs(30));
        assert_eq!(duration("30").unwrap(), Duration::from_secs(30));
        assert_eq!(duration("1.5ms").unwrap(), Duration::from_nanos(1_500_001) - Duration::from_nanos(1));
        assert_eq!(duration("100us").unwrap(), Duration::from_micros(100));
        assert_eq!(duration("0").unwrap(), Duration::ZERO);
        assert!(lasting("0").is_err() && lasting("1ms").is_ok());
        assert!(pid("0").is_err() && pid("-1").is_err() && pid("x").is_err() && pid("1").is_ok());
        assert!(duration("soon").unwrap_err().contains("write it like"));
        assert!(duration("3 fortnights").unwrap_err().contains("unknown unit"));
        assert!(duration("99999999999999999999h").unwrap_err().contains("too long"));
    }
}
