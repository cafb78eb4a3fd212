package openflow_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/digitalocean/go-openvswitch/ovs"

	"github.com/weft-cni/weft/pkg/openflow"
)

func TestNewGroup(t *testing.T) {
	to := func(endpoint string) []ovs.Action {
		return []ovs.Action{openflow.CT{Commit: true, Table: 50, Zone: 22373,
			NAT: openflow.DestinationNAT(netip.MustParseAddrPort(endpoint))}.Action()}
	}
	g, err := openflow.NewGroup(7, openflow.Hash(openflow.IPDst, openflow.IPSrc), []openflow.Bucket{
		{ID: 5, Weight: 100, Actions: to("10.0.0.1:80")}, {ID: 6, Weight: 1, Actions: to("[fd00::1]:80")},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := "group_id=7,type=select,selection_method=hash,fields(ip_src,ip_dst),bucket=bucket_id:5,weight:100,actions=ct(commit,table=50,zone=22373,nat(dst=10.0.0.1:80))," +
		"bucket=bucket_id:6,actions=ct(commit,table=50,zone=22373,nat(dst=[fd00::1]:80))"
	if g.String() != want {
		t.Errorf("group = %s\nwant    %s", g, want)
	}
	if parsed, err := openflow.ParseGroup(" " + want); err != nil || parsed != g {
		t.Errorf("ParseGroup = %v, %v", parsed, err)
	}
	if got := g.Buckets(); len(got) != 2 ||
		got[1].Actions.String() != "ct(commit,table=50,zone=22373,nat(dst=[fd00::1]:80))" {
		t.Errorf("Buckets = %v", got)
	}
	for _, bad := range []string{"", "group_id=7", "group_id=x,type=select", "group_id=5000000000,type=all",
		" cookie=0x1,ip actions=drop"} {
		if _, err := openflow.ParseGroup(bad); err == nil {
			t.Errorf("ParseGroup(%q) gave no error", bad)
		}
	}
}

func TestNewGroupRefuses(t *testing.T) {
	drop := []ovs.Action{ovs.Drop()}
	for name, tc := range map[string]struct {
		by      openflow.Selection
		buckets []openflow.Bucket
	}{
		"no method":     {openflow.Selection{}, nil},
		"no fields":     {openflow.Hash(), nil},
		"unknown field": {openflow.Hash(openflow.Field{}), nil},
		"no weight":     {openflow.DPHash(), []openflow.Bucket{{ID: 1, Actions: drop}}},
		"no actions":    {openflow.DPHash(), []openflow.Bucket{{ID: 1, Weight: 1}}},
		"one id twice": {openflow.DPHash(), []openflow.Bucket{{ID: 1, Weight: 1, Actions: drop},
			{ID: 1, Weight: 1, Actions: drop}}},
		"reserved id": {openflow.DPHash(), []openflow.Bucket{{ID: 0xffffff00, Weight: 1, Actions: drop}}},
		"injected line": {openflow.DPHash(),
			[]openflow.Bucket{{ID: 1, Weight: 1, Actions: []ovs.Action{ovs.SetField("1\ngroup delete", "reg0")}}}},
		"broken action": {openflow.DPHash(),
			[]openflow.Bucket{
				{ID: 1, Weight: 1, Actions: []ovs.Action{openflow.Learn{Specs: []openflow.LearnSpec{
					openflow.LearnSame(openflow.Field{}.All())}}.Action()}}}},
		"broken ct": {openflow.DPHash(),
			[]openflow.Bucket{{ID: 1, Weight: 1, Actions: []ovs.Action{openflow.CT{Commit: true,
				NAT: openflow.DestinationNAT(netip.AddrPort{})}.Action()}}}},
		"nat, no commit": {openflow.DPHash(),
			[]openflow.Bucket{
				{ID: 1, Weight: 1, Actions: []ovs.Action{
					openflow.CT{NAT: openflow.SourceNAT(netip.MustParseAddr("10.0.0.1"))}.Action()}}}},
		"exec, no commit": {openflow.DPHash(),
			[]openflow.Bucket{{ID: 1, Weight: 1, Actions: []ovs.Action{openflow.CT{Exec: drop}.Action()}}}},
	} {
		if g, err := openflow.NewGroup(1, tc.by, tc.buckets); err == nil {
			t.Errorf("%s: accepted as %s", name, g)
		}
	}
}

// TestSeed: the seed stands where OVS prints it, 0 is not printed, and both are told to people.
func TestSeed(t *testing.T) {
	buckets := []openflow.Bucket{{ID: 1, Weight: 1, Actions: []ovs.Action{ovs.Drop()}}}
	for _, tc := range []struct {
		by         openflow.Selection
		want, told string
	}{
		{openflow.SeededHash(18446744073709551615, openflow.IPSrc),
			"selection_method=hash,selection_method_param=18446744073709551615,fields=ip_src",
			"hash of ip_src, seed 18446744073709551615"},
		{openflow.SeededHash(7, openflow.IPSrc, openflow.IPDst),
			"selection_method=hash,selection_method_param=7,fields(ip_src,ip_dst)", "hash of ip_src,ip_dst, seed 7"},
		{openflow.SeededHash(0, openflow.IPSrc), "selection_method=hash,fields=ip_src", "hash of ip_src"},
	} {
		g, err := openflow.NewGroup(7, tc.by, buckets)
		if err != nil || g.String() != "group_id=7,type=select,"+tc.want+",bucket=bucket_id:1,actions=drop" ||
			g.Selection() != tc.told {
			t.Errorf("%s: group %s, by %q, %v", tc.want, g, g.Selection(), err)
		}
	}
}

// TestGroupTooLarge: the error says how many buckets fit. TestGroupSize in pkg/ofswitch compares with a switch.
func TestGroupTooLarge(t *testing.T) {
	buckets := make([]openflow.Bucket, 1023)
	for i := range buckets {
		to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 80)
		buckets[i] = openflow.Bucket{ID: uint32(i), Weight: 1, Actions: []ovs.Action{openflow.CT{Commit: true, Table: 50,
			Zone: 1, NAT: openflow.DestinationNAT(to)}.Action()}}
	}
	if _, err := openflow.NewGroup(1, openflow.DPHash(), buckets[:1022]); err != nil {
		t.Error(err)
	}
	if _, err := openflow.NewGroup(1, openflow.DPHash(), buckets); err == nil ||
		!strings.Contains(err.Error(), "1022 of them fit") {
		t.Errorf("error = %v", err)
	}
}

// TestImpossible: a constructor given what cannot be makes a flow that is refused, and not a wrong one.
func TestImpossible(t *testing.T) {
	for i, m := range []ovs.Match{
		openflow.ConnectionState(0, 0), openflow.ConnectionState(openflow.StateNew,
			openflow.StateNew), openflow.ConnectionState(1, 0xfe),
		openflow.MarkBits(1).Is(2), openflow.MarkBits(0).Is(0), openflow.LabelBits{Lo: 1}.Is(openflow.Uint128{Hi: 1}),
		openflow.Bits{Mask: 0xf}.Is(0x10),
		openflow.DestinationPort(1, 0), openflow.DestinationPort(3, 0xfffe),
	} {
		if f, err := openflow.New(0, 1, 0, "", []ovs.Match{m}, ovs.Drop()); err == nil {
			t.Errorf("match %d was accepted as %s", i, f)
		}
	}
	_, noPort := openflow.PortFields(1)
	for i, a := range []ovs.Action{
		openflow.Learn{Specs: []openflow.LearnSpec{openflow.LearnSame(openflow.IPSrc.Bits(5, 4))}}.Action(),
		openflow.Conjunction(1, 0, 2), openflow.Conjunction(1, 3, 2), openflow.Conjunction(1, 1, 1), openflow.Conjunction(1,
			1, 65),
		openflow.MarkBits(0xf).Set(0x10), openflow.LabelBits{}.Set(openflow.Uint128{}), openflow.Bits{Mask: 0xf}.Set(0x10),
		openflow.CT{NAT: openflow.SourceNAT(netip.Addr{}), Commit: true}.Action(),
		openflow.Learn{Specs: []openflow.LearnSpec{openflow.LearnLoad(16, openflow.Register(1).Field().Bits(0, 3))}}.Action(),
		openflow.Learn{Specs: []openflow.LearnSpec{openflow.LearnSame(noPort.All())}}.Action(),
	} {
		if f, err := openflow.New(0, 1, 0, "", nil, a); err == nil {
			t.Errorf("action %d was accepted as %s", i, f)
		} else if errors.Unwrap(err) == nil || strings.Contains(err.Error(), "%!") {
			t.Errorf("action %d: error %q", i, err)
		}
	}
}

func TestWhereActionsLead(t *testing.T) {
	actions := openflow.ParseActions("learn(table=35,priority=1,load:0x5->NXM_NX_REG3[0..15]),move:NXM_OF_IP_SRC[]->NXM_NX_REG3[0..15],conjunction(5,1/2)," +
		"ct(commit,zone=1,nat(dst=10.0.0.1:80),exec(set_field:0x1->ct_mark)),ct(commit,table=21,zone=1),group:5,resubmit(,50),group:1462763521,IN_PORT,goto_table:60")
	var names []string
	var next []openflow.TableID
	for a := range actions.All() {
		names = append(names, a.Kind())
		if table, ok := a.Next(); ok {
			next = append(next, table)
		}
	}
	want := []string{"learn", "move->NXM_NX_REG3[0..15]", "conjunction", "ct", "ct", "group", "resubmit", "group",
		"IN_PORT", "goto_table"}
	if !slices.Equal(names, want) {
		t.Errorf("action names = %q\nwant           %q", names, want)
	}
	if !slices.Equal(next, []openflow.TableID{21, 50, 60}) {
		t.Errorf("next tables = %v", next)
	}
	if got := actions.Groups(); !slices.Equal(got, []openflow.GroupID{5, 1462763521}) {
		t.Errorf("groups = %v", got)
	}
}

func TestAddrValue(t *testing.T) {
	for addr, want := range map[string]string{"10.0.0.1": "0xa000001", "::": "0", "::1": "0x1",
		"fd57:6566:7400::2": "0xfd576566740000000000000000000002", "0.0.0.0": "0"} {
		if got := openflow.AddrValue(netip.MustParseAddr(addr)).String(); got != want {
			t.Errorf("%s is %s, want %s", addr, got, want)
		}
	}
}
