package report

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/weft-cni/weft/pkg/model"
)

func TestLosses(t *testing.T) {
	lost := func(n int) (list []model.LostAddress) {
		for range n {
			at := netip.MustParseAddrPort("192.0.2.1:80")
			list = append(list, model.LostAddress{At: at, Protocol: model.TCP, Winner: "a/first"})
		}
		return list
	}
	const one = "192.0.2.1:80 TCP is Service a/first's"
	text := func(list string) string {
		return "external addresses that other Services have: " + list +
			" (load balancers' addresses go before externalIPs, older Services before younger ones); " +
			"remove them from this Service"
	}
	view := shop(model.Service{Name: "a/fine"}, model.Service{Name: "a/taken", Lost: lost(1)},
		model.Service{Name: "a/large", OverBudget: "too many ports"},
		model.Service{Name: "a/both", OverBudget: "too many ports", Lost: lost(7)})
	want(t, "losses", map[model.Owner]string{
		model.ServiceOwner("a/taken"): text(one),
		model.ServiceOwner("a/large"): "too many ports",
		model.ServiceOwner("a/both"):  "too many ports; " + text(strings.Repeat(one+", ", 5)+"and 2 more"),
	}, Losses(view))
}

func TestMergeProblems(t *testing.T) {
	a, b, c := model.ServiceOwner("a"), model.ServiceOwner("b"), model.ServiceOwner("c")
	first, second := map[model.Owner]string{a: "1", b: "2"}, map[model.Owner]string{b: "3", c: "4"}
	want(t, "both", map[model.Owner]string{a: "1", b: "2; 3", c: "4"}, MergeProblems(first, second))
	want(t, "the first afterwards", map[model.Owner]string{a: "1", b: "2"}, first)
	want(t, "none", map[model.Owner]string{}, MergeProblems(nil, nil))
	want(t, "the second alone", second, MergeProblems(nil, second))
}

func TestSelfProblem(t *testing.T) {
	pods := func(list ...model.Attachment) *model.Snapshot {
		return &model.Snapshot{
			Self: model.Node{Name: "n1"}, Attachments: attached(list...),
			Paths: map[string]model.Path{"n1": {PodCIDRs: cidrs("10.244.1.0/24", "fd44::/64")}},
		}
	}
	inside := attachment("ns", "in", 16, "10.244.1.2", "fd44::2")
	outside := attachment("ns", "out", 17, "10.244.1.3", "fd45::3")
	held := pods(inside)
	held.SelfHeld = "its podCIDRs changed"
	moved := pods(inside)
	moved.NewPodCIDRs = cidrs("10.244.7.0/24")
	unknown := pods(outside)
	unknown.Paths = nil
	var many []model.Attachment
	for _, name := range strings.Split("a b c d e f g h i j k l", " ") {
		many = append(many, attachment("ns", name, 20, "192.0.2.1"))
	}
	const unreachable = "pods with addresses outside of [10.244.1.0/24 fd44::/64] do not reach pods of other nodes: " +
		"delete pod "
	for _, tc := range []struct {
		name string
		view *model.Snapshot
		want string
	}{
		{"inside", pods(inside), ""},
		{"pod CIDRs not known", unknown, ""},
		{"an address outside", pods(inside, outside), unreachable + "ns/out"},
		{"held", held, "node n1: its podCIDRs changed"},
		{"moved", moved, "pods with addresses outside of [10.244.7.0/24] do not reach pods of other nodes: " +
			"delete pod ns/in; no pod can start here before"},
		{"many", pods(many...), unreachable + "ns/a, ns/b, ns/c, ns/d, ns/e, ns/f, ns/g, ns/h, ns/i, ns/j and 2 more"},
	} {
		got := ""
		if err := SelfProblem(tc.view); err != nil {
			got = err.Error()
		}
		want(t, tc.name, tc.want, got)
	}
}

func TestRejectedPodCIDRs(t *testing.T) {
	rejected := []string{"10.0.0.0/7: too large", "::/0: default"}
	view := &model.Snapshot{Paths: map[string]model.Path{"n2": {Rejected: rejected}}}
	if err := RejectedPodCIDRs(view, "n2"); err == nil || err.Error() != "node n2: 10.0.0.0/7: too large; ::/0: default" {
		t.Errorf("n2: %v", err)
	}
	if err := RejectedPodCIDRs(view, "n1"); err != nil {
		t.Errorf("n1: %v", err)
	}
}

// TestMissingAddrs names the node, its InternalIPs that no link has, and the host's addresses that it could be reached
// at; those of the pod network are none.
func TestMissingAddrs(t *testing.T) {
	view := &model.Snapshot{
		Self:  model.Node{Name: "n1", Addrs: []netip.Addr{addr("172.30.0.1"), addr("fd30::1")}},
		Paths: map[string]model.Path{"n1": {PodCIDRs: cidrs("10.244.1.0/24")}},
	}
	gateway := addr("10.244.1.1")
	for _, tc := range []struct {
		local []netip.Addr
		want  string // how the error begins
	}{
		{[]netip.Addr{gateway, addr("172.30.0.1"), addr("fd30::1"), addr("fd30::2")}, ""},
		{[]netip.Addr{gateway, addr("172.30.0.9"), addr("fd30::1")},
			"node n1 has the InternalIP [172.30.0.1] in its Node object, and no link of this host has it; the host has " +
				"[172.30.0.9]: "},
		{[]netip.Addr{gateway},
			"node n1 has the InternalIP [172.30.0.1 fd30::1] in its Node object, and no link of this host has it; the host " +
				"has no other: "},
		{[]netip.Addr{addr("1.0.0.1"), addr("1.0.0.2"), addr("1.0.0.3"), addr("1.0.0.4"), addr("1.0.0.5"), addr("1.0.0.6"),
			addr("172.30.0.1")},
			"node n1 has the InternalIP [fd30::1] in its Node object, and no link of this host has it; the host has [1.0.0.1 " +
				"1.0.0.2 1.0.0.3 1.0.0.4 1.0.0.5] and 1 more: "},
	} {
		got := ""
		if err := MissingAddrs(view, tc.local); err != nil {
			got = err.Error()
		}
		if (got == "") != (tc.want == "") || !strings.HasPrefix(got, tc.want) {
			t.Errorf("%v: %q, want %q", tc.local, got, tc.want)
		}
	}
}
