package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// The chunks of RFC 9260, section 3.3, that begin an association.
const (
	initChunk    = 1
	initAckChunk = 2
)

// packet is an SCTP packet with one chunk of the INIT kind.
type packet struct {
	src                          netip.AddrPort // without the address in what is sent: the kernel chooses it
	dst                          uint16
	verificationTag, initiateTag uint32
	chunk                        byte
}

// headerLen is the length of the common header with the chunk's first fields, up to the initiate tag.
const headerLen = 20

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (p packet) marshal() []byte {
	b := binary.BigEndian.AppendUint16(nil, p.src.Port())
	b = binary.BigEndian.AppendUint16(b, p.dst)
	b = binary.BigEndian.AppendUint32(b, p.verificationTag)
	b = append(b, 0, 0, 0, 0, // the checksum
		p.chunk, 0, 0, 20) // type, flags, length
	b = binary.BigEndian.AppendUint32(b, p.initiateTag)
	b = append(b, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1) // window, streams, first number
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, castagnoli))
	return b
}

// parse reads a packet without its IP header. Its checksum has to be right.
func parse(src netip.Addr, b []byte) (packet, bool) {
	if len(b) < headerLen {
		return packet{}, false
	}
	sum := binary.LittleEndian.Uint32(b[8:])
	clear(b[8:12])
	return packet{src: netip.AddrPortFrom(src, binary.BigEndian.Uint16(b)), dst: binary.BigEndian.Uint16(b[2:]),
		verificationTag: binary.BigEndian.Uint32(b[4:]), chunk: b[12], initiateTag: binary.BigEndian.Uint32(b[16:]),
	}, sum == crc32.Checksum(b, castagnoli)
}

// socket is a raw socket of one address family. It sees every SCTP packet of its network namespace.
type socket struct{ fd int }

func open(v6 bool) (socket, error) {
	domain := unix.AF_INET
	if v6 {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	return socket{fd}, os.NewSyscallError("socket", err)
}

func (s socket) send(to netip.Addr, p packet) error {
	var addr unix.Sockaddr = &unix.SockaddrInet6{Addr: to.As16()}
	if to.Is4() {
		addr = &unix.SockaddrInet4{Addr: to.As4()}
	}
	if err := unix.Sendto(s.fd, p.marshal(), 0, addr); err != nil {
		return fmt.Errorf("send to %s: %w", to, err)
	}
	return nil
}

// receive calls f with every packet that comes, until f is satisfied, fails, or the deadline is over
// (os.ErrDeadlineExceeded). The zero deadline is never.
func (s socket) receive(deadline time.Time, f func(packet) (done bool, err error)) error {
	b := make([]byte, 2048)
	for {
		if !deadline.IsZero() {
			left := time.Until(deadline)
			if left <= 0 {
				return os.ErrDeadlineExceeded
			}
			limit := unix.NsecToTimeval(max(left, time.Millisecond).Nanoseconds())
			if err := unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
				return os.NewSyscallError("setsockopt", err)
			}
		}
		n, from, err := unix.Recvfrom(s.fd, b, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil {
			return os.NewSyscallError("recvfrom", err)
		}
		m, src := b[:n], netip.Addr{}
		switch from := from.(type) {
		case *unix.SockaddrInet4:
			src = netip.AddrFrom4(from.Addr)
			m = m[min(n, int(m[0]&0xf)*4):] // raw sockets of IPv4 show the header
		case *unix.SockaddrInet6:
			src = netip.AddrFrom16(from.Addr)
		}
		p, ok := parse(src, m)
		if !ok {
			continue
		}
		if done, err := f(p); done || err != nil {
			return err
		}
	}
}
