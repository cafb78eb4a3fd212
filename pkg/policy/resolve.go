package policy

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"

	"github.com/weft-cni/weft/pkg/model"
)

// World is the input of Resolve.
type World struct {
	// Node is the name of this node.
	Node        string
	Namespaces  []Namespace
	Pods        []Pod
	Policies    []Policy
	Nodes       []Node
	Attachments []model.Attachment
	// Names are the domain names of which addresses were learned.
	Names map[string]model.LearnedName
	// PodCIDRs are the accepted pod CIDRs by node.
	PodCIDRs map[string][]netip.Prefix
}

// Resolution is the result of Resolve.
type Resolution struct {
	// Policies are the policies that select pods of this node.
	Policies map[model.PolicyID]model.Policy
	// Unknown are the attachments whose pod is unknown, and therefore its policies, too: they stay at default deny.
	Unknown map[model.AttachmentKey]bool
}

// Resolve is the full computation, without indexes. A Resolver's result always equals it.
func Resolve(w World) Resolution { return resolveAll(w, hashKey, maxNodeFlows) }

func resolveAll(w World, hash func(string) uint32, room int) Resolution {
	out := Resolution{Policies: map[model.PolicyID]model.Policy{}, Unknown: map[model.AttachmentKey]bool{}}
	for _, a := range w.Attachments {
		if !slices.ContainsFunc(w.Pods, func(p Pod) bool { return p.isAttached(a) }) {
			out.Unknown[a.Key()] = true
		}
	}
	from := linearSource{namespaces: map[string]Namespace{}, pods: w.views(), allNodes: w.Nodes,
		names: w.Names}
	for _, n := range w.Namespaces {
		from.namespaces[n.Name] = n
	}
	keys, flows := map[model.PolicyID][]string{}, map[model.PolicyID]demand{}
	var places []place
	for _, policy := range w.Policies {
		p := parsePolicy(policy)
		if m, k, ok := p.resolve(from, from.namespaces[policy.Namespace].Log, ""); ok {
			out.Policies[m.ID], keys[m.ID], flows[m.ID] = m, k, demand{countFlows(m), m.Staged}
			places = append(places, policy.place())
		}
	}
	overBudget := overflow(flows, room)
	for _, policy := range w.Policies {
		if name := policy.ID(); overBudget[name] {
			p := parsePolicy(policy)
			m, k, _ := p.resolve(from, from.namespaces[policy.Namespace].Log, overBudgetError(flows[name].flows, room))
			m.OverBudget = true
			out.Policies[name], keys[name] = m, k
		}
	}
	ids := newIDs(hash)
	for _, list := range keys {
		for _, k := range list {
			ids.add(k, func(string) {})
		}
	}
	ranks := assignRanks(places)
	for id, m := range out.Policies {
		m = assignIDs(m, keys[id], ids)
		m.Rank = ranks[id]
		out.Policies[id] = m
	}
	return out
}

// assignIDs returns a copy of the policy with the rules' ids.
func assignIDs(m model.Policy, keys []string, ids *ids) model.Policy {
	for _, side := range []**model.PolicySide{&m.Ingress, &m.Egress} {
		if *side == nil {
			continue
		}
		s := **side
		s.Rules = slices.Clone(s.Rules)
		for i := range s.Rules {
			s.Rules[i].ID, keys = ids.byKey[keys[0]], keys[1:]
		}
		*side = &s
	}
	return m
}

// isAttached reports whether the attachment is this pod's, not that of an earlier pod of the same name. Pods on the
// host network have no attachments: one of that name is another pod's.
func (p Pod) isAttached(a model.Attachment) bool {
	return p.Namespace == a.Pod.Namespace && p.Name == a.Pod.Name &&
		(a.Pod.UID == "" || a.Pod.UID == p.UID) && !p.HostNetwork
}

// claims returns the addresses that a pod has by its status. They count only inside the accepted pod CIDRs of its node:
// a kubelet may write its own pods' status, and must not take over other pods' addresses. The other addresses are
// returned as outside. For pods of this node, and pods attached here, only the attachments count. Pods that have ended
// claim no address.
func (p Pod) claims(node string, attached bool, podCIDRs []netip.Prefix) (inside, outside []netip.Addr) {
	if p.HostNetwork || p.Done || attached || p.Node == node {
		return nil, nil
	}
	for _, a := range p.Addrs {
		if slices.ContainsFunc(podCIDRs, func(c netip.Prefix) bool { return c.Contains(a) }) {
			inside = append(inside, a)
		} else {
			outside = append(outside, a)
		}
	}
	return inside, outside
}

// compareClaims orders pods by precedence for an address: pods that are not terminating first, then later ones.
func compareClaims(a, b Pod) int {
	last := func(terminating bool) int {
		if terminating {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(last(a.Terminating), last(b.Terminating)), cmp.Compare(b.Created, a.Created),
		cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// compareAttachments orders attachments by precedence for an address, although no two share one. It is the order of
// their flows.
func compareAttachments(a, b model.Attachment) int {
	return model.PodOwner(a).Compare(model.PodOwner(b))
}

// newPodView returns the view of a pod with the addresses that it owns.
func newPodView(p Pod, addrs []netip.Addr, local bool) *podView {
	slices.SortFunc(addrs, netip.Addr.Compare)
	return &podView{
		namespace: p.Namespace, labels: p.Labels, addrs: slices.Compact(addrs), ports: p.Ports,
		local: local, peer: !p.Done,
	}
}

// views assigns each address to one pod.
func (w World) views() []*podView {
	const none = -1
	owner := map[netip.Addr]int{}
	for _, a := range slices.SortedFunc(slices.Values(w.Attachments), compareAttachments) {
		for _, ip := range a.IPs {
			if _, taken := owner[ip]; !taken {
				owner[ip] = slices.IndexFunc(w.Pods, func(p Pod) bool { return p.isAttached(a) })
			}
		}
	}
	attached := func(p Pod) bool { return slices.ContainsFunc(w.Attachments, p.isAttached) }
	order := make([]int, len(w.Pods))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return compareClaims(w.Pods[a], w.Pods[b]) })
	for _, i := range order {
		inside, _ := w.Pods[i].claims(w.Node, attached(w.Pods[i]), w.PodCIDRs[w.Pods[i].Node])
		for _, ip := range inside {
			if _, taken := owner[ip]; !taken {
				owner[ip] = i
			}
		}
	}
	addrs := map[int][]netip.Addr{}
	for ip, i := range owner {
		if i != none {
			addrs[i] = append(addrs[i], ip)
		}
	}
	views := make([]*podView, 0, len(addrs))
	for i, list := range addrs {
		views = append(views, newPodView(w.Pods[i], list, attached(w.Pods[i])))
	}
	return views
}

// linearSource answers queries by a linear search over all pods.
type linearSource struct {
	namespaces map[string]Namespace
	pods       []*podView
	allNodes   []Node
	names      map[string]model.LearnedName
}

func (s linearSource) learned(domains []Domain) (addrs, ended []netip.Prefix) {
	return learnedOf(s.names, domains)
}

func (s linearSource) nodes(selector Selector) []netip.Prefix {
	return nodePrefixes(slices.Values(s.allNodes), selector)
}

func (s linearSource) views(q query) iter.Seq[*podView] {
	return func(yield func(*podView) bool) {
		for _, v := range s.pods {
			n, known := s.namespaces[v.namespace]
			if q.hasNamespace(v.namespace, n.Labels, known) && q.has(v) && !yield(v) {
				return
			}
		}
	}
}

func (s linearSource) prefixes(q query) []netip.Prefix {
	var out []netip.Prefix
	for v := range s.views(q) {
		for _, a := range v.addrs {
			out = append(out, hostPrefix(a))
		}
	}
	slices.SortFunc(out, comparePrefixes)
	return out
}
