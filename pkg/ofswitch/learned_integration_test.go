//go:build integration

package ofswitch_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/openflow"
)

// remembered are the flows that the switch has learned for a Service.
func remembered(t *testing.T, sw *ofswitch.Switch, service string) (n int) {
	t.Helper()
	c, err := sw.Dump(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range c.Flows {
		if e.Table == flows.Affinity && e.Cookie == flows.Cookie(model.ServiceOwner(service)) {
			n++
		}
	}
	return n
}

// TestLearnedFlowsEnd: flows that a real switch has learned are kept while it would learn them again, and end with the
// Service, its affinity, its timeout, and its endpoints.
func TestLearnedFlowsEnd(t *testing.T) {
	ovs, sw := start(t)
	const clients = 20
	endpoints := func(n int) (list []model.Endpoint) {
		for i := range n {
			list = append(list, model.Endpoint{Addr: netip.AddrFrom4([4]byte{10, 244, 7, byte(i + 1)}), Port: 8080, Weight: 1})
		}
		return list
	}
	sticky := func(affinity time.Duration, n int) *model.Snapshot {
		s := &model.Snapshot{Self: snapshot(0).Self, Transport: model.Tunnel(model.Geneve),
			Services: map[string]model.Service{}}
		for i, name := range []string{"ns/web", "ns/other"} {
			service := model.Service{Name: name, Affinity: time.Hour, Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80,
				ClusterIP: netip.AddrFrom4([4]byte{10, 96, 0, byte(9 + i)}), Elsewhere: true, Cluster: endpoints(3)}}}
			if name == "ns/web" {
				service.Affinity, service.Ports[0].Cluster = affinity, endpoints(n)
			}
			s.Services[name] = service
		}
		return s
	}
	none := sticky(0, 0)
	delete(none.Services, "ns/web")
	for _, test := range []struct {
		name       string
		now        *model.Snapshot
		inBundle   int // how many of the Service's are left after the bundle of the change
		inReading  int // and after a reading of the switch without that bundle
		fewerReads bool
	}{
		{"the Service is gone", none, 0, 0, false}, {"no affinity", sticky(0, 3), 0, 0, false}, {"another timeout",
			sticky(time.Minute, 3), 0, 0, false},
		{"another endpoint", sticky(time.Hour, 4), clients, clients, false}, {"an endpoint less", sticky(time.Hour, 2),
			clients, clients, true},
	} {
		for _, there := range []bool{true, false} { // is the agent there when it happens?
			c := flows.NewCompiler()
			before := sticky(time.Hour, 3)
			if _, failed := c.Update(before, flows.Owners(before)); len(failed) > 0 {
				t.Fatal(failed)
			}
			read := func() openflow.Delta {
				t.Helper()
				actual, err := sw.Dump(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				return flows.Diff(actual, c.Desired()).OpenFlow()
			}
			apply := func(d openflow.Delta) {
				t.Helper()
				if err := sw.Apply(t.Context(), d); err != nil {
					t.Fatal(err)
				}
			}
			apply(read())
			for client := range clients {
				for _, vip := range []string{"10.96.0.9", "10.96.0.10"} {
					packet := fmt.Sprintf(
						"0a57656674010a58000000010800450000280000400040060000c63364%02x0a6000%02x9c400050000000000000000050020000000000000", client, netip.MustParseAddr(vip).As4()[3])
					packet = packet[:2*54]
					ofctl(t, ovs, "packet-out", bridge, fmt.Sprintf("in_port=controller,packet=%s,actions=resubmit(,%d)", packet,
						flows.ServiceLB))
				}
			}
			if n := remembered(t, sw, "ns/web"); n != clients {
				t.Fatalf("the switch has learned %d flows of %d clients", n, clients)
			}
			if d := read(); !d.Empty() {
				t.Fatalf("%s: what was just learned would be changed: %+v", test.name, d)
			}
			owners := []model.Owner{model.ServiceOwner("ns/web")}
			delta, failed := c.Update(test.now, owners)
			if len(failed) > 0 {
				t.Fatal(failed)
			}
			want := test.inReading
			if there {
				apply(delta.OpenFlow())
				want = test.inBundle
			} else {
				apply(read())
			}
			n := remembered(t, sw, "ns/web")
			if fewer := test.fewerReads && !there; n != want && !fewer || fewer && (n == 0 || n >= clients) {
				t.Errorf("%s, agent there: %t: %d learned flows are left, want %d", test.name, there, n, want)
			}
			apply(read())
			if n := remembered(t, sw, "ns/web"); test.fewerReads && (n == 0 || n >= clients) {
				t.Errorf("%s: %d of %d learned flows are left after a reading", test.name, n, clients)
			}
			if d := read(); !d.Empty() {
				t.Errorf("%s: a second reading would still change something: %+v", test.name, d)
			}
			if n := remembered(t, sw, "ns/other"); n != clients {
				t.Errorf("%s: %d of %d flows of another Service are left", test.name, n, clients)
			}
			ofctl(t, ovs, "del-flows", bridge, fmt.Sprintf("table=%d", flows.Affinity))
		}
	}
}
