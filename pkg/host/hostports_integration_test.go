//go:build integration

package host

import (
	"net/netip"
	"testing"

	"github.com/weft-cni/weft/pkg/model"
)

// TestHostPorts: a host port leads to its pod from all sources, is restored after a flush of the host's firewall, and
// is deleted with its pod. A UDP socket that was opened in between is served, too.
func TestHostPorts(t *testing.T) {
	d := withServices()
	n := newServiceNode(t, d)
	here := n.here()
	tries := func(when string, works bool) {
		t.Helper()
		for _, a := range []attempt{
			{what: "from outside", network: "tcp", from: n.out, dest: "192.0.2.1:18080", at: n.pods, listen: "10.244.1.7:80"},
			{what: "from outside, IPv6", network: "tcp", from: n.out, dest: "[2001:db8::1]:18080", at: n.pods,
				listen: "[fd00:10:1::7]:80"},
			{what: "from outside, UDP", network: "udp", from: n.out, dest: "192.0.2.1:18053", at: n.pods,
				listen: "10.244.1.7:53"},
			{what: "from the node", network: "tcp", from: here, dest: "192.0.2.1:18080", at: n.pods, listen: "10.244.1.7:80"},
			{what: "at one address", network: "tcp", from: n.out, dest: "192.0.2.50:18081", at: n.pods, listen: "10.244.1.7:81"},
			{what: "at one address, IPv6", network: "tcp", from: n.out, dest: "[2001:db8::50]:18081", at: n.pods,
				listen: "[fd00:10:1::7]:81"},
		} {
			wait := patience
			if !works {
				wait = brevity
			}
			if seen := a.run(n, wait); (seen != "") != works {
				t.Errorf("%s, %s: the pod sees %q", when, a.what, seen)
			}
		}
		elsewhere := attempt{what: "at another address", network: "tcp", from: n.out, dest: "192.0.2.1:18081", at: n.pods,
			listen: "10.244.1.7:81"}
		if seen := elsewhere.run(n, brevity); seen != "" {
			t.Errorf("%s: a host port at 192.0.2.50 is at 192.0.2.1, too", when)
		}
	}
	tries("at first", true)
	n.run("nft flush ruleset; nft 'table inet foreign { chain c { type filter hook input priority 10; ct state " +
		"established accept; }; }'")
	speaker, node, pod := n.udp(n.out, "192.0.2.2:40001"), n.udp(here, "192.0.2.1:18053"), n.udp(n.pods, "10.244.1.7:53")
	if !n.hears(node, speaker, "192.0.2.1:18053", patience).IsValid() {
		t.Fatal("without the table the node does not hear a datagram to its port: the test sees nothing")
	}
	n.sync(d)
	n.flush()
	if !n.hears(pod, speaker, "192.0.2.1:18053", patience).IsValid() {
		t.Error("a socket that began while the firewall was flushed does not reach the host port")
	}
	pod.Close()
	node.Close()
	tries("after a flush of the firewall", true)
	d.HostPorts = nil
	n.write(d)
	tries("when the pod is gone", false)
}

// TestPodAtItsOwnHostPort: a pod that reaches itself through the node does not see its own address as the source.
func TestPodAtItsOwnHostPort(t *testing.T) {
	d := withServices()
	n := newServiceNode(t, d)
	n.in(n.pods, func() { n.run("ip addr add 10.244.1.8/24 dev switch0") })
	try := attempt{what: "to itself", network: "udp", from: n.pods, source: "10.244.1.7", dest: "192.0.2.1:18053",
		at: n.pods, listen: "10.244.1.7:53", oneWay: true}
	if seen := try.run(n, patience); seen != "10.244.1.1" {
		t.Errorf("the pod sees %q, want the gateway", seen)
	}
	try.source = "10.244.1.8"
	if seen := try.run(n, patience); seen != "10.244.1.8" {
		t.Errorf("a pod beside it is seen as %q, want itself: policies match it", seen)
	}
}

// TestHostPortConflict: an invalid host port, and the second of two with one address and port, is reported and does not
// affect others.
func TestHostPortConflict(t *testing.T) {
	to := netip.MustParseAddrPort
	d := Desired{HostPorts: []HostPort{
		{Protocol: model.TCP, Port: 80, To: to("10.244.1.9:1")}, {Protocol: model.TCP, Port: 80, To: to("10.244.1.8:1")},
		{Protocol: model.TCP, Port: 80, To: to("[fd00::8]:1")}, {Protocol: "ICMP", Port: 1, To: to("10.244.1.8:1")},
		{Addr: netip.MustParseAddr("192.0.2.1"), Protocol: model.TCP, Port: 80, To: to("[fd00::8]:1")},
	}}
	if errs := sortPorts(&d.HostPorts); len(errs) != 3 || len(d.HostPorts) != 2 ||
		d.HostPorts[0].To != to("10.244.1.8:1") {
		t.Errorf("%v remain, errors %v", d.HostPorts, errs)
	}
}

// TestNodePortAddresses: with a list, only its addresses serve node ports, in the families that it names.
func TestNodePortAddresses(t *testing.T) {
	d := withServices()
	d.NodePortAddrs = prefixes("192.0.2.1/32", "203.0.113.0/24")
	n := newServiceNode(t, d)
	for _, a := range []struct {
		dest, listen string
		served       bool
	}{
		{"192.0.2.1:30080", "169.254.87.1:30080", true},
		{"192.0.2.50:30080", "169.254.87.1:30080", false},
		{"[2001:db8::1]:30080", "[fd57:6566:7400::1]:30080", true},
		{"192.0.2.50:18081", "10.244.1.7:81", true}, // a host port, not a node port
	} {
		wait := patience
		if !a.served {
			wait = brevity
		}
		try := attempt{what: a.dest, network: "tcp", from: n.out, dest: a.dest, at: n.pods, listen: a.listen}
		if seen := try.run(n, wait); (seen != "") != a.served {
			t.Errorf("%s: served as %q, want served %t", a.dest, seen, a.served)
		}
	}
	local := prefixes("192.0.2.1/32", "192.0.2.50/32")
	for dest, want := range map[string]bool{"192.0.2.1:30053": true, "192.0.2.50:30053": false} {
		at := netip.MustParseAddrPort(dest)
		c := connection{protocol: 17, source: netip.MustParseAddrPort("192.0.2.9:1"), destination: at, replySource: at,
			replyDestination: netip.MustParseAddrPort("192.0.2.9:1")}
		if got := translationsOf(d, local, removedTranslations{}).outdated(c); got != want {
			t.Errorf("a socket that sends to %s since before the node port is flushed: %t", dest, got)
		}
	}
}
