package agent

import (
	"encoding/json"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// web is a Service with every kind of address and an endpoint on this node and on another.
func web() model.Service {
	here, there := model.Endpoint{Addr: addr("10.244.1.2"), Port: 8080, Weight: 1}, model.Endpoint{Addr: addr("10.244.2.2"), Port: 8080, Weight: 2}
	return model.Service{Name: "shop/web", Affinity: time.Hour, Ports: []model.ServicePort{{
		Name: "http", Protocol: model.TCP, Port: 80, ClusterIP: addr("10.96.0.1"), NodePort: 30080, ExternalLocal: true, Elsewhere: true,
		ExternalIPs: []netip.Addr{addr("192.0.2.9"), addr("192.0.2.1")}, LoadBalancerIPs: []netip.Addr{addr("192.0.2.1")}, LoadBalancerSources: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")},
		Cluster: []model.Endpoint{here, there}, Local: []model.Endpoint{here},
	}}}
}

func shop(services ...model.Service) *model.Snapshot {
	att := model.Attachment{ContainerID: "c", IfName: "eth0", Pod: model.PodRef{Namespace: "shop", Name: "web"}, HostIfName: "web-1", OFPort: 16, IPs: []netip.Addr{addr("10.244.1.2")}}
	view := &model.Snapshot{Self: model.Node{Name: "n1", Addrs: []netip.Addr{addr("172.30.0.1")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}},
		Attachments: map[model.AttachmentKey]model.Attachment{att.Key(): att}, Services: map[string]model.Service{}}
	for _, s := range services {
		view.Services[s.Name] = s
	}
	return view
}

// realised is a switch that holds what a view asks for; each flow has counted one packet.
func realised(t *testing.T, view *model.Snapshot) (openflow.Contents, flows.Desired) {
	t.Helper()
	desired, err := flows.Compile(view)
	if err != nil {
		t.Fatal(err)
	}
	var c openflow.Contents
	for _, f := range desired.Flows {
		c.Flows = append(c.Flows, openflow.Entry{Flow: f.Flow, Stats: openflow.Stats{Packets: 1}})
	}
	for _, g := range desired.Groups {
		c.Groups = append(c.Groups, g.Group)
	}
	return c, desired
}

func TestServiceReports(t *testing.T) {
	view := shop(web(), model.Service{Name: "shop/none", Ports: []model.ServicePort{{Protocol: model.UDP, Port: 53, ClusterIP: addr("fd96::1")}}})
	actual, _ := realised(t, view)
	problems := map[model.Owner]string{model.ServiceOwner("shop/bad"): "clusterIPs: no address", model.ServiceOwner("shop/web"): "a port is left out", model.PolicyOwner("shop/p"): "else"}
	reports := serviceReports(view, Status{Quarantined: map[model.Owner]string{model.ServiceOwner("shop/web"): "refused"}}, problems, actual.Flows, "")
	here, there := EndpointReport{netip.MustParseAddrPort("10.244.1.2:8080"), true, 1}, EndpointReport{netip.MustParseAddrPort("10.244.2.2:8080"), false, 2}
	local, sources := []EndpointReport{here}, []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
	// With affinity each endpoint has a flow for clients that come back; behind Local, the node's own have
	// theirs, and the node's own clients of its node ports.
	counted := func(n uint64) openflow.Stats { return openflow.Stats{Packets: n} }
	want := []ServiceReport{
		{Service: "shop/bad", Problem: "clusterIPs: no address", Frontends: []FrontendReport{}},
		{Service: "shop/none", Frontends: []FrontendReport{{Kind: "ClusterIP", Address: "[fd96::1]:53", Protocol: model.UDP, Policy: "Cluster", Endpoints: []EndpointReport{}, Without: "rejected: there is no endpoint", Stats: counted(1)}}},
		{Service: "shop/web", Affinity: "1h0m0s", Problem: "a port is left out; refused", Frontends: []FrontendReport{
			{Kind: "ClusterIP", Address: "10.96.0.1:80", Protocol: model.TCP, Port: "http", Policy: "Cluster", Endpoints: []EndpointReport{here, there}, Stats: counted(3)},
			{Kind: "ExternalIP", Address: "192.0.2.9:80", Protocol: model.TCP, Port: "http", Policy: "Local", Endpoints: local, Stats: counted(5)},
			{Kind: "LoadBalancer", Address: "192.0.2.1:80", Protocol: model.TCP, Port: "http", Policy: "Local", Sources: sources, Endpoints: local},
			{Kind: "NodePort", Address: "*:30080", Protocol: model.TCP, Port: "http", Policy: "Local", Endpoints: local, Stats: counted(8)},
		}},
	}
	if n := reports[len(reports)-1].Frontends[2].Packets; n == 0 {
		t.Error("the load balancer's address counts nothing")
	}
	reports[len(reports)-1].Frontends[2].Packets = 0 // how many flows its ranges take is not the point
	if diff := cmp.Diff(want, reports, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if one := serviceReports(view, Status{}, problems, nil, "bad"); len(one) != 1 || one[0].Service != "shop/bad" {
		t.Errorf("by its name: %+v", one)
	}
	elsewhere := web()
	elsewhere.Ports[0].Local = nil
	if got := serviceReports(shop(elsewhere), Status{}, nil, nil, "")[0].Frontends[3].Without; got != "dropped: there are endpoints on other nodes only" {
		t.Errorf("without local endpoints: %q", got)
	}
	refused := map[model.Owner]string{model.ServiceOwner("shop/web"): "", model.PolicyOwner("shop/p"): "", {Kind: model.KindPod, Name: "shop/x"}: ""}
	if got := objectCounts(view, Status{Quarantined: refused}, problems); got != (ObjectCounts{Services: 2, ServicesWithProblems: 2, PoliciesWithErrors: 1}) {
		t.Errorf("counts %+v", got)
	}
}

// TestFlowReportsOfAnObject: an object's name finds the flows of whatever has it, with the endpoints behind them, and of policies
// those that belong to another one, too.
func TestFlowReportsOfAnObject(t *testing.T) {
	view := shop(web())
	view.Policies = policies(isolated("shop/a", addr("10.244.1.2")), isolated("shop/b", addr("10.244.1.2")))
	actual, desired := realised(t, view)
	owners := func(object string) []string {
		var list []string
		for _, f := range flowReports(actual, desired, view, object) {
			list = append(list, f.Owner)
		}
		slices.Sort(list)
		return slices.Compact(list)
	}
	for object, want := range map[string][]string{
		"shop/web": {"pod/shop/web", "service/shop/web"}, "web": {"pod/shop/web", "service/shop/web"}, "service/shop/web": {"service/shop/web"}, "pod/shop/web": {"pod/shop/web"},
		"policy/shop/b": {"policy/shop/a"}, "b": {"policy/shop/a"}, "self": {"self"}, "nobody": nil,
	} {
		if got := owners(object); !slices.Equal(got, want) {
			t.Errorf("%s: flows of %v, want %v", object, got, want)
		}
	}
	found := false
	for _, f := range flowReports(actual, desired, view, "service/shop/web") {
		for _, g := range f.Groups {
			found = true
			if g.By != "hash of ip_src" || len(g.Buckets) == 0 || g.Buckets[0].To != "10.244.1.2:8080" || !g.Buckets[0].Remembered || g.Buckets[0].ID == 0 {
				t.Errorf("group %+v", g)
			}
		}
	}
	if !found {
		t.Error("no flow leads to a group")
	}
	// Many endpoints are chosen in two steps, and both are shown.
	many := web()
	for i := range 2000 { // more than one group holds
		many.Ports[0].Cluster = append(many.Ports[0].Cluster, model.Endpoint{Addr: netip.AddrFrom4([4]byte{10, 250, byte(i >> 8), byte(i)}), Port: 8080, Weight: 1})
	}
	view = shop(many)
	actual, desired = realised(t, view)
	for _, f := range flowReports(actual, desired, view, "service/shop/web") {
		if f.Match == "tcp,nw_dst=10.96.0.1,tp_dst=80" && len(f.Groups) < 3 {
			t.Errorf("behind %s are %d groups, want one of groups and these", f.Match, len(f.Groups))
		}
	}
}

// TestSwitchReport: weftctl's JSON has owners as users write them.
func TestSwitchReport(t *testing.T) {
	policy, node := model.PolicyOwner("shop/db"), model.NodeOwner("n2")
	disputed := flows.Conflict{Key: openflow.Key{Table: flows.EgressPolicy, Priority: 100, Match: "ip"}, Owners: []model.Owner{policy, node}, Losers: []model.Owner{node}}
	text, err := json.Marshal(switchReport(Status{
		Realised: 3, Desired: 4, Flows: 61, Groups: 2, Bundles: 7, Repairs: 1, Error: "no answer",
		Quarantined: map[model.Owner]string{policy: "no such port", node: "refused"}, Conflicts: []flows.Conflict{disputed},
	}))
	want := `{"realised":3,"desired":4,"flows":61,"groups":2,"bundles":7,"repairs":1,"error":"no answer",` +
		`"quarantined":{"node/n2":"refused","policy/shop/db":"no such port"},` +
		`"conflicts":["table=50,priority=100,ip is claimed by [policy/shop/db node/n2]; left out are flows of [node/n2]"]}`
	if err != nil || string(text) != want {
		t.Errorf("%s, %v\nwant %s", text, err, want)
	}
}
