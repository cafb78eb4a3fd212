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
	"github.com/weft-cni/weft/pkg/policy"
)

// Policy is a policy that selects pods of this node, as `weftctl policy` shows it.
type Policy struct {
	// Policy is namespace/name of a NetworkPolicy, or the name of a ClusterNetworkPolicy.
	Policy string `json:"policy"`
	// Tier is Admin, NetworkPolicy or Baseline. Policies are listed in the order of the tiers, and within those of
	// ClusterNetworkPolicies in the order in which they apply.
	Tier string `json:"tier"`
	// Log says that a sample of its packets is logged.
	Log bool `json:"log,omitempty"`
	// Staged says that the policy has no effect: its rules count what they would decide if it were enforced.
	Staged bool `json:"staged,omitempty"`
	// Problem says why the policy isolates its pods and allows nothing, or less than it says, or what of its annotations
	// is invalid; absent when nothing is wrong.
	Problem string `json:"problem,omitempty"`
	// DomainNames are the domain names among its peers, sorted; absent without any.
	DomainNames []DomainName `json:"domainNames,omitempty"`
	// Rules are those of the ingress side, then those of the egress side, each side's denials last.
	Rules []Rule `json:"rules"`
}

// DomainName is a domain name among a policy's peers.
type DomainName struct {
	// Name is as in the policy, in lower case; "*.example.com" is every name below.
	Name string `json:"name"`
	// Names are how many names were learned of it: 0 or 1, or more of one with an asterisk. Addresses are theirs, Ended
	// those of them whose TTL is over and that connections still use.
	Names     int `json:"names"`
	Addresses int `json:"addresses"`
	Ended     int `json:"ended,omitempty"`
}

func domainNames(view *model.Snapshot, p model.Policy) []DomainName {
	var list []DomainName
	for _, text := range p.Domains {
		d := DomainName{Name: text}
		for name, learned := range view.Names {
			if policy.Domain(text).Matches(name) {
				d.Names++
				d.Addresses += len(learned.Addrs)
				d.Ended += len(learned.Ended)
			}
		}
		list = append(list, d)
	}
	return list
}

// Rule is a rule of a policy, or what a NetworkPolicy denies.
type Rule struct {
	Direction model.Direction `json:"direction"`
	// Rule is the rule's index in the policy's list, from 0, or RuleDenied.
	Rule string `json:"rule"`
	// Verdict is allowed, denied or passed; of a staged policy would be allowed, would be denied or would be passed.
	Verdict string `json:"verdict"`
	// Warning says what a rule that denies cuts pods off from that they need to run; absent when nothing.
	Warning string `json:"warning,omitempty"`
	// Pods are the pods of this node that it is about, less the namespace of a NetworkPolicy. A pod that is not
	// attached yet is shown by its address.
	Pods []string `json:"pods"`
	// Stats are the packets and bytes of both directions that it allowed or denied since the agent started.
	openflow.Stats
}

// RuleDenied is the Rule of what a policy denies: packets that no rule of any policy of the pods allowed.
const RuleDenied = "denied"

// ruleName is the Rule of an index.
func ruleName(rule int) string {
	if rule == flows.Isolation {
		return RuleDenied
	}
	return strconv.Itoa(rule)
}

// Policies makes the list of the policies, by namespace/name. Name is empty for all of them, or one policy's
// namespace/name or name. It does not change its arguments.
func Policies(view *model.Snapshot, in Programming, counts Counts, name string) []Policy {
	pods, list := podNames(view), []Policy{}
	for _, p := range slices.SortedFunc(maps.Values(view.Policies), compareEvaluation) {
		if !isNamed(p.ID.String(), name) {
			continue
		}
		owner := p.Owner()
		r := Policy{Policy: p.ID.String(), Tier: p.Tier.String(), Log: p.Log, Staged: p.Staged,
			DomainNames: domainNames(view, p),
			Problem:     cmp.Or(in.Quarantined[owner], in.Incomplete[owner], p.Warning), Rules: []Rule{}}
		for _, d := range []model.Direction{model.Ingress, model.Egress} {
			side := p.Side(d)
			if side == nil {
				continue
			}
			rule := func(index int, v model.Verdict, about []netip.Addr) {
				id := RuleID{p.ID, flows.Rule{Tier: p.Tier, Direction: d, Index: index, Verdict: v,
					Staged: p.Staged}}
				r.Rules = append(r.Rules, Rule{d, ruleName(index), VerdictName(id.Rule), cutOff(view, p, d, index),
					namesOf(about, pods, p.ID.Namespace), counts.Rules[id]})
			}
			// A rule whose named ports differ between pods is several in the model.
			for i := 0; i < len(side.Rules); {
				first, about := side.Rules[i], []netip.Addr(nil)
				for ; i < len(side.Rules) && side.Rules[i].Index == first.Index; i++ {
					about = append(about, side.Rules[i].Pods...)
				}
				rule(first.Index, first.Verdict, about)
			}
			if !p.Tier.Ordered() {
				rule(flows.Isolation, model.Deny, side.Pods)
			}
		}
		list = append(list, r)
	}
	return list
}

// compareEvaluation orders policies as they apply, and those without an order by name.
func compareEvaluation(a, b model.Policy) int {
	return cmp.Or(cmp.Compare(slices.Index(model.Tiers, a.Tier), slices.Index(model.Tiers, b.Tier)),
		cmp.Compare(a.Rank, b.Rank), cmp.Compare(a.ID.String(), b.ID.String()))
}

// podNames says whose an address of this node is.
func podNames(view *model.Snapshot) map[netip.Addr]model.PodRef {
	names := map[netip.Addr]model.PodRef{}
	for _, a := range view.Attachments {
		for _, ip := range a.IPs {
			names[ip] = a.Pod
		}
	}
	return names
}

// namesOf are the pods with the addresses, less a namespace.
func namesOf(addrs []netip.Addr, pods map[netip.Addr]model.PodRef, namespace string) []string {
	names := make([]string, 0, len(addrs))
	for _, addr := range addrs {
		switch pod, known := pods[addr]; {
		case !known:
			names = append(names, addr.String())
		case pod.Namespace == namespace:
			names = append(names, pod.Name)
		default:
			names = append(names, pod.String())
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
