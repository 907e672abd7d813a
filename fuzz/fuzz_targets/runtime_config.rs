//! `config.json` as a stranger wrote it: reading it never panics, every refusal is one short sentence, and what was accepted
//! can be written down and read again as the same.

#![no_main]

use gantry_runtime::{document, validate};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let refused = |sentence: String| {
        assert!(!sentence.is_empty() && sentence.contains(": "), "{sentence}");
        assert!(!sentence.contains('\n'), "{sentence}");
    };
    let _ = document::process(text).map_err(refused);
    let _ = document::resources(text).map_err(refused);
    let spec = match document::spec(text) {
        Err(sentence) => return refused(sentence),
        Ok(spec) => spec,
    };
    let _ = validate::warnings(&spec);
    if let Err(sentence) = validate::bundle(&spec) {
        return refused(sentence);
    }
    if let Some(profile) = spec.linux.as_ref().and_then(|l| l.seccomp.as_ref()) {
        let _ = gantry_runtime::seccomp::compile(profile);
    }
    let written = serde_json::to_vec(&spec).expect("a specification is JSON");
    assert_eq!(document::spec(&written).as_ref(), Ok(&spec));
});
