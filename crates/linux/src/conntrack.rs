//! Connection tracking: what must be forgotten when an address changes hands.
//!
//! Spec: linux/netfilter/nfnetlink_conntrack.h.

use crate::netlink::wire::{Batch, Connection, NLM_F_ACK, Result};
use std::net::Ipv4Addr;

const CT_DELETE: u16 = (1 << 8) | 2;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_FILTER: u16 = 25;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_PROTO_NUM: u16 = 1;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
/// The kernel's own bits: compare the source address, and the protocol's number.
const IP_SOURCE: u32 = 1;
const PROTOCOL_NUMBER: u32 = 1 << 3;
const UDP: u8 = 17;

/// Forgets every UDP flow that `address` answers. Such a flow has no end: as long as a client goes on sending from the same port,
/// its datagrams go where the first one went, whatever the rules say meanwhile.
///
/// Kernels before 6.9 know no such filter for deletion and refuse it; the flows then end by their time limit.
pub fn forget_udp_to(address: Ipv4Addr) -> Result<()> {
    let mut batch = Batch::new();
    batch.begin(CT_DELETE, NLM_F_ACK, &[libc::AF_INET as u8, 0, 0, 0]);
    batch.nest(CTA_TUPLE_REPLY, |b| {
        b.nest(CTA_TUPLE_IP, |b| b.put(CTA_IP_V4_SRC, &address.octets()));
        b.nest(CTA_TUPLE_PROTO, |b| b.u8(CTA_PROTO_NUM, UDP));
    });
    batch.nest(CTA_FILTER, |b| {
        b.u32(CTA_FILTER_ORIG_FLAGS, 0);
        b.u32(CTA_FILTER_REPLY_FLAGS, IP_SOURCE | PROTOCOL_NUMBER);
    });
    Connection::netfilter()?.execute(batch)
}
