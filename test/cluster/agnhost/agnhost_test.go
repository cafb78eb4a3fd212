package main

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestPacket(t *testing.T) {
	src := netip.MustParseAddrPort("[fd00::1]:49152")
	want := packet{src: src, dst: 9003, verificationTag: 7, initiateTag: 8, chunk: initAckChunk}
	b := want.marshal()
	got, ok := parse(src.Addr(), append([]byte(nil), b...))
	if d := cmp.Diff(want, got, cmp.AllowUnexported(packet{}),
		cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); !ok || d != "" {
		t.Errorf("parsed %v (-want +got):\n%s", ok, d)
	}
	for i := range b {
		damaged := append([]byte(nil), b...)
		damaged[i] ^= 1
		if _, ok := parse(src.Addr(), damaged); ok {
			t.Errorf("a packet with byte %d damaged is taken", i)
		}
		if _, ok := parse(src.Addr(), b[:i]); ok {
			t.Errorf("%d bytes of a packet are taken for one", i)
		}
	}
}

func TestArguments(t *testing.T) {
	to, timeout, ok := dialed([]string{"--timeout=3s", "--protocol=sctp", "10.0.0.1:9003"})
	if to != netip.MustParseAddrPort("10.0.0.1:9003") || timeout != 3*time.Second || !ok {
		t.Errorf("dialed %v for %v, %v", to, timeout, ok)
	}
	for _, upstreams := range [][]string{{"--protocol=tcp", "10.0.0.1:80"}, {"10.0.0.1:80"},
		{"--protocol=sctp", "name:80"},
		{"--sctp-data=x", "--protocol=sctp", "10.0.0.1:80"}} {
		if to, _, ok := dialed(upstreams); ok {
			t.Errorf("%q is taken from upstream, to %v", upstreams, to)
		}
	}
	ports, err := served([]string{"HOME=/", "SERVE_SCTP_PORT_9003=foo", "SERVE_SCTP_PORT_9005=foo", "SERVE_PORT_80=x"})
	if d := cmp.Diff([]uint16{9003, 9005}, ports); err != nil || d != "" {
		t.Errorf("ports (-want +got): %v\n%s", err, d)
	}
	if _, err := served([]string{"SERVE_SCTP_PORT_X="}); err == nil {
		t.Error("an invalid port gave no error")
	}
}
