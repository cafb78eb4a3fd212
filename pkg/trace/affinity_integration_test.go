//go:build integration

package trace_test

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/trace"
)

var translated = regexp.MustCompile(`nat\(dst=([^)]*)\)`)

// TestEpochsOnOpenVSwitch asks a real switch for the endpoints of clients that it does not remember. In one epoch each
// client gets the same endpoint; the next epoch spreads them again, evenly, with one group or nested groups. The
// interpreter has every trace.
func TestEpochsOnOpenVSwitch(t *testing.T) {
	r := startSwitch(t)
	for _, family := range []struct{ name, node, cidr, vip, endpoint, client string }{
		{"IPv4", "172.30.0.11", "10.244.1.0/24", "10.96.0.9", "10.244.%d.%d", "198.51.%d.%d"},
		{"IPv6", "fd30::11", "fd44:1::/64", "fd44:96::9", "fd44:%x::%x", "2001:db8::%x:%x"},
	} {
		for _, endpoints := range []int{3, 40, 1200} {
			addr := netip.MustParseAddr(family.vip)
			port := model.ServicePort{Protocol: model.TCP, Port: 80, NodePort: 30080, ClusterIP: addr, Elsewhere: true}
			for i := range endpoints {
				port.Cluster = append(port.Cluster,
					model.Endpoint{Addr: netip.MustParseAddr(fmt.Sprintf(family.endpoint, 2+i/250, 1+i%250)), Port: 8080, Weight: 1})
			}
			const clients = 150
			// meet returns the clients' endpoints in an epoch.
			meet := func(epoch uint64) (reached [clients]string) {
				s := &model.Snapshot{
					Self: model.Node{Name: "n1", Addrs: []netip.Addr{netip.MustParseAddr(family.node)},
						PodCIDRs: []netip.Prefix{netip.MustParsePrefix(family.cidr)}},
					Transport: model.Tunnel(model.Geneve),
					Services: map[string]model.Service{"a/web": {Name: "a/web", Affinity: time.Hour, AffinityEpoch: epoch,
						Algorithm: model.HashConnection, Ports: []model.ServicePort{port}}},
				}
				desired, err := flows.Compile(s)
				if err != nil {
					t.Fatal(err)
				}
				// ofproto/trace has no connections, so packets enter ConntrackState with one.
				for key := range desired.Flows {
					if key.Table == flows.Classifier {
						delete(desired.Flows, key)
					}
				}
				begin := openflow.Flow{Key: openflow.Key{Table: flows.Classifier, Priority: 1},
					Actions: openflow.ParseActions(
						fmt.Sprintf("set_field:%#x->reg0,goto_table:%d", flows.OriginGateway, flows.ConntrackState))}
				desired.Flows[begin.Key] = flows.Flow{Flow: begin}
				r.load(t, desired)
				sw, err := trace.Of(desired)
				if err != nil {
					t.Fatal(err)
				}
				for i := range reached {
					client := netip.MustParseAddr(fmt.Sprintf(family.client, 100+i/250, 1+i%250))
					in := trace.IP(model.PortGateway, client, model.NodePortAddr(addr.Is4()), 6, uint16(1024+i),
						30080).WithMACs(model.GatewayMAC, model.RouterMAC)
					const connection = ",ct_zone=22373,ct_nw_proto=6,ct_tp_dst=30080"
					packet, err := trace.ParsePacket(in.String() + ",ct_state=+trk+new" + connection)
					if err != nil {
						t.Fatal(err)
					}
					actual, full := r.trace(t, in.String()+",ct_state=trk|new"+connection, nil)
					to := translated.FindStringSubmatch(full)
					if to == nil {
						t.Fatalf("%s, %d endpoints: %s meets none:\n%s", family.name, endpoints, packet, full)
					}
					reached[i] = to[1]
					chosen := func(way trace.Result) bool {
						ours := slices.DeleteFunc(way.Visited, func(f *flows.Flow) bool { return f.Table > flows.StickyEndpoint })
						return same(desired,
							slices.DeleteFunc(slices.Clone(actual), func(m met) bool { return m.table > flows.StickyEndpoint }), ours) == nil
					}
					if endpoints == 3 &&
						!slices.ContainsFunc(sw.All(packet, trace.Options{Conntrack: &trace.Conntrack{}, Steps: true}), chosen) {
						t.Fatalf("%s: the interpreter has no such trace of %s:\n%s", family.name, packet, full)
					}
				}
				return reached
			}
			first, again := meet(163636), meet(163636)
			if first != again {
				t.Errorf("%s, %d endpoints: clients meet others in the same epoch", family.name, endpoints)
			}
			for epoch := uint64(163637); epoch < 163639; epoch++ {
				met, stayed, count := meet(epoch), 0, map[string]int{}
				for i := range met {
					count[met[i]]++
					if met[i] == first[i] {
						stayed++
					}
				}
				most := 0
				for _, n := range count {
					most = max(most, n)
				}
				t.Logf("%s, %d endpoints, epoch %d: %d of %d clients meet the same endpoint as before; the busiest of %d has %d",
					family.name, endpoints, epoch, stayed, clients, len(count), most)
				// Happens by chance in one of a million runs.
				if share := clients / endpoints; stayed > share+30 || most > share+30 ||
					len(count) < min(endpoints*3/4, clients/2) {
					t.Errorf("%s, %d endpoints, epoch %d: %d of %d clients stay; %d endpoints are met, one by %d clients", family.name,
						endpoints, epoch, stayed, clients, len(count), most)
				}
				first = met
			}
		}
	}
}
