//go:build integration

package ovsdb_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// TestBlockedPorts: a blocked port of a pod is unblocked within two seconds, while the agent runs and when it starts.
func TestBlockedPorts(t *testing.T) {
	l := newLab(t)
	l.ensure()
	a := attachment(0)
	l.veth(a.HostIfName)
	l.add(a)
	l.ofctl("set-frags", "weft", "nx-match")
	config := func() string {
		_, after, _ := strings.Cut(l.ofctl("-O", "OpenFlow13", "show", "weft"), "("+a.HostIfName+")")
		_, after, _ = strings.Cut(after, "config:")
		line, _, _ := strings.Cut(after, "\n")
		return strings.TrimSpace(line)
	}
	for _, how := range []string{"down", "no-forward", "no-receive", "no-packet-in"} {
		l.ofctl("-O", "OpenFlow13", "mod-port", "weft", a.HostIfName, how)
		l.within(2, "undone: mod-port "+how, func() bool { return config() == "0" })
	}
	l.run("ip", "-n", l.netns, "link", "set", a.HostIfName, "down")
	l.within(2, "the link is up again", func() bool {
		return config() == "0" &&
			strings.Contains(l.run("ip", "-n", l.netns, "link", "show", "up", "dev", a.HostIfName), a.HostIfName)
	})
	// A removed port, whose link goes down with it, is not reported as blocked.
	ns, err := netns.GetFromName(l.netns)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	kernel, err := netlink.NewHandleAt(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer kernel.Close()
	for i := range 20 {
		other := attachment(1 + i)
		l.veth(other.HostIfName)
		l.add(other)
	}
	warned := l.warnings()
	for i := range 20 {
		name := attachment(1 + i).HostIfName
		link, err := kernel.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(l.c.RemovePort(t.Context(), name), kernel.LinkDel(link)); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(500 * time.Millisecond)
	if now := l.warnings(); now != warned {
		t.Errorf("%d warnings about a port that was removed", now-warned)
	}
	// Nor is a port that the agent is adding or removing: its link may be down because an ADD is rolled back. It is
	// unblocked all the same.
	l.c.SetChanging(func(name string) bool { return name == a.HostIfName })
	warned = l.warnings()
	l.ofctl("-O", "OpenFlow13", "mod-port", "weft", a.HostIfName, "down")
	l.within(2, "unblocked while it is being added", func() bool { return config() == "0" })
	if now := l.warnings(); now != warned {
		t.Errorf("%d warnings about a port that the agent is adding", now-warned)
	}
	l.c.SetChanging(func(string) bool { return false })
	l.ofctl("-O", "OpenFlow13", "mod-port", "weft", a.HostIfName, "down")
	l.within(2, "unblocked afterwards", func() bool { return config() == "0" && l.warnings() == warned+1 })
	// A fake switch whose ports were blocked while no agent ran.
	l.c.Close()
	l.ofctl("-O", "OpenFlow13", "mod-port", "weft", a.HostIfName, "no-forward")
	if got := config(); got != "NO_FWD" {
		t.Fatalf("config is %q without an agent", got)
	}
	l.connect()
	l.within(2, "undone at the start", func() bool { return config() == "0" })
	if got := strings.TrimSpace(l.ofctl("get-frags", "weft")); got != "nx-match" {
		t.Errorf("fragments are handled as %q, which is not the client's to change", got)
	}
}

// TestFragmentsChange: Open vSwitch tells of no change of how it treats fragments (ovs-ofctl set-frags), and Changes
// does within two seconds. An unchanged setting reports nothing.
func TestFragmentsChange(t *testing.T) {
	l := newLab(t)
	l.ensure()
	l.ofctl("set-frags", "weft", "nx-match")
	l.eventually("the switch is watched", func() bool { return l.c.Healthy() == nil })
	time.Sleep(2 * time.Second)
	l.drain()
	time.Sleep(2 * time.Second)
	select {
	case <-l.c.Changes():
		t.Error("a change was reported, and there was none")
	default:
	}
	for _, mode := range []string{"drop", "normal", "nx-match"} {
		l.ofctl("set-frags", "weft", mode)
		l.within(2, "a change of fragments to "+mode+" is reported", func() bool {
			select {
			case <-l.c.Changes():
				return true
			default:
				return false
			}
		})
	}
}
