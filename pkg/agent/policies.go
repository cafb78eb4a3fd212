package agent

import (
	"cmp"
	"context"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// PolicyReport is a policy that selects pods of this node, as `weftctl policy` shows it.
type PolicyReport struct {
	// Policy is namespace/name.
	Policy string `json:"policy"`
	// Log says that a sample of its packets is logged.
	Log bool `json:"log,omitempty"`
	// Problem says why the policy isolates its pods and allows nothing, or less than it says; empty when nothing is wrong.
	Problem string       `json:"problem,omitempty"`
	Rules   []RuleReport `json:"rules"`
}

// RuleReport is a rule of a policy, or what the policy denies.
type RuleReport struct {
	Direction model.Direction `json:"direction"`
	// Rule is the rule's place in the policy's list, from 0, or "denied": what no rule of any policy of the pods allowed.
	Rule string `json:"rule"`
	// Pods are the pods of this node that it is about, less their namespace, which is the policy's. A pod that is not attached
	// yet is shown by its address.
	Pods []string `json:"pods"`
	openflow.Stats
}

// RuleDenied is the Rule of what a policy denies.
const RuleDenied = "denied"

// ruleName is how a rule is called.
func ruleName(rule int) string {
	if rule == flows.Denied {
		return RuleDenied
	}
	return strconv.Itoa(rule)
}

// policyReports says what the policies do. Name is empty for all of them, or one policy's namespace/name or name.
func (a *Agent) policyReports(ctx context.Context, name string) ([]PolicyReport, error) {
	now, err := a.count(ctx)
	if err != nil {
		return nil, err
	}
	return policyReports(a.loop.View(), a.loop.Status(), now, name), nil
}

func policyReports(view *model.Snapshot, status Status, now counts, name string) []PolicyReport {
	pods := podNames(view)
	reports := []PolicyReport{}
	for _, id := range slices.Sorted(maps.Keys(view.Policies)) {
		if !isNamed(id, name) {
			continue
		}
		p := view.Policies[id]
		problem := cmp.Or(status.Quarantined[model.PolicyOwner(id)], status.Incomplete[model.PolicyOwner(id)])
		r := PolicyReport{Policy: id, Log: p.Log, Problem: problem, Rules: []RuleReport{}}
		for _, d := range []model.Direction{model.Ingress, model.Egress} {
			side := p.Side(d)
			if side == nil {
				continue
			}
			// A rule whose named ports differ between pods is several in the model.
			about := map[int][]netip.Addr{flows.Denied: side.Pods}
			for _, rule := range side.Rules {
				about[rule.Index] = append(about[rule.Index], rule.Pods...)
			}
			for _, index := range rulesInOrder(about) {
				r.Rules = append(r.Rules, RuleReport{d, ruleName(index), namesOf(about[index], pods), now.rules[ruleID{id, d, index}]})
			}
		}
		reports = append(reports, r)
	}
	return reports
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

// isNamed says whether an object's namespace/name is meant by what a user wrote: all of it, or the name alone. Nothing means all.
func isNamed(id, wanted string) bool {
	return wanted == "" || id == wanted || strings.HasSuffix(id, "/"+wanted)
}

// refusedOf counts the owners of a kind that are quarantined, invalid or over budget.
func (s Status) refusedOf(kind model.Kind) int {
	n := 0
	for owner := range s.Quarantined {
		if owner.Kind == kind {
			n++
		}
	}
	return n
}
