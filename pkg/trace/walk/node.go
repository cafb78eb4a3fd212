// Package walk follows packets of connections through a cluster: the switches of its nodes, which pkg/trace interprets,
// and a model of what the nodes' kernels do between them, as pkg/host programs them. It says where a connection ends,
// what decided, and whether its reply comes back. Agents answer with a Node; weftctl trace and the scenario tests walk
// with the same code.
//
// A Cluster is immutable, so any number of goroutines may walk in it. There is no other state.
package walk

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/pkg/trace"
)

// Node is what following packets needs to know of a node. It is the JSON that agents answer with.
type Node struct {
	Name string `json:"name"`
	// Addrs are the InternalIPs, the primary one first; Locals all addresses of the node's kernel; Gateways those of the
	// gateway port.
	Addrs    []netip.Addr `json:"addresses"`
	Locals   []netip.Addr `json:"localAddresses"`
	Gateways []netip.Addr `json:"gateways"`
	// PodCIDRs are the node's own, ClusterPods those of all nodes that it knows a path to, ServiceCIDRs the ranges of
	// ClusterIPs: to the last two, except for Direct, IPIP and Encrypted, the kernel has routes to the switch.
	PodCIDRs     []netip.Prefix `json:"podCIDRs"`
	ClusterPods  []netip.Prefix `json:"clusterPodCIDRs"`
	ServiceCIDRs []netip.Prefix `json:"serviceCIDRs"`
	// Direct, IPIP and Encrypted are the pod CIDRs of peer nodes that the kernel does not lead to the switch, but to the
	// uplink, to a device of IPIP, or to WireGuard.
	Direct    []netip.Prefix `json:"directPodCIDRs,omitempty"`
	IPIP      []netip.Prefix `json:"ipipPodCIDRs,omitempty"`
	Encrypted []netip.Prefix `json:"encryptedPodCIDRs,omitempty"`
	// Kernel says that the datapath is the kernel's, whose connection tracking differs a little.
	Kernel    bool       `json:"kernelDatapath"`
	Pods      []Pod      `json:"pods"`
	Frontends []Frontend `json:"frontends"`
	Flows     []Flow     `json:"flows"`
	Groups    []string   `json:"groups"`
	// Policies is what policies are evaluated by, apart from the flows; nil from agents before this field.
	Policies *Policies `json:"policies,omitempty"`
}

// Policies is what an agent knows of the objects that policies are evaluated by. The pods are its node's; the addresses
// of nodes are not in it.
type Policies struct {
	policy.Cluster
	// Problems say, by policy as String shows it, why a policy is not programmed as it is written.
	Problems map[string]string
}

// Pod is a pod of a node.
type Pod struct {
	// Name is namespace/name.
	Name string       `json:"pod"`
	IPs  []netip.Addr `json:"ips"`
	// Port is the OpenFlow number of its interface, 0 for a pod in the node's network.
	Port uint32    `json:"ofPort,omitempty"`
	MAC  model.MAC `json:"mac"`
	// HostNetwork says that the pod is in the node's network.
	HostNetwork bool `json:"hostNetwork,omitempty"`
}

// Frontend is an address of a Service, as a node serves it.
type Frontend struct {
	// Service is namespace/name.
	Service  string             `json:"service"`
	Kind     model.FrontendKind `json:"kind"`
	Protocol model.Protocol     `json:"protocol"`
	// At is what the switch matches; ClusterIP is the address and port of the Service's port inside the cluster.
	At        netip.AddrPort `json:"at"`
	ClusterIP netip.AddrPort `json:"clusterIP"`
	// NodePort is the port at nodes' addresses; 0 is none.
	NodePort uint16 `json:"nodePort,omitempty"`
}

// Flow is a flow with the object that it exists for.
type Flow struct {
	Table    openflow.TableID `json:"table"`
	Priority uint16           `json:"priority"`
	Match    string           `json:"match"`
	Actions  string           `json:"actions"`
	// Owner is the object as users write it, or "foreign".
	Owner  string       `json:"owner"`
	Reason flows.Reason `json:"reason,omitempty"`
	// Decides names the rules of policies that a packet's taking this flow means.
	Decides []string `json:"decides,omitempty"`
	// Stats are the packets and bytes since the flow was added; zero for flows that are not a switch's.
	openflow.Stats
}

// Foreign is the owner of flows that Weft did not make.
const Foreign = "foreign"

// FlowOf is a flow of an owner.
func FlowOf(f openflow.Flow, owner string, reason flows.Reason) Flow {
	return Flow{Table: f.Table, Priority: f.Priority, Match: f.Match.String(), Actions: f.Actions.String(), Owner: owner,
		Reason: reason}
}

// FlowsOf are the compiler's flows and groups.
func FlowsOf(desired flows.Desired) (list []Flow, groups []openflow.Group) {
	for _, f := range slices.SortedFunc(maps.Values(desired.Flows),
		func(a, b flows.Flow) int { return a.Key.Compare(b.Key) }) {
		list = append(list, FlowOf(f.Flow, f.Owner.String(), f.Reason))
	}
	for _, id := range slices.Sorted(maps.Keys(desired.Groups)) {
		groups = append(groups, desired.Groups[id].Group)
	}
	return list, groups
}

// FlowsIn are the flows of a switch. Those that are not as the compiler wants them are Foreign.
func FlowsIn(actual openflow.Contents, desired flows.Desired) []Flow {
	list := make([]Flow, 0, len(actual.Flows))
	for _, e := range actual.Flows {
		owner, reason := Foreign, flows.Reason("")
		if want, ok := desired.Flows[e.Key]; ok && want.Flow == e.Flow {
			owner, reason = want.Owner.String(), want.Reason
		} else if flows.Ours(e.Cookie) {
			owner = flows.KindOf(e.Cookie).String() // learned, or of an object that is gone
		}
		f := FlowOf(e.Flow, owner, reason)
		f.Stats = e.Stats
		list = append(list, f)
	}
	return list
}

// NodeOf describes a node by its snapshot and its switch. It changes none of its arguments but notes in the flows what
// they decide.
func NodeOf(s *model.Snapshot, list []Flow, groups []openflow.Group) (Node, error) {
	n := Node{
		Name: s.Self.Name, Addrs: s.Self.Addrs, PodCIDRs: s.Self.PodCIDRs, ServiceCIDRs: s.ServiceCIDRs,
		Kernel: s.KernelDatapath, Flows: list, Pods: []Pod{}, Frontends: []Frontend{}, Groups: []string{},
	}
	for _, cidr := range s.Self.PodCIDRs {
		n.Gateways = append(n.Gateways, model.GatewayAddr(cidr))
	}
	n.Locals = slices.Concat(n.Addrs, n.Gateways, s.LocalAddrs)
	for _, name := range slices.Sorted(maps.Keys(s.Paths)) {
		n.ClusterPods = append(n.ClusterPods, s.Paths[name].PodCIDRs...)
		switch s.Paths[name].Routed {
		case model.ModeDirect:
			n.Direct = append(n.Direct, s.Paths[name].PodCIDRs...)
		case model.ModeIPIP:
			n.IPIP = append(n.IPIP, s.Paths[name].PodCIDRs...)
		case model.ModeWireGuard:
			n.Encrypted = append(n.Encrypted, s.Paths[name].PodCIDRs...)
		}
	}
	for _, a := range s.Attachments {
		n.Pods = append(n.Pods, Pod{Name: a.Pod.String(), IPs: a.IPs, Port: a.OFPort, MAC: a.MAC})
	}
	slices.SortFunc(n.Pods, func(a, b Pod) int { return cmp.Compare(a.Port, b.Port) })
	for _, name := range slices.Sorted(maps.Keys(s.Services)) {
		for _, p := range s.Services[name].Ports {
			for _, f := range p.Frontends() {
				n.Frontends = append(n.Frontends, Frontend{
					Service: name, Kind: f.Kind, Protocol: p.Protocol, At: f.At,
					ClusterIP: netip.AddrPortFrom(p.ClusterIP, p.Port), NodePort: p.NodePort,
				})
			}
		}
	}
	for _, g := range groups {
		n.Groups = append(n.Groups, g.String())
	}
	return n, n.noteRules(s.Policies)
}

// noteRules notes in each flow for which rules of policies it counts.
func (n *Node) noteRules(policies map[model.PolicyID]model.Policy) error {
	byKey := map[openflow.Key]*Flow{}
	for i := range n.Flows {
		byKey[n.Flows[i].key()] = &n.Flows[i]
	}
	for _, id := range slices.SortedFunc(maps.Keys(policies), model.PolicyID.Compare) {
		counters, err := flows.Counters(policies[id])
		if err != nil {
			return fmt.Errorf("%s: %w", policies[id].Owner(), err)
		}
		for _, c := range counters {
			f := byKey[c.Key]
			if f == nil {
				continue
			}
			text := ruleText(policies[id].Owner(), c.Direction, c.Index)
			if !slices.Contains(f.Decides, text) {
				f.Decides = append(f.Decides, text)
			}
		}
	}
	return nil
}

// ruleText names a rule of a policy, or flows.Isolation.
func ruleText(o model.Owner, d model.Direction, index int) string {
	if index == flows.Isolation {
		return fmt.Sprintf("%s %s %s: no rule of the pod's policies allows it", o.Kind, o.FullName(), d)
	}
	return fmt.Sprintf("%s %s %s rule %d", o.Kind, o.FullName(), d, index)
}

func (f Flow) key() openflow.Key {
	return openflow.Key{Table: f.Table, Priority: f.Priority, Match: openflow.ParseMatch(f.Match)}
}

// node is a Node with its switch.
type node struct {
	*Node
	sw    *trace.Switch
	byKey map[openflow.Key]*Flow
}

// parse builds the switch. Its error names what of it cannot be interpreted; the rest works.
func parse(n *Node) (*node, error) {
	list := make([]flows.Flow, len(n.Flows))
	byKey := make(map[openflow.Key]*Flow, len(n.Flows))
	for i, f := range n.Flows {
		list[i] = flows.Flow{
			Flow:  openflow.Flow{Key: f.key(), Actions: openflow.ParseActions(f.Actions)},
			Owner: ownerOf(f.Owner), Reason: f.Reason,
		}
		byKey[f.key()] = &n.Flows[i]
	}
	groups := make([]openflow.Group, 0, len(n.Groups))
	for _, text := range n.Groups {
		g, err := openflow.ParseGroup(text)
		if err != nil {
			return nil, fmt.Errorf("node %s: %w", n.Name, err)
		}
		groups = append(groups, g)
	}
	sw, err := trace.New(list, groups)
	if err != nil {
		err = fmt.Errorf("node %s: flows that cannot be interpreted are left out: %w", n.Name, err)
	}
	return &node{n, sw, byKey}, err
}

// ownerOf is the owner that shows as a text.
func ownerOf(text string) model.Owner {
	kind, name, _ := strings.Cut(text, "/")
	for k := model.KindPipeline; ; k++ {
		s := k.String()
		if s == kind {
			return model.Owner{Kind: k, Name: name}
		}
		if s == "kind"+strconv.Itoa(int(k)) {
			return model.Owner{}
		}
	}
}
