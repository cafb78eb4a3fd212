package flows

import (
	"fmt"
	"slices"

	"github.com/weft-cni/weft/pkg/openflow"
)

// Table numbers. They are part of Weft's interface to people with ovs-ofctl and never change; the gaps are for tables to
// come.
const (
	Classifier  openflow.TableID = 0
	ARPND       openflow.TableID = 5
	ARPNDReply  openflow.TableID = 6
	NDAdvertise openflow.TableID = 7
	SpoofGuard  openflow.TableID = 10
	Forwarding  openflow.TableID = 60
	Output      openflow.TableID = 90
)

// Registers. Both are set once and hold to the end of the pipeline.
var (
	// Origin says where the packet came in: one of the Origin… values.
	Origin = openflow.Bits{Register: 0, Mask: 0xf}
	// OutPort holds the OpenFlow port that the Output table sends to.
	OutPort = openflow.Register(1)
)

// Values of Origin.
const (
	OriginPod     uint32 = 1
	OriginTunnel  uint32 = 2
	OriginGateway uint32 = 3
)

// Table is the contract of one table: what its flows may match, do and go to. Check holds every compiled flow to it.
type Table struct {
	ID   openflow.TableID
	Name string
	// Doc is one paragraph for the pipeline document.
	Doc string
	// Match lists the fields that flows may match, the protocols among them.
	Match []string
	// Actions lists the kinds of actions (openflow.ActionName) that flows may have; "drop" is always allowed.
	Actions []string
	// Next lists the tables that flows may go to; all are later ones.
	Next []openflow.TableID
}

// Pipeline is the whole pipeline, in the order a packet sees it.
var Pipeline = []Table{
	{
		ID: Classifier, Name: "Classifier",
		Doc: "Tells by the port where a packet comes from: a pod, a tunnel or the node's gateway. A port that nobody " +
			"vouches for is dropped and counted: a pod's port forwards nothing before its own flows are in.",
		Match:   []string{"in_port"},
		Actions: []string{"set_field->reg0", "goto_table"},
		Next:    []openflow.TableID{ARPND, SpoofGuard},
	},
	{
		ID: ARPND, Name: "ARPND",
		Doc: "Address resolution, before anything else: a question from a pod or the gateway must carry the asker's own " +
			"addresses, then it is answered in the next tables. Answers and advertisements that pods send are dropped.",
		Match:   []string{"arp", "icmp6", "in_port", "dl_src", "arp_op", "arp_spa", "arp_tpa", "arp_sha", "icmp_type", "icmp_code", "ipv6_src", "nd_target", "nd_sll"},
		Actions: []string{"goto_table"},
		Next:    []openflow.TableID{ARPNDReply, SpoofGuard},
	},
	{
		ID: ARPNDReply, Name: "ARPNDReply",
		Doc: "Turns an ARP request into its reply, and a neighbour solicitation into an advertisement, from the router MAC; " +
			"with the kernel's datapath, into a solicitation that goes back. Nothing is flooded, so nobody else ever sees the question.",
		Match: []string{"arp", "icmp6", "arp_op", "icmp_type", "icmp_code"},
		Actions: []string{"move->NXM_OF_ETH_DST[]", "set_field->eth_src", "set_field->arp_op", "move->NXM_NX_ARP_THA[]", "set_field->arp_sha",
			"move->NXM_NX_REG2[]", "move->NXM_OF_ARP_TPA[]", "move->NXM_OF_ARP_SPA[]", "set_field->icmpv6_type",
			"move->NXM_NX_IPV6_DST[]", "move->NXM_NX_IPV6_SRC[]", "move->NXM_NX_ND_TARGET[]", "set_field->nd_sll", "IN_PORT", "goto_table"},
		Next: []openflow.TableID{NDAdvertise},
	},
	{
		ID: NDAdvertise, Name: "NDAdvertise",
		Doc: "Completes a neighbour advertisement. It is a table of its own because OVS lets a flow write the target's " +
			"link-layer address only when the flow matches an advertisement.",
		Match: []string{"icmp6", "icmp_type", "icmp_code"},
		Actions: []string{"move->NXM_NX_IPV6_DST[]", "move->NXM_NX_IPV6_SRC[]", "set_field->nd_options_type", "set_field->nd_tll",
			"set_field->nd_reserved", "IN_PORT"},
	},
	{
		ID: SpoofGuard, Name: "SpoofGuard",
		Doc: "Lets through only what its source may send: a pod its own MAC and addresses, a tunnel what the sending node " +
			"owns, the gateway anything. Drops are counted with their reason. Multicast and broadcast end here: the overlay " +
			"is routed.",
		Match:   []string{"ip", "ipv6", "in_port", "reg0", "dl_src", "dl_dst", "nw_src", "ipv6_src", "tun_src", "tun_ipv6_src"},
		Actions: []string{"goto_table"},
		Next:    []openflow.TableID{Forwarding},
	},
	{
		ID: Forwarding, Name: "Forwarding",
		Doc: "Routes by destination address: a local pod to its port, another node's pod CIDR into the tunnel, everything " +
			"else from a pod to the node's gateway. What came through a tunnel never leaves through one, and pods " +
			"reach nobody but pods at the tunnels' UDP ports: masqueraded, they would pass for their node.",
		Match:   []string{"ip", "ipv6", "udp", "udp6", "reg0", "nw_dst", "ipv6_dst", "tp_dst"},
		Actions: []string{"set_field->eth_src", "set_field->eth_dst", "set_field->tun_dst", "set_field->tun_ipv6_dst", "set_field->reg1", "goto_table"},
		Next:    []openflow.TableID{Output},
	},
	{
		ID: Output, Name: "Output",
		Doc:     "Sends the packet to the port that Forwarding chose.",
		Actions: []string{"output"},
	},
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
	for _, field := range openflow.MatchFields(f.Match) {
		if !slices.Contains(t.Match, field) {
			return fmt.Errorf("flow %s: table %s does not match %s", f, t.Name, field)
		}
	}
	if f.Actions == "drop" {
		return nil
	}
	for _, action := range openflow.SplitActions(f.Actions) {
		if !slices.Contains(t.Actions, openflow.ActionName(action)) {
			return fmt.Errorf("flow %s: table %s does not do %s", f, t.Name, openflow.ActionName(action))
		}
		next, ok := openflow.GotoTable(action)
		if ok && (next <= f.Table || !slices.Contains(t.Next, next)) {
			return fmt.Errorf("flow %s: table %s does not go to %s", f, t.Name, TableName(next))
		}
	}
	return nil
}
