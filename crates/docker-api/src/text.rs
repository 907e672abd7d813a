//! Docker's sentences: how long ago, in which state, which command. Scripts and people read them, so they match word for word.

use jiff::Timestamp;

/// Go's zero time, which Docker writes where something has not happened yet.
pub const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

/// Nanoseconds since the epoch as RFC 3339 with as many digits as needed; 0 is [`ZERO_TIME`].
pub fn time(ns: i64) -> String {
    match Timestamp::from_nanosecond(i128::from(ns)) {
        Ok(time) if ns != 0 => time.to_string(),
        _ => ZERO_TIME.to_string(),
    }
}

/// A span of time as a person says it: `About a minute`, `3 hours`.
pub fn human_duration(nanoseconds: i64) -> String {
    let seconds = nanoseconds / 1_000_000_000;
    let minutes = seconds / 60;
    let hours = (seconds + 1800) / 3600;
    match () {
        () if seconds < 1 => "Less than a second".into(),
        () if seconds == 1 => "1 second".into(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".into(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".into(),
        () if hours < 48 => format!("{hours} hours"),
        () if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        () if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        () if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        () => format!("{} years", seconds / 3600 / 24 / 365),
    }
}

/// What a container is doing, with the times that its sentence needs (nanoseconds since the epoch).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Created,
    Running { since: i64 },
    Paused { since: i64 },
    Restarting { code: i32, at: i64 },
    Exited { code: i32, at: i64 },
    Removing,
    Dead,
}

/// The STATUS column of `docker ps`. `health`: `starting`, `healthy` or `unhealthy`.
pub fn status(phase: Phase, health: Option<&str>, now: i64) -> String {
    let ago = |at: i64| human_duration(now.saturating_sub(at));
    match phase {
        Phase::Created => "Created".into(),
        Phase::Running { since } => match health {
            None | Some("none" | "") => format!("Up {}", ago(since)),
            Some("starting") => format!("Up {} (health: starting)", ago(since)),
            Some(health) => format!("Up {} ({health})", ago(since)),
        },
        Phase::Paused { since } => format!("Up {} (Paused)", ago(since)),
        Phase::Restarting { code, at } => format!("Restarting ({code}) {} ago", ago(at)),
        Phase::Exited { code, at } => format!("Exited ({code}) {} ago", ago(at)),
        Phase::Removing => "Removal In Progress".into(),
        Phase::Dead => "Dead".into(),
    }
}

/// The COMMAND column: path and arguments, those with a blank in them quoted.
pub fn command(argv: &[String]) -> String {
    let mut text = String::new();
    for (index, word) in argv.iter().enumerate() {
        if index > 0 {
            text.push(' ');
        }
        if index > 0 && word.contains(' ') {
            text.push('\'');
            text.push_str(word);
            text.push('\'');
        } else {
            text.push_str(word);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn durations_as_docker_says_them() {
        let cases = [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (119, "About a minute"),
            (120, "2 minutes"),
            (3599, "59 minutes"),
            (3600, "About an hour"),
            (5399, "About an hour"),
            (5400, "2 hours"),
            (47 * 3600, "47 hours"),
            (48 * 3600, "2 days"),
            (14 * 24 * 3600, "2 weeks"),
            (60 * 24 * 3600, "2 months"),
            (730 * 24 * 3600, "2 years"),
            (-5, "Less than a second"),
        ];
        for (seconds, want) in cases {
            assert_eq!(human_duration(seconds * SECOND), want, "{seconds} s");
        }
    }

    #[test]
    fn status_sentences() {
        let now = 1_000 * SECOND;
        let cases = [
            (Phase::Created, None, "Created"),
            (
                Phase::Running {
                    since: now - 300 * SECOND,
                },
                None,
                "Up 5 minutes",
            ),
            (
                Phase::Running {
                    since: now - 5 * SECOND,
                },
                Some("healthy"),
                "Up 5 seconds (healthy)",
            ),
            (
                Phase::Running { since: now },
                Some("starting"),
                "Up Less than a second (health: starting)",
            ),
            (
                Phase::Paused {
                    since: now - SECOND,
                },
                Some("healthy"),
                "Up 1 second (Paused)",
            ),
            (
                Phase::Exited {
                    code: 137,
                    at: now - 3 * SECOND,
                },
                None,
                "Exited (137) 3 seconds ago",
            ),
            (
                Phase::Restarting {
                    code: 1,
                    at: now - SECOND,
                },
                None,
                "Restarting (1) 1 second ago",
            ),
            (Phase::Removing, None, "Removal In Progress"),
            (Phase::Dead, None, "Dead"),
        ];
        for (phase, health, want) in cases {
            assert_eq!(status(phase, health, now), want);
        }
    }

    #[test]
    fn times_carry_only_the_digits_they_need() {
        assert_eq!(time(0), ZERO_TIME);
        assert_eq!(time(SECOND), "1970-01-01T00:00:01Z");
        assert_eq!(
            time(1_795_493_191_536_448_250),
            "2026-11-24T04:06:31.53644825Z"
        );
    }

    #[test]
    fn commands_quote_blanks_in_arguments() {
        let argv = ["sh", "-c", "echo a b"].map(String::from);
        assert_eq!(command(&argv), "sh -c 'echo a b'");
    }
}
