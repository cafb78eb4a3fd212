package dump

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestFlows(t *testing.T) {
	got, err := Flows(`NXST_FLOW reply (xid=0x4):
 cookie=0x1000000000000, duration=12.345s, table=Classifier, n_packets=7, n_bytes=700, idle_age=3, priority=100,in_port="veth1",ip,nw_src=10.0.0.2 actions=set_field:0x1->reg0,goto_table:SpoofGuard
 cookie=0x0, duration=1.5s, table=0, n_packets=0, n_bytes=0, reset_counts priority=0 actions=drop
`)
	if err != nil {
		t.Fatal(err)
	}
	want := []Flow{
		{
			Cookie: 1 << 48, Table: "Classifier", Duration: 12345 * time.Millisecond, Packets: 7,
			Spec: `table=Classifier,priority=100,in_port="veth1",ip,nw_src=10.0.0.2 actions=set_field:0x1->reg0,goto_table:SpoofGuard`,
		},
		{Table: "0", Duration: 1500 * time.Millisecond, Spec: "table=0,reset_counts,priority=0 actions=drop"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if id := got[0].Identity(); id != "cookie=0x1000000000000, "+want[0].Spec {
		t.Errorf("identity %q", id)
	}
}

func TestFlowsRefusesWhatItCannotRead(t *testing.T) {
	for _, text := range []string{"cookie=0x1, table=0", "cookie=zero, table=0 actions=drop"} {
		if flows, err := Flows(text); err == nil {
			t.Errorf("%q was read as %v", text, flows)
		}
	}
}

func TestPorts(t *testing.T) {
	got, err := Ports(`OFPST_PORT reply (xid=0x4): 3 ports
  port "weft-geneve": rx pkts=10, bytes=1000, drop=?, errs=?, frame=?, over=?, crc=?
           tx pkts=20, bytes=2000, drop=?, errs=?, coll=?
  port  weft0: rx pkts=1, bytes=1, drop=0, errs=0, frame=0, over=0, crc=0
           tx pkts=2, bytes=2, drop=0, errs=0, coll=0
  port LOCAL: rx pkts=?, bytes=?, drop=?, errs=?, frame=?, over=?, crc=?
           tx pkts=0, bytes=0, drop=0, errs=0, coll=0
`)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]Port{"weft-geneve": {10, 20}, "weft0": {1, 2}, "LOCAL": {}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestDifference(t *testing.T) {
	got := Difference([]string{"a", "b", "b"}, []string{"b", "c", "c", "a"})
	if d := cmp.Diff([]string{"+ c", "+ c", "- b"}, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if got := Difference([]string{"a", "b"}, []string{"b", "a"}); len(got) != 0 {
		t.Errorf("order matters: %v", got)
	}
}

func TestInterfaces(t *testing.T) {
	got, err := Interfaces(
		`{"data":[["weft0",["map",[]]],["veth1",["map",[["weft.ips","10.0.0.2,fd00::2"],["weft.pod","a/b"]]]]],"headings":["name","external_ids"]}`)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]map[string]string{"weft0": {}, "veth1": {"weft.ips": "10.0.0.2,fd00::2", "weft.pod": "a/b"}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if got, err := Interfaces(`{"data":[[7]],"headings":["name"]}`); err == nil {
		t.Errorf("a number was read as a name: %v", got)
	}
}
