package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/weft-cni/weft/pkg/model"
)

// Decision is how the policies of one end decide about a packet.
type Decision struct {
	Verdict
	Direction Direction
	// Subject is the pod that policies select; nil when the address is not a pod's, which no policy selects.
	Subject *Pod
	// Tiers are in the order of their evaluation; none without a Subject.
	Tiers []TierDecision
}

// TierDecision is what one tier says.
type TierDecision struct {
	Tier model.Tier
	// Policies are those that select the subject in this direction, in the order in which they are evaluated.
	Policies []model.PolicyID
	// By is the policy whose rule with index Rule matches; nil when none does.
	By   *model.PolicyID
	Rule int
	// Verdict is Pass when the tier does not decide.
	Verdict model.Verdict
	// Reached says that no tier before has decided.
	Reached bool
	// Why is empty for a tier that no policy has a say in.
	Why string
}

// Decide evaluates the tiers of one direction of a packet of a connection's original direction, one after the other,
// until one decides; the others are evaluated for information.
func (c Cluster) Decide(d Direction, p Packet) Decision {
	t := traffic{d, c.pod(p.Src), c.pod(p.Dst), p.Dst, p}
	if d == Ingress {
		t = traffic{d, t.peer, t.subject, p.Src, p}
	}
	out := Decision{Verdict: Verdict{Allowed: true}, Direction: d, Subject: t.subject}
	if t.subject == nil {
		out.Why = fmt.Sprintf("%s: not a pod, so no policy selects it", d)
		return out
	}
	out.Why = fmt.Sprintf("%s: no policy selects %s/%s", d, t.subject.Namespace, t.subject.Name)
	decided := false
	for _, tier := range model.Tiers {
		one := c.tier(tier, t)
		one.Reached = !decided
		if !decided && one.Why != "" {
			out.Why = fmt.Sprintf("%s: %s", d, one.Why)
		}
		if !decided && one.Verdict != model.Pass {
			decided, out.Allowed = true, one.Verdict == model.Accept
		}
		out.Tiers = append(out.Tiers, one)
	}
	return out
}

// tier evaluates one tier. The first rule that matches decides; NetworkPolicies deny what none of their rules accepts,
// and have no say about a pod itself and its own node.
func (c Cluster) tier(tier model.Tier, t traffic) TierDecision {
	out := TierDecision{Tier: tier, Verdict: model.Pass}
	switch {
	case tier.Ordered():
	case t.subject == t.peer:
		out.Why = "a pod always reaches itself"
		return out
	case t.peer == nil && c.isNode(t.subject.Node, t.peerAddr):
		out.Why = "a pod and its own node always reach each other"
		return out
	}
	for _, policy := range c.selecting(tier, t) {
		out.Policies = append(out.Policies, policy.ID())
		if out.By != nil {
			continue
		}
		rules := policy.effective(t.Direction)
		for _, i := range slices.Sorted(maps.Keys(rules)) {
			if c.matches(policy, rules[i], t) {
				id := policy.ID()
				out.By, out.Rule, out.Verdict = &id, i, rules[i].Verdict
				out.Why = ruleWhy(tier, id, i, out.Verdict)
				break
			}
		}
	}
	if !tier.Ordered() && len(out.Policies) > 0 && out.By == nil {
		names := make([]string, len(out.Policies))
		for i, id := range out.Policies {
			names[i] = id.String()
		}
		out.Verdict = model.Deny
		out.Why = fmt.Sprintf("%s/%s is isolated by %s, and no rule allows it", t.subject.Namespace, t.subject.Name,
			strings.Join(names, ", "))
	}
	return out
}

func ruleWhy(tier model.Tier, id model.PolicyID, rule int, v model.Verdict) string {
	word := map[model.Verdict]string{model.Accept: "allowed", model.Deny: "denied", model.Pass: "passed on"}[v]
	if tier.Ordered() {
		return fmt.Sprintf("%s by the %s policy %s, rule %d", word, tier, id, rule)
	}
	return fmt.Sprintf("%s by %s, rule %d", word, id, rule)
}

// Preview is the cluster as it would be if the staged policies were enforced.
func (c Cluster) Preview() Cluster {
	c.Policies = slices.Clone(c.Policies)
	for i := range c.Policies {
		c.Policies[i].Staged = false
	}
	return c
}

// selecting are the policies of a tier that select the subject, as they are evaluated. Staged ones are not.
func (c Cluster) selecting(tier model.Tier, t traffic) []Policy {
	var list []Policy
	for _, policy := range c.Policies {
		if policy.Tier == tier && !policy.Staged && c.selects(policy, t.Direction, *t.subject) {
			list = append(list, policy)
		}
	}
	slices.SortStableFunc(list, Policy.compare)
	return list
}

// compare orders the policies of a tier as they are evaluated.
func (policy Policy) compare(other Policy) int {
	return cmp.Or(cmp.Compare(policy.Priority, other.Priority), policy.ID().Compare(other.ID()))
}
