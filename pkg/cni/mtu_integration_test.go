//go:build integration

package cni_test

import (
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
)

// TestMTUOfRunningPods: a new MTU reaches running pods, also after a restart of the agent, and a pod that cannot be
// changed does not keep others from it.
func TestMTUOfRunningPods(t *testing.T) {
	n := newNode(t, "10.20.0.0/24")
	list := n.conf("1.1.0", "")
	a, b := n.pod("a"), n.pod("b")
	n.mustAdd(list, a)
	n.mustAdd(list, b)
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	n.start()
	wantMTU := func(mtu int, pods ...*pod) {
		t.Helper()
		for _, p := range pods {
			check(t, p.netns.Do(func(ns.NetNS) error {
				link, err := netlink.LinkByName("eth0")
				if err == nil && link.Attrs().MTU != mtu {
					t.Errorf("eth0 of %s has MTU %d, want %d", p.rt.ContainerID, link.Attrs().MTU, mtu)
				}
				return err
			}))
		}
		for _, att := range n.attached() {
			for _, p := range pods {
				if att.ContainerID != p.rt.ContainerID {
					continue
				}
				link, err := netlink.LinkByName(att.HostIfName)
				check(t, err)
				if link.Attrs().MTU != mtu {
					t.Errorf("%s has MTU %d, want %d", att.HostIfName, link.Attrs().MTU, mtu)
				}
			}
		}
	}
	wantMTU(1400, a, b)
	for _, mtu := range []int{1300, 1450} {
		check(t, n.server.SetMTU(t.Context(), mtu))
		wantMTU(mtu, a, b)
	}

	// Another interface in the place of a's eth0, which Weft must not change.
	check(t, a.netns.Do(func(ns.NetNS) error {
		link, err := netlink.LinkByName("eth0")
		check(t, err)
		check(t, netlink.LinkSetDown(link))
		check(t, netlink.LinkSetName(link, "old0"))
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", MTU: 1234}, PeerName: "other0"})
	}))
	if err := n.server.SetMTU(t.Context(), 1200); err == nil || !strings.Contains(err.Error(), "pod default/a") ||
		strings.Contains(err.Error(), "default/b") {
		t.Errorf("error %v, want one that names default/a alone", err)
	}
	wantMTU(1200, b)
	check(t, a.netns.Do(func(ns.NetNS) error {
		link, err := netlink.LinkByName("eth0")
		if err == nil && link.Attrs().MTU != 1234 {
			t.Errorf("a link that is not ours got MTU %d", link.Attrs().MTU)
		}
		return err
	}))
}
