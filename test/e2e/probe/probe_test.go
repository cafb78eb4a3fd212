package main

import (
	"errors"
	"net"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/weft-cni/weft/test/e2e/probe/wire"
)

// startEcho runs both echo servers on one free port of the loopback address.
func startEcho(t *testing.T) netip.AddrPort {
	t.Helper()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort(tcp.Addr().String())
	udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
	if err != nil {
		t.Fatal(err)
	}
	socket, err := newUDPSocket(udp)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 2)
	go func() { ended <- echoTCP(tcp) }()
	go func() { ended <- echoUDP(socket) }()
	t.Cleanup(func() {
		tcp.Close()
		udp.Close()
		for range 2 {
			if err := <-ended; !errors.Is(err, net.ErrClosed) {
				t.Errorf("an echo server ended with %v", err)
			}
		}
	})
	return addr
}

func TestDialEcho(t *testing.T) {
	addr := startEcho(t)
	target := func(proto wire.Proto, size int) wire.Target {
		return wire.Target{Proto: proto, Addr: addr.Addr(), Port: addr.Port(), Size: size, Attempts: 1,
			Timeout: 5 * time.Second}
	}
	reply := dialAll(wire.DialRequest{Targets: []wire.Target{
		target(wire.TCP, 100), target(wire.TCP, 1_000_000), target(wire.UDP, 100), target(wire.UDP,
			60_000), target(wire.Connect, 0),
	}})
	if len(reply.Results) != 5 {
		t.Fatalf("%d results", len(reply.Results))
	}
	for _, r := range reply.Results {
		if !r.OK() || r.Attempts != 1 {
			t.Errorf("%s with %d bytes: %q after %d attempts", r.Target.Proto, r.Target.Size, r.Error, r.Attempts)
		}
		if r.Target.Proto != wire.Connect && r.Observed.Addr() != addr.Addr() {
			t.Errorf("%s: observed source %s", r.Target.Proto, r.Observed)
		}
	}
}

// A client that asked 127.0.0.2 accepts no answer from 127.0.0.1, which is where the route back would have it come
// from.
func TestUDPAnswersFromTheAddressThatWasAsked(t *testing.T) {
	sockets, err := listenUDP(0)
	if err != nil {
		t.Fatal(err)
	}
	socket, ok := sockets[0].(udp4)
	if !ok {
		t.Fatalf("the first socket is %T", sockets[0])
	}
	ended := make(chan error, 1)
	go func() { ended <- echoUDP(socket) }()
	port := netip.MustParseAddrPort(socket.LocalAddr().String()).Port()
	r := dialTarget(wire.Target{Proto: wire.UDP, Addr: netip.MustParseAddr("127.0.0.2"), Port: port, Size: 10, Attempts: 1,
		Timeout: 5 * time.Second})
	if !r.OK() {
		t.Error(r.Error)
	}
	socket.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("the echo server ended with %v", err)
	}
}

func TestDialReportsWhatCannotBeReached(t *testing.T) {
	// A UDP socket that never answers, and a TCP port without a listener.
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	addr := netip.MustParseAddrPort(silent.LocalAddr().String())
	for _, proto := range []wire.Proto{wire.UDP, wire.TCP, wire.Connect, "carrier pigeon"} {
		r := dialTarget(wire.Target{Proto: proto, Addr: addr.Addr(), Port: addr.Port(), Size: 10, Attempts: 2,
			Timeout: 50 * time.Millisecond})
		if r.OK() || r.Attempts != 2 {
			t.Errorf("%s: error %q after %d attempts, want an error after 2", proto, r.Error, r.Attempts)
		}
	}
}

func TestTransfer(t *testing.T) {
	server := httptest.NewServer(httpHandler())
	defer server.Close()
	got, err := transferTo(server.URL+"/sink", 3_000_000, 10*time.Second)
	if err != nil || got.Bytes != 3_000_000 || len(got.SHA256) != 64 {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := transferTo(server.URL+"/nowhere", 10, time.Second); err == nil {
		t.Error("a transfer to nowhere succeeded")
	}
}

func TestTally(t *testing.T) {
	start := time.Unix(1000, 0)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	var y tally
	for i := range 5 {
		if seq := y.sending(at(100 * i)); seq != i {
			t.Fatalf("sequence number %d, want %d", seq, i)
		}
	}
	y.got(0, at(10))
	y.got(0, at(20)) // a duplicate
	y.got(9, at(20)) // never sent
	y.got(2, at(250))
	y.got(3, at(305))
	y.failed(errors.New("no route"))
	if y.complete() {
		t.Error("complete with two outstanding")
	}
	want := wire.Steady{
		Sent: 5, Received: 3, Lost: []int{1, 4}, LongestGap: 695 * time.Millisecond, MaxRTT: 50 * time.Millisecond,
		SendErrors: 1, FirstError: "no route",
	}
	if got := y.result(at(1000)); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	y.got(1, at(1000))
	y.got(4, at(1000))
	if !y.complete() {
		t.Error("not complete after the last answer")
	}
}
