//! Messages with descriptors over unix sockets.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;

/// The kernel's limit of descriptors in one message (`SCM_MAX_FD`).
pub const DESCRIPTORS_PER_MESSAGE: usize = 253;

/// What was written to a stream socket and the peer has not read yet, as the kernel accounts for it (its own overhead included): zero
/// means that the peer has read everything.
pub fn unread_by_peer(socket: impl AsFd) -> io::Result<usize> {
    use std::os::fd::AsRawFd;
    let mut size: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (the same number as TIOCOUTQ) writes one int to the pointer it is given, which is valid for that.
    // rustix has no wrapper for it.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut size) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(size).unwrap_or(0))
}

/// Sends the parts as one message together with `descriptors`. Never raises `SIGPIPE`.
pub fn send(
    socket: impl AsFd,
    parts: &[IoSlice<'_>],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    if descriptors.len() > DESCRIPTORS_PER_MESSAGE {
        return Err(Errno::TOOMANYREFS.into());
    }
    let mut space =
        [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_PER_MESSAGE))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        let fits = control.push(SendAncillaryMessage::ScmRights(descriptors));
        assert!(fits, "the buffer has room for the kernel's maximum");
    }
    Ok(sendmsg(socket, parts, &mut control, SendFlags::NOSIGNAL)?)
}

/// The length of the next message of a packet socket, which stays queued; 0 when the peer is gone.
pub fn peek_length(socket: impl AsFd) -> io::Result<usize> {
    let mut control = RecvAncillaryBuffer::new(&mut []);
    let flags = RecvFlags::PEEK | RecvFlags::TRUNC;
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut [0; 1])],
        &mut control,
        flags,
    )?;
    Ok(received.bytes)
}

/// Receives one message with its descriptors, all close-on-exec. A message that did not fit is an error: half of it is useless.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space =
        [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_PER_MESSAGE))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(buffer)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(Errno::OVERFLOW.into());
    }
    Ok((received.bytes, descriptors))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::io::Read;

    #[test]
    fn a_packet_arrives_whole_with_its_descriptors() {
        let (a, b) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        send(
            &a,
            &[IoSlice::new(b"ab"), IoSlice::new(b"cd")],
            &[writer.as_fd()],
        )
        .unwrap();
        drop(writer);
        assert_eq!(peek_length(&b).unwrap(), 4);
        let mut buffer = [0; 8];
        let (length, descriptors) = receive(&b, &mut buffer).unwrap();
        assert_eq!((&buffer[..length], descriptors.len()), (&b"abcd"[..], 1));
        rustix::io::write(&descriptors[0], b"x").unwrap();
        drop(descriptors);
        let mut text = String::new();
        std::fs::File::from(reader)
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "x");
        drop(a);
        assert_eq!(peek_length(&b).unwrap(), 0);
    }
}
