package policy

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/weft-cni/weft/internal/testing/fuzzing"
	"github.com/weft-cni/weft/pkg/model"
)

// world is a World that changes, by name.
type world struct {
	namespaces  map[string]Namespace
	pods        map[podName]Pod
	policies    map[model.PolicyID]Policy
	attachments map[model.AttachmentKey]model.Attachment
	podCIDRs    map[string][]netip.Prefix
	// gone are the pods that were deleted and stay while they are attached.
	gone  map[podName]bool
	nodes map[string]Node
	names map[string]model.LearnedName
}

// deletePod deletes a pod, which stays if it is attached when all is called.
func (w *world) deletePod(name podName) {
	if _, ok := w.pods[name]; ok {
		w.gone[name] = true
	}
}

// dropGone drops the deleted pods that are not attached.
func (w *world) dropGone() {
	for name := range w.gone {
		attached := func(a model.Attachment) bool { return w.pods[name].isAttached(a) }
		if !slices.ContainsFunc(slices.Collect(maps.Values(w.attachments)), attached) {
			delete(w.gone, name)
			delete(w.pods, name)
		}
	}
}

func newWorld() *world {
	return &world{map[string]Namespace{}, map[podName]Pod{}, map[model.PolicyID]Policy{},
		map[model.AttachmentKey]model.Attachment{}, map[string][]netip.Prefix{}, map[podName]bool{}, map[string]Node{},
		map[string]model.LearnedName{}}
}

func (w *world) all() World {
	w.dropGone()
	return World{Node: "n1", Namespaces: slices.Collect(maps.Values(w.namespaces)),
		Pods: slices.Collect(maps.Values(w.pods)),
		Policies: slices.Collect(
			maps.Values(w.policies)), Attachments: slices.Collect(maps.Values(w.attachments)), PodCIDRs: maps.Clone(w.podCIDRs),
		Nodes: slices.Collect(maps.Values(w.nodes)), Names: maps.Clone(w.names)}
}

// step makes a random change in both.
func (w *world) step(t *rapid.T, r *Resolver) {
	switch upTo(t, 14) {
	case 12, 13, 14:
		name, learned := draw(t, someNamesOfDNS), drawLearned(t)
		w.names[name] = learned
		r.SetName(name, learned)
	case 10:
		node := draw(t, someNodes)
		w.podCIDRs[node] = draw(t,
			[][]netip.Prefix{nil, {netip.MustParsePrefix("10.0.0.0/16"), netip.MustParsePrefix("fd00::/16")},
				{netip.MustParsePrefix("10.0.2.0/24")}})
		r.SetPodCIDRs(node, w.podCIDRs[node])
	case 11:
		n := drawNode(t)
		if chance(t, 30) {
			delete(w.nodes, n.Name)
			r.DeleteNode(n.Name)
		} else {
			w.nodes[n.Name] = n
			r.SetNode(n)
		}
	case 0, 1:
		n := Namespace{Name: draw(t, someNamespaces), Labels: drawLabels(t), Log: chance(t, 10)}
		w.namespaces[n.Name] = n
		r.SetNamespace(n)
	case 2, 3:
		p := drawPod(t)
		w.pods[podName{p.Namespace, p.Name}] = p
		delete(w.gone, podName{p.Namespace, p.Name})
		r.SetPod(p)
	case 4, 5:
		p := drawAnyPolicy(t)
		w.policies[p.ID()] = p
		r.SetPolicy(p)
	case 6:
		a := drawAttachment(t)
		w.attachments[a.Key()] = a
		r.SetAttachment(a)
	case 7: // a small change of an existing pod
		if len(w.pods) == 0 {
			return
		}
		names := slices.SortedFunc(maps.Keys(w.pods), func(a, b podName) int {
			return slices.Compare([]string{a.namespace, a.name}, []string{b.namespace, b.name})
		})
		p, other := w.pods[draw(t, names)], drawPod(t)
		switch upTo(t, 4) {
		case 0:
			p.Labels = other.Labels
		case 1:
			p.Addrs = other.Addrs
		case 2:
			p.Done, p.Terminating = other.Done, other.Terminating
		case 3:
			p.Ports = other.Ports
		case 4:
			p.UID = other.UID
		}
		w.pods[podName{p.Namespace, p.Name}] = p
		delete(w.gone, podName{p.Namespace, p.Name})
		r.SetPod(p)
	case 8:
		switch upTo(t, 2) {
		case 0:
			n := draw(t, someNamespaces)
			delete(w.namespaces, n)
			r.DeleteNamespace(n)
		case 1:
			p := drawPod(t)
			w.deletePod(podName{p.Namespace, p.Name})
			r.DeletePod(p.Namespace, p.Name)
		case 2:
			p := drawAnyPolicy(t)
			delete(w.policies, p.ID())
			r.DeletePolicy(p.ID())
		}
	case 9:
		key := drawAttachment(t).Key()
		delete(w.attachments, key)
		r.DeleteAttachment(key)
	}
}

// follow is the state of a receiver of changes only.
func follow(t *rapid.T, known *Resolution, c Changes) {
	for name, p := range c.Policies {
		before, had := known.Policies[name]
		switch {
		case p == nil && !had || p != nil && had && equalPolicies(before, *p):
			t.Fatalf("policy %s is said to be different, and is not", name)
		case p == nil:
			delete(known.Policies, name)
		default:
			known.Policies[name] = *p
		}
	}
	for key, is := range c.Unknown {
		if known.Unknown[key] == is {
			t.Fatalf("attachment %s is said to be different, and is not", key)
		}
		if is {
			known.Unknown[key] = true
		} else {
			delete(known.Unknown, key)
		}
	}
}

func text(t interface{ Fatal(...any) }, r Resolution) string {
	type flat struct {
		Policies []model.Policy
		Unknown  []string
	}
	var f flat
	for _, id := range slices.SortedFunc(maps.Keys(r.Policies), model.PolicyID.Compare) {
		f.Policies = append(f.Policies, r.Policies[id])
	}
	for key := range r.Unknown {
		f.Unknown = append(f.Unknown, key.String())
	}
	slices.Sort(f.Unknown)
	b, err := json.MarshalIndent(f, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// crowded is a hash with many collisions.
func crowded(key string) uint32 { return hashKey(key) % 4 }

// TestIncrementalEqualsFull makes random changes, flushes now and then, and compares the sum of the changes with a full
// computation, byte for byte; in the end, no state of deleted objects is left.
func TestIncrementalEqualsFull(t *testing.T) { rapid.Check(t, incrementalEqualsFull) }

func FuzzIncrementalEqualsFull(f *testing.F) { fuzzing.Property(f, incrementalEqualsFull) }

func incrementalEqualsFull(t *rapid.T) {
	room := draw(t, []int{60, 200, maxNodeFlows}) // too little for all, or enough
	r, w := newResolver("n1", crowded, room), newWorld()
	known := Resolution{Policies: map[model.PolicyID]model.Policy{}, Unknown: map[model.AttachmentKey]bool{}}
	for range rapid.IntRange(1, 60).Draw(t, "changes") {
		w.step(t, r)
		if !chance(t, 40) {
			continue
		}
		follow(t, &known, r.Flush())
		want, got := text(t, resolveAll(w.all(), crowded, room)), text(t, known)
		if want != got {
			t.Fatalf("incremental:\n%s\nfull:\n%s", got, want)
		}
	}
	for name := range w.namespaces {
		r.DeleteNamespace(name)
	}
	for _, p := range w.policies {
		r.DeletePolicy(p.ID())
	}
	for name := range w.nodes {
		r.DeleteNode(name)
	}
	for name := range w.pods {
		r.DeletePod(name.namespace, name.name)
	}
	for key := range w.attachments {
		r.DeleteAttachment(key)
	}
	for node := range w.podCIDRs {
		r.SetPodCIDRs(node, nil)
	}
	follow(t, &known, r.Flush())
	left := []int{len(known.Policies), len(known.Unknown), len(r.pods), len(r.byNode), len(r.podCIDRs), len(r.outside),
		len(r.namespaces), len(r.attachments), len(r.byPod), len(r.claims), len(r.byLabel),
		len(r.scopes), len(
			r.matching), len(
			r.selections), len(
			r.policies), len(
			r.ids.byID), len(
			r.ids.byKey), len(r.byKey), len(r.dirty), len(r.recheck), len(r.unknown), len(r.overBudget), len(r.nodeObjects),
		r.flows}
	if slices.Max(left) > 0 {
		t.Fatalf("left behind: %v", left)
	}
}

// allows evaluates resolved policies as the flows do: tier by tier, in an ordered one by the first rule that matches in
// all three dimensions; in the other a packet is denied at an end that a policy isolates unless a rule matches it.
// Staged policies count in a preview alone.
func allows(r Resolution, d Direction, subject, peer netip.Addr, p Packet, preview bool) bool {
	for _, tier := range model.Tiers {
		var policies []model.Policy
		selected := false
		for _, m := range r.Policies {
			if side := m.Side(d); side != nil && m.Tier == tier && (preview || !m.Staged) &&
				slices.Contains(side.Pods, subject) {
				policies, selected = append(policies, m), true
			}
		}
		slices.SortFunc(policies, func(a, b model.Policy) int { return cmp.Compare(a.Rank, b.Rank) })
		verdict := model.Pass
		if selected && !tier.Ordered() {
			verdict = model.Deny
		}
	search:
		for _, m := range policies {
			for _, rule := range m.Side(d).Rules {
				if slices.Contains(rule.Pods, subject) &&
					(rule.AnyPeer || slices.ContainsFunc(rule.Peers, func(x netip.Prefix) bool { return x.Contains(peer) })) &&
					(rule.AnyPort || slices.ContainsFunc(rule.Ports, func(m model.PortMatch) bool {
						return m.Protocol == p.Protocol && p.Port&m.Mask == m.Port
					})) {
					verdict = rule.Verdict
					break search
				}
			}
		}
		if verdict != model.Pass {
			return verdict == model.Accept
		}
	}
	return true
}

// TestResolveMeansWhatEvalSays: for every pair of addresses and some ports, at the ends that are this node's.
func TestResolveMeansWhatEvalSays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, c := World{Node: "n1",
			PodCIDRs: map[string][]netip.Prefix{"n2": {netip.MustParsePrefix("10.0.0.0/8"),
				netip.MustParsePrefix("fd00::/8")}}}, Cluster{Namespaces: map[string]map[string]string{}}
		for _, name := range someNamespaces {
			if chance(t, 80) {
				n := Namespace{Name: name, Labels: drawLabels(t)}
				w.Namespaces = append(w.Namespaces, n)
				c.Namespaces[name] = n.Labels
			}
		}
		local := map[netip.Addr]bool{}
		for i, a := range rapid.Permutation(someAddrs).Draw(t, "addresses") {
			p := drawPod(t)
			p.Name, p.Addrs = fmt.Sprint(i), []netip.Addr{netip.MustParseAddr(a)}
			p.Node = draw(t, []string{"n1", "n2"})
			if p.Done {
				p.Node = "n2" // one of this node's stays isolated while attached; Eval has no pod at its address
			}
			if p.Node == "n1" && !p.HostNetwork {
				w.Attachments = append(w.Attachments,
					model.Attachment{ContainerID: p.Name, Pod: model.PodRef{Namespace: p.Namespace, Name: p.Name, UID: p.UID},
						IPs: p.Addrs})
				local[p.Addrs[0]] = true
			}
			w.Pods = append(w.Pods, p)
		}
		c.Pods = w.Pods
		for i := range rapid.IntRange(1, 4).Draw(t, "policies") {
			p := drawAnyPolicy(t)
			p.Name = fmt.Sprint(i)
			w.Policies = append(w.Policies, p)
		}
		w.Nodes = []Node{{"n1", nil, []netip.Addr{netip.MustParseAddr("192.0.2.1")}}, drawNode(t)}
		c.Policies, c.PeerNodes = w.Policies, w.Nodes
		r := Resolve(w)
		addrs := []netip.Addr{netip.MustParseAddr("10.0.2.0"), netip.MustParseAddr("192.0.2.1"),
			netip.MustParseAddr("fd00:2::3")}
		for _, a := range someAddrs {
			addrs = append(addrs, netip.MustParseAddr(a))
		}
		for _, src := range addrs {
			for _, dst := range addrs {
				if src == dst {
					continue
				}
				for _, port := range []uint16{1, 64, 79, 80, 81, 82, 100, 171} {
					for _, proto := range []Protocol{TCP, UDP, SCTP, "ICMP"} {
						p := Packet{Src: src, Dst: dst, Protocol: proto, Port: port}
						for _, end := range []struct {
							d             Direction
							subject, peer netip.Addr
						}{{Egress, src, dst}, {Ingress, dst, src}} {
							if !local[end.subject] {
								continue
							}
							for preview, c := range map[bool]Cluster{false: c, true: c.Preview()} {
								want := c.Decide(end.d, p)
								if got := allows(r, end.d, end.subject, end.peer, p, preview); got != want.Allowed {
									t.Fatalf("%+v at %s, preview %t: allowed %v, but %s\n%s", p, end.subject, preview, got, want.Why,
										text(t, r))
								}
							}
						}
					}
				}
			}
		}
		for name, m := range r.Policies {
			checkForm(t, name, m)
		}
	})
}

// checkForm checks a policy against the comments of model.Policy.
func checkForm(t *rapid.T, name model.PolicyID, m model.Policy) {
	seen := map[uint32]bool{}
	for _, side := range []*model.PolicySide{m.Ingress, m.Egress} {
		if side == nil {
			continue
		}
		if len(side.Pods) == 0 || !slices.IsSortedFunc(side.Pods, netip.Addr.Compare) || m.Err != "" &&
			m.Tier == model.NetworkPolicyTier && len(side.Rules) > 0 {
			t.Fatalf("%s: pods %v, error %q with %d rules", name, side.Pods, m.Err, len(side.Rules))
		}
		for _, rule := range side.Rules {
			if rule.ID == 0 || seen[rule.ID] || len(rule.Pods) == 0 || rule.AnyPeer == (len(rule.Peers) > 0) ||
				rule.AnyPort == (len(rule.Ports) > 0) {
				t.Fatalf("%s: rule %+v", name, rule)
			}
			seen[rule.ID] = true
			for i, p := range rule.Peers {
				if p != p.Masked() || i > 0 && (rule.Peers[i-1].Overlaps(p) || !rule.Peers[i-1].Addr().Less(p.Addr())) {
					t.Fatalf("%s: peers %v", name, rule.Peers)
				}
			}
			for i, p := range rule.Ports {
				for _, q := range rule.Ports[:i] {
					if mask := p.Mask & q.Mask; p.Protocol == q.Protocol && p.Port&mask == q.Port&mask {
						t.Fatalf("%s: ports %v", name, rule.Ports)
					}
				}
			}
		}
	}
}
