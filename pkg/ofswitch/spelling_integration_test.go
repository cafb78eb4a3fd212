//go:build integration

package ofswitch_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/digitalocean/go-openvswitch/ovs"
	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/internal/testing/vswitch"
	"github.com/weft-cni/weft/pkg/openflow"
)

// TestSpelling sends one flow or group for every constructor of pkg/openflow and compares what the switch says it has,
// byte for byte, flows and groups alike.
func TestSpelling(t *testing.T) {
	ovsd, _ := start(t)
	groups, lines := everyGroup(t), everyFlow(t)
	for _, g := range groups {
		lines = append(lines, "group add "+g.String())
	}
	// Groups before the flows that use them.
	slices.SortStableFunc(lines, func(a, b string) int { return strings.Compare(b[:1], a[:1]) })
	file := filepath.Join(t.TempDir(), "bundle")
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	dump := func(what string) []string { return ofctl(t, ovsd, what, bridge) }
	ofctl(t, ovsd, "bundle", bridge, file)

	var gotFlows, gotGroups []string
	for _, line := range dump("dump-flows") {
		e, err := openflow.Parse(line)
		if err != nil {
			t.Fatal(err)
		}
		gotFlows = append(gotFlows, "flow add "+e.String())
	}
	for _, line := range dump("dump-groups") {
		g, err := openflow.ParseGroup(line)
		if err != nil {
			t.Fatal(err)
		}
		gotGroups = append(gotGroups, "group add "+g.String())
	}
	got := slices.Concat(gotGroups, gotFlows)
	slices.Sort(got)
	slices.Sort(lines)
	if diff := cmp.Diff(lines, got); diff != "" {
		t.Errorf("sent and read back differ (-sent +read):\n%s", diff)
	}
	// Parse sorts fields; the switch must have printed them in our order without that.
	for _, line := range dump("dump-flows") {
		e, err := openflow.Parse(line)
		if err != nil {
			t.Fatal(err)
		}
		if e.Match != (openflow.Match{}) && !strings.Contains(line, ","+e.Match.String()+" actions=") {
			t.Errorf("the switch prints %q, we write its match as %q", line, e.Match)
		}
	}
}

// ofctl calls ovs-ofctl and gives what it printed without the reply's headings.
func ofctl(t *testing.T, ovsd *vswitch.Instance, args ...string) []string {
	t.Helper()
	out, err := ovsd.Run(t.Context(), "ovs-ofctl", append([]string{"-O", "OpenFlow15", "--no-names"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, line := range strings.Split(out, "\n") {
		if strings.Contains(line, "=") && !strings.Contains(line, " reply ") {
			lines = append(lines, line)
		}
	}
	return lines
}

var (
	addr4, addr6 = netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd57:6566:7400::2")
	label6       = openflow.AddrValue(netip.MustParseAddr("fd44::2"))
)

// affinity is a learn action such as a Service's group has.
func affinity(vip netip.Addr, proto uint8) openflow.Learn {
	source, destination := openflow.AddrFields(vip)
	_, port := openflow.PortFields(proto)
	return openflow.Learn{
		Table: 35, Priority: 100, Cookie: 0x5765050000000001, IdleTimeout: 10800, Limit: 10000,
		Specs: []openflow.LearnSpec{
			openflow.LearnFamily(vip), openflow.LearnSame(source.All()), openflow.LearnSame(destination.All()),
			openflow.LearnProtocol(proto), openflow.LearnSame(port.All()),
			openflow.LearnLoad(5, openflow.Register(3).Field().Bits(0, 15)), openflow.LearnLoad(0,
				openflow.Register(6).Field().All()),
		},
	}
}

func everyGroup(t *testing.T) []openflow.Group {
	t.Helper()
	mark, label := openflow.MarkBits(0xfffffffe).Set(0x1f900000), openflow.AllLabel.Set(openflow.AddrValue(addr4))
	to := func(endpoint string, exec ...ovs.Action) ovs.Action {
		return openflow.CT{Commit: true, Table: 50, Zone: 22373,
			NAT: openflow.DestinationNAT(netip.MustParseAddrPort(endpoint)), Exec: exec}.Action()
	}
	newGroup := func(id openflow.GroupID, by openflow.Selection, buckets ...openflow.Bucket) openflow.Group {
		g, err := openflow.NewGroup(id, by, buckets)
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	bucket := func(id uint32, weight uint16, actions ...ovs.Action) openflow.Bucket {
		return openflow.Bucket{ID: id, Weight: weight, Actions: actions}
	}
	return []openflow.Group{
		newGroup(1, openflow.DPHash()),
		newGroup(2, openflow.DPHash(), bucket(5, 100, to("10.0.0.1:80")), bucket(7, 1, to("[fd44::2]:65535", mark, label,
			openflow.AllLabel.Set(label6)))),
		newGroup(0x57000003, openflow.Hash(openflow.IPSrc), bucket(0xffffff00-1, 65535, openflow.Resubmit(50)),
			bucket(0, 1, ovs.Drop())),
		newGroup(6, openflow.SeededHash(1, openflow.IPv6Src), bucket(1, 1, openflow.Resubmit(50))),
		newGroup(7, openflow.SeededHash(1<<64-1, openflow.IPSrc, openflow.IPDst), bucket(1, 1, openflow.Resubmit(50)),
			bucket(2, 3, openflow.Resubmit(50))),
		newGroup(4, openflow.Hash(openflow.SCTPDst, openflow.SCTPSrc, openflow.UDPDst, openflow.UDPSrc, openflow.TCPDst,
			openflow.TCPSrc, openflow.IPProto, openflow.IPv6Dst,
			openflow.IPv6Src, openflow.IPDst, openflow.IPSrc, openflow.Register(3).Field(),
			openflow.IPSrc), bucket(1, 1, openflow.ToGroup(2)), bucket(2, 1, openflow.ToGroup(0x57000003))),
		newGroup(5, openflow.DPHash(), bucket(1, 1, affinity(addr4, openflow.IPProtoTCP).Action(),
			openflow.Register(3).Set(5), to("10.0.0.1:80")),
			bucket(2, 1, affinity(addr6, openflow.IPProtoUDP).Action(), to("[fd44::2]:80"))),
	}
}

func everyFlow(t *testing.T) []string {
	t.Helper()
	var lines []string
	add := func(proto ovs.Protocol, match []ovs.Match, actions ...ovs.Action) {
		f, err := openflow.New(1, uint16(len(lines)+1), 0x5765050000000001, proto, match, actions...)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, "flow add "+f.String())
	}
	tcp4, tcp6, ip4, ip6 := ovs.ProtocolTCPv4, ovs.ProtocolTCPv6, ovs.ProtocolIPv4, ovs.ProtocolIPv6
	m := func(m ...ovs.Match) []ovs.Match { return m }
	end := openflow.Goto(50)

	// Matches, in an order that is not OVS's.
	everything := m(openflow.DestinationPort(0x1f90, 0xfff0),
		openflow.Destination(netip.MustParsePrefix("10.96.0.1/32")), openflow.Source(netip.MustParsePrefix("10.244.0.0/16")),
		ovs.InPortMatch(3),
		openflow.TunnelSource(addr4), openflow.Register(9).Is(4), openflow.Register(15).Is(0), openflow.Register(2).Is(
			0xffffffff), openflow.Bits{Register: 0, Mask: 0xf}.Is(2),
		openflow.Bits{Register: 1, Mask: 0xffffffff}.Is(2), openflow.Bits{Register: 3, Mask: 0xf0}.Is(0),
		openflow.LabelBits{Lo: 0xff}.Is(openflow.Uint128{Lo: 0x10}), openflow.MarkBits(1).Is(1), ovs.ConnectionTrackingZone(
			22373),
		openflow.ConnectionState(openflow.StateTrk|openflow.StateNew|openflow.StateRpl|openflow.StateDNAT,
			openflow.StateInv|openflow.StateRel|openflow.StateEst),
		openflow.ConjunctionID(0xffffffff))
	add(tcp4, everything, ovs.Drop())
	add(tcp6, m(openflow.Destination(netip.MustParsePrefix("fd44::/64")), openflow.DestinationPort(80, 0xffff),
		openflow.AllLabel.Is(label6),
		openflow.MarkBits(0xffffffff).Is(0), openflow.ConnectionState(openflow.StateTrk|openflow.StateEst, 0)), ovs.Drop())
	add(ip4, m(openflow.ConnectionState(openflow.StateInv|openflow.StateTrk, 0)), ovs.Drop())
	add(ip6, m(openflow.ConnectionState(0, openflow.StateTrk), openflow.MarkBits(0xff00).Is(0),
		openflow.LabelBits{Hi: 1 << 63}.Is(openflow.Uint128{})), ovs.Drop())
	add(tcp4, m(openflow.DestinationPort(0, 0x8000)), ovs.Drop())
	for _, proto := range []ovs.Protocol{ovs.ProtocolUDPv4, ovs.ProtocolUDPv6, openflow.ProtocolSCTPv4,
		openflow.ProtocolSCTPv6} {
		add(proto, m(openflow.DestinationPort(0x1000, 0xf000)), ovs.Drop())
		add(proto, m(openflow.DestinationPort(53, 0xffff)), ovs.Drop())
	}

	// Connection tracking.
	zone := uint16(22373)
	add(ip4, nil, openflow.CT{Table: 21, Zone: zone}.Action())
	add(ip6, nil, openflow.CT{Table: 21, Zone: zone, NAT: openflow.Translate()}.Action())
	add(ip4, nil, openflow.CT{Commit: true, Zone: zone, Exec: []ovs.Action{
		openflow.MarkBits(1).Set(1), openflow.MarkBits(0xffff0000).Set(0), openflow.MarkBits(0xffffffff).Set(5),
		openflow.LabelBits{Lo: 0xffffffff}.Set(openflow.AddrValue(addr4)),
		openflow.AllLabel.Set(openflow.Uint128{}),
	}}.Action(), end)
	add(ip4, nil, openflow.CT{Commit: true, Table: 90, Zone: zone, NAT: openflow.SourceNAT(addr4)}.Action())
	add(ip4, m(ovs.InPortMatch(3)), openflow.CT{Commit: true, Table: 90, Zone: zone, NAT: openflow.SourceNATPorts(addr4,
		1024, 32767)}.Action())
	add(ip6, m(ovs.InPortMatch(3)), openflow.CT{Commit: true, Table: 90, Zone: zone, NAT: openflow.SourceNATPorts(addr6,
		1024, 32767)}.Action())
	add(ip6, nil, openflow.CT{Commit: true, Table: 90, Zone: zone, NAT: openflow.SourceNAT(addr6),
		Exec: []ovs.Action{openflow.AllLabel.Set(label6)}}.Action())
	add(tcp4, nil, openflow.CT{Commit: true, Table: 50, Zone: zone, NAT: openflow.DestinationNAT(netip.AddrPortFrom(addr4,
		80))}.Action())
	add(tcp6, nil, openflow.CT{Commit: true, NAT: openflow.DestinationNAT(netip.AddrPortFrom(addr6, 80))}.Action(),
		openflow.CT{Commit: true, NAT: openflow.Translate()}.Action())

	// Groups, tables, conjunctions.
	add(ip4, nil, openflow.ToGroup(2))
	add(ip4, nil, openflow.ToGroup(0x57000003), openflow.Resubmit(50), end)
	add(ip4, nil, openflow.Conjunction(0xffffffff, 1, 3), openflow.Conjunction(5, 2, 2))

	// Fields.
	add(ip4, nil, openflow.Register(15).Set(0), openflow.Bits{Register: 3, Mask: 0xff}.Set(0),
		openflow.Bits{Register: 3, Mask: 0xffffffff}.Set(7))

	// Learning.
	add(tcp4, nil, affinity(addr4, openflow.IPProtoTCP).Action(), openflow.Resubmit(50))
	add(ovs.ProtocolUDPv6, nil, affinity(addr6, openflow.IPProtoUDP).Action(), end)
	add(openflow.ProtocolSCTPv4, nil, affinity(addr4, openflow.IPProtoSCTP).Action())
	add(ip4, nil, openflow.Learn{Table: 35, Priority: 0}.Action(), openflow.Learn{Table: 35, Priority: 32768}.Action())
	// Copies.
	add(ip4, nil, openflow.Copy{Bytes: 128, Data: []byte{0x57, 0, 0xff}, Meter: 22373}.Action())
	add(ip4, nil, openflow.ToController(22373, 0x07))
	add(ip6, m(openflow.ConjunctionID(5), openflow.ConnectionState(openflow.StateTrk|openflow.StateNew, 0)),
		openflow.Copy{Bytes: 1, Data: []byte{1}, Meter: 22374}.Action(), end)
	return lines
}
