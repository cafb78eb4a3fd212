//go:build integration

package ofswitch_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/digitalocean/go-openvswitch/ovs"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/openflow"
)

func group(t testing.TB, line string) openflow.Group {
	t.Helper()
	g, err := openflow.ParseGroup(line)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// contents is what the switch has, as text: groups, then flows.
func contents(t testing.TB, sw *ofswitch.Switch) string {
	t.Helper()
	c, err := sw.Dump(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, g := range c.Groups {
		lines = append(lines, g.String())
	}
	for _, e := range c.Flows {
		lines = append(lines, e.Key.String()+" "+e.Actions.String())
	}
	return strings.Join(lines, "\n")
}

const (
	firstGroup  = "group_id=1073741825,type=select,selection_method=dp_hash,bucket=bucket_id:1,actions=resubmit(,50)"
	secondGroup = "group_id=1073741826,type=select,selection_method=dp_hash,bucket=bucket_id:1,actions=resubmit(,50)"
	seededGroup = "group_id=1073741827,type=select,selection_method=hash,selection_method_param=163636,fields=ip_src,bucket=bucket_id:1,actions=resubmit(,50)"
)

// TestBundleOfFlowsAndGroups: one delta holds groups and the flows that use them; all of it is done or nothing, in
// whatever way flows move between groups that come and go.
func TestBundleOfFlowsAndGroups(t *testing.T) {
	_, sw := start(t)
	apply := func(d openflow.Delta, want string) {
		t.Helper()
		if err := sw.Apply(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		if got := contents(t, sw); got != want {
			t.Fatalf("the switch has\n%s\nwant\n%s", got, want)
		}
	}
	using := func(id string) openflow.Flow {
		return flow(t, "cookie=0x5765050000000001,table=40,priority=5,ip actions=group:"+id)
	}
	first, second := group(t, firstGroup), group(t, secondGroup)
	apply(openflow.Delta{Set: []openflow.Flow{using("1073741825")}, SetGroups: []openflow.Group{first}},
		firstGroup+"\ntable=40,priority=5,ip group:1073741825")
	changed := group(t, strings.Replace(firstGroup, "resubmit(,50)", "drop", 1))

	// Refused in the middle, whatever came before it: nothing is done, and the switch lives. OVS 3.1 dies when a line
	// behind the deletion of a group in use is refused.
	bad := flow(t, "cookie=0x5765050000000001,table=40,priority=6,ip actions=group:77")
	for _, d := range []openflow.Delta{
		{Set: []openflow.Flow{bad}, SetGroups: []openflow.Group{changed, second}},
		{Set: []openflow.Flow{using("1073741826"), bad}, SetGroups: []openflow.Group{second},
			DeleteGroups: []openflow.GroupID{first.ID}},
		{Set: []openflow.Flow{bad}, DeleteGroups: []openflow.GroupID{first.ID}},
		{Set: []openflow.Flow{bad}, Delete: []openflow.Flow{using("1073741825")}, DeleteGroups: []openflow.GroupID{first.ID}},
		{SetGroups: []openflow.Group{second, group(t, "group_id=5,type=select,bucket=bucket_id:1,actions=no_such")},
			DeleteGroups: []openflow.GroupID{first.ID}},
	} {
		var rejected *ofswitch.RejectedError
		if err := sw.Apply(t.Context(), d); !errors.As(err, &rejected) || rejected.Detail == "" {
			t.Errorf("error %v, want a RejectedError", err)
		}
		if got, want := contents(t, sw), firstGroup+"\ntable=40,priority=5,ip group:1073741825"; got != want {
			t.Fatalf("after a refused bundle the switch has\n%s\nwant\n%s", got, want)
		}
	}

	apply(openflow.Delta{SetGroups: []openflow.Group{changed}},
		changed.String()+"\ntable=40,priority=5,ip group:1073741825")
	apply(openflow.Delta{Set: []openflow.Flow{using("1073741826")}, SetGroups: []openflow.Group{second},
		DeleteGroups: []openflow.GroupID{changed.ID}}, secondGroup+"\ntable=40,priority=5,ip group:1073741826")
	apply(openflow.Delta{Set: []openflow.Flow{flow(t, "cookie=0x5765050000000001,table=40,priority=5,ip "+
		"actions=goto_table:50")}, DeleteGroups: []openflow.GroupID{second.ID}}, "table=40,priority=5,ip goto_table:50")
	apply(openflow.Delta{Set: []openflow.Flow{using("1073741825")}, SetGroups: []openflow.Group{first}},
		firstGroup+"\ntable=40,priority=5,ip group:1073741825")
	apply(openflow.Delta{Delete: []openflow.Flow{using("1073741825")}, DeleteGroups: []openflow.GroupID{first.ID}}, "")
	apply(openflow.Delta{DeleteGroups: []openflow.GroupID{first.ID}}, "") // gone already
}

// TestGroupSize: what NewGroup lets through is what the switch takes and gives back, and what it refuses is hardly less
// than what the switch does not take.
func TestGroupSize(t *testing.T) {
	ovsd, sw := start(t)
	to := func(a netip.Addr, exec ...ovs.Action) ovs.Action {
		return openflow.CT{Commit: true, Table: 50, Zone: flows.Zone, NAT: openflow.DestinationNAT(netip.AddrPortFrom(a,
			8080)), Exec: exec}.Action()
	}
	v4 := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}) }
	v6 := func(i int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("fd44::%x", i+1)) }
	remember := func(a netip.Addr) []ovs.Action {
		return []ovs.Action{openflow.MarkBits(0xfffffffe).Set(0x1f900002), openflow.AllLabel.Set(openflow.AddrValue(a))}
	}
	fiveTuple := openflow.Hash(openflow.IPv6Src, openflow.IPv6Dst, openflow.IPSrc, openflow.IPDst, openflow.IPProto,
		openflow.TCPSrc, openflow.TCPDst, openflow.UDPSrc, openflow.UDPDst)
	for name, tc := range map[string]struct {
		by     openflow.Selection
		bucket func(int) []ovs.Action
	}{
		"IPv4":        {openflow.DPHash(), func(i int) []ovs.Action { return []ovs.Action{to(v4(i))} }},
		"IPv4 marked": {fiveTuple, func(i int) []ovs.Action { return []ovs.Action{to(v4(i), remember(v4(i))...)} }},
		"IPv6 marked": {openflow.DPHash(), func(i int) []ovs.Action { return []ovs.Action{to(v6(i), remember(v6(i))...)} }},
		"IPv4 affinity": {openflow.Hash(openflow.IPSrc), func(i int) []ovs.Action {
			return []ovs.Action{affinity(addr4, openflow.IPProtoTCP).Action(), to(v4(i), remember(v4(i))...)}
		}},
		"IPv6 affinity": {openflow.Hash(openflow.IPv6Src), func(i int) []ovs.Action {
			return []ovs.Action{affinity(addr6, openflow.IPProtoUDP).Action(), openflow.Register(4).Set(uint32(i)),
				to(v6(i), remember(v6(i))...)}
		}},
		"groups": {fiveTuple, func(i int) []ovs.Action { return []ovs.Action{openflow.ToGroup(openflow.GroupID(i))} }},
		"resubmit": {openflow.DPHash(), func(int) []ovs.Action {
			return []ovs.Action{openflow.Resubmit(50), openflow.Port(3)}
		}},
		"fields": {openflow.DPHash(), func(i int) []ovs.Action {
			return []ovs.Action{openflow.Register(4).Set(uint32(i)), openflow.Bits{Register: 3, Mask: 0xff}.Set(1)}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			var buckets []openflow.Bucket
			for i := range 3000 {
				buckets = append(buckets, openflow.Bucket{ID: uint32(i), Weight: 100, Actions: tc.bucket(i)})
			}
			most := 0
			var largest openflow.Group
			for low, high := 1, len(buckets); low <= high; {
				middle := (low + high) / 2
				if g, err := openflow.NewGroup(1, tc.by, buckets[:middle]); err == nil {
					most, largest, low = middle, g, middle+1
				} else {
					high = middle - 1
				}
			}
			if err := sw.Apply(t.Context(), openflow.Delta{SetGroups: []openflow.Group{largest}}); err != nil {
				t.Fatalf("%d buckets: %v", most, err)
			}
			if got := contents(t, sw); got != largest.String() {
				t.Fatalf("%d buckets were read back as %d bytes, want %d", most, len(got), len(largest.String()))
			}
			// With 6 % more, as text, the switch does not take them.
			b := strings.Split(largest.String(), ",bucket=")
			for i := range most/16 + 1 {
				b = append(b, strings.Replace(b[i+1], "bucket_id:", "bucket_id:9", 1))
			}
			more := group(t, strings.Join(b, ",bucket="))
			if err := sw.Apply(t.Context(), openflow.Delta{SetGroups: []openflow.Group{more}}); err == nil &&
				contents(t, sw) == more.String() {
				t.Errorf("the switch takes %d buckets, NewGroup only %d", len(b)-1, most)
			}
			ofctl(t, ovsd, "del-groups", bridge)
			t.Logf("%d buckets", most)
		})
	}
}
