package report

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

func addr(text string) netip.Addr { return netip.MustParseAddr(text) }

func addrs(texts ...string) (list []netip.Addr) {
	for _, text := range texts {
		list = append(list, addr(text))
	}
	return list
}

func cidrs(texts ...string) (list []netip.Prefix) {
	for _, text := range texts {
		list = append(list, netip.MustParsePrefix(text))
	}
	return list
}

// want compares reports.
func want[T any](t *testing.T, what string, want, got T) {
	t.Helper()
	equal := cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{}, openflow.Flow{})
	if diff := cmp.Diff(want, got, equal); diff != "" {
		t.Errorf("%s: -want +got\n%s", what, diff)
	}
}

// attachment is a pod of this node, with an interface of its name.
func attachment(namespace, name string, port uint32, ips ...string) model.Attachment {
	return model.Attachment{
		ContainerID: namespace + "-" + name, IfName: "eth0", Pod: model.PodRef{Namespace: namespace, Name: name, UID: "u"},
		HostIfName: name + "-1", OFPort: port, IPs: addrs(ips...),
	}
}

func attached(list ...model.Attachment) map[model.AttachmentKey]model.Attachment {
	byKey := map[model.AttachmentKey]model.Attachment{}
	for _, a := range list {
		byKey[a.Key()] = a
	}
	return byKey
}

// shop is a node with the pod shop/web and some Services.
func shop(services ...model.Service) *model.Snapshot {
	view := &model.Snapshot{
		Self:        model.Node{Name: "n1", Addrs: addrs("172.30.0.1"), PodCIDRs: cidrs("10.244.1.0/24")},
		Attachments: attached(attachment("shop", "web", 16, "10.244.1.2")),
		Services:    map[string]model.Service{},
	}
	for _, s := range services {
		view.Services[s.Name] = s
	}
	return view
}

// web is a Service with every kind of address and an endpoint on this node and on another.
func web() model.Service {
	here := model.Endpoint{Addr: addr("10.244.1.2"), Port: 8080, Weight: 1}
	there := model.Endpoint{Addr: addr("10.244.2.2"), Port: 8080, Weight: 2}
	return model.Service{Name: "shop/web", Affinity: time.Hour, Ports: []model.ServicePort{{
		Name: "http", Protocol: model.TCP, Port: 80, ClusterIP: addr("10.96.0.1"), NodePort: 30080,
		ExternalLocal: true, Elsewhere: true,
		ExternalIPs: addrs("192.0.2.9", "192.0.2.1"), LoadBalancerIPs: addrs("192.0.2.1"),
		LoadBalancerSources: cidrs("198.51.100.0/24"),
		Cluster:             []model.Endpoint{here, there}, Local: []model.Endpoint{here},
	}}}
}

// isolated is a policy with two rules: number 3 allows TCP port 80, number 5 UDP port 53 from 192.0.2.1.
func isolated(name string, pods ...netip.Addr) model.Policy {
	port := func(p model.Protocol, number uint16) []model.PortMatch {
		return []model.PortMatch{{Protocol: p, Port: number, Mask: 0xffff}}
	}
	return model.Policy{ID: policyID(name), Ingress: &model.PolicySide{Pods: pods, Rules: []model.PolicyRule{
		{Index: 3, ID: 7, Pods: pods, AnyPeer: true, Ports: port(model.TCP, 80)},
		{Index: 5, ID: 8, Pods: pods, Peers: cidrs("192.0.2.1/32"), Ports: port(model.UDP, 53)},
	}}}
}

// policyID is the identity of the NetworkPolicy namespace/name.
func policyID(name string) model.PolicyID {
	namespace, name, _ := strings.Cut(name, "/")
	return model.NetworkPolicy(namespace, name)
}

func policies(list ...model.Policy) map[model.PolicyID]model.Policy {
	byName := map[model.PolicyID]model.Policy{}
	for _, p := range list {
		byName[p.ID] = p
	}
	return byName
}

// programmed is a switch that holds the flows of a snapshot; each has counted one packet.
func programmed(t *testing.T, view *model.Snapshot) (openflow.Contents, flows.Desired) {
	t.Helper()
	desired, err := flows.Compile(view)
	if err != nil {
		t.Fatal(err)
	}
	var c openflow.Contents
	for _, f := range desired.Flows {
		c.Flows = append(c.Flows, openflow.Entry{Flow: f.Flow, Stats: openflow.Stats{Packets: 1}})
	}
	for _, g := range desired.Groups {
		c.Groups = append(c.Groups, g.Group)
	}
	return c, desired
}
