package report

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// Flow is a flow of the switch, with the object that it exists for.
type Flow struct {
	// Table is the table's name, TableID its number.
	Table    string `json:"table"`
	TableID  uint8  `json:"tableID"`
	Priority uint16 `json:"priority"`
	// Match and Actions are as ovs-ofctl(8) writes them, with the names of ports and tables. An empty Match is every
	// packet.
	Match   string `json:"match"`
	Actions string `json:"actions"`
	// Cookie is hexadecimal, with 0x in front.
	Cookie string `json:"cookie"`
	// Owner is the object that the flow exists for as users write it, KIND/(gone) when the agent has no such object
	// any more, or "foreign" when Weft did not make the flow.
	Owner string `json:"owner"`
	// Reason says why the flow drops packets; absent when it does not, or is not as Weft wants it.
	Reason flows.Reason `json:"reason,omitempty"`
	// Stats are the packets and bytes since the flow was added.
	openflow.Stats
	// Groups are those that the flow leads to, and those that these lead to.
	Groups []Group `json:"groups,omitempty"`
}

// Group is a group of the switch: it selects among a Service's endpoints.
type Group struct {
	ID openflow.GroupID `json:"id"`
	// By says how it selects, in the words of ovs-ofctl(8).
	By      string   `json:"by"`
	Buckets []Bucket `json:"buckets"`
}

// Bucket is one of a group's choices.
type Bucket struct {
	ID uint32 `json:"id"`
	// Weight is this bucket's share, relative to the others of the group.
	Weight uint16 `json:"weight"`
	// To is the endpoint, or "group N" where the choice is made in two steps.
	To string `json:"to"`
	// Remembered says that the switch remembers the choice for the client.
	Remembered bool `json:"remembered,omitempty"`
}

// Flows makes the list of the switch's flows in the order a packet meets them; with an object's name, of those that
// exist because of it. See concerns for names. It does not change its arguments.
func Flows(actual openflow.Contents, desired flows.Desired, view *model.Snapshot, object string) []Flow {
	names, wanted := shownNames(view), wantedBy(view, object)
	owners := map[uint64]model.Owner{}
	for _, f := range desired.Flows {
		owners[f.Cookie] = f.Owner
	}
	groups, sticky := describeGroups(actual.Groups), stickyEndpoints(actual.Flows)
	inOrder := func(x, y openflow.Entry) int { return x.Compare(y.Key) }
	entries := slices.SortedStableFunc(slices.Values(actual.Flows), inOrder)
	list := make([]Flow, 0, len(entries))
	for _, e := range entries {
		r := Flow{
			Table: flows.TableName(e.Table), TableID: uint8(e.Table), Priority: e.Priority,
			Match: names.Match(e.Match), Actions: names.Actions(e.Actions),
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
			list = append(list, r)
		}
	}
	return list
}

// shownNames are the names of ports and tables.
func shownNames(view *model.Snapshot) openflow.Names {
	ports := map[uint32]string{model.PortGateway: model.GatewayName}
	for _, e := range model.Encapsulations {
		ports[e.Port()] = e.PortName()
	}
	for _, att := range view.Attachments {
		ports[att.OFPort] = att.HostIfName
	}
	return openflow.Names{Table: flows.TableName, Ports: ports, PortRegister: flows.OutPort}
}

// concerns says whether an owner, as it is shown, is meant by what a user wrote: an owner as it is shown
// (pod/NAMESPACE/NAME, service/…, policy/…, node/NAME, self, pipeline, foreign), NAMESPACE/NAME or NAME of a pod, a
// Service or a policy, or a node's NAME.
func concerns(owner, object string) bool {
	_, name, _ := strings.Cut(owner, "/")
	return owner == object || isNamed(name, object)
}

// wantedBy are the flows that objects of such a name want. The switch holds a flow that several policies want once,
// with the cookie of the first.
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

// linkedGroup is a group with the groups that its buckets lead to.
type linkedGroup struct {
	Group
	next []openflow.GroupID
}

func describeGroups(groups []openflow.Group) map[openflow.GroupID]linkedGroup {
	described := make(map[openflow.GroupID]linkedGroup, len(groups))
	for _, g := range groups {
		r := linkedGroup{Group: Group{ID: g.ID, By: g.Selection(), Buckets: []Bucket{}}}
		for _, b := range g.Buckets() {
			bucket := Bucket{ID: b.ID, Weight: b.Weight, To: b.Actions.String()}
			if to, ok := b.Actions.Translation(); ok {
				bucket.To = endpointText(to)
			}
			if next := b.Actions.Groups(); len(next) > 0 {
				bucket.To = fmt.Sprintf("group %d", next[0])
				r.next = append(r.next, next...)
			}
			r.Buckets = append(r.Buckets, bucket)
		}
		described[g.ID] = r
	}
	return described
}

// choice is a bucket that was chosen among an owner's endpoints.
type choice struct {
	cookie uint64
	bucket uint32
}

// stickyEndpoints says which endpoint a choice is, for Services with affinity: their buckets lead to a table that
// translates to it.
func stickyEndpoints(actual []openflow.Entry) map[choice]string {
	endpoints := map[choice]string{}
	for _, e := range actual {
		if e.Table != flows.StickyEndpoint {
			continue
		}
		bucket, ok := flows.Bucket.In(e.Match)
		to, translates := e.Actions.Translation()
		if ok && translates {
			endpoints[choice{e.Cookie, bucket}] = endpointText(to)
		}
	}
	return endpoints
}

// endpointText is IP or IP:PORT: without a port, the port stays as it is.
func endpointText(to netip.AddrPort) string {
	if to.Port() == 0 {
		return to.Addr().String()
	}
	return to.String()
}

// groupsBehind lists the groups that a flow leads to, and those that these lead to: Services have two steps at most.
func groupsBehind(e openflow.Entry, groups map[openflow.GroupID]linkedGroup, sticky map[choice]string) []Group {
	var list []Group
	add := func(id openflow.GroupID) {
		described, ok := groups[id]
		if !ok {
			return
		}
		g := described.Group
		g.Buckets = slices.Clone(g.Buckets)
		for i, b := range g.Buckets {
			if to, ok := sticky[choice{e.Cookie, b.ID}]; ok {
				g.Buckets[i].To, g.Buckets[i].Remembered = to, true
			}
		}
		list = append(list, g)
	}
	for _, id := range e.Actions.Groups() {
		add(id)
		for _, next := range groups[id].next {
			add(next)
		}
	}
	return list
}
