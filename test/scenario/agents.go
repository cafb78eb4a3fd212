package scenario

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"sync/atomic"
	"time"

	"github.com/weft-cni/weft/pkg/capture"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/report"
	"github.com/weft-cni/weft/pkg/report/api"
	"github.com/weft-cni/weft/pkg/trace/walk"
	"github.com/weft-cni/weft/test/lab"
)

// Agent answers as the agent of a node of a cluster on paper, whose switch has the compiled flows. Its counters grow
// with every question about flows. Any goroutine may ask.
type Agent struct {
	// Change, if not nil, changes a status before it is given.
	Change func(*report.Status)

	node    walk.Node
	view    *model.Snapshot
	desired flows.Desired
	pods    []model.Pod
	asked   atomic.Uint64
}

// Agents are those of the nodes of manifests; there are this many nodes where the manifests have none.
func Agents(manifests string, nodes int) ([]*Agent, error) {
	n := newNetwork(lab.IPv4, false, nodes)
	objects := documents{}
	if err := objects.add(manifests); err != nil {
		return nil, err
	}
	if err := n.apply(objects); err != nil {
		return nil, err
	}
	var list []*Agent
	for i, here := range n.nodes {
		a := &Agent{node: n.walked[i], view: here.snapshot, desired: here.compiler.Desired()}
		for _, p := range n.pods {
			if p.node == here {
				a.pods = append(a.pods, model.Pod{HostNetwork: p.onHost, PodRef: model.PodRef{
					Namespace: p.object.Namespace, Name: p.object.Name, UID: string(p.object.UID)}})
			}
		}
		list = append(list, a)
	}
	return list, nil
}

// Name is the node's.
func (a *Agent) Name() string { return a.node.Name }

// contents are the flows and groups, with what they have counted.
func (a *Agent) contents() openflow.Contents {
	const some = 97
	asked := a.asked.Add(1)
	var c openflow.Contents
	for key, f := range a.desired.Flows {
		h := fnv.New32()
		fmt.Fprint(h, key)
		e := openflow.Entry{Flow: f.Flow}
		if n := uint64(h.Sum32() % some); n%3 != 0 && f.Reason == "" {
			e.Packets, e.Bytes = n*asked, n*asked*some
		}
		c.Flows = append(c.Flows, e)
	}
	for _, g := range a.desired.Groups {
		c.Groups = append(c.Groups, g.Group)
	}
	slices.SortFunc(c.Groups, func(a, b openflow.Group) int { return int(a.ID) - int(b.ID) })
	return c
}

// Status implements api.Source.
func (a *Agent) Status(context.Context) report.Status {
	probes := map[string]report.Probe{}
	for name := range a.view.Nodes {
		probes[name] = report.Probe{RTT: time.Duration(400+100*len(name)) * time.Microsecond}
	}
	s := report.NewStatus(report.StatusInput{
		Node: a.node.Name, Version: "v0.2.0", Commit: "unknown", Ready: true, Datapath: "netdev", MTU: 1450,
		Underlay: "eth0", View: a.view, Pods: a.pods, Probes: probes,
		Programming: report.Programming{Progress: report.Progress{Programmed: 1, Desired: 1, Flows: len(a.desired.Flows),
			Groups: len(a.desired.Groups), Bundles: 1}},
		Counts: report.Counts{Drops: map[flows.Reason]openflow.Stats{flows.PolicyIngress: {Packets: 12, Bytes: 888}}},
	})
	if a.Change != nil {
		a.Change(&s)
	}
	return s
}

// Flows implements api.Source.
func (a *Agent) Flows(_ context.Context, object string) ([]report.Flow, error) {
	return report.Flows(a.contents(), a.desired, a.view, object), nil
}

// Services implements api.Source.
func (a *Agent) Services(_ context.Context, object string) ([]report.Service, error) {
	return report.Services(a.view, report.Programming{}, nil, a.contents().Flows, object), nil
}

// Policies implements api.Source.
func (a *Agent) Policies(_ context.Context, object string) ([]report.Policy, error) {
	return report.Policies(a.view, report.Programming{}, report.Counts{}, object), nil
}

// Trace implements api.Source.
func (a *Agent) Trace(context.Context) (walk.Node, error) { return a.node, nil }

// Plan implements api.Source. The cluster has no API server whose objects could be compiled again.
func (a *Agent) Plan(context.Context, api.PlanRequest) (report.Plan, error) {
	return report.Plan{}, errors.New("the interpreter has no API server; use a lab")
}

// Capture implements api.Source. There is nothing to listen to: packets are interpreted here.
func (a *Agent) Capture(context.Context, capture.Request, capture.Sink) error {
	return errors.New("the interpreter has no ports to capture at; use a lab")
}

// Send implements api.Source.
func (a *Agent) Send(context.Context, api.SendRequest) error {
	return errors.New("the interpreter sends no packets; use a lab")
}

// Live implements api.Source.
func (a *Agent) Live() error { return nil }

// Ready implements api.Source.
func (a *Agent) Ready() error { return nil }

var _ api.Source = (*Agent)(nil)
