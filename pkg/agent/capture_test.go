package agent

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/pkg/capture"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/policy"
)

// capturing are the names of a node with a pod, a Service, a peer node and pods there.
func capturing() (*captureNames, *model.Snapshot, *[]policy.Pod) {
	addr := netip.MustParseAddr
	web := model.ServicePort{Protocol: model.TCP, Port: 80, ClusterIP: addr("10.96.0.1"), ExternalIPs: []netip.Addr{addr("192.0.2.1")},
		NodePort: 30080, Cluster: []model.Endpoint{{Addr: addr("10.244.0.2"), Port: 8080}, {Addr: addr("10.244.1.3"), Port: 8080}}}
	other := model.ServicePort{Protocol: model.UDP, Port: 53, ClusterIP: addr("fd96::2"), ExternalIPs: []netip.Addr{addr("192.0.2.1")},
		Retained: []netip.AddrPort{netip.MustParseAddrPort("[fd44::2]:53")}}
	view := &model.Snapshot{
		Self: model.Node{Name: "n1"}, LocalAddrs: []netip.Addr{addr("192.168.0.1")},
		Paths: map[string]model.Path{
			"n1": {Addrs: []netip.Addr{addr("172.30.0.11")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24")}},
			"n2": {Addrs: []netip.Addr{addr("172.30.0.12")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}},
		},
		Services: map[string]model.Service{"shop/web": {Name: "shop/web", Ports: []model.ServicePort{web}},
			"bank/web": {Name: "bank/web", Ports: []model.ServicePort{other}}},
		Attachments: map[model.AttachmentKey]model.Attachment{{ContainerID: "c"}: {Pod: model.PodRef{Namespace: "shop", Name: "web"},
			HostIfName: "lo", OFPort: 16, IPs: []netip.Addr{addr("10.244.0.2"), addr("fd44::2")}}},
	}
	pods := &[]policy.Pod{
		{Namespace: "shop", Name: "web", Node: "n1"}, // its status has no address yet
		{Namespace: "shop", Name: "far", Node: "n2", Addrs: []netip.Addr{addr("10.244.1.3")}},
		{Namespace: "shop", Name: "done", Node: "n2", Addrs: []netip.Addr{addr("10.244.1.4")}, Done: true},
		{Namespace: "shop", Name: "host", Node: "n2", Addrs: []netip.Addr{addr("172.30.0.12")}, HostNetwork: true},
		{Namespace: "shop", Name: "pending", Node: "n1"},
	}
	return &captureNames{now: time.Now, view: func() *model.Snapshot { return view },
		every: func(visit func(policy.Pod) bool) {
			for _, p := range *pods {
				if !visit(p) {
					return
				}
			}
		}}, view, pods
}

// TestCaptureNames: addresses of pods, nodes, gateways and Services have names; that which several have has none. Names
// follow what changes.
func TestCaptureNames(t *testing.T) {
	names, _, pods := capturing()
	now := time.Unix(1000, 0)
	names.now = func() time.Time { return now }
	for text, want := range map[string]string{
		"10.244.0.2": "shop/web", "fd44::2": "shop/web", "10.244.1.3": "shop/far", "10.244.1.4": "", "172.30.0.12": "node/n2",
		"172.30.0.11": "node/n1", "192.168.0.1": "node/n1", "10.244.0.1": "gateway/n1", "10.244.1.1": "gateway/n2",
		"10.96.0.1": "service/shop/web", "fd96::2": "service/bank/web", "192.0.2.1": "", "169.254.87.1": "node-port",
		"169.254.87.2": "masqueraded", "8.8.8.8": "",
	} {
		if got := names.name(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s is %q, want %q", text, got, want)
		}
	}
	fresh, old := netip.MustParseAddr("10.244.1.9"), netip.MustParseAddr("10.244.1.3")
	(*pods)[1].Addrs = []netip.Addr{fresh}
	for _, tc := range []struct {
		after      time.Duration
		addr       netip.Addr
		want, what string
	}{
		{0, fresh, "", "a new address within the pause"}, {0, old, "shop/far", "an old one"},
		{namesPause, fresh, "shop/far", "a new address after the pause"}, {0, old, "", "an old one after another reading"},
	} {
		if now = now.Add(tc.after); names.name(tc.addr) != tc.want {
			t.Errorf("%s: %q, want %q", tc.what, names.name(tc.addr), tc.want)
		}
	}
	(*pods)[1].Addrs = nil
	now = now.Add(namesAge)
	if got := names.name(fresh); got != "" {
		t.Errorf("an address that is gone is %q", got)
	}
}

// TestCapturePorts: a pod's port is found by its name, a Service's are those of the node's pods and the gateway's, with
// the Service's addresses as the filter; what cannot be captured is named with the place to ask.
func TestCapturePorts(t *testing.T) {
	for _, tc := range []struct {
		kind, at, want string
	}{
		{"", "shop/web", "shop/web may be pod/shop/web or service/shop/web; write one of them"},
		{"pod", "shop/web", ""},
		{"pod", "web", ""},
		{"service", "web", "web may be service/bank/web or service/shop/web; write one of them"},
		{"pod", "shop/far", "pod shop/far is on node n2, not on n1"},
		{"pod", "shop/host", "pod shop/host is in the network of node n2, so it has no port; capture gateway or tunnel there"},
		{"pod", "shop/pending", "pod shop/pending is not attached (yet)"},
		{"", "shop/none", `there is no pod or service "shop/none"`},
		{"node", "n1", "node n1: want a pod or a service"},
	} {
		names, view, _ := capturing()
		plan := capture.Plan{Request: capture.Request{At: tc.at, Kind: tc.kind}}
		err := names.addObject(&plan, view)
		if tc.want != "" {
			if err == nil || err.Error() != tc.want {
				t.Errorf("%s %s: %v, want %q", tc.kind, tc.at, err, tc.want)
			}
			continue
		}
		if err != nil || len(plan.Ports) != 1 || plan.Ports[0] != (capture.Port{Name: "shop/web", Link: "lo"}) || plan.Links[0] != 1 {
			t.Errorf("%s %s: %+v, %v", tc.kind, tc.at, plan, err)
		}
	}
	names, view, _ := capturing()
	plan := capture.Plan{Request: capture.Request{At: "shop/web", Kind: "service"}}
	// There is no gateway where this test runs; it comes last.
	if err := names.addObject(&plan, view); err == nil || !strings.HasPrefix(err.Error(), "the network device weft0 of gateway: ") {
		t.Error(err)
	}
	var ends []string
	for _, e := range plan.Filter.Ends {
		ends = append(ends, e.At.String()+"/"+string(e.Protocol))
	}
	if want := []string{"10.96.0.1:80/TCP", "192.0.2.1:80/TCP", "169.254.87.1:30080/TCP", "10.244.0.2:8080/TCP",
		"10.244.1.3:8080/TCP"}; len(plan.Ports) != 1 || !slices.Equal(ends, want) {
		t.Errorf("ports %+v, ends %q, want %q", plan.Ports, ends, want)
	}
}

// TestCapturePeers: a peer is an address, a range, or an object with addresses.
func TestCapturePeers(t *testing.T) {
	for _, tc := range []struct{ kind, text, want string }{
		{"", "10.244.1.3", "10.244.1.3/32"}, {"", "fd44::2", "fd44::2/128"}, {"", "10.1.2.3/16", "10.1.0.0/16"},
		{"", "shop/far", "10.244.1.3/32"}, {"", "n2", "172.30.0.12/32 10.244.1.1/32"}, {"node", "n1", "172.30.0.11/32 10.244.0.1/32"},
		{"pod", "shop/web", "10.244.0.2/32 fd44::2/128"},
		{"service", "bank/web", "192.0.2.1/32 fd44::2/128 fd96::2/128"},
		{"pod", "shop/pending", "error: pod/shop/pending has no address (yet)"},
		{"policy", "shop/web", "error: policy shop/web: want a pod or a service or a node"},
		{"node", "n3", `error: there is no node "n3"`},
	} {
		names, view, _ := capturing()
		list, err := names.peers(view, tc.kind, tc.text)
		var texts []string
		for _, p := range list {
			texts = append(texts, p.String())
		}
		got := strings.Join(texts, " ")
		if err != nil {
			got = "error: " + err.Error()
		}
		if got != tc.want {
			t.Errorf("%s %s: %s, want %s", tc.kind, tc.text, got, tc.want)
		}
	}
}
