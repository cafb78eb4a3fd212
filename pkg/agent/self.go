package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/weft-cni/weft/pkg/kube"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/report"
)

const (
	// nodeProblem is the part that this node's own object is at fault for.
	nodeProblem = "node object"
	// conditionPause is the least time between two patches of the node's condition, which another controller may contest.
	conditionPause = 5 * time.Second
)

// selfKnown waits, by failing, until the API server says what this node is.
func (a *Agent) selfKnown(context.Context) error {
	view := a.loop.View()
	self := view.Self
	switch {
	case len(self.Addrs) == 0:
		return fmt.Errorf("node %s has no InternalIP yet; the kubelet or the cloud controller sets it", self.Name)
	case len(self.PodCIDRs) == 0:
		return fmt.Errorf("node %s has no podCIDRs yet; kube-controller-manager sets them with --allocate-node-cidrs",
			self.Name)
	case len(view.SelfPath().PodCIDRs) == 0:
		return report.RejectedPodCIDRs(view, self.Name)
	}
	return nil
}

// checkSelf names what is wrong with this node's object in a view. It is called for each.
func (a *Agent) checkSelf(view *model.Snapshot) {
	if a.isReady() { // before, selfKnown says what is missing
		a.setProblem(nodeProblem, report.SelfProblem(view))
	}
}

// setUnavailable takes note of whether this node's condition NetworkUnavailable has to be set.
func (a *Agent) setUnavailable(unavailable bool) {
	a.unavailable.Store(unavailable)
	if unavailable {
		a.wake(conditionWrong)
	}
}

// syncCondition tells the scheduler that pods may be placed here, whenever the Node object does not say so: it may have
// been recreated, or another controller may have changed it.
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
