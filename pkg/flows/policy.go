package flows

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/digitalocean/go-openvswitch/ovs"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// stage is one tier in one direction. Its tables see packets of a connection's original direction only, after
// translation. So the subject, the pod that a policy selects, is always the source of egress and the destination of
// ingress.
type stage struct {
	tier      model.Tier
	direction model.Direction
	rules     openflow.TableID
	// isolation is the table of what no rule of a tier without an order accepts; 0 in the others.
	isolation openflow.TableID
	// next is where packets go on that the tier does not decide about, end where they go when they are accepted.
	next, end     openflow.TableID
	denied        openflow.TableID
	reason        Reason
	subject, peer func(netip.Prefix) ovs.Match
	// preview says that it is one of the preview, which decides as if the staged policies were enforced, and only counts
	// and logs. A copy of each packet passes it.
	preview bool
}

// policyDirections are the tables of each direction, in the order of model.Tiers.
var policyDirections = []struct {
	stage
	tables []openflow.TableID
}{
	{stage{direction: model.Egress, reason: PolicyEgress, subject: openflow.Source, peer: openflow.Destination},
		[]openflow.TableID{AdminEgress, EgressPolicy, BaselineEgress}},
	{stage{direction: model.Ingress, reason: PolicyIngress, subject: openflow.Destination, peer: openflow.Source},
		[]openflow.TableID{AdminIngress, IngressPolicy, BaselineIngress}},
}

// stages are all stages in the order in which packets pass them.
var stages = func() []stage {
	var list []stage
	for i, d := range policyDirections {
		end := Forwarding
		if i+1 < len(policyDirections) {
			end = policyDirections[i+1].tables[0]
		}
		for j, tier := range model.Tiers {
			s := d.stage
			s.tier, s.rules, s.next, s.end, s.denied = tier, d.tables[j], end, end, PolicyDenied
			if j+1 < len(d.tables) {
				s.next = d.tables[j+1]
			}
			if !tier.Ordered() {
				s.isolation = s.rules + 1
			}
			list = append(list, s)
		}
	}
	return list
}()

// previewStages are the stages again, in the tables of the preview. Packets that these deny are not dropped, so they
// have no reason.
var previewStages = func() []stage {
	list := slices.Clone(stages)
	for i := range list {
		s := &list[i]
		for _, table := range []*openflow.TableID{&s.rules, &s.isolation, &s.next, &s.end, &s.denied} {
			if *table != 0 {
				*table += toPreview
			}
		}
		s.reason, s.preview = "", true
	}
	return list
}()

// staging says whether there are staged policies on the node: only then there is a preview.
type staging bool

func stagingOf(s *model.Snapshot) staging { return staging(s.Staging) }

// stages are all stages in which policies have flows.
func (on staging) stages() []stage {
	if on {
		return slices.Concat(stages, previewStages)
	}
	return stages
}

// stagesOf are those in which a policy has flows: staged ones have them in the preview alone.
func (on staging) stagesOf(p model.Policy) []stage {
	if p.Staged {
		return previewStages
	}
	return on.stages()
}

// PolicyTable says which direction's policies a table evaluates; false for other tables, and those of the preview.
func PolicyTable(id openflow.TableID) (model.Direction, bool) { return directionOf(stages, id) }

// PreviewTable is PolicyTable for the tables of the preview.
func PreviewTable(id openflow.TableID) (model.Direction, bool) { return directionOf(previewStages, id) }

func directionOf(list []stage, id openflow.TableID) (model.Direction, bool) {
	for _, s := range list {
		if id == s.rules || s.isolation != 0 && id == s.isolation {
			return s.direction, true
		}
	}
	return "", false
}

// policyStages give the flows by which packets pass the stages that decide nothing. While there are staged policies, a
// copy passes the preview first. All that leads to policies leads to PolicyEntry, so that no other flow, group or
// learned flow changes when that begins and ends.
func (b *builder) policyStages(on staging) {
	entry := []ovs.Action{openflow.Goto(stages[0].rules)}
	if on {
		entry = slices.Insert(entry, 0, openflow.Resubmit(previewStages[0].rules))
		for _, end := range []openflow.TableID{PreviewDenied, PreviewAllowed} {
			b.add(in{end, prioMiss, "", nil}, ovs.Drop())
		}
	}
	b.add(in{PolicyEntry, prioMiss, "", nil}, entry...)
	for _, s := range on.stages() {
		next := s.next
		if s.isolation != 0 {
			b.add(in{s.isolation, prioMiss, "", nil}, openflow.Goto(next))
			next = s.isolation
		}
		b.add(in{s.rules, prioMiss, "", nil}, openflow.Goto(next))
	}
}

// policy gives the flows of a policy: its rules, and those that deny what none of them accepts. Several NetworkPolicies
// isolate one pod with one flow, which has the cookie of the first of them; see Counters.
func (b *builder) policy(p model.Policy, on staging) {
	for _, side := range sidesOf(p, on.stagesOf(p)) {
		b.side(side, p)
	}
	b.dnsClients(p)
}

func (b *builder) stagedPolicy(p model.Policy, _ none) { b.policy(p, true) }

// policySide is a policy in one of the stages.
type policySide struct {
	stage
	*model.PolicySide
}

func sidesOf(p model.Policy, in []stage) (sides []policySide) {
	for _, s := range in {
		if side := p.Side(s.direction); side != nil && s.tier == p.Tier {
			sides = append(sides, policySide{s, side})
		}
	}
	return sides
}

func (b *builder) side(s policySide, p model.Policy) {
	b.log = p.Log && s.preview == p.Staged // the others are in the preview only for what they decide about staged ones
	b.inPreview = s.preview
	for _, pod := range s.Pods {
		b.isolate(s, p, pod)
	}
	for _, r := range s.Rules {
		b.rule(s.stage, p.Rank, r)
	}
}

// isolate denies what came past all rules of a tier without an order. The flow comes and goes with the pod's own flows
// (see Compiler.Part). In other tiers such a flow takes the place of the rules when they cannot be programmed. A staged
// policy keeps no pod closed.
func (b *builder) isolate(s policySide, p model.Policy, pod netip.Addr) {
	match := matches(s.subject(openflow.Host(pod)))
	if s.isolation != 0 {
		i := in{s.isolation, prioNormal, openflow.Protocol(pod), match}
		f := Flow{Reason: s.reason, Isolates: pod}
		if p.Staged {
			f.Isolates = netip.Addr{}
		}
		b.put(f, i, openflow.Goto(s.denied))
		b.logIsolated(s.stage, i)
		return
	}
	if p.Staged {
		return
	}
	for _, r := range s.FailClosed() {
		i := in{s.rules, min(placePriority(p.Rank+r.Index), highestPlace), openflow.Protocol(pod), match}
		i.priority = max(i.priority, lowestPlace)
		b.put(Flow{Reason: s.reason, Isolates: pod, Fallback: true}, i, openflow.Goto(s.denied))
	}
}

// closes tells whether the flow isolates a pod. Such flows stay when the rest of their policy cannot be: no policy is
// not what was asked for.
func (f Flow) closes() bool { return f.Isolates.IsValid() }

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

// rule gives the flows of one rule in both families. It matches what has one of the conditions of each dimension. With
// two or three dimensions they are the clauses of a conjunction, so that there are as many flows as the sum of what the
// rule names. With one, or where it takes no more of them, they are flows that decide by themselves.
func (b *builder) rule(s stage, rank int, r model.PolicyRule) {
	clauses, plain := prioNormal, prioRaised // plain ones apart from clauses of other rules, which may have the same match
	if s.tier.Ordered() {
		clauses = placePriority(rank + r.Index)
		plain = clauses
		if clauses < lowestPlace {
			b.fail(fmt.Errorf("rule %d is behind the %d that tier %s has room for on a node; use fewer rules", r.Index,
				highestPlace-lowestPlace, s.tier))
			return
		}
	}
	for _, any := range families {
		dimensions := dimensionsOf(s, r, any.Is4())
		if len(dimensions) == 0 {
			continue
		}
		if len(dimensions) == 1 {
			for _, c := range dimensions[0] {
				b.decide(s, in{s.rules, plain, c.proto, c.match}, r)
			}
			continue
		}
		for k, conditions := range dimensions {
			b.flows = slices.Grow(b.flows, len(conditions)+1)
			clause := openflow.Conjunction(r.ID, k+1, len(dimensions))
			for _, c := range conditions {
				b.add(in{s.rules, clauses, c.proto, c.match}, clause)
			}
		}
		b.decide(s, in{s.rules, clauses, openflow.Protocol(any), matches(openflow.ConjunctionID(r.ID))}, r)
	}
}

// placePriority is the priority of the flows of a rule in an ordered tier, below lowestPlace if there is no room.
func placePriority(place int) uint16 { return uint16(max(0, int(highestPlace)-place)) }

// decide does with packets what a rule says.
func (b *builder) decide(s stage, i in, r model.PolicyRule) {
	next, reason := s.end, Reason("")
	switch r.Verdict {
	case model.Deny:
		next, reason = s.denied, s.reason
	case model.Pass:
		next = s.next
	}
	b.decideAndLog(s, i, r, next, reason)
}

const (
	// highestPlace and lowestPlace are the priorities of the first and the last rule of an ordered tier.
	highestPlace, lowestPlace uint16 = 65_000, highestPlace - model.RulePlaces
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
	for _, peer := range r.Ended {
		if peer.Addr().Is4() == is4 {
			peers = append(peers, condition{proto, matches(s.peer(peer),
				openflow.ConnectionState(openflow.StateTrk, openflow.StateNew))})
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
	// A flow that decides may match the connection's state itself; see decideAndLog.
	if len(dimensions) == 1 && len(r.Ended) == 0 && len(peers) <= fewPeers &&
		len(dimensions[0])*len(peers) <= len(dimensions[0])+len(peers)+1 {
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
func (b *builder) allowRejection(on staging) {
	for _, first := range on.stages() {
		if first.direction != model.Egress || first.tier != model.Tiers[0] {
			continue
		}
		for _, any := range families {
			b.add(in{first.rules, prioBeforeRules, openflow.Protocol(any),
				matches(openflow.Destination(openflow.Host(model.RejectAddr(any.Is4()))))}, openflow.Goto(first.end))
		}
	}
}

// allowNode keeps NetworkPolicies away from what the node and its own pods send each other: kubelet's probes, and
// whatever a policy could not keep from a pod anyway, because the node is what runs it.
func (b *builder) allowNode(addrs []netip.Addr, on staging) {
	for _, addr := range addrs {
		for _, s := range on.stages() {
			if s.isolation != 0 {
				b.add(in{s.rules, prioHigh, openflow.Protocol(addr), matches(s.peer(openflow.Host(addr)))}, openflow.Goto(s.next))
			}
		}
	}
}

// allowSelf does the same for a pod that reaches itself through a Service.
func (b *builder) allowSelf(ips []netip.Addr, on staging) {
	for _, ip := range ips {
		host := openflow.Host(ip)
		for _, s := range on.stages() {
			if s.isolation != 0 {
				b.add(in{s.rules, prioHigh, openflow.Protocol(ip), matches(openflow.Source(host), openflow.Destination(host))},
					openflow.Goto(s.next))
			}
		}
	}
}

// Counter is a flow whose packets and bytes say something of a policy. Where two policies, or two rules, have one flow
// in common, it counts for both: both allow, or both deny, what it counted. What several conjunctions allow is counted
// for one of them.
type Counter struct {
	Key openflow.Key
	Rule
}

// Rule is a rule of a policy.
type Rule struct {
	Tier      model.Tier
	Direction model.Direction
	// Index is the rule's place in the policy's list, from 0, or Isolation.
	Index   int
	Verdict model.Verdict
	// Staged says that the policy is: it only counts and logs what it would decide.
	Staged bool
}

// Isolation is the Index of the rule that denies what no rule of the pod's NetworkPolicies accepts.
const Isolation = -1

// Counters lists the flows that count for a policy.
func Counters(p model.Policy) ([]Counter, error) {
	var counters []Counter
	b := &builder{owner: p.Owner()}
	for _, s := range sidesOf(p, staging(false).stagesOf(p)) {
		for _, pod := range s.Pods {
			b.flows, b.log = nil, true // another policy of the pod may log what all of them deny
			b.isolate(s, p, pod)
			counters = b.counters(counters, s.rule(Isolation, model.Deny))
		}
		for _, r := range s.Rules {
			b.flows, b.log = nil, p.Log
			b.rule(s.stage, p.Rank, r)
			counters = b.counters(counters, s.rule(r.Index, r.Verdict))
		}
	}
	return counters, b.err
}

// rule is a rule of the policies that have their own flows in the stage.
func (s stage) rule(index int, v model.Verdict) Rule {
	return Rule{s.tier, s.direction, index, v, s.preview}
}

func (b *builder) counters(to []Counter, r Rule) []Counter {
	for _, f := range b.flows {
		if !f.Actions.Clauses() && !f.Fallback { // no packet ends at a clause
			to = append(to, Counter{f.Key, r})
		}
	}
	return to
}
