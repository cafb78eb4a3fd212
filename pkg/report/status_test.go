package report

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/nodepath"
	"github.com/weft-cni/weft/pkg/openflow"
)

// TestNewStatus: at every stage of an agent's life its status has what is known, and lists are empty until they are,
// not null.
func TestNewStatus(t *testing.T) {
	settings := StatusInput{Node: "n1", Version: "v1", Transport: model.Tunnel(model.Geneve), Datapath: "system"}
	starting := settings
	starting.NotReady = "waiting for OVSDB: refused"
	starting.Problems = map[string]string{"OVSDB": "refused", "API server": "no answer"}
	starting.FromCopy = time.Unix(1000, 0)
	starting.API = []Feed{{Resource: "pods", AgeSeconds: 2}}
	starting.Restart = []Change{{Key: "datapath", Old: "system", New: "netdev"}}

	view := shop()
	view.Transport = model.Tunnel(model.VXLAN)
	view.Paths = nodepath.Resolve(view)
	programming := settings
	programming.View, programming.NotReady = view, "waiting for first programming: none"
	programming.Pods = []model.Pod{{PodRef: attachment("shop", "web", 16).Pod}}
	programming.CountsErr = errors.New("not read before the agent is ready")

	ready := programming
	ready.Ready, ready.NotReady, ready.CountsErr = true, "", nil
	ready.MTU, ready.Underlay = 1450, "eth0"
	ready.Programming = Programming{Progress: Progress{Programmed: 3, Desired: 3, Flows: 61}}
	spoofed, noRoute := openflow.Stats{Packets: 2}, openflow.Stats{Packets: 1, Bytes: 60}
	ready.Counts.Drops = map[flows.Reason]openflow.Stats{flows.SpoofedIP: spoofed, flows.NoRoute: noRoute}

	broken := ready
	broken.Degraded, broken.CountsErr = "the switch cannot be programmed: no answer", errors.New("no answer")
	broken.Problems = map[string]string{"bridge": "no answer"}
	broken.Programming.ForeignFlows, broken.Programming.Foreign = 7, []string{"table 0, priority=1", "…"}
	broken.Objects = map[model.Owner]string{
		model.ServiceOwner("shop/b"): "bad port", model.ServiceOwner("shop/a"): "no address",
	}
	outside := *view
	outside.OutsideClaims = model.OutsideClaims{Pods: 2, Example: "pod ns/x of node n2"}
	broken.View = &outside

	base := Status{APIVersion: APIVersion, Node: "n1", Version: "v1", Transport: model.ModeOverlay, Tunnel: model.Geneve, Datapath: "system",
		Addrs: []netip.Addr{}, PodCIDRs: []netip.Prefix{}, Nodes: []Node{}, Pods: []Pod{}, Drops: []Drop{}}
	first := base
	first.NotReady, first.FromCopy = starting.NotReady, &starting.FromCopy
	first.API, first.Restart = starting.API, starting.Restart
	first.Problems = []string{"API server: no answer", "OVSDB: refused"}
	second := base
	second.NotReady, second.Tunnel = programming.NotReady, model.VXLAN
	second.Addrs, second.PodCIDRs, second.Nodes = addrs("172.30.0.1"), cidrs("10.244.1.0/24"), []Node{}
	second.Flows.Quarantined = map[string]string{}
	second.Pods = []Pod{{Pod: "shop/web", IPs: addrs("10.244.1.2"), Port: "web-1", OFPort: 16}}
	third := second
	third.Ready, third.NotReady, third.MTU, third.Underlay = true, "", 1450, "eth0"
	third.Flows.Progress = ready.Programming.Progress
	third.Drops = []Drop{{flows.NoRoute, noRoute}, {flows.SpoofedIP, spoofed}}
	fourth := third
	fourth.Drops, fourth.Flows.Progress = []Drop{}, broken.Programming.Progress
	fourth.Objects.ServicesWithProblems = 2
	fourth.Problems = []string{
		"the switch cannot be programmed: no answer", "bridge: no answer",
		"foreign flows: 7 on bridge weft are not Weft's and may outrank its own; " +
			"remove them (ovs-ofctl --strict del-flows): table 0, priority=1; …",
		"service/shop/a: no address", "service/shop/b: bad port",
		"policies: they ignore addresses in the status of pods that are outside the pod CIDRs of the pods' nodes; " +
			"pods: 2, such as pod ns/x of node n2",
		"switch: no answer",
	}
	for _, tc := range []struct {
		stage string
		in    StatusInput
		want  Status
	}{
		{"started", settings, base}, {"waiting", starting, first}, {"with a snapshot", programming, second},
		{"ready", ready, third}, {"with every problem", broken, fourth},
	} {
		want(t, tc.stage, tc.want, NewStatus(tc.in))
	}
}

// TestPods: what is wrong with a pod, most important first.
func TestPods(t *testing.T) {
	web := attachment("shop", "web", 16, "10.244.1.2")
	known := model.Pod{PodRef: web.Pod}
	other := known
	other.UID = "another"
	others := []model.Pod{
		{PodRef: web.Pod, HostNetwork: true}, {PodRef: model.PodRef{Namespace: "a", Name: "b"}, Phase: "Succeeded"},
	}
	rejected := map[model.Owner]string{model.PodOwner(web): "rejected"}
	const gone = "the API server does not know this pod; the container runtime has not deleted its sandbox yet, and "
	for _, tc := range []struct {
		name        string
		attached    []model.Attachment
		unknown     bool
		known       []model.Pod
		quarantined map[model.Owner]string
		want        []Pod
	}{
		{name: "none", want: []Pod{}},
		{"fine", []model.Attachment{web}, false, []model.Pod{known}, nil, []Pod{{}}},
		{"quarantined", []model.Attachment{web}, true, nil, rejected, []Pod{{Problem: "rejected"}}},
		{"deleted", []model.Attachment{web}, false, nil, nil, []Pod{{Problem: gone + "its last policies apply"}}},
		{"missing", []model.Attachment{web}, true, nil, nil, []Pod{{Problem: gone + "it is closed"}}},
		{"replaced", []model.Attachment{web}, true, []model.Pod{other}, nil, []Pod{{Problem: gone + "it is closed"}}},
		{"policies unknown", []model.Attachment{web}, true, []model.Pod{known}, nil, []Pod{
			{Problem: "closed until all policies of its namespace are known"}}},
		{"others need no port", nil, false, others, nil, []Pod{}},
		{"not attached", nil, false, []model.Pod{known}, nil, []Pod{
			{Pod: "shop/web", IPs: []netip.Addr{}, Problem: "not attached: the container runtime has not called weft-cni, " +
				"or it failed (kubectl describe pod)"}}},
	} {
		view := &model.Snapshot{
			Attachments: attached(tc.attached...), Unknown: map[model.AttachmentKey]bool{web.Key(): tc.unknown},
		}
		for i := range tc.attached {
			tc.want[i].Pod, tc.want[i].IPs, tc.want[i].Port, tc.want[i].OFPort = "shop/web", addrs("10.244.1.2"), "web-1", 16
		}
		want(t, tc.name, tc.want, pods(view, tc.known, tc.quarantined))
	}
	// Order: by name, of one pod by port.
	second := web
	second.IfName, second.HostIfName = "eth1", "web-0"
	view := &model.Snapshot{Attachments: attached(web, second, attachment("a", "z", 17))}
	var order []string
	for _, p := range pods(view, nil, nil) {
		order = append(order, p.Pod+" "+p.Port)
	}
	want(t, "order", []string{"a/z z-1", "shop/web web-0", "shop/web web-1"}, order)
}

// TestPeerNodes: the tunnel leads where the path does, which may be the other family. Without a path that is the
// reason.
func TestPeerNodes(t *testing.T) {
	view := &model.Snapshot{
		Nodes: map[string]model.Node{
			"b": {Name: "b", Addrs: addrs("172.30.0.2", "fd30::2"), PodCIDRs: cidrs("10.244.2.0/24", "10.0.0.0/7")},
			"a": {Name: "a", Addrs: addrs("172.30.0.3")},
			"c": {Name: "c", Addrs: addrs("172.30.0.4")},
		},
		Paths: map[string]model.Path{
			"b": {NextHop: addr("fd30::2"), PodCIDRs: cidrs("10.244.2.0/24"), Rejected: []string{"10.0.0.0/7: too large"}},
			"a": {Unreachable: "node a has no podCIDRs"},
			"c": {NextHop: addr("172.30.0.4")},
		},
	}
	want(t, "nodes", []Node{
		{Name: "a", Tunnel: addr("172.30.0.3"), PodCIDRs: []netip.Prefix{}, Unreachable: "node a has no podCIDRs"},
		{Name: "b", Tunnel: addr("fd30::2"), PodCIDRs: view.Nodes["b"].PodCIDRs, Rejected: []string{"10.0.0.0/7: too large"}},
		{Name: "c", Tunnel: addr("172.30.0.4"), PodCIDRs: []netip.Prefix{}, Unreachable: "silent", RTTSeconds: 0.25},
	}, PeerNodes(view, map[string]Probe{
		"a": {Problem: "not asked"}, "c": {RTT: 250 * time.Millisecond, Problem: "silent"},
	}))
}

// TestObjectCounts: an object with two problems counts once, and a Service that is in no snapshot counts, too.
func TestObjectCounts(t *testing.T) {
	view := shop(web())
	view.Policies = policies(isolated("shop/p"), isolated("shop/q"))
	quarantined := map[model.Owner]string{
		model.ServiceOwner("shop/web"): "", model.NetworkPolicy("shop", "p").Owner(): "", {Kind: model.KindPod, Name: "shop/x"}: "",
	}
	problems := map[model.Owner]string{
		model.ServiceOwner("shop/web"): "", model.ServiceOwner("shop/bad"): "", model.NetworkPolicy("shop", "q").Owner(): "",
	}
	want(t, "counts", ObjectCounts{Services: 1, ServicesWithProblems: 2, Policies: 2, PoliciesWithErrors: 1},
		objectCounts(view, Programming{Quarantined: quarantined}, problems))
}

// TestSwitchJSON: owners are as users write them, also where there are thousands.
func TestSwitchJSON(t *testing.T) {
	policy, node := model.NetworkPolicy("shop", "db").Owner(), model.NodeOwner("n2")
	conflict := flows.Conflict{
		Key:    openflow.Key{Table: flows.EgressPolicy, Priority: 100, Match: openflow.ParseMatch("ip")},
		Owners: []model.Owner{policy, node}, Losers: []model.Owner{node},
	}
	text, err := json.Marshal(newSwitch(Programming{
		Progress:    Progress{Programmed: 3, Desired: 4, Flows: 61, Groups: 2, Bundles: 7, Repairs: 1, Error: "no answer"},
		Quarantined: map[model.Owner]string{policy: "no such port", node: "refused"}, Conflicts: []flows.Conflict{conflict},
	}))
	want := `{"programmed":3,"desired":4,"flows":61,"groups":2,"bundles":7,"repairs":1,"error":"no answer",` +
		`"quarantined":{"node/n2":"refused","policy/shop/db":"no such port"},` +
		`"conflicts":["table=50,priority=100,ip is claimed by [policy/shop/db node/n2]; left out are flows of [node/n2]"]}`
	if err != nil || string(text) != want {
		t.Errorf("%s, %v\nwant %s", text, err, want)
	}
	for range 10 {
		conflict.Owners = append(conflict.Owners, node)
	}
	if got := describeConflict(conflict); !strings.HasSuffix(got, " and 2 more; left out are flows of [node/n2]") {
		t.Errorf("a conflict of many: %s", got)
	}
}
