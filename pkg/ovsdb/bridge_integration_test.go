//go:build integration

package ovsdb_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ovsdb"
)

func TestBridgeFromNothing(t *testing.T) {
	l := newLab(t)
	if changed := l.ensure(); len(changed) != 2 || changed[0] != "bridge created" ||
		!strings.Contains(changed[1], "timeouts of conntrack zones [22373 22374 22375]") {
		t.Errorf("first EnsureBridge changed %q, want only the bridge's creation and the zones' timeouts", changed)
	}
	before := l.vsctl("get", "Open_vSwitch", ".", "next_cfg")
	if changed := l.ensure(); len(changed) != 0 {
		t.Errorf("second EnsureBridge changed %q, want nothing", changed)
	}
	if after := l.vsctl("get", "Open_vSwitch", ".", "next_cfg"); after != before {
		t.Errorf("second EnsureBridge wrote: next_cfg went from %s to %s", before, after)
	}
	show := l.ofctl("show", model.BridgeName)
	for _, port := range []string{"1(weft-geneve)", "2(weft-vxlan)", "3(weft0)", "4(weft-gre)", "LOCAL(weft)"} {
		if !strings.Contains(show, port) {
			t.Errorf("ovs-ofctl show lacks %s:\n%s", port, show)
		}
	}
	if flows := l.ofctl("dump-flows", model.BridgeName); strings.Contains(flows, "NORMAL") {
		t.Errorf("a fresh bridge forwards before we say so:\n%s", flows)
	}
	l.ofctl("add-flow", model.BridgeName, "table=60,priority=7,actions=resubmit(,90)")
	if flows := l.ofctl("--names", "dump-flows", model.BridgeName); !strings.Contains(flows, "table=Forwarding") ||
		!strings.Contains(flows, "resubmit(,Output)") {
		t.Errorf("dump-flows does not show the tables' names:\n%s", flows)
	}
	link := l.run("ip", "-n", l.netns, "link", "show", model.GatewayName)
	if !strings.Contains(link, "mtu 1450") || !strings.Contains(link, model.GatewayMAC.String()) {
		t.Errorf("gateway interface has another MTU or MAC: %s", link)
	}
}

func TestRepair(t *testing.T) {
	l := newLab(t)
	l.ensure()
	l.veth("p0")
	if err := l.c.AddPort(l.ctx, attachment(0)); err != nil {
		t.Fatal(err)
	}
	l.vsctl("set", "Bridge", model.BridgeName, "external_ids:owner=admin", "other_config:mac-table-size=99")
	l.ensure()
	right := l.config()
	damage := map[string]string{
		"fail mode":                   "set-fail-mode weft standalone",
		"no fail mode":                "del-fail-mode weft",
		"datapath type":               "set Bridge weft datapath_type=dummy",
		"protocols":                   "set Bridge weft protocols=OpenFlow13",
		"no protocols":                "clear Bridge weft protocols",
		"controller":                  "set-controller weft tcp:127.0.0.1:1",
		"spanning tree":               "set Bridge weft stp_enable=true",
		"rapid spanning tree":         "set Bridge weft rstp_enable=true",
		"in-band":                     "set Bridge weft other_config:disable-in-band=false",
		"no bridge MAC":               "remove Bridge weft other_config hwaddr",
		"bridge external_ids":         "remove Bridge weft external_ids weft",
		"version":                     "set Bridge weft external_ids:weft.version=old",
		"flow table renamed":          "set Flow_Table {table60} name=Wrong",
		"flow table nameless":         "clear Flow_Table {table60} name",
		"flow table limited":          "set Flow_Table {table60} flow_limit=10000",
		"flow table settings lost":    "remove Bridge weft flow_tables 10",
		"all flow table names lost":   "clear Bridge weft flow_tables",
		"flow table of an old agent":  "--id=@t create Flow_Table name=Old -- add Bridge weft flow_tables 77=@t",
		"Geneve port deleted":         "del-port weft weft-geneve",
		"VXLAN port deleted":          "del-port weft weft-vxlan",
		"GRE port deleted":            "del-port weft weft-gre",
		"gateway port deleted":        "del-port weft weft0",
		"LOCAL port deleted":          "remove Bridge weft ports {weft}",
		"tunnel type":                 "set Interface weft-geneve type=vxlan options:dst_port=4790",
		"tunnel remote":               "set Interface weft-geneve options:remote_ip=192.0.2.1",
		"tunnel key":                  "remove Interface weft-vxlan options key",
		"tunnel option too many":      "set Interface weft-vxlan options:df_default=false",
		"tunnel port number":          "set Interface weft-vxlan ofport_request=9",
		"VXLAN UDP port":              "set Interface weft-vxlan options:dst_port=8472",
		"gateway port number":         "clear Interface weft0 ofport_request",
		"gateway type":                "set Interface weft0 type=dummy",
		"gateway MAC":                 "clear Interface weft0 mac",
		"gateway MTU":                 "set Interface weft0 mtu_request=1300",
		"gateway with two interfaces": "--id=@i create Interface name=extra type=internal -- add Port weft0 interfaces @i",
		"timeout of a zone":           "set CT_Timeout_Policy {policy} timeouts:tcp_close=30",
		"timeout removed":             "remove CT_Timeout_Policy {policy} timeouts udp_multiple",
		"zone without timeouts":       "clear CT_Zone {zone} timeout_policy",
		"zone removed":                "del-zone-tp netdev zone=22374",
		"foreign zone": "--id=@p create CT_Timeout_Policy timeouts=tcp_close=1 -- --id=@z create CT_Zone " +
			"timeout_policy=@p -- set Datapath {datapath} ct_zones:22373=@z",
		"datapath removed":        "remove Open_vSwitch . datapaths netdev",
		"pod's port number":       "clear Interface p0 ofport_request",
		"pod's port number wrong": "set Interface p0 ofport_request=99",
		"pod's interface type":    "set Interface p0 type=internal",
	}
	for what, command := range damage {
		t.Run(what, func(t *testing.T) {
			l := *l
			l.t = t
			command := strings.NewReplacer(
				"{table60}", l.vsctl("get", "Bridge", "weft", "flow_tables:60"),
				"{weft}", l.vsctl("get", "Port", "weft", "_uuid"),
				"{datapath}", l.vsctl("get", "Open_vSwitch", ".", "datapaths:netdev"),
				"{zone}", l.zone(22373),
				"{policy}", l.vsctl("get", "CT_Zone", l.zone(22373), "timeout_policy"),
			).Replace(command)
			// --no-wait: with some of the damage, ovs-vswitchd never applies the configuration.
			l.vsctl(append([]string{"--no-wait"}, strings.Fields(command)...)...)
			var changed []string
			l.eventually("the damage is seen", func() bool {
				// An error is accepted meanwhile: ovs-vswitchd may report the damage after the repair read the rows.
				var err error
				changed, err = l.c.EnsureBridge(l.ctx, want)
				return err == nil && len(changed) > 0
			})
			t.Log(changed)
			if now := l.config(); now != right {
				t.Errorf("after the repair (-want +got):\n%s", cmp.Diff(strings.Split(right, "\n"), strings.Split(now, "\n")))
			}
			if again := l.ensure(); len(again) > 0 {
				t.Errorf("EnsureBridge after the repair changed %q, want nothing", again)
			}
		})
	}
}

func TestBridgeDeleted(t *testing.T) {
	l := newLab(t)
	l.ensure()
	right := l.config()
	l.drain()
	l.vsctl("del-br", model.BridgeName)
	l.awaitChange("the bridge was deleted")
	l.eventually("the bridge is recreated", func() bool { return len(l.ensure()) > 0 })
	if now := l.config(); now != right {
		t.Errorf("recreated (-want +got):\n%s", cmp.Diff(right, now))
	}
}

// Settings that change while the bridge exists: MTU and checksums follow the underlay, names follow the version.
func TestBridgeSettingsChange(t *testing.T) {
	l := newLab(t)
	l.ensure()
	b := want
	b.GatewayMTU, b.TunnelChecksum, b.Version, b.Tables = 1400, true, "next", map[uint8]string{0: "Classifier",
		20: "Conntrack"}
	changed, err := l.c.EnsureBridge(l.ctx, b)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%q", changed)
	if link := l.run("ip", "-n", l.netns, "link", "show", model.GatewayName); !strings.Contains(link, "mtu 1400") {
		t.Errorf("gateway MTU: %s", link)
	}
	for name, want := range map[string]string{model.GenevePortName: `"true"`, model.VXLANPortName: `"true"`, model.GREPortName: ""} {
		if got := l.vsctl("--if-exists", "get", "Interface", name, "options:csum"); got != want {
			t.Errorf("%s: csum = %s, want %s", name, got, want)
		}
	}
	if changed, err = l.c.EnsureBridge(l.ctx, b); err != nil || len(changed) > 0 {
		t.Errorf("second EnsureBridge: %q, %v; want no change", changed, err)
	}
}

func TestForeignPortsSurvive(t *testing.T) {
	l := newLab(t)
	l.ensure()
	l.vsctl("add-port", model.BridgeName, "mine", "--", "set", "Interface", "mine", "type=internal",
		"external_ids:owner=me")
	l.vsctl("add-br", "br-other", "--", "set", "Bridge", "br-other", "datapath_type=netdev")
	l.vsctl("del-port", model.BridgeName, model.VXLANPortName)
	l.eventually("the VXLAN port is recreated", func() bool { return len(l.ensure()) > 0 })
	if ports := strings.Fields(l.vsctl("list-ports", model.BridgeName)); !slices.Equal(ports,
		[]string{"mine", "weft-geneve", "weft-gre", "weft-vxlan", "weft0"}) {
		t.Errorf("ports after a repair: %q", ports)
	}
	if err := l.c.RemovePort(l.ctx, "mine"); err == nil || !strings.Contains(err.Error(), "it stays") {
		t.Errorf("RemovePort of a foreign port: error %v, want a refusal", err)
	}
	if err := l.c.RemovePort(l.ctx, model.GatewayName); err == nil {
		t.Error("RemovePort of the gateway port succeeded, want a refusal")
	}
	list, bad, err := l.c.Attachments(l.ctx)
	if err != nil || len(list)+len(bad) > 0 {
		t.Errorf("Attachments = %v, %v, %v; want none", list, bad, err)
	}
	if got := l.vsctl("list-br"); got != "br-other\nweft" {
		t.Errorf("bridges: %q", got)
	}
}

func TestPortOnAnotherBridge(t *testing.T) {
	l := newLab(t)
	l.vsctl("add-br", "br-other", "--", "set", "Bridge", "br-other", "datapath_type=netdev", "--", "add-port", "br-other",
		model.GatewayName, "--", "set", "Interface", model.GatewayName, "type=internal")
	l.eventually("the error names the other bridge", func() bool {
		_, err := l.c.EnsureBridge(l.ctx, want)
		return err != nil && strings.Contains(err.Error(), "a port named weft0 is on bridge br-other; remove it there")
	})
	if _, err := l.c.EnsureBridge(l.ctx, ovsdb.Bridge{Datapath: "kernel"}); err == nil ||
		!strings.Contains(err.Error(), `datapath "kernel"`) {
		t.Errorf("unknown datapath: error %v", err)
	}
}

// A node does not forward while flow-restore-wait is set; other networks have failed to clear it.
func TestFlowRestoreWait(t *testing.T) {
	l := newLab(t)
	l.ensure()
	for _, on := range []bool{true, true, false, false} {
		if err := l.c.SetFlowRestoreWait(l.ctx, on); err != nil {
			t.Fatal(err)
		}
		if got, err := l.c.FlowRestoreWait(l.ctx); err != nil || got != on {
			t.Errorf("FlowRestoreWait = %t, %v after it was set to %t", got, err, on)
		}
	}
	l.drain()
	l.vsctl("set", "Open_vSwitch", ".", "other_config:flow-restore-wait=true")
	l.awaitChange("flow-restore-wait was set")
	if got, err := l.c.FlowRestoreWait(l.ctx); err != nil || !got {
		t.Errorf("FlowRestoreWait = %t, %v; want what ovs-vsctl set", got, err)
	}
}

// TestOptionalTunnelPort: a node that sends with Geneve does not need its VXLAN port, which another program may keep
// from working; but the failure is reported.
func TestOptionalTunnelPort(t *testing.T) {
	l := newLab(t)
	for _, local := range [][]string{
		{"options:local_ip=flow"}, // ovs-vswitchd rejects a second port with the same tunnel key and addresses
		nil,                       // it serves both, and the other one receives the packets
	} {
		testOptionalTunnelPort(t, l, local)
	}
}

func testOptionalTunnelPort(t *testing.T, l *lab, local []string) {
	t.Helper()
	l.vsctl(append([]string{"add-br", "br-other", "--", "set", "Bridge", "br-other", "datapath_type=netdev",
		"--", "add-port", "br-other", "taken", "--", "set", "Interface", "taken", "type=vxlan", "options:remote_ip=flow",
		"options:key=flow"}, local...)...)
	l.eventually("the other port is there", func() bool { return l.vsctl("get", "Interface", "taken", "ofport") != "[]" })
	b := want
	b.Tunnel = model.Geneve
	changed, err := l.c.EnsureBridge(l.ctx, b)
	var optional *ovsdb.OptionalPortError
	if !errors.As(err, &optional) || optional.Port != model.VXLANPortName || local != nil &&
		!slices.Contains(changed, "bridge created") {
		t.Errorf("with Geneve: changed %q, error %v; want the bridge created and an OptionalPortError", changed, err)
	}
	if err == nil || !strings.Contains(err.Error(), "the same tunnel configuration has port taken on bridge br-other") {
		t.Errorf("error %v does not name the port that is in the way", err)
	}
	for _, tunnel := range []model.Encapsulation{model.VXLAN, ""} {
		b.Tunnel = tunnel
		if _, err := l.c.EnsureBridge(l.ctx, b); err == nil || errors.As(err, &optional) ||
			!strings.Contains(err.Error(), model.VXLANPortName) {
			t.Errorf("with tunnel type %q: error %v, want one that is not optional", tunnel, err)
		}
	}
	b.Tunnel = "stt"
	if _, err := l.c.EnsureBridge(l.ctx, b); err == nil || !strings.Contains(err.Error(), `tunnel type "stt"`) {
		t.Errorf("unknown tunnel type: error %v", err)
	}
	l.vsctl("del-br", "br-other")
	b.Tunnel = model.Geneve
	l.eventually("the port works once the other one is gone", func() bool {
		_, err := l.c.EnsureBridge(l.ctx, b)
		return err == nil
	})
}
