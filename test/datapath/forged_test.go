//go:build integration

package datapath

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/test/lab/labtest"
)

// A host outside of the cluster sends to an isolated pod with the address of a pod that the policy allows, of the node
// itself and of its gateway: the policy would allow the first, and any policy the others. No packet arrives.
func TestForgedByHostOutside(t *testing.T) {
	file := filepath.Join(labtest.Write(t, map[string]string{"f.yaml": podManifest("web", "web", "node1", 8080, "") +
		podManifest("friend", "friend", "node2", 8080, "") + podManifest("stranger", "stranger", "node2", 8080,
		"") + podManifest("host-1", "host", "node1", 9, hostNetwork) + `
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]
`}), "f.yaml")
	l := labtest.Up(t, "forged", "-f", file, "--nodes=2", "--ip-family=dual")
	s := l.Status()
	web, friend, stranger := openClient(t, s, "web", "node1", "pod"), openClient(t, s, "friend", "node2",
		"pod"), openClient(t, s, "stranger", "node2", "pod")
	node, outside := openClient(t, s, "host-1", "node1", "node"), openClient(t, s, "outside", "", "outside")
	for _, f := range []string{"all", "br-phy", "weft0", "default"} {
		l.Run("node/node1", "sh", "-c", fmt.Sprintf("echo 2 > /proc/sys/net/ipv4/conf/%s/rp_filter", f))
	}
	var listener *net.UDPConn
	if err := web.ns.Do(func() (err error) {
		listener, err = net.ListenUDP("udp", &net.UDPAddr{Port: 7777})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	// hears says whether the pod receives a datagram that a client sends with this source.
	hears := func(from *client, source, to netip.Addr, within time.Duration) bool {
		t.Helper()
		var conn *net.UDPConn
		if err := from.ns.Do(func() (err error) {
			conn, err = net.DialUDP("udp", &net.UDPAddr{IP: source.AsSlice()}, &net.UDPAddr{IP: to.AsSlice(), Port: 7777})
			return err
		}); err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for range 3 {
			if _, err := conn.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		if err := listener.SetReadDeadline(time.Now().Add(within)); err != nil {
			t.Fatal(err)
		}
		heard := false
		for {
			_, _, err := listener.ReadFromUDPAddrPort(make([]byte, 1))
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return heard
			}
			if err != nil {
				t.Fatal(err)
			}
			heard = true
			if err := listener.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
		}
	}
	status := s.Nodes[0]
	for _, v4 := range []bool{true, false} {
		to, own, bits := of(web.ips, v4), of(status.Addrs, v4), 128
		if v4 {
			bits = 32
		}
		var gateway netip.Addr
		for _, c := range status.PodCIDRs {
			if c.Addr().Is4() == v4 {
				gateway = model.GatewayAddr(c)
			}
		}
		// The node's address is a local one of the host outside, too, so its way there is by the next hop's MAC.
		l.Run("outside", "sh", "-ec", fmt.Sprintf("ping -c1 -W5 %[1]s >/dev/null; "+
			"mac=$(ip neigh show %[1]s | sed -n 's/.*lladdr \\([0-9a-f:]*\\).*/\\1/p'); dev=$(ip neigh show %[1]s | sed -n "+
			"'s/.*dev \\([^ ]*\\).*/\\1/p'); "+
			"for hop in 172.31.0.99 fd57:6566:7461::99; do ip neigh replace $hop lladdr $mac dev $dev; done; "+
			"ip route replace %[2]s/%[3]d via %[4]s dev $dev", own, to, bits, map[bool]string{true: "172.31.0.99",
			false: "fd57:6566:7461::99"}[v4]))
		for who, source := range map[string]netip.Addr{
			"a pod that the policy allows": of(friend.ips, v4), "this node": own, "this node's gateway": gateway,
		} {
			// Without nodad the kernel makes an IPv6 address usable a moment after it has said yes, on lo, too.
			l.Run("outside", "ip", "addr", "add", fmt.Sprintf("%s/%d", source, bits), "dev", "lo", "nodad")
			if hears(outside, source, to, time.Second) {
				t.Errorf("the isolated pod receives what a host outside sends in the name of %s, %s", who, source)
			}
			l.Run("outside", "ip", "addr", "del", fmt.Sprintf("%s/%d", source, bits), "dev", "lo")
		}
		patience := testenv.Patience(5 * time.Second)
		for who, from := range map[string]*client{"the pod that the policy allows": friend, "its node": node} {
			if !hears(from, of(from.ips, v4), to, patience) {
				t.Errorf("the isolated pod does not receive what %s sends", who)
			}
		}
		if hears(stranger, of(stranger.ips, v4), to, time.Second) {
			t.Error("the policy lets a pod pass that it does not allow: the test is about nothing")
		}
	}
}
