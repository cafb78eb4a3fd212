package trace_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/service"
	"github.com/weft-cni/weft/pkg/trace"
)

// abused is a node with two pods; one of them may reach the other's Service.
func abused(t *testing.T, services ...model.Service) (sw *trace.Switch, desired flows.Desired) {
	t.Helper()
	addr := netip.MustParseAddr
	s := &model.Snapshot{
		Self: model.Node{Name: "n1", Addrs: []netip.Addr{addr("172.30.0.11")},
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")}},
		Transport: model.Tunnel(model.Geneve), Attachments: map[model.AttachmentKey]model.Attachment{}, Services: map[string]model.Service{},
	}
	for i, ip := range []netip.Addr{addr("10.0.1.2"), addr("10.0.1.3"), addr("10.0.1.4")} {
		a := model.Attachment{ContainerID: ip.String(), IfName: "eth0", Pod: model.PodRef{Namespace: "a", Name: ip.String()},
			OFPort: 16 + uint32(i), MAC: model.MAC{2, 0, 0, 0, 0, byte(i)}, IPs: []netip.Addr{ip}}
		s.Attachments[a.Key()] = a
	}
	claims := service.NewClaims()
	for _, one := range services {
		claims.Set(one)
	}
	for _, one := range services {
		s.Services[one.Name] = claims.Resolve(one)
	}
	desired, err := flows.Compile(s)
	if err != nil {
		t.Fatal(err)
	}
	if sw, err = trace.Of(desired); err != nil {
		t.Fatal(err)
	}
	return sw, desired
}

func oneEndpoint(name, clusterIP, endpoint string, port uint16) model.Service {
	to := []model.Endpoint{{Addr: netip.MustParseAddr(endpoint), Port: port, Weight: 1}}
	return model.Service{Name: name, Algorithm: model.HashConnection,
		Ports: []model.ServicePort{{Protocol: model.TCP, Port: port,
			ClusterIP: netip.MustParseAddr(clusterIP), Cluster: to, Local: to}}}
}

// TestServicesThatLeadToEachOther: two Services have each other's address as endpoint. A packet returns from the host,
// which routes Services' addresses to the switch, but only once.
func TestServicesThatLeadToEachOther(t *testing.T) {
	sw, _ := abused(t, oneEndpoint("a/x", "10.96.0.1", "10.96.0.2", 80), oneEndpoint("a/y", "10.96.0.2", "10.96.0.1", 80))
	ct := &trace.Conntrack{Kernel: true}
	p := trace.IP(16, netip.MustParseAddr("10.0.1.2"), netip.MustParseAddr("10.96.0.1"), 6, 40000,
		80).WithMACs(model.MAC{2, 0, 0, 0, 0, 0}, model.RouterMAC)
	for round := range 10 {
		r := sw.Run(p, trace.Options{Conntrack: ct, Steps: true})
		if r.Dropped() {
			if round < 2 {
				t.Errorf("round %d:\n%s", round, r)
			}
			return
		}
		out := r.Outputs[0]
		if out.Port != model.PortGateway {
			t.Fatalf("round %d leads to port %d:\n%s", round, out.Port, r)
		}
		p = trace.IP(model.PortGateway, out.Packet.Src(), out.Packet.Dst(), 6, out.Packet.SrcPort(),
			out.Packet.DstPort()).WithMACs(model.GatewayMAC, model.RouterMAC)
	}
	t.Error("the packet goes to and fro between the switch and the node")
}

// TestExternalIPIsAnothersClusterIP: a Service with another Service's ClusterIP in externalIPs receives none of its
// clients' traffic, with all traffic policies and names.
func TestExternalIPIsAnothersClusterIP(t *testing.T) {
	victim, thief := oneEndpoint("z/dns", "10.96.0.10", "10.0.1.3", 53), oneEndpoint("a/thief", "10.96.0.99", "10.0.1.4",
		53)
	thief.Ports[0].ExternalIPs = []netip.Addr{netip.MustParseAddr("10.96.0.10")}
	for _, local := range []bool{false, true} {
		for _, affinity := range []time.Duration{0, time.Hour} {
			thief.Ports[0].ExternalLocal, thief.Affinity = local, affinity
			sw, _ := abused(t, victim, thief)
			r := sw.Run(trace.IP(16, netip.MustParseAddr("10.0.1.2"), netip.MustParseAddr("10.96.0.10"), 6, 40000,
				53).WithMACs(model.MAC{2, 0, 0, 0, 0, 0}, model.RouterMAC), trace.Options{Steps: true})
			if r.Dropped() || r.Outputs[0].Packet.Dst().String() != "10.0.1.3" {
				t.Errorf("externalTrafficPolicy Local %t, affinity %s:\n%s", local, affinity, r)
			}
		}
	}
}

// TestAffinityIsBounded: clients cannot fill the switch's memory with learned flows.
func TestAffinityIsBounded(t *testing.T) {
	s := oneEndpoint("a/x", "10.96.0.1", "10.0.1.3", 80)
	s.Affinity = time.Hour
	_, desired := abused(t, s)
	learns := 0
	for _, f := range desired.Flows {
		if strings.Contains(f.Actions, "learn(") {
			learns++
			if !strings.Contains(f.Actions, ",limit=10000,") {
				t.Errorf("no limit: %s", f)
			}
		}
	}
	if learns == 0 {
		t.Error("nothing is learned")
	}
}

// TestLoadBalancerOutranksExternalIP: a Service with another Service's load balancer address in externalIPs receives
// none of its clients' traffic, nor that of clients outside its source ranges. Of two Services with one external IP,
// the older one has it.
func TestLoadBalancerOutranksExternalIP(t *testing.T) {
	addr := netip.MustParseAddr
	shared := []netip.Addr{addr("192.0.2.1")}
	to := func(services ...model.Service) trace.Result {
		sw, _ := abused(t, services...)
		return sw.Run(trace.IP(16, addr("10.0.1.2"), shared[0], 6, 40000, 80).WithMACs(model.MAC{2, 0, 0, 0, 0, 0},
			model.RouterMAC), trace.Options{Steps: true})
	}
	for _, local := range []bool{false, true} {
		for _, affinity := range []time.Duration{0, time.Hour} {
			victim, thief := oneEndpoint("z/web", "10.96.0.10", "10.0.1.3", 80), oneEndpoint("a/thief", "10.96.0.99", "10.0.1.4",
				80)
			victim.Created, thief.Created = 2000, 1000
			victim.Ports[0].LoadBalancerIPs, thief.Ports[0].ExternalIPs = shared, shared
			thief.Ports[0].ExternalLocal, thief.Affinity = local, affinity
			if r := to(victim, thief); r.Dropped() || r.Outputs[0].Packet.Dst().String() != "10.0.1.3" {
				t.Errorf("externalTrafficPolicy Local %t, affinity %s:\n%s", local, affinity, r)
			}
			victim.Ports[0].LoadBalancerSources = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
			if r := to(victim, thief); !r.Dropped() || r.Reason() != flows.SourceRange {
				t.Errorf("a client that the ranges leave out, externalTrafficPolicy Local %t, affinity %s:\n%s", local, affinity, r)
			}
			victim.Ports[0].LoadBalancerSources, victim.Ports[0].LoadBalancerClosed = nil, true
			if r := to(victim, thief); !r.Dropped() || r.Reason() != flows.SourceRange {
				t.Errorf("no range can be read, externalTrafficPolicy Local %t, affinity %s:\n%s", local, affinity, r)
			}
			victim.Ports[0].LoadBalancerClosed = false
			victim.Ports[0].LoadBalancerIPs, victim.Ports[0].ExternalIPs = nil, shared
			thief.Created = 3000
			if r := to(victim, thief); r.Dropped() || r.Outputs[0].Packet.Dst().String() != "10.0.1.3" {
				t.Errorf("the younger has the address, externalTrafficPolicy Local %t, affinity %s:\n%s", local, affinity, r)
			}
			victim.Created = 3000
			if r := to(victim, thief); r.Dropped() || r.Outputs[0].Packet.Dst().String() != "10.0.1.4" {
				t.Errorf("of one age the first by name has it, externalTrafficPolicy Local %t, affinity %s:\n%s", local, affinity,
					r)
			}
		}
	}
}
