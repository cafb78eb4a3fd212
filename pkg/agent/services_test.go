package agent

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/weft-cni/weft/internal/testing/fakekube"
	"github.com/weft-cni/weft/pkg/host"
	"github.com/weft-cni/weft/pkg/kube"
	"github.com/weft-cni/weft/pkg/model"
)

// TestServiceRoutes: no Service takes the node's way to nodes and API servers, and an address whose clients are limited
// is not offered where the limit is not known.
func TestServiceRoutes(t *testing.T) {
	addr := netip.MustParseAddr
	view := &model.Snapshot{
		Self:  model.Node{Name: "n1", Addrs: []netip.Addr{addr("172.30.0.1")}},
		Nodes: map[string]model.Node{"n2": {Name: "n2", Addrs: []netip.Addr{addr("172.30.0.2")}}},
		Paths: map[string]model.Path{"n2": {PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.2.0/24")}}},
		Services: map[string]model.Service{
			"ns/pods": {Name: "ns/pods", Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80, ClusterIP: addr("10.96.0.4"),
				ExternalIPs: []netip.Addr{addr("10.244.2.9")}}}},
			"ns/closed": {Name: "ns/closed", Ports: []model.ServicePort{{
				Protocol: model.TCP, Port: 80, ClusterIP: addr("10.96.0.5"),
				LoadBalancerIPs: []netip.Addr{addr("172.30.0.1")}, LoadBalancerClosed: true}}},
			"default/kubernetes": {Name: "default/kubernetes", Ports: []model.ServicePort{{Protocol: model.TCP, Port: 443,
				ClusterIP: addr("10.96.0.1"),
				Cluster:   []model.Endpoint{{Addr: addr("172.30.0.9"), Port: 6443}, {Addr: addr("172.30.0.2"), Port: 6443}}}}},
			"ns/web": {Name: "ns/web", Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80, ClusterIP: addr("10.96.0.2"),
				NodePort: 30080,
				ExternalIPs: []netip.Addr{addr("172.30.0.1"), addr("172.30.0.2"), addr("172.30.0.8"), addr("172.30.0.9"),
					addr("192.0.2.1")},
				LoadBalancerIPs: []netip.Addr{addr("192.0.2.2")}, LoadBalancerSources: []netip.Prefix{
					netip.MustParsePrefix("198.51.100.0/24")}}}},
			// The control plane is on n2: its port stays, and its other ports are as any node's.
			"ns/trap": {Name: "ns/trap", Ports: []model.ServicePort{{Protocol: model.TCP, Port: 6443,
				ClusterIP:   addr("10.96.0.3"),
				ExternalIPs: []netip.Addr{addr("172.30.0.2")}}}},
		},
	}
	var d host.Desired
	err := serviceRoutes(&d, view, map[netip.Addr]string{addr("172.30.0.8"): "a resolver of the node"})
	if want := []host.ServicePort{{Addr: addr("192.0.2.1"), Protocol: model.TCP, Port: 80}, {Addr: addr("192.0.2.2"),
		Protocol: model.TCP, Port: 80}}; !slices.Equal(d.ServicePorts, want) {
		t.Errorf("diverted: %v, want %v", d.ServicePorts, want)
	}
	for _, want := range []string{
		"172.30.0.8:80 do not go to Service ns/web, for it is the address of a resolver of the node",
		"172.30.0.9:80 do not go to Service ns/web, for it is the address of the API server",
		"172.30.0.2:6443 do not go to Service ns/trap, for it is the address of the API server",
		"10.244.2.9:80 do not go to Service ns/pods, for it is the address of a pod of node n2",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q in it", err, want)
		}
	}
	if err != nil && strings.Contains(err.Error(), "172.30.0.2:80 ") {
		t.Errorf("each node serves a Service at its own address: refused: %v", err)
	}
	if len(d.ExternalIPs) != 3 || slices.ContainsFunc(d.ExternalIPs, func(e host.ExternalIP) bool {
		return e.Addr == addr("192.0.2.2")
	}) {
		t.Errorf("offered at the node's own address: %v, want the external ones alone", d.ExternalIPs)
	}
	if want := netip.MustParseAddrPort("169.254.87.1:30080"); d.ExternalIPs[0].To != want {
		t.Errorf("an external address leads to %s, want %s", d.ExternalIPs[0].To, want)
	}
}

func TestReadResolvers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(file,
		[]byte("# nameserver 192.0.2.9\nsearch example.com\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\n"+
			"nameserver nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := readResolvers(file)
	if want := []netip.Addr{netip.MustParseAddr("192.0.2.53"), netip.MustParseAddr("fe80::1%eth0")}; err != nil ||
		!slices.Equal(got, want) {
		t.Errorf("resolvers %v, %v; want %v", got, err, want)
	}
}

// TestLostAddresses: a Service whose external address another Service has is named, with the addresses and the winner.
func TestLostAddresses(t *testing.T) {
	lost := make([]model.LostAddress, 7)
	for i := range lost {
		lost[i] = model.LostAddress{Kind: model.ExternalIP,
			At: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 80), Protocol: model.TCP, Winner: "z/web"}
	}
	thief := model.ServiceOwner("a/thief")
	a := &Agent{log: slog.New(slog.DiscardHandler), events: kube.NewReporter(fakekube.New(), "n1"),
		objects: map[model.Owner]string{thief: "no port"}}
	t.Cleanup(a.events.Close)
	a.reportLost(&model.Snapshot{Services: map[string]model.Service{"a/thief": {Name: "a/thief", Lost: lost},
		"z/web": {Name: "z/web"}}})
	problems := a.objectProblems()
	if text := problems[thief]; len(problems) != 1 || !strings.HasPrefix(text, "no port; ") ||
		!strings.Contains(text, "192.0.2.4:80 TCP is Service z/web's, and 2 more (") {
		t.Errorf("problems: %v", problems)
	}
	a.reportLost(&model.Snapshot{Services: map[string]model.Service{"a/thief": {Name: "a/thief",
		OverBudget: "too large"}}})
	if problems := a.objectProblems(); problems[thief] != "no port; too large" {
		t.Errorf("over budget: %v", problems)
	}
	a.reportLost(&model.Snapshot{})
	if problems := a.objectProblems(); problems[thief] != "no port" {
		t.Errorf("afterwards: %v", problems)
	}
}
