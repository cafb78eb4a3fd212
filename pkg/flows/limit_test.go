package flows_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
)

// TestTooManyFlows: a Service with affinity at many addresses and with many endpoints, and a policy with very many
// ranges, are refused and hurt no other; the policy's pods stay closed in both directions.
func TestTooManyFlows(t *testing.T) {
	if testing.Short() {
		t.Skip("many flows: left to make unit")
	}
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, byte(i >> 16), byte(i >> 8), byte(i)}) }
	big := model.ServicePort{Protocol: model.TCP, Port: 80, ClusterIP: netip.MustParseAddr("10.96.0.1")}
	for i := range 500 {
		big.ExternalIPs = append(big.ExternalIPs, addr(1<<20|i))
		big.Cluster = append(big.Cluster, model.Endpoint{Addr: addr(i), Port: 80, Weight: 1})
	}
	small := model.ServicePort{Protocol: model.TCP, Port: 80, ClusterIP: netip.MustParseAddr("10.96.0.2"),
		Cluster: big.Cluster[:1]}
	pods := []netip.Addr{netip.MustParseAddr("10.244.0.2")}
	rule := model.PolicyRule{ID: 1, Pods: pods, AnyPort: true}
	for i := range 260_000 {
		rule.Peers = append(rule.Peers, netip.PrefixFrom(addr(i), 32))
	}
	s := &model.Snapshot{
		Services: map[string]model.Service{
			"a/big": {Name: "a/big", Affinity: time.Hour, Ports: []model.ServicePort{big}}, "z/small": {Name: "z/small",
				Ports: []model.ServicePort{small}},
		},
		Policies: map[model.PolicyID]model.Policy{model.NetworkPolicy("a", "p"): {ID: model.NetworkPolicy("a", "p"),
			Egress: &model.PolicySide{Pods: pods,
				Rules: []model.PolicyRule{rule}}, Ingress: &model.PolicySide{Pods: pods}}},
	}
	d, err := flows.Compile(s)
	if err == nil || strings.Count(err.Error(), "flows; make several objects") != 2 {
		t.Errorf("error: %v", err)
	}
	has := map[string]int{}
	for _, f := range d.Flows {
		switch f.Owner.Kind {
		case model.KindService:
			has[f.Owner.Name]++
		case model.KindPolicy:
			has[string(f.Reason)]++
		}
	}
	if has["a/big"] != 0 || has["z/small"] == 0 || has[string(flows.PolicyEgress)] != 1 ||
		has[string(flows.PolicyIngress)] != 1 || has[""] != 0 {
		t.Errorf("flows: %v", has)
	}
}
