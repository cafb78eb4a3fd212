package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weft-cni/weft/pkg/kube"
	"github.com/weft-cni/weft/pkg/model"
)

const (
	// nodeProblem is the part that this node's own object is at fault for.
	nodeProblem = "node object"
	// conditionPause is the least time between two patches of the node's condition, which another controller may contest.
	conditionPause = 5 * time.Second
)

// selfKnown waits, by failing, until the API server says what this node is.
func (a *Agent) selfKnown(context.Context) error {
	a.loop.Gather()
	view := a.loop.View()
	self := view.Self
	switch {
	case len(self.Addrs) == 0:
		return fmt.Errorf("node %s has no InternalIP yet; the kubelet or the cloud controller sets it", self.Name)
	case len(self.PodCIDRs) == 0:
		return fmt.Errorf("node %s has no podCIDRs yet; kube-controller-manager sets them with --allocate-node-cidrs",
			self.Name)
	case len(view.SelfPath().PodCIDRs) == 0:
		return rejectedPodCIDRs(view, self.Name)
	}
	return nil
}

// checkSelf names what is wrong with this node's object in a view. It is called for each.
func (a *Agent) checkSelf(view *model.Snapshot) {
	a.mu.Lock()
	ready := a.ready
	a.mu.Unlock()
	if ready { // before, selfKnown says what is missing
		a.setProblem(nodeProblem, selfProblem(view))
	}
}

// selfProblem says which values of this node's object are not in use, and which pods are in the way.
func selfProblem(view *model.Snapshot) error {
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
	slices.SortFunc(pods, cmp.Compare[string])
	return slices.Compact(pods)
}

// setUnavailable takes note of whether this node's condition NetworkUnavailable has to be set.
func (a *Agent) setUnavailable(unavailable bool) {
	a.unavailable.Store(unavailable)
	if unavailable {
		notify(a.pokeCondition)
	}
}

// syncCondition tells the scheduler that pods may be placed here, whenever the Node object does not say so: it may have
// been made again, or another controller may have changed it.
func (a *Agent) syncCondition(ctx context.Context) error {
	if !a.unavailable.Load() {
		return nil
	}
	if err := kube.SetNetworkAvailable(ctx, a.client, a.opt.Node); err != nil {
		return err
	}
	sleep(ctx, conditionPause)
	return nil
}
