package flows_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
)

func stickyService(name string, timeout time.Duration, endpoints int) model.Service {
	s := model.Service{Name: name, Affinity: timeout, Algorithm: model.HashConnection}
	for i, vip := range []string{"10.96.0.9", "fd44:96::9"} {
		p := model.ServicePort{Protocol: model.TCP, Port: 80, ClusterIP: netip.MustParseAddr(vip), NodePort: 30080,
			Elsewhere: true}
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
		s := &model.Snapshot{Transport: model.Tunnel(model.Geneve), Services: map[string]model.Service{}}
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
		if len(failed) > 0 || len(delta.SetGroups) != groups ||
			len(delta.Set)+len(delta.Delete)+len(delta.DeleteGroups) != 0 {
			t.Errorf("%d endpoints: a new epoch sets %d of %d groups and %d flows and deletes %d and %d, %v", endpoints,
				len(delta.SetGroups), groups, len(delta.Set), len(delta.DeleteGroups), len(delta.Delete), failed)
		}
		for _, g := range delta.SetGroups {
			if !strings.HasPrefix(g.Selection(), "hash of ip") || !strings.HasSuffix(g.Selection(), ", seed 500") {
				t.Errorf("%d endpoints: %.150s", endpoints, g)
			}
		}
	}
}

// TestAffinityIsBounded: clients cannot fill the switch's memory with learned flows.
func TestAffinityIsBounded(t *testing.T) {
	service := stickyService("ns/web", time.Hour, 2)
	desired, err := flows.Compile(&model.Snapshot{Transport: model.Tunnel(model.Geneve),
		Services: map[string]model.Service{service.Name: service}})
	if err != nil {
		t.Fatal(err)
	}
	learns := 0
	for _, f := range desired.Flows {
		if strings.Contains(f.Actions.String(), "learn(") {
			learns++
			if !strings.Contains(f.Actions.String(), ",limit=10000,") {
				t.Errorf("no limit: %s", f)
			}
		}
	}
	if learns == 0 {
		t.Error("nothing is learned")
	}
}
