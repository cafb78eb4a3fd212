package openflow_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/digitalocean/go-openvswitch/ovs"

	"github.com/weft-cni/weft/pkg/openflow"
)

func TestNewIsCanonical(t *testing.T) {
	matches := []ovs.Match{
		openflow.Source(netip.MustParsePrefix("10.244.2.7/24")),
		ovs.InPortMatch(1),
		openflow.TunnelSource(netip.MustParseAddr("10.0.0.2")),
		openflow.Bits{Register: 0, Mask: 0xf}.Is(2),
	}
	want := "cookie=0x57e7000000000001,table=10,priority=100,ip,reg0=0x2/0xf,tun_src=10.0.0.2,in_port=1,nw_src=10.244.2.0/24 actions=set_field:0x14->reg1,goto_table:60"
	for range 2 {
		f, err := openflow.New(10, 100, 0x57e7000000000001, ovs.ProtocolIPv4, matches, openflow.Register(1).Set(20),
			openflow.Goto(60))
		if err != nil {
			t.Fatal(err)
		}
		if f.String() != want {
			t.Errorf("flow = %s\nwant   %s", f, want)
		}
		slices.Reverse(matches) // the order in which a caller names the fields must not matter
	}
}

func TestNewRefuses(t *testing.T) {
	if _, err := openflow.New(0, 1, 0, "", nil); err == nil {
		t.Error("a flow without actions was accepted")
	}
	if _, err := openflow.New(0, 1, 0, "", []ovs.Match{ovs.NetworkSource("fd00::1")}, ovs.Drop()); err == nil {
		t.Error("an IPv6 address in nw_src was accepted")
	}
	for _, injected := range []string{"1\nflow add table=0 actions=NORMAL", "1 actions=NORMAL", "1\x00"} {
		if _, err := openflow.New(0, 1, 0, "", []ovs.Match{ovs.FieldMatch("reg0", injected)}, ovs.Drop()); err == nil {
			t.Errorf("the match %q was accepted", injected)
		}
		if _, err := openflow.New(0, 1, 0, "", nil, ovs.SetField(injected, "reg0")); err == nil {
			t.Errorf("the action with %q was accepted", injected)
		}
	}
	if _, err := openflow.New(0, 1, 0, "", nil, ovs.SetField("", "reg0")); err == nil {
		t.Error("an incomplete action was accepted")
	}
}

func TestParse(t *testing.T) {
	line := ` cookie=0x5745000000000001, duration=1.045s, table=60, n_packets=12, n_bytes=3400, idle_age=1, priority=100,ip,nw_dst=10.244.3.0/24 actions=set_field:10.0.0.3->tun_dst,ct(commit,zone=1,nat(dst=1.2.3.4:80)),goto_table:90`
	e, err := openflow.Parse(line)
	if err != nil {
		t.Fatal(err)
	}
	want := openflow.Entry{
		Flow: openflow.Flow{
			Key:     openflow.Key{Table: 60, Priority: 100, Match: openflow.ParseMatch("ip,nw_dst=10.244.3.0/24")},
			Cookie:  0x5745000000000001,
			Actions: openflow.ParseActions("set_field:10.0.0.3->tun_dst,ct(commit,zone=1,nat(dst=1.2.3.4:80)),goto_table:90"),
		},
		Stats: openflow.Stats{Packets: 12, Bytes: 3400},
	}
	if e != want {
		t.Errorf("Parse = %+v\nwant    %+v", e, want)
	}
	if e, err := openflow.Parse("priority=0 actions=drop"); err != nil || e.Key != (openflow.Key{}) {
		t.Errorf("the empty flow: %+v, %v", e, err)
	}
	if e, err := openflow.Parse("cookie=0x1, table=3, ip actions=drop"); err != nil || e.Priority != 32768 {
		t.Errorf("a priority that is not printed is OpenFlow's default: %+v, %v", e, err)
	}
	for _, bad := range []string{"", "table=1", "table=x actions=drop", "priority=70000 actions=drop",
		"cookie=?,ip actions=drop"} {
		if _, err := openflow.Parse(bad); err == nil {
			t.Errorf("Parse(%q) gave no error", bad)
		}
	}
}

func TestActionParts(t *testing.T) {
	var names []string
	for a := range openflow.ParseActions(
		"ct(commit,nat(dst=10.0.0.1:80)),set_field:0x1/0xf->reg0,move:NXM_OF_ETH_SRC[]->NXM_OF_ETH_DST[],goto_table:6").All() {
		names = append(names, a.Kind())
	}
	want := []string{"ct", "set_field->reg0", "move->NXM_OF_ETH_DST[]", "goto_table"}
	if !slices.Equal(names, want) {
		t.Errorf("action names = %q, want %q", names, want)
	}
	var fields []string
	for name, value := range openflow.ParseMatch("in_port=1,reg0=0x2/0xf,ip").Fields() {
		fields = append(fields, name+" "+value)
	}
	if want := []string{"ip ", "reg0 0x2/0xf", "in_port 1"}; !slices.Equal(fields, want) {
		t.Errorf("fields = %q, want %q", fields, want)
	}
	if (openflow.Actions{}) != openflow.ParseActions("drop") || openflow.ParseMatch("") != (openflow.Match{}) {
		t.Error("the zero values are not what the switch prints as nothing")
	}
}

func TestKeyOrder(t *testing.T) {
	a, b := openflow.ParseMatch("a"), openflow.ParseMatch("b")
	keys := []openflow.Key{{Table: 5}, {Table: 0, Priority: 1}, {Table: 0, Priority: 9, Match: b},
		{Table: 0, Priority: 9, Match: a}}
	slices.SortFunc(keys, openflow.Key.Compare)
	want := []openflow.Key{{Table: 0, Priority: 9, Match: a}, {Table: 0, Priority: 9, Match: b},
		{Table: 0, Priority: 1}, {Table: 5}}
	if !slices.Equal(keys, want) {
		t.Errorf("order = %v, want %v", keys, want)
	}
}

// TestReadBack: what a match and an action were made of can be read from their text, and nothing that is not there.
func TestReadBack(t *testing.T) {
	type read struct {
		proto uint8
		to    string
		reg   uint32
		has   bool
	}
	to := func(a string) ovs.Match { return openflow.Destination(openflow.Host(netip.MustParseAddr(a))) }
	port := func(n uint16) ovs.Match { return openflow.DestinationPort(n, 0xffff) }
	from, wide := openflow.Source(netip.MustParsePrefix("10.0.0.0/8")), openflow.Destination(netip.MustParsePrefix(
		"10.0.0.0/8"))
	reg := openflow.Register(4)
	for _, c := range []struct {
		proto   ovs.Protocol
		matches []ovs.Match
		want    read
	}{
		{ovs.ProtocolTCPv4, []ovs.Match{to("10.96.0.1"), port(80), reg.Is(0x12)}, read{openflow.IPProtoTCP, "10.96.0.1:80",
			0x12, true}},
		{ovs.ProtocolUDPv6, []ovs.Match{to("fd96::1"), port(53), reg.Is(0)}, read{openflow.IPProtoUDP, "[fd96::1]:53", 0,
			true}},
		{openflow.ProtocolSCTPv4, []ovs.Match{to("10.96.0.1"), from}, read{openflow.IPProtoSCTP, "10.96.0.1:0", 0, false}},
		{ovs.ProtocolIPv4, []ovs.Match{wide, openflow.Bits{Register: reg, Mask: 0xf}.Is(2)}, read{to: "invalid AddrPort"}},
		{"", []ovs.Match{openflow.Register(14).Is(1)}, read{to: "invalid AddrPort"}},
	} {
		f, err := openflow.New(0, 1, 0, c.proto, c.matches, ovs.Drop())
		if err != nil {
			t.Fatal(err)
		}
		proto, to := f.Match.Destination()
		value, has := reg.In(f.Match)
		if got := (read{proto, to.String(), value, has}); got != c.want {
			t.Errorf("%q is read as %+v, want %+v", f.Match, got, c.want)
		}
	}
	whole, other, part := openflow.Register(1).Set(16), openflow.Register(11).Set(3), openflow.Bits{Register: 1,
		Mask: 0xff}.Set(5)
	f, err := openflow.New(0, 1, 0, "", nil, whole, other, part, openflow.Goto(60))
	if err != nil {
		t.Fatal(err)
	}
	var set []uint32
	for action := range f.Actions.All() {
		if v, ok := openflow.Register(1).SetBy(action); ok {
			set = append(set, v)
		}
	}
	if !slices.Equal(set, []uint32{16}) {
		t.Errorf("%s writes %d to the whole of register 1, want 16 alone", f.Actions, set)
	}
}
