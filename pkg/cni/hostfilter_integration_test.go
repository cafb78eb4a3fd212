//go:build integration

package cni_test

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
)

// TestPodCannotPassTheSwitch sends from a pod directly to the node's end of its veth, as a hostile pod would. The
// bridge has no flows, so none of the packets may arrive anywhere.
func TestPodCannotPassTheSwitch(t *testing.T) {
	n := newNode(t, "10.20.0.0/24")
	p := n.pod("web")
	r := n.mustAdd(n.conf("1.0.0", ""), p)
	gateway, err := netlink.LinkByName("weft0")
	check(t, err)
	ip := net.IP{10, 20, 0, 1}
	check(t, netlink.AddrReplace(gateway, &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: net.CIDRMask(24, 32)}}))
	check(t, netlink.LinkSetUp(gateway))
	node, err := net.ListenUDP("udp4", &net.UDPAddr{IP: ip, Port: 9999})
	check(t, err)
	defer node.Close()

	for _, mac := range []string{r.Interfaces[0].Mac, "ff:ff:ff:ff:ff:ff"} {
		hw, err := net.ParseMAC(mac)
		check(t, err)
		check(t, p.netns.Do(func(ns.NetNS) error {
			eth0, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: eth0.Attrs().Index, State: netlink.NUD_PERMANENT, IP: ip,
				HardwareAddr: hw}); err != nil {
				return err
			}
			c, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: ip, Port: 9999})
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte("hello"))
			return err
		}))
	}
	n.eventually("both datagrams were dropped", func() bool {
		out, err := exec.Command("nft", "list", "table", "inet", "weft").CombinedOutput()
		if err != nil {
			t.Fatalf("nft: %v: %s", err, out)
		}
		return strings.Contains(string(out), "packets 2 ")
	})
	check(t, node.SetReadDeadline(time.Now()))
	if _, from, err := node.ReadFrom(make([]byte, 10)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the node received a datagram from %v past the switch (%v)", from, err)
	}
}
