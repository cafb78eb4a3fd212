package state_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/pkg/service"
	"github.com/weft-cni/weft/pkg/state"
)

// Objects are drawn from so few names and addresses that they collide: nodes claim one range, pods, Services and nodes
// one address.

// drawing draws one sequence of changes.
type drawing struct {
	*rapid.T
	now    time.Time
	copies []state.Copy // of earlier snapshots
}

func newDrawing(t *rapid.T) *drawing {
	return &drawing{T: t, now: time.Unix(1_800_000_000, 0), copies: []state.Copy{{Self: model.Node{Name: "n1"}}}}
}

// changes draw each type of change, by its name.
var changes = map[string]func(d *drawing) state.Change{
	"SetNode":    func(d *drawing) state.Change { return state.SetNode{Node: d.node()} },
	"DeleteNode": func(d *drawing) state.Change { return state.DeleteNode{Name: d.one("node", "n1", "n2", "n3")} },
	"SetTransport": func(d *drawing) state.Change {
		return state.SetTransport{Transport: model.Transport{Mode: draw(d, "mode", model.Modes),
			Encapsulation: draw(d, "encapsulation", model.TunnelTypes), Encrypted: d.maybe("encrypted")}}
	},
	"SetReceiveGrace": func(d *drawing) state.Change {
		return state.SetReceiveGrace{Direct: d.maybe("grace"), IPIP: d.maybe("IPIP grace"), WireGuard: d.maybe("WireGuard grace")}
	},
	"SetHandshakes": func(d *drawing) state.Change {
		if d.maybe("handshake") {
			return state.SetHandshakes{Keys: []model.WireGuardKey{{2}}}
		}
		return state.SetHandshakes{}
	},
	"SetRouted": func(d *drawing) state.Change {
		if d.maybe("routed") {
			return state.SetRouted{CIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.2.0/24")}}
		}
		return state.SetRouted{}
	},
	"SetName": func(d *drawing) state.Change {
		var learned model.LearnedName
		for _, text := range []string{"192.0.2.1", "10.244.2.2", "2001:db8::1"} {
			switch a := netip.MustParseAddr(text); draw(d, "learned", []int{0, 1, 2}) {
			case 0:
				learned.Addrs = append(learned.Addrs, a)
			case 1:
				learned.Ended = append(learned.Ended, a)
			}
		}
		return state.SetName{Name: d.one("name", "a.example", "b.a.example"), Learned: learned}
	},
	"SetDNSServers": func(d *drawing) state.Change {
		var servers model.DNSServers
		if d.maybe("DNS server") {
			servers.Addrs = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53")}
		}
		if d.maybe("DNS Service") {
			servers.Services = []string{"ns/svc"}
		}
		return state.SetDNSServers{Servers: servers}
	},
	"SetKernelDatapath":  func(d *drawing) state.Change { return state.SetKernelDatapath{Kernel: d.maybe("kernel")} },
	"SetKeepEstablished": func(d *drawing) state.Change { return state.SetKeepEstablished{Keep: d.maybe("keep")} },
	"SetAttachment":      func(d *drawing) state.Change { return state.SetAttachment{Attachment: d.attachment()} },
	"DeleteAttachment":   func(d *drawing) state.Change { return state.DeleteAttachment{Key: d.attachment().Key()} },
	"SetPod":             func(d *drawing) state.Change { return state.SetPod{Pod: d.pod()} },
	"DeletePod": func(d *drawing) state.Change {
		return state.DeletePod{Namespace: "ns", Name: d.one("pod", "a", "b", "c")}
	},
	"SetNamespace": func(d *drawing) state.Change {
		return state.SetNamespace{Namespace: policy.Namespace{Name: "ns", Log: d.maybe("log"), Labels: d.labels()}}
	},
	"DeleteNamespace": func(*drawing) state.Change { return state.DeleteNamespace{Name: "ns"} },
	"SetPolicy":       func(d *drawing) state.Change { return state.SetPolicy{Policy: d.anyPolicy()} },
	"SetPeerNode": func(d *drawing) state.Change {
		return state.SetPeerNode{Node: policy.Node{Name: d.one("node", "n1", "n2", "n3"), Labels: d.labels(),
			Addrs: d.some("node address", "172.30.0.1", "fd30::2")}}
	},
	"DeletePolicy": func(d *drawing) state.Change {
		if d.maybe("of the cluster") {
			return state.DeletePolicy{ID: model.ClusterNetworkPolicy(d.one("policy", "p", "q"))}
		}
		return state.DeletePolicy{ID: model.NetworkPolicy("ns", d.one("policy", "p", "q"))}
	},
	"SetService":       func(d *drawing) state.Change { return state.SetService{Service: d.service()} },
	"SetJoinedService": func(d *drawing) state.Change { return state.SetJoinedService{Service: d.joined()} },
	"SetSlice":         func(d *drawing) state.Change { return state.SetSlice{Slice: d.slice()} },
	"DeleteSlice":      func(d *drawing) state.Change { return state.DeleteSlice{Name: d.one("slice", "s1", "s2", "s3")} },
	"SetZone":          func(d *drawing) state.Change { return state.SetZone{Zone: d.one("zone", "", "z1", "z2")} },
	"SetExternalIPs":   func(d *drawing) state.Change { return state.SetExternalIPs{Refused: d.maybe("refused")} },
	"DeleteService": func(d *drawing) state.Change {
		return state.DeleteService{Name: d.one("service", goneNames...)}
	},
	"SetOtherProxy": func(d *drawing) state.Change {
		return state.SetOtherProxy{Service: d.one("service", serviceNames...), ClusterIPs: d.some("ClusterIP", "10.96.0.1",
			"10.96.0.4")}
	},
	"SetServiceCIDRs": func(d *drawing) state.Change {
		return state.SetServiceCIDRs{Configured: d.maybe("configured"), CIDRs: d.ranges("Service CIDR", "10.96.0.0/16",
			"10.244.3.0/24", "fd96::/112")}
	},
	"SetClusterCIDRs": func(d *drawing) state.Change {
		return state.SetClusterCIDRs{CIDRs: d.ranges("cluster CIDR", "10.244.0.0/22", "fd44::/16")}
	},
	"SetLocalAddrs": func(d *drawing) state.Change {
		return state.SetLocalAddrs{Addrs: d.some("local address", "10.96.0.4", "10.244.1.3", "10.244.3.7", "172.30.0.2",
			"192.0.2.10", "fd00::10")}
	},
	"SetTime": func(d *drawing) state.Change {
		d.now = d.now.Add(time.Duration(rapid.IntRange(-5, 200).Draw(d.T, "seconds")) * time.Second)
		return state.SetTime{Now: d.now}
	},
	"Recall": func(d *drawing) state.Change {
		return state.Recall{PodCIDRs: d.ranges("recalled range", "10.244.1.0/24", "10.244.2.0/24", "fd44:1::/64")}
	},
	"Restore": func(d *drawing) state.Change { return state.Restore{Copy: draw(d, "copy", d.copies)} },
	"Synced":  func(*drawing) state.Change { return state.Synced{} },
}

// TestEveryTypeIsDrawn: a type of change that is not drawn is tested by no random test.
func TestEveryTypeIsDrawn(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var types []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range regexp.MustCompile(`(?m)^func \((?:\w+ )?(\w+)\) apply\(`).FindAllSubmatch(text, -1) {
			types = append(types, string(found[1]))
		}
	}
	slices.Sort(types)
	if names := changeNames(); len(types) < 20 || !slices.Equal(types, names) {
		t.Errorf("types of changes: %v; drawn are %v", types, names)
	}
}

func changeNames() []string {
	names := make([]string, 0, len(changes))
	for name := range changes {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// change draws a change of any type, those that make objects more often.
func (d *drawing) change() state.Change {
	names := changeNames()
	for range 2 {
		names = append(names, "SetNode", "SetAttachment", "SetPod", "SetPolicy", "SetService", "SetSlice")
	}
	name := draw(d, "change", names)
	c := changes[name](d)
	if got := reflect.TypeOf(c).Name(); got != name {
		d.Fatalf("%s draws a %s", name, got)
	}
	return c
}

// cluster draws changes that make a node with pods, policies and a Service.
func (d *drawing) cluster() []state.Change {
	self := d.node()
	self.Name, self.Addrs = "n1", []netip.Addr{netip.MustParseAddr("172.30.0.1")}
	list := []state.Change{state.SetNode{Node: self}, changes["SetNode"](d), changes["SetService"](d),
		changes["SetSlice"](d)}
	for i, name := range []string{"a", "b"} {
		attachment, pod := d.attachment(), d.pod()
		attachment.Pod.Name, attachment.ContainerID, pod.Name = name, "c-"+name, name
		attachment.Pod.UID, pod.UID, pod.Node, pod.HostNetwork = "u1", "u1", "n1", false
		attachment.IPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 244, 1, byte(2 + i)})}
		about := d.policy()
		about.Name = []string{"p", "q"}[i]
		list = append(list, state.SetAttachment{Attachment: attachment}, state.SetPod{Pod: pod},
			state.SetPolicy{Policy: about})
	}
	return list
}

func draw[T any](d *drawing, what string, from []T) T { return rapid.SampledFrom(from).Draw(d.T, what) }

func (d *drawing) one(what string, from ...string) string { return draw(d, what, from) }

func (d *drawing) maybe(what string) bool { return rapid.Bool().Draw(d.T, what) }

// some draws addresses of a list, in the order of addresses.
func (d *drawing) some(what string, from ...string) (list []netip.Addr) {
	for _, text := range from {
		if rapid.IntRange(0, 2).Draw(d.T, what+" "+text) == 0 {
			list = append(list, netip.MustParseAddr(text))
		}
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return list
}

func (d *drawing) ranges(what string, from ...string) (list []netip.Prefix) {
	for _, text := range from {
		if rapid.IntRange(0, 2).Draw(d.T, what+" "+text) == 0 {
			list = append(list, netip.MustParsePrefix(text))
		}
	}
	return list
}

func (d *drawing) node() model.Node {
	n := rapid.IntRange(1, 3).Draw(d.T, "node")
	node := model.Node{Name: fmt.Sprintf("n%d", n), Created: int64(rapid.IntRange(1, 2).Draw(d.T, "age"))}
	if d.maybe("has address") {
		node.Addrs = append(node.Addrs, netip.AddrFrom4([4]byte{172, 30, 0, byte(n)}))
	}
	if d.maybe("has IPv6 address") {
		node.Addrs = append(node.Addrs, netip.MustParseAddr(fmt.Sprintf("fd30::%d", n)))
	}
	if rapid.IntRange(0, 9).Draw(d.T, "address among pods") == 0 {
		node.Addrs = []netip.Addr{netip.AddrFrom4([4]byte{10, 244, byte(n%3 + 1), 9})}
	}
	// The range is drawn apart from the name, so that nodes claim each other's, whole or in part.
	r := draw(d, "range", []int{n, n, 1, 2, 3})
	if d.maybe("has range") {
		cidr := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(r), 0}), rapid.IntRange(22, 25).Draw(d.T, "length"))
		node.PodCIDRs = append(node.PodCIDRs, cidr.Masked())
	}
	if d.maybe("has IPv6 range") {
		cidr := netip.MustParsePrefix(fmt.Sprintf("fd44:%d::/%d", r, rapid.IntRange(47, 64).Draw(d.T, "IPv6 length")))
		node.PodCIDRs = append(node.PodCIDRs, cidr.Masked())
	}
	return node
}

func (d *drawing) attachment() model.Attachment {
	return model.Attachment{
		ContainerID: d.one("container", "c-a", "c-b", "c3"), IfName: "eth0",
		Pod: model.PodRef{Namespace: "ns", Name: d.one("pod", "a", "b", "c"), UID: d.one("sandbox's UID", "u1", "u1", "u1",
			"u2")},
		OFPort: uint32(rapid.IntRange(16, 19).Draw(d.T, "port")),
		MAC:    model.MAC{0x0a, 0x58, 0, 0, 0, byte(rapid.IntRange(1, 3).Draw(d.T, "MAC"))},
		IPs:    d.some("pod address", "10.244.1.2", "10.244.1.3", "10.244.2.2", "fd44:1::2"),
	}
}

func (d *drawing) labels() map[string]string {
	if label := d.one("label", "", "x", "y"); label != "" {
		return map[string]string{"app": label}
	}
	return nil
}

func (d *drawing) pod() policy.Pod {
	p := policy.Pod{
		Namespace: "ns", Name: d.one("pod", "a", "b", "c"), UID: d.one("UID", "u1", "u1", "u1", "u2"), Node: d.one("node",
			"n1", "n1", "n1", "n2"),
		Labels: d.labels(), Addrs: d.some("podIP", "10.244.1.2", "10.244.2.2", "10.244.2.3", "fd44:1::2"),
		HostNetwork: rapid.IntRange(0, 9).Draw(d.T, "host network") == 0, Done: rapid.IntRange(0, 9).Draw(d.T, "done") == 0,
		Created: int64(rapid.IntRange(0, 1).Draw(d.T, "created")),
	}
	if d.maybe("named port") {
		port := draw(d, "port", []uint16{80, 8080})
		p.Ports = []policy.ContainerPort{{Name: "web", Protocol: model.TCP, Number: port}}
	}
	return p
}

func (d *drawing) selector() policy.Selector { return policy.Selector{MatchLabels: d.labels()} }

// anyPolicy draws a policy of any tier.
func (d *drawing) anyPolicy() policy.Policy {
	p := d.policy()
	p.Tier = draw(d, "tier", []model.Tier{model.NetworkPolicyTier, model.AdminTier, model.BaselineTier})
	if !p.Tier.Ordered() {
		return p
	}
	p.Namespace, p.Types, p.Priority = "", nil, draw(d, "priority", []int32{0, 1, 1001})
	for _, rules := range [][]policy.Rule{p.Ingress, p.Egress} {
		for i := range rules {
			rules[i].Verdict = draw(d, "verdict", []model.Verdict{model.Accept, model.Deny, model.Pass})
			for j, peer := range rules[i].Peers {
				if peer.IPBlock == nil && peer.NamespaceSelector == nil {
					rules[i].Peers[j].NamespaceSelector = &policy.Selector{}
				}
			}
		}
	}
	if len(p.Egress) > 0 && d.maybe("nodes") {
		p.Egress[0].Peers = append(p.Egress[0].Peers, policy.Peer{NodeSelector: &policy.Selector{MatchLabels: d.labels()}})
	}
	if len(p.Egress) > 0 && d.maybe("domain names") {
		p.Tier, p.Egress[0].Verdict = model.AdminTier, model.Accept
		p.Egress[0].Peers = append(p.Egress[0].Peers, policy.Peer{Domain: "*.example"})
	}
	return p
}

func (d *drawing) policy() policy.Policy {
	p := policy.Policy{
		Namespace: "ns", Name: d.one("policy", "p", "q"), PodSelector: d.selector(), Log: d.maybe("log"),
		Types: draw(d, "types", [][]policy.Direction{nil, {policy.Ingress}, {policy.Egress},
			{policy.Ingress, policy.Egress}}),
		Err: d.one("error", "", "", "", "", "", "bad"), Staged: d.maybe("staged"),
	}
	for range rapid.IntRange(0, 2).Draw(d.T, "rules") {
		p.Ingress = append(p.Ingress, d.rule())
	}
	if d.maybe("egress rule") {
		p.Egress = []policy.Rule{d.rule()}
	}
	return p
}

func (d *drawing) rule() policy.Rule {
	var r policy.Rule
	for range rapid.IntRange(0, 3).Draw(d.T, "peers") {
		selector := d.selector()
		r.Peers = append(r.Peers, draw(d, "peer", []policy.Peer{
			{PodSelector: &selector}, {NamespaceSelector: &selector},
			{IPBlock: &policy.IPBlock{CIDR: netip.MustParsePrefix("10.244.0.0/16"), Except: []netip.Prefix{
				netip.MustParsePrefix("10.244.2.0/24")}}},
			{IPBlock: &policy.IPBlock{CIDR: netip.MustParsePrefix("fd00::/8")}},
		}))
	}
	r.Ports = draw(d, "ports", [][]policy.Port{nil, {{Number: 80}}, {{Name: "web"}},
		{{Protocol: model.UDP, Number: 53, EndPort: 60}}, {{Number: 80}, {Protocol: model.SCTP}}})
	return r
}

var serviceNames = []string{"ns/a", "ns/b", "other/c"}

var goneNames = append([]string{"ns/joined", "other/joined"}, serviceNames...)

func (d *drawing) service() *service.Service {
	s := &service.Service{
		Name: d.one("service", serviceNames...), Created: int64(rapid.IntRange(0, 1).Draw(d.T, "created")),
		ClusterIPs: d.some("ClusterIP", "10.96.0.1", "fd96::1"), ExternalIPs: d.some("external IP", "203.0.113.1",
			"172.30.0.1", "10.96.0.2"),
		LoadBalancerIPs:     d.some("load balancer's IP", "203.0.113.1", "203.0.113.2"),
		LoadBalancerSources: d.ranges("source", "172.30.0.0/24", "10.244.0.0/16"), SourcesLost: d.maybe("sources lost"),
		InternalLocal: d.maybe("internal local"), ExternalLocal: d.maybe("external local"),
		Affinity:  draw(d, "affinity", []time.Duration{0, 0, 5 * time.Second, time.Minute, time.Hour, 20 * time.Hour}),
		Algorithm: draw(d, "algorithm", []model.Algorithm{model.HashConnection, model.HashSource}),
		Problem:   d.one("problem", "", "", "bad"),
	}
	for _, protocol := range []model.Protocol{model.TCP, model.UDP, model.SCTP} {
		if d.maybe("has " + string(protocol)) {
			s.Ports = append(s.Ports, service.Port{Name: string(protocol), Protocol: protocol,
				Port: draw(d, "port", []uint16{53, 80}), NodePort: draw(d, "node port", []uint16{0, 30080})})
		}
	}
	return s
}

func (d *drawing) slice() *service.Slice {
	s := &service.Slice{Name: d.one("slice", "s1", "s2", "s3"), Service: d.one("service", serviceNames...),
		Problem: d.one("problem", "", "", "bad")}
	for _, protocol := range []model.Protocol{model.TCP, model.UDP, model.SCTP} {
		s.Ports = append(s.Ports, service.SlicePort{Name: string(protocol), Protocol: protocol,
			Port: draw(d, "endpoint's port", []uint16{53, 80, 8080})})
	}
	addrs := draw(d, "endpoints", [][]string{{"10.244.1.2", "10.244.1.3", "10.244.2.2"}, {"fd44:1::2", "fd44:2::2"}})
	for _, a := range d.some("endpoint", addrs...) {
		e := service.Endpoint{Addr: a, Ready: d.maybe("ready"), Serving: true, Terminating: d.maybe("terminating"),
			Node: d.one("endpoint's node", "n1", "n2")}
		if d.maybe("hint") {
			e.ForZones = []string{d.one("hint", "z1", "z2")}
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

// joined is a Service as a copy has it, and as SetService may never make it.
func (d *drawing) joined() model.Service {
	s := model.Service{
		Name: d.one("joined service", "ns/joined", "other/joined"), Created: int64(rapid.IntRange(0, 1).Draw(d.T, "created")),
		Affinity:  draw(d, "affinity", []time.Duration{0, 0, 5 * time.Second, time.Minute, time.Hour, 20 * time.Hour}),
		Algorithm: draw(d, "algorithm", []model.Algorithm{model.HashConnection, model.HashSource}),
	}
	for range rapid.IntRange(1, 2).Draw(d.T, "ports") {
		is4 := rapid.IntRange(0, 2).Draw(d.T, "IPv4") > 0
		p := model.ServicePort{
			Protocol: draw(d, "protocol", []model.Protocol{model.TCP, model.UDP, model.SCTP}),
			Port:     draw(d, "port", []uint16{53, 80}), NodePort: draw(d, "node port", []uint16{0, 30080}),
			ClusterIP: netip.MustParseAddr("fd96::1"), InternalLocal: d.maybe("internal local"), ExternalLocal: d.maybe(
				"external local"),
			Elsewhere: d.maybe("elsewhere"),
		}
		addrs := []string{"fd44:1::2", "fd44:2::2"}
		if is4 {
			addrs = []string{"10.244.1.2", "10.244.1.3", "10.244.2.2"}
			p.ClusterIP = netip.MustParseAddr(d.one("ClusterIP", "10.96.0.1", "10.96.0.2"))
			p.ExternalIPs = d.some("external IP", "203.0.113.1", "172.30.0.1", "10.96.0.2")
			p.LoadBalancerIPs = d.some("load balancer's IP", "203.0.113.1", "203.0.113.2")
			p.LoadBalancerSources = d.ranges("source", "172.30.0.0/24", "10.244.0.0/16")
		}
		p.Cluster, p.Local = d.endpoints(addrs), d.endpoints(addrs)
		s.Ports = append(s.Ports, p)
	}
	return s
}

func (d *drawing) endpoints(addrs []string) (list []model.Endpoint) {
	for _, a := range d.some("endpoint", addrs...) {
		list = append(list, model.Endpoint{Addr: a, Port: draw(d, "endpoint's port", []uint16{53, 80, 8080}), Weight: 1})
	}
	return list
}

// lines are the lines of one text that another lacks, at most some.
func lines(has, lacks string) string {
	var list []string
	others := strings.Split(lacks, "\n")
	for _, line := range strings.Split(has, "\n") {
		if !slices.Contains(others, line) && len(list) < 10 {
			list = append(list, line)
		}
	}
	return strings.Join(list, "\n")
}
