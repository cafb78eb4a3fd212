package main

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/test/e2e/probe/wire"
)

func TestKnock(t *testing.T) {
	// The second address has no listener.
	echo := startEcho(t)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	unserved := netip.MustParseAddrPort(closed.Addr().String())
	closed.Close()
	done := make(chan struct{})
	time.AfterFunc(time.Second, func() { close(done) })
	reply := knockUntil([]netip.AddrPort{echo, unserved}, 5*time.Millisecond, 5*time.Second, done)
	good, bad := reply.Series[0], reply.Series[1]
	if good.Sent < 2 || good.Received != good.Sent || good.SendErrors != 0 {
		t.Errorf("knocking at an echo server: %+v", good)
	}
	if bad.Sent < 2 || bad.Received != 0 || bad.SendErrors != bad.Sent || !strings.Contains(bad.FirstError, "refused") {
		t.Errorf("knocking without a listener: %+v", bad)
	}
}

// answerDNS answers a query for addresses: the record points to the name in the question.
func answerDNS(query []byte, addr netip.Addr) []byte {
	end := 12
	for query[end] != 0 {
		end += int(query[end]) + 1
	}
	end += 5 // the root's length, type, class
	answer := append([]byte{}, query[:end]...)
	copy(answer[2:12], []byte{0x84, 0, 0, 1, 0, 1, 0, 0, 0, 0}) // an authoritative answer; one question, one record
	answer = append(answer, 0xc0, 12, query[end-4], query[end-3], 0, 1, 0, 0, 0, 5, 0, byte(addr.BitLen()/8))
	return append(answer, addr.AsSlice()...)
}

func TestResolve(t *testing.T) {
	want := netip.MustParseAddr("192.0.2.7")
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", udp.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { udp.Close(); tcp.Close() })
	go func() {
		buf := make([]byte, 512)
		for {
			n, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = udp.WriteTo(answerDNS(buf[:n], want), from)
		}
	}()
	go func() {
		for {
			conn, err := tcp.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 514)
			if n, err := conn.Read(buf); err == nil && n > 2 {
				answer := answerDNS(buf[2:n], want)
				_, _ = conn.Write(append([]byte{0, byte(len(answer))}, answer...))
			}
			conn.Close()
		}
	}()
	server := netip.MustParseAddrPort(udp.LocalAddr().String())
	reply := resolveAll(wire.ResolveRequest{Queries: []wire.Query{
		{Name: "a.example.", IPv4: true, Server: server, Net: "udp", Timeout: 5 * time.Second},
		{Name: "a.example.", IPv4: true, Server: server, Net: "tcp", Timeout: 5 * time.Second},
		{Name: "a.example.", IPv4: true, Server: netip.AddrPortFrom(server.Addr(), 1), Net: "tcp", Timeout: 5 * time.Second},
	}})
	for i, a := range reply.Answers[:2] {
		if a.Error != "" || len(a.Addrs) != 1 || a.Addrs[0] != want {
			t.Errorf("query %d: %+v", i, a)
		}
	}
	if a := reply.Answers[2]; a.Error == "" || len(a.Addrs) > 0 {
		t.Errorf("no server was asked: %+v", a)
	}
}
