package flows_test

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/nodepath"
	"github.com/weft-cni/weft/pkg/openflow"
)

var at = netip.MustParseAddrPort

func endpoints(list ...string) (out []model.Endpoint) {
	for _, e := range list {
		out = append(out, model.Endpoint{Addr: at(e).Addr(), Port: at(e).Port(), Weight: 1})
	}
	return out
}

// audited is a node with two pods, one of which is isolated, and a DNS Service.
func audited() *model.Snapshot {
	pod := func(id, ip string) model.Attachment {
		return model.Attachment{ContainerID: id, IfName: "eth0", IPs: []netip.Addr{netip.MustParseAddr(ip)}}
	}
	isolated := []netip.Addr{netip.MustParseAddr("10.244.1.3")}
	s := &model.Snapshot{
		Self: model.Node{Name: "n1", Addrs: []netip.Addr{netip.MustParseAddr("172.30.0.1")}, PodCIDRs: []netip.Prefix{
			netip.MustParsePrefix("10.244.1.0/24")}},
		Nodes: map[string]model.Node{"n2": {Name: "n2", PodCIDRs: []netip.Prefix{
			netip.MustParsePrefix("10.244.2.0/24")}}},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")},
		Attachments:  map[model.AttachmentKey]model.Attachment{},
		Services: map[string]model.Service{
			"ns/dns": {Name: "ns/dns", Ports: []model.ServicePort{{Protocol: model.UDP, Port: 53,
				ClusterIP: netip.MustParseAddr("10.96.0.10"), NodePort: 30053,
				ExternalIPs: []netip.Addr{netip.MustParseAddr("10.244.2.7")}, Cluster: endpoints("10.244.2.2:5353"),
				Retained: []netip.AddrPort{at("10.244.2.3:5353")}}}},
			"ns/none": {Name: "ns/none", Ports: []model.ServicePort{{Protocol: model.UDP, Port: 53,
				ClusterIP: netip.MustParseAddr("10.96.0.11")}}},
		},
		Policies: map[model.PolicyID]model.Policy{model.NetworkPolicy("ns", "p"): {ID: model.NetworkPolicy("ns", "p"),
			Ingress: &model.PolicySide{Pods: isolated,
				Rules: []model.PolicyRule{
					{Pods: isolated, Peers: []netip.Prefix{netip.MustParsePrefix("10.244.1.2/32")}, Ports: []model.PortMatch{
						{Protocol: model.UDP, Port: 8080, Mask: 0xffff}}},
				}}}},
	}
	for _, a := range []model.Attachment{pod("a", "10.244.1.2"), pod("b", "10.244.1.3")} {
		s.Attachments[a.Key()] = a
	}
	s.Paths = nodepath.Resolve(s)
	return s
}

func TestAudit(t *testing.T) {
	const allowed, gateway = uint32(flows.MarkAllowed), uint32(flows.MarkGateway)
	const udp, tcp, icmp, sctp, gre = openflow.IPProtoUDP, openflow.IPProtoTCP, openflow.IPProtoICMP, openflow.IPProtoSCTP,
		uint8(47)
	for _, c := range []struct {
		what         string
		protocol     uint8
		from, to, at string // at is the endpoint; empty when nothing was translated
		mark         uint32
		want         flows.Cause
	}{
		{"allowed by the rule", udp, "10.244.1.2:1", "10.244.1.3:8080", "", allowed, ""},
		{"another port", udp, "10.244.1.2:1", "10.244.1.3:8081", "", allowed, flows.PolicyDenies},
		{"another peer", udp, "10.244.2.9:1", "10.244.1.3:8080", "", allowed, flows.PolicyDenies},
		{"the way back is another connection", udp, "10.244.1.3:1", "10.244.2.9:8080", "", allowed, ""},
		{"its mark was taken back", udp, "10.244.2.9:1", "10.244.1.3:8080", "", 0, ""},
		{"ICMP", icmp, "10.244.2.9:0", "10.244.1.3:0", "", allowed, flows.PolicyDenies},
		{"other protocols", gre, "10.244.2.9:0", "10.244.1.3:0", "", allowed, flows.PolicyDenies},
		{"TCP", tcp, "10.244.2.9:1", "10.244.1.3:8080", "", allowed, ""},
		{"SCTP", sctp, "10.244.2.9:1", "10.244.1.3:8080", "", allowed, ""},
		{"from its node", udp, "172.30.0.1:1", "10.244.1.3:1", "", allowed, ""},
		{"from its node's gateway", udp, "10.244.1.1:1", "10.244.1.3:1", "", allowed, ""},
		{"itself", udp, "10.244.1.3:1", "10.244.1.3:1", "", allowed, ""},
		{"the endpoint's port counts", udp, "10.244.1.2:1", "192.0.2.1:8080", "10.244.1.3:9", allowed, flows.EndpointGone},

		{"endpoint", udp, "10.244.1.2:1", "10.96.0.10:53", "10.244.2.2:5353", allowed, ""},
		{"endpoint that serves on", udp, "10.244.1.2:1", "10.96.0.10:53", "10.244.2.3:5353", allowed, ""},
		{"endpoint that is gone", udp, "10.244.1.2:1", "10.96.0.10:53", "10.244.2.4:5353", allowed, flows.EndpointGone},
		{"endpoint at another port", udp, "10.244.1.2:1", "10.96.0.10:53", "10.244.2.2:53", allowed, flows.EndpointGone},
		{"TCP hears of it", tcp, "10.244.1.2:1", "10.96.0.10:53", "10.244.2.4:5353", allowed, ""},
		{"was rejected, and is served", udp, "10.244.1.2:1", "10.96.0.10:53", "169.254.87.3:53", allowed, flows.EndpointGone},
		{"is rejected", udp, "10.244.1.2:1", "10.96.0.11:53", "169.254.87.3:53", allowed, ""},
		{"was served, and is rejected", udp, "10.244.1.2:1", "10.96.0.11:53", "10.244.2.4:53", allowed, flows.EndpointGone},
		{"a Service that is gone", udp, "10.244.1.2:1", "10.96.0.12:53", "10.244.2.2:5353", allowed, flows.EndpointGone},
		{"a port that no Service has", udp, "10.244.1.2:1", "10.96.0.12:53", "169.254.87.3:53", allowed, ""},
		{"a node port that no Service has", udp, "10.244.1.2:1", "240.87.117.147:30099", "169.254.87.3:53", allowed,
			flows.EndpointGone},
		{"began before the Service", udp, "10.244.1.2:1", "10.96.0.10:53", "", allowed, flows.EndpointGone},
		{"a Service's packet that leads to another Service", udp, "169.254.87.2:1", "10.96.0.10:53", "", allowed, ""},
		{"node port", udp, "192.0.2.9:1", "240.87.117.101:30053", "10.244.2.2:5353", allowed | gateway, ""},
		{"node port, before the Service", udp, "192.0.2.9:1", "240.87.117.101:30053", "", allowed | gateway,
			flows.EndpointGone},
		{"node ports are the gateway's", udp, "10.244.1.2:1", "240.87.117.101:30053", "", allowed, ""},
		{"an external address that is a pod's", udp, "10.244.1.2:1", "10.244.2.7:53", "", allowed, ""},

		{"from a pod that is gone", tcp, "10.244.1.9:1", "192.0.2.1:80", "", allowed, flows.PodGone},
		{"to a pod that is gone", sctp, "192.0.2.1:1", "10.244.1.9:80", "", allowed, flows.PodGone},
		{"through a Service to a pod that is gone", tcp, "192.0.2.1:1", "10.96.0.10:53", "10.244.1.9:80", 0, flows.PodGone},
		{"of a pod of another node", tcp, "10.244.2.9:1", "10.244.2.8:80", "", allowed, ""},
		{"of a pod that had an address of another range", tcp, "10.7.0.1:1", "192.0.2.1:80", "", allowed, flows.PodGone},
		{"the gateway is not a pod", tcp, "10.244.1.1:1", "192.0.2.1:80", "", allowed, ""},
	} {
		if c.at == "" {
			c.at = c.to
		}
		one := openflow.Connection{Zone: flows.Zone, Protocol: c.protocol, Source: at(c.from), Destination: at(c.to),
			Endpoint: at(c.at), Mark: c.mark}
		// the latter is in use again
		gone := map[netip.Addr]bool{netip.MustParseAddr("10.7.0.1"): true, netip.MustParseAddr("10.244.1.2"): true}
		if got := flows.NewAudit(audited(), nil, gone).Check(one); got != c.want {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
		one.Zone = flows.SourceZone
		want := c.want
		if want != flows.PodGone {
			want = ""
		}
		if got := flows.NewAudit(audited(), nil, gone).Check(one); got != want {
			t.Errorf("%s, in the zone of sources: %q, want %q", c.what, got, want)
		}
	}
}

// Of what is quarantined, only what isolates is programmed; and kept connections are not compared with policies.
func TestAuditOfWhatIsProgrammed(t *testing.T) {
	allowed := openflow.Connection{Zone: flows.Zone, Protocol: openflow.IPProtoUDP, Source: at("10.244.1.2:1"),
		Destination: at("10.244.1.3:8080"), Endpoint: at("10.244.1.3:8080"),
		Mark: uint32(flows.MarkAllowed)}
	denied := allowed
	denied.Endpoint, denied.Destination = at("10.244.1.3:8081"), at("10.244.1.3:8081")
	balanced := allowed
	balanced.Destination, balanced.Endpoint = at("10.96.0.10:53"), at("10.244.2.2:5353")
	quarantined := map[model.Owner]error{model.NetworkPolicy("ns", "p").Owner(): errors.New("refused"),
		model.ServiceOwner("ns/dns"): errors.New("refused")}
	kept := audited()
	kept.KeepEstablished = true
	invalid := audited()
	p := invalid.Policies[model.NetworkPolicy("ns", "p")]
	p = p.FailClosed()
	invalid.Policies[model.NetworkPolicy("ns", "p")] = p
	for _, c := range []struct {
		what  string
		audit *flows.Audit
		of    openflow.Connection
		want  flows.Cause
	}{
		{"allowed by a policy", flows.NewAudit(audited(), nil, nil), allowed, ""},
		{"allowed by one that is quarantined", flows.NewAudit(audited(), quarantined, nil), allowed, flows.PolicyDenies},
		{"allowed by one that is invalid", flows.NewAudit(invalid, nil, nil), allowed, flows.PolicyDenies},
		{"denied, but kept", flows.NewAudit(kept, nil, nil), denied, ""},
		{"balanced by a Service that is quarantined", flows.NewAudit(audited(), quarantined, nil), balanced,
			flows.EndpointGone},
	} {
		if got := c.audit.Check(c.of); got != c.want {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
	}
}

// TestCommonChangesDoNotNarrow: pods that come do not make the sweep read all connections; pods that go do.
func TestCommonChangesDoNotNarrow(t *testing.T) {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	policy := func(pods []netip.Addr, peers ...netip.Prefix) model.Policy {
		return model.Policy{ID: model.NetworkPolicy("ns", "p"),
			Ingress: &model.PolicySide{Pods: pods, Rules: []model.PolicyRule{
				{Pods: pods, Peers: peers, AnyPort: true}}}}
	}
	a, b := addr("10.244.1.2"), addr("10.244.1.3")
	one, two := prefix("10.244.2.2/32"), prefix("10.244.2.3/32")
	before := policy([]netip.Addr{a}, one)
	for _, c := range []struct {
		what  string
		after model.Policy
		want  bool
	}{
		{"nothing", before, false},
		{"a peer comes", policy([]netip.Addr{a}, one, two), false},
		{"a peer becomes a range", policy([]netip.Addr{a}, prefix("10.244.2.0/24")), false},
		{"a peer goes", policy([]netip.Addr{a}, two), true},
		{"a new pod is selected", policy([]netip.Addr{a, b}, one), false},
		{"a pod is selected no longer", policy([]netip.Addr{b}, one), true},
		{"the policy goes", model.Policy{}, true},
	} {
		if got := flows.Narrows(before, c.after, func(ip netip.Addr) bool { return ip == b }); got != c.want {
			t.Errorf("%s: narrows %t, want %t", c.what, got, c.want)
		}
	}
	if !flows.Narrows(before, policy([]netip.Addr{a, b}, one), func(netip.Addr) bool { return false }) {
		t.Error("a pod that runs is selected: narrows false")
	}
}

// TestNarrows: when Narrows says no, whatever was allowed is allowed still.
func TestNarrows(t *testing.T) {
	pods := []netip.Addr{netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("10.244.1.3")}
	peers := []string{"10.244.0.0/16", "10.244.1.0/24", "10.244.1.3/32", "10.245.0.0/16", "10.244.1.2/31"}
	ports := []model.PortMatch{{Protocol: model.UDP}, {Protocol: model.UDP, Port: 8, Mask: 0xfff8}, {Protocol: model.UDP,
		Port: 9, Mask: 0xffff}, {Protocol: model.TCP, Port: 9, Mask: 0xffff}}
	drawPods := func(t *rapid.T, from []netip.Addr) []netip.Addr {
		n := rapid.IntRange(0, 3).Draw(t, "pods")
		return slices.Clone([][]netip.Addr{from, from[:min(1, len(from))], from[min(1, len(from)):], from}[n])
	}
	rule := func(t *rapid.T, i int, of []netip.Addr) model.PolicyRule {
		r := model.PolicyRule{Index: i, Pods: drawPods(t, of), AnyPeer: rapid.IntRange(0, 2).Draw(t, "any peer") == 0,
			AnyPort: rapid.IntRange(0, 2).Draw(t, "any port") == 0}
		if !r.AnyPeer {
			r.Peers = []netip.Prefix{netip.MustParsePrefix(rapid.SampledFrom(peers).Draw(t, "peer"))}
			if p := netip.MustParsePrefix("10.246.0.0/16"); rapid.Bool().Draw(t, "second peer") {
				r.Peers = append(r.Peers, p)
			}
		}
		if !r.AnyPort {
			r.Ports = []model.PortMatch{rapid.SampledFrom(ports).Draw(t, "port")}
		}
		return r
	}
	policy := func(t *rapid.T) model.Policy {
		p := model.Policy{ID: model.NetworkPolicy("ns", "p")}
		if rapid.IntRange(0, 9).Draw(t, "invalid") == 0 {
			p.Err = "invalid"
		}
		for _, side := range []**model.PolicySide{&p.Ingress, &p.Egress} {
			if rapid.IntRange(0, 3).Draw(t, "side") == 0 {
				continue
			}
			*side = &model.PolicySide{Pods: drawPods(t, pods)}
			for i := range rapid.IntRange(0, 2).Draw(t, "rules") {
				(*side).Rules = append((*side).Rules, rule(t, i, (*side).Pods))
			}
		}
		return p
	}
	no, yes := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		// The other policy isolates everybody, so that rules which go are missed.
		all := &model.PolicySide{Pods: pods}
		world := func(p model.Policy) *flows.Audit {
			return flows.NewAudit(&model.Snapshot{Policies: map[model.PolicyID]model.Policy{p.ID: p,
				model.NetworkPolicy("ns", "wall"): {ID: model.NetworkPolicy("ns", "wall"),
					Ingress: all, Egress: all}}}, nil, nil)
		}
		if rapid.Bool().Draw(t, "alone") {
			world = func(p model.Policy) *flows.Audit {
				return flows.NewAudit(&model.Snapshot{Policies: map[model.PolicyID]model.Policy{p.ID: p}}, nil, nil)
			}
		}
		before, after := policy(t), policy(t)
		if flows.Narrows(before, after, func(netip.Addr) bool { return false }) {
			yes++
			return
		}
		no++
		was, is := world(before), world(after)
		for _, pod := range pods {
			for _, other := range []string{"10.244.1.2", "10.244.1.3", "10.244.7.7", "10.245.0.1", "10.246.0.1", "192.0.2.1"} {
				for _, port := range []uint16{1, 8, 9, 15, 16} {
					for _, protocol := range []uint8{openflow.IPProtoUDP, openflow.IPProtoTCP, openflow.IPProtoICMP} {
						for _, ends := range [][2]netip.Addr{{pod, netip.MustParseAddr(other)}, {netip.MustParseAddr(other), pod}} {
							to := netip.AddrPortFrom(ends[1], port)
							c := openflow.Connection{Zone: flows.Zone, Protocol: protocol, Source: netip.AddrPortFrom(ends[0], 1),
								Destination: to, Endpoint: to}
							if was.Allows(c) && !is.Allows(c) {
								t.Fatalf("%+v is denied now:\n%+v\n%+v", c, before, after)
							}
						}
					}
				}
			}
		}
	})
	if no < yes/50 {
		t.Errorf("%d changes narrow and %d do not: this tests little", yes, no)
	}
}
