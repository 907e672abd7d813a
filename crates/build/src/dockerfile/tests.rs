use super::*;
use proptest::prelude::*;

fn fault(text: &str) -> (usize, String) {
    let fault = parse_faults(text.as_bytes()).expect_err(text);
    (fault.line, fault.message)
}

/// Each mistake with its line, in BuildKit's words where it has some.
#[test]
fn mistakes_are_named() {
    for (text, line, want) in [
        ("", 0, "file with no instructions"),
        ("# only a comment\n", 0, "file with no instructions"),
        (
            "FROM a\nRUM x",
            2,
            "unknown instruction: RUM (did you mean RUN?)",
        ),
        ("FROM a\n\n# c\nXYZZY", 4, "unknown instruction: XYZZY"),
        ("RUN x", 1, "no build stage in current context"),
        ("FROM", 1, "FROM requires either one or three arguments"),
        ("FROM a b", 1, "FROM requires either one or three arguments"),
        (
            "FROM a AS 1x",
            1,
            "invalid name for build stage: \"1x\", name can't start with a number or contain symbols",
        ),
        (
            "FROM a\nCOPY x",
            2,
            "COPY requires at least two arguments, but only one was provided. Destination could not be determined.",
        ),
        ("FROM a\nENV x", 2, "ENV must have two arguments"),
        (
            "FROM a\nENV a=b c",
            2,
            "Syntax error - can't find = in \"c\". Must be of the form: name=value",
        ),
        ("FROM a\nENV =b", 2, "ENV names can not be blank"),
        (
            "FROM a\nRUN --mont=x y",
            2,
            "unknown flag: --mont (did you mean mount?)",
        ),
        (
            "FROM a\nCOPY --from=a --from=b x y",
            2,
            "duplicate flag specified: --from",
        ),
        (
            "FROM a\nCOPY --chown x y",
            2,
            "missing a value on flag: --chown",
        ),
        (
            "FROM a\nCOPY --link=maybe x y",
            2,
            "expecting boolean value for flag --link, not: maybe",
        ),
        (
            "FROM a\nSHELL sh",
            2,
            "SHELL requires the arguments to be in JSON form",
        ),
        (
            "FROM a\nONBUILD ONBUILD RUN x",
            2,
            "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed",
        ),
        (
            "FROM a\nONBUILD FROM b",
            2,
            "FROM isn't allowed as an ONBUILD trigger",
        ),
        (
            "FROM a\nHEALTHCHECK x",
            2,
            "Unknown type \"X\" in HEALTHCHECK (try CMD)",
        ),
        (
            "FROM a\nHEALTHCHECK --interval=1us CMD x",
            2,
            "Interval \"interval\" cannot be less than 1ms",
        ),
        (
            "FROM a\nHEALTHCHECK NONE x",
            2,
            "HEALTHCHECK NONE takes no arguments",
        ),
        ("FROM a\nCMD", 2, "CMD requires at least one argument"),
        (
            "FROM a\nWORKDIR",
            2,
            "WORKDIR requires exactly one argument",
        ),
        (
            "FROM a\nCMD [1]",
            2,
            "When using JSON array syntax, arrays must be comprised of strings only.",
        ),
        (
            "FROM a\nRUN --mount=type=x y",
            2,
            "unsupported mount type \"x\": it is bind, cache, tmpfs, secret or ssh",
        ),
        (
            "FROM a\nRUN --mount=type=cache y",
            2,
            "invalid mount: target required",
        ),
        (
            "FROM a\nRUN --mount=target=/a,what=b y",
            2,
            "unexpected key 'what' in 'what=b'",
        ),
        (
            "FROM a\nRUN <<EOF\nx\n",
            2,
            "unterminated heredoc: no line is \"EOF\" alone",
        ),
        (
            "# escape=x\nFROM a",
            1,
            "invalid escape token 'x' does not match ` or \\",
        ),
        (
            "# escape=`\n# escape=`\nFROM a",
            2,
            "only one escape parser directive can be used",
        ),
    ] {
        assert_eq!(fault(text), (line, want.to_owned()), "{text:?}");
    }
}

#[test]
fn lines_join_comments_vanish_and_the_escape_can_change() {
    let file = parse_faults(
        b"\xef\xbb\xbf# escape=`\nFROM a\nRUN one `\n  # not part of it\n\n  two\nRUN C:\\dir\\\n",
    )
    .unwrap();
    let commands: Vec<_> = file.stages[0]
        .steps
        .iter()
        .map(|step| (step.line, step.original.as_str()))
        .collect();
    assert_eq!(commands, [(3, "RUN one   two"), (7, "RUN C:\\dir\\")]);
    let file = parse_faults(b"FROM a\nRUN x\\\\\nRUN y").unwrap();
    assert_eq!(
        file.stages[0].steps.len(),
        2,
        "a doubled escape does not continue the line"
    );
}

#[test]
fn stages_flags_and_forms() {
    let text = "ARG V=1\nFROM --platform=linux/amd64 base:$V AS Build\nCOPY --from=0 --chown=a:b --exclude=x --exclude=y [\"a b\", \"/c d/\"]\n\
                CMD [\"x\", \"y z\"]\nENTRYPOINT run it\nENV A=1 B=\"2 3\"\nENV C d e\nLABEL x='y z'\nARG Q R=s\n";
    let file = parse_faults(text.as_bytes()).unwrap();
    assert_eq!(file.meta.len(), 1);
    let stage = &file.stages[0];
    assert_eq!(
        (
            stage.base.as_str(),
            stage.name.as_deref(),
            stage.platform.as_deref()
        ),
        ("base:$V", Some("build"), Some("linux/amd64"))
    );
    let kinds: Vec<&Instruction> = stage.steps.iter().map(|step| &step.instruction).collect();
    let Instruction::Copy(copy) = kinds[0] else {
        panic!("{kinds:?}")
    };
    assert_eq!(
        (&copy.sources[..], copy.destination.as_str()),
        (&["a b".to_owned()][..], "/c d/")
    );
    assert_eq!(copy.exclude, ["x", "y"]);
    assert_eq!(
        *kinds[1],
        Instruction::Cmd(Command::Exec(vec!["x".into(), "y z".into()]))
    );
    assert_eq!(
        *kinds[2],
        Instruction::Entrypoint(Command::Shell("run it".into()))
    );
    assert_eq!(
        *kinds[3],
        Instruction::Env(vec![
            ("A".into(), "1".into()),
            ("B".into(), "\"2 3\"".into())
        ])
    );
    assert_eq!(
        *kinds[4],
        Instruction::Env(vec![("C".into(), "d e".into())])
    );
    assert_eq!(
        *kinds[6],
        Instruction::Arg(vec![("Q".into(), None), ("R".into(), Some("s".into()))])
    );
}

#[test]
fn heredocs_belong_to_their_instruction() {
    let text =
        "FROM a\nCOPY <<one <<-'two' /d/\n$A\none\n\tb\n\ttwo\nRUN cat <<EOF\nx\nEOF\nRUN <<<no\n";
    let file = parse_faults(text.as_bytes()).unwrap();
    let Instruction::Copy(copy) = &file.stages[0].steps[0].instruction else {
        panic!()
    };
    assert!(copy.sources.is_empty());
    let heredocs: Vec<_> = copy
        .heredocs
        .iter()
        .map(|h| (h.name.as_str(), h.expand, h.text()))
        .collect();
    assert_eq!(
        heredocs,
        [
            ("one", true, "$A\n".to_owned()),
            ("two", false, "b\n".to_owned())
        ]
    );
    let Instruction::Run(run) = &file.stages[0].steps[1].instruction else {
        panic!()
    };
    assert_eq!(run.heredocs[0].content, "x\n");
    let Instruction::Run(run) = &file.stages[0].steps[2].instruction else {
        panic!()
    };
    assert!(run.heredocs.is_empty());
}

proptest! {
    /// Whatever bytes come: an answer, no panic.
    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse_faults(&bytes);
    }
    #[test]
    fn any_lines(lines in prop::collection::vec("(FROM|RUN|COPY|ENV|ARG|ONBUILD|HEALTHCHECK|ADD) [-a-z=$\\{\\}:<\"'\\\\ ,\\[\\]]{0,40}", 0..8)) {
        let _ = parse_faults(lines.join("\n").as_bytes());
    }
    #[test]
    fn any_word(text in "[-a-z$\\{\\}:#%/<\"'\\\\ ?+*]{0,60}") {
        let _ = shell::word(&text, '\\', &|name: &str| (name.len() < 3).then(|| "value".to_owned()));
        let _ = shell::raw(&text, '\\', &|_: &str| None);
    }
}
