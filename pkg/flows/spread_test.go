package flows

import (
	"fmt"
	"net/netip"
	"regexp"
	"testing"

	"pgregory.net/rapid"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// TestPlaces: whatever the weights, OVS must take its 256 slots, no more, and the shares are what the weights say.
func TestPlaces(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		weights := rapid.SliceOfN(rapid.Uint16Range(1, 100), 1, maxDPHash).Draw(t, "weights")
		buckets := make([]openflow.Bucket, len(weights))
		asked := 0
		for i, w := range weights {
			buckets[i] = openflow.Bucket{ID: uint32(i) + 1, Weight: w}
			asked += int(w)
		}
		got := places(buckets)
		for i, w := range weights {
			if buckets[i].Weight != w {
				t.Fatalf("the weight %d that was asked for has become %d", w, buckets[i].Weight)
			}
		}
		share := map[uint32]int{}
		total, least := 0, int(got[0].Weight)
		for _, bucket := range got {
			id := bucket.ID
			if id == splitID {
				id = got[len(got)-1].ID
				for _, other := range got[:len(got)-1] { // the split one is the heaviest
					if id == splitID || other.Weight > got[id-1].Weight {
						id = other.ID
					}
				}
			}
			share[id] += int(bucket.Weight)
			total += int(bucket.Weight)
			least = min(least, int(bucket.Weight))
		}
		// As ofproto-dpif.c counts places.
		slots := (total + least - 1) / least
		if slots > 256 || len(got) != len(weights) && slots <= 128 {
			t.Fatalf("%v: OVS takes %d places", got, slots)
		}
		for i, w := range weights {
			want := float64(w) / float64(asked)
			have := float64(share[uint32(i)+1]) / float64(total)
			if have < want*0.85-0.005 || have > want*1.15+0.005 {
				t.Fatalf("weights %v: endpoint %d has %.3f of all, want %.3f: %v", weights, i, have, want, got)
			}
		}
	})
}

// buildBig compiles a Service with n endpoints on the kernel's datapath.
func buildBig(t *testing.T, protocol model.Protocol, n int) *builder {
	t.Helper()
	return buildBigOn(t, protocol, n, true)
}

func buildBigOn(t *testing.T, protocol model.Protocol, n int, kernelDatapath bool) *builder {
	t.Helper()
	port := model.ServicePort{Protocol: protocol, Port: 80, ClusterIP: netip.MustParseAddr("10.96.0.9"), Elsewhere: true}
	for i := range n {
		addr := netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)})
		port.Cluster = append(port.Cluster, model.Endpoint{Addr: addr, Port: 8080, Weight: 1})
	}
	s := model.Service{Name: "ns/big", Ports: []model.ServicePort{port}}
	b := &builder{owner: model.ServiceOwner(s.Name)}
	b.service(s, localInputs{datapath: datapath{kernelDatapath}})
	if b.err != nil {
		t.Fatal(b.err)
	}
	return b
}

var sourcePorts = regexp.MustCompile(`tp_src=0x([0-9a-f]+)/0x([0-9a-f]+)`)

// TestClasses: TCP endpoints that exceed one hash are divided among classes of source ports. Each endpoint is in one
// class, no class exceeds one hash, and each port is in exactly one class.
func TestClasses(t *testing.T) {
	for _, n := range []int{maxDPHash + 1, 64, 65, 500, 2000, maxDPHash * maxClasses} {
		b := buildBig(t, model.TCP, n)
		found := map[string]bool{}
		for _, g := range b.groups {
			here := map[string]bool{}
			for _, bucket := range g.Buckets() {
				to, ok := bucket.Actions.Translation()
				if !ok || found[to.String()] {
					t.Fatalf("%d endpoints: a bucket %q", n, bucket.Actions)
				}
				here[to.String()] = true
			}
			if len(here) > maxDPHash || len(here) < maxDPHash/2 {
				t.Errorf("%d endpoints: %d in one class", n, len(here))
			}
			for to := range here {
				found[to] = true
			}
		}
		if len(found) != n || len(b.flows) != len(b.groups) || len(b.groups) > 2*n/maxDPHash {
			t.Errorf("%d endpoints: %d of them in %d groups for %d flows", n, len(found), len(b.groups), len(b.flows))
		}
		var classes [1 << 16]int // of each port
		for _, f := range b.flows {
			var value, mask int
			if m := sourcePorts.FindStringSubmatch(f.Match.String()); m == nil {
				t.Fatalf("%d endpoints: no class of ports in %s", n, f.Match)
			} else if _, err := fmt.Sscanf(m[1]+" "+m[2], "%x %x", &value, &mask); err != nil {
				t.Fatal(err)
			}
			for port := range classes {
				if port&mask == value {
					classes[port]++
				}
			}
		}
		for port, count := range classes {
			if count != 1 {
				t.Fatalf("%d endpoints: port %d is in %d classes", n, port, count)
			}
		}
	}
}

// TestClassesOfEveryDatapath: no flow matches a port without a protocol that has ports. (Later fragments have none.)
func TestClassesOfEveryDatapath(t *testing.T) {
	for _, kernelDatapath := range []bool{true, false} {
		b := buildBigOn(t, model.TCP, 500, kernelDatapath)
		if err := (compiled{Flows: b.flows, Groups: b.groups}).check(); err != nil {
			t.Errorf("kernel datapath %t: %v", kernelDatapath, err)
		}
	}
}

// TestParts: UDP endpoints that exceed one group are divided among groups of equal size, and few of them change groups
// when one is added or removed.
func TestParts(t *testing.T) {
	groupOf := func(n int) map[string]openflow.GroupID {
		b := buildBig(t, model.UDP, n)
		if len(b.groups) != (n+maxBuckets-1)/maxBuckets+1 {
			t.Fatalf("%d groups for %d endpoints", len(b.groups), n)
		}
		in := map[string]openflow.GroupID{}
		for _, g := range b.groups {
			buckets := g.Buckets()
			for _, bucket := range buckets {
				if to, ok := bucket.Actions.Translation(); ok {
					in[to.String()] = g.ID
					if len(buckets) < n/5 {
						t.Errorf("a part with %d of %d endpoints", len(buckets), n)
					}
				}
			}
		}
		return in
	}
	before, after := groupOf(1800), groupOf(1801)
	moved := 0
	for endpoint, group := range before {
		if after[endpoint] != group {
			moved++
		}
	}
	if len(before) != 1800 || len(after) != 1801 || moved > 8 {
		t.Errorf("%d of %d endpoints are in another group after one more came", moved, len(before))
	}
}

// TestNoIdleGroup: endpoints that no frontend's traffic policy leaves have no group.
func TestNoIdleGroup(t *testing.T) {
	here, there := model.Endpoint{Addr: netip.MustParseAddr("10.244.1.2"), Port: 8080}, model.Endpoint{
		Addr: netip.MustParseAddr("10.244.2.2"), Port: 8080}
	s := model.Service{Name: "ns/local", Ports: []model.ServicePort{{
		Protocol: model.TCP, Port: 80, ClusterIP: netip.MustParseAddr("10.96.0.9"), InternalLocal: true, Elsewhere: true,
		Cluster: []model.Endpoint{here, there}, Local: []model.Endpoint{here},
	}}}
	b := &builder{owner: model.ServiceOwner(s.Name)}
	b.service(s, localInputs{datapath: datapath{true}})
	if b.err != nil || len(b.groups) != 1 || len(b.groups[0].Buckets()) != 1 {
		t.Errorf("groups %v, %v; want just the one of the local endpoint", b.groups, b.err)
	}
}

// TestPortRanges: each source port has one range that wins, and the replacement range does not contain the port and
// is privileged if the port is.
func TestPortRanges(t *testing.T) {
	privileged := func(p uint16) bool { return p < model.FirstUnprivilegedPort }
	for name, ranges := range map[string][]portRanges{"pod": podPortRanges, "gateway": ownPortRanges} {
		for port := 1; port < 1<<16; port++ {
			best, found := ranges[0], 0
			for _, r := range ranges {
				switch {
				case uint16(port)&r.mask != r.port:
				case found == 0 || r.priority > best.priority:
					best, found = r, 1
				case r.priority == best.priority:
					found++
				}
			}
			if found != 1 || best.replacement.Contains(uint16(port)) ||
				privileged(best.replacement.First) != privileged(uint16(port)) ||
				privileged(best.replacement.Last) != privileged(uint16(port)) {
				t.Fatalf("%s, port %d: %d ranges, replaced by %+v", name, port, found, best.replacement)
			}
			if name == "gateway" && !privileged(uint16(port)) &&
				(!model.OwnPorts.Contains(best.replacement.First) || !model.OwnPorts.Contains(best.replacement.Last)) {
				t.Fatalf("%s, port %d: replaced by %+v, which are not the node's own", name, port, best.replacement)
			}
		}
	}
}
