package walk

import (
	"cmp"
	"fmt"
	"net/netip"
	"reflect"
	"slices"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/pkg/trace"
)

// PolicyVerdict is what policies, or the flows made of them, say about a packet at one end.
type PolicyVerdict string

// The verdicts.
const (
	Allowed PolicyVerdict = "allowed"
	Denied  PolicyVerdict = "denied"
	// NotReached is that of flows that the packet does not meet.
	NotReached PolicyVerdict = "not reached"
	// Unknown is that of policies when the labels of one end are not known.
	Unknown PolicyVerdict = "unknown"
)

func verdictOf(allowed bool) PolicyVerdict {
	if allowed {
		return Allowed
	}
	return Denied
}

// Explanation is what the policies say about a connection, by policy.Eval's rules, beside what the flows do with it.
type Explanation struct {
	Query Query `json:"query"`
	// Verdict is Denied when the policies of an end, or its flows, deny one of the paths; else Unknown or Allowed.
	Verdict PolicyVerdict `json:"verdict"`
	// Preview is what Verdict would be if the staged policies were enforced; absent where none is staged.
	Preview PolicyVerdict   `json:"preview,omitempty"`
	Paths   []ExplainedPath `json:"paths"`
	// Disagreements are where the policies and the flows differ: the flows are not what the policies ask for.
	Disagreements []string `json:"disagreements"`
	// Notes name what is not known.
	Notes []string `json:"notes,omitempty"`

	preview   PolicyVerdict
	previewed bool // there are staged policies at an end
}

// ExplainedPath is a path of a connection, with the ends that policies select on it.
type ExplainedPath struct {
	// Flows is how the path ends, as a trace says it, and Outcome the first word of that.
	Flows   string  `json:"flows"`
	Outcome Outcome `json:"outcome"`
	// Buckets is how many choices of a Service's endpoints take it.
	Buckets int            `json:"buckets"`
	Ends    []ExplainedEnd `json:"ends"`
}

// ExplainedEnd is one direction at the switch of a node.
type ExplainedEnd struct {
	Direction model.Direction `json:"direction"`
	Node      string          `json:"node"`
	// Pod is the one that policies select: the source of Egress, the destination of Ingress.
	Pod string `json:"pod"`
	// Packet is the first packet of the connection as the policies see it: a Service has translated it.
	Packet string `json:"packet"`
	// Policies is the verdict of the policies, Flows that of the flows.
	Policies PolicyVerdict `json:"policies"`
	Flows    PolicyVerdict `json:"flows"`
	Why      string        `json:"why"`
	// Tiers are in the order of their evaluation; empty when Policies is Unknown.
	Tiers []ExplainedTier `json:"tiers"`
	// Took are the flows of policies that the packet takes.
	Took []TakenFlow `json:"took"`
	// Preview is the end if the staged policies were enforced; absent where none is staged.
	Preview *ExplainedPreview `json:"preview,omitempty"`
}

// ExplainedPreview is what would become of a packet if the staged policies were enforced: the policies' verdict, and
// that of the preview's flows. See ExplainedEnd.
type ExplainedPreview struct {
	Policies PolicyVerdict   `json:"policies"`
	Flows    PolicyVerdict   `json:"flows"`
	Why      string          `json:"why"`
	Tiers    []ExplainedTier `json:"tiers"`
	Took     []TakenFlow     `json:"took"`
}

// ExplainedTier is what a tier says about an end.
type ExplainedTier struct {
	Tier string `json:"tier"`
	// Policies are those that select the pod, in the order of their evaluation.
	Policies []ExplainedPolicy `json:"policies"`
	// Decides says which rule, or which default, decides in this tier; Verdict what, or pass.
	Decides string `json:"decides"`
	Verdict string `json:"verdict"`
	// Reached says that no tier before has decided.
	Reached bool `json:"reached"`
}

// ExplainedPolicy is a policy that selects a pod.
type ExplainedPolicy struct {
	Policy string `json:"policy"`
	// Staged says that the policy is; only in a preview.
	Staged bool `json:"staged,omitempty"`
	// Rule is the index of the rule that matches, from 0; absent when none does, or one of a policy before.
	Rule *int `json:"rule,omitempty"`
	// Problem says why the policy is not programmed as it is written.
	Problem string `json:"problem,omitempty"`
	// Stats are what the rule's flows have counted on the node or, without a rule, those that deny what no rule allows.
	openflow.Stats
}

// TakenFlow is a flow that the packet takes.
type TakenFlow struct {
	Table string `json:"table"`
	Flow
}

// Explain follows a connection and compares each end's flows with its policies.
func (c *Cluster) Explain(q Query) Explanation {
	x := Explanation{Query: q, Verdict: Allowed, Disagreements: []string{}, preview: Allowed}
	pods, notes := c.policyPods()
	x.Notes = notes
	for p := range c.paths(q) {
		path := ExplainedPath{Flows: p.String(), Outcome: p.Outcome, Buckets: 1, Ends: []ExplainedEnd{}}
		for _, hop := range p.Hops {
			if hop.Kernel {
				continue
			}
			for _, end := range c.explainHop(hop, pods) {
				path.Ends = append(path.Ends, end)
				x.take(end)
			}
		}
		same := func(o ExplainedPath) bool {
			o.Buckets = 1
			return reflect.DeepEqual(o, path)
		}
		if i := slices.IndexFunc(x.Paths, same); i >= 0 {
			x.Paths[i].Buckets++
		} else {
			x.Paths = append(x.Paths, path)
		}
	}
	if x.previewed {
		x.Preview = x.preview
	}
	return x
}

// take makes the whole verdicts of those of the ends.
func (x *Explanation) take(e ExplainedEnd) {
	where := fmt.Sprintf("%s of %s on node %s", e.Direction, e.Pod, e.Node)
	x.Verdict = x.with(x.Verdict, where, e.Policies, e.Flows, e.Why)
	if e.Preview != nil {
		x.previewed = true
		e.Policies, e.Flows, e.Why = e.Preview.Policies, e.Preview.Flows, e.Preview.Why
		where += ", if the staged policies were enforced"
	}
	x.preview = x.with(x.preview, where, e.Policies, e.Flows, e.Why)
}

// with is a verdict with that of another end; it notes where its flows and policies differ.
func (x *Explanation) with(verdict PolicyVerdict, where string, policies, flows PolicyVerdict,
	why string) PolicyVerdict {
	text := fmt.Sprintf("%s: the policies say %s (%s), the flows say %s", where, policies, why, flows)
	if flows != NotReached && policies != Unknown && policies != flows && !slices.Contains(x.Disagreements, text) {
		x.Disagreements = append(x.Disagreements, text)
	}
	switch {
	case policies == Denied || flows == Denied:
		return Denied
	case policies == Unknown && verdict != Denied:
		return Unknown
	}
	return verdict
}

// policyPods are the pods of all nodes with the addresses that they have; notes name the nodes that do not tell theirs.
func (c *Cluster) policyPods() (pods []policy.Pod, notes []string) {
	for _, n := range c.nodes {
		if n.Policies == nil {
			notes = append(notes, fmt.Sprintf("the agent of node %s is older than this program: it does not tell the policies", n.Name))
			continue
		}
		for _, p := range n.Policies.Pods {
			if at, ok := n.pod(p.Namespace + "/" + p.Name); ok && !at.HostNetwork && !p.HostNetwork {
				p.Addrs, p.Node, p.Done = at.IPs, n.Name, false
				pods = append(pods, p)
			}
		}
	}
	return pods, notes
}

// explainHop explains the ends at one switch: the pod that has sent the packet, and the one that it is for.
func (c *Cluster) explainHop(hop Hop, pods []policy.Pod) []ExplainedEnd {
	here := c.node(hop.Node)
	p, denied, ok := policyPacket(hop.Result)
	if here == nil || !ok || p.Dst() == model.RejectAddr(p.Dst().Is4()) { // that a Service has no endpoint is not a secret
		return nil
	}
	var ends []ExplainedEnd
	for _, d := range []model.Direction{model.Egress, model.Ingress} {
		subject, peer := p.Src(), p.Dst()
		if d == model.Ingress {
			subject, peer = peer, subject
		}
		pod, found := here.podAt(subject)
		if !found {
			continue
		}
		e := ExplainedEnd{
			Direction: d, Node: here.Name, Pod: pod, Packet: packetText(p), Flows: Allowed,
			Tiers: []ExplainedTier{}, Took: here.taken(hop.Result, d, flows.PolicyTable),
		}
		switch denied {
		case d:
			e.Flows = Denied
		case model.Egress:
			e.Flows = NotReached
		}
		c.decide(&e, here, p, peer, pods)
		if e.Preview != nil {
			e.Preview.Flows, e.Preview.Took = previewFlows(hop.Result, d), here.taken(hop.Result, d, flows.PreviewTable)
		}
		ends = append(ends, e)
	}
	return ends
}

// policyPacket is a packet as it met the policies of a switch, or, when it met none, as it left. Denied is the
// direction whose flows dropped it.
func policyPacket(r trace.Result) (p trace.Packet, denied model.Direction, ok bool) {
	switch r.Reason() {
	case flows.PolicyEgress:
		denied = model.Egress
	case flows.PolicyIngress:
		denied = model.Ingress
	}
	for i, f := range r.Visited {
		if _, is := flows.PolicyTable(f.Table); is {
			return r.Met[i], denied, true
		}
	}
	if r.Dropped() {
		return p, denied, false
	}
	return r.Outputs[0].Packet, denied, true
}

// previewFlows is the verdict of a direction's flows in the preview.
func previewFlows(r trace.Result, d model.Direction) PolicyVerdict {
	verdict, of := NotReached, model.Direction("")
	for _, f := range r.Visited {
		if one, is := flows.PreviewTable(f.Table); is {
			of = one
		}
		switch {
		case f.Table == flows.PreviewDenied && of == d:
			return Denied
		case of == d, f.Table == flows.PreviewAllowed:
			verdict = Allowed
		}
	}
	return verdict
}

// podAt is the pod of a node that has an address.
func (n *node) podAt(a netip.Addr) (string, bool) {
	for _, p := range n.Pods {
		if !p.HostNetwork && slices.Contains(p.IPs, a) {
			return p.Name, true
		}
	}
	return "", false
}

// packetText is a packet as hops show it.
func packetText(p trace.Packet) string {
	return Packet{
		Protocol: p.Protocol(), Src: netip.AddrPortFrom(p.Src(), p.SrcPort()), Dst: netip.AddrPortFrom(p.Dst(), p.DstPort()),
	}.String()
}

// taken are the flows of a direction's policies that a packet took, without those that pass it on undecided.
func (n *node) taken(
	r trace.Result, d model.Direction, table func(openflow.TableID) (model.Direction, bool),
) []TakenFlow {
	list := []TakenFlow{}
	for _, f := range r.Visited {
		known := n.byKey[f.Key]
		if of, is := table(f.Table); is && of == d && known != nil && f.Owner.Kind != model.KindPipeline {
			list = append(list, TakenFlow{flows.TableName(f.Table), *known})
		}
	}
	return list
}

// decide evaluates the policies of an end, by what the agent of its node knows.
func (c *Cluster) decide(e *ExplainedEnd, here *node, p trace.Packet, peer netip.Addr, pods []policy.Pod) {
	e.Policies = Unknown
	if here.Policies == nil {
		e.Why = "the agent does not tell the policies"
		return
	}
	if !slices.ContainsFunc(pods, func(p policy.Pod) bool { return p.Namespace+"/"+p.Name == e.Pod }) {
		e.Why = "the API server does not have the pod (any more)"
		return
	}
	cluster := here.Policies.Cluster
	cluster.Pods, cluster.Nodes = pods, map[string][]netip.Addr{}
	for _, n := range c.nodes {
		cluster.Nodes[n.Name] = n.Locals
	}
	if !c.knows(here, peer, pods) {
		e.Why = fmt.Sprintf("%s is a pod's address, and the labels of that pod are not known; was its node asked?", peer)
		return
	}
	packet := policy.Packet{
		Src: p.Src(), Dst: p.Dst(), Protocol: policy.Protocol(ProtocolName(p.Protocol())), Port: p.DstPort(),
		Translated: true,
	}
	d := cluster.Decide(e.Direction, packet)
	e.Policies, e.Why, e.Tiers = verdictOf(d.Allowed), d.Why, here.explainTiers(d)
	if slices.ContainsFunc(cluster.Policies, func(p policy.Policy) bool { return p.Staged }) {
		d := cluster.Preview().Decide(e.Direction, packet)
		e.Preview = &ExplainedPreview{Policies: verdictOf(d.Allowed), Why: d.Why, Tiers: here.explainTiers(d)}
	}
}

func (n *node) explainTiers(d policy.Decision) []ExplainedTier {
	list := make([]ExplainedTier, 0, len(d.Tiers))
	for _, t := range d.Tiers {
		list = append(list, n.explainTier(d.Direction, t))
	}
	return list
}

// knows reports whether it is known what policies see of an address: the labels of its pod, or that it is not a pod's.
func (c *Cluster) knows(here *node, a netip.Addr, pods []policy.Pod) bool {
	if slices.ContainsFunc(pods, func(p policy.Pod) bool { return slices.Contains(p.Addrs, a) }) {
		return true
	}
	for _, n := range c.nodes {
		if _, is := n.podAt(a); is {
			return false
		}
		if n.owns(a) {
			return true
		}
	}
	return !here.inPodCIDR(a)
}

func (n *node) explainTier(d model.Direction, t policy.TierDecision) ExplainedTier {
	x := ExplainedTier{Tier: t.Tier.String(), Policies: []ExplainedPolicy{}, Reached: t.Reached,
		Verdict: map[model.Verdict]string{model.Accept: "allow", model.Deny: "deny", model.Pass: "pass"}[t.Verdict]}
	for _, id := range t.Policies {
		staged := slices.ContainsFunc(n.Policies.Cluster.Policies, func(p policy.Policy) bool {
			return p.ID() == id && p.Staged
		})
		one := ExplainedPolicy{Policy: id.String(), Staged: staged, Problem: n.Policies.Problems[id.String()]}
		index := flows.Isolation
		if t.By != nil && *t.By == id {
			one.Rule, index = &t.Rule, t.Rule
		}
		one.Stats = n.counted(ruleText(model.Policy{ID: id, Staged: staged}.Owner(), d, index))
		x.Policies = append(x.Policies, one)
	}
	switch {
	case t.By != nil:
		x.Decides = fmt.Sprintf("rule %d of %s", t.Rule, t.By)
	case t.Verdict == model.Deny:
		x.Decides = "default: no rule of the policies that select the pod allows it"
	case len(t.Policies) == 0:
		x.Decides = cmp.Or(t.Why, "no policy selects the pod")
	default:
		x.Decides = "no rule matches"
	}
	return x
}

// counted is what the flows of a rule have counted.
func (n *node) counted(rule string) openflow.Stats {
	var sum openflow.Stats
	for _, f := range n.Flows {
		if slices.Contains(f.Decides, rule) {
			sum.Packets += f.Packets
			sum.Bytes += f.Bytes
		}
	}
	return sum
}
