//go:build integration

package datapath

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/test/lab/podns"
)

// targetKind is a kind of address that a Service has.
type targetKind string

const (
	clusterIP   targetKind = "cluster IP"
	nodePort    targetKind = "node port"
	balancerIP  targetKind = "LoadBalancer IP"
	externalIP  targetKind = "external IP"
	nodeAddress targetKind = "external IP that is a node's own"
)

// target is one way to a Service.
type target struct {
	kind targetKind
	// node is where packets from outside come in: the node whose address it is, or that the router leads to.
	node  string
	addr  netip.AddrPort
	proto podns.Proto
}

func (t target) String() string {
	text := fmt.Sprintf("%s %s/%s", t.kind, t.addr, t.proto)
	if t.node != "" {
		text += " at " + t.node
	}
	return text
}

// endpoint is a pod behind a Service.
type endpoint struct {
	name, node string
	addrs      []netip.Addr
	onHost     bool
}

// expectation is what Kubernetes specifies for connections.
type expectation struct {
	// outcome is Answered, Refused or Silent.
	outcome podns.Outcome
	// sources are, for each endpoint that may be reached, the addresses one of which it sees.
	sources map[string][]netip.Addr
	// unlike is what an endpoint must not see: its own address.
	unlike map[string][]netip.Addr
	why    string
}

// reference says what is expected, written from Kubernetes' documentation and not from the code under test:
//
//   - Virtual IPs and Service Proxies, "Traffic policies": internalTrafficPolicy is for traffic from internal sources
//     to the cluster IP, externalTrafficPolicy for traffic from external sources; with Local only endpoints on the node
//     are used, and "if there are ready endpoints, but none local, traffic is dropped".
//   - The same, "Traffic to external addresses from inside": kube-proxy treats what pods and the node itself send to
//     LoadBalancer and external IPs and node ports of their own node as if externalTrafficPolicy were Cluster.
//   - Using Source IP: a ClusterIP keeps the source; so does externalTrafficPolicy Local; with Cluster, a node that
//     sends on to another replaces it by its own. For an endpoint on that very node we keep it, which is allowed and
//     better.
//   - The Service API: loadBalancerSourceRanges restrict clients of the load balancer's addresses; a Service without
//     endpoints rejects.
//
// It is not ok for cases that make no sense: cluster IPs are unknown outside, and inside all ways to a balancer's
// addresses are one.
func (tb table) reference(s tableService, c *client, t target) (expectation, bool) {
	v4 := t.addr.Addr().Is4()
	inside := c.kind != "outside"
	if !inside && t.kind == clusterIP || inside && t.kind == balancerIP && t.node != "node1" {
		return expectation{}, false
	}
	// entry is the node that chooses an endpoint, and original the addresses one of which the client has there.
	entry, original := t.node, []netip.Addr{c.addr(v4)}
	if c.kind == "node" {
		original = tb.nodeAddrs(c.node, v4)
	}
	switch {
	case !inside:
	case t.kind == nodePort, t.kind == nodeAddress && c.kind == "node":
		if entry != c.node && c.kind == "pod" {
			original = tb.nodeAddrs(c.node, v4) // pods leave their node with its address
		}
	default:
		entry = c.node
	}
	internal := inside && entry == c.node
	if t.kind == balancerIP && len(s.ranges) > 0 && !slices.ContainsFunc(s.ranges, func(text string) bool {
		return slices.ContainsFunc(original, netip.MustParsePrefix(text).Contains)
	}) {
		return expectation{outcome: podns.Silent, why: "the client is not in loadBalancerSourceRanges"}, true
	}
	local := s.externalLocal && !internal
	if t.kind == clusterIP {
		local = s.internalLocal
	}
	all := tb.endpoints[s.app]
	if len(all) == 0 {
		return expectation{outcome: podns.Refused, why: "there are no endpoints"}, true
	}
	want := expectation{outcome: podns.Answered, sources: map[string][]netip.Addr{}, unlike: map[string][]netip.Addr{}}
	for _, e := range all {
		if local && e.node != entry {
			continue
		}
		want.sources[e.name] = tb.source(c, t, e, entry, original, local, v4)
		if e.name == c.name {
			want.unlike[e.name] = e.addrs
		}
	}
	if len(want.sources) == 0 {
		return expectation{outcome: podns.Silent, why: "the policy is Local, and there are endpoints on other nodes only"},
			true
	}
	return want, true
}

// source is what an endpoint may see; nil is anything.
func (tb table) source(c *client, t target, e endpoint, entry string, original []netip.Addr, local,
	v4 bool) []netip.Addr {
	switch {
	case e.name == c.name:
		return nil // a pod that reaches itself
	case c.kind == "node" && t.kind == nodePort && entry == c.node && !e.onHost && v4 == tb.nodes[entry].Addrs[0].Is4():
		return tb.nodes[entry].Addrs[:1] // which e2e wants of the policy Local
	case e.onHost && c.kind != "outside":
		// To a node's address packets leave the pod network with their node's address; what comes back to the node it came
		// from may have the address that no host has.
		own := append(tb.nodeAddrs(entry, v4), model.MasqueradeAddr(v4))
		return append(own, original...)
	case local, e.node == entry, t.kind == clusterIP:
		return original
	case c.kind == "pod" && entry == c.node && t.kind != nodePort:
		return original // its own switch sends it on, as with a cluster IP
	}
	return tb.nodeAddrs(entry, v4)
}

// nodeAddrs are the addresses of a node: on the underlay, and its gateway's.
func (tb table) nodeAddrs(node string, v4 bool) []netip.Addr {
	n := tb.nodes[node]
	addrs := []netip.Addr{of(n.Addrs, v4)}
	for _, cidr := range n.PodCIDRs {
		if cidr.Addr().Is4() == v4 {
			addrs = append(addrs, model.GatewayAddr(cidr))
		}
	}
	return addrs
}

// experience is what connections did.
type experience struct {
	dials    int
	reached  map[string][]netip.Addr // with the sources that the endpoint saw
	outcomes map[podns.Outcome]int
	detail   string
}

// compare says in what experience differs from expectation; empty is not at all.
func (want expectation) compare(got experience) string {
	var wrong []string
	for outcome, n := range got.outcomes {
		if outcome != want.outcome {
			wrong = append(wrong, fmt.Sprintf("%d of %d connections %s (%s), want %s: %s", n, got.dials, outcome, got.detail,
				want.outcome, want.why))
		}
	}
	if want.outcome != podns.Answered {
		return strings.Join(wrong, "; ")
	}
	for name := range want.sources {
		if len(got.reached[name]) == 0 {
			wrong = append(wrong, fmt.Sprintf("%s was not reached by %d connections", name, got.dials))
		}
	}
	for name, seen := range got.reached {
		allowed, ok := want.sources[name]
		if !ok {
			wrong = append(wrong, name+" was reached, which is none of the expected endpoints")
			continue
		}
		for _, source := range seen {
			if allowed != nil && !slices.Contains(allowed, source) || slices.Contains(want.unlike[name], source) {
				wrong = append(wrong, fmt.Sprintf("%s saw %s, want one of %v and not %v", name, source, allowed, want.unlike[name]))
			}
		}
	}
	slices.Sort(wrong)
	return strings.Join(wrong, "; ")
}
