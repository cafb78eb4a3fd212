package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

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
	// Groups are those that the flow leads to, and those that these lead to.
	Groups []GroupReport `json:"groups,omitempty"`
}

// flowReports reads the switch and says of every flow what it is there for; with an object's name, of the flows that concern it.
func (a *Agent) flowReports(ctx context.Context, object string) ([]FlowReport, error) {
	actual, err := a.sw.Dump(ctx)
	if err != nil {
		return nil, err
	}
	desired, err := a.loop.Desired(ctx)
	if err != nil {
		return nil, err
	}
	return flowReports(actual, desired, a.loop.View(), object), nil
}

func flowReports(actual openflow.Contents, desired flows.Desired, view *model.Snapshot, object string) []FlowReport {
	ports, wanted := portNames(view), wantedBy(view, object)
	owners := map[uint64]model.Owner{}
	for _, f := range desired.Flows {
		owners[f.Cookie] = f.Owner
	}
	groups, sticky := groupReports(actual.Groups), stickyEndpoints(actual.Flows)
	slices.SortStableFunc(actual.Flows, func(x, y openflow.Entry) int { return x.Compare(y.Key) })
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
		want, ok := desired.Flows[e.Key]
		ok = ok && want.Flow == e.Flow
		if ok {
			r.Reason = want.Reason
		}
		if object == "" || concerns(r.Owner, object) || ok && wanted[e.Key] {
			r.Groups = groupsBehind(e, groups, sticky)
			reports = append(reports, r)
		}
	}
	return reports
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
		} else if number, ok := flows.OutPort.SetBy(part); ok && ports[fmt.Sprint(number)] != "" {
			parts[i] = "set_field:" + ports[fmt.Sprint(number)] + "->" + flows.OutPort.String()
		}
	}
	return strings.Join(parts, ",")
}

// concerns says whether an owner, as it is shown, is meant by what a user wrote: an owner as it is shown (pod/NAMESPACE/NAME, service/…,
// policy/…, node/NAME, self, pipeline, foreign), NAMESPACE/NAME or NAME of a pod, a Service or a policy, or a node's NAME.
func concerns(owner, object string) bool {
	kind, name, _ := strings.Cut(owner, "/")
	switch kind {
	case model.KindPod.String(), model.KindService.String(), model.KindPolicy.String():
		return owner == object || isNamed(name, object)
	}
	return owner == object || name == object
}

// wantedBy are the flows that objects want that have such a name. The switch holds a flow that several policies want once, with the
// cookie of the first.
func wantedBy(view *model.Snapshot, object string) map[openflow.Key]bool {
	wanted := map[openflow.Key]bool{}
	if object == "" {
		return wanted
	}
	for _, o := range flows.Owners(view) {
		if concerns(o.String(), object) {
			for _, key := range flows.KeysOf(view, o) {
				wanted[key] = true
			}
		}
	}
	return wanted
}

// GroupReport is a group of the switch: what chooses among a Service's endpoints.
type GroupReport struct {
	ID openflow.GroupID `json:"id"`
	// By says how it chooses, in the words of ovs-ofctl(8).
	By      string         `json:"by"`
	Buckets []BucketReport `json:"buckets"`
}

// BucketReport is one of a group's choices.
type BucketReport struct {
	ID     uint32 `json:"id"`
	Weight uint16 `json:"weight"`
	// To is the endpoint, or "group N" where the choice is made in two steps.
	To string `json:"to"`
	// Next are the groups that it leads to.
	Next []openflow.GroupID `json:"-"`
	// Remembered says that the switch remembers the choice for the client.
	Remembered bool `json:"remembered,omitempty"`
}

// groupReports says what each group does.
func groupReports(groups []openflow.Group) map[openflow.GroupID]GroupReport {
	reports := make(map[openflow.GroupID]GroupReport, len(groups))
	for _, g := range groups {
		r := GroupReport{ID: g.ID, By: g.Selection(), Buckets: []BucketReport{}}
		for _, b := range g.Buckets() {
			bucket := BucketReport{ID: b.ID, Weight: b.Weight, To: b.Actions}
			for _, action := range openflow.SplitActions(b.Actions) {
				if to, ok := openflow.TranslatesTo(action); ok {
					bucket.To = to
				}
			}
			if bucket.Next = openflow.GroupsIn(b.Actions); len(bucket.Next) > 0 {
				bucket.To = fmt.Sprintf("group %d", bucket.Next[0])
			}
			r.Buckets = append(r.Buckets, bucket)
		}
		reports[g.ID] = r
	}
	return reports
}

// choice is a bucket that was chosen among an owner's endpoints.
type choice struct {
	cookie uint64
	bucket uint32
}

// stickyEndpoints says which endpoint a choice is, for Services with affinity: their buckets lead to a table that knows it.
func stickyEndpoints(actual []openflow.Entry) map[choice]string {
	endpoints := map[choice]string{}
	for _, e := range actual {
		if e.Table != flows.StickyEndpoint {
			continue
		}
		bucket, ok := flows.Bucket.In(e.Match)
		if !ok {
			continue
		}
		for _, action := range openflow.SplitActions(e.Actions) {
			if to, ok := openflow.TranslatesTo(action); ok {
				endpoints[choice{e.Cookie, bucket}] = to
			}
		}
	}
	return endpoints
}

// groupsBehind lists the groups that a flow leads to, and those that these lead to: Services have two steps at most.
func groupsBehind(e openflow.Entry, groups map[openflow.GroupID]GroupReport, sticky map[choice]string) []GroupReport {
	var list []GroupReport
	add := func(id openflow.GroupID) {
		g, ok := groups[id]
		if !ok {
			return
		}
		g.Buckets = slices.Clone(g.Buckets)
		for i, b := range g.Buckets {
			if to, ok := sticky[choice{e.Cookie, b.ID}]; ok {
				g.Buckets[i].To, g.Buckets[i].Remembered = to, true
			}
		}
		list = append(list, g)
	}
	for _, id := range openflow.GroupsIn(e.Actions) {
		add(id)
		for _, b := range groups[id].Buckets {
			for _, next := range b.Next {
				add(next)
			}
		}
	}
	return list
}
