package openflow

import (
	"strconv"
	"testing"
)

// A line of the switch that Weft cannot read would keep it from repairing the switch, so these say: no panic, and what
// was read is printed so that it is read as the same.

func FuzzParse(f *testing.F) {
	for _, line := range []string{
		" cookie=0x576504bc9d9e9e1e, duration=3.072s, table=60, n_packets=1, n_bytes=98, " +
			"priority=100,ip,in_port=3,nw_dst=10.244.1.0/24 actions=set_field:0x2->reg1,goto_table:70",
		"priority=0 actions=drop", "actions=", "table=255,actions=NORMAL", "cookie=0x1/-1,actions=drop",
		"table=50,priority=200,conj_id=7,ip actions=conjunction(1,1/2),conjunction(2,2/2)",
		"table=30,tcp,ct_state=+new-inv+trk,ct_mark=0/0x1 " +
			"actions=ct(commit,table=40,zone=NXM_NX_REG0[0..15],nat(dst=10.0.0.1:80),exec(set_field:0x1/0x1->ct_mark))",
		"table=5 actions=learn(table=6,hard_timeout=10,limit=100,eth_type=0x800,NXM_OF_IP_SRC[],load:0x1->NXM_NX_REG3[]),group:7",
		"table=6,actions=controller(max_len=128,userdata=00.01,meter_id=1),resubmit(,7)", "reg0=actions=drop",
		"importance=5, x=, =y actions=a)(,b",
	} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		e, err := Parse(line)
		if err != nil {
			return
		}
		again, err := Parse(e.Flow.String())
		if err != nil || again.Flow != e.Flow {
			t.Errorf("%q is read as %+v, printed and read again as %+v, %v", line, e.Flow, again.Flow, err)
		}
		e.Match.Destination()
		Register(1).In(e.Match)
		e.Actions.Translation()
		e.Actions.Groups()
		e.Actions.WithoutCopies()
		e.Actions.Learned()
		names := Names{Table: func(id TableID) string { return "T" + strconv.Itoa(int(id)) },
			Ports: map[uint32]string{1: "p"}}
		names.Match(e.Match)
		names.Actions(e.Actions)
		if same := func(id GroupID) GroupID {
			return id
		}; e.Actions.Renumber(same).Renumber(same) != e.Actions.Renumber(same) {
			t.Errorf("renumbering %q is not stable", e.Actions)
		}
		var list []Action
		for action := range e.Actions.All() {
			list = append(list, action)
			action.Next()
			action.Kind()
			action.Clause()
			Register(1).SetBy(action)
			actionSize(action)
		}
		if JoinActions(list) != e.Actions {
			t.Errorf("%q is not %q put together", e.Actions, list)
		}
	})
}

func FuzzParseGroup(f *testing.F) {
	for _, line := range []string{
		" group_id=7,type=select,selection_method=dp_hash,bucket=bucket_id:5,weight:100,actions=resubmit(,50)",
		"group_id=4294967295,type=all,bucket=bucket_id:0,actions=ct(nat(dst=[fd00::1]:80)),bucket=bucket_id:1,actions=drop",
		"group_id=1,", "group_id=,type=all",
		"group_id=1,type=select,selection_method=hash,selection_method_param=9,fields(ip_src,tcp_src),bucket=",
		"group_id=2,type=indirect,bucket=weight:,actions",
	} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		g, err := ParseGroup(line)
		if err != nil {
			return
		}
		again, err := ParseGroup(g.String())
		if err != nil || again != g {
			t.Errorf("%q is read as %+v, printed and read again as %+v, %v", line, g, again, err)
		}
		g.Selection()
		for _, b := range g.Buckets() {
			b.Actions.Groups()
			b.Actions.Translation()
		}
	})
}

// FuzzText is what else is read of the switch's programs: copies of packets and meters.
func FuzzText(f *testing.F) {
	f.Add("NXT_PACKET_IN2 (OF1.5) (xid=0x0): table_id=51 cookie=0x1 total_len=54 reg0=0x1 (via action) data_len=54 "+
		"(unbuffered)", " userdata=00.ff",
		"tcp,vlan_tci=0x0000,dl_src=0a:58:0a:f4:01:02,nw_src=10.244.1.2,nw_dst=10.244.1.3,tp_src=1,tp_dst=80 tcp_csum:1")
	f.Add("meter=1 pktps burst stats bands=\ntype=drop rate=10 burst_size=10", "userdata=0",
		"icmp6,ipv6_src=::1,ipv6_dst=::")
	f.Add("meter:1 flow_count:1 packet_in_count:1 byte_in_count:1 duration:1s bands:\n0: "+
		"packet_count:99999999999999999999 byte_count:1", "", "")
	f.Fuzz(func(t *testing.T, head, data, packet string) {
		if p, err := ParsePacketIn(head, data, packet); err == nil && (!p.Source.IsValid() || !p.Destination.IsValid()) {
			t.Errorf("a copy without addresses: %+v", p)
		}
		for _, m := range ParseMeters(head) {
			if again := ParseMeters(m.String()); len(again) > 1 {
				t.Errorf("%+v", again)
			}
		}
		ParseMeterStats(head)
	})
}
