//! Schedules of cron jobs: five fields, or a word such as `@daily`.
//!
//! Spec: Kubernetes, "CronJob", schedule syntax; sentences as Kubernetes' parser writes them.

/// A parsed schedule: for each field the set of its numbers, as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// 0 to 59.
    pub minutes: u64,
    /// 0 to 23.
    pub hours: u64,
    /// 1 to 31.
    pub days: u64,
    /// 1 to 12.
    pub months: u64,
    /// 0 (Sunday) to 6.
    pub weekdays: u64,
    /// Whether the day of the month is unrestricted: then the weekday alone decides, and the other way round.
    pub any_day: bool,
    /// Whether the weekday is unrestricted.
    pub any_weekday: bool,
}

const MONTHS: &[&str] = &[
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const WEEKDAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

impl Schedule {
    /// Reads a schedule.
    ///
    /// # Errors
    /// What is wrong with it, as one sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("empty spec string".to_owned());
        }
        let text = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            word if word.starts_with('@') => {
                return Err(format!("unrecognized descriptor: {word}"));
            }
            other => other,
        };
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields[..] else {
            return Err(format!(
                "expected exactly 5 fields, found {}: [{}]",
                fields.len(),
                fields.join(" ")
            ));
        };
        let any = |field: &str| field.starts_with(['*', '?']);
        Ok(Self {
            minutes: set(minute, 0, 59, &[])?,
            hours: set(hour, 0, 23, &[])?,
            days: set(day, 1, 31, &[])?,
            months: set(month, 1, 12, MONTHS)?,
            weekdays: set(weekday, 0, 6, WEEKDAYS)?,
            any_day: any(day),
            any_weekday: any(weekday),
        })
    }
}

fn set(field: &str, low: u32, high: u32, names: &[&str]) -> Result<u64, String> {
    let mut bits = 0;
    for part in field.split(',').filter(|part| !part.is_empty()) {
        bits |= range(part, low, high, names)?;
    }
    Ok(bits)
}

fn range(part: &str, low: u32, high: u32, names: &[&str]) -> Result<u64, String> {
    let slashes: Vec<&str> = part.split('/').collect();
    if slashes.len() > 2 {
        return Err(format!("too many slashes: {part}"));
    }
    let ends: Vec<&str> = slashes[0].split('-').collect();
    let (start, mut end) = if matches!(ends[0], "*" | "?") {
        (low, high)
    } else {
        let start = number(ends[0], low, names)?;
        match ends.len() {
            1 => (start, start),
            2 => (start, number(ends[1], low, names)?),
            _ => return Err(format!("too many hyphens: {part}")),
        }
    };
    let mut step = 1;
    if let Some(text) = slashes.get(1) {
        step = number(text, low, &[])?;
        if ends.len() == 1 {
            end = high;
        }
    }
    if start < low {
        return Err(format!(
            "beginning of range ({start}) below minimum ({low}): {part}"
        ));
    }
    if end > high {
        return Err(format!(
            "end of range ({end}) above maximum ({high}): {part}"
        ));
    }
    if start > end {
        return Err(format!(
            "beginning of range ({start}) beyond end of range ({end}): {part}"
        ));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {part}"));
    }
    let mut bits = 0;
    let mut at = start;
    while at <= end {
        bits |= 1 << at;
        at = at.saturating_add(step);
    }
    Ok(bits)
}

fn number(text: &str, low: u32, names: &[&str]) -> Result<u32, String> {
    let lower = text.to_lowercase();
    if let Some(at) = names.iter().position(|name| *name == lower) {
        return Ok(at as u32 + low.min(1));
    }
    let number: i64 = text.parse().map_err(|_| {
        format!(
            "failed to parse int from {text}: strconv.Atoi: parsing {}: invalid syntax",
            crate::field::quoted(text)
        )
    })?;
    u32::try_from(number).map_err(|_| format!("negative number ({number}) not allowed: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_read() {
        let schedule = Schedule::parse("*/15 0-3,5 1 jan-mar sun").unwrap();
        assert_eq!(schedule.minutes, 1 | 1 << 15 | 1 << 30 | 1 << 45);
        assert_eq!(schedule.hours, 0b10_1111);
        assert_eq!(schedule.months, 0b1110);
        assert_eq!(schedule.weekdays, 1);
        assert!(!schedule.any_day && !schedule.any_weekday);
        assert!(Schedule::parse("@daily").unwrap().any_weekday);
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        for (text, sentence) in [
            ("* * *", "expected exactly 5 fields, found 3: [* * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            (
                "5-1 * * * *",
                "beginning of range (5) beyond end of range (1): 5-1",
            ),
            (
                "a * * * *",
                "failed to parse int from a: strconv.Atoi: parsing \"a\": invalid syntax",
            ),
            (
                "*/0 * * * *",
                "step of range should be a positive number: */0",
            ),
            ("1/2/3 * * * *", "too many slashes: 1/2/3"),
            ("@soon", "unrecognized descriptor: @soon"),
        ] {
            assert_eq!(Schedule::parse(text).unwrap_err(), sentence);
        }
    }
}
