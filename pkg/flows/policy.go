package flows

import (
	"net/netip"
	"slices"

	"github.com/digitalocean/go-openvswitch/ovs"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// stage is the two tables of one direction. The tables see packets of a connection's original direction only, after
// translation. So the subject, the pod that a policy selects, is always the source of egress and the destination of
// ingress.
type stage struct {
	direction         model.Direction
	allow, deny, next openflow.TableID
	reason            Reason
	subject, peer     func(netip.Prefix) ovs.Match
}

var stages = []stage{
	{model.Egress, EgressPolicy, EgressDefault, IngressPolicy, PolicyEgress, openflow.Source, openflow.Destination},
	{model.Ingress, IngressPolicy, IngressDefault, Forwarding, PolicyIngress, openflow.Destination, openflow.Source},
}

// policy gives the flows of a policy: what it allows, and that its pods are isolated otherwise. Several policies
// isolate one pod with one flow, which has the cookie of the first of them; see Counters.
func (b *builder) policy(p model.Policy, _ none) {
	b.log = p.Log
	for _, s := range stages {
		side := p.Side(s.direction)
		if side == nil {
			continue
		}
		for _, pod := range side.Pods {
			b.isolate(s, pod)
		}
		for _, r := range rulesOf(p, side) {
			b.rule(s, r)
		}
	}
}

// rulesOf gives the rules that count: none of a policy that could not be understood.
func rulesOf(p model.Policy, side *model.PolicySide) []model.PolicyRule {
	if p.Err != "" {
		return nil
	}
	return side.Rules
}

// isolate denies what came past all rules. The flow comes and goes with the pod's own flows (see Compiler.Part).
func (b *builder) isolate(s stage, pod netip.Addr) {
	i := in{s.deny, prioNormal, openflow.Protocol(pod), matches(s.subject(openflow.Host(pod)))}
	b.append(s.reason, i, openflow.Goto(PolicyDenied))
	b.logDenied(s, i)
}

// isolations are the keys of the flows that isolate the pod with an address, one for each direction.
func isolations(pod netip.Addr) []openflow.Key {
	b := &builder{}
	for _, s := range stages {
		b.isolate(s, pod)
	}
	keys := make([]openflow.Key, len(b.flows))
	for i, f := range b.flows {
		keys[i] = f.Key
	}
	return keys
}

// closes tells whether the flow isolates a pod. Such flows stay when the rest of their policy cannot be: no policy is
// not what was asked for.
func (f Flow) closes() bool {
	return (f.Reason == PolicyEgress || f.Reason == PolicyIngress) && !f.Copies()
}

// closed is what remains when something is wrong with an owner's flows.
func (c compiled) closed() compiled {
	out := compiled{Addrs: c.Addrs}
	for _, f := range c.Flows {
		if f.closes() {
			out.Flows = append(out.Flows, f)
		}
	}
	return out
}

// condition is one flow's share of a rule.
type condition struct {
	proto ovs.Protocol
	match []ovs.Match
}

// rule gives the flows of one rule in both families. It allows what has one of the conditions of each dimension. With
// two or three dimensions they are the clauses of a conjunction, so that there are as many flows as the sum of what the
// rule names. With one, or where it takes no more of them, they are flows that allow by themselves.
func (b *builder) rule(s stage, r model.PolicyRule) {
	for _, any := range families {
		dimensions := dimensionsOf(s, r, any.Is4())
		if len(dimensions) == 0 {
			continue
		}
		if len(dimensions) == 1 {
			for _, c := range dimensions[0] {
				// Apart from clauses, which may have the same match.
				b.allow(s, in{s.allow, prioRaised, c.proto, c.match}, r)
			}
			continue
		}
		for k, conditions := range dimensions {
			b.flows = slices.Grow(b.flows, len(conditions)+1)
			clause := openflow.Conjunction(r.ID, k+1, len(dimensions))
			for _, c := range conditions {
				b.add(in{s.allow, prioNormal, c.proto, c.match}, clause)
			}
		}
		b.allow(s, in{s.allow, prioNormal, openflow.Protocol(any), matches(openflow.ConjunctionID(r.ID))}, r)
	}
}

// allow lets through what a rule says.
func (b *builder) allow(s stage, i in, r model.PolicyRule) {
	b.add(i, openflow.Goto(s.next))
	b.logAllowed(s, i, r.Index)
}

const (
	// productSlack is how many more flows pods × ports may take than pods + ports. A flow that names only a port is in the
	// way of every packet to that port and holds a clause of every policy that names it, so a few flows more are cheaper.
	productSlack = 16
	// fewPeers is how many peers are written out with a single pod. Longer lists are shared with other policies' clauses.
	fewPeers = 16
)

// dimensionsOf gives a rule's dimensions in one family: pods, peers and ports, as far as the rule limits them; nil when
// it allows nothing there. Two of them become one where their product does not exceed their sum.
func dimensionsOf(s stage, r model.PolicyRule, is4 bool) [][]condition {
	proto := ovs.ProtocolIPv6
	if is4 {
		proto = ovs.ProtocolIPv4
	}
	var pods, peers, ports []condition
	for _, pod := range r.Pods {
		if pod.Is4() == is4 {
			pods = append(pods, condition{proto, matches(s.subject(openflow.Host(pod)))})
		}
	}
	for _, peer := range r.Peers {
		if peer.Addr().Is4() == is4 {
			peers = append(peers, condition{proto, matches(s.peer(peer))})
		}
	}
	for _, t := range transports {
		for _, p := range r.Ports {
			switch {
			case p.Protocol != t.protocol:
			case p.Mask == 0:
				ports = append(ports, condition{t.of(is4), nil})
			default:
				ports = append(ports, condition{t.of(is4), matches(openflow.DestinationPort(p.Port, p.Mask))})
			}
		}
	}
	if len(pods) == 0 || len(peers) == 0 && !r.AnyPeer || len(ports) == 0 && !r.AnyPort {
		return nil
	}
	dimensions := [][]condition{pods}
	if !r.AnyPort {
		if len(pods)*len(ports) <= len(pods)+len(ports)+productSlack {
			dimensions[0] = product(pods, ports)
		} else {
			dimensions = append(dimensions, ports)
		}
	}
	if r.AnyPeer {
		return dimensions
	}
	if len(dimensions) == 1 && len(peers) <= fewPeers && len(dimensions[0])*len(peers) <= len(dimensions[0])+len(peers)+1 {
		return [][]condition{product(peers, dimensions[0])}
	}
	return append(dimensions, peers)
}

// product gives the conditions that say one of each. The second's protocol is at least as narrow as the first's.
func product(a, b []condition) []condition {
	all := make([]condition, 0, len(a)*len(b))
	for _, x := range a {
		for _, y := range b {
			all = append(all, condition{y.proto, also(x.match, y.match...)})
		}
	}
	return all
}

// Always allowed, whatever policies say.

// allowRejection lets pods reach the address where Services without endpoints lead: that a Service has no endpoint is
// not a secret.
func (b *builder) allowRejection() {
	for _, any := range families {
		b.add(in{EgressPolicy, prioHigh, openflow.Protocol(any),
			matches(openflow.Destination(openflow.Host(model.RejectAddr(any.Is4()))))}, openflow.Goto(IngressPolicy))
	}
}

// allowNode lets the node and its own pods reach each other: kubelet's probes, and whatever a policy could not keep
// from a pod anyway, because the node is what runs it.
func (b *builder) allowNode(addrs []netip.Addr) {
	for _, addr := range addrs {
		for _, s := range stages {
			b.add(in{s.allow, prioHigh, openflow.Protocol(addr), matches(s.peer(openflow.Host(addr)))}, openflow.Goto(s.next))
		}
	}
}

// allowSelf lets a pod reach itself, through a Service, too.
func (b *builder) allowSelf(ips []netip.Addr) {
	for _, ip := range ips {
		host := openflow.Host(ip)
		for _, s := range stages {
			b.add(in{s.allow, prioHigh, openflow.Protocol(ip), matches(openflow.Source(host), openflow.Destination(host))},
				openflow.Goto(s.next))
		}
	}
}

// Counter is a flow whose packets and bytes say something of a policy. Where two policies, or two rules, have one flow
// in common, it counts for both: both allow, or both deny, what it counted. What several conjunctions allow is counted
// for one of them.
type Counter struct {
	Key       openflow.Key
	Direction model.Direction
	// Rule is the rule's place in the policy's list, from 0, or Denied.
	Rule int
}

// Denied is the Rule of counters of what none of a policy's rules allowed, nor those of other policies.
const Denied = -1

// Counters lists the flows that count for a policy.
func Counters(p model.Policy) ([]Counter, error) {
	var counters []Counter
	b := &builder{owner: model.PolicyOwner(p.Name)}
	for _, s := range stages {
		side := p.Side(s.direction)
		if side == nil {
			continue
		}
		for _, pod := range side.Pods {
			b.flows, b.log = nil, true // another policy of the pod may log what all of them deny
			b.isolate(s, pod)
			counters = b.counters(counters, s.direction, Denied)
		}
		for _, r := range rulesOf(p, side) {
			b.flows, b.log = nil, p.Log
			b.rule(s, r)
			counters = b.counters(counters, s.direction, r.Index)
		}
	}
	return counters, b.err
}

func (b *builder) counters(to []Counter, d model.Direction, rule int) []Counter {
	for _, f := range b.flows {
		if !isClause(f.Actions) { // no packet ends at a clause
			to = append(to, Counter{f.Key, d, rule})
		}
	}
	return to
}
