// Package walktest is a small cluster for tests of traces. It keeps no state.
package walktest

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/nodepath"
	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/pkg/trace/walk"
)

// Nodes are two nodes: shop/client and shop/web-1 are on node1, shop/other and shop/web-2 on node2. The Service
// shop/web (10.96.0.80:80) leads to port 8080 of both web pods, which the policy shop/web lets only shop/client reach.
// The Service shop/empty (10.96.0.81:80) has no endpoint.
func Nodes(t testing.TB) []walk.Node { return build(t, false) }

// Staged are the same nodes while the policy is staged.
func Staged(t testing.TB) []walk.Node { return build(t, true) }

func build(t testing.TB, staged bool) []walk.Node {
	t.Helper()
	addr := netip.MustParseAddr
	all := []model.Node{
		{Name: "node1", Addrs: []netip.Addr{addr("172.30.0.1")},
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}},
		{Name: "node2", Addrs: []netip.Addr{addr("172.30.0.2")},
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.2.0/24")}},
	}
	pods := []model.Attachment{
		attachment("client", 16, "10.244.1.2"), attachment("web-1", 17, "10.244.1.3"),
		attachment("other", 16, "10.244.2.2"), attachment("web-2", 17, "10.244.2.3"),
	}
	endpoints := []model.Endpoint{
		{Addr: addr("10.244.1.3"), Port: 8080, Weight: 1}, {Addr: addr("10.244.2.3"), Port: 8080, Weight: 1},
	}
	service := func(name, ip string, to []model.Endpoint) model.Service {
		return model.Service{Name: name, Algorithm: model.HashConnection, Ports: []model.ServicePort{
			{Protocol: model.TCP, Port: 80, ClusterIP: addr(ip), Cluster: to, Elsewhere: len(to) > 0},
		}}
	}
	nodes := make([]walk.Node, 0, len(all))
	for i, self := range all {
		other, local := all[1-i], pods[2*i:2*i+2]
		web := []netip.Addr{local[1].IPs[0]}
		s := &model.Snapshot{
			Self: self, Transport: model.Tunnel(model.Geneve), Nodes: map[string]model.Node{other.Name: other},
			Attachments:  map[model.AttachmentKey]model.Attachment{},
			ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")},
			Services: map[string]model.Service{
				"shop/web": service("shop/web", "10.96.0.80", endpoints), "shop/empty": service("shop/empty", "10.96.0.81", nil),
			},
			Policies: map[model.PolicyID]model.Policy{model.NetworkPolicy("shop",
				"web"): {ID: model.NetworkPolicy("shop", "web"), Staged: staged, Ingress: &model.PolicySide{
				Pods: web, Rules: []model.PolicyRule{{
					Index: 0, ID: 7, Pods: web, Peers: []netip.Prefix{netip.PrefixFrom(pods[0].IPs[0], 32)},
					Ports: []model.PortMatch{{Protocol: model.TCP, Port: 8080, Mask: 0xffff}},
				}},
			}}},
		}
		for _, a := range local {
			s.Attachments[a.Key()] = a
		}
		s.Paths = nodepath.Resolve(s)
		desired, err := flows.Compile(s)
		if err != nil {
			t.Fatal(err)
		}
		list, groups := walk.FlowsOf(desired)
		node, err := walk.NodeOf(s, list, groups)
		if err != nil {
			t.Fatal(err)
		}
		node.Policies = &walk.Policies{Cluster: objects(local, staged)}
		nodes = append(nodes, node)
	}
	return nodes
}

// objects are what the agent of a node with these pods knows of policies.
func objects(local []model.Attachment, staged bool) policy.Cluster {
	labels := func(name string) map[string]string {
		app, _, _ := strings.Cut(name, "-")
		return map[string]string{"app": app}
	}
	client := policy.Selector{MatchLabels: labels("client")}
	c := policy.Cluster{
		Namespaces: map[string]map[string]string{"shop": nil},
		Policies: []policy.Policy{{Namespace: "shop", Name: "web", Staged: staged, PodSelector: policy.Selector{MatchLabels: labels("web")},
			Ingress: []policy.Rule{{Peers: []policy.Peer{{PodSelector: &client}}, Ports: []policy.Port{{Number: 8080}}}}}},
	}
	for _, a := range local {
		c.Pods = append(c.Pods, policy.Pod{Namespace: a.Pod.Namespace, Name: a.Pod.Name, Labels: labels(a.Pod.Name)})
	}
	return c
}

func attachment(name string, port uint32, ip string) model.Attachment {
	return model.Attachment{
		ContainerID: name, IfName: "eth0", Pod: model.PodRef{Namespace: "shop", Name: name}, OFPort: port,
		MAC: model.MAC{0x0a, 0x58, 0, 0, 0, byte(port)}, IPs: []netip.Addr{netip.MustParseAddr(ip)}, HostIfName: name,
	}
}
