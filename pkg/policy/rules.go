package policy

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	"github.com/weft-cni/weft/pkg/model"
)

// podView is a pod as rules see it, derived from its objects and attachments. Immutable.
type podView struct {
	namespace string
	labels    map[string]string
	// addrs are the pod's addresses, sorted, at least one.
	addrs []netip.Addr
	ports []ContainerPort
	// local reports that the pod is attached to this node, which therefore enforces policies for it.
	local bool
	// peer reports that the pod may be the other end of a rule: it has not ended.
	peer bool
}

// has reports whether the pod has a port of this name.
func (v *podView) has(name portName) bool {
	return slices.ContainsFunc(v.ports,
		func(p ContainerPort) bool { return p.Name == name.name && p.Protocol == name.protocol })
}

type portName struct {
	protocol Protocol
	name     string
}

// parsedPolicy is a policy prepared for resolution: everything that does not depend on pods.
type parsedPolicy struct {
	policy Policy
	err    error
	// subject selects the policy's pods.
	subject query
	sides   []parsedSide
}

type parsedSide struct {
	direction Direction
	rules     []parsedRule
	// closed are the rules of a policy that has no room.
	closed []parsedRule
}

// parsedRule is a rule: peers (selections, blocks or any) and ports (numbers, names or any).
type parsedRule struct {
	index    int
	verdict  model.Verdict
	anyPeer  bool
	selected []query
	nodes    []Selector
	domains  []Domain
	// ipBlocks are the rule's blocks; blocks are the same as sorted, disjoint ranges. Exceptions may expand a block to
	// millions of ranges, so blocks are filled only while the policy selects a pod of this node (see expand).
	ipBlocks  []IPBlock
	blocks    []netip.Prefix
	anyPort   bool
	ports     []portRange
	portNames []portName
	// byPortName are, for egress, the selections of all pods with a port of one of portNames: any peer and blocks may
	// include any pod.
	byPortName []query
}

// parsePolicy prepares a policy.
func parsePolicy(policy Policy) parsedPolicy {
	p := parsedPolicy{
		policy: policy, err: policy.Check(),
		subject: selectLocal(policy.Namespace, policy.PodSelector.validPart()),
	}
	if policy.Tier.Ordered() {
		p.subject = selectLocalMatching(policy.NamespaceSelector.validPart(), policy.PodSelector.validPart())
	}
	closed := policy
	closed.Err = "no room"
	for _, d := range []Direction{Ingress, Egress} {
		if !slices.Contains(policy.types(), d) {
			continue
		}
		p.sides = append(p.sides, parsedSide{d, policy.parseRules(d), closed.parseRules(d)})
	}
	return p
}

func (policy Policy) parseRules(d Direction) []parsedRule {
	var list []parsedRule
	rules := policy.effective(d)
	for _, i := range slices.Sorted(maps.Keys(rules)) {
		list = append(list, parseRule(policy.Namespace, d, i, rules[i]))
	}
	return list
}

func parseRule(namespace string, d Direction, index int, rule Rule) parsedRule {
	r := parsedRule{index: index, verdict: rule.Verdict, anyPeer: len(rule.Peers) == 0, anyPort: len(rule.Ports) == 0,
		ports: ranges(rule.Ports)}
	for _, peer := range rule.Peers {
		switch {
		case peer.IPBlock != nil:
			r.ipBlocks = append(r.ipBlocks, *peer.IPBlock)
		case peer.NodeSelector != nil:
			r.nodes = append(r.nodes, *peer.NodeSelector)
		case peer.Domain != "":
			r.domains = append(r.domains, peer.Domain)
		case peer.NamespaceSelector != nil:
			var pods Selector
			if peer.PodSelector != nil {
				pods = *peer.PodSelector
			}
			r.selected = append(r.selected, selectMatching(*peer.NamespaceSelector, pods))
		default:
			r.selected = append(r.selected, selectIn(namespace, *peer.PodSelector))
		}
	}
	for _, port := range rule.Ports {
		name := portName{port.protocol(), port.Name}
		if port.Name == "" || slices.Contains(r.portNames, name) {
			continue
		}
		r.portNames = append(r.portNames, name)
		if d == Egress && (r.anyPeer || len(r.ipBlocks) > 0) {
			r.byPortName = append(r.byPortName, selectPort(name))
		}
	}
	return r
}

// expand fills the rules' blocks, or frees them when they are not needed. Idempotent.
func (p *parsedPolicy) expand(needed bool) {
	for _, side := range p.sides {
		for i := range side.rules {
			r := &side.rules[i]
			switch {
			case !needed:
				r.blocks = nil
			case r.blocks == nil && len(r.ipBlocks) > 0:
				r.blocks = []netip.Prefix{}
				for _, b := range r.ipBlocks {
					r.blocks = append(r.blocks, b.prefixes()...)
				}
				slices.SortFunc(r.blocks, comparePrefixes)
				r.blocks = disjoint(r.blocks)
			}
		}
	}
}

// source answers queries from the current state.
type source interface {
	// prefixes returns the addresses of the selected pods, sorted. The list is shared and immutable.
	prefixes(q query) []netip.Prefix
	// views returns the selected pods, in any order.
	views(q query) iter.Seq[*podView]
	// nodes returns the addresses of the selected nodes, sorted and disjoint.
	nodes(s Selector) []netip.Prefix
	// learned returns what is known of the domain names, sorted.
	learned(domains []Domain) (addrs, ended []netip.Prefix)
}

// resolve returns the policy for this node without its rank and the rules' ids, and the rules' keys in the same order,
// ingress first. It is not ok when the policy selects none of the node's pods. A non-empty reason replaces the rules by
// those that fail closed and becomes the policy's error.
func (p *parsedPolicy) resolve(from source, log bool, why string) (out model.Policy, keys []string, ok bool) {
	subject := from.prefixes(p.subject)
	p.expand(len(subject) > 0 && why == "")
	if len(subject) == 0 {
		return model.Policy{}, nil, false
	}
	out = model.Policy{ID: p.policy.ID(), Tier: p.policy.Tier, Log: log || p.policy.Log, Staged: p.policy.Staged,
		Warning: p.policy.Warning, Err: why}
	if p.err != nil {
		out.Err = p.err.Error()
	}
	pods := make([]netip.Addr, len(subject))
	for i, prefix := range subject {
		pods[i] = prefix.Addr()
	}
	for _, side := range p.sides {
		s := &model.PolicySide{Pods: pods}
		if side.direction == Ingress {
			out.Ingress = s
		} else {
			out.Egress = s
		}
		rules := side.rules
		if why != "" {
			rules = side.closed
		}
		for _, r := range rules {
			for _, d := range r.domains {
				out.Domains = append(out.Domains, string(d))
			}
			var variants []variant
			if side.direction == Ingress {
				variants = r.ingress(pods, p.subject, from)
			} else {
				variants = r.egress(pods, from)
			}
			for _, v := range variants {
				s.Rules = append(s.Rules, v.rule)
				keys = append(keys, ruleKey{p.policy.ID(), side.direction, r.index, v.name}.String())
			}
		}
	}
	slices.Sort(out.Domains)
	out.Domains = slices.Compact(out.Domains)
	return out, keys, true
}

// variant is a rule, or the part of it for one set of numbers of its named ports.
type variant struct {
	name string
	rule model.PolicyRule
}

// ingress: a name is that of the subject's own port, so subjects with different numbers get different variants.
func (r *parsedRule) ingress(pods []netip.Addr, subject query, from source) []variant {
	peers, _ := r.peers(from)
	if len(peers) == 0 && !r.anyPeer {
		return nil
	}
	out := r.unnamed(pods, peers, nil)
	for _, g := range r.byNumbers(from.views(subject)) {
		slices.SortFunc(g.addrs, netip.Addr.Compare)
		out = append(out, variant{g.name, model.PolicyRule{
			Verdict: r.verdict, Index: r.index, Pods: g.addrs, Peers: peers, AnyPeer: r.anyPeer, Ports: matches(g.ports),
		}})
	}
	return out
}

// egress: a name is that of the peer's port, so peers with different numbers get different variants. Only pods have
// names.
func (r *parsedRule) egress(pods []netip.Addr, from source) []variant {
	peers, ended := r.peers(from)
	out := r.unnamed(pods, peers, ended)
	for _, g := range r.byNumbers(r.destinations(from)) {
		hosts := make([]netip.Prefix, len(g.addrs))
		for i, a := range g.addrs {
			hosts[i] = hostPrefix(a)
		}
		slices.SortFunc(hosts, comparePrefixes)
		out = append(out, variant{g.name, model.PolicyRule{
			Verdict: r.verdict, Index: r.index, Pods: pods, Peers: disjoint(hosts), Ports: matches(g.ports),
		}})
	}
	return out
}

// unnamed is the part of the rule without named ports.
func (r *parsedRule) unnamed(pods []netip.Addr, peers, ended []netip.Prefix) []variant {
	if len(r.ports) == 0 && !r.anyPort || len(peers)+len(ended) == 0 && !r.anyPeer {
		return nil
	}
	return []variant{{"", model.PolicyRule{
		Verdict: r.verdict, Index: r.index, Pods: pods, Peers: peers, AnyPeer: r.anyPeer, Ended: ended,
		Ports: matches(r.ports), AnyPort: r.anyPort,
	}}}
}

// peers are the addresses of the other end, and those that are so for established connections alone. A list of only one
// selection is that selection's own.
func (r *parsedRule) peers(from source) (peers, ended []netip.Prefix) {
	if r.anyPeer {
		return nil, nil
	}
	lists := make([][]netip.Prefix, 0, 2+len(r.selected)+len(r.nodes))
	lists = append(lists, r.blocks)
	for _, s := range r.selected {
		lists = append(lists, from.prefixes(s))
	}
	for _, s := range r.nodes {
		lists = append(lists, from.nodes(s))
	}
	if len(r.domains) > 0 {
		var addrs []netip.Prefix
		addrs, ended = from.learned(r.domains)
		lists = append(lists, addrs)
	}
	peers = union(lists)
	ended = slices.DeleteFunc(ended, func(p netip.Prefix) bool { return covers(peers, p.Addr()) })
	return peers, ended
}

// learnedOf are the addresses of names that one of the domains matches, sorted. What has ended for one name may go on
// for another.
func learnedOf(names map[string]model.LearnedName, domains []Domain) (addrs, ended []netip.Prefix) {
	for name, learned := range names {
		if !slices.ContainsFunc(domains, func(d Domain) bool { return d.Matches(name) }) {
			continue
		}
		for _, a := range learned.Addrs {
			addrs = append(addrs, hostPrefix(a))
		}
		for _, a := range learned.Ended {
			ended = append(ended, hostPrefix(a))
		}
	}
	for _, list := range []*[]netip.Prefix{&addrs, &ended} {
		slices.SortFunc(*list, comparePrefixes)
		*list = slices.Compact(*list)
	}
	return addrs, ended
}

// destinations are the destination pods whose named ports count, with the addresses that the rule includes.
func (r *parsedRule) destinations(from source) iter.Seq[*podView] {
	return func(yield func(*podView) bool) {
		if len(r.portNames) == 0 {
			return
		}
		for _, s := range r.selected {
			for v := range from.views(s) {
				if !yield(v) {
					return
				}
			}
		}
		for _, s := range r.byPortName {
			for v := range from.views(s) {
				if !r.anyPeer {
					inside := *v
					inside.addrs = slices.DeleteFunc(slices.Clone(v.addrs), func(a netip.Addr) bool {
						return !covers(r.blocks, a)
					})
					v = &inside
				}
				if !yield(v) {
					return
				}
			}
		}
	}
}

// group is the addresses of pods whose named ports have the same numbers.
type group struct {
	name  string
	ports []portRange
	addrs []netip.Addr // may have duplicates
}

// byNumbers groups pods by the numbers of the rule's named ports, without numbers that the rule also lists as such.
// Pods without any are in no group. The groups are sorted by name.
func (r *parsedRule) byNumbers(pods iter.Seq[*podView]) []*group {
	if len(r.portNames) == 0 {
		return nil
	}
	groups := map[string]*group{}
	for v := range pods {
		var numbers []portRange
		for _, name := range r.portNames {
			for _, p := range v.ports {
				if p.Name == name.name && p.Protocol == name.protocol &&
					!slices.ContainsFunc(r.ports, func(known portRange) bool { return known.contains(p.Protocol, p.Number) }) {
					numbers = append(numbers, portRange{p.Protocol, p.Number, p.Number})
				}
			}
		}
		if len(numbers) == 0 || len(v.addrs) == 0 {
			continue
		}
		ports := merge(numbers)
		name := variantName(ports)
		if groups[name] == nil {
			groups[name] = &group{name: name, ports: ports}
		}
		groups[name].addrs = append(groups[name].addrs, v.addrs...)
	}
	out := make([]*group, 0, len(groups))
	for _, g := range groups {
		out = append(out, g)
	}
	slices.SortFunc(out, func(a, b *group) int { return cmp.Compare(a.name, b.name) })
	return out
}

func variantName(ports []portRange) string {
	var b []byte
	for _, r := range ports {
		b = append(b, r.protocol...)
		b = strconv.AppendUint(append(b, '/'), uint64(r.from), 10)
		b = strconv.AppendUint(append(b, '-'), uint64(r.to), 10)
		b = append(b, ',')
	}
	return string(b)
}
