package flows_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/nodepath"
)

// cluster is a large one: 5,000 dual-stack nodes, 110 pods on this one.
func cluster() *model.Snapshot {
	s := &model.Snapshot{Self: node("self", 1), Transport: model.Tunnel(model.Geneve), Nodes: map[string]model.Node{},
		Attachments: map[model.AttachmentKey]model.Attachment{}}
	for i := range 5000 {
		n := model.Node{Name: fmt.Sprintf("n%d", i), Addrs: []netip.Addr{netip.AddrFrom4([4]byte{172, 16, byte(i >> 8),
			byte(i)})},
			PodCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24),
				netip.MustParsePrefix(fmt.Sprintf("fd44:%x::/64", i))}}
		s.Nodes[n.Name] = n
	}
	for i := range byte(110) {
		a := model.Attachment{ContainerID: fmt.Sprint("c", i), IfName: "eth0", Pod: model.PodRef{Namespace: "ns",
			Name: fmt.Sprint("p", i)}, OFPort: 16 + uint32(i),
			MAC: model.MAC{0x0a, 0x58, 10, 244, 1, i}, IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 244, 1, i + 2})}}
		s.Attachments[a.Key()] = a
	}
	s.Paths = nodepath.Resolve(s)
	return s
}

func BenchmarkCompileFull(b *testing.B) {
	s := cluster()
	for b.Loop() {
		if _, err := flows.Compile(s); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCompileOnePod is the cost of a pod that comes and goes in the same cluster.
func BenchmarkCompileOnePod(b *testing.B) {
	s := cluster()
	c := flows.NewCompiler()
	if _, failed := c.Update(s, flows.Owners(s)); len(failed) > 0 {
		b.Fatal(failed)
	}
	a := s.Attachments[model.AttachmentKey{ContainerID: "c7", IfName: "eth0"}]
	for b.Loop() {
		delete(s.Attachments, a.Key())
		c.Update(s, []model.Owner{model.PodOwner(a)})
		s.Attachments[a.Key()] = a
		c.Update(s, []model.Owner{model.PodOwner(a)})
	}
}

// manyServices are 10,000 Services of two endpoints each, on a node of the same cluster.
func manyServices() *model.Snapshot {
	s := cluster()
	s.Services = map[string]model.Service{}
	for i := range 10000 {
		endpoint := func(n int) model.Endpoint {
			return model.Endpoint{Addr: netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 7}), Port: 8080}
		}
		service := model.Service{Name: fmt.Sprintf("ns%d/service%d", i/100, i), Ports: []model.ServicePort{{
			Name: "http", Protocol: model.TCP, Port: 80, ClusterIP: netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}),
			Cluster: []model.Endpoint{endpoint(2 * i), endpoint(2*i + 1)},
		}}}
		s.Services[service.Name] = service
	}
	return s
}

// BenchmarkServices10000 is the full compilation, of 5,000 nodes, too.
func BenchmarkServices10000(b *testing.B) {
	s := manyServices()
	var d flows.Desired
	for b.Loop() {
		var err error
		if d, err = flows.Compile(s); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(d.Flows)), "flows")
	b.ReportMetric(float64(len(d.Groups)), "groups")
}

// BenchmarkOneService is one of them that loses an endpoint and gets it back: two changes.
func BenchmarkOneService(b *testing.B) {
	s := manyServices()
	c := flows.NewCompiler()
	if _, failed := c.Update(s, flows.Owners(s)); len(failed) > 0 {
		b.Fatal(failed)
	}
	both := s.Services["ns7/service777"]
	one := both
	one.Ports = []model.ServicePort{both.Ports[0]}
	one.Ports[0].Cluster = both.Ports[0].Cluster[:1]
	for b.Loop() {
		for _, service := range []model.Service{one, both} {
			s.Services[service.Name] = service
			d, _ := c.Update(s, []model.Owner{model.ServiceOwner(service.Name)})
			if len(d.Set)+len(d.Delete)+len(d.SetGroups)+len(d.DeleteGroups) != 1 {
				b.Fatalf("the change touched %d flows and %d groups, want its group only", len(d.Set)+len(d.Delete),
					len(d.SetGroups)+len(d.DeleteGroups))
			}
		}
	}
}
