//go:build integration

package datapath

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/e2e/probe/wire"
)

// extended is a way to put extension headers between IPv6 and UDP (RFC 8200, section 4).
type extended struct {
	name string
	// chain are the headers; fragmentHeader stands for a fragment header before what follows.
	chain []byte
	// options is how long a header of options is.
	options int
	// arrives is set on what a pod without policies gets. The userspace datapath refuses the others.
	arrives bool
}

const (
	hopByHop    = unix.IPPROTO_HOPOPTS
	destination = unix.IPPROTO_DSTOPTS
	routing     = unix.IPPROTO_ROUTING
	fragment    = unix.IPPROTO_FRAGMENT
)

var extensions = []extended{
	{name: "hop-by-hop options", chain: []byte{hopByHop}, options: 8, arrives: true},
	{name: "destination options", chain: []byte{destination}, options: 8, arrives: true},
	{name: "a routing header that is done", chain: []byte{routing}, options: 8, arrives: true},
	{name: "several headers", chain: []byte{hopByHop, destination, routing}, options: 16, arrives: true},
	{name: "destination options in fragments", chain: []byte{fragment, destination}, options: 16},
	{name: "hop-by-hop options before fragments", chain: []byte{hopByHop, fragment}, options: 8},
	// The options are longer than the first fragment. RFC 7112 wants that to be dropped.
	{name: "ports behind the first fragment", chain: []byte{fragment, destination}, options: 1608},
}

// frames makes the frames of one datagram.
func (e extended) frames(mac wire.MAC, src, dst netip.AddrPort, number uint32, payload []byte) (frames [][]byte) {
	const header = 14 + 40
	whole := wire.UDPFrame(router, mac, src, dst, payload)[:header+8+len(payload)] // without padding
	next, rest := byte(unix.IPPROTO_UDP), whole[header:]
	fragmented := false
	var before []byte // the fragment header: in every fragment
	for i := len(e.chain) - 1; i >= 0; i-- {
		h := make([]byte, e.options)
		switch e.chain[i] {
		case fragment:
			fragmented = true
			first := next
			next, before = fragment, nil
			rest = append([]byte{first}, rest...) // what is to be cut, behind the protocol that it begins with
			continue
		case routing:
			h[2] = 253 // an experiment's type; nothing is left to visit
		default:
			for at := 2; at < len(h); at += 2 + int(h[at+1]) {
				h[at], h[at+1] = 0x1e, byte(min(len(h)-at-2, 255)) // an experiment's, to be skipped
			}
		}
		h[0], h[1] = next, byte(e.options/8-1)
		next = e.chain[i]
		if fragmented {
			before = append(h, before...)
			continue
		}
		rest = append(h, rest...)
	}
	ip := func(parts ...[]byte) {
		frame := append([]byte{}, whole[:header]...)
		for _, p := range parts {
			frame = append(frame, p...)
		}
		binary.BigEndian.PutUint16(frame[14+4:], uint16(len(frame)-header))
		frame[14+6] = next
		frames = append(frames, frame)
	}
	if !fragmented {
		ip(before, rest)
		return frames
	}
	first, body := rest[0], rest[1:]
	for at := 0; at < len(body); at += handmadePiece {
		end := min(at+handmadePiece, len(body))
		h := []byte{first, 0}
		offset := uint16(at)
		if end < len(body) {
			offset |= 1
		}
		h = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(h, offset), number)
		ip(before, h, body[at:end])
	}
	return frames
}

// behindExtensions sends datagrams with extension headers before the ports. A pod whose policy denies the port receives
// no part of them. A pod without policies receives each at most once.
func (f fragmented) behindExtensions(t *testing.T) {
	from := f.pods["stranger"]
	mac, raw := from.mac(t), from.sender(t)
	number := uint64(7000)
	taps := map[string]*tap{}
	sent := map[uint64]*answerer{} // to pods without policies
	for _, end := range []string{"near", "far"} {
		open, walled := f.pods["open-"+end], f.pods["walled-"+end]
		taps["walled-"+end] = walled.listen(t, "eth0", func(h heard) bool { return !h.leaving && h.tag == hostileTag })
		for i, e := range extensions {
			source := netip.AddrPortFrom(from.addr(false), uint16(41000+i))
			payload := func(tag bool) []byte {
				number++
				payload := question(number, handmadeSize, 0)
				if !slices.Contains(e.chain, fragment) {
					payload = question(number, 1200, 0)
				}
				if tag {
					mark(payload, cut(8+len(payload), 400))
				}
				return payload
			}
			send := func(to netip.AddrPort, tag bool) {
				datagram := payload(tag)
				if err := raw.send(e.frames(mac, source, to, uint32(number), datagram)...); err != nil {
					t.Fatal(err)
				}
			}
			send(netip.AddrPortFrom(walled.addr(false), deniedPort), true)
			send(netip.AddrPortFrom(open.addr(false), namedPort), false)
			arrived, at := number, f.answers["open-"+end]
			sent[arrived] = at
			testenv.Eventually(t, 3*time.Second, func() error {
				if n := at.count(arrived); n == 0 && e.arrives {
					return fmt.Errorf("%s: nothing came to open-%s", e.name, end)
				}
				return nil
			})
		}
	}
	f.forgetFragments(t, false)
	for number, at := range sent {
		if n := at.count(number); n > 1 {
			t.Errorf("datagram %d arrived %d times", number, n)
		}
	}
	for name, tap := range taps {
		if frames := tap.heard(func(heard) bool { return true }); len(frames) > 0 {
			t.Errorf("%s sees parts of what its policy denies: %s", name, describe(frames))
		}
	}
}
