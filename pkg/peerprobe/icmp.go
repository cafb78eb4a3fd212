package peerprobe

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// family is the ICMP of one IP version.
type family struct {
	network, any   string
	protocol       int // as icmp.ParseMessage takes it
	request, reply icmp.Type
	// discover is the socket option with which a request goes out whole or not at all, whatever ICMP errors have said
	// about the path.
	discover func(fd int) error
	// filter keeps the kernel from copying other ICMP messages to the socket.
	filter func(net.PacketConn) error
}

var (
	icmpV4 = family{
		network: "ip4:icmp", any: "0.0.0.0", protocol: unix.IPPROTO_ICMP,
		request: ipv4.ICMPTypeEcho, reply: ipv4.ICMPTypeEchoReply,
		discover: func(fd int) error {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
		},
		filter: func(c net.PacketConn) error {
			var f ipv4.ICMPFilter
			f.SetAll(true)
			f.Accept(ipv4.ICMPTypeEchoReply)
			return ipv4.NewPacketConn(c).SetICMPFilter(&f)
		},
	}
	icmpV6 = family{
		network: "ip6:ipv6-icmp", any: "::", protocol: unix.IPPROTO_ICMPV6,
		request: ipv6.ICMPTypeEchoRequest, reply: ipv6.ICMPTypeEchoReply,
		discover: func(fd int) error {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
		},
		filter: func(c net.PacketConn) error {
			var f ipv6.ICMPFilter
			f.SetAll(true)
			f.Accept(ipv6.ICMPTypeEchoReply)
			return ipv6.NewPacketConn(c).SetICMPFilter(&f)
		},
	}
)

// sockets are raw sockets, which need CAP_NET_RAW. (Ping sockets depend on a sysctl that many hosts leave closed.)
type sockets struct {
	v4, v6 net.PacketConn // v6 is nil on a host without IPv6
	id     int
}

// Open makes a Prober that sends real packets. Run must be called: it closes the sockets.
func Open(ctx context.Context) (*Prober, error) {
	s := sockets{id: int(rand.Uint32N(1 << 16))}
	var err error
	if s.v4, err = listen(ctx, icmpV4); err != nil {
		return nil, err
	}
	if s.v6, err = listen(ctx, icmpV6); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) &&
		!errors.Is(err, unix.EADDRNOTAVAIL) {
		s.v4.Close()
		return nil, err
	}
	return newProber(&s), nil
}

func listen(ctx context.Context, f family) (net.PacketConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		return errors.Join(c.Control(func(fd uintptr) { failed = f.discover(int(fd)) }), failed)
	}}
	conn, err := lc.ListenPacket(ctx, f.network, f.any)
	if err == nil {
		if err = f.filter(conn); err == nil {
			return conn, nil
		}
		conn.Close()
	}
	return nil, fmt.Errorf("open a socket for echo requests to peer nodes (needs the capability NET_RAW): %w", err)
}

func (s *sockets) send(to netip.Addr, payload []byte) error {
	f, conn := icmpV4, s.v4
	if to.Is6() {
		f, conn = icmpV6, s.v6
	}
	if conn == nil {
		return unix.EAFNOSUPPORT
	}
	// The nonce, not the number, makes an answer known.
	echo := icmp.Echo{ID: s.id, Seq: int(payload[0]), Data: payload}
	packet, err := (&icmp.Message{Type: f.request, Body: &echo}).Marshal(nil) // the kernel adds ICMPv6's checksum
	if err != nil {
		return err
	}
	_, err = conn.WriteTo(packet, &net.IPAddr{IP: to.AsSlice()})
	return err
}

// receive calls answer for each echo reply until the sockets are closed.
func (s *sockets) receive(answer func(from netip.Addr, payload []byte)) error {
	var group errgroup.Group
	group.Go(func() error { return read(s.v4, icmpV4, answer) })
	if s.v6 != nil {
		group.Go(func() error { return read(s.v6, icmpV6, answer) })
	}
	return group.Wait()
}

func read(conn net.PacketConn, f family, answer func(netip.Addr, []byte)) error {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := conn.ReadFrom(buf) // without the IP header
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read echo replies: %w", err)
		}
		addr, ok := from.(*net.IPAddr)
		if !ok {
			continue
		}
		m, err := icmp.ParseMessage(f.protocol, buf[:n])
		if err != nil || m.Type != f.reply {
			continue
		}
		if echo, ok := m.Body.(*icmp.Echo); ok {
			if source, ok := netip.AddrFromSlice(addr.IP); ok {
				answer(source.Unmap(), echo.Data)
			}
		}
	}
}

func (s *sockets) close() {
	s.v4.Close()
	if s.v6 != nil {
		s.v6.Close()
	}
}
