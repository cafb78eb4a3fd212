//go:build integration

package podns_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/weft-cni/weft/test/lab/podns"
)

func newNS(t *testing.T) podns.Namespace {
	t.Helper()
	ns, err := podns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

func listen(t *testing.T, r *podns.Responder, ports ...podns.Port) (missing []podns.Port) {
	t.Helper()
	missing, err := r.Listen(ports)
	if err != nil {
		t.Fatal(err)
	}
	return missing
}

func TestResponderAnswersItsName(t *testing.T) {
	ns := newNS(t)
	r := podns.NewResponder(ns, "shop/web-0")
	t.Cleanup(r.Close)
	ports := []podns.Port{{Proto: podns.TCP, Number: 80}, {Proto: podns.UDP, Number: 80}, {Proto: podns.SCTP, Number: 80}}
	missing := listen(t, r, ports...)
	for _, p := range ports {
		for _, host := range []string{"127.0.0.1", "::1"} {
			to := netip.AddrPortFrom(netip.MustParseAddr(host), p.Number)
			answer, err := ns.Dial(p.Proto, to, 5*time.Second)
			if slices.Contains(missing, p) {
				if err == nil {
					t.Errorf("%s is said to be missing, and answers %+v", p, answer)
				}
				continue
			}
			if err != nil || answer.Outcome != podns.Answered || answer.Name != "shop/web-0" ||
				answer.Source.Addr().String() != host || answer.Source.Port() == 0 || answer.Port != p.Number {
				t.Errorf("dial %s of %s: %+v, %v", p, host, answer, err)
			}
		}
	}
	// The ports change; those that stay are not interrupted, those that go refuse.
	listen(t, r, ports[1], podns.Port{Proto: podns.TCP, Number: 81})
	for _, tc := range []struct {
		proto podns.Proto
		port  uint16
		want  podns.Outcome
	}{{podns.TCP, 80, podns.Refused}, {podns.TCP, 81, podns.Answered}, {podns.UDP, 80, podns.Answered}, {podns.UDP, 81,
		podns.Refused}} {
		answer, err := ns.Dial(tc.proto, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), tc.port), 5*time.Second)
		if err != nil || answer.Outcome != tc.want {
			t.Errorf("dial %d/%s after a change: %+v, %v; want %s", tc.port, tc.proto, answer, err, tc.want)
		}
	}
	r.Close()
	if answer, err := ns.Dial(podns.TCP, netip.MustParseAddrPort("127.0.0.1:81"), 5*time.Second); err != nil ||
		answer.Outcome != podns.Refused {
		t.Errorf("dial after Close: %+v, %v", answer, err)
	}
}

// Every attempt of UDP is a new connection for conntrack: its source port was not used before.
func TestDialUDPNewPort(t *testing.T) {
	ns := newNS(t)
	r := podns.NewResponder(ns, "shop/web-0")
	t.Cleanup(r.Close)
	listen(t, r, podns.Port{Proto: podns.UDP, Number: 80})
	seen := map[uint16]bool{}
	for range 1000 {
		answer, err := ns.Dial(podns.UDP, netip.MustParseAddrPort("127.0.0.1:80"), 5*time.Second)
		if err != nil || answer.Outcome != podns.Answered {
			t.Fatal(answer, err)
		}
		if seen[answer.Source.Port()] {
			t.Fatalf("source port %d is used again after %d attempts", answer.Source.Port(), len(seen))
		}
		seen[answer.Source.Port()] = true
	}
}

// No host: silence within the time that was given, and a network that is not there at once.
func TestDialSilence(t *testing.T) {
	ns := newNS(t)
	var mute net.Listener
	if err := ns.Do(func() (err error) {
		mute, err = net.Listen("tcp", "127.0.0.1:80") // accepts, by its backlog, and says nothing
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	begin := time.Now()
	answer, err := ns.Dial(podns.TCP, netip.MustParseAddrPort("127.0.0.1:80"), 300*time.Millisecond)
	if took := time.Since(begin); err != nil || answer.Outcome != podns.Silent || took < 300*time.Millisecond ||
		took > 5*time.Second {
		t.Errorf("a server that says nothing: %+v, %v after %s", answer, err, took)
	}
	for _, proto := range []podns.Proto{podns.TCP, podns.UDP} {
		answer, err := ns.Dial(proto, netip.MustParseAddrPort("192.0.2.1:80"), 5*time.Second)
		if err != nil || answer.Outcome != podns.Refused || answer.Detail != "network is unreachable" {
			t.Errorf("%s to where no route leads: %+v, %v", proto, answer, err)
		}
	}
	if _, err := ns.Dial("ICMP", netip.MustParseAddrPort("127.0.0.1:80"), time.Second); err == nil {
		t.Error("an unknown protocol could be dialled")
	}
}

// A namespace is its holder's: others find it by its path while it is open, and the caller's thread is never in it.
func TestNamespace(t *testing.T) {
	ns := newNS(t)
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var inside string
	if err := ns.Do(func() (err error) { inside, err = os.Readlink("/proc/thread-self/ns/net"); return err }); err != nil {
		t.Fatal(err)
	}
	again, err := podns.Open(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	var reopened string
	if err := again.Do(func() (err error) {
		reopened, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if inside == own || inside != reopened {
		t.Errorf("namespaces: own %s, the new one %s, by its path %s", own, inside, reopened)
	}
	if here, err := os.Readlink("/proc/thread-self/ns/net"); err != nil || here != own {
		t.Errorf("the caller is in %s now, was in %s (%v)", here, own, err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	if err := again.Do(func() error { return nil }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a namespace that was closed: %v, want %v", err, os.ErrClosed)
	}
	if _, err := podns.Open("/proc/self/ns/none"); err == nil {
		t.Error("a namespace that does not exist could be opened")
	}
}
