package state

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/weft-cni/weft/pkg/model"
)

// wide is a Service with affinity that takes about twice as many flows as addresses times endpoints.
func wide(name string, addresses, endpoints int) model.Service {
	p := model.ServicePort{Protocol: model.TCP, Port: 80, ClusterIP: netip.MustParseAddr("10.96.0.1")}
	for i := range addresses {
		p.ExternalIPs = append(p.ExternalIPs, netip.AddrFrom4([4]byte{192, byte(len(name)), byte(i >> 8), byte(i)}))
	}
	for i := range endpoints {
		p.Cluster = append(p.Cluster, model.Endpoint{Addr: netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)}), Port: 80,
			Weight: 1})
	}
	return model.Service{Name: name, Affinity: time.Hour, Ports: []model.ServicePort{p}}
}

// TestServiceBudget: twenty Services of one namespace, each below what one may take, leave another namespace its share.
// Those that do not fit reject their clients and are named; they have their endpoints back when there is room.
func TestServiceBudget(t *testing.T) {
	s := New("n1")
	for i := range 20 {
		one := wide(fmt.Sprintf("greedy/s%02d", i), 300, 300+i)
		for j := range one.Ports[0].ExternalIPs { // each has its own
			one.Ports[0].ExternalIPs[j] = netip.AddrFrom4([4]byte{198, byte(i), byte(j >> 8), byte(j)})
		}
		s.Apply(SetJoinedService{Service: one})
	}
	s.Apply(SetJoinedService{Service: wide("modest/web", 100, 300)})
	served := func() (whole, over []string) {
		snapshot, _ := s.Take()
		total := 0
		for name, service := range snapshot.Services {
			if service.OverBudget != "" {
				over = append(over, name)
				if len(service.Ports[0].Cluster) > 0 || service.Ports[0].Elsewhere {
					t.Errorf("%s is over budget and has endpoints", name)
				}
				continue
			}
			whole = append(whole, name)
			total += service.MostFlows()
		}
		if total > maxServiceFlows {
			t.Errorf("%d flows, more than the %d of a node", total, maxServiceFlows)
		}
		slices.Sort(whole)
		return whole, over
	}
	whole, over := served()
	if !slices.Equal(whole, []string{"greedy/s00", "greedy/s01", "greedy/s02", "greedy/s03", "modest/web"}) ||
		len(over) != 16 {
		t.Errorf("served are %v, over budget %d", whole, len(over))
	}
	for i := range 16 {
		s.Apply(DeleteService{Name: fmt.Sprintf("greedy/s%02d", i)})
	}
	if whole, over := served(); len(whole) != 5 || len(over) != 0 {
		t.Errorf("when most are gone, served are %v, over budget %v", whole, over)
	}
	if left := len(s.budget.over) + len(s.budget.flows); left != 5 {
		t.Errorf("%d Services are counted", left)
	}
}

// TestServiceBudgetFollows: whatever the order of changes and of looks at them, the Services that have endpoints are
// those that a store has which only ever saw what there is in the end.
func TestServiceBudgetFollows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, now := New("n1"), map[string]model.Service{}
		s.budget.room = 200
		for range rapid.IntRange(1, 20).Draw(t, "changes") {
			name := rapid.SampledFrom([]string{"a/x", "a/yy", "b/zzz"}).Draw(t, "name")
			if rapid.IntRange(0, 3).Draw(t, "gone") == 0 {
				delete(now, name)
				s.Apply(DeleteService{Name: name})
			} else {
				now[name] = wide(name, rapid.IntRange(0, 3).Draw(t, "addresses"), rapid.IntRange(0, 8).Draw(t, "endpoints"))
				s.Apply(SetJoinedService{Service: now[name]})
			}
			if rapid.Bool().Draw(t, "look") {
				s.Take()
			}
		}
		fresh := New("n1")
		fresh.budget.room = 200
		for _, service := range now {
			fresh.Apply(SetJoinedService{Service: service})
		}
		got, _ := s.Take()
		want, _ := fresh.Take()
		if a, b := fmt.Sprint(got.Services), fmt.Sprint(want.Services); a != b {
			t.Fatalf("step by step:\n%s\nat once:\n%s", a, b)
		}
	})
}
