package openflow_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/pkg/openflow"
)

// What ovs-ofctl 3.1 printed.
const (
	printedMeters = `OFPST_METER_CONFIG reply (OF1.5) (xid=0x2):
meter=7 kbps bands=
type=drop rate=3

meter=22373 pktps burst stats bands=
type=drop rate=50 burst_size=60
`
	printedStats = `OFPST_METER reply (OF1.5) (xid=0x2):
meter:7 flow_count:0 packet_in_count:0 byte_in_count:0 duration:1.1s bands:
0: packet_count:0 byte_count:0

meter:22373 flow_count:0 packet_in_count:557688 byte_in_count:29557464 duration:64.398s bands:
0: packet_count:556787 byte_count:29509711
`
	printedHead = `NXT_PACKET_IN2 (OF1.5) (xid=0x0): table_id=51 cookie=0x5765061111111111 total_len=53 ct_state=new|trk,ct_zone=22373,ct_nw_src=10.9.0.1,ct_nw_dst=10.9.0.2,ct_nw_proto=17,ct_tp_src=52229,ct_tp_dst=53,ip,in_port=3 (via action) data_len=53 (unbuffered)`
	printedUDP  = `udp,vlan_tci=0x0000,dl_src=52:72:23:b9:3c:10,dl_dst=02:00:00:00:00:02,nw_src=10.9.0.1,nw_dst=10.9.0.2,nw_tos=0,nw_ecn=0,nw_ttl=64,nw_frag=no,tp_src=52229,tp_dst=53 udp_csum:8daa`
	printedPing = `icmp6,vlan_tci=0x0000,dl_src=52:72:23:b9:3c:10,dl_dst=02:00:00:00:00:02,ipv6_src=fd44::1,ipv6_dst=fd44::2,ipv6_label=0x00000,nw_tos=0,nw_ecn=0,nw_ttl=64,nw_frag=no,icmp_type=128,icmp_code=0 icmp6_csum:8daa`
)

func TestParsePacketIn(t *testing.T) {
	for packet, want := range map[string]openflow.PacketIn{
		printedUDP: {Protocol: "udp", Source: netip.MustParseAddr("10.9.0.1"), Destination: netip.MustParseAddr("10.9.0.2"),
			SourcePort: 52229, DestinationPort: 53},
		printedPing: {Protocol: "icmp6", Source: netip.MustParseAddr("fd44::1"), Destination: netip.MustParseAddr("fd44::2")},
	} {
		want.Table, want.Cookie, want.Data = 51, 0x5765061111111111, []byte{1, 0xff}
		got, err := openflow.ParsePacketIn(printedHead, " userdata=01.ff", packet)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
	}
	for _, bad := range [][3]string{{"table_id=x", " userdata=01", printedUDP}, {printedHead, "data", printedUDP},
		{printedHead, " userdata=0x", printedUDP}, {printedHead, " userdata=01", "udp,nw_src=here"}} {
		if p, err := openflow.ParsePacketIn(bad[0], bad[1], bad[2]); err == nil {
			t.Errorf("%q was read as %+v", bad, p)
		}
	}
}

func TestParseMeters(t *testing.T) {
	if diff := cmp.Diff([]openflow.Meter{{ID: 22373, Rate: 50, Burst: 60}},
		openflow.ParseMeters(printedMeters)); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if diff := cmp.Diff(map[openflow.MeterID]uint64{7: 0, 22373: 556787},
		openflow.ParseMeterStats(printedStats)); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestCopies(t *testing.T) {
	text, err := openflow.Copy{Bytes: 128, Data: []byte{1, 0xff}, Meter: 22373}.Action().MarshalText()
	if err != nil || string(text) != "controller(max_len=128,userdata=01.ff,meter_id=22373)" {
		t.Errorf("a copy is %q, %v", text, err)
	}
	if _, err := (openflow.Copy{Bytes: 128, Data: []byte{1}}).Action().MarshalText(); err == nil {
		t.Error("a copy without a meter was taken; nothing would limit it")
	}
	for text, want := range map[string]string{string(text) + ",goto_table:55": "goto_table:55", string(text): "drop",
		"goto_table:55": "goto_table:55"} {
		actions := openflow.ParseActions(text)
		if got := actions.WithoutCopies(); got != openflow.ParseActions(want) {
			t.Errorf("%s without copies is %s, want %s", actions, got, want)
		}
		if actions.Copy() != (text != want) {
			t.Errorf("Copy of %s is wrong", actions)
		}
	}
}
