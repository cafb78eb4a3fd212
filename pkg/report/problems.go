package report

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-cni/weft/pkg/model"
)

// Losses says what Services do not get: external addresses that other Services have, and everything beyond a budget.
func Losses(view *model.Snapshot) map[model.Owner]string {
	losses := map[model.Owner]string{}
	for name, s := range view.Services {
		taken := ""
		if len(s.Lost) > 0 {
			taken = describeLost(s.Lost)
		}
		if problem := joinProblems(s.OverBudget, taken); problem != "" {
			losses[model.ServiceOwner(name)] = problem
		}
	}
	return losses
}

// describeLost names the first few addresses that a Service does not get, and why.
func describeLost(lost []model.LostAddress) string {
	const few = 5
	list := make([]string, 0, few+1)
	for _, l := range lost[:min(few, len(lost))] {
		list = append(list, fmt.Sprintf("%s %s is Service %s's", l.At, l.Protocol, l.Winner))
	}
	if more := len(lost) - few; more > 0 {
		list = append(list, fmt.Sprintf("and %d more", more))
	}
	return "external addresses that other Services have: " + strings.Join(list, ", ") +
		" (load balancers' addresses go before externalIPs, older Services before younger ones); " +
		"remove them from this Service"
}

// MergeProblems returns a new map with the problems of both, those of one object in the order of the arguments.
func MergeProblems(first, second map[model.Owner]string) map[model.Owner]string {
	all := maps.Clone(first)
	if all == nil {
		all = make(map[model.Owner]string, len(second))
	}
	for o, problem := range second {
		all[o] = joinProblems(all[o], problem)
	}
	return all
}

func joinProblems(problems ...string) string {
	return strings.Join(slices.DeleteFunc(problems, func(p string) bool { return p == "" }), "; ")
}

// SelfProblem says which values of this node's object are not in use, and which pods are in the way; nil when all is
// well.
func SelfProblem(view *model.Snapshot) error {
	var errs []error
	if view.SelfHeld != "" {
		errs = append(errs, fmt.Errorf("node %s: %s", view.Self.Name, view.SelfHeld))
	}
	if pods := outsidePods(view); len(pods) > 0 {
		const few = 10
		names := strings.Join(pods[:min(few, len(pods))], ", ")
		if more := len(pods) - few; more > 0 {
			names += fmt.Sprintf(" and %d more", more)
		}
		cidrs, then := view.SelfPath().PodCIDRs, ""
		if len(view.NewPodCIDRs) > 0 {
			cidrs, then = view.NewPodCIDRs, "; no pod can start here before"
		}
		errs = append(errs, fmt.Errorf("pods with addresses outside of %v do not reach pods of other nodes: delete pod %s%s",
			cidrs, names, then))
	}
	return errors.Join(errs...)
}

// MissingAddrs says which InternalIPs of this node its kernel does not have, and which addresses it has instead; nil
// when it has them all. Local are the addresses of the host's links.
func MissingAddrs(view *model.Snapshot, local []netip.Addr) error {
	const few = 5
	self := view.Self
	missing := slices.DeleteFunc(slices.Clone(self.Addrs), func(a netip.Addr) bool { return slices.Contains(local, a) })
	if len(missing) == 0 {
		return nil
	}
	own := slices.Concat(view.SelfPath().PodCIDRs, model.VirtualPrefixes(true), model.VirtualPrefixes(false))
	others := slices.DeleteFunc(slices.Clone(local), func(a netip.Addr) bool {
		return slices.Contains(self.Addrs, a) || slices.ContainsFunc(own, func(p netip.Prefix) bool { return p.Contains(a) })
	})
	has := "no other"
	if len(others) > 0 {
		has = fmt.Sprint(others[:min(few, len(others))])
	}
	if more := len(others) - few; more > 0 {
		has += fmt.Sprintf(" and %d more", more)
	}
	return fmt.Errorf(
		"node %s has the InternalIP %v in its Node object, and no link of this host has it; the host has %s: "+
			"traffic between this node and others stops until both agree: correct what announces the address (kubelet "+
			"--node-ip, or the cloud provider), or give it back to the host; the agent follows without a restart",
		self.Name, missing, has)
}

// outsidePods are the attached pods of which an address is outside of the pod CIDRs that the Node object has, in order.
func outsidePods(view *model.Snapshot) []string {
	cidrs := view.NewPodCIDRs
	if len(cidrs) == 0 {
		cidrs = view.SelfPath().PodCIDRs
	}
	if len(cidrs) == 0 {
		return nil
	}
	var pods []string
	for _, att := range view.Attachments {
		outside := func(ip netip.Addr) bool {
			return !slices.ContainsFunc(cidrs, func(p netip.Prefix) bool { return p.Contains(ip) })
		}
		if slices.ContainsFunc(att.IPs, outside) {
			pods = append(pods, att.Pod.String())
		}
	}
	slices.Sort(pods)
	return slices.Compact(pods)
}

// RejectedPodCIDRs says which pod CIDRs of a node are not used, and why; nil when all are.
func RejectedPodCIDRs(view *model.Snapshot, node string) error {
	if rejected := view.Paths[node].Rejected; len(rejected) > 0 {
		return fmt.Errorf("node %s: %s", node, strings.Join(rejected, "; "))
	}
	return nil
}

// isNamed says whether an object's namespace/name is meant by what a user wrote: all of it, or the name alone. Nothing
// means all.
func isNamed(id, wanted string) bool {
	return wanted == "" || id == wanted || strings.HasSuffix(id, "/"+wanted)
}
