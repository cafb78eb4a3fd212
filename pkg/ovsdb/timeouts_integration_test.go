//go:build integration

package ovsdb_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/weft-cni/weft/pkg/model"
)

// zone is the UUID of a conntrack zone's row.
func (l *lab) zone(number int) string {
	l.t.Helper()
	return l.vsctl("get", "Datapath", l.vsctl("get", "Open_vSwitch", ".", "datapaths:netdev"),
		fmt.Sprintf("ct_zones:%d", number))
}

// tracked is the datapath's action on a connection in a zone, with the number of its timeout policy, if any.
func (l *lab) tracked(zone int) string {
	l.t.Helper()
	l.ofctl("-O", "OpenFlow15", "add-flow", model.BridgeName,
		fmt.Sprintf("table=0,priority=1,ip,actions=ct(commit,zone=%d)", zone))
	out, err := l.ovs.Run(l.ctx, "ovs-appctl", "ofproto/trace", model.BridgeName, "in_port=1,udp,nw_ttl=64")
	if err != nil {
		l.t.Fatal(err)
	}
	_, actions, _ := strings.Cut(out, "Datapath actions: ")
	return actions
}

// TestTimeoutsApply: the datapath has the timeouts of the database, also after its last bridge was deleted and
// recreated: the new datapath has none, and ovs-vswitchd sends none that the database had before.
func TestTimeoutsApply(t *testing.T) {
	l := newLab(t)
	l.ensure()
	for _, again := range []string{"at first", "recreated"} {
		for _, zone := range []int{22373, 22374, 22375} {
			if got := l.tracked(zone); !strings.Contains(got, "timeout=") {
				t.Errorf("%s, zone %d: the datapath has no timeouts: %s", again, zone, got)
			}
		}
		kept := "Zone:22375, Timeout Policies: icmp_first=3600 icmp_reply=3600 tcp_close=3600 tcp_established=3600 "
		if got := l.vsctl("list-zone-tp", "netdev"); !strings.Contains(got, kept) {
			t.Errorf("%s: zone 22375 does not keep every connection for an hour: %s", again, got)
		}
		if got := l.tracked(7); strings.Contains(got, "timeout=") {
			t.Errorf("%s: another zone has timeouts: %s", again, got)
		}
		l.vsctl("del-br", model.BridgeName)
		l.eventually("the bridge is recreated", func() bool { return len(l.ensure()) > 0 })
	}
}

// TestForeignDatapathSurvives: an existing Datapath row of another program is used, and its content stays.
func TestForeignDatapathSurvives(t *testing.T) {
	l := newLab(t)
	l.vsctl("--id=@dp", "create", "Datapath", "datapath_version=0", "external_ids:owner=me", "--", "set", "Open_vSwitch",
		".", "datapaths:netdev=@dp")
	l.vsctl("add-zone-tp", "netdev", "zone=7", "tcp_close=5", "udp_first=6")
	row := l.vsctl("get", "Open_vSwitch", ".", "datapaths:netdev")
	l.ensure()
	l.vsctl("del-zone-tp", "netdev", "zone=22374")
	l.eventually("the zone is back", func() bool { return len(l.ensure()) > 0 })
	if now := l.vsctl("get", "Open_vSwitch", ".", "datapaths:netdev"); now != row {
		t.Errorf("the Datapath row is %s, want the foreign one %s", now, row)
	}
	if owner := l.vsctl("get", "Datapath", row, "external_ids"); owner != "{owner=me}" {
		t.Errorf("external_ids of the foreign row: %s", owner)
	}
	zones := strings.Split(l.vsctl("list-zone-tp", "netdev"), "\n")
	if len(zones) != 4 || zones[0] != "Zone:7, Timeout Policies: tcp_close=5 udp_first=6" {
		t.Errorf("zones: %q", zones)
	}
	// Without the bridge, Weft's zones have no effect and foreign ones are unchanged.
	l.vsctl("del-br", model.BridgeName)
	l.eventually("the bridge is recreated", func() bool { return len(l.ensure()) > 0 })
	if again := strings.Split(l.vsctl("list-zone-tp", "netdev"), "\n"); strings.Join(again, "\n") !=
		strings.Join(zones, "\n") {
		t.Errorf("zones after the bridge was recreated: %q, want %q", again, zones)
	}
}

// TestTimeoutsKernel: with the kernel datapath the node's sysctls apply, and the database has no timeouts of Weft's.
func TestTimeoutsKernel(t *testing.T) {
	l := newLab(t)
	b := want
	b.Datapath = "system"
	_, _ = l.c.EnsureBridge(l.ctx, b) // no kernel module here, so the ports never work
	if got := l.vsctl("get", "Open_vSwitch", ".", "datapaths"); got != "{}" {
		t.Errorf("datapaths: %s, want none", got)
	}
}
