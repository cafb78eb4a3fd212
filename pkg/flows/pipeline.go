package flows

import (
	"fmt"
	"slices"
	"time"

	"github.com/weft-cni/weft/pkg/openflow"
)

// Table numbers. They are part of Weft's interface to people with ovs-ofctl and never change; the gaps are for tables
// to come.
const (
	Classifier     openflow.TableID = 0
	ARPND          openflow.TableID = 5
	ARPNDReply     openflow.TableID = 6
	NDAdvertise    openflow.TableID = 7
	SpoofGuard     openflow.TableID = 10
	Conntrack      openflow.TableID = 20
	ConntrackNAT   openflow.TableID = 21
	ConntrackState openflow.TableID = 30
	Affinity       openflow.TableID = 35
	ServiceLB      openflow.TableID = 40
	StickyEndpoint openflow.TableID = 45
	PolicyEntry    openflow.TableID = 47
	AdminEgress    openflow.TableID = 48
	EgressPolicy   openflow.TableID = 50
	EgressDefault  openflow.TableID = 51
	BaselineEgress openflow.TableID = 52
	AdminIngress   openflow.TableID = 54
	IngressPolicy  openflow.TableID = 55
	IngressDefault openflow.TableID = 56

	BaselineIngress openflow.TableID = 57

	PolicyDenied openflow.TableID = 59
	Forwarding   openflow.TableID = 60
	// The tables of the preview are those of the policies, toPreview further on, and these two, where it ends.
	PreviewDenied  = PolicyDenied + toPreview
	PreviewAllowed = Forwarding + toPreview

	Commit       openflow.TableID = 80
	EndpointPort openflow.TableID = 82
	SourceNAT    openflow.TableID = 85
	Output       openflow.TableID = 90
	AnswerGate   openflow.TableID = 92
	AnswerHold   openflow.TableID = 93
)

// toPreview leads from a table of the policies to its like in the preview.
const toPreview = 13

// Registers. All but the last are set once and hold to the end of the pipeline.
var (
	// Origin says where the packet came in: one of the Origin… values. SpoofGuard sets OriginNode again, for what another
	// node has sent without a tunnel.
	Origin = openflow.Bits{Register: 0, Mask: 0xf}
	// Returns is set on packets that may leave where they came in.
	Returns = openflow.Bits{Register: 0, Mask: 0x20}
	// AllowAgain is set on packets that the agent makes for the sweep, of connections that policies allow again.
	AllowAgain = openflow.Bits{Register: 0, Mask: 0x40}
	// OutPort holds the OpenFlow port that the Output table sends to.
	OutPort = openflow.Register(1)
	// Bucket is the bucket that the client's last connection to the Service was sent to; 0 is none.
	Bucket = openflow.Register(4)
)

// Connection tracking zones.
const (
	// Zone holds every connection, and the translation of its destination.
	Zone uint16 = 0x5765
	// SourceZone holds the translation of sources.
	SourceZone uint16 = 0x5766
	// EndpointZone holds a copy of each connection of a pod or the node through a Service, as the endpoint sees it. Only
	// the userspace datapath has any.
	EndpointZone uint16 = 0x5767
)

// Zones are the zones that have connections, Zone first.
func Zones(kernelDatapath bool) []uint16 {
	if kernelDatapath {
		return []uint16{Zone, SourceZone}
	}
	return []uint16{Zone, SourceZone, EndpointZone}
}

// EndpointZone keeps a copy for EndpointMemory after the last lookup, also when the connection has ended, and at most
// EndpointLimit copies. A connection without a copy is not protected from a second one with its port.
const (
	EndpointMemory = time.Hour
	EndpointLimit  = 100_000
)

// Parts of a connection's mark in Zone. The upper 16 bits are the port of the endpoint that a Service's connection was
// sent to, and the label is its address.
const (
	// MarkAllowed is set when the policies let a packet of the original direction through, and cleared when they do
	// not any more.
	MarkAllowed openflow.MarkBits = 0x1
	// MarkService is set when a Service has translated the destination.
	MarkService openflow.MarkBits = 0x2
	// MarkDenied is set while the policies deny the original direction of a connection that they allowed before.
	MarkDenied openflow.MarkBits = 0x8
	// MarkGateway is set when the connection came in through the gateway: replies return there.
	MarkGateway openflow.MarkBits = 0x4
	// MarkTaken is set on the connections of EndpointZone only.
	MarkTaken openflow.MarkBits = 0x10
	// markPort are the bits of the endpoint's port.
	markPort openflow.MarkBits = 0xffff0000
)

// Values of Origin.
const (
	OriginPod     uint32 = 1 // a pod of this node
	OriginNode    uint32 = 2 // another node
	OriginGateway uint32 = 3 // this node's network
)

// Table is the contract of one table: what its flows may match, do and go to. Check holds every compiled flow to it.
type Table struct {
	ID   openflow.TableID
	Name string
	// Doc is one paragraph for the pipeline document.
	Doc string
	// Match lists the fields that flows may match, the protocols among them.
	Match []string
	// Actions lists the kinds of actions (openflow.Action.Kind) that flows may have; "drop" is always allowed.
	Actions []string
	// Next lists the tables that flows may go to; all are later ones.
	Next []openflow.TableID
}

// ruleActions are what the tables of policies' rules do.
var ruleActions = []string{"conjunction", "controller", "goto_table"}

// ruleMatches are what they match, and more.
func ruleMatches(more ...string) []string {
	return append([]string{"conj_id", "ip", "ipv6", "tcp", "tcp6", "udp", "udp6", "sctp", "sctp6", "nw_src", "nw_dst",
		"ipv6_src", "ipv6_dst", "tp_dst"}, more...)
}

// Pipeline is the whole pipeline, in the order a packet sees it.
var Pipeline = withPreview([]Table{
	{
		ID: Classifier, Name: "Classifier",
		Doc: "Tells by the port where a packet comes from: a pod, another node (through a tunnel) or the node's gateway. " +
			"A port that no owner vouches for is dropped and counted: a pod's port forwards nothing before its own flows are " +
			"in.",
		Match:   []string{"in_port"},
		Actions: []string{"set_field->reg0", "goto_table"},
		Next:    []openflow.TableID{ARPND, SpoofGuard},
	},
	{
		ID: ARPND, Name: "ARPND",
		Doc: "Address resolution, before anything else: a question from a pod or the gateway must carry the asker's own " +
			"addresses, then it is answered in the next tables. Answers and advertisements that pods send are dropped.",
		Match: []string{"arp", "icmp6", "in_port", "dl_src", "arp_op", "arp_spa", "arp_tpa", "arp_sha", "icmp_type",
			"icmp_code", "ipv6_src", "nd_target", "nd_sll"},
		Actions: []string{"goto_table"},
		Next:    []openflow.TableID{ARPNDReply, SpoofGuard},
	},
	{
		ID: ARPNDReply, Name: "ARPNDReply",
		Doc: "Turns an ARP request into its reply, and a neighbour solicitation into an advertisement, from the router " +
			"MAC; with the kernel's datapath, into a solicitation that goes back. Nothing is flooded, so no other port ever " +
			"sees the question.",
		Match: []string{"arp", "icmp6", "arp_op", "icmp_type", "icmp_code"},
		Actions: []string{"move->NXM_OF_ETH_DST[]", "set_field->eth_src", "set_field->arp_op", "move->NXM_NX_ARP_THA[]",
			"set_field->arp_sha",
			"move->NXM_NX_REG2[]", "move->NXM_OF_ARP_TPA[]", "move->NXM_OF_ARP_SPA[]", "set_field->icmpv6_type",
			"move->NXM_NX_IPV6_DST[]", "move->NXM_NX_IPV6_SRC[]", "move->NXM_NX_ND_TARGET[]", "set_field->nd_sll", "IN_PORT",
			"goto_table"},
		Next: []openflow.TableID{NDAdvertise},
	},
	{
		ID: NDAdvertise, Name: "NDAdvertise",
		Doc: "Completes a neighbour advertisement. It is a table of its own because OVS lets a flow write the target's " +
			"link-layer address only when the flow matches an advertisement.",
		Match: []string{"icmp6", "icmp_type", "icmp_code"},
		Actions: []string{"move->NXM_NX_IPV6_DST[]", "move->NXM_NX_IPV6_SRC[]", "set_field->nd_options_type",
			"set_field->nd_tll",
			"set_field->nd_reserved", "IN_PORT"},
	},
	{
		ID: SpoofGuard, Name: "SpoofGuard",
		Doc: "Lets through only what its source may send: a pod its own MAC and addresses, another node its own addresses " +
			"and pod CIDRs, the gateway anything. What another node's pods send without a tunnel comes from the gateway; the " +
			"host's nftables have checked its sender. Drops are counted with their reason. Multicast and broadcast end here, by " +
			"MAC and by address: the overlay is routed. So do packets to a loopback address and frames with a VLAN tag.",
		Match: []string{"ip", "ipv6", "in_port", "reg0", "dl_src", "dl_dst", "vlan_tci", "nw_src", "nw_dst", "ipv6_src",
			"ipv6_dst", "tun_src",
			"tun_ipv6_src"},
		Actions: []string{"set_field->reg0", "goto_table"},
		Next:    []openflow.TableID{Conntrack},
	},
	{
		ID: Conntrack, Name: "Conntrack",
		Doc: "Finds the packet's connection and applies its translation. What answers to a source address that we have put " +
			"in is translated back before.",
		Match:   []string{"ip", "ipv6", "reg0", "nw_dst", "ipv6_dst"},
		Actions: []string{"set_field->reg0", "ct"},
		Next:    []openflow.TableID{ConntrackNAT, ConntrackState},
	},
	{
		ID: ConntrackNAT, Name: "ConntrackNAT",
		Doc:     "The same for packets whose destination was just translated back to the true source.",
		Match:   []string{"ip", "ipv6"},
		Actions: []string{"ct"},
		Next:    []openflow.TableID{ConntrackState},
	},
	{
		ID: ConntrackState, Name: "ConntrackState",
		Doc: "New connections go on to Services, later packets of their original direction to the policies. A reply passes " +
			"by its connection's " +
			"mark: it goes straight on while the policies allow the original direction, and is dropped otherwise.",
		Match: []string{"ct_state", "ct_mark", "reg0", "ip", "ipv6", "tcp", "tcp6", "udp", "udp6", "icmp", "icmp6",
			"nw_src", "ipv6_src"},
		Actions: []string{"resubmit", "goto_table"},
		Next:    []openflow.TableID{Affinity, ServiceLB, PolicyEntry, Forwarding},
	},
	{
		ID: Affinity, Name: "Affinity",
		Doc: "Which endpoint a client had last, for Services with sessionAffinity. The switch learns these flows itself; " +
			"they survive " +
			"the agent and end by their timeout, or with the Service, its affinity or the endpoint.",
	},
	{
		ID: ServiceLB, Name: "ServiceLB",
		Doc: "A packet to a Service's address and port gets an endpoint from the Service's group, which translates its " +
			"destination. A " +
			"Service without endpoints leads to an address that the node rejects.",
		Match: []string{"ct_state", "ct_nw_proto", "ip", "ipv6", "tcp", "tcp6", "udp", "udp6", "sctp", "sctp6", "reg0",
			"reg4", "nw_src", "nw_dst",
			"ipv6_src", "ipv6_dst", "nw_frag", "tp_src", "tp_dst"},
		Actions: []string{"ct", "group", "set_field->reg4", "resubmit", "goto_table"},
		Next:    []openflow.TableID{StickyEndpoint, PolicyEntry},
	},
	{
		ID: StickyEndpoint, Name: "StickyEndpoint",
		Doc: "Translates to the endpoint that was chosen, for Services with sessionAffinity, and has the switch learn it. " +
			"It is a table of " +
			"its own because a group's bucket is an action set, which learns nothing.",
		Match: []string{"ct_state", "ct_nw_proto", "ip", "ipv6", "tcp", "tcp6", "udp", "udp6", "sctp", "sctp6", "reg0",
			"reg4", "nw_src", "nw_dst",
			"ipv6_src", "ipv6_dst", "nw_frag", "tp_dst"},
		Actions: []string{"learn", "ct"},
		Next:    []openflow.TableID{PolicyEntry},
	},
	{
		ID: PolicyEntry, Name: "PolicyEntry",
		Doc: "Leads to the policies. Every packet of a connection's original direction passes here, not only the first, so " +
			"that a changed policy applies to connections that exist. Of a datagram in fragments, the first fragment does. " +
			"While there are staged policies, a copy passes the preview before.",
		Match:   []string{"ct_state", "ip", "ipv6", "nw_frag"},
		Actions: []string{"resubmit", "goto_table"},
		Next:    []openflow.TableID{AdminEgress, Forwarding, AdminEgress + toPreview},
	},
	{
		ID: AdminEgress, Name: "AdminEgress",
		Doc: "What ClusterNetworkPolicies of the tier Admin decide about what this node's pods send, as conjunctions of " +
			"pods, peers and ports; the priority is a rule's place in the tier.",
		Match: ruleMatches("ct_state"), Actions: ruleActions,
		Next: []openflow.TableID{EgressPolicy, AdminIngress, PolicyDenied},
	},
	{
		ID: EgressPolicy, Name: "EgressPolicy",
		Doc:   "What NetworkPolicies allow this node's pods to send, as conjunctions of pods, peers and ports.",
		Match: ruleMatches("ct_state"), Actions: ruleActions,
		Next: []openflow.TableID{EgressDefault, BaselineEgress, AdminIngress},
	},
	{
		ID: EgressDefault, Name: "EgressDefault",
		Doc:     "Denies and counts what isolated pods send and no NetworkPolicy allows.",
		Match:   []string{"ip", "ipv6", "nw_src", "ipv6_src"},
		Actions: []string{"controller", "goto_table"},
		Next:    []openflow.TableID{BaselineEgress, PolicyDenied},
	},
	{
		ID: BaselineEgress, Name: "BaselineEgress",
		Doc:   "What ClusterNetworkPolicies of the tier Baseline decide about what pods send that no NetworkPolicy isolates.",
		Match: ruleMatches("ct_state"), Actions: ruleActions,
		Next: []openflow.TableID{AdminIngress, PolicyDenied},
	},
	{
		ID: AdminIngress, Name: "AdminIngress",
		Doc:   "As AdminEgress, for what this node's pods receive.",
		Match: ruleMatches("ct_state"), Actions: ruleActions,
		Next: []openflow.TableID{IngressPolicy, PolicyDenied, Forwarding},
	},
	{
		ID: IngressPolicy, Name: "IngressPolicy",
		Doc:   "What NetworkPolicies allow this node's pods to receive.",
		Match: ruleMatches("ct_state"), Actions: ruleActions,
		Next: []openflow.TableID{IngressDefault, BaselineIngress, Forwarding},
	},
	{
		ID: IngressDefault, Name: "IngressDefault",
		Doc:     "Denies and counts what is sent to isolated pods and no NetworkPolicy allows.",
		Match:   []string{"ip", "ipv6", "nw_dst", "ipv6_dst"},
		Actions: []string{"controller", "goto_table"},
		Next:    []openflow.TableID{BaselineIngress, PolicyDenied},
	},
	{
		ID: BaselineIngress, Name: "BaselineIngress",
		Doc:   "As BaselineEgress, for what pods receive.",
		Match: ruleMatches("ct_state"), Actions: ruleActions,
		Next: []openflow.TableID{PolicyDenied, Forwarding},
	},
	{
		ID: PolicyDenied, Name: "PolicyDenied",
		Doc: "Drops what the policies deny. A connection that they allowed before loses its mark, so that its replies are " +
			"dropped, too, until a " +
			"packet of its original direction is allowed again, or the agent's sweep finds that it would be.",
		Match:   []string{"ct_mark", "ip", "ipv6", "reg0", "nw_frag"},
		Actions: []string{"ct"},
	},
	{
		ID: Forwarding, Name: "Forwarding",
		Doc: "Routes by destination address: a local pod to its port, another node's pod CIDR to that node, everything " +
			"else from a pod to the node's gateway. Replies to what came from the gateway return there. What came from " +
			"another node goes to this node's pods and gateway only, and at the tunnels' UDP ports and by their IP protocol " +
			"pods reach only pods: masqueraded, they would pass for their node.",
		Match: []string{"ct_state", "ct_mark", "ip", "ipv6", "udp", "udp6", "reg0", "nw_dst", "ipv6_dst", "nw_proto", "tp_dst"},
		Actions: []string{"set_field->eth_src", "set_field->eth_dst", "set_field->tun_src", "set_field->tun_ipv6_src",
			"set_field->tun_dst", "set_field->tun_ipv6_dst", "set_field->reg1", "goto_table"},
		Next: []openflow.TableID{Commit},
	},
	{
		ID: Commit, Name: "Commit",
		Doc: "Remembers a connection whose packet came this far, and marks it as allowed. With the userspace datapath, " +
			"fragments wait here until " +
			"their datagram is whole: without the first one, which the policies judge, none leaves.",
		Match: []string{"ct_state", "ct_mark", "ip", "ipv6", "tcp", "tcp6", "udp", "udp6", "reg0", "nw_src", "ipv6_src",
			"nw_frag"},
		Actions: []string{"ct", "goto_table"},
		Next:    []openflow.TableID{EndpointPort, SourceNAT},
	},
	{
		ID: EndpointPort, Name: "EndpointPort",
		Doc: "With the userspace datapath: a connection of a pod or the node to an endpoint gets another source port if a " +
			"connection of " +
			"the same through a Service has that port at the same endpoint, which cannot tell them apart.",
		Match: []string{"ct_state", "ct_mark", "ip", "ipv6", "tcp", "tcp6", "udp", "udp6", "reg0", "nw_src", "ipv6_src",
			"tp_src"},
		Actions: []string{"ct"},
		Next:    []openflow.TableID{SourceNAT},
	},
	{
		ID: SourceNAT, Name: "SourceNAT",
		Doc: "Changes the source where replies would not find back: what the gateway sends to another node gets the node's " +
			"gateway address, with a port below 1024 if it had one; what a Service turns back to its origin gets an address " +
			"that no host has. What a client outside sends to an endpoint in this node's own network keeps its source: a " +
			"source MAC tells the node's nftables to lead the answers back here.",
		Match: []string{"ct_state", "ip", "ipv6", "tcp", "tcp6", "udp", "udp6", "sctp", "sctp6", "reg0", "reg1", "nw_src",
			"nw_dst", "ipv6_src", "ipv6_dst",
			"nw_frag", "tp_src"},
		Actions: []string{"set_field->reg0", "set_field->eth_src", "ct", "goto_table"},
		Next:    []openflow.TableID{Output},
	},
	{
		ID: Output, Name: "Output",
		Doc: "Sends the packet to the port that Forwarding chose. What pods ask DNS servers goes to the agent as well, and " +
			"the answers go to AnswerGate, where policies with domain names select the pods: conjunctions of pods and servers.",
		Match: []string{"ct_state", "reg0", "conj_id", "ip", "ipv6", "tcp", "tcp6", "udp", "udp6", "nw_src", "nw_dst", "ipv6_src",
			"ipv6_dst", "tp_src", "tp_dst"},
		Actions: []string{"set_field->in_port", "output", "conjunction", "controller", "goto_table"},
		Next:    []openflow.TableID{AnswerGate},
	},
	{
		ID: AnswerGate, Name: "AnswerGate",
		Doc: "Sends answers of DNS servers on, and a copy to the agent. While the agent learns from them, it renews a flow " +
			"here that leads to AnswerHold and that the switch drops by itself three seconds later.",
		Actions: []string{"controller", "output", "goto_table"},
		Next:    []openflow.TableID{AnswerHold},
	},
	{
		ID: AnswerHold, Name: "AnswerHold",
		Doc: "Hands answers of DNS servers to the agent, which sends them to the pod as soon as the switch has the addresses " +
			"that they name.",
		Actions: []string{"controller"},
	},
})

// previewTables are the tables of the preview by number: those of the stages with the same contract, and its ends.
var previewTables = map[openflow.TableID]Table{}

// withPreview adds the tables of the preview, behind Forwarding.
func withPreview(pipeline []Table) []Table {
	var list []Table
	for _, t := range pipeline {
		if t.ID < AdminEgress || t.ID > Forwarding {
			continue
		}
		p := Table{ID: t.ID + toPreview, Name: "Preview" + t.Name, Match: t.Match, Actions: t.Actions,
			Doc: "As " + t.Name + ", if the staged policies were enforced. Nothing follows from it but counters and log records."}
		for _, next := range t.Next {
			p.Next = append(p.Next, next+toPreview)
		}
		switch p.ID {
		case PreviewDenied:
			p = Table{ID: p.ID, Name: "PreviewDenied", Doc: "Counts what the policies would deny, with the staged ones."}
		case PreviewAllowed:
			p = Table{ID: p.ID, Name: "PreviewAllowed", Doc: "Counts what they would allow."}
		}
		previewTables[p.ID] = p
		list = append(list, p)
	}
	behind := slices.IndexFunc(pipeline, func(t Table) bool { return t.ID > Forwarding })
	return slices.Insert(pipeline, behind, list...)
}

var tables = func() map[openflow.TableID]Table {
	byID := map[openflow.TableID]Table{}
	for _, t := range Pipeline {
		byID[t.ID] = t
	}
	return byID
}()

// TableName is the name of a table, or its number when the pipeline does not have it.
func TableName(id openflow.TableID) string {
	if t, ok := tables[id]; ok {
		return t.Name
	}
	return fmt.Sprint(id)
}

// TableNames is what OVSDB is told, so that `ovs-ofctl --names` can show names.
func TableNames() map[uint8]string {
	names := map[uint8]string{}
	for _, t := range Pipeline {
		names[uint8(t.ID)] = t.Name
	}
	return names
}

// Check says in which way a flow breaks its table's contract, or nil.
func Check(f openflow.Flow) error {
	t, ok := tables[f.Table]
	if !ok {
		return fmt.Errorf("flow %s: the pipeline has no table %d", f, f.Table)
	}
	for field := range f.Match.Fields() {
		if !slices.Contains(t.Match, field) {
			return fmt.Errorf("flow %s: table %s does not match %s", f, t.Name, field)
		}
	}
	for action := range f.Actions.All() {
		if kind := action.Kind(); !slices.Contains(t.Actions, kind) {
			return fmt.Errorf("flow %s: table %s does not do %s", f, t.Name, kind)
		}
		next, ok := action.Next()
		if ok && (next <= f.Table || !slices.Contains(t.Next, next)) {
			return fmt.Errorf("flow %s: table %s does not go to %s", f, t.Name, TableName(next))
		}
	}
	return nil
}
