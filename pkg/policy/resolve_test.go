package policy

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/weft-cni/weft/pkg/model"
)

// TestIDs: in any order of additions and deletions, and with any collisions, each key has the id that it gets when the
// present keys are added in order: its hash, or the next free id.
func TestIDs(t *testing.T) {
	for name, hash := range map[string]func(string) uint32{
		"all want one":       func(string) uint32 { return 7 },
		"a few":              func(key string) uint32 { return hashKey(key) % 5 },
		"at the last number": func(key string) uint32 { return ^uint32(0) - hashKey(key)%2 },
		"zero hash":          func(string) uint32 { return 0 },
		"as it is":           hashKey,
	} {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				ids, told, there := newIDs(hash), map[string]uint32{}, map[string]bool{}
				for range rapid.IntRange(1, 30).Draw(t, "changes") {
					key := fmt.Sprint("key", rapid.IntRange(0, 9).Draw(t, "key"))
					var moved []string
					if note := func(key string) { moved = append(moved, key) }; rapid.Bool().Draw(t, "add") {
						there[key] = true
						ids.add(key, note)
					} else {
						delete(there, key)
						delete(told, key)
						ids.remove(key, note)
					}
					for _, key := range moved {
						told[key] = ids.byKey[key]
					}
				}
				want, taken := map[string]uint32{}, map[uint32]bool{}
				for i := range 10 {
					key := fmt.Sprint("key", i)
					if !there[key] {
						continue
					}
					id := hash(key)
					for id == 0 || taken[id] {
						id++
					}
					want[key], taken[id] = id, true
				}
				if fmt.Sprint(want) != fmt.Sprint(ids.byKey) || fmt.Sprint(want) != fmt.Sprint(told) || len(ids.byID) != len(want) {
					t.Fatalf("ids %v, told %v, want %v", ids.byKey, told, want)
				}
			})
		})
	}
}

// TestIDsStay: ids survive in the switch across restarts of the agent.
func TestIDsStay(t *testing.T) {
	if got := newIDs(hashKey).home(ruleKey{model.NetworkPolicy("ns", "p"), Ingress, 3,
		"TCP/80-80,"}.String()); got != 0x9c23ade0 {
		t.Errorf("id %#x: the hash has changed, and with it every conjunction id of every switch", got)
	}
}

// TestMatches: every range is covered exactly, without overlap, by the fewest masks.
func TestMatches(t *testing.T) {
	for _, tc := range []struct{ from, to, count int }{
		{0, 0xffff, 1}, {1, 0xffff, 16}, {80, 80, 1}, {80, 95, 1}, {80, 96, 2}, {1, 0xfffe, 30}, {0xffff, 0xffff, 1}, {0x8000,
			0xffff, 1}, {1000, 1999, 7},
	} {
		got := matches([]portRange{{TCP, uint16(tc.from), uint16(tc.to)}})
		if len(got) != tc.count {
			t.Errorf("%d-%d: %d matches, want %d", tc.from, tc.to, len(got), tc.count)
		}
		for port := range 0x10000 {
			hits := 0
			for _, m := range got {
				if uint16(port)&m.Mask == m.Port {
					hits++
				}
			}
			if inside := port >= tc.from && port <= tc.to; hits > 1 || hits == 1 != inside {
				t.Fatalf("%d-%d: port %d is matched %d times by %v", tc.from, tc.to, port, hits, got)
			}
		}
	}
}

func TestBlocks(t *testing.T) {
	for _, tc := range []struct {
		cidr, except string
		want         string
	}{
		{"10.0.0.0/8", "", "[10.0.0.0/8]"},
		{"10.1.2.3/8", "", "[10.0.0.0/8]"},
		{"10.0.0.0/30", "10.0.0.1/32", "[10.0.0.0/32 10.0.0.2/31]"},
		{"10.0.0.0/30", "10.0.0.1/32 10.0.0.2/31", "[10.0.0.0/32]"},
		{"10.0.0.0/30", "10.0.0.0/29", "[]"},
		{"10.0.0.0/30", "10.0.0.0/30", "[]"},
		{"10.0.0.0/30", "10.0.0.4/32 fd00::/8", "[10.0.0.0/30]"},
		{"10.0.0.0/24", "10.0.0.129/25", "[10.0.0.0/25]"},
		{"fd00::/126", "fd00::3/128", "[fd00::/127 fd00::2/128]"},
		{"255.255.255.255/32", "", "[255.255.255.255/32]"},
	} {
		b := IPBlock{CIDR: netip.MustParsePrefix(tc.cidr)}
		for _, e := range strings.Fields(tc.except) {
			b.Except = append(b.Except, netip.MustParsePrefix(e))
		}
		if got := fmt.Sprint(b.prefixes()); got != tc.want {
			t.Errorf("%s without %s is %s, want %s", tc.cidr, tc.except, got, tc.want)
		}
	}
	if got := len((IPBlock{CIDR: netip.MustParsePrefix("::/0"),
		Except: []netip.Prefix{netip.MustParsePrefix("fd00::1/128")}}).prefixes()); got != 128 {
		t.Errorf("everything without one address is %d ranges, want 128", got)
	}
}

func addr(text string) netip.Addr { return netip.MustParseAddr(text) }

// everywhereV4 are the pod CIDRs of a node whose pods may have any IPv4 address of these tests.
var everywhereV4 = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}

func app(name string) map[string]string { return map[string]string{"app": name} }

func onlyFrom(name string) Policy {
	return Policy{Namespace: "a", Name: "p", PodSelector: Selector{MatchLabels: app("web")},
		Ingress: []Rule{{Peers: []Peer{{PodSelector: &Selector{MatchLabels: app(name)}}}}}}
}

var webHere = model.Attachment{ContainerID: "c", Pod: model.PodRef{Namespace: "a", Name: "web", UID: "u"},
	IPs: []netip.Addr{netip.MustParseAddr("10.0.1.1")}}

// TestWhoHasAnAddress adds and deletes pods step by step, and checks which addresses app=x has in a rule.
func TestWhoHasAnAddress(t *testing.T) {
	r := NewResolver("n1")
	r.SetPodCIDRs("n2", everywhereV4)
	r.SetPolicy(onlyFrom("x"))
	r.SetPod(Pod{Namespace: "a", Name: "web", UID: "u", Node: "n1", Labels: app("web")})
	r.SetAttachment(webHere)
	known := Resolution{Policies: map[model.PolicyID]model.Policy{}}
	remote := func(name, label, ip string, change func(*Pod)) func() {
		return func() {
			p := Pod{Namespace: "a", Name: name, UID: name, Node: "n2", Labels: app(label), Created: 1}
			if ip != "" {
				p.Addrs = []netip.Addr{addr(ip)}
			}
			if change != nil {
				change(&p)
			}
			r.SetPod(p)
		}
	}
	local := func(label string, change func(*Pod)) func() {
		return remote("here", label, "10.0.9.9", func(p *Pod) {
			p.Node = "n1"
			if change != nil {
				change(p)
			}
		})
	}
	attachment := func(uid string) model.Attachment {
		return model.Attachment{ContainerID: "here", Pod: model.PodRef{Namespace: "a", Name: "here", UID: uid},
			IPs: []netip.Addr{addr("10.0.1.2")}}
	}
	for _, step := range []struct {
		name string
		do   func()
		want string
	}{
		{"a pod without an address yet", remote("one", "x", "", nil), "[]"},
		{"it gets one", remote("one", "x", "10.0.2.1", nil), "[10.0.2.1/32]"},
		{"one that terminates still has it", remote("one", "x", "10.0.2.1", func(p *Pod) { p.Terminating = true }),
			"[10.0.2.1/32]"},
		{"another that is not terminating has it now, with its own labels",
			remote("two", "y", "10.0.2.1", func(p *Pod) { p.Created = 0 }), "[]"},
		{"which may be the same", remote("two", "x", "10.0.2.1", nil), "[10.0.2.1/32]"},
		{"the old one is gone", func() { r.DeletePod("a", "one") }, "[10.0.2.1/32]"},
		{"one that has completed has no address", remote("two", "x", "10.0.2.1", func(p *Pod) { p.Done = true }), "[]"},
		{"of two that live the later has it", remote("three", "x", "10.0.2.2", nil), "[10.0.2.2/32]"},
		{"as I said", remote("four", "y", "10.0.2.2", func(p *Pod) { p.Created = 2 }), "[]"},
		{"an earlier one has not", remote("four", "y", "10.0.2.2", func(p *Pod) { p.Created = 0 }), "[10.0.2.2/32]"},
		{"pods on the host's network have none", remote("three", "x", "10.0.2.2", func(p *Pod) { p.HostNetwork = true }),
			"[]"},
		{"a local pod has none by its status", local("x", nil), "[]"},
		{"but by its attachment", func() { r.SetAttachment(attachment("here")) }, "[10.0.1.2/32]"},
		{"no other pod has a local pod's address", local("y", nil), "[]"},
		{"even if its pod is later", remote("five", "x", "10.0.1.2", func(p *Pod) { p.Created = 9 }), "[]"},
		{"nor when the local pod's attachment is that of an earlier pod of its name",
			func() { r.SetAttachment(attachment("earlier")) }, "[]"},
		{"a local pod that has completed is not a peer",
			func() { r.SetAttachment(attachment("here")); local("x", func(p *Pod) { p.Done = true })() }, "[]"},
		{"the attachment is gone, the address another's", func() { r.DeleteAttachment(attachment("here").Key()) },
			"[10.0.1.2/32]"},
	} {
		step.do()
		for name, p := range r.Flush().Policies {
			known.Policies[name] = *p
		}
		got := "[]"
		if rules := known.Policies[model.NetworkPolicy("a", "p")].Ingress.Rules; len(rules) > 0 {
			got = fmt.Sprint(rules[0].Peers)
		}
		if got != step.want {
			t.Errorf("%s: app=x is %s, want %s", step.name, got, step.want)
		}
	}
}

// TestExceptionsCostNothingElsewhere: a policy that selects no pod of this node costs no more than its text, with any
// number of exceptions.
func TestExceptionsCostNothingElsewhere(t *testing.T) {
	block := IPBlock{CIDR: netip.MustParsePrefix("::/0")}
	random := rand.New(rand.NewPCG(1, 2))
	for range 30000 {
		var raw [16]byte
		binary.BigEndian.PutUint64(raw[:], random.Uint64())
		binary.BigEndian.PutUint64(raw[8:], random.Uint64())
		block.Except = append(block.Except, hostPrefix(netip.AddrFrom16(raw)))
	}
	policy := Policy{Namespace: "a", Name: "p", Ingress: []Rule{{Peers: []Peer{{IPBlock: &block}}}}}
	if err := policy.Check(); err == nil || !strings.Contains(err.Error(), "exceptions of its ipBlocks") {
		t.Errorf("where it selects a pod: %v, want that it is named and isolates", err)
	}
	block.Except = block.Except[:7000]
	if err := policy.Check(); err != nil {
		t.Errorf("7,000 exceptions: %v", err)
	}
	policy.Egress = slices.Repeat(policy.Ingress, 3)
	if err := policy.Check(); err == nil {
		t.Error("four blocks of 7,000 exceptions cost what one may")
	}
	policy.Egress = nil
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r := NewResolver("n1")
	r.SetPolicy(policy)
	r.Flush()
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 10<<20 { // 777 MB when the block was expanded
		t.Errorf("%d MB were allocated for a policy without pods here", used>>20)
	}
}

// TestClaimsOutsideTheNode: an address in a pod's status counts only inside the pod CIDRs of the pod's node, so a
// kubelet can take over neither an address of another node's pod nor one outside the cluster.
func TestClaimsOutsideTheNode(t *testing.T) {
	inside := func(node string) []netip.Prefix {
		return []netip.Prefix{netip.MustParsePrefix("10.244." + node[1:] + ".0/24")}
	}
	w := World{Node: "n1", PodCIDRs: map[string][]netip.Prefix{"n2": inside("n2"), "n3": inside("n3")},
		Attachments: []model.Attachment{webHere},
		Policies:    []Policy{onlyFrom("dns")}, Pods: []Pod{
			{Namespace: "a", Name: "web", UID: "u", Node: "n1", Labels: app("web")},
			{Namespace: "a", Name: "dns", Node: "n2", Labels: app("dns"), Addrs: []netip.Addr{addr("10.244.2.9")}, Created: 1},
			{Namespace: "a", Name: "evil", Node: "n3", Addrs: []netip.Addr{addr("10.244.2.9"), addr("203.0.113.9")}, Created: 2},
		}}
	labeled := slices.Clone(w.Pods)
	labeled[2].Labels = app("dns")
	for _, pods := range [][]Pod{w.Pods, labeled} {
		w.Pods = pods
		r := NewResolver("n1")
		for node, list := range w.PodCIDRs {
			r.SetPodCIDRs(node, list)
		}
		for _, p := range pods {
			r.SetPod(p)
		}
		r.SetPolicy(w.Policies[0])
		r.SetAttachment(webHere)
		for _, m := range []model.Policy{Resolve(w).Policies[model.NetworkPolicy("a", "p")],
			*r.Flush().Policies[model.NetworkPolicy("a", "p")]} {
			if rules := m.Ingress.Rules; len(rules) != 1 || fmt.Sprint(rules[0].Peers) != "[10.244.2.9/32]" {
				t.Errorf("rules %v, want the peer 10.244.2.9 alone", rules)
			}
		}
		if got := r.OutsideClaims(); got.Pods != 1 || got.Example != "a/evil on node n3: [10.244.2.9 203.0.113.9]" {
			t.Errorf("reported: %+v", got)
		}
	}
	r := NewResolver("n1")
	r.SetPod(w.Pods[1])
	r.SetPolicy(w.Policies[0])
	r.SetPod(w.Pods[0])
	r.SetAttachment(webHere)
	if m := r.Flush().Policies[model.NetworkPolicy("a", "p")]; len(m.Ingress.Rules) != 0 {
		t.Errorf("without a known node: %v", m.Ingress.Rules)
	}
	if got := r.OutsideClaims(); got.Pods != 1 {
		t.Errorf("without a known node: reported %+v, want one pod", got)
	}
	r.SetPodCIDRs("n2", inside("n2"))
	if m := r.Flush().Policies[model.NetworkPolicy("a", "p")]; m == nil || len(m.Ingress.Rules) != 1 {
		t.Errorf("the node's pod CIDR does not bring its pods back: %v", m)
	}
	if got := r.OutsideClaims(); got != (model.OutsideClaims{}) {
		t.Errorf("with the node's pod CIDR: reported %+v", got)
	}
}

// TestPodsAreClosedUntilKnown: a pod is isolated until it is known, and a policy isolates it as long as it is attached,
// also when the API server has it no longer.
func TestPodsAreClosedUntilKnown(t *testing.T) {
	r := NewResolver("n1")
	r.SetPodCIDRs("n2", everywhereV4)
	r.SetPolicy(onlyFrom("x"))
	web := Pod{Namespace: "a", Name: "web", UID: "u", Node: "n1", Labels: app("web")}
	with := func(change func(*Pod)) func() {
		p := web
		change(&p)
		return func() { r.SetPod(p) }
	}
	for _, step := range []struct {
		name              string
		do                func()
		unknown, isolated bool
	}{
		{"attached before the API tells of it", func() { r.SetAttachment(webHere) }, true, false},
		{"told of an earlier pod of its name", with(func(p *Pod) { p.UID = "earlier" }), true, false},
		{"told of it", with(func(*Pod) {}), false, true},
		{"before it is known to be bound", with(func(p *Pod) { p.Node = "" }), false, true},
		{"terminating", with(func(p *Pod) { p.Terminating = true }), false, true},
		{"completed", with(func(p *Pod) { p.Done = true }), false, true},
		{"other labels", with(func(p *Pod) { p.Labels = app("db") }), false, false},
		{"a pod of that name on the host's network", with(func(p *Pod) { p.HostNetwork = true }), true, false},
		{"its own labels", with(func(*Pod) {}), false, true},
		{"deleted by force", func() { r.DeletePod("a", "web") }, false, true},
		{"there again", with(func(*Pod) {}), false, true},
		{"deleted by force again", func() { r.DeletePod("a", "web") }, false, true},
		{"its successor of the same name", with(func(p *Pod) { p.UID = "later" }), true, false},
		{"without its successor", func() { r.DeletePod("a", "web") }, true, false},
		{"told of it again", with(func(*Pod) {}), false, true},
		{"deleted", func() { r.DeletePod("a", "web") }, false, true},
	} {
		step.do()
		c := r.Flush()
		unknown := r.unknown[webHere.Key()]
		if said, ok := c.Unknown[webHere.Key()]; ok && said != unknown {
			t.Errorf("%s: said %v, holds %v", step.name, said, unknown)
		}
		if isolated := r.policies[model.NetworkPolicy("a", "p")].active; unknown != step.unknown ||
			isolated != step.isolated {
			t.Errorf("%s: unknown %v, isolated %v, want %v, %v", step.name, unknown, isolated, step.unknown, step.isolated)
		}
	}
	r.DeleteAttachment(webHere.Key())
	if c := r.Flush(); len(c.Unknown) > 0 || len(r.unknown) > 0 || r.policies[model.NetworkPolicy("a", "p")].active ||
		len(r.pods) > 0 {
		t.Errorf("after its end: %v, %v; pods %v", c.Unknown, r.unknown, r.pods)
	}
	r.SetAttachment(webHere)
	if c := r.Flush(); !c.Unknown[webHere.Key()] {
		t.Errorf("a sandbox of a pod that is gone is known: %v", c.Unknown)
	}
}

// TestNamedPorts: a rule whose names have several numbers becomes several rules, and its numeric ports stay one.
func TestNamedPorts(t *testing.T) {
	w := World{Node: "n1", Namespaces: []Namespace{{Name: "a"}}}
	for i, number := range []uint16{80, 80, 8080, 0} {
		p := Pod{Namespace: "a", Name: fmt.Sprint(i), Node: "n1", Labels: app("web")}
		if number != 0 {
			p.Ports = []ContainerPort{{"http", TCP, number}, {"dns", UDP, 53}}
		}
		w.Pods = append(w.Pods, p)
		w.Attachments = append(w.Attachments,
			model.Attachment{ContainerID: p.Name, Pod: model.PodRef{Namespace: "a", Name: p.Name},
				IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 1, byte(i)})}})
	}
	ports := []Port{{Name: "http"}, {Number: 80}, {Number: 443}}
	block := Peer{IPBlock: &IPBlock{CIDR: netip.MustParsePrefix("10.0.1.2/31")}}
	w.Policies = []Policy{
		{Namespace: "a", Name: "in", Ingress: []Rule{{Ports: ports}, {Ports: []Port{{Name: "http"}}}}},
		{Namespace: "a", Name: "out", Types: []Direction{Egress},
			Egress: []Rule{{Ports: ports}, {Ports: ports[:1], Peers: []Peer{block}},
				{Ports: []Port{{Name: "http", Protocol: UDP}}}}},
	}
	all := "[10.0.1.0 10.0.1.1 10.0.1.2 10.0.1.3]"
	var got []string
	for _, m := range []model.Policy{Resolve(w).Policies[model.NetworkPolicy("a", "in")],
		Resolve(w).Policies[model.NetworkPolicy("a", "out")]} {
		for _, side := range []*model.PolicySide{m.Ingress, m.Egress} {
			if side == nil {
				continue
			}
			for _, rule := range side.Rules {
				got = append(got,
					strings.ReplaceAll(fmt.Sprintf("%s %d: %v %v %v %v", m.ID, rule.Index, rule.Pods, rule.AnyPeer, rule.Peers,
						rule.Ports), all, "all"))
			}
		}
	}
	want := []string{
		"a/in 0: all true [] [{TCP 80 65535} {TCP 443 65535}]",
		"a/in 0: [10.0.1.2] true [] [{TCP 8080 65535}]",
		"a/in 1: [10.0.1.0 10.0.1.1] true [] [{TCP 80 65535}]",
		"a/in 1: [10.0.1.2] true [] [{TCP 8080 65535}]",
		"a/out 0: all true [] [{TCP 80 65535} {TCP 443 65535}]",
		"a/out 0: all false [10.0.1.2/32] [{TCP 8080 65535}]",
		"a/out 1: all false [10.0.1.2/32] [{TCP 8080 65535}]",
	}
	if !slices.Equal(got, want) {
		t.Errorf("rules:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestChangeTouchesOnlyItsOwn: a label that no policy of this node uses makes none dirty, and one that some use only
// those; selections of policies for other nodes' pods are not kept.
func TestChangeTouchesOnlyItsOwn(t *testing.T) {
	r := NewResolver("n1")
	r.SetPodCIDRs("n2", everywhereV4)
	r.SetNamespace(Namespace{Name: "a"})
	r.SetPod(Pod{Namespace: "a", Name: "web", UID: "u", Node: "n1", Labels: app("web")})
	r.SetAttachment(webHere)
	for i := range 50 {
		p := onlyFrom(fmt.Sprint("x", i))
		p.Name = fmt.Sprint("p", i)
		r.SetPolicy(p)
		p.Name = fmt.Sprint("elsewhere", i)
		p.PodSelector = Selector{MatchLabels: app("elsewhere")}
		p.Ingress[0].Peers = append(p.Ingress[0].Peers, Peer{NamespaceSelector: &Selector{MatchLabels: app(p.Name)}})
		r.SetPolicy(p)
	}
	peer := Pod{Namespace: "a", Name: "peer", Node: "n2", Labels: app("x0"), Addrs: []netip.Addr{addr("10.0.2.1")}}
	r.SetPod(peer)
	r.Flush()
	if got := len(r.selections); got != 52 { // two subjects, 50 peers
		t.Errorf("%d selections are kept, want 52", got)
	}
	for _, step := range []struct {
		labels map[string]string
		want   string
	}{
		{map[string]string{"app": "x0", "color": "red"}, "[]"},
		{app("unused"), "[a/p0]"},
		{app("x7"), "[a/p7]"},
		{app("x8"), "[a/p7 a/p8]"},
	} {
		peer.Labels = step.labels
		r.SetPod(peer)
		visited := len(r.dirty)
		var got []string
		for name := range r.Flush().Policies {
			got = append(got, name.String())
		}
		slices.Sort(got)
		if fmt.Sprint(got) != step.want || visited != len(got) {
			t.Errorf("labels %v: %d policies were looked at, %v are different, want %s", step.labels, visited, got, step.want)
		}
	}
}
