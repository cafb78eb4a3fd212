//go:build integration

package host

import (
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestCounterIsNoChange: packets that the filter drops do not make the table look changed, neither to a Sync nor to a
// new agent.
func TestCounterIsNoChange(t *testing.T) {
	n := newNode(t)
	d := withServices()
	n.sync(d)
	n.link("pod1", "eth1", n.pods)
	n.run("ip link set pod1 group 0x77656674 up")
	pod1, err := netlink.LinkByName("pod1")
	if err != nil {
		t.Fatal(err)
	}
	mac := pod1.Attrs().HardwareAddr.String()
	n.in(n.pods, func() {
		n.run("ip link set eth1 up; ip addr add 10.9.9.1/24 dev eth1; ip neigh add 10.9.9.2 lladdr " + mac +
			" dev eth1; ! ping -c 1 -W 1 10.9.9.2 >/dev/null")
	})
	const counter = "nft list chain inet weft from-pod-links"
	before := n.run(counter)
	if !strings.Contains(before, "counter packets ") || strings.Contains(before, "packets 0 ") {
		t.Fatalf("nothing was dropped: %s", before)
	}
	if changed := n.sync(d); len(changed) > 0 {
		t.Errorf("changed %q", changed)
	}
	n.h = New(n.nft, "/proc/sys", n.h.log)
	if err := n.h.FilterPodLinks(t.Context()); err != nil {
		t.Error(err)
	}
	if changed := n.sync(d); len(changed) > 0 {
		t.Errorf("a new agent changed %q", changed)
	}
}
