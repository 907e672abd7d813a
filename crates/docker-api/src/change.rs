//! The Dockerfile instructions that `docker import --change` and `docker commit --change` take, applied to a run configuration.

use gantry_base::{Error, Result};
use gantry_oci::image::{Healthcheck, RunConfig};

/// Applies instructions, each one line such as `ENV A=b` or `CMD ["sh"]`. `InvalidArgument` names what is wrong.
pub fn apply(config: &mut RunConfig, changes: &[String]) -> Result<()> {
    for line in changes.iter().flat_map(|change| change.lines()) {
        let line = line.trim();
        if !line.is_empty() && !line.starts_with('#') {
            apply_one(config, line)?;
        }
    }
    Ok(())
}

fn apply_one(config: &mut RunConfig, line: &str) -> Result<()> {
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let (instruction, rest) = (word.to_ascii_uppercase(), rest.trim());
    if rest.is_empty() {
        return Err(Error::invalid(format!(
            "{instruction} requires at least one argument"
        )));
    }
    match instruction.as_str() {
        "CMD" => config.cmd = Some(command(rest)),
        "ENTRYPOINT" => config.entrypoint = Some(command(rest)),
        "ENV" => {
            for (name, value) in pairs(rest, &instruction)? {
                config
                    .env
                    .retain(|entry| entry.split('=').next() != Some(name.as_str()));
                config.env.push(format!("{name}={value}"));
            }
        }
        "LABEL" => config.labels.extend(pairs(rest, &instruction)?),
        "EXPOSE" => {
            for word in rest.split_whitespace() {
                let range = crate::ports::parse(word)?;
                for port in range.first..=range.last {
                    config
                        .exposed_ports
                        .insert(format!("{port}/{}", range.protocol), serde_json::json!({}));
                }
            }
        }
        "VOLUME" => {
            let folders =
                list(rest).unwrap_or_else(|| rest.split_whitespace().map(String::from).collect());
            config.volumes.extend(
                folders
                    .into_iter()
                    .map(|folder| (folder, serde_json::json!({}))),
            );
        }
        "USER" => config.user = unquoted(rest),
        "WORKDIR" => {
            let folder = unquoted(rest);
            config.working_dir = if folder.starts_with('/') {
                folder
            } else {
                format!("{}/{folder}", config.working_dir.trim_end_matches('/'))
            };
        }
        "STOPSIGNAL" => config.stop_signal = Some(unquoted(rest)),
        "SHELL" => {
            let words = list(rest)
                .ok_or_else(|| Error::invalid("SHELL requires the arguments to be in JSON form"))?;
            config.shell = Some(words);
        }
        "ONBUILD" => config
            .on_build
            .get_or_insert_default()
            .push(rest.to_string()),
        "HEALTHCHECK" => config.healthcheck = Some(healthcheck(rest)?),
        _ => {
            return Err(Error::invalid(format!(
                "{instruction} is not a valid change command"
            )));
        }
    }
    Ok(())
}

/// JSON list, or a line for the shell.
fn command(rest: &str) -> Vec<String> {
    list(rest).unwrap_or_else(|| vec!["/bin/sh".into(), "-c".into(), rest.into()])
}

fn list(rest: &str) -> Option<Vec<String>> {
    serde_json::from_str(rest).ok()
}

/// `a=b c="d e"`, or the old `a rest of the line` with one name.
fn pairs(rest: &str, instruction: &str) -> Result<Vec<(String, String)>> {
    let words = words(rest);
    let first = words.first().map_or("", String::as_str);
    if !first.contains('=') {
        let (name, value) = rest
            .split_once(char::is_whitespace)
            .ok_or_else(|| Error::invalid(format!("{instruction} must have two arguments")))?;
        return Ok(vec![(name.to_string(), unquoted(value.trim()))]);
    }
    let pair = |word: &String| match word.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_string(), value.to_string())),
        _ => Err(Error::invalid(format!(
            "Syntax error - can't find = in {word:?}. Must be of the form: name=value"
        ))),
    };
    words.iter().map(pair).collect()
}

/// Splits at blanks outside quotes and takes quotes and backslashes away.
fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut inside, mut begun) = (Vec::new(), String::new(), None, false);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, inside) {
            ('\\', None | Some('"')) => {
                word.extend(chars.next());
                begun = true;
            }
            ('"' | '\'', None) => {
                inside = Some(c);
                begun = true;
            }
            (c, Some(quote)) if c == quote => inside = None,
            (c, None) if c.is_whitespace() => {
                if std::mem::take(&mut begun) {
                    words.push(std::mem::take(&mut word));
                }
            }
            (c, _) => {
                word.push(c);
                begun = true;
            }
        }
    }
    if begun {
        words.push(word);
    }
    words
}

fn unquoted(text: &str) -> String {
    words(text).join(" ")
}

fn healthcheck(rest: &str) -> Result<Healthcheck> {
    let mut check = Healthcheck::default();
    let mut rest = rest;
    while let Some(flag) = rest.strip_prefix("--") {
        let (option, after) = flag.split_once(char::is_whitespace).unwrap_or((flag, ""));
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        let span = || {
            crate::query::duration(value)
                .ok_or_else(|| Error::invalid(format!("invalid duration {value:?} in HEALTHCHECK")))
        };
        match name {
            "interval" => check.interval = span()?,
            "timeout" => check.timeout = span()?,
            "start-period" => check.start_period = span()?,
            "start-interval" => check.start_interval = span()?,
            "retries" => {
                check.retries = value.parse().map_err(|_| {
                    Error::invalid(format!("invalid retries {value:?} in HEALTHCHECK"))
                })?;
            }
            _ => return Err(Error::invalid(format!("Unknown flag: {name}"))),
        }
        rest = after.trim_start();
    }
    let (word, command) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    check.test = match (word.to_ascii_uppercase().as_str(), command.trim()) {
        ("NONE", "") => vec!["NONE".into()],
        ("CMD", command) if !command.is_empty() => match list(command) {
            Some(words) => std::iter::once("CMD".to_string()).chain(words).collect(),
            None => vec!["CMD-SHELL".into(), command.into()],
        },
        (word, _) => {
            return Err(Error::invalid(format!(
                "Unknown type {word:?} in HEALTHCHECK (try CMD)"
            )));
        }
    };
    Ok(check)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(lines: &[&str]) -> Result<serde_json::Value> {
        let mut config = RunConfig::default();
        let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
        apply(&mut config, &lines)?;
        Ok(serde_json::to_value(config).unwrap())
    }

    #[test]
    fn instructions_become_configuration() {
        let cases: [(&[&str], serde_json::Value); 9] = [
            (
                &["ENV PATH=/bin A=\"b c\"", "env A d e"],
                serde_json::json!({"Env": ["PATH=/bin", "A=d e"]}),
            ),
            (
                &[r#"CMD ["/bin/sh"]"#],
                serde_json::json!({"Cmd": ["/bin/sh"]}),
            ),
            (
                &["ENTRYPOINT exec top"],
                serde_json::json!({"Entrypoint": ["/bin/sh", "-c", "exec top"]}),
            ),
            (
                &["EXPOSE 80 53/udp"],
                serde_json::json!({"ExposedPorts": {"53/udp": {}, "80/tcp": {}}}),
            ),
            (
                &["VOLUME /a /b", r#"VOLUME ["/c"]"#],
                serde_json::json!({"Volumes": {"/a": {}, "/b": {}, "/c": {}}}),
            ),
            (
                &["LABEL a=b 'c d'=e"],
                serde_json::json!({"Labels": {"a": "b", "c d": "e"}}),
            ),
            (
                &["WORKDIR /a", "WORKDIR b", "USER app"],
                serde_json::json!({"User": "app", "WorkingDir": "/a/b"}),
            ),
            (
                &["STOPSIGNAL SIGINT", "ONBUILD RUN x"],
                serde_json::json!({"StopSignal": "SIGINT", "OnBuild": ["RUN x"]}),
            ),
            (&["# nothing", ""], serde_json::json!({})),
        ];
        for (lines, want) in cases {
            assert_eq!(changed(lines).unwrap(), want, "{lines:?}");
        }
        let check = changed(&["HEALTHCHECK --interval=5s --retries=3 CMD curl -f x"]).unwrap();
        assert_eq!(
            check["Healthcheck"]["Test"],
            serde_json::json!(["CMD-SHELL", "curl -f x"])
        );
        assert_eq!(check["Healthcheck"]["Interval"], 5_000_000_000i64);
    }

    #[test]
    fn refusals() {
        for (line, want) in [
            ("RUN x", "RUN is not a valid change command"),
            ("CMD", "CMD requires at least one argument"),
            ("ENV a", "ENV must have two arguments"),
            ("EXPOSE x", "invalid containerPort: x"),
            (
                "HEALTHCHECK x",
                "Unknown type \"X\" in HEALTHCHECK (try CMD)",
            ),
        ] {
            assert_eq!(changed(&[line]).unwrap_err().message(), want);
        }
    }
}
