//go:build integration

package peerprobe

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/weft-cni/weft/internal/testing/testenv"
)

// TestKernelAnswers: a kernel answers requests of both families and sizes; a link that is too narrow for the full size
// is named, although the kernel that is asked has told nothing about it, and so is a node that is gone.
func TestKernelAnswers(t *testing.T) {
	runtime.LockOSThread() // never unlocked: the namespaces end with the test
	far := namespace(t)
	near := namespace(t)
	if err := netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "near"}, PeerName: "far", PeerNamespace: netlink.NsFd(far),
	}); err != nil {
		t.Fatal(err)
	}
	for ns, commands := range map[netns.NsHandle]string{
		near: "ip addr add 192.0.2.1/24 dev near; ip addr add 2001:db8::1/64 dev near nodad; ip link set near up; " +
			"ip route add 10.244.2.0/24 via 192.0.2.2; ip route add fd44:2::/64 via 2001:db8::2",
		far: "ip link set lo up; ip addr add 192.0.2.2/24 dev far; ip addr add 2001:db8::2/64 dev far nodad; ip link set " +
			"far up; ip addr add 10.244.2.1/32 dev lo; ip addr add fd44:2::1/128 dev lo nodad",
	} {
		run(t, ns, commands)
	}
	if err := netns.Set(near); err != nil {
		t.Fatal(err)
	}
	p, err := Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() { read <- p.socket.receive(p.answer) }()
	t.Cleanup(func() {
		p.socket.close()
		if err := <-read; err != nil {
			t.Error(err)
		}
	})
	two, two6 := netip.MustParseAddr("10.244.2.1"), netip.MustParseAddr("fd44:2::1")
	p.Set([]Peer{{Name: "two", Gateways: []netip.Addr{two, two6}}}, 1500)
	p.ask()
	// answered waits for the newest requests of a size.
	answered := func(full bool) {
		t.Helper()
		testenv.Eventually(t, 10*time.Second, func() error {
			p.mu.Lock()
			defer p.mu.Unlock()
			for _, addr := range []netip.Addr{two, two6} {
				if missed := p.targets[addr].of(full).missed; missed > 0 {
					return fmt.Errorf("%s has not answered %d requests (full size: %t)", addr, missed, full)
				}
			}
			return nil
		})
	}
	answered(false)
	answered(true)
	if r := p.Results()["two"]; r.Problem != "" || r.RTT <= 0 {
		t.Errorf("all was answered: %+v", r)
	}

	run(t, far, "ip link set far mtu 1400")
	// What the kernel believes about the way must not make it send fragments, which would arrive.
	run(t, near, "ip route change 10.244.2.0/24 via 192.0.2.2 mtu 1400; ip route change fd44:2::/64 via 2001:db8::2 mtu "+
		"1400")
	for range tries + 1 {
		p.ask()
		answered(false)
	}
	if r := p.Results()["two"]; !strings.HasPrefix(r.Problem, "packets of 1500 bytes to its gateway 10.244.2.1 are lost") {
		t.Errorf("the link has become narrow: %+v", r)
	}
	run(t, far, "ip link set far mtu 1500")
	p.ask()
	answered(true)

	run(t, far, "ip link set far down")
	for range tries + 1 {
		p.ask()
	}
	if r := p.Results()["two"]; !strings.HasPrefix(r.Problem, "its gateway 10.244.2.1 has not answered since ") {
		t.Errorf("the node is gone: %+v", r)
	}
}

func namespace(t *testing.T) netns.NsHandle {
	t.Helper()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// run runs commands in a namespace.
func run(t *testing.T, ns netns.NsHandle, commands string) {
	t.Helper()
	here, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	err = netns.Set(ns)
	if err == nil {
		var out []byte
		if out, err = exec.CommandContext(t.Context(), "sh", "-ec", commands).CombinedOutput(); err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
	}
	if err = errors.Join(err, netns.Set(here)); err != nil {
		t.Fatal(err)
	}
}
