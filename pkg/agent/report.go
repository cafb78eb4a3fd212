package agent

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// Report is what `weftctl status` shows of one node.
type Report struct {
	Node    string `json:"node"`
	Version string `json:"version"`
	Ready   bool   `json:"ready"`
	// NotReady says what the agent waits for before it takes pods.
	NotReady string           `json:"notReady,omitempty"`
	Tunnel   model.TunnelType `json:"tunnelType"`
	Datapath config.Datapath  `json:"datapath"`
	MTU      int              `json:"mtu"`
	Underlay string           `json:"underlay"`
	Addrs    []netip.Addr     `json:"addresses"`
	PodCIDRs []netip.Prefix   `json:"podCIDRs"`
	Flows    SwitchReport     `json:"flows"`
	Objects  ObjectCounts     `json:"objects"`
	// FromCopy is when the copy was made that the agent works from; absent when it works from the API server.
	FromCopy *time.Time `json:"fromCopy,omitempty"`
	// API says how current the API server's objects are, by resource.
	API []FeedReport `json:"api,omitempty"`
	// Problems are what is wrong now, in the form "part: what".
	Problems []string       `json:"problems,omitempty"`
	Nodes    []NodeReport   `json:"nodes"`
	Pods     []PodReport    `json:"pods"`
	Drops    []DropReport   `json:"drops"`
	Restart  []ChangeReport `json:"needsRestart,omitempty"`
}

// SwitchReport is how far the switch has what it shall have.
type SwitchReport struct {
	Status
	// Quarantined and Conflicts are the Status' own, with owners as users write them.
	Quarantined map[string]string `json:"quarantined,omitempty"`
	Conflicts   []string          `json:"conflicts,omitempty"`
}

// NodeReport is another node as this one sees it.
type NodeReport struct {
	Name     string         `json:"name"`
	Tunnel   netip.Addr     `json:"tunnelAddress"`
	PodCIDRs []netip.Prefix `json:"podCIDRs"`
	// Unreachable says why there is no way to its pods; empty when there is one.
	Unreachable string `json:"unreachable,omitempty"`
	// Rejected says which of its pod CIDRs are not used, and why.
	Rejected []string `json:"rejected,omitempty"`
}

// PodReport is a pod of this node.
type PodReport struct {
	Pod    string       `json:"pod"`
	IPs    []netip.Addr `json:"ips"`
	Port   string       `json:"port"`
	OFPort uint32       `json:"ofPort"`
	// Problem says what is wrong with the pod's connection; empty when nothing is.
	Problem string `json:"problem,omitempty"`
}

// DropReport counts the packets that were dropped for one reason.
type DropReport struct {
	Reason flows.Reason `json:"reason"`
	openflow.Stats
}

// ChangeReport is a setting that waits for a restart of the agent.
type ChangeReport struct {
	Key string `json:"key"`
	Old string `json:"running"`
	New string `json:"configured"`
}

// report says how this node is. It works at any moment; what is not known yet is left out.
func (a *Agent) report(ctx context.Context) Report {
	a.mu.Lock()
	r := Report{
		Node: a.opt.Node, Version: a.opt.Version, Ready: a.ready, NotReady: a.notReadyLocked(),
		Tunnel: a.cfg.TunnelType, Datapath: a.cfg.Datapath, MTU: a.mtu, Underlay: a.underlay,
	}
	if from := a.copyTime; !from.IsZero() {
		r.FromCopy = &from
	}
	if why := a.degradedLocked(); why != "" {
		r.Problems = append(r.Problems, why)
	}
	for _, part := range slices.Sorted(maps.Keys(a.problems)) {
		r.Problems = append(r.Problems, part+": "+a.problems[part])
	}
	for _, c := range a.pending {
		r.Restart = append(r.Restart, ChangeReport{c.Key, c.Old, c.New})
	}
	loop, watcher := a.loop, a.kube
	a.mu.Unlock()
	if watcher != nil {
		r.API = feedReports(watcher.Feeds())
	}
	if loop == nil {
		return r
	}
	view := loop.View()
	r.Tunnel, r.Addrs, r.PodCIDRs, r.Flows = view.Tunnel, view.Self.Addrs, view.Self.PodCIDRs, switchReport(loop.Status())
	if n := r.Flows.ForeignFlows; n > 0 {
		r.Problems = append(r.Problems, fmt.Sprintf("foreign flows: %d on bridge %s are not Weft's and may outrank its own; remove them "+
			"(ovs-ofctl --strict del-flows): %s", n, model.BridgeName, strings.Join(r.Flows.Foreign, "; ")))
	}
	problems := a.objectProblems()
	r.Objects = objectCounts(view, r.Flows.Status, problems)
	for _, o := range slices.SortedFunc(maps.Keys(problems), model.Owner.Compare) {
		r.Problems = append(r.Problems, o.String()+": "+problems[o])
	}
	if outside := view.OutsideClaims; outside.Pods > 0 {
		r.Problems = append(r.Problems, fmt.Sprintf("policies: %d pods have addresses in their status that are outside "+
			"the pod CIDRs of their nodes; policies ignore these (%s)", outside.Pods, outside.Example))
	}
	r.Nodes = nodeReports(view)
	r.Pods = podReports(view, a.kube.Pods(), loop.Refused)
	if !r.Ready {
		return r
	}
	if now, err := a.count(ctx); err != nil {
		r.Problems = append(r.Problems, "switch: "+err.Error())
	} else {
		r.Drops = dropReports(now)
	}
	return r
}

func switchReport(s Status) SwitchReport {
	r := SwitchReport{Status: s, Quarantined: make(map[string]string, len(s.Quarantined))}
	for _, o := range slices.SortedFunc(maps.Keys(s.Quarantined), model.Owner.Compare) { // of a pod's interfaces the last stands for all
		r.Quarantined[o.String()] = s.Quarantined[o]
	}
	for _, c := range s.Conflicts {
		r.Conflicts = append(r.Conflicts, describeConflict(c))
	}
	return r
}

// describeConflict names a few of the owners: thousands of policies may name one peer.
func describeConflict(c flows.Conflict) string {
	const few = 10
	list := func(owners []model.Owner) string {
		if more := len(owners) - few; more > 0 {
			return fmt.Sprintf("%v and %d more", owners[:few], more)
		}
		return fmt.Sprint(owners)
	}
	return fmt.Sprintf("%s is claimed by %s; left out are flows of %s", c.Key, list(c.Owners), list(c.Losers))
}

func nodeReports(view *model.Snapshot) []NodeReport {
	reports := []NodeReport{}
	for _, name := range slices.Sorted(maps.Keys(view.Nodes)) {
		n := view.Nodes[name]
		r := NodeReport{Name: name, Tunnel: n.TunnelAddr(), PodCIDRs: n.PodCIDRs}
		path := view.Paths[name]
		r.Unreachable, r.Rejected = path.Unreachable, path.Rejected
		if path.Reachable() {
			r.Tunnel = path.Remote
		}
		reports = append(reports, r)
	}
	return reports
}

// podReports sets what the switch has beside what the API server has.
func podReports(view *model.Snapshot, known []model.Pod, refused func(model.Attachment) error) []PodReport {
	byRef := map[string]model.Pod{}
	for _, p := range known {
		byRef[p.String()] = p
	}
	reports := []PodReport{}
	attached := map[string]bool{}
	for _, att := range view.Attachments {
		ref := att.Pod.String()
		attached[ref] = true
		r := PodReport{Pod: ref, IPs: att.IPs, Port: att.HostIfName, OFPort: att.OFPort}
		if err := refused(att); err != nil {
			r.Problem = err.Error()
		}
		if p, ok := byRef[ref]; r.Problem == "" && (!ok || att.Pod.UID != "" && p.UID != att.Pod.UID) {
			r.Problem = "the API server does not know this pod; the container runtime has not deleted its sandbox yet"
		}
		if r.Problem == "" && view.Unknown[att.Key()] {
			r.Problem = "closed until all policies of its namespace are known"
		}
		reports = append(reports, r)
	}
	for ref, p := range byRef {
		if !p.HostNetwork && !p.Done() && !attached[ref] {
			reports = append(reports, PodReport{Pod: ref, Problem: "not attached: the container runtime has not called weft-cni, or it failed (kubectl describe pod)"})
		}
	}
	slices.SortFunc(reports, func(x, y PodReport) int { return cmp.Or(cmp.Compare(x.Pod, y.Pod), cmp.Compare(x.Port, y.Port)) })
	return reports
}

func dropReports(now counts) []DropReport {
	drops := []DropReport{}
	for _, reason := range slices.Sorted(maps.Keys(now.drops)) {
		drops = append(drops, DropReport{reason, now.drops[reason]})
	}
	return drops
}
