package openflow_test

import (
	"fmt"
	"net/netip"

	"github.com/digitalocean/go-openvswitch/ovs"

	"github.com/weft-cni/weft/pkg/openflow"
)

// The examples use these tables, registers and marks. A program has its own.
const (
	tableService openflow.TableID = 30
	tableForward openflow.TableID = 60
	tableOutput  openflow.TableID = 90

	outPort openflow.Register = 1

	allowed openflow.MarkBits = 0x1
)

var origin = openflow.Bits{Register: 0, Mask: 0xf}

// A flow is a value with the text that Open vSwitch prints for it, whatever the order of its matches. So desired and
// installed flows can be compared with ==.
func ExampleNew() {
	pods := netip.MustParsePrefix("10.244.2.0/24")
	f, err := openflow.New(tableForward, 100, 0x1, ovs.ProtocolIPv4,
		[]ovs.Match{openflow.Destination(pods), origin.Is(1)},
		openflow.SetTunnelDestination(netip.MustParseAddr("192.0.2.12")), outPort.Set(7), openflow.Goto(tableOutput))
	fmt.Println(f, err)
	// Output: cookie=0x1,table=60,priority=100,ip,reg0=0x1/0xf,nw_dst=10.244.2.0/24 actions=set_field:192.0.2.12->tun_dst,set_field:0x7->reg1,goto_table:90 <nil>
}

// New refuses what the switch would refuse with its whole bundle, or would take for another flow without a word.
func ExampleNew_invalid() {
	web := openflow.DestinationPort(80, 0xffff)
	_, err := openflow.New(tableForward, 100, 0x1, ovs.ProtocolIPv4, []ovs.Match{web}, ovs.Drop())
	fmt.Println(err)
	_, err = openflow.New(tableForward, 100, 0x1, ovs.ProtocolTCPv4, []ovs.Match{web}, openflow.Goto(tableService))
	fmt.Println(err)
	// Output:
	// flow table=60,priority=100,ip,tp_dst=80: match field tp_dst needs one of the protocols [tcp udp sctp tcp6 udp6 sctp6]; the switch would ignore the field
	// flow table=60,priority=100,tcp,tp_dst=80: goto_table:30: OpenFlow allows tables 61 to 254 only
}

// A Service's address leads to a group; each bucket translates the destination to an endpoint and goes on.
func ExampleNewGroup() {
	endpoint := func(id uint32, to string) openflow.Bucket {
		translate := openflow.CT{
			Commit: true, Table: tableForward, Zone: 1, NAT: openflow.DestinationNAT(netip.MustParseAddrPort(to)),
		}
		return openflow.Bucket{ID: id, Weight: 100, Actions: []ovs.Action{translate.Action()}}
	}
	g, err := openflow.NewGroup(7, openflow.Hash(openflow.IPSrc), []openflow.Bucket{
		endpoint(1, "10.244.1.5:8080"), endpoint(2, "10.244.2.9:8080"),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(g.Selection())
	for _, b := range g.Buckets() {
		fmt.Println(b.Actions)
	}
	service := netip.MustParseAddr("10.96.0.10")
	f, err := openflow.New(tableService, 100, 0x2, ovs.ProtocolTCPv4,
		[]ovs.Match{openflow.Destination(openflow.Host(service)), openflow.DestinationPort(80, 0xffff)},
		openflow.ToGroup(g.ID))
	fmt.Println(f, err)
	// Output:
	// hash of ip_src
	// ct(commit,table=60,zone=1,nat(dst=10.244.1.5:8080))
	// ct(commit,table=60,zone=1,nat(dst=10.244.2.9:8080))
	// cookie=0x2,table=30,priority=100,tcp,nw_dst=10.96.0.10,tp_dst=80 actions=group:7 <nil>
}

// What a commit writes to the connection's mark, later packets of the connection match.
func ExampleCT() {
	commit := openflow.CT{Commit: true, Table: tableOutput, Zone: 1, Exec: []ovs.Action{allowed.Set(1)}}
	f, err := openflow.New(tableForward, 10, 0x3, ovs.ProtocolIPv4, nil, commit.Action())
	fmt.Println(f, err)
	reply := openflow.ConnectionState(openflow.StateTrk|openflow.StateRpl, openflow.StateInv)
	f, err = openflow.New(tableService, 10, 0x3, "", []ovs.Match{allowed.Is(1), reply}, openflow.Goto(tableForward))
	fmt.Println(f, err)
	// Output:
	// cookie=0x3,table=60,priority=10,ip actions=ct(commit,table=90,zone=1,exec(set_field:0x1/0x1->ct_mark)) <nil>
	// cookie=0x3,table=30,priority=10,ct_state=+rpl-inv+trk,ct_mark=0x1/0x1 actions=goto_table:60 <nil>
}

// Two clients and two ports take 2 + 2 + 1 flows instead of 2 × 2: ovs-fields(7), conjunctive match fields.
func ExampleConjunction() {
	const rule = 5
	add := func(proto ovs.Protocol, match ovs.Match, action ovs.Action) {
		f, err := openflow.New(tableForward, 50, 0x4, proto, []ovs.Match{match}, action)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(f.Match, "->", f.Actions)
	}
	for _, client := range []string{"10.244.1.5", "10.244.2.9"} {
		from := openflow.Source(openflow.Host(netip.MustParseAddr(client)))
		add(ovs.ProtocolIPv4, from, openflow.Conjunction(rule, 1, 2))
	}
	for _, port := range []uint16{80, 443} {
		add(ovs.ProtocolTCPv4, openflow.DestinationPort(port, 0xffff), openflow.Conjunction(rule, 2, 2))
	}
	add("", openflow.ConjunctionID(rule), openflow.Goto(tableOutput))
	// Output:
	// ip,nw_src=10.244.1.5 -> conjunction(5,1/2)
	// ip,nw_src=10.244.2.9 -> conjunction(5,1/2)
	// tcp,tp_dst=80 -> conjunction(5,2/2)
	// tcp,tp_dst=443 -> conjunction(5,2/2)
	// conj_id=5 -> goto_table:90
}

// Parse reads what `ovs-ofctl -O OpenFlow15 dump-flows` prints. The difference to the desired flows is a Delta: one
// bundle brings the switch in sync, and does not touch flows that are in sync.
func ExampleParse() {
	build := func(port uint32) openflow.Flow {
		f, err := openflow.New(tableOutput, 100, 0x1, "", []ovs.Match{outPort.Is(port)}, openflow.Port(port))
		if err != nil {
			panic(err)
		}
		return f
	}
	desired := map[openflow.Key]openflow.Flow{}
	for _, f := range []openflow.Flow{build(1), build(2)} {
		desired[f.Key] = f
	}

	dump := []string{
		" cookie=0x1, duration=9.1s, table=90, n_packets=12, n_bytes=1176, priority=100,reg1=0x1 actions=output:1",
		" cookie=0x1, duration=9.1s, table=90, n_packets=0, n_bytes=0, priority=100,reg1=0x3 actions=output:3",
	}
	var delta openflow.Delta
	for _, line := range dump {
		installed, err := openflow.Parse(line)
		if err != nil {
			panic(err)
		}
		switch want, ok := desired[installed.Key]; {
		case !ok:
			delta.Delete = append(delta.Delete, installed.Flow)
		case want != installed.Flow:
			delta.Set = append(delta.Set, want)
		}
		delete(desired, installed.Key)
	}
	for _, missing := range desired {
		delta.Set = append(delta.Set, missing)
	}
	fmt.Println("set", delta.Set)
	fmt.Println("delete", delta.Delete)
	// Output:
	// set [cookie=0x1,table=90,priority=100,reg1=0x2 actions=output:2]
	// delete [cookie=0x1,table=90,priority=100,reg1=0x3 actions=output:3]
}

// The answer to a first packet makes the switch remember for a minute which endpoint a client was sent to.
func ExampleLearn() {
	remember := openflow.Learn{
		Table: tableService, Priority: 200, Cookie: 0x5, IdleTimeout: 60,
		Specs: []openflow.LearnSpec{
			openflow.LearnFamily(netip.IPv4Unspecified()), openflow.LearnSame(openflow.IPSrc.All()),
			openflow.LearnLoad(2, openflow.Register(3).Field().All()),
		},
	}
	actions, err := openflow.NewActions(remember.Action())
	fmt.Println(actions, err)
	learned, _ := actions.Learned()
	fmt.Println(learned.Actions, learned.IdleTimeout)
	// Output:
	// learn(table=30,idle_timeout=60,priority=200,cookie=0x5,eth_type=0x800,NXM_OF_IP_SRC[],load:0x2->NXM_NX_REG3[]) <nil>
	// set_field:0x2->reg3 60
}
