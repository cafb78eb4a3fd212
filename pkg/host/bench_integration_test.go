//go:build integration

package host

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/model"
)

// manyServices is a node of a cluster with 10,000 node ports and 10,000 load balancer addresses; the map has every
// tenth of these, too, as the agent lists them.
func manyServices() Desired {
	const count = 10_000
	d := dualStack()
	d.ServiceCIDRs = prefixes("10.96.0.0/12", "fd00:96::/112")
	addr := netip.MustParseAddr("100.64.0.1")
	for i := range count {
		port := uint16(20_000 + i)
		d.NodePorts = append(d.NodePorts, NodePort{Protocol: model.TCP, Port: port})
		d.ServicePorts = append(d.ServicePorts, ServicePort{addr, model.TCP, 80})
		if i%10 == 0 {
			d.ExternalIPs = append(d.ExternalIPs,
				ExternalIP{Addr: addr, Protocol: model.TCP, Port: 80, To: netip.AddrPortFrom(model.NodePortAddr(true), port)})
		}
		addr = addr.Next()
	}
	return d
}

// cpu reports CPU time including nft's, which is meaningful on a busy machine, unlike wall-clock time.
func cpu(b *testing.B) func() {
	used := func() (sum int64) {
		for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
			var u unix.Rusage
			if err := unix.Getrusage(who, &u); err != nil {
				b.Fatal(err)
			}
			sum += u.Utime.Nano() + u.Stime.Nano()
		}
		return sum
	}
	b.ResetTimer()
	before := used()
	return func() { b.ReportMetric(float64(used()-before)/1e6/float64(b.N), "cpu-ms/op") }
}

func benchmarkSync(b *testing.B, first Desired, change func(i int, d *Desired)) {
	n := newNode(b)
	n.write(first)
	defer cpu(b)()
	for i := range b.N {
		d := first
		change(i, &d)
		if changed := n.write(d); len(changed) == 0 || len(changed) > 2 { // an element, and perhaps a route
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

func BenchmarkSyncOneServicePort(b *testing.B) {
	d := manyServices()
	benchmarkSync(b, d, func(i int, d *Desired) {
		if i%2 == 0 {
			d.ServicePorts = d.ServicePorts[1:]
		}
	})
}

// BenchmarkSyncNothing is the cost of an event that does not concern the node's network.
func BenchmarkSyncNothing(b *testing.B) {
	n, d := newNode(b), manyServices()
	n.write(d)
	defer cpu(b)()
	for range b.N {
		if changed := n.write(d); len(changed) > 0 {
			b.Fatalf("changed %q", changed)
		}
	}
}

// BenchmarkSyncCompare compares everything with the kernel.
func BenchmarkSyncCompare(b *testing.B) {
	n, d := newNode(b), manyServices()
	n.write(d)
	defer cpu(b)()
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
