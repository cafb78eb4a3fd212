//go:build e2e

package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/test/e2e/probe/wire"
)

// Every node to every pod, and every pod to every node, its own among them. A pod in its node's network has the node's
// addresses, so this is host→pod and pod→host as well.
func TestHostsAndPods(t *testing.T) {
	pods, hosts := meshPods(t)
	wanted := map[*pod][]wire.Target{}
	for _, p := range pods {
		for _, h := range hosts {
			wanted[h] = append(wanted[h], targetsOf(p)...)
			wanted[p] = append(wanted[p], targetsOf(h)...)
		}
	}
	for from, results := range reach(t, wanted) {
		for _, r := range results {
			if r.Target.Proto == wire.ICMP || !from.host {
				continue
			}
			// A tunnel's other end accepts only what the sending node owns, so a node speaks with its own addresses.
			if n := nodeNamed(from.node); !n.owns(r.Observed.Addr()) {
				t.Errorf("%s → %s by %s: arrives from %s, which node %s does not own: %v, %v", from, r.Target.Name, r.Target.Proto,
					r.Observed, n.name, n.addrs, n.podCIDRs)
			}
		}
	}
}

func nodeNamed(name string) node {
	i := slices.IndexFunc(env.nodes, func(n node) bool { return n.name == name })
	return env.nodes[i]
}

// owns tells whether the address is the node's own or of its pod CIDRs.
func (n node) owns(a netip.Addr) bool {
	return slices.Contains(n.addrs, a) || slices.ContainsFunc(n.podCIDRs, func(p netip.Prefix) bool {
		return p.Contains(a)
	})
}

// Pods reach what lies beyond the nodes, on the underlay and behind the default route, and arrive there with the
// address of their node: the host outside has no route to pods and could not answer otherwise.
func TestPodsToOutside(t *testing.T) {
	pods, _ := meshPods(t)
	serveOutside(t)
	wanted := map[*pod][]wire.Target{}
	for _, p := range pods {
		for _, addr := range slices.Concat(env.record.Outside.Addrs, env.record.Outside.Beyond) {
			for _, proto := range []wire.Proto{wire.ICMP, wire.TCP, wire.UDP} {
				wanted[p] = append(wanted[p], target("outside", proto, addr, echoPort, smallPayload))
			}
		}
	}
	for from, results := range reach(t, wanted) {
		n := nodeNamed(from.node)
		for _, r := range results {
			if r.Target.Proto != wire.ICMP && !slices.Contains(n.addrs, r.Observed.Addr()) {
				t.Errorf("%s → outside (%s) by %s: arrives from %s, want an address of %s: %v", from, r.Target.Addr, r.Target.Proto,
					r.Observed, n.name, n.addrs)
			}
		}
	}
	for _, p := range []*pod{pods[0], pods[2], pods[4]} {
		var large []wire.Target
		for _, addr := range slices.Concat(env.record.Outside.Addrs, env.record.Outside.Beyond) {
			large = append(large, target("outside", wire.UDP, addr, echoPort, largeDatagram()))
		}
		reach(t, map[*pod][]wire.Target{p: large})
	}
}

func TestPodsToAPIServer(t *testing.T) {
	pods, _ := meshPods(t)
	slices, err := env.client.DiscoveryV1().EndpointSlices("default").List(t.Context(), metav1.ListOptions{
		LabelSelector: discoveryv1.LabelServiceName + "=kubernetes"})
	if err != nil {
		t.Fatal(err)
	}
	var targets []wire.Target
	for _, s := range slices.Items {
		for _, e := range s.Endpoints {
			for _, text := range e.Addresses {
				addr, err := netip.ParseAddr(text)
				if err != nil {
					t.Fatal(err)
				}
				for _, port := range s.Ports {
					targets = append(targets, target("API server port "+strconv.Itoa(int(*port.Port)), wire.Connect, addr,
						uint16(*port.Port), 0))
				}
			}
		}
	}
	if len(targets) == 0 {
		t.Fatal("the API server has published no endpoint")
	}
	wanted := map[*pod][]wire.Target{}
	for _, p := range pods {
		wanted[p] = targets
	}
	reach(t, wanted)
}

// overhead is what the way between nodes takes of the underlay's MTU: nothing without a tunnel; with one the outer IP
// header, UDP's and the tunnel's 8 bytes (RFC 8926, RFC 7348) or GRE's 4 (RFC 2784), and the inner Ethernet header.
func (s status) overhead(outer netip.Addr) int {
	if s.Transport == string(model.ModeDirect) {
		return 0
	}
	header := 8 + 8 + 14
	if s.TunnelType == string(model.GRE) {
		header = 4 + 14
	}
	if outer.Is4() {
		return 20 + header
	}
	return 40 + header
}

// A pod's MTU leaves exactly room for the encapsulation, and a packet of that size crosses the nodes unfragmented.
func TestMTU(t *testing.T) {
	pods, hosts := meshPods(t)
	wanted := map[*pod][]wire.Target{}
	for i, n := range env.nodes {
		s, err := n.status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := underlayMTU(t, hosts[i], n) - s.overhead(n.addrs[0])
		for _, p := range pods[2*i : 2*i+2] {
			if got := p.link(t, "eth0").MTU; got != want {
				t.Errorf("eth0 of %s on %s has MTU %d, want %d", p, n.name, got, want)
			}
		}
		from, to := pods[2*i], pods[(2*i+2)%len(pods)]
		for _, addr := range to.addrs {
			headers := 20 + 8
			if addr.Is6() {
				headers = 40 + 8
			}
			full := target(fmt.Sprintf("%s with a full packet", to), wire.ICMP, addr, 0, want-headers)
			full.DontFragment = true
			wanted[from] = append(wanted[from], full)
		}
	}
	reach(t, wanted)
}

// underlayMTU is the MTU of the link that holds the node's primary address.
func underlayMTU(t *testing.T, host *pod, n node) int {
	t.Helper()
	return underlayLink(t, host, n).MTU
}

// underlayLink is the link that holds the node's primary address.
func underlayLink(t *testing.T, host *pod, n node) wire.Link {
	t.Helper()
	var reply wire.LinksReply
	if err := host.probe(t.Context(), nil, &reply, "links"); err != nil {
		t.Fatal(err)
	}
	for _, l := range reply.Links {
		for _, prefix := range l.Addrs {
			if prefix.Addr() == n.addrs[0] {
				return l
			}
		}
	}
	t.Fatalf("no link of %s has its address %s: %+v", n.name, n.addrs[0], reply.Links)
	return wire.Link{}
}
