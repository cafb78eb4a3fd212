package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/test/e2e/probe/wire"
)

// pinger sends echo requests to one address and reads the answers, through a raw socket that the kernel binds to that
// address. One goroutine may send while another receives.
type pinger struct {
	conn *net.IPConn
	id   uint16
	v6   bool
}

func newPinger(ctx context.Context, to netip.Addr, dontFragment bool) (*pinger, error) {
	network := "ip4:icmp"
	if to.Is6() {
		network = "ip6:ipv6-icmp"
	}
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) { failed = setPathMTUDiscovery(int(fd), to.Is6(), dontFragment) })
		return errors.Join(err, failed)
	}}
	conn, err := d.DialContext(ctx, network, to.String())
	if err != nil {
		return nil, fmt.Errorf("open an ICMP socket (needs CAP_NET_RAW): %w", err)
	}
	ipConn, ok := conn.(*net.IPConn)
	if !ok {
		return nil, fmt.Errorf("open an ICMP socket: %s gives a %T", network, conn)
	}
	return &pinger{conn: ipConn, id: uint16(rand.Uint32()), v6: to.Is6()}, nil
}

// setPathMTUDiscovery: "probe" sets DF and ignores what the kernel learned about the path, so that every packet of the
// given size really leaves; "want" lets the kernel fragment.
func setPathMTUDiscovery(fd int, v6, dontFragment bool) error {
	level, option, value := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT
	if dontFragment {
		value = unix.IP_PMTUDISC_PROBE
	}
	if v6 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER
		value = unix.IPV6_PMTUDISC_DONT
		if dontFragment {
			value = unix.IPV6_PMTUDISC_PROBE
		}
	}
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, level, option, value))
}

func (p *pinger) Close() error { return p.conn.Close() }

// send sends one echo request. Its sequence number is the low half of seq; the payload starts with seq, whole.
func (p *pinger) send(seq, size int) error {
	payload := make([]byte, max(size, 8))
	binary.BigEndian.PutUint64(payload, uint64(seq))
	m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: int(p.id), Seq: seq & 0xffff, Data: payload}}
	if p.v6 {
		m.Type = ipv6.ICMPTypeEchoRequest // the kernel fills in the checksum of ICMPv6
	}
	b, err := m.Marshal(nil)
	if err != nil {
		return err
	}
	_, err = p.conn.Write(b)
	return err
}

// receive waits for the next answer to one of our requests and returns its sequence number and payload size. It ends
// with an error at the deadline.
func (p *pinger) receive(deadline time.Time) (seq, size int, err error) {
	if err := p.conn.SetReadDeadline(deadline); err != nil {
		return 0, 0, err
	}
	proto, want := 1, icmp.Type(ipv4.ICMPTypeEchoReply)
	if p.v6 {
		proto, want = 58, ipv6.ICMPTypeEchoReply
	}
	buf := make([]byte, maxDatagram)
	for {
		n, _, err := p.conn.ReadFromIP(buf) // without the IP header
		if err != nil {
			return 0, 0, err
		}
		m, err := icmp.ParseMessage(proto, buf[:n])
		if err != nil {
			continue // not ours: a raw socket sees all of ICMP
		}
		echo, ok := m.Body.(*icmp.Echo)
		if !ok || m.Type != want || echo.ID != int(p.id) || len(echo.Data) < 8 {
			continue
		}
		return int(binary.BigEndian.Uint64(echo.Data)), len(echo.Data), nil
	}
}

func pingOnce(ctx context.Context, t wire.Target) error {
	p, err := newPinger(ctx, t.Addr, t.DontFragment)
	if err != nil {
		return err
	}
	defer p.Close()
	if err := p.send(0, t.Size); err != nil {
		return fmt.Errorf("send echo request: %w", err)
	}
	deadline, _ := ctx.Deadline()
	_, size, err := p.receive(deadline)
	if err != nil {
		return fmt.Errorf("wait for echo reply: %w", err)
	}
	if want := max(t.Size, 8); size != want {
		return fmt.Errorf("echo reply with %d bytes, sent %d", size, want)
	}
	return nil
}
