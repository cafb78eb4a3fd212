package flows_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/state"
)

func stickyService(name string, timeout time.Duration, endpoints int) model.Service {
	s := model.Service{Name: name, Affinity: timeout, Algorithm: model.HashConnection}
	for i, vip := range []string{"10.96.0.9", "fd44:96::9"} {
		p := model.ServicePort{Protocol: model.TCP, Port: 80, ClusterIP: netip.MustParseAddr(vip), NodePort: 30080, Elsewhere: true}
		for n := range endpoints {
			e := model.Endpoint{Addr: netip.AddrFrom4([4]byte{10, 244, byte(n >> 8), byte(n)}), Port: 8080, Weight: 1}
			if i == 1 {
				e.Addr = netip.MustParseAddr(fmt.Sprintf("fd44:1::%x", n+1))
			}
			p.Cluster = append(p.Cluster, e)
		}
		s.Ports = append(s.Ports, p)
	}
	return s
}

// TestEpochChangesGroupsAlone: a new epoch is a new seed for every group that chooses for clients that are not
// remembered, and nothing else.
func TestEpochChangesGroupsAlone(t *testing.T) {
	for _, endpoints := range []int{3, 40, 1200} { // few, many, and so many that groups choose among groups
		c := flows.NewCompiler()
		s := &model.Snapshot{Tunnel: model.Geneve, Services: map[string]model.Service{}}
		service := stickyService("ns/web", time.Hour, endpoints)
		service.AffinityEpoch = 499
		s.Services[service.Name] = service
		if _, failed := c.Update(s, flows.Owners(s)); len(failed) > 0 {
			t.Fatal(failed)
		}
		groups := len(c.Desired().Groups)
		service.AffinityEpoch = 500
		s.Services[service.Name] = service
		delta, failed := c.Update(s, []model.Owner{model.ServiceOwner(service.Name)})
		if len(failed) > 0 || len(delta.SetGroups) != groups || len(delta.Set)+len(delta.Delete)+len(delta.DeleteGroups) != 0 {
			t.Errorf("%d endpoints: a new epoch sets %d of %d groups and %d flows and deletes %d and %d, %v", endpoints, len(delta.SetGroups), groups, len(delta.Set), len(delta.DeleteGroups), len(delta.Delete), failed)
		}
		for _, g := range delta.SetGroups {
			if !strings.HasPrefix(g.Text, "type=select,selection_method=hash,selection_method_param=500,fields=ip") {
				t.Errorf("%d endpoints: %.150s", endpoints, g)
			}
		}
	}
}

// TestEpochsIncrementally lets time pass between random changes of Services and compares after each: the table
// reached step by step from what the store calls touched, and the table compiled fresh.
func TestEpochsIncrementally(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		store, c := state.New("n1"), flows.NewCompiler()
		now := time.Unix(1_800_000_000, 0)
		for range rapid.IntRange(1, 20).Draw(t, "changes") {
			switch name := rapid.SampledFrom([]string{"ns/a", "ns/b", "ns/c"}).Draw(t, "service"); rapid.SampledFrom([]string{"set", "gone", "time", "time"}).Draw(t, "change") {
			case "set":
				timeout := rapid.SampledFrom([]time.Duration{0, 5 * time.Second, time.Minute, time.Hour, 20 * time.Hour}).Draw(t, "timeout")
				store.Apply(state.SetService{Service: stickyService(name, timeout, rapid.IntRange(0, 3).Draw(t, "endpoints"))})
			case "gone":
				store.Apply(state.DeleteService{Name: name})
			case "time":
				now = now.Add(time.Duration(rapid.IntRange(-5, 200).Draw(t, "seconds")) * time.Second)
				store.Apply(state.SetTime{Now: now})
			}
			s, owners := store.Take()
			if _, failed := c.Update(s, owners); len(failed) > 0 {
				t.Fatal(failed)
			}
			full, err := flows.Compile(s)
			if err != nil {
				t.Fatal(err)
			}
			if full.String() != c.Desired().String() {
				t.Fatalf("incremental:\n%s\nfull:\n%s", c.Desired(), full)
			}
		}
	})
}
