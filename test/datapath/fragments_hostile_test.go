//go:build integration

package datapath

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/test/e2e/probe/wire"
	"github.com/weft-cni/weft/test/lab/labtest"
)

const (
	handmadeSize = 4000
	// handmadePiece is nearly as long as a fragment of a pod's usually is.
	handmadePiece = 1384
	hostileTag    = "parts"
	// between is how many fragments come between those of one datagram: more than Linux waits for unless told
	// (net.ipv4.ipfrag_max_dist, 64).
	between = 100
)

// handmade is a way to send a datagram in pieces.
type handmade struct {
	name   string
	pieces func(all []piece) []piece
	// arrives is set on those that a receiver puts together, and may on those that it puts together on one of the
	// datapaths, or mostly.
	arrives, may bool
}

var handmades = []handmade{
	{name: "in order", arrives: true, pieces: func(all []piece) []piece { return all }},
	{name: "reversed", arrives: true, pieces: func(all []piece) []piece { slices.Reverse(all); return all }},
	{name: "each twice", arrives: true, pieces: func(all []piece) []piece {
		var twice []piece
		for _, p := range all {
			twice = append(twice, p, p)
		}
		return twice
	}},
	{name: "without the first", pieces: func(all []piece) []piece { return all[1:] }},
	{name: "a lone later one", pieces: func(all []piece) []piece { return all[1:2] }},
	{name: "without the last", pieces: func(all []piece) []piece { return all[:len(all)-1] }},
	{name: "overlapping", pieces: func(all []piece) []piece {
		all[1].from -= 8
		return all
	}},
	// Both datapaths drop the copy, which does not overlap (RFC 5722, erratum 3089); but if an upcall of the kernel's lets
	// it pass its original, that overlaps.
	{name: "one inside of the first", may: true, pieces: func(all []piece) []piece {
		return slices.Insert(all, 1, piece{from: 0, to: 80})
	}},
	// The kernel's datapath puts them together, that in userspace takes none that are shorter than
	// `dpctl/ipf-set-min-frag` says.
	{name: "tiny", may: true, pieces: func(all []piece) []piece {
		return append([]piece{{from: 0, to: 8}, {from: 8, to: all[0].to}}, all[1:]...)
	}},
}

// hostile sends handmade fragments to an open pod, through its Service, and to a pod whose policy denies them. An
// allowed datagram that can be reassembled arrives once. No pod receives a part of any other datagram.
func (f fragmented) hostile(t *testing.T, v4 bool) {
	from := f.pods["stranger"]
	mac, raw := from.mac(t), from.sender(t)
	taps := map[string]*tap{}
	for _, name := range []string{"open-near", "open-far", "walled-near", "walled-far"} {
		taps[name] = f.pods[name].listen(t, "eth0", func(h heard) bool { return !h.leaving && h.tag == hostileTag })
	}
	number := uint64(5000)
	if !v4 {
		number = 6000
	}
	type expected struct {
		name   string
		at     *answerer
		number uint64
		least  int
	}
	var all []expected
	for _, end := range []string{"near", "far"} {
		open, closed := f.pods["open-"+end], f.pods["walled-"+end]
		for _, to := range []struct {
			name   string
			at     *answerer
			addr   netip.AddrPort
			denied bool
		}{
			{"to open-" + end, f.answers["open-"+end], netip.AddrPortFrom(open.addr(v4), namedPort), false},
			{"to the Service of open-" + end, f.answers["open-"+end], netip.AddrPortFrom(of(f.serviceIPs(t, fragNS, "open-"+end),
				v4), 90), false},
			{"to the named port of walled-" + end, f.answers["walled-"+end], netip.AddrPortFrom(closed.addr(v4), namedPort),
				false},
			{"to another port of walled-" + end, f.answers["walled-"+end], netip.AddrPortFrom(closed.addr(v4), deniedPort),
				true},
		} {
			for i, h := range handmades {
				number++
				payload := question(number, handmadeSize, 0)
				pieces := h.pieces(cut(8+len(payload), handmadePiece))
				marked := to.denied || !h.arrives && !h.may
				if marked {
					mark(payload, pieces)
				}
				source := netip.AddrPortFrom(from.addr(v4), uint16(40000+i))
				if err := raw.send(fragments(mac, source, to.addr, uint32(number), payload, pieces...)...); err != nil {
					t.Fatal(err)
				}
				if !marked {
					least := 0
					if h.arrives {
						least = 1
					}
					all = append(all, expected{h.name + " " + to.name, to.at, number, least})
				}
			}
		}
	}
	arrived := func(e expected) {
		testenv.Eventually(t, 3*time.Second, func() error {
			if n := e.at.count(e.number); n < e.least {
				return fmt.Errorf("%s: came %d times, want once", e.name, n)
			}
			return nil
		})
	}
	for _, e := range all {
		arrived(e)
	}
	for _, end := range []string{"near", "far"} {
		number++
		source, to := netip.AddrPortFrom(from.addr(v4), 40100), netip.AddrPortFrom(f.pods["open-"+end].addr(v4), namedPort)
		delayed(t, raw, mac, number, source, to)
		e := expected{fmt.Sprintf("the first one after %d others to open-%s", between, end), f.answers["open-"+end], number,
			1}
		arrived(e)
		all = append(all, e)
	}
	f.forgetFragments(t, v4)
	for _, e := range all {
		if n := e.at.count(e.number); n > 1 {
			t.Errorf("%s: came %d times", e.name, n)
		}
	}
	for name, tap := range taps {
		if frames := tap.heard(func(heard) bool { return true }); len(frames) > 0 {
			t.Errorf("%s received parts of datagrams that are denied or cannot be reassembled: %s", name, describe(frames))
		}
	}
}

// delayed sends a datagram whose first fragment comes after the others and after lone ones of other datagrams, as when
// it waits for an upcall and they do not.
func delayed(t *testing.T, raw sender, mac wire.MAC, number uint64, source, to netip.AddrPort) {
	payload, other := question(number, handmadeSize, 0), question(number, handmadeSize, 0)
	pieces := cut(8+len(payload), handmadePiece)
	mark(other, pieces)
	frames := fragments(mac, source, to, uint32(number), payload, pieces[1:]...)
	for i := range between {
		frames = append(frames, fragments(mac, source, to, uint32(10*number)+uint32(i), other, pieces[1])...)
	}
	frames = append(frames, fragments(mac, source, to, uint32(number), payload, pieces[0])...)
	for some := range slices.Chunk(frames, 16) { // the userspace datapath's socket holds about 90
		if err := raw.send(some...); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// mark puts a mark into each piece that has room for it, so that it is known wherever it is seen.
func mark(payload []byte, pieces []piece) {
	for _, p := range pieces {
		at := max(p.from, 8) - 8
		if p.to-8 >= at+wire.MarkLen {
			copy(payload[at:], wire.Mark(hostileTag))
		}
	}
}

// forgetFragments waits until the userspace datapath has given up what it cannot put together, which is when it might
// let it go on: with the next packet after 15 seconds. The kernel just forgets.
func (f fragmented) forgetFragments(t *testing.T, v4 bool) {
	t.Helper()
	if labtest.Datapath() == config.DatapathSystem {
		return
	}
	var routes []route
	for _, to := range []string{"open-near", "open-far"} {
		routes = append(routes, route{name: to, from: f.pods["client"], to: netip.AddrPortFrom(f.pods[to].addr(v4),
			namedPort)})
	}
	testenv.Eventually(t, 40*time.Second, func() error {
		for _, r := range routes {
			if err := r.ask([]int{100}, false); err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
		}
		for _, node := range []string{"node1", "node2"} {
			status := f.Run("node/"+node, "ovs-appctl", "dpctl/ipf-get-status")
			if !strings.Contains(status, "num frag: 0") {
				return fmt.Errorf("%s keeps fragments: %s", node, status)
			}
		}
		return nil
	})
}

// segments: TCP segments that are larger than what the way takes are fragmented by a node, where the sender allows
// it, as IPv4 does: here between the host outside and the switch. (Routers do not fragment IPv6: its senders use what
// they are told in time.) The pod says that it takes as much as the host outside does.
func (f fragmented) segments(t *testing.T) {
	const size = 1 << 20
	for _, to := range []string{"open-near", "open-far", "walled-near"} {
		server := f.pods[to]
		f.Run(fragNS+"/"+to, "ip", "link", "set", "eth0", "mtu", "1500")
		var l net.Listener
		if err := server.ns.Do(func() (err error) {
			l, err = net.Listen("tcp4", fmt.Sprintf(":%d", namedPort))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				sum := sha256.New()
				if _, err := io.CopyN(sum, conn, size); err == nil {
					_, _ = conn.Write(sum.Sum(nil))
				}
				_ = conn.Close()
			}
		}()
		created := f.fragmentsCreated(t, "node1")
		at := netip.AddrPortFrom(of(f.node(t, "node1").Addrs, true), f.nodePort(t, fragNS, to+"-tcp"))
		if err := f.pour(at, size); err != nil {
			t.Errorf("%d bytes to the node port of %s: %v", size, to, err)
		}
		if n := f.fragmentsCreated(t, "node1") - created; n < 100 {
			t.Errorf("node1 has made %d fragments of the segments to %s: the test sends the wrong thing", n, to)
		}
	}
}

// pour sends bytes from outside in segments that may be fragmented, and compares what came.
func (f fragmented) pour(to netip.AddrPort, size int) error {
	mayFragment := func(_, _ string, raw syscall.RawConn) error {
		var set error
		err := raw.Control(func(fd uintptr) {
			set = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
		})
		return errors.Join(err, set)
	}
	patience := testenv.Patience(10 * time.Second)
	dialer := net.Dialer{Timeout: patience, Control: mayFragment}
	var conn net.Conn
	if err := f.outside.ns.Do(func() (err error) {
		conn, err = dialer.Dial("tcp4", to.String())
		return err
	}); err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	b := make([]byte, size)
	fill(b, 1)
	if _, err := conn.Write(b); err != nil {
		return err
	}
	got, err := io.ReadAll(conn)
	if want := sha256.Sum256(b); err == nil && !bytes.Equal(got, want[:]) {
		err = fmt.Errorf("the digest of what came is %x, want %x", got, want)
	}
	return err
}

// fragmentsCreated is how many IPv4 fragments a node's kernel has made so far.
func (f fragmented) fragmentsCreated(t *testing.T, node string) (n int) {
	t.Helper()
	lines := strings.Split(f.Run("node/"+node, "grep", "^Ip:", "/proc/net/snmp"), "\n")
	names, values := strings.Fields(lines[0]), strings.Fields(lines[1])
	if _, err := fmt.Sscan(values[slices.Index(names, "FragCreates")], &n); err != nil {
		t.Fatal(err)
	}
	return n
}
