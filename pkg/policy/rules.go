package policy

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"
	"strconv"

	"github.com/weft-cni/weft/pkg/model"
)

// view is a pod as rules see it: what its objects and attachments come to. A view is never changed.
type view struct {
	namespace string
	labels    map[string]string
	// addrs are the pod's own, sorted, at least one.
	addrs []netip.Addr
	ports []ContainerPort
	// local says that the pod is attached to this node, so that policies about it are ours to enforce.
	local bool
	// peer says that the pod may be at the other end of a rule: it has not ended.
	peer bool
}

// has says whether the pod has a port of this name.
func (v *view) has(name portName) bool {
	return slices.ContainsFunc(v.ports, func(p ContainerPort) bool { return p.Name == name.name && p.Protocol == name.protocol })
}

type portName struct {
	protocol Protocol
	name     string
}

// plan is a policy made ready: everything that can be said without looking at pods.
type plan struct {
	policy Policy
	err    error
	// subject selects the pods that the policy is about.
	subject query
	sides   []sidePlan
}

type sidePlan struct {
	direction Direction
	rules     []rulePlan
}

// rulePlan is a rule: who (selections, blocks or anybody) and which ports (numbers, names or any).
type rulePlan struct {
	index    int
	anyPeer  bool
	selected []query
	// ipBlocks are the rule's own; blocks are the same as ranges, sorted and disjoint. Exceptions may make millions
	// of ranges of a block, so blocks are filled only while the policy selects a pod of this node (see expand).
	ipBlocks  []IPBlock
	blocks    []netip.Prefix
	anyPort   bool
	ports     []portRange
	portNames []portName
	// named are, for egress, the selections of all pods that have one of portNames, wherever they are: a name may be that of
	// a port of any pod that anybody or a block stands for.
	named []query
}

// newPlan reads a policy.
func newPlan(policy Policy) plan {
	p := plan{policy: policy, err: policy.Check(), subject: selectLocal(policy.Namespace, policy.PodSelector.readable())}
	for _, d := range []Direction{Ingress, Egress} {
		if !slices.Contains(policy.types(), d) {
			continue
		}
		side := sidePlan{direction: d}
		if p.err == nil {
			for i, rule := range policy.rules(d) {
				side.rules = append(side.rules, newRulePlan(policy.Namespace, d, i, rule))
			}
		}
		p.sides = append(p.sides, side)
	}
	return p
}

func newRulePlan(namespace string, d Direction, index int, rule Rule) rulePlan {
	r := rulePlan{index: index, anyPeer: len(rule.Peers) == 0, anyPort: len(rule.Ports) == 0, ports: ranges(rule.Ports)}
	for _, peer := range rule.Peers {
		switch {
		case peer.IPBlock != nil:
			r.ipBlocks = append(r.ipBlocks, *peer.IPBlock)
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
			r.named = append(r.named, selectPort(name))
		}
	}
	return r
}

// expand fills the rules' blocks once, or lets go of them when the policy selects no pod of this node.
func (p *plan) expand(needed bool) {
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

// source answers queries as things are at the moment.
type source interface {
	// prefixes are the addresses of the selected pods, sorted. The list is shared and never changed.
	prefixes(q query) []netip.Prefix
	// views are the selected pods, in any order.
	views(q query) iter.Seq[*view]
}

// resolve gives the policy for this node without the rules' ids, and the rules' keys in the rules' order, ingress first. It is
// not ok when the policy is about none of the node's pods. Without the policy's rules, why says why there are none.
func (p *plan) resolve(from source, log bool, why string) (out model.Policy, keys []string, ok bool) {
	subject := from.prefixes(p.subject)
	p.expand(len(subject) > 0 && why == "")
	if len(subject) == 0 {
		return model.Policy{}, nil, false
	}
	out = model.Policy{Name: p.policy.ID(), Log: log || p.policy.Log, Err: why}
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
		if why != "" {
			continue
		}
		for _, r := range side.rules {
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
	return out, keys, true
}

// variant is a rule, or the part of it that is about some numbers that its names stand for.
type variant struct {
	name string
	rule model.PolicyRule
}

// ingress: a name is that of the subject's own port, so subjects that mean different numbers are told apart.
func (r *rulePlan) ingress(pods []netip.Addr, subject query, from source) []variant {
	peers := r.peers(from)
	if len(peers) == 0 && !r.anyPeer {
		return nil
	}
	out := r.unnamed(pods, peers)
	for _, g := range r.byNumbers(from.views(subject)) {
		slices.SortFunc(g.addrs, netip.Addr.Compare)
		out = append(out, variant{g.name, model.PolicyRule{Index: r.index, Pods: g.addrs, Peers: peers, AnyPeer: r.anyPeer, Ports: matches(g.ports)}})
	}
	return out
}

// egress: a name is that of the peer's port, so peers that mean different numbers are told apart. What is no pod has no names.
func (r *rulePlan) egress(pods []netip.Addr, from source) []variant {
	out := r.unnamed(pods, r.peers(from))
	for _, g := range r.byNumbers(r.destinations(from)) {
		peers := make([]netip.Prefix, len(g.addrs))
		for i, a := range g.addrs {
			peers[i] = host(a)
		}
		slices.SortFunc(peers, comparePrefixes)
		out = append(out, variant{g.name, model.PolicyRule{Index: r.index, Pods: pods, Peers: disjoint(peers), Ports: matches(g.ports)}})
	}
	return out
}

// unnamed is the part of the rule that is about numbers, protocols or everything.
func (r *rulePlan) unnamed(pods []netip.Addr, peers []netip.Prefix) []variant {
	if len(r.ports) == 0 && !r.anyPort || len(peers) == 0 && !r.anyPeer {
		return nil
	}
	return []variant{{"", model.PolicyRule{Index: r.index, Pods: pods, Peers: peers, AnyPeer: r.anyPeer, Ports: matches(r.ports), AnyPort: r.anyPort}}}
}

// peers are the addresses at the other end. A list that only one selection makes up is that selection's own.
func (r *rulePlan) peers(from source) []netip.Prefix {
	if r.anyPeer {
		return nil
	}
	lists := make([][]netip.Prefix, 0, 1+len(r.selected))
	lists = append(lists, r.blocks)
	for _, s := range r.selected {
		lists = append(lists, from.prefixes(s))
	}
	return unite(lists)
}

// destinations are the pods, with their addresses as far as the rule is about them, whose ports' names count.
func (r *rulePlan) destinations(from source) iter.Seq[*view] {
	return func(yield func(*view) bool) {
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
		for _, s := range r.named {
			for v := range from.views(s) {
				if !r.anyPeer {
					inside := *v
					inside.addrs = slices.DeleteFunc(slices.Clone(v.addrs), func(a netip.Addr) bool { return !covers(r.blocks, a) })
					v = &inside
				}
				if !yield(v) {
					return
				}
			}
		}
	}
}

// group is the addresses of the pods for which the names stand for the same numbers.
type group struct {
	name  string
	ports []portRange
	addrs []netip.Addr // each may be there more than once
}

// byNumbers groups pods by the numbers that the rule's names stand for, as far as the rule does not give these as numbers, too.
// Pods without any are in no group. The groups are in their names' order.
func (r *rulePlan) byNumbers(pods iter.Seq[*view]) []*group {
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
