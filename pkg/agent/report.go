package agent

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

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
	Flows    Status           `json:"flows"`
	// Problems are what is wrong now, in the form "part: what".
	Problems []string       `json:"problems,omitempty"`
	Nodes    []NodeReport   `json:"nodes"`
	Pods     []PodReport    `json:"pods"`
	Drops    []DropReport   `json:"drops"`
	Restart  []ChangeReport `json:"needsRestart,omitempty"`
}

// NodeReport is another node as this one sees it.
type NodeReport struct {
	Name     string         `json:"name"`
	Tunnel   netip.Addr     `json:"tunnelAddress"`
	PodCIDRs []netip.Prefix `json:"podCIDRs"`
	// Unreachable says why there is no way to its pods; empty when there is one.
	Unreachable string `json:"unreachable,omitempty"`
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

// FlowReport is one flow of the switch with what it is there for.
type FlowReport struct {
	Table    string `json:"table"`
	TableID  uint8  `json:"tableID"`
	Priority uint16 `json:"priority"`
	Match    string `json:"match"`
	Actions  string `json:"actions"`
	Cookie   string `json:"cookie"`
	// Owner is the object that the flow exists for, or "foreign" when Weft did not make it.
	Owner  string       `json:"owner"`
	Reason flows.Reason `json:"reason,omitempty"`
	openflow.Stats
}

// report says how this node is. It works at any moment; what is not known yet is left out.
func (a *Agent) report(ctx context.Context) Report {
	a.mu.Lock()
	r := Report{
		Node: a.opt.Node, Version: a.opt.Version, Ready: a.ready, NotReady: a.notReadyLocked(),
		Tunnel: a.cfg.TunnelType, Datapath: a.cfg.Datapath, MTU: a.mtu, Underlay: a.underlay,
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
	loop := a.loop
	a.mu.Unlock()
	if loop == nil {
		return r
	}
	view := loop.View()
	r.Tunnel, r.Addrs, r.PodCIDRs, r.Flows = view.Tunnel, view.Self.Addrs, view.Self.PodCIDRs, loop.Status()
	r.Nodes = nodeReports(view)
	r.Pods = podReports(view, a.kube.Pods(), loop.Refused)
	if !r.Ready {
		return r
	}
	if all, err := a.flowReports(ctx); err != nil {
		r.Problems = append(r.Problems, "switch: "+err.Error())
	} else {
		r.Drops = dropReports(all)
	}
	return r
}

func nodeReports(view *model.Snapshot) []NodeReport {
	reports := []NodeReport{}
	for _, name := range slices.Sorted(maps.Keys(view.Nodes)) {
		n := view.Nodes[name]
		r := NodeReport{Name: name, Tunnel: n.TunnelAddr(), PodCIDRs: n.PodCIDRs}
		if err := flows.Reachable(n, view.Self); err != nil {
			r.Unreachable = err.Error()
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

func dropReports(all []FlowReport) []DropReport {
	sum := map[flows.Reason]openflow.Stats{}
	for _, f := range all {
		if f.Reason != "" {
			s := sum[f.Reason]
			s.Packets += f.Packets
			s.Bytes += f.Bytes
			sum[f.Reason] = s
		}
	}
	drops := []DropReport{}
	for _, reason := range slices.Sorted(maps.Keys(sum)) {
		drops = append(drops, DropReport{reason, sum[reason]})
	}
	return drops
}

// flowReports reads the switch and says of every flow what it is there for.
func (a *Agent) flowReports(ctx context.Context) ([]FlowReport, error) {
	actual, err := a.sw.Dump(ctx)
	if err != nil {
		return nil, err
	}
	desired, err := a.loop.Desired(ctx)
	if err != nil {
		return nil, err
	}
	owners := map[uint64]model.Owner{}
	for _, f := range desired.Flows {
		owners[f.Cookie] = f.Owner
	}
	ports := portNames(a.loop.View())
	slices.SortFunc(actual.Flows, func(x, y openflow.Entry) int { return x.Compare(y.Key) })
	reports := make([]FlowReport, 0, len(actual.Flows))
	for _, e := range actual.Flows {
		r := FlowReport{
			Table: flows.TableName(e.Table), TableID: uint8(e.Table), Priority: e.Priority,
			Match: named(e.Match, ports), Actions: named(e.Actions, ports),
			Cookie: fmt.Sprintf("%#x", e.Cookie), Owner: "foreign", Stats: e.Stats,
		}
		if flows.Ours(e.Cookie) {
			r.Owner = flows.KindOf(e.Cookie).String() + "/(gone)"
			if o, ok := owners[e.Cookie]; ok {
				r.Owner = o.String()
			}
		}
		if want, ok := desired.Flows[e.Key]; ok && want.Flow == e.Flow {
			r.Reason = want.Reason
		}
		reports = append(reports, r)
	}
	return reports, nil
}

func portNames(view *model.Snapshot) map[string]string {
	names := map[string]string{
		fmt.Sprint(model.PortGeneve): model.GenevePortName, fmt.Sprint(model.PortVXLAN): model.VXLANPortName, fmt.Sprint(model.PortGateway): model.GatewayName,
	}
	for _, att := range view.Attachments {
		names[fmt.Sprint(att.OFPort)] = att.HostIfName
	}
	return names
}

// named shows numbers as the names that ovs-ofctl --names would show: ports, and tables after goto_table.
func named(text string, ports map[string]string) string {
	parts := openflow.SplitActions(text)
	for i, part := range parts {
		if number, ok := strings.CutPrefix(part, "in_port="); ok && ports[number] != "" {
			parts[i] = "in_port=" + ports[number]
		} else if table, ok := openflow.GotoTable(part); ok {
			parts[i] = "goto_table:" + flows.TableName(table)
		} else if hex, ok := strings.CutSuffix(part, "->"+flows.OutPort.String()); ok {
			var number uint32
			if _, err := fmt.Sscanf(hex, "set_field:%v", &number); err == nil && ports[fmt.Sprint(number)] != "" {
				parts[i] = "set_field:" + ports[fmt.Sprint(number)] + "->" + flows.OutPort.String()
			}
		}
	}
	return strings.Join(parts, ",")
}

// concern leaves the flows that exist because of an object: an owner as it is shown (pod/NAMESPACE/NAME, node/NAME,
// self, pipeline, foreign), a pod's NAMESPACE/NAME or NAME, or a node's NAME.
func concern(all []FlowReport, object string) []FlowReport {
	match := func(owner string) bool {
		kind, name, _ := strings.Cut(owner, "/")
		return owner == object || name == object || kind == "pod" && strings.HasSuffix(name, "/"+object)
	}
	return slices.DeleteFunc(all, func(f FlowReport) bool { return !match(f.Owner) })
}
