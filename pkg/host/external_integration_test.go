//go:build integration

package host

import (
	"strings"
	"testing"
)

// TestHostBehindExternalAddress: a host has the address that a Service claims. The Service receives the node's packets
// to its own protocol and port, and the host all others: pods and the node reach it, and it reaches the node and node
// ports.
func TestHostBehindExternalAddress(t *testing.T) {
	n := newServiceNode(t, withServices())
	here := n.here()
	n.in(n.out, func() {
		n.run("ip addr add 198.51.100.80/32 dev out0; ip -6 addr add 2001:db8:80::1/128 dev out0 nodad")
	})
	const np4, udp4 = "169.254.87.1", "240.87.117.101"
	// A packet that has lost its mark on the way to the switch.
	n.run(`nft 'table inet seen { chain c { type filter hook postrouting priority 300; oifname "weft0" meta mark & 0x1000 != 0 counter; }; }'`)
	check := func(attempts map[attempt]string) {
		t.Helper()
		for a, want := range attempts {
			if got := a.run(n, patience); got != want {
				t.Errorf("%s, %s, %s: the listener sees %q, want %q", a.what, a.network, a.dest, got, want)
			}
		}
	}
	check(map[attempt]string{
		{"the node to the Service", "tcp", here, "", "198.51.100.80:80", n.pods, "198.51.100.80:80",
			false}: "10.244.1.1",
		{"the node to the Service", "udp", here, "", "198.51.100.80:53", n.pods, "198.51.100.80:53",
			false}: "10.244.1.1",
		{"the node to the Service", "tcp", here, "", "[2001:db8:80::1]:80", n.pods, "[2001:db8:80::1]:80",
			false}: "fd00:10:1::1",
		{"the node to another port", "tcp", here, "", "198.51.100.80:81", n.out, "198.51.100.80:81",
			false}: "192.0.2.1",
		{"the node to another protocol", "udp", here, "", "198.51.100.80:80", n.out, "198.51.100.80:80",
			false}: "192.0.2.1",
		{"the node to another port", "udp", here, "", "[2001:db8:80::1]:81", n.out, "[2001:db8:80::1]:81",
			false}: "2001:db8::1",
		{"the host to the node", "tcp", n.out, "198.51.100.80", "192.0.2.1:8080", here, "192.0.2.1:8080",
			false}: "198.51.100.80",
		{"the host to a node port", "udp", n.out, "198.51.100.80", "192.0.2.1:30053", n.pods, udp4 + ":30053",
			true}: "198.51.100.80",
		{"the host to the node", "tcp", n.out, "2001:db8:80::1", "[2001:db8::1]:8080", here, "[2001:db8::1]:8080",
			false}: "2001:db8:80::1",
	})
	// From the Service's own port.
	server, client := n.udp(here, "192.0.2.1:8081"), n.udp(n.out, "198.51.100.80:53")
	if from := n.hears(server, client, "192.0.2.1:8081", patience); !from.IsValid() ||
		!n.hears(client, server, from.String(), patience).IsValid() {
		t.Error("the host, from the Service's port, to the node: no answer")
	}
	if seen := n.run("nft list table inet seen"); !strings.Contains(seen, "counter packets 0 ") {
		t.Errorf("packets leave for the switch with their mark: %s", seen)
	}
	n.run("ip route del default; ip -6 route del default")
	check(map[attempt]string{
		{"the node without default route to the Service", "tcp", here, "", "198.51.100.80:80", n.pods, "198.51.100.80:80",
			false}: "10.244.1.1",
		{"the node without default route to the Service", "tcp", here, "", "[2001:db8:80::1]:80", n.pods,
			"[2001:db8:80::1]:80", false}: "fd00:10:1::1",
	})
	n.run("ip route add default via 192.0.2.2; ip -6 route add default via 2001:db8::2")
	n.in(n.pods, func() { n.run("ip addr del 198.51.100.80/32 dev switch0; ip addr del 2001:db8:80::1/128 dev switch0") })
	check(map[attempt]string{
		{"a pod to another port", "tcp", n.pods, "10.244.1.7", "198.51.100.80:81", n.out, "198.51.100.80:81",
			false}: "192.0.2.1",
		{"a pod to another port", "udp", n.pods, "fd00:10:1::7", "[2001:db8:80::1]:81", n.out, "[2001:db8:80::1]:81",
			false}: "2001:db8::1",
		{"the host to a node port", "tcp", n.out, "198.51.100.80", "192.0.2.1:30080", n.pods, np4 + ":30080",
			false}: "198.51.100.80",
	})
}
