package connectivity

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// TestServeAndDial: a server sends back what its clients send, at each of its ports; what is not served is an error.
func TestServeAndDial(t *testing.T) {
	free := func() (string, string) {
		l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // closed at once
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		_, port, _ := net.SplitHostPort(l.Addr().String())
		return l.Addr().String(), port
	}
	first, port := free()
	second, otherPort := free()
	none, _ := free()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, "127.0.0.1", port, otherPort) }()
	const within = time.Minute
	await := []Target{{Protocol: TCP, Address: first, Attempts: 1, Timeout: within},
		{Protocol: TCP, Address: second, Attempts: 1, Timeout: within}}
	for deadline := time.Now().Add(time.Minute); ; {
		if r := Dial(ctx, await); r[0].Error == "" && r[1].Error == "" {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("the server does not answer: %+v", r)
		}
	}
	results := Dial(ctx, []Target{
		{Protocol: HTTP, Address: first, Size: transfer, Timeout: within},
		{Protocol: HTTP, Address: second, Timeout: within},
		{Protocol: UDP, Address: first, Size: 64, Timeout: within},
		{Protocol: UDP, Address: first, Size: LargestPacket, Timeout: within},
		{Protocol: HTTP, Address: none, Attempts: 2, Timeout: within},
		{Protocol: UDP, Address: second, Timeout: within},
		{Protocol: DNS, Address: "localhost", Want: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, Timeout: within},
		{Protocol: DNS, Address: "localhost", Want: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Timeout: within},
		{Protocol: "GRE", Address: first, Timeout: within},
	})
	for i, want := range []string{"", "", "", "", "connect: connection refused", "read: connection refused", "",
		"it has the addresses", `unknown protocol "GRE"`} {
		if got := results[i].Error; got != want && (want == "" || !strings.HasPrefix(got, want)) {
			t.Errorf("target %d: %q, want %q", i, got, want)
		}
	}
	if !strings.HasPrefix(results[3].Detail, "packet of ") {
		t.Errorf("%+v", results[3])
	}
	if r := Dial(ctx, []Target{{Protocol: TCP, Address: "192.0.2.1:9",
		Timeout: time.Nanosecond}}); r[0].Error != "no answer within 1ns" {
		t.Errorf("%+v", r)
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("serve: %v", err)
	}
}
