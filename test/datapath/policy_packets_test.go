//go:build integration

package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/e2e/probe/wire"
	"github.com/weft-cni/weft/test/lab/podns"
)

// heard is what a tap took down of a frame.
type heard struct {
	at       time.Time
	iface    int
	leaving  bool // on its way out of the interface
	fragment bool // a part of a packet; the ports of a later one mean nothing
	src, dst netip.AddrPort
	proto    podns.Proto // empty of other protocols than TCP and UDP
	flags    wire.TCPFlags
	tag      string
}

// tap hears every frame of one interface, or of all interfaces of a network namespace: those of later ones, too.
type tap struct {
	fd   int
	done chan struct{}

	mu     sync.Mutex
	frames []heard
}

// listen opens a tap in a client's network; iface is empty for all. Only what keep wants is kept.
func (c *client) listen(t *testing.T, iface string, keep func(heard) bool) *tap {
	t.Helper()
	p := &tap{fd: -1, done: make(chan struct{})}
	if err := c.ns.Do(func() (err error) {
		p.fd, _, err = rawSocket(iface)
		return err
	}); err != nil {
		t.Fatalf("listen in %s: %v", c.name, err)
	}
	// What a burst brings must not be lost: a frame that was not heard looks like one that did not come.
	if err := unix.SetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20); err != nil {
		t.Fatal(err)
	}
	tick := unix.NsecToTimeval((20 * time.Millisecond).Nanoseconds())
	if err := unix.SetsockoptTimeval(p.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tick); err != nil {
		t.Fatal(err)
	}
	end := make(chan struct{})
	go p.hear(end, keep)
	t.Cleanup(func() {
		close(end)
		<-p.done
		var lost *unix.TpacketStats
		if stats, err := unix.GetsockoptTpacketStats(p.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			lost = stats
		}
		if lost == nil || lost.Drops > 0 {
			t.Errorf("the tap in %s has not heard everything: %+v", c.name, lost)
		}
		_ = unix.Close(p.fd)
	})
	return p
}

func (p *tap) hear(end <-chan struct{}, keep func(heard) bool) {
	defer close(p.done)
	buf := make([]byte, 1<<16)
	for {
		select {
		case <-end:
			return
		default:
		}
		n, from, err := unix.Recvfrom(p.fd, buf, 0)
		if err != nil {
			continue // a tick, or an interface that went
		}
		h, ok := parseFrame(buf[:n])
		if !ok {
			continue
		}
		h.at = time.Now()
		if link, ok := from.(*unix.SockaddrLinklayer); ok {
			h.iface, h.leaving = link.Ifindex, link.Pkttype == unix.PACKET_OUTGOING
		}
		if keep(h) {
			p.mu.Lock()
			p.frames = append(p.frames, h)
			p.mu.Unlock()
		}
	}
}

// heard returns the frames so far for which want is true.
func (p *tap) heard(want func(heard) bool) (frames []heard) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, h := range p.frames {
		if want(h) {
			frames = append(frames, h)
		}
	}
	return frames
}

func (p *tap) count(want func(heard) bool) int { return len(p.heard(want)) }

// parseFrame reads a frame's addresses and ports.
func parseFrame(f []byte) (h heard, ok bool) {
	if len(f) < 14+40 {
		return h, false
	}
	h.tag, _ = wire.Tag(f)
	var proto byte
	var src, dst netip.Addr
	rest := f[14:]
	switch binary.BigEndian.Uint16(f[12:]) {
	case unix.ETH_P_IP:
		const offsetAndMore = 0x3fff
		h.fragment = binary.BigEndian.Uint16(rest[6:])&offsetAndMore != 0
		proto, src, dst = rest[9], netip.AddrFrom4([4]byte(rest[12:16])), netip.AddrFrom4([4]byte(rest[16:20]))
		rest = rest[min(len(rest), int(rest[0]&0xf)*4):]
	case unix.ETH_P_IPV6:
		proto, src, dst = rest[6], netip.AddrFrom16([16]byte(rest[8:24])), netip.AddrFrom16([16]byte(rest[24:40]))
		h.fragment = proto == unix.IPPROTO_FRAGMENT
		rest = rest[40:]
	default:
		return h, false
	}
	var ports [2]uint16
	if (proto == unix.IPPROTO_TCP || proto == unix.IPPROTO_UDP) && len(rest) >= 8 {
		h.proto = podns.UDP
		if proto == unix.IPPROTO_TCP && len(rest) >= 20 {
			h.proto, h.flags = podns.TCP, wire.TCPFlags(rest[13])
		}
		ports = [2]uint16{binary.BigEndian.Uint16(rest), binary.BigEndian.Uint16(rest[2:])}
	}
	h.src, h.dst = netip.AddrPortFrom(src, ports[0]), netip.AddrPortFrom(dst, ports[1])
	return h, true
}

// rawSocket opens a packet socket in the thread's network namespace, for one interface or for all.
func rawSocket(iface string) (int, *unix.SockaddrLinklayer, error) {
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // network byte order
	to := &unix.SockaddrLinklayer{Protocol: all}
	if iface != "" {
		link, err := net.InterfaceByName(iface)
		if err != nil {
			return -1, nil, err
		}
		to.Ifindex = link.Index
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
	if err != nil {
		return -1, nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, to); err != nil {
		return -1, nil, errors.Join(os.NewSyscallError("bind", err), unix.Close(fd))
	}
	return fd, to, nil
}

// sender sends frames as they are from a pod's interface.
type sender struct {
	fd int
	to *unix.SockaddrLinklayer
}

func (c *client) sender(t *testing.T) sender {
	t.Helper()
	var s sender
	if err := c.ns.Do(func() error {
		link, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		// Of no protocol, so that it is told of no frame.
		s.to = &unix.SockaddrLinklayer{Ifindex: link.Index}
		s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	}); err != nil {
		t.Fatalf("send from %s: %v", c.name, err)
	}
	t.Cleanup(func() { _ = unix.Close(s.fd) })
	return s
}

func (s sender) send(frames ...[]byte) error {
	for _, f := range frames {
		if err := unix.Sendto(s.fd, f, 0, s.to); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return os.NewSyscallError("sendto", err)
		}
	}
	return nil
}

// interfaces lists those of a network by number.
func (c *client) interfaces(t *testing.T) (numbers []int) {
	t.Helper()
	if err := c.ns.Do(func() error {
		links, err := net.Interfaces()
		for _, l := range links {
			numbers = append(numbers, l.Index)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return numbers
}

// pump sends rounds of frames until it is stopped.
type pump struct {
	rounds atomic.Int64
	end    chan struct{}
	done   chan error
}

func (c *client) pump(t *testing.T, every time.Duration, round func() [][]byte) *pump {
	t.Helper()
	s := c.sender(t)
	p := &pump{end: make(chan struct{}), done: make(chan error, 1)}
	go func() {
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for {
			select {
			case <-p.end:
				p.done <- nil
				return
			case <-ticker.C:
			}
			if err := s.send(round()...); err != nil {
				p.done <- err
				return
			}
			p.rounds.Add(1)
		}
	}()
	t.Cleanup(func() { p.stop(t) })
	return p
}

// more waits until some more rounds have been sent. What is let in of them arrives meanwhile, but for that of the last.
func (p *pump) more(t *testing.T, rounds int64) {
	t.Helper()
	want := p.rounds.Load() + rounds
	testenv.Eventually(t, 10*time.Second, func() error {
		if now := p.rounds.Load(); now < want {
			return fmt.Errorf("a pump has sent %d rounds, want %d", now, want)
		}
		return nil
	})
}

// stop may be called again.
func (p *pump) stop(t *testing.T) {
	t.Helper()
	select {
	case <-p.end:
		return
	default:
	}
	close(p.end)
	if err := <-p.done; err != nil {
		t.Errorf("a pump: %v", err)
	}
}

// attempts are a datagram and a SYN to each of the addresses, in the families that the sender has.
func (c *client) attempts(mac wire.MAC, tag string, port uint16, to ...netip.Addr) [][]byte {
	var frames [][]byte
	for _, addr := range to {
		src := c.addr(addr.Is4())
		frames = append(frames,
			wire.UDPFrame(router, mac, netip.AddrPortFrom(src, 30001), netip.AddrPortFrom(addr, port), wire.Mark(tag)),
			wire.TCPFrame(router, mac, netip.AddrPortFrom(src, 30002), netip.AddrPortFrom(addr, port), wire.SYN, 1, 0,
				wire.Mark(tag)))
	}
	return frames
}

// describe says what was heard, for a failure's text: the first few.
func describe(frames []heard) string {
	text := fmt.Sprintf("%d frames", len(frames))
	for i, h := range frames {
		if i == 5 {
			return text + "; …"
		}
		text += fmt.Sprintf("; %s %s → %s (flags %#x, %s) at %s", h.proto, h.src, h.dst, h.flags, h.tag,
			h.at.Format("05.000"))
	}
	return text
}
