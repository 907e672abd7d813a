//! Rules to classic BPF. Pure.
//!
//! The number line of each architecture is cut into intervals that end alike (an action, or a chain of argument tests); a binary search
//! over their starts takes about seven comparisons for a profile of several hundred calls. Every leaf ends in its own return, so
//! no jump leaves its part of the tree.

/// Which instructions of a CPU the caller runs. x32 shares x86_64's mark and sets a bit in the number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Architecture {
    X86_64,
    I386,
    X32,
    Aarch64,
}

impl Architecture {
    /// `AUDIT_ARCH_…`.
    fn mark(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::I386 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
        }
    }
}

const X32_BIT: u32 = 0x4000_0000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    NotEqual,
    Less,
    LessOrEqual,
    Equal,
    GreaterOrEqual,
    Greater,
    MaskedEqual,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) index: u32,
    pub(super) operator: Operator,
    /// Only for [`Operator::MaskedEqual`].
    pub(super) mask: u64,
    pub(super) value: u64,
}

/// When all conditions hold for this number, the action is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) number: u32,
    pub(super) conditions: Vec<Condition>,
    pub(super) action: u32,
}

/// `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instruction {
    code: u16,
    if_true: u8,
    if_false: u8,
    value: u32,
}

impl Instruction {
    pub(super) fn to_bytes(self) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&self.code.to_ne_bytes());
        bytes[2] = self.if_true;
        bytes[3] = self.if_false;
        bytes[4..].copy_from_slice(&self.value.to_ne_bytes());
        bytes
    }
}

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

const fn plain(code: u16, value: u32) -> Instruction {
    Instruction {
        code,
        if_true: 0,
        if_false: 0,
        value,
    }
}

/// How a call ends.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Action(u32),
    /// Tried in turn; the last word is an action.
    Rules(Vec<(Vec<Condition>, u32)>, u32),
}

/// Builds the whole program. `beyond` is the action for numbers greater than any that an architecture's rules name; `foreign` for calls
/// of architectures without rules.
pub(super) fn compile(
    blocks: &[(Architecture, Vec<Rule>)],
    default: u32,
    beyond: Option<u32>,
    foreign: u32,
) -> Vec<Instruction> {
    let mut program = vec![plain(LOAD, ARCHITECTURE)];
    let block = |wanted: Architecture| blocks.iter().find(|(a, _)| *a == wanted);
    for (architecture, rules) in blocks {
        if *architecture == Architecture::X32 {
            continue;
        }
        let mut lines = intervals(rules, 0, default, beyond);
        if *architecture == Architecture::X86_64 {
            match block(Architecture::X32) {
                Some((_, rules)) => lines.extend(intervals(rules, X32_BIT, default, beyond)),
                None => lines.push((X32_BIT, Outcome::Action(foreign))),
            }
            // −1 is what a tracer sets to skip a call; it is no x32 call.
            lines.push((u32::MAX, Outcome::Action(default)));
        }
        let mut body = vec![plain(LOAD, NUMBER)];
        body.extend(search(&lines));
        program.push(Instruction {
            code: JUMP_EQUAL,
            if_true: 1,
            if_false: 0,
            value: architecture.mark(),
        });
        program.push(plain(JUMP, body.len() as u32));
        program.extend(body);
    }
    program.push(plain(RETURN, foreign));
    program
}

/// The number line from `base` on: where each outcome begins.
fn intervals(rules: &[Rule], base: u32, default: u32, beyond: Option<u32>) -> Vec<(u32, Outcome)> {
    let mut numbers: Vec<u32> = rules.iter().map(|r| r.number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let mut lines = vec![(base, Outcome::Action(default))];
    let mut push = |start: u32, outcome: Outcome| match lines.last_mut() {
        Some((last, old)) if *last == start => *old = outcome,
        Some((_, old)) if *old == outcome => {}
        _ => lines.push((start, outcome)),
    };
    let mut next = 0;
    for &number in &numbers {
        if number > next {
            push(base + next, Outcome::Action(default));
        }
        push(base + number, outcome_of(rules, number, default));
        next = number + 1;
    }
    push(base + next, Outcome::Action(beyond.unwrap_or(default)));
    lines
}

fn outcome_of(rules: &[Rule], number: u32, default: u32) -> Outcome {
    let mine = || rules.iter().filter(|r| r.number == number);
    let otherwise = mine()
        .find(|r| r.conditions.is_empty())
        .map_or(default, |r| r.action);
    let conditional: Vec<_> = mine()
        .filter(|r| !r.conditions.is_empty() && r.action != otherwise)
        .map(|r| (r.conditions.clone(), r.action))
        .collect();
    match conditional.is_empty() {
        true => Outcome::Action(otherwise),
        false => Outcome::Rules(conditional, otherwise),
    }
}

fn search(lines: &[(u32, Outcome)]) -> Vec<Instruction> {
    if let [(_, outcome)] = lines {
        return leaf(outcome);
    }
    let (low, high) = lines.split_at(lines.len() / 2);
    let (left, right) = (search(low), search(high));
    let start = high[0].0;
    let mut code = Vec::with_capacity(left.len() + right.len() + 2);
    match u8::try_from(left.len()) {
        Ok(over) => code.push(Instruction {
            code: JUMP_GREATER_EQUAL,
            if_true: over,
            if_false: 0,
            value: start,
        }),
        // Conditional jumps reach 255 instructions, the plain one any distance.
        Err(_) => {
            code.push(Instruction {
                code: JUMP_GREATER_EQUAL,
                if_true: 0,
                if_false: 1,
                value: start,
            });
            code.push(plain(JUMP, left.len() as u32));
        }
    }
    code.extend(left);
    code.extend(right);
    code
}

fn leaf(outcome: &Outcome) -> Vec<Instruction> {
    match outcome {
        Outcome::Action(action) => vec![plain(RETURN, *action)],
        Outcome::Rules(rules, otherwise) => {
            let mut code = Vec::new();
            for (conditions, action) in rules {
                code.extend(all_of(conditions, *action));
            }
            code.push(plain(RETURN, *otherwise));
            code
        }
    }
}

/// Where a test goes on.
#[derive(Clone, Copy)]
enum To {
    Next,
    /// The following condition, or the action after the last.
    Holds,
    /// Behind the action: the next rule.
    Fails,
}

/// All tests, then the return; a test that fails jumps behind it. At most six conditions of five instructions, so within reach.
fn all_of(conditions: &[Condition], action: u32) -> Vec<Instruction> {
    let tests: Vec<Vec<(u16, u32, To, To)>> = conditions.iter().map(test).collect();
    let total: usize = tests.iter().map(Vec::len).sum();
    let mut code = Vec::with_capacity(total + 1);
    let mut end_of_test = 0;
    for steps in tests {
        end_of_test += steps.len();
        for (operation, value, if_true, if_false) in steps {
            let here = code.len() + 1;
            let offset = |to: To| match to {
                To::Next => 0,
                To::Holds => (end_of_test - here) as u8,
                To::Fails => (total + 1 - here) as u8,
            };
            code.push(Instruction {
                code: operation,
                if_true: offset(if_true),
                if_false: offset(if_false),
                value,
            });
        }
    }
    code.push(plain(RETURN, action));
    code
}

/// One comparison of 64 bits in halves, the upper first.
fn test(condition: &Condition) -> Vec<(u16, u32, To, To)> {
    let base = ARGUMENTS + 8 * condition.index;
    let (low_at, high_at) = match cfg!(target_endian = "little") {
        true => (base, base + 4),
        false => (base + 4, base),
    };
    let low = condition.value as u32;
    let high = (condition.value >> 32) as u32;
    let load = |at| (LOAD, at, To::Next, To::Next);
    let (holds, fails) = match condition.operator {
        // The opposite of greater-or-equal, of greater, of equal.
        Operator::Less | Operator::LessOrEqual | Operator::NotEqual => (To::Fails, To::Holds),
        _ => (To::Holds, To::Fails),
    };
    match condition.operator {
        Operator::Equal | Operator::NotEqual => vec![
            load(high_at),
            (JUMP_EQUAL, high, To::Next, fails),
            load(low_at),
            (JUMP_EQUAL, low, holds, fails),
        ],
        Operator::MaskedEqual => vec![
            load(high_at),
            (AND, (condition.mask >> 32) as u32, To::Next, To::Next),
            (JUMP_EQUAL, high, To::Next, fails),
            load(low_at),
            (AND, condition.mask as u32, To::Next, To::Next),
            (JUMP_EQUAL, low, holds, fails),
        ],
        Operator::Greater | Operator::LessOrEqual => vec![
            load(high_at),
            (JUMP_GREATER, high, holds, To::Next),
            (JUMP_EQUAL, high, To::Next, fails),
            load(low_at),
            (JUMP_GREATER, low, holds, fails),
        ],
        Operator::GreaterOrEqual | Operator::Less => vec![
            load(high_at),
            (JUMP_GREATER, high, holds, To::Next),
            (JUMP_EQUAL, high, To::Next, fails),
            load(low_at),
            (JUMP_GREATER_EQUAL, low, holds, fails),
        ],
    }
}
