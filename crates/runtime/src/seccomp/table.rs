//! Numbers of system calls by name and architecture.

use super::compiler::Architecture;
use std::collections::HashMap;
use std::sync::OnceLock;

const TEXT: &str = include_str!("syscalls.txt");

type Numbers = [Option<u32>; 4];

/// The number that `name` has, without x32's bit; `None` for names that are not known there.
pub(super) fn number(name: &str, architecture: Architecture) -> Option<u32> {
    static TABLE: OnceLock<HashMap<&'static str, Numbers>> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        TEXT.lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| {
                let mut fields = line.split(' ');
                let name = fields.next()?;
                let mut numbers = [None; 4];
                for number in &mut numbers {
                    *number = fields.next()?.parse().ok();
                }
                Some((name, numbers))
            })
            .collect()
    });
    table.get(name)?[match architecture {
        Architecture::X86_64 => 0,
        Architecture::I386 => 1,
        Architecture::X32 => 2,
        Architecture::Aarch64 => 3,
    }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_kernels() {
        use Architecture::*;
        for (name, architecture, expected) in [
            ("read", X86_64, Some(0)),
            ("read", I386, Some(3)),
            ("read", Aarch64, Some(63)),
            ("rt_sigaction", X32, Some(512)),
            ("clone3", I386, Some(435)),
            ("newfstatat", Aarch64, Some(79)),
            ("fstatat64", I386, Some(300)),
            ("open", Aarch64, None),
            ("mseal", Aarch64, Some(462)),
            ("socketcall", X86_64, None),
            ("nosuch", X86_64, None),
        ] {
            assert_eq!(
                number(name, architecture),
                expected,
                "{name} {architecture:?}"
            );
        }
    }
}
