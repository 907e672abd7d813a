//! Commands to messages.

use super::{Command, Element, Expression, Family, Meta, Register, Type, Verdict};
use crate::netlink::wire::{Batch, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE};

pub(super) const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

const NEWTABLE: u16 = SUBSYSTEM;
const DELTABLE: u16 = SUBSYSTEM | 2;
const NEWCHAIN: u16 = SUBSYSTEM | 3;
const NEWRULE: u16 = SUBSYSTEM | 6;
const DELRULE: u16 = SUBSYSTEM | 8;
const NEWSET: u16 = SUBSYSTEM | 9;
const NEWSETELEM: u16 = SUBSYSTEM | 12;
const DELSETELEM: u16 = SUBSYSTEM | 14;

const LIST_ELEM: u16 = 1;
const SET_IS_MAP: u32 = 0x8;
/// Elements per message: a nest holds less than 64 KiB, an element less than 100 bytes.
const ELEMENTS: usize = 400;

/// `struct nfgenmsg`
pub(super) fn header(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}

pub(super) fn transaction(commands: &[Command]) -> Batch {
    let mut batch = Batch::new();
    batch.begin(BATCH_BEGIN, 0, &[0, 0, 0, 10]);
    let mut set_id = 0;
    for (i, command) in commands.iter().enumerate() {
        add(&mut batch, command, &mut set_id);
        if i + 1 == commands.len() {
            // One acknowledgement, of the last message, says that all went well.
            batch.add_flags(NLM_F_ACK);
        }
    }
    batch.begin(BATCH_END, 0, &[0, 0, 0, 10]);
    batch
}

fn add(batch: &mut Batch, command: &Command, set_id: &mut u32) {
    let mut begin = |kind, flags, family: &Family| {
        batch.begin(kind, flags, &header(family.number()));
    };
    match command {
        Command::AddTable {
            family,
            table,
            comment,
        } => {
            begin(NEWTABLE, NLM_F_CREATE, family);
            batch.string(1, table);
            if !comment.is_empty() {
                batch.put(6, &comment_data(comment));
            }
        }
        Command::DeleteTable { family, table } => {
            begin(DELTABLE, 0, family);
            batch.string(1, table);
        }
        Command::AddChain {
            family,
            table,
            chain,
            base,
        } => {
            begin(NEWCHAIN, NLM_F_CREATE, family);
            batch.string(1, table);
            batch.string(3, chain);
            if let Some(base) = base {
                batch.nest(4, |b| {
                    b.be32(1, base.hook.number());
                    b.put(2, &base.priority.to_be_bytes());
                });
                batch.string(7, base.kind);
            }
        }
        Command::AddSet {
            family,
            table,
            set,
            key,
            value,
        } => {
            *set_id += 1;
            begin(NEWSET, NLM_F_CREATE, family);
            batch.string(1, table);
            batch.string(2, set);
            batch.be32(3, if value.is_empty() { 0 } else { SET_IS_MAP });
            let (kind, size) = concatenation(key);
            batch.be32(4, kind);
            batch.be32(5, size);
            if !value.is_empty() {
                let (kind, size) = concatenation(value);
                batch.be32(6, kind);
                batch.be32(7, size);
            }
            batch.be32(10, *set_id);
            if key.contains(&Type::InterfaceName) {
                // User data 0: byte order of the key, 1 is the machine's. `nft` prints names only when told.
                batch.put(13, &[0, 4, 1, 0, 0, 0]);
            }
        }
        Command::AddElements {
            family,
            table,
            set,
            elements,
        } => {
            for part in elements.chunks(ELEMENTS) {
                batch.begin(NEWSETELEM, NLM_F_CREATE, &header(family.number()));
                add_elements(batch, table, set, part);
            }
        }
        Command::DeleteElements {
            family,
            table,
            set,
            elements,
        } => {
            for part in elements.chunks(ELEMENTS) {
                batch.begin(DELSETELEM, 0, &header(family.number()));
                add_elements(batch, table, set, part);
            }
        }
        Command::AddRule {
            family,
            table,
            chain,
            first,
            expressions,
            comment,
        } => {
            let place = if *first { 0 } else { NLM_F_APPEND };
            begin(NEWRULE, NLM_F_CREATE | place, family);
            batch.string(1, table);
            batch.string(2, chain);
            batch.nest(4, |b| {
                for expression in expressions {
                    b.nest(LIST_ELEM, |b| add_expression(b, expression));
                }
            });
            if !comment.is_empty() {
                batch.put(7, &comment_data(comment));
            }
        }
        Command::DeleteRule {
            family,
            table,
            chain,
            handle,
        } => {
            begin(DELRULE, 0, family);
            batch.string(1, table);
            batch.string(2, chain);
            batch.be64(3, *handle);
        }
    }
}

/// nft's user data: type 0 is a comment; type, length, text with its zero byte.
fn comment_data(comment: &str) -> Vec<u8> {
    let text = &comment.as_bytes()[..comment.len().min(120)];
    let mut bytes = vec![0, u8::try_from(text.len() + 1).expect("cut above")];
    bytes.extend_from_slice(text);
    bytes.push(0);
    bytes
}

/// Concatenated types are six bits each; the size is that of all registers.
fn concatenation(types: &[Type]) -> (u32, u32) {
    types.iter().fold((0, 0), |(kind, size), t| {
        let (number, bytes) = t.number_and_size();
        ((kind << 6) | number, size + bytes)
    })
}

fn add_elements(batch: &mut Batch, table: &str, set: &str, elements: &[Element]) {
    batch.string(1, table);
    batch.string(2, set);
    batch.nest(3, |b| {
        for (key, value) in elements {
            b.nest(LIST_ELEM, |b| {
                b.nest(1, |b| b.put(1, key));
                if let Some(value) = value {
                    b.nest(2, |b| b.put(1, value));
                }
            });
        }
    });
}

impl Register {
    /// The kernel's number of a 4-byte register.
    fn number(self) -> u32 {
        8 + u32::from(self.0)
    }
}

fn add_expression(batch: &mut Batch, expression: &Expression) {
    let mut named = |name: &str, fill: &dyn Fn(&mut Batch)| {
        batch.string(1, name);
        batch.nest(2, |b| fill(b));
    };
    match expression {
        Expression::Meta(key, register) => named("meta", &|b| {
            b.be32(1, register.number());
            b.be32(
                2,
                match key {
                    Meta::InputName => 6,
                    Meta::OutputName => 7,
                    Meta::Protocol => 15,
                    Meta::TransportProtocol => 16,
                },
            );
        }),
        Expression::Source(register) => named("payload", &|b| payload(b, *register, 1, 12, 4)),
        Expression::Source6(register) => named("payload", &|b| payload(b, *register, 1, 8, 16)),
        Expression::Destination(register) => named("payload", &|b| payload(b, *register, 1, 16, 4)),
        Expression::DestinationPort(register) => {
            named("payload", &|b| payload(b, *register, 2, 2, 2));
        }
        Expression::DestinationType(register) => named("fib", &|b| {
            b.be32(1, register.number());
            b.be32(2, 3); // address type
            b.be32(3, 2); // of the destination
        }),
        Expression::TrackingState(register) => named("ct", &|b| {
            b.be32(1, register.number());
            b.be32(2, 0);
        }),
        Expression::TrackingStatus(register) => named("ct", &|b| {
            b.be32(1, register.number());
            b.be32(2, 2);
        }),
        Expression::Load(register, data) => named("immediate", &|b| {
            b.be32(1, register.number());
            b.nest(2, |b| b.put(1, data));
        }),
        Expression::Mask(register, mask) => named("bitwise", &|b| {
            b.be32(1, register.number());
            b.be32(2, register.number());
            b.be32(3, u32::try_from(mask.len()).expect("a register's size"));
            b.nest(4, |b| b.put(1, mask));
            b.nest(5, |b| b.put(1, &vec![0; mask.len()]));
        }),
        Expression::Equal(register, data) => named("cmp", &|b| compare(b, *register, 0, data)),
        Expression::NotEqual(register, data) => named("cmp", &|b| compare(b, *register, 1, data)),
        Expression::Lookup { set, key, value } => named("lookup", &|b| {
            b.string(1, set);
            b.be32(2, key.number());
            if let Some(value) = value {
                b.be32(3, value.number());
            }
        }),
        Expression::TranslateDestination { address, port } => named("nat", &|b| {
            b.be32(1, 1);
            b.be32(2, u32::from(Family::Ipv4.number()));
            b.be32(3, address.number());
            b.be32(5, port.number());
        }),
        Expression::Masquerade => named("masq", &|_| {}),
        Expression::Counter => named("counter", &|_| {}),
        Expression::Verdict(verdict) => named("immediate", &|b| {
            let (code, chain) = match verdict {
                Verdict::Drop => (0, None),
                Verdict::Accept => (1, None),
                Verdict::Return => (-5, None),
                Verdict::Jump(chain) => (-3, Some(chain)),
            };
            b.be32(1, 0);
            b.nest(2, |b| {
                b.nest(2, |b| {
                    b.put(1, &i32::to_be_bytes(code));
                    if let Some(chain) = chain {
                        b.string(2, chain);
                    }
                });
            });
        }),
    }
}

/// `base` 1 is the network header, 2 the transport header.
fn payload(batch: &mut Batch, register: Register, base: u32, offset: u32, length: u32) {
    batch.be32(1, register.number());
    batch.be32(2, base);
    batch.be32(3, offset);
    batch.be32(4, length);
}

fn compare(batch: &mut Batch, register: Register, operation: u32, data: &[u8]) {
    batch.be32(1, register.number());
    batch.be32(2, operation);
    batch.nest(3, |b| b.put(1, data));
}
