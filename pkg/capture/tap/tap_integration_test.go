//go:build integration

package tap_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/capture"
	"github.com/weft-cni/weft/pkg/capture/tap"
)

func TestMain(m *testing.M) {
	if err := testenv.Isolate(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

const loopback = 1

func open(t *testing.T, f capture.Filter, links []int, one, snapLen int) *tap.Tap {
	t.Helper()
	program, err := f.Program(links, capture.Plain, snapLen)
	if err != nil {
		t.Fatal(err)
	}
	p, err := tap.Open(program, one, snapLen)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// send sends datagrams to a port of this host.
func send(t *testing.T, to string, texts ...string) {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "udp", to)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, text := range texts {
		_, _ = conn.Write([]byte(text)) // an earlier one was refused
	}
}

// read reads a frame that must come.
func read(t *testing.T, p *tap.Tap) capture.Frame {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testenv.Patience(10*time.Second))
	defer cancel()
	f, ok, err := p.Read(ctx, true)
	if err != nil || !ok {
		t.Fatalf("no frame: %v", err)
	}
	return f
}

// TestRead: in both families, a frame is read as it is sent and as it is received, cut off, with its length, time and
// device; what the filter does not want is not, also of what was sent before.
func TestRead(t *testing.T) {
	send(t, "127.0.0.1:9", "before")
	for _, links := range [][]int{nil, {loopback}} {
		one := loopback
		if links != nil {
			one = 0 // all devices, of which the program passes some
		}
		p := open(t, capture.Filter{Port: 9, Protocol: capture.UDP}, links, one, 200)
		for _, host := range []string{"127.0.0.1", "::1"} {
			text := string(bytes.Repeat([]byte("x"), 500))
			begun := time.Now()
			send(t, netip.AddrPortFrom(netip.MustParseAddr(host), 10).String(), "other port")
			send(t, netip.AddrPortFrom(netip.MustParseAddr(host), 9).String(), text)
			for _, sent := range []bool{true, false} {
				f := read(t, p)
				h := capture.Parse(f.Data, false)
				header := 14 + 20 + 8
				if host == "::1" {
					header += 20
				}
				if f.Sent != sent || f.Link != loopback || len(f.Data) != 200 || f.Length != header+500 || h.DstPort != 9 ||
					h.Dst.String() != host {
					t.Errorf("%s: %+v, %+v", host, f, h)
				}
				if f.Time.Before(begun.Add(-time.Second)) || f.Time.After(time.Now().Add(time.Second)) {
					t.Errorf("time %s, sent at %s", f.Time, begun)
				}
			}
		}
		if f, ok, err := p.Read(t.Context(), false); ok || err != nil {
			t.Errorf("one more: %+v, %v", f, err)
		}
		none := open(t, capture.Filter{}, []int{12345}, 0, 200)
		send(t, "127.0.0.1:9", "x")
		if f, ok, err := none.Read(t.Context(), false); ok || err != nil {
			t.Errorf("of another device: %+v, %v", f, err)
		}
	}
}

// TestWait: a reading that waits ends with its context, and the next one works.
func TestWait(t *testing.T) {
	p := open(t, capture.Filter{Port: 9}, nil, loopback, 200)
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			f, ok, err := p.Read(ctx, true)
			if ok {
				err = errors.Join(err, fmt.Errorf("frame %+v", f))
			}
			ended <- err
		}()
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	}
	send(t, "127.0.0.1:9", "x")
	read(t, p)
}

// TestLost: frames that found no room are counted, and counted on.
func TestLost(t *testing.T) {
	p := open(t, capture.Filter{Port: 9}, nil, loopback, 1<<16)
	if lost, err := p.Lost(); lost != 0 || err != nil {
		t.Errorf("%d lost, %v", lost, err)
	}
	texts := make([]string, 300)
	for i := range texts {
		texts[i] = string(make([]byte, 60_000))
	}
	send(t, "127.0.0.1:9", texts...)
	first, err := p.Lost()
	if err != nil || first == 0 {
		t.Fatalf("%d lost, %v: 36 MB were sent", first, err)
	}
	send(t, "127.0.0.1:9", texts...)
	if more, err := p.Lost(); err != nil || more <= first {
		t.Errorf("%d lost and then %d, %v", first, more, err)
	}
}

// TestGone: a device that is removed ends the reading.
func TestGone(t *testing.T) {
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "near"}, PeerName: "far"}); err != nil {
		t.Fatal(err)
	}
	link, err := netlink.LinkByName("near")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	p := open(t, capture.Filter{Port: 9}, nil, link.Attrs().Index, 200)
	if err := netlink.LinkDel(link); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), testenv.Patience(10*time.Second))
	defer cancel()
	if _, ok, err := p.Read(ctx, true); ok || !errors.Is(err, capture.ErrGone) {
		t.Errorf("%t, %v", ok, err)
	}
}

// TestOpen: what the kernel refuses is said.
func TestOpen(t *testing.T) {
	program, err := capture.Filter{}.Program(nil, capture.Plain, 200)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tap.Open(program, 12345, 200); err == nil || err.Error() != "bind the packet socket to device 12345: no such device" {
		t.Errorf("%v", err)
	}
}
