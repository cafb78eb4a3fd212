//go:build integration

package ofswitch_test

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/internal/testing/vswitch"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/openflow"
)

// program gives the switch the pipeline.
func program(t *testing.T, sw *ofswitch.Switch) {
	t.Helper()
	desired, err := flows.Compile(snapshot(1))
	if err == nil {
		err = sw.Apply(t.Context(), flows.Diff(openflow.Contents{}, desired).OpenFlow())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// connect begins connections with marks, each with a packet that leaves nowhere.
func connect(t *testing.T, ovs *vswitch.Instance, list ...openflow.Connection) {
	t.Helper()
	var b strings.Builder
	for _, c := range list {
		nat := ""
		if c.Endpoint != c.Destination {
			nat = fmt.Sprintf(",nat(dst=%s)", c.Endpoint)
		}
		actions := fmt.Sprintf("ct(commit,zone=%d%s,exec(set_field:%#x->ct_mark))", c.Zone, nat, c.Mark)
		fmt.Fprintf(&b, "packet-out in_port=controller packet=%s actions=%s\n", hex.EncodeToString(c.Packet()), actions)
	}
	file := filepath.Join(t.TempDir(), "packets")
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ovs.Run(t.Context(), "ovs-ofctl", "-O", "OpenFlow15", "bundle", bridge, file); err != nil {
		t.Fatal(err)
	}
}

// send has the switch process a packet of each connection.
func send(t *testing.T, sw *ofswitch.Switch, verdict flows.Verdict, list []openflow.Connection) error {
	t.Helper()
	packets := make([]ofswitch.PacketOut, len(list))
	for i, c := range list {
		packets[i] = ofswitch.PacketOut{Packet: c.Packet(), Actions: verdict(c)}
	}
	return sw.Send(t.Context(), packets)
}

func tracked(t *testing.T, sw *ofswitch.Switch, zone uint16) (list []openflow.Connection) {
	t.Helper()
	if err := sw.Connections(t.Context(), zone, func(c openflow.Connection) { list = append(list, c) }); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(list, func(a, b openflow.Connection) int {
		return int(a.ICMP.ID) + int(a.Source.Port()) - int(b.ICMP.ID) - int(b.Source.Port())
	})
	return list
}

// TestConnections: connections of every sort are read as they were begun, lose the mark when they are denied, and are
// gone when they are removed, each alone.
func TestConnections(t *testing.T) {
	ovs, sw := start(t)
	program(t, sw)
	at := netip.MustParseAddrPort
	const mark = uint32(flows.MarkAllowed | flows.MarkGateway)
	var all []openflow.Connection
	for i, ends := range [][3]string{{"10.0.0.1", "10.0.0.2", "10.0.0.3:53"}, {"[fd00::1]", "[fd00::2]", "[fd00::3]:53"}} {
		n := uint16(1000 * (i + 1))
		one := func(protocol uint8, number uint16, port string) openflow.Connection {
			c := openflow.Connection{Zone: flows.Zone, Protocol: protocol, Source: at(fmt.Sprintf("%s:%d", ends[0], number)),
				Destination: at(ends[1] + ":" + port), Mark: mark}
			c.Endpoint = c.Destination
			return c
		}
		all = append(all, one(openflow.IPProtoUDP, n+1, "5000"), one(openflow.IPProtoUDP, n+2, "5000"))
		balanced := one(openflow.IPProtoUDP, n+3, "53")
		balanced.Endpoint = at(ends[2])
		icmp := one(openflow.IPProtoICMP, 0, "0")
		icmp.ICMP = openflow.ICMP{ID: n + 4, Type: 8}
		if i == 1 {
			icmp.Protocol, icmp.ICMP.Type = openflow.IPProtoICMPv6, 128
		}
		all = append(all, balanced, icmp)
	}
	other := openflow.Connection{Zone: flows.Zone, Protocol: 47, Source: at("10.0.0.1:0"), Destination: at("10.0.0.2:0"),
		Endpoint: at("10.0.0.2:0"), Mark: mark}
	all = append([]openflow.Connection{other}, all...)
	connect(t, ovs, all...)
	source := all[1]
	source.Zone = flows.SourceZone
	connect(t, ovs, source)
	if got := tracked(t, sw, flows.Zone); !slices.Equal(got, all) {
		t.Fatalf("read\n%+v\nwant\n%+v", got, all)
	}
	if err := send(t, sw, flows.Deny, all); err != nil {
		t.Fatal(err)
	}
	ended := all[1]
	ended.Source = at("10.0.0.9:9")
	if err := send(t, sw, flows.Deny, []openflow.Connection{ended}); err != nil { // does not begin again
		t.Fatal(err)
	}
	marked := func(when string, mark openflow.MarkBits) {
		t.Helper()
		for i := range all {
			all[i].Mark = uint32(mark)
		}
		if got := tracked(t, sw, flows.Zone); !slices.Equal(got, all) {
			t.Fatalf("after all were %s:\n%+v\nwant\n%+v", when, got, all)
		}
	}
	marked("denied", flows.MarkDenied|flows.MarkGateway)
	for range 2 { // who has the mark keeps it
		if err := send(t, sw, flows.Allow, append(slices.Clone(all), ended)); err != nil {
			t.Fatal(err)
		}
		marked("allowed again", flows.MarkAllowed|flows.MarkGateway)
	}
	for len(all) > 0 {
		if all[0].Protocol == openflow.IPProtoICMPv6 { // the last one
			if err := sw.Remove(t.Context(), all[0]); !errors.Is(err, ofswitch.ErrNotRemovable) {
				t.Fatalf("error = %v", err)
			}
			break
		}
		for range 2 { // idempotent
			if err := sw.Remove(t.Context(), all[0]); err != nil {
				t.Fatal(err)
			}
		}
		all = all[1:]
		if got := tracked(t, sw, flows.Zone); !slices.Equal(got, all) {
			t.Fatalf("one was removed:\n%+v\nwant\n%+v", got, all)
		}
	}
	if len(all) != 1 {
		t.Fatalf("%+v are left, want ICMPv6", all)
	}
	if got := tracked(t, sw, flows.SourceZone); len(got) != 1 || got[0] != source {
		t.Errorf("the other zone: %+v", got)
	}
	if err := sw.Remove(t.Context(), openflow.Connection{Zone: flows.Zone}); err == nil {
		t.Error("a connection of no addresses was removed")
	}
}

// TestManyConnections is the cost that a round is bounded by.
func TestManyConnections(t *testing.T) {
	ovs, sw := start(t)
	program(t, sw)
	var many []openflow.Connection
	for i := range 4096 {
		to := netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), uint16(i+1))
		many = append(many, openflow.Connection{Zone: flows.Zone, Protocol: openflow.IPProtoUDP,
			Source: netip.MustParseAddrPort("10.0.0.1:1"), Destination: to, Endpoint: to,
			Mark: uint32(flows.MarkAllowed)})
	}
	connect(t, ovs, many...)
	took := func(what string, do func() error) {
		began := time.Now()
		if err := do(); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %s", what, time.Since(began).Round(time.Millisecond))
	}
	took("4096 denied", func() error { return send(t, sw, flows.Deny, many) })
	n := 0
	took("4096 read", func() error {
		return sw.Connections(t.Context(), flows.Zone, func(c openflow.Connection) {
			if c.Mark == uint32(flows.MarkDenied) {
				n++
			}
		})
	})
	if n != len(many) {
		t.Fatalf("%d connections are denied, want %d", n, len(many))
	}
	took("4096 removed", func() error {
		for _, c := range many {
			if err := sw.Remove(t.Context(), c); err != nil {
				return err
			}
		}
		return nil
	})
	testenv.Eventually(t, time.Second, func() error {
		if left := tracked(t, sw, flows.Zone); len(left) > 0 {
			return fmt.Errorf("%d are left", len(left))
		}
		return nil
	})
}
