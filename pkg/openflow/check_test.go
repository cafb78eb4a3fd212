package openflow_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/digitalocean/go-openvswitch/ovs"

	"github.com/weft-cni/weft/pkg/openflow"
)

// TestNewChecks: a flow that the switch would take for another one, or refuse with its whole bundle, is not built.
func TestNewChecks(t *testing.T) {
	v4, v6 := netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")
	match := func(m ...ovs.Match) []ovs.Match { return m }
	do := func(a ...ovs.Action) []ovs.Action { return a }
	drop := do(ovs.Drop())
	bit := func(mask uint32) ovs.Match { return openflow.Bits{Register: 0, Mask: mask}.Is(mask) }
	for _, tc := range []struct {
		table   openflow.TableID
		proto   ovs.Protocol
		match   []ovs.Match
		actions []ovs.Action
		want    string
	}{
		{0, ovs.ProtocolIPv4, match(openflow.Source(v4)), drop, ""},
		{0, ovs.ProtocolTCPv4, match(openflow.Source(v4), openflow.DestinationPort(80, 0xffff)), drop, ""},
		{0, "", match(openflow.Source(v4)), drop, "match field nw_src needs one of the protocols [ip icmp tcp udp sctp]"},
		{0, ovs.ProtocolIPv6, match(openflow.Source(v4)), drop, "match field nw_src needs"},
		{0, ovs.ProtocolIPv4, match(openflow.Destination(v6)), drop, "match field ipv6_dst needs"},
		{0, ovs.ProtocolIPv4, match(openflow.DestinationPort(80, 0xffff)), drop, "match field tp_dst needs"},
		{0, ovs.ProtocolICMPv4, match(openflow.SourcePort(80, 0xffff)), drop, "match field tp_src needs"},
		{0, "", match(openflow.Fragments("later")), drop, "match field nw_frag needs"},
		{0, ovs.ProtocolIPv4, match(ovs.ARPOperation(1)), drop, "match field arp_op needs"},
		{0, ovs.ProtocolIPv6, match(ovs.ICMPType(135)), drop, "match field icmp_type needs"},
		{0, ovs.ProtocolIPv6, match(ovs.NeighborDiscoveryTarget("fd00::1")), drop, "match field nd_target needs"},
		{0, ovs.ProtocolIPv4, match(openflow.Source(v4), openflow.Source(v4)), drop, "match field nw_src twice"},
		{0, "", match(bit(1), bit(2)), drop, "match field reg0 twice"},
		{255, "", nil, drop, "tables are 0 to 254"},
		{6, "", nil, do(openflow.Register(0).Set(1), openflow.Goto(7)), ""},
		{6, "", nil, do(openflow.Goto(6)), "goto_table:6: OpenFlow allows tables 7 to 254 only"},
		{6, "", nil, do(openflow.Goto(5)), "goto_table:5: OpenFlow allows"},
		{6, "", nil, do(openflow.Goto(255)), "goto_table:255: OpenFlow allows"},
		{6, "", nil, do(openflow.Goto(7), openflow.InPort()), "goto_table:7 is not the last action"},
		{6, "", nil, do(ovs.Drop(), openflow.InPort()), "action drop beside others"},
		{6, "", nil, do(openflow.MarkBits(1).Set(1), openflow.Goto(7)), "only CT.Exec can write it"},
		{6, "", nil, do(openflow.AllLabel.Set(openflow.Uint128{}), openflow.Goto(7)), "only CT.Exec can write it"},
		{6, "", nil, do(openflow.Register(16).Set(1)), "reg16: OVS has the registers reg0 to reg15"},
		{6, "", nil, do(openflow.Bits{Register: -1, Mask: 1}.Set(1)), "reg-1: OVS has"},
		{6, "", match(openflow.Register(16).Is(1)), drop, "reg16: OVS has"},
		{6, "", match(openflow.Bits{Register: 16, Mask: 1}.Is(1)), drop, "reg16: OVS has"},
		{6, "", nil, do(openflow.Register(16).Output()), "reg16: OVS has"},
		{6, ovs.ProtocolIPv4, match(openflow.Fragments("middle")), drop, `nw_frag cannot be "middle"`},
		{6, "", nil, do(openflow.Conjunction(1, 1, 2), openflow.Conjunction(2, 1, 2)), ""},
		{6, "", nil, do(openflow.Conjunction(1, 1, 2), openflow.Goto(7)), "action conjunction beside others"},
	} {
		f, err := openflow.New(tc.table, 1, 0, tc.proto, tc.match, tc.actions...)
		switch {
		case tc.want == "" && err != nil:
			t.Errorf("%v", err)
		case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%s: %v, want %q", f, err, tc.want)
		}
	}
}

// TestTwoProtocols: the protocol is an argument, and no match may add another one.
func TestTwoProtocols(t *testing.T) {
	if f, err := openflow.New(0, 1, 0, ovs.ProtocolIPv4, []ovs.Match{bare("tcp6")}, ovs.Drop()); err == nil {
		t.Errorf("two protocols: %s", f)
	}
}

type bare string

func (b bare) MarshalText() ([]byte, error) { return []byte(b), nil }
func (b bare) GoString() string             { return string(b) }
