package report

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// Policy is a policy that selects pods of this node, as `weftctl policy` shows it.
type Policy struct {
	// Policy is namespace/name.
	Policy string `json:"policy"`
	// Log says that a sample of its packets is logged.
	Log bool `json:"log,omitempty"`
	// Problem says why the policy isolates its pods and allows nothing, or less than it says; absent when nothing is
	// wrong.
	Problem string `json:"problem,omitempty"`
	// Rules are those of the ingress side, then those of the egress side, each side's denials last.
	Rules []Rule `json:"rules"`
}

// Rule is a rule of a policy, or what the policy denies.
type Rule struct {
	Direction model.Direction `json:"direction"`
	// Rule is the rule's index in the policy's list, from 0, or RuleDenied.
	Rule string `json:"rule"`
	// Pods are the pods of this node that it is about, less their namespace, which is the policy's. A pod that is not
	// attached yet is shown by its address.
	Pods []string `json:"pods"`
	// Stats are the packets and bytes of both directions that it allowed or denied since the agent started.
	openflow.Stats
}

// RuleDenied is the Rule of what a policy denies: packets that no rule of any policy of the pods allowed.
const RuleDenied = "denied"

// ruleName is the Rule of an index.
func ruleName(rule int) string {
	if rule == flows.Denied {
		return RuleDenied
	}
	return strconv.Itoa(rule)
}

// Policies makes the list of the policies, by namespace/name. Name is empty for all of them, or one policy's
// namespace/name or name. It does not change its arguments.
func Policies(view *model.Snapshot, p Programming, counts Counts, name string) []Policy {
	pods := podNames(view)
	list := []Policy{}
	for _, id := range slices.Sorted(maps.Keys(view.Policies)) {
		if !isNamed(id, name) {
			continue
		}
		policy, owner := view.Policies[id], model.PolicyOwner(id)
		r := Policy{Policy: id, Log: policy.Log, Problem: cmp.Or(p.Quarantined[owner], p.Incomplete[owner]), Rules: []Rule{}}
		for _, d := range []model.Direction{model.Ingress, model.Egress} {
			side := policy.Side(d)
			if side == nil {
				continue
			}
			// A rule whose named ports differ between pods is several in the model.
			about := map[int][]netip.Addr{flows.Denied: side.Pods}
			for _, rule := range side.Rules {
				about[rule.Index] = append(about[rule.Index], rule.Pods...)
			}
			for _, index := range rulesInOrder(about) {
				counted := counts.Rules[RuleID{id, d, index}]
				r.Rules = append(r.Rules, Rule{d, ruleName(index), namesOf(about[index], pods), counted})
			}
		}
		list = append(list, r)
	}
	return list
}

// rulesInOrder lists rules as the policy does, and what is denied last.
func rulesInOrder(about map[int][]netip.Addr) []int {
	return slices.SortedFunc(maps.Keys(about), func(a, b int) int {
		return cmp.Compare(uint(a), uint(b)) // flows.Denied is negative
	})
}

// podNames says whose an address of this node is, less the namespace.
func podNames(view *model.Snapshot) map[netip.Addr]string {
	names := map[netip.Addr]string{}
	for _, a := range view.Attachments {
		for _, ip := range a.IPs {
			names[ip] = a.Pod.Name
		}
	}
	return names
}

func namesOf(addrs []netip.Addr, pods map[netip.Addr]string) []string {
	names := make([]string, 0, len(addrs))
	for _, addr := range addrs {
		names = append(names, cmp.Or(pods[addr], addr.String()))
	}
	slices.Sort(names)
	return slices.Compact(names)
}
