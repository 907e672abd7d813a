//! `make test`: format, lints, tidy, and every test, ending in one line that counts them.

use crate::{must, root, tidy};
use anyhow::{Context, bail};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

pub(crate) fn check() -> anyhow::Result<()> {
    step("format");
    must(cargo().args(["fmt", "--all", "--check"]))?;
    step("tidy");
    tidy::run()?;
    step("lints");
    must(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ]))
}

pub(crate) fn run() -> anyhow::Result<()> {
    check()?;
    step("tests");
    let nextest = cargo()
        .args(["nextest", "--version"])
        .current_dir(root())
        .output()
        .is_ok_and(|output| output.status.success());
    let mut tests = cargo();
    if nextest {
        tests.args([
            "nextest",
            "run",
            "--workspace",
            "--locked",
            "--profile",
            "ci",
        ]);
    } else {
        println!(
            "cargo-nextest is not installed; using cargo test (`cargo install --locked cargo-nextest` brings it)"
        );
        tests.args([
            "test",
            "--workspace",
            "--locked",
            "--no-fail-fast",
            "--bins",
            "--lib",
            "--tests",
        ]);
    }
    let mut count = counted(&mut tests)?;
    step("examples in the documentation");
    count.add(&counted(cargo().args([
        "test",
        "--workspace",
        "--locked",
        "--doc",
        "--quiet",
    ]))?);
    println!(
        "\n{} passed, {} failed, {} skipped",
        count.passed, count.failed, count.skipped
    );
    if count.failed > 0 || !count.clean {
        bail!("not every test passed");
    }
    Ok(())
}

fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

fn step(name: &str) {
    println!("== {name}");
}

#[derive(Debug, Default, PartialEq)]
struct Count {
    passed: u64,
    failed: u64,
    skipped: u64,
    /// Every run ended with success.
    clean: bool,
}

impl Count {
    fn add(&mut self, other: &Count) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.clean &= other.clean;
    }
    /// Takes in one line of output, if it is a summary: nextest's or libtest's.
    fn read(&mut self, line: &str) {
        let numbers = match line
            .split_once("tests run: ")
            .or_else(|| line.split_once("test run: "))
        {
            Some((head, tail)) if head.contains("Summary") => tail,
            _ => match line.strip_prefix("test result: ") {
                Some(tail) => tail,
                None => return,
            },
        };
        let mut last = 0;
        for word in numbers.split(|c: char| !c.is_ascii_alphanumeric()) {
            if let Ok(number) = word.parse() {
                last = number;
                continue;
            }
            match word {
                "passed" => self.passed += last,
                "failed" | "out" => self.failed += last,
                "skipped" | "ignored" => self.skipped += last,
                _ => continue,
            }
            last = 0;
        }
    }
}

/// Runs a test command, shows its output as it comes, and adds up its summaries.
fn counted(command: &mut Command) -> anyhow::Result<Count> {
    // One pipe for both streams keeps their order.
    let (reader, writer) = std::io::pipe().context("making a pipe")?;
    let mut child = command
        .current_dir(root())
        .stdin(Stdio::null())
        .stdout(writer.try_clone().context("doubling the pipe")?)
        .stderr(writer)
        .spawn()
        .context("starting the tests")?;
    // The command still holds the pipe's writing ends; without them going away the reading would never end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut count = Count::default();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader
        .read_until(b'\n', &mut line)
        .context("reading the tests' output")?
        > 0
    {
        std::io::stdout()
            .write_all(&line)
            .context("showing the tests' output")?;
        count.read(&without_colours(&String::from_utf8_lossy(&line)));
        line.clear();
    }
    count.clean = child.wait().context("waiting for the tests")?.success();
    Ok(count)
}

fn without_colours(line: &str) -> String {
    let mut plain = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        plain.push_str(before);
        rest = after.split_once('m').map_or("", |(_, after)| after);
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_summary_count() {
        let mut count = Count::default();
        count.read(
            "     Summary [   0.250s] 16 tests run: 14 passed (1 slow), 2 failed, 3 skipped\n",
        );
        count.read(
            "     Summary [   0.250s] 20 tests run: 18 passed, 1 failed, 1 timed out, 0 skipped\n",
        );
        count.read("test result: ok. 5 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.1s\n");
        count.read("test some::test ... ok\n");
        assert_eq!((count.passed, count.failed, count.skipped), (37, 5, 5));
    }

    #[test]
    fn colours_do_not_hide_a_summary() {
        assert_eq!(
            without_colours("\u{1b}[32;1m Summary\u{1b}[0m x"),
            " Summary x"
        );
    }
}
