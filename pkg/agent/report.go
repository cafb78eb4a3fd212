package agent

import (
	"context"
	"errors"
	"maps"

	"github.com/weft-cni/weft/pkg/kube"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/programmer"
	"github.com/weft-cni/weft/pkg/report"
	"github.com/weft-cni/weft/pkg/trace/walk"
)

// reporter gathers what reports are made of (api.Source). Any goroutine may use it.
type reporter struct{ a *Agent }

// errNotProgrammed is the answer about the switch before the agent has written it.
var errNotProgrammed = errors.New("the agent has not programmed the switch yet; see weftctl status")

// Status implements api.Source.
func (r reporter) Status(ctx context.Context) report.Status {
	in, loop, watcher := r.a.published()
	if watcher != nil {
		in.API, in.NoClusterPolicies = feeds(watcher.Feeds()), watcher.ClusterPoliciesAbsent()
	}
	if loop == nil {
		return report.NewStatus(in)
	}
	in.View, in.Programming = loop.View(), loop.Status()
	in.Objects, in.Pods = r.a.objectProblems(), watcher.Pods()
	in.Probes = r.a.probes()
	if in.Ready {
		in.Counts, in.CountsErr = r.a.count(ctx)
	}
	return report.NewStatus(in)
}

// Live implements api.Source.
func (r reporter) Live() error { return failure(r.a.dead()) }

// Ready implements api.Source.
func (r reporter) Ready() error { return failure(r.a.unready()) }

// failure is an error with this text, or nil for none.
func failure(why string) error {
	if why == "" {
		return nil
	}
	return errors.New(why)
}

// published copies what the Agent's mutex guards.
func (a *Agent) published() (report.StatusInput, *programmer.Loop, *kube.Watcher) {
	a.mu.Lock()
	defer a.mu.Unlock()
	in := report.StatusInput{
		Node: a.opt.Node, Version: a.opt.Version.Version, Commit: a.opt.Version.Commit,
		Ready: a.ready, NotReady: a.notReadyLocked(), Degraded: a.degradedLocked(),
		Transport: a.cfg.PeerTransport(), Datapath: string(a.cfg.Datapath), MTU: a.mtu, Underlay: a.underlay,
		FromCopy: a.copyTime, Problems: maps.Clone(a.problems),
	}
	for _, c := range a.pending {
		in.Restart = append(in.Restart, report.Change{Key: c.Key, Old: c.Old, New: c.New})
	}
	return in, a.loop, a.kube
}

func feeds(list []kube.FeedStatus) []report.Feed {
	feeds := make([]report.Feed, 0, len(list))
	for _, f := range list {
		r := report.Feed{Resource: f.Resource, AgeSeconds: f.Waiting.Seconds()}
		if f.Err != nil {
			r.Error = f.Err.Error()
		}
		feeds = append(feeds, r)
	}
	return feeds
}

// Flows implements api.Source.
func (r reporter) Flows(ctx context.Context, object string) ([]report.Flow, error) {
	if !r.a.isReady() {
		return nil, errNotProgrammed
	}
	actual, err := r.a.sw.Dump(ctx)
	if err != nil {
		return nil, err
	}
	desired, err := r.a.loop.Desired(ctx)
	if err != nil {
		return nil, err
	}
	return report.Flows(actual, desired, r.a.loop.View(), object), nil
}

// Services implements api.Source.
func (r reporter) Services(ctx context.Context, object string) ([]report.Service, error) {
	if !r.a.isReady() {
		return nil, errNotProgrammed
	}
	actual, err := r.a.sw.Dump(ctx)
	if err != nil {
		return nil, err
	}
	return report.Services(r.a.loop.View(), r.a.loop.Status(), r.a.objectProblems(), actual.Flows, object), nil
}

// Policies implements api.Source.
func (r reporter) Policies(ctx context.Context, object string) ([]report.Policy, error) {
	if !r.a.isReady() {
		return nil, errNotProgrammed
	}
	counts, err := r.a.count(ctx)
	if err != nil {
		return nil, err
	}
	return report.Policies(r.a.loop.View(), r.a.loop.Status(), counts, object), nil
}

// Trace implements api.Source.
func (r reporter) Trace(ctx context.Context) (walk.Node, error) {
	if !r.a.isReady() {
		return walk.Node{}, errNotProgrammed
	}
	actual, err := r.a.sw.Dump(ctx)
	if err != nil {
		return walk.Node{}, err
	}
	desired, err := r.a.loop.Desired(ctx)
	if err != nil {
		return walk.Node{}, err
	}
	node, err := walk.NodeOf(r.a.loop.View(), walk.FlowsIn(actual, desired), actual.Groups)
	if err != nil {
		return walk.Node{}, err
	}
	for _, p := range r.a.watcher().Pods() {
		if p.HostNetwork && !p.Done() {
			node.Pods = append(node.Pods, walk.Pod{Name: p.String(), IPs: node.Addrs, HostNetwork: true})
		}
	}
	node.Policies = &walk.Policies{Cluster: r.a.watcher().PolicyObjects(), Problems: r.a.loop.Status().PolicyProblems()}
	return node, nil
}

// isReady says whether the switch was programmed once.
func (a *Agent) isReady() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ready
}

// objectProblems are what the informers have told, and the addresses that Services do not get.
func (a *Agent) objectProblems() map[model.Owner]string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return report.MergeProblems(a.objects, a.lost)
}
