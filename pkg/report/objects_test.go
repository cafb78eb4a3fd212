package report

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

func TestServices(t *testing.T) {
	view := shop(web(), model.Service{Name: "shop/none", Ports: []model.ServicePort{
		{Protocol: model.UDP, Port: 53, ClusterIP: addr("fd96::1")}}})
	actual, _ := programmed(t, view)
	problems := map[model.Owner]string{
		model.ServiceOwner("shop/bad"): "clusterIPs: no address", model.ServiceOwner("shop/web"): "a port is left out",
		model.NetworkPolicy("shop", "p").Owner(): "another",
	}
	quarantined := Programming{Quarantined: map[model.Owner]string{model.ServiceOwner("shop/web"): "rejected"}}
	list := Services(view, quarantined, problems, actual.Flows, "")
	here := Endpoint{netip.MustParseAddrPort("10.244.1.2:8080"), true, 1}
	there := Endpoint{netip.MustParseAddrPort("10.244.2.2:8080"), false, 2}
	// With affinity each endpoint has a flow for clients that come back; behind Local, the node's own have theirs, and
	// the node's own clients of its node ports.
	counted := func(n uint64) openflow.Stats { return openflow.Stats{Packets: n} }
	frontend := func(kind model.FrontendKind, address, policy string, n uint64, endpoints ...Endpoint) Frontend {
		return Frontend{
			Kind: kind, Address: address, Protocol: model.TCP, Port: "http", Policy: policy,
			Endpoints: endpoints, Stats: counted(n),
		}
	}
	balanced := frontend("LoadBalancer", "192.0.2.1:80", "Local", 0, here)
	balanced.Sources = cidrs("198.51.100.0/24")
	expected := []Service{
		{Service: "shop/bad", Problem: "clusterIPs: no address", Frontends: []Frontend{}},
		{Service: "shop/none", Frontends: []Frontend{{
			Kind: "ClusterIP", Address: "[fd96::1]:53", Protocol: model.UDP, Policy: "Cluster",
			Endpoints: []Endpoint{}, Without: "rejected: there is no endpoint", Stats: counted(1),
		}}},
		{Service: "shop/web", Affinity: "1h0m0s", Problem: "a port is left out; rejected", Frontends: []Frontend{
			frontend("ClusterIP", "10.96.0.1:80", "Cluster", 3, here, there),
			frontend("ExternalIP", "192.0.2.9:80", "Local", 5, here),
			balanced,
			frontend("NodePort", "*:30080", "Local", 8, here),
		}},
	}
	ofBalancer := &list[2].Frontends[2].Stats
	if ofBalancer.Packets == 0 {
		t.Error("the load balancer's address counts nothing")
	}
	ofBalancer.Packets = 0 // how many flows its ranges take is not the point
	want(t, "all", expected, list)

	for name, count := range map[string]int{"bad": 1, "shop/web": 1, "web": 1, "other/web": 0, "": 3} {
		if got := Services(view, Programming{}, problems, nil, name); len(got) != count {
			t.Errorf("%q is %d Services, want %d", name, len(got), count)
		}
	}
}

// TestWithoutEndpoints: a client gets a rejection where there is no endpoint, and silence where others have some.
func TestWithoutEndpoints(t *testing.T) {
	elsewhere, none := web(), web()
	elsewhere.Ports[0].Local = nil
	none.Ports[0].Local, none.Ports[0].Cluster, none.Ports[0].Elsewhere = nil, nil, false
	sctp := web() // the userspace datapath does not translate its ports
	sctp.Ports[0].Protocol = model.SCTP
	for _, tc := range []struct {
		name     string
		service  model.Service
		frontend int
		want     string
	}{
		{"some", web(), 0, ""},
		{"on other nodes only", elsewhere, 3, "dropped: there are endpoints on other nodes only"},
		{"none", none, 0, "rejected: there is no endpoint"},
	} {
		if got := Services(shop(tc.service), Programming{}, nil, nil, "")[0].Frontends[tc.frontend].Without; got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
	port := sctp.Ports[0]
	why := flows.Untranslatable(port, port.Frontends()[0], false)
	if why == nil {
		t.Fatal("SCTP to another port has become translatable")
	}
	for kernel, without := range map[bool]string{true: "", false: "rejected: " + why.Error()} {
		view := shop(sctp)
		view.KernelDatapath = kernel
		got := Services(view, Programming{}, nil, nil, "")[0].Frontends[0]
		if got.Without != without || got.Endpoints == nil || (len(got.Endpoints) > 0) != kernel {
			t.Errorf("SCTP, kernel's datapath %v: %+v", kernel, got)
		}
	}
}

func TestPolicies(t *testing.T) {
	a, b := addr("10.244.1.2"), addr("10.244.1.3")
	p := isolated("ns/p", a, b)
	p.Ingress.Rules[1].Pods = []netip.Addr{b}
	p.Log = true
	broken := model.Policy{ID: model.NetworkPolicy("ns", "broken"), Err: "no port",
		Egress: &model.PolicySide{Pods: []netip.Addr{a}}}
	staged := model.Policy{ID: model.NetworkPolicy("ns", "staged"), Staged: true,
		Egress: &model.PolicySide{Pods: []netip.Addr{a}, Rules: []model.PolicyRule{{Pods: []netip.Addr{a}}}}}
	mistaken := model.Policy{ID: model.NetworkPolicy("ns", "mistaken"), Warning: "invalid value"}
	view := &model.Snapshot{
		Policies:    policies(p, broken, staged, mistaken),
		Attachments: attached(attachment("ns", "web", 16, "10.244.1.2")),
	}
	counts := Counts{Rules: map[RuleID]openflow.Stats{
		{policyID("ns/p"), flows.Rule{Direction: model.Ingress, Index: 3}}: {Packets: 4, Bytes: 400},
		{policyID("ns/p"), flows.Rule{Direction: model.Ingress, Index: flows.Isolation, Verdict: model.Deny}}: {Packets: 1,
			Bytes: 60},
		{staged.ID, flows.Rule{Direction: model.Egress, Index: flows.Isolation, Verdict: model.Deny}}: {Packets: 7},
		{staged.ID, flows.Rule{Direction: model.Egress, Index: flows.Isolation, Verdict: model.Deny, Staged: true}}: {
			Packets: 2},
	}}
	status := Programming{
		Quarantined: map[model.Owner]string{model.NetworkPolicy("ns", "broken").Owner(): "invalid"},
		Incomplete: map[model.Owner]string{model.NetworkPolicy("ns", "broken").Owner(): "hidden",
			model.NetworkPolicy("ns", "p").Owner(): "full"},
	}
	want(t, "all", []Policy{
		{Policy: "ns/broken", Tier: "NetworkPolicy", Problem: "invalid", Rules: []Rule{
			{Direction: model.Egress, Rule: RuleDenied, Verdict: "denied", Pods: []string{"web"}}}},
		{Policy: "ns/mistaken", Tier: "NetworkPolicy", Problem: "invalid value", Rules: []Rule{}},
		{Policy: "ns/p", Tier: "NetworkPolicy", Problem: "full", Log: true, Rules: []Rule{
			{model.Ingress, "3", "allowed", "", []string{"10.244.1.3", "web"}, openflow.Stats{Packets: 4, Bytes: 400}},
			{model.Ingress, "5", "allowed", "", []string{"10.244.1.3"}, openflow.Stats{}},
			{model.Ingress, RuleDenied, "denied", "", []string{"10.244.1.3", "web"}, openflow.Stats{Packets: 1, Bytes: 60}},
		}},
		{Policy: "ns/staged", Tier: "NetworkPolicy", Staged: true, Rules: []Rule{
			{model.Egress, "0", "would be allowed", "", []string{"web"}, openflow.Stats{}},
			{model.Egress, RuleDenied, "would be denied", "", []string{"web"}, openflow.Stats{Packets: 2}},
		}},
	}, Policies(view, status, counts, ""))
	for name, count := range map[string]int{"p": 1, "ns/p": 1, "other/p": 0, "": 4} {
		if got := Policies(view, status, counts, name); len(got) != count {
			t.Errorf("%q is %d policies, want %d", name, len(got), count)
		}
	}
}

// TestFlowsOfAnObject: an object's name finds the flows of each object that has it, with the endpoints behind them, and
// of policies those that belong to another one, too.
func TestFlowsOfAnObject(t *testing.T) {
	view := shop(web())
	view.Policies = policies(isolated("shop/a", addr("10.244.1.2")), isolated("shop/b", addr("10.244.1.2")))
	actual, desired := programmed(t, view)
	owners := func(object string) []string {
		var list []string
		for _, f := range Flows(actual, desired, view, object) {
			list = append(list, f.Owner)
		}
		slices.Sort(list)
		return slices.Compact(list)
	}
	for object, owner := range map[string][]string{
		"shop/web": {"pod/shop/web", "service/shop/web"}, "web": {"pod/shop/web", "service/shop/web"},
		"service/shop/web": {"service/shop/web"}, "pod/shop/web": {"pod/shop/web"},
		"policy/shop/b": {"policy/shop/a"}, "b": {"policy/shop/a"}, "self": {"self"}, "none": nil,
	} {
		if got := owners(object); !slices.Equal(got, owner) {
			t.Errorf("%s: flows of %v, want %v", object, got, owner)
		}
	}
	found := false
	for _, f := range Flows(actual, desired, view, "service/shop/web") {
		for _, g := range f.Groups {
			found = true
			if b := g.Buckets[0]; g.By != "hash of ip_src" || b.To != "10.244.1.2:8080" || !b.Remembered || b.ID == 0 {
				t.Errorf("group %+v", g)
			}
		}
	}
	if !found {
		t.Error("no flow leads to a group")
	}
}

// TestFlowsShowBothSteps: many endpoints are chosen in two steps, and both are shown.
func TestFlowsShowBothSteps(t *testing.T) {
	if testing.Short() {
		t.Skip("many flows: left to make unit")
	}
	many := web()
	for i := range 2000 { // more than one group holds
		ip := netip.AddrFrom4([4]byte{10, 250, byte(i >> 8), byte(i)})
		many.Ports[0].Cluster = append(many.Ports[0].Cluster, model.Endpoint{Addr: ip, Port: 8080, Weight: 1})
	}
	view := shop(many)
	actual, desired := programmed(t, view)
	found := false
	for _, f := range Flows(actual, desired, view, "service/shop/web") {
		if f.Match != "tcp,nw_dst=10.96.0.1,tp_dst=80" {
			continue
		}
		found = true
		if len(f.Groups) < 3 || !strings.HasPrefix(f.Groups[0].Buckets[0].To, "group ") {
			t.Errorf("behind %s are %d groups, want one of groups and these", f.Match, len(f.Groups))
		}
	}
	if !found {
		t.Error("no flow of the cluster IP")
	}
}

// TestFlow: names instead of numbers, owners from cookies, and a reason only where the flow is as Weft wants it.
func TestFlow(t *testing.T) {
	view := shop()
	att := view.Attachments[model.AttachmentKey{ContainerID: "shop-web", IfName: "eth0"}]
	_, desired := programmed(t, view)
	entry := func(table openflow.TableID, priority uint16, match, actions string, cookie uint64) openflow.Entry {
		return openflow.Entry{Flow: openflow.Flow{
			Key:     openflow.Key{Table: table, Priority: priority, Match: openflow.ParseMatch(match)},
			Actions: openflow.ParseActions(actions), Cookie: cookie}}
	}
	pod := flows.Cookie(model.PodOwner(att))
	drop := entry(flows.Forwarding, 0, "", "drop", flows.Cookie(model.PipelineOwner))
	changed := drop
	changed.Actions = openflow.ParseActions("normal")
	actual := []openflow.Entry{
		drop,
		entry(flows.Classifier, 7, "in_port=16", "goto_table:10", pod),
		entry(flows.Classifier, 8, "in_port=99", "drop", 5),
		entry(flows.Classifier, 6, "in_port=2", "drop", flows.Cookie(model.NodeOwner("n9"))),
	}
	for i, tc := range []struct {
		entry openflow.Entry
		want  Flow
	}{
		{actual[2], Flow{Table: "Classifier", Priority: 8, Match: "in_port=99", Actions: "drop", Owner: "foreign"}},
		{actual[1], Flow{Table: "Classifier", Priority: 7, Match: "in_port=web-1",
			Actions: "goto_table:" + flows.TableName(10), Owner: "pod/shop/web"}},
		{actual[3], Flow{Table: "Classifier", Priority: 6, Match: "in_port=" + model.VXLANPortName,
			Actions: "drop", Owner: "node/(gone)"}},
		{drop, Flow{Table: "Forwarding", TableID: 60, Actions: "drop", Owner: "pipeline", Reason: flows.NoRoute}},
		{changed, Flow{Table: "Forwarding", TableID: 60, Actions: "normal", Owner: "pipeline"}},
	} {
		tc.want.Cookie = fmt.Sprintf("%#x", tc.entry.Cookie)
		one := openflow.Contents{Flows: []openflow.Entry{tc.entry}}
		want(t, fmt.Sprint(i), []Flow{tc.want}, Flows(one, desired, view, ""))
	}
	before := slices.Clone(actual)
	var order []uint16
	for _, f := range Flows(openflow.Contents{Flows: actual}, desired, view, "") {
		order = append(order, f.Priority)
	}
	want(t, "order", []uint16{8, 7, 6, 0}, order)
	want(t, "the argument afterwards", before, actual)
}
