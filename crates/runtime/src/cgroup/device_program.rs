//! Device rules as the kernel's bytecode, for v2 (`BPF_PROG_TYPE_CGROUP_DEVICE`). Pure.
//!
//! The program gets `{ u32 access_type; u32 major; u32 minor }` where `access_type` is `access << 16 | type`
//! (access: 1 mknod, 2 read, 4 write; type: 1 block, 2 character). Returning 1 allows. Rules are looked at from the last to the
//! first, so that the last word counts, and what none of them speaks about is denied.

use gantry_oci::runtime::DeviceRule;

const fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    (immediate as u32 as u64) << 32
        | (offset as u16 as u64) << 16
        | (source as u64) << 12
        | (destination as u64) << 8
        | code as u64
}

const LOAD_WORD: u8 = 0x61;
const MOVE_32: u8 = 0xbc;
const MOVE_64_IMMEDIATE: u8 = 0xb7;
const AND_32_IMMEDIATE: u8 = 0x54;
const RIGHT_SHIFT_32_IMMEDIATE: u8 = 0x74;
const JUMP_NOT_EQUAL_IMMEDIATE: u8 = 0x55;
const JUMP_EQUAL_IMMEDIATE: u8 = 0x15;
const EXIT: u8 = 0x95;

const TYPE: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 1;

pub(super) fn build(rules: &[DeviceRule]) -> Vec<u64> {
    let mut program = vec![
        instruction(LOAD_WORD, TYPE, 1, 0, 0),
        instruction(AND_32_IMMEDIATE, TYPE, 0, 0, 0xffff),
        instruction(LOAD_WORD, ACCESS, 1, 0, 0),
        instruction(RIGHT_SHIFT_32_IMMEDIATE, ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, 1, 4, 0),
        instruction(LOAD_WORD, MINOR, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let block = block(rule);
        // A rule about everything; the verifier refuses instructions that nothing reaches.
        let last_word = block.len() == VERDICT;
        program.extend(block);
        if last_word {
            return program;
        }
    }
    program.push(instruction(MOVE_64_IMMEDIATE, 0, 0, 0, 0));
    program.push(instruction(EXIT, 0, 0, 0, 0));
    program
}

/// The verdict and its exit, jumped over when a test fails.
const VERDICT: usize = 2;

/// Returns the rule's verdict when it speaks about this access, else falls through.
fn block(rule: &DeviceRule) -> Vec<u64> {
    let mut tests: Vec<(u8, u8, i32)> = Vec::new();
    let mut body = Vec::new();
    match rule.kind.as_str() {
        "b" => tests.push((JUMP_NOT_EQUAL_IMMEDIATE, TYPE, 1)),
        "c" | "u" => tests.push((JUMP_NOT_EQUAL_IMMEDIATE, TYPE, 2)),
        _ => {}
    }
    for (register, number) in [(MAJOR, rule.major), (MINOR, rule.minor)] {
        if let Some(number) = number.filter(|n| *n >= 0) {
            tests.push((JUMP_NOT_EQUAL_IMMEDIATE, register, number as i32));
        }
    }
    let access = rule.access.bytes().fold(0, |bits, letter| {
        bits | match letter {
            b'm' => 1,
            b'r' => 2,
            b'w' => 4,
            _ => 0,
        }
    });
    let access_test = if access == 0 || access == 7 { 0 } else { 3 };
    let total = tests.len();
    for (index, (code, register, value)) in tests.into_iter().enumerate() {
        let skip = total - index - 1 + access_test + VERDICT;
        body.push(instruction(code, register, 0, skip as i16, value));
    }
    if access_test > 0 {
        body.push(instruction(MOVE_32, SCRATCH, ACCESS, 0, 0));
        if rule.allow {
            // Allowed only when nothing beyond the rule is asked for.
            body.push(instruction(AND_32_IMMEDIATE, SCRATCH, 0, 0, 7 & !access));
            body.push(instruction(
                JUMP_NOT_EQUAL_IMMEDIATE,
                SCRATCH,
                0,
                VERDICT as i16,
                0,
            ));
        } else {
            body.push(instruction(AND_32_IMMEDIATE, SCRATCH, 0, 0, access));
            body.push(instruction(
                JUMP_EQUAL_IMMEDIATE,
                SCRATCH,
                0,
                VERDICT as i16,
                0,
            ));
        }
    }
    body.push(instruction(
        MOVE_64_IMMEDIATE,
        0,
        0,
        0,
        i32::from(rule.allow),
    ));
    body.push(instruction(EXIT, 0, 0, 0, 0));
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::plan::device_rules;

    /// Runs the program as the kernel would; only the instructions that [`build`] uses.
    fn run(program: &[u64], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0_u64; 11];
        let mut at = 0_i64;
        loop {
            let word = program[at as usize];
            let (code, destination) = (word as u8, (word >> 8 & 15) as usize);
            let source = (word >> 12 & 15) as usize;
            let (offset, immediate) = ((word >> 16) as u16 as i16, (word >> 32) as u32);
            at += 1;
            match code {
                LOAD_WORD => registers[destination] = context[offset as usize / 4].into(),
                MOVE_32 => registers[destination] = registers[source] & 0xffff_ffff,
                MOVE_64_IMMEDIATE => registers[destination] = immediate.into(),
                AND_32_IMMEDIATE => registers[destination] &= u64::from(immediate),
                RIGHT_SHIFT_32_IMMEDIATE => registers[destination] >>= immediate,
                JUMP_NOT_EQUAL_IMMEDIATE if registers[destination] != u64::from(immediate) => {
                    at += i64::from(offset);
                }
                JUMP_EQUAL_IMMEDIATE if registers[destination] == u64::from(immediate) => {
                    at += i64::from(offset);
                }
                JUMP_NOT_EQUAL_IMMEDIATE | JUMP_EQUAL_IMMEDIATE => {}
                EXIT => return registers[0] == 1,
                other => panic!("{other:#x}"),
            }
        }
    }

    #[test]
    fn the_last_word_counts() {
        let resources = serde_json::from_str(
            r#"{"devices":[{"allow":false},{"allow":true,"type":"c","major":10,"minor":229,"access":"r"},{"allow":true,"type":"b","major":8},{"allow":false,"type":"b","major":8,"minor":1,"access":"w"}]}"#,
        )
        .unwrap();
        let program = build(&device_rules(&resources));
        for (kind, access, major, minor, allowed) in [
            (2, 2, 1, 3, true),
            (2, 6, 1, 3, true),
            (2, 2, 10, 229, true),
            (2, 4, 10, 229, false),
            (2, 6, 10, 229, false),
            (2, 1, 10, 229, true),
            (1, 6, 8, 0, true),
            (1, 4, 8, 1, false),
            (1, 2, 8, 1, true),
            (1, 2, 9, 0, false),
            (2, 2, 136, 77, true),
        ] {
            assert_eq!(
                run(&program, kind, access, major, minor),
                allowed,
                "{kind} {access} {major}:{minor}"
            );
        }
    }
}
