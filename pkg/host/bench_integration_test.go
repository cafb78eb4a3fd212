//go:build integration

package host

import (
	"net/netip"
	"testing"

	"github.com/weft-cni/weft/pkg/model"
)

// manyServices is a node of a cluster with 10,000 node ports and 10,000 load balancers' addresses; every tenth of these also in
// the map, as the agent lists them.
func manyServices() Desired {
	const count = 10_000
	d := dualStack()
	d.ServiceCIDRs = prefixes("10.96.0.0/12", "fd00:96::/112")
	addr := netip.MustParseAddr("100.64.0.1")
	for i := range count {
		port := uint16(20_000 + i)
		d.NodePorts = append(d.NodePorts, NodePort{Protocol: model.TCP, Port: port})
		d.ServiceIPs = append(d.ServiceIPs, addr)
		if i%10 == 0 {
			d.ExternalIPs = append(d.ExternalIPs, ExternalIP{Addr: addr, Protocol: model.TCP, Port: 80, To: netip.AddrPortFrom(model.NodePortAddr(true), port)})
		}
		addr = addr.Next()
	}
	return d
}

func benchmarkSync(b *testing.B, first Desired, change func(i int, d *Desired)) {
	n := newNode(b)
	n.write(first)
	b.ResetTimer()
	for i := range b.N {
		d := first
		change(i, &d)
		if changed := n.write(d); len(changed) != 1 {
			b.Fatalf("changed %q", changed)
		}
	}
}

func BenchmarkSyncOneNodePort(b *testing.B) {
	d := manyServices()
	benchmarkSync(b, d, func(i int, d *Desired) {
		if i%2 == 0 {
			d.NodePorts = d.NodePorts[1:]
		}
	})
}

func BenchmarkSyncOneServiceIP(b *testing.B) {
	d := manyServices()
	benchmarkSync(b, d, func(i int, d *Desired) {
		if i%2 == 0 {
			d.ServiceIPs = d.ServiceIPs[1:]
		}
	})
}

// BenchmarkSyncNothing is what an event costs that does not concern the node's network.
func BenchmarkSyncNothing(b *testing.B) {
	n, d := newNode(b), manyServices()
	n.write(d)
	b.ResetTimer()
	for range b.N {
		if changed := n.write(d); len(changed) > 0 {
			b.Fatalf("changed %q", changed)
		}
	}
}

// BenchmarkSyncCompare looks at everything in the kernel.
func BenchmarkSyncCompare(b *testing.B) {
	n, d := newNode(b), manyServices()
	n.write(d)
	b.ResetTimer()
	for range b.N {
		if changed := n.sync(d); len(changed) > 0 {
			b.Fatalf("changed %q", changed)
		}
	}
}

// BenchmarkSyncFromNothing is a cold start.
func BenchmarkSyncFromNothing(b *testing.B) {
	d := manyServices()
	for range b.N {
		b.StopTimer()
		n := newNode(b)
		b.StartTimer()
		n.write(d)
	}
}
