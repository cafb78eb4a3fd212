package trace_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/trace"
)

// parseFlows parses flows as ovs-ofctl prints them, a line each.
func parseFlows(t testing.TB, text string) []flows.Flow {
	t.Helper()
	var list []flows.Flow
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		e, err := openflow.Parse(line)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, flows.Flow{Flow: e.Flow})
	}
	return list
}

func newSwitch(t testing.TB, text string, groups ...string) *trace.Switch {
	t.Helper()
	var gs []openflow.Group
	for _, g := range groups {
		parsed, err := openflow.ParseGroup(g)
		if err != nil {
			t.Fatal(err)
		}
		gs = append(gs, parsed)
	}
	s, err := trace.New(parseFlows(t, text), gs)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func packet(t testing.TB, text string) trace.Packet {
	t.Helper()
	p, err := trace.ParsePacket(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// outcome is the packet's output ports, or "drop".
func outcome(r trace.Result) string {
	if r.Dropped() {
		return "drop"
	}
	var ports []string
	for _, o := range r.Outputs {
		ports = append(ports, fmt.Sprint(o.Port))
	}
	return strings.Join(ports, ",")
}

// lookups are tables and the outcomes of packets; the integration test checks them with a real switch.
var lookups = []struct {
	name, flows string
	packets     map[string]string
}{
	{"the highest priority, with all masks", `
		table=0,priority=10,ip,nw_src=10.0.0.0/8 actions=output:1
		table=0,priority=30,ip,nw_src=10.1.0.0/16 actions=output:2
		table=0,priority=20,ip,nw_src=10.1.1.1 actions=output:3
		table=0,priority=0 actions=output:9`,
		map[string]string{"ip,nw_src=10.1.1.1": "2", "ip,nw_src=10.2.0.1": "1", "ip,nw_src=11.0.0.1": "9",
			"ipv6,ipv6_src=::1": "9", "arp": "9"}},
	{"no flow at all drops", `table=0,priority=1,ip actions=output:1`, map[string]string{"ip": "1", "ipv6": "drop"}},
	{"port masks and 128-bit addresses", `
		table=0,priority=1,tcp6,ipv6_src=fd00:1::/32,tp_dst=0x1000/0xf000 actions=output:1
		table=0,priority=1,tcp6,ipv6_src=fd00:2::1 actions=output:2`,
		map[string]string{"tcp6,ipv6_src=fd00:1:2::3,tp_dst=8191": "1", "tcp6,ipv6_src=fd00:1:2::3,tp_dst=8192": "drop",
			"tcp6,ipv6_src=fd00:2::1,tp_dst=1": "2", "udp6,ipv6_src=fd00:2::1": "drop"}},
	{"a conjunction needs all clauses", `
		table=0,priority=100,ip,nw_src=10.0.0.1 actions=conjunction(7,1/3)
		table=0,priority=100,ip,nw_dst=10.0.0.2 actions=conjunction(7,2/3)
		table=0,priority=100,tcp,tp_dst=80 actions=conjunction(7,3/3)
		table=0,priority=100,conj_id=7,ip actions=output:1
		table=0,priority=0 actions=output:9`,
		map[string]string{"tcp,nw_src=10.0.0.1,nw_dst=10.0.0.2,tp_dst=80": "1",
			"tcp,nw_src=10.0.0.1,nw_dst=10.0.0.2,tp_dst=81": "9", "tcp,nw_src=10.0.0.1,nw_dst=10.0.0.3,tp_dst=80": "9",
			"udp,nw_src=10.0.0.1,nw_dst=10.0.0.2,tp_dst=80": "9"}},
	{"one flow in several conjunctions; clauses of different ones do not add up", `
		table=0,priority=100,ip,nw_src=10.0.0.1 actions=conjunction(7,1/2),conjunction(8,1/2)
		table=0,priority=100,ip,nw_dst=10.0.0.2 actions=conjunction(7,2/2)
		table=0,priority=100,ip,nw_dst=10.0.0.3 actions=conjunction(8,2/2)
		table=0,priority=100,ip,nw_src=10.0.0.4 actions=conjunction(9,1/2)
		table=0,priority=100,conj_id=7,ip actions=output:7
		table=0,priority=100,conj_id=8,ip actions=output:8
		table=0,priority=100,conj_id=9,ip actions=output:9`,
		map[string]string{"ip,nw_src=10.0.0.1,nw_dst=10.0.0.2": "7", "ip,nw_src=10.0.0.1,nw_dst=10.0.0.3": "8",
			"ip,nw_src=10.0.0.4,nw_dst=10.0.0.2": "drop"}},
	{"a plain flow above a conjunction wins, one below does not", `
		table=0,priority=100,ip,nw_src=10.0.0.1 actions=conjunction(7,1/2)
		table=0,priority=100,ip,nw_dst=10.0.0.2 actions=conjunction(7,2/2)
		table=0,priority=100,conj_id=7,ip actions=output:7
		table=0,priority=200,tcp,tp_dst=22 actions=output:2
		table=0,priority=50,tcp actions=output:5`,
		map[string]string{"tcp,nw_src=10.0.0.1,nw_dst=10.0.0.2,tp_dst=80": "7",
			"tcp,nw_src=10.0.0.1,nw_dst=10.0.0.2,tp_dst=22": "2", "tcp,nw_src=10.0.0.1,nw_dst=10.0.0.9,tp_dst=80": "5"}},
	{"behind an incomplete conjunction: one of lower priority, and the flow below a clause with its match", `
		table=0,priority=100,ip,nw_src=10.0.0.1 actions=conjunction(7,1/2)
		table=0,priority=100,ip,nw_dst=10.0.0.2 actions=conjunction(7,2/2)
		table=0,priority=100,conj_id=7,ip actions=output:7
		table=0,priority=90,ip,nw_src=10.0.0.1 actions=conjunction(8,1/2)
		table=0,priority=90,ip,nw_dst=10.0.0.3 actions=conjunction(8,2/2)
		table=0,priority=90,conj_id=8,ip actions=output:8
		table=0,priority=80,ip,nw_src=10.0.0.1 actions=output:1`,
		map[string]string{"ip,nw_src=10.0.0.1,nw_dst=10.0.0.2": "7", "ip,nw_src=10.0.0.1,nw_dst=10.0.0.3": "8",
			"ip,nw_src=10.0.0.1,nw_dst=10.0.0.4": "1"}},
}

func TestLookup(t *testing.T) {
	for _, tc := range lookups {
		s := newSwitch(t, tc.flows)
		for text, want := range tc.packets {
			if got := outcome(s.Run(packet(t, text), trace.Options{})); got != want {
				t.Errorf("%s: %s leaves at %s, want %s", tc.name, text, got, want)
			}
		}
	}
}

func TestActions(t *testing.T) {
	p := "in_port=5,tcp,dl_src=00:00:00:00:00:01,dl_dst=00:00:00:00:00:02,nw_src=10.0.0.1,nw_dst=10.0.0.2,tp_src=1000,tp_dst=80"
	for _, tc := range []struct{ name, flows, want string }{
		{"registers carry over, masks write only their bits", `
			table=0,priority=1 actions=set_field:0x12->reg0,set_field:0x3/0xf->reg0,goto_table:1
			table=1,priority=1,reg0=0x13 actions=output:1`, "1"},
		{"output to a register's port", `table=0,priority=1 actions=set_field:0x11->reg1,output:NXM_NX_REG1[]`, "17"},
		{"no packet goes back, unless the port is forgotten or it is said", `
			table=0,priority=1 actions=output:5,IN_PORT,set_field:ANY->in_port,output:5`, "5,5"},
		{"resubmit comes back", `
			table=0,priority=1 actions=resubmit(,9),goto_table:1
			table=9,priority=1 actions=set_field:0x4->reg4
			table=1,priority=1,reg4=0x4 actions=output:4`, "4"},
		{"parts of registers and xxreg", `
			table=0,priority=1 actions=set_field:0x1111222233334444aaaabbbbccccdddd->xxreg0,move:NXM_NX_REG3[16..31]->NXM_NX_REG5[0..15],goto_table:1
			table=1,priority=1,reg0=0x11112222,reg1=0x33334444,reg2=0xaaaabbbb,reg3=0xccccdddd,reg5=0xcccc actions=output:1`,
			"1"},
		{"two outputs", `table=0,priority=1 actions=output:1,set_field:10.9.9.9->ip_dst,output:2`, "1,2"},
	} {
		if got := outcome(newSwitch(t, tc.flows).Run(packet(t, p), trace.Options{})); got != tc.want {
			t.Errorf("%s: leaves at %s, want %s", tc.name, got, tc.want)
		}
	}
}

func TestRefusesWhatItDoesNotKnow(t *testing.T) {
	for _, line := range []string{
		"table=0,priority=1,mpls actions=drop", "table=0,priority=1,vlan_pcp=1 actions=drop",
		"table=0,priority=1,nw_src=300.1.1.1 actions=drop",
		"table=0,priority=1 actions=NORMAL", "table=0,priority=1 actions=ct(commit,nat(src=10.0.0.1))",
		"table=0,priority=1 actions=ct(alg=ftp)",
		"table=0,priority=1 actions=conjunction(1,3/2)", "table=0,priority=1 actions=conjunction(1,1/2),output:1",
		"table=0,priority=1 actions=move:NXM_NX_REG0[]->NXM_OF_TCP_DST[]",
		"table=0,priority=1 actions=learn(table=35,hard_timeout=9)",
		"table=0,priority=1 actions=learn(table=35,NXM_OF_NOTHING[])",
		"table=0,priority=1 actions=set_field:1->reg99", "table=0,priority=1 actions=move:NXM_NX_REG0[8..40]->NXM_NX_REG1[]",
	} {
		if _, err := trace.New(parseFlows(t, line), nil); err == nil || !strings.Contains(err.Error(), "actions=") {
			t.Errorf("%s: error %v, want one that names the flow", line, err)
		}
	}
	for _, text := range []string{"x=1", "tcp,nw_src=10.0.0.1/40", "ip,nw_src=fd00::1", "tcp,tcp_flags=+nonsense"} {
		if _, err := trace.ParsePacket(text); err == nil {
			t.Errorf("packet %q was taken", text)
		}
	}
}

// A small pipeline with DNAT in zone 1 and replies that are translated back.
const natFlows = `
	table=0,priority=1,ip actions=ct(table=1,zone=1,nat)
	table=1,priority=9,ct_state=+inv+trk actions=drop
	table=1,priority=5,ct_state=+new+trk,tcp,nw_dst=10.9.9.9,tp_dst=80 actions=group:4
	table=1,priority=4,ct_state=+new+trk,ip actions=ct(commit,table=2,zone=1,exec(set_field:0x1/0x1->ct_mark))
	table=1,priority=3,ct_state=+est-rpl+trk actions=goto_table:2
	table=1,priority=3,ct_state=+est+rpl+trk,ct_mark=0x1/0x1 actions=output:100
	table=2,priority=2,ip,nw_dst=10.0.0.2 actions=output:2
	table=2,priority=2,ip,nw_dst=10.0.0.3 actions=output:3
`

const natGroup = `group_id=4,type=select,selection_method=dp_hash,` +
	`bucket=bucket_id:0,actions=ct(commit,table=2,zone=1,nat(dst=10.0.0.2:8080),exec(set_field:0x1/0x1->ct_mark,set_field:0xa000002->ct_label)),` +
	`bucket=bucket_id:1,actions=ct(commit,table=2,zone=1,nat(dst=10.0.0.3:8080),exec(set_field:0x1/0x1->ct_mark))`

func TestConntrack(t *testing.T) {
	s := newSwitch(t, natFlows, natGroup)
	client := netip.MustParseAddr("10.0.0.1")
	service, endpoint := netip.MustParseAddr("10.9.9.9"), netip.MustParseAddr("10.0.0.2")
	syn := trace.IP(1, client, service, 6, 1000, 80)
	for _, kernel := range []bool{false, true} {
		ct := &trace.Conntrack{Kernel: kernel}
		opt := trace.Options{Conntrack: ct}
		if got := s.Run(trace.IP(2, endpoint, client, 6, 8080, 1000).WithTCPFlags(trace.SYN|trace.ACK), opt); !got.Dropped() {
			t.Errorf("an answer before the question leaves: %v", got.Outputs)
		}
		r := s.Run(syn, opt)
		if outcome(r) != "2" || r.Outputs[0].Packet.Dst() != endpoint || r.Outputs[0].Packet.DstPort() != 8080 {
			t.Fatalf("first packet: %s %v", outcome(r), r.Outputs)
		}
		if label, err := r.Outputs[0].Packet.Field("ct_label"); err != nil || label != 0xa000002 {
			t.Errorf("label %#x, %v", label, err)
		}
		// Sent again before a reply, it goes to the same endpoint.
		if r = s.Run(syn, opt); outcome(r) != "2" || r.Outputs[0].Packet.DstPort() != 8080 {
			t.Errorf("sent again: %s", outcome(r))
		}
		r = s.Run(trace.IP(2, endpoint, client, 6, 8080, 1000).WithTCPFlags(trace.SYN|trace.ACK), opt)
		if outcome(r) != "100" || r.Outputs[0].Packet.Src() != service || r.Outputs[0].Packet.SrcPort() != 80 {
			t.Errorf("reply: %s %v", outcome(r), r.Outputs)
		}
		if state, _ := r.Outputs[0].Packet.Field("ct_state"); state != 0x2|0x8|0x20|0x40 {
			t.Errorf("reply's state %#x, want est, rpl, trk and snat", state)
		}
		if r = s.Run(syn.WithTCPFlags(trace.ACK), opt); outcome(r) != "2" || r.Outputs[0].Packet.Dst() != endpoint {
			t.Errorf("second packet: %s", outcome(r))
		}
		if got := len(ct.Connections()); got != 1 {
			t.Errorf("%d connections: %v", got, ct.Connections())
		}
		if got := s.Run(trace.IP(1, client, service, 6, 1001, 80).WithTCPFlags(trace.SYN|trace.FIN), opt); !got.Dropped() {
			t.Error("SYN with FIN began a connection")
		}
	}
}

func TestSourceTranslation(t *testing.T) {
	s := newSwitch(t, `
		table=0,priority=1,ip,nw_dst=10.5.5.5 actions=ct(table=1,zone=2,nat)
		table=0,priority=0,ip actions=ct(commit,table=1,zone=2,nat(src=10.5.5.5))
		table=1,priority=1 actions=output:1`)
	ct := &trace.Conntrack{}
	run := func(p trace.Packet) trace.Packet {
		t.Helper()
		r := s.Run(p, trace.Options{Conntrack: ct})
		if r.Dropped() {
			t.Fatalf("%s was dropped", p)
		}
		return r.Outputs[0].Packet
	}
	a, b, server, us := netip.MustParseAddr(
		"10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.5.5.5")
	first, second := run(trace.IP(7, a, server, 17, 1000, 53)), run(trace.IP(7, b, server, 17, 1000, 53))
	if first.Src() != us || first.SrcPort() != 1000 || second.Src() != us || second.SrcPort() == 1000 {
		t.Errorf("translated to %s and %s, want the port kept where it is free", first, second)
	}
	if back := run(trace.IP(8, server, us, 17, 53, second.SrcPort())); back.Dst() != b || back.DstPort() != 1000 {
		t.Errorf("the answer went to %s", back)
	}
}

func TestAllFollowsEveryBucket(t *testing.T) {
	s := newSwitch(t, natFlows, natGroup)
	ct := &trace.Conntrack{}
	results := s.All(trace.IP(1, netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.9.9.9"), 6, 1000, 80),
		trace.Options{Conntrack: ct, Steps: true})
	if len(results) != 2 || outcome(results[0]) != "2" || outcome(results[1]) != "3" {
		t.Fatalf("results %v", results)
	}
	if len(ct.Connections()) != 0 {
		t.Errorf("All left connections behind: %v", ct.Connections())
	}
	text := results[1].String()
	for _, want := range []string{"group 4: bucket 2 of 2",
		"the connection is new,trk,dnat, destination now 10.0.0.3 port 8080", "=> port 3"} {
		if !strings.Contains(text, want) {
			t.Errorf("the way does not say %q:\n%s", want, text)
		}
	}
}

func TestEndlessLoopEnds(t *testing.T) {
	s := newSwitch(t, "table=0,priority=1 actions=ct(table=0)")
	if r := s.Run(packet(t, "ip"), trace.Options{}); !r.Dropped() || !strings.Contains(r.Note, "loop") {
		t.Errorf("note %q", r.Note)
	}
}

func TestPacketText(t *testing.T) {
	for _, text := range []string{
		"in_port=3,tun_src=172.30.0.2,dl_src=00:00:00:00:00:01,dl_dst=0a:57:65:66:74:01,tcp,nw_src=10.0.0.1,nw_dst=10.0.0.2,nw_ttl=64,tcp_src=1,tcp_dst=80,tcp_flags=0x2",
		"in_port=3,dl_src=00:00:00:00:00:00,dl_dst=00:00:00:00:00:00,icmp6,ipv6_src=fd00::1,ipv6_dst=fd00::2,nw_ttl=64,icmpv6_type=128,icmpv6_code=0",
		"in_port=3,dl_src=00:00:00:00:00:00,dl_dst=00:00:00:00:00:00,ip,nw_proto=47,nw_src=10.0.0.1,nw_dst=10.0.0.2,nw_ttl=64",
	} {
		if got := packet(t, text).String(); got != text {
			t.Errorf("%s\nbecomes\n%s", text, got)
		}
	}
}

func BenchmarkRun(b *testing.B) {
	s := newSwitch(b, natFlows, natGroup)
	p := trace.IP(1, netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.9.9.9"), 6, 1000, 80)
	ct := &trace.Conntrack{}
	for b.Loop() {
		s.Run(p, trace.Options{Conntrack: ct})
	}
}

// TestLearn: a learned flow matches what the packet had that made the switch learn it, and is replaced by the next one.
func TestLearn(t *testing.T) {
	s := newSwitch(t, `
		table=0,priority=1,tcp actions=resubmit(,35),goto_table:1
		table=1,priority=2,tcp,reg4=0x7 actions=output:7
		table=1,priority=1,tcp actions=learn(table=35,idle_timeout=60,priority=100,cookie=0x57,limit=10,eth_type=0x800,nw_proto=6,NXM_OF_IP_SRC[],NXM_OF_TCP_DST[],load:0x7->NXM_NX_REG4[]),output:1`)
	learned := &trace.Learned{}
	for _, step := range []struct {
		packet, want string
		learned      *trace.Learned
	}{
		{"tcp,nw_src=10.0.0.1,tp_dst=80", "1", nil}, // nothing is learned
		{"tcp,nw_src=10.0.0.1,tp_dst=80", "1", learned},
		{"tcp,nw_src=10.0.0.1,tp_src=9,tp_dst=80", "7", learned},
		{"tcp,nw_src=10.0.0.1,tp_dst=81", "1", learned},
		{"tcp,nw_src=10.0.0.2,tp_dst=80", "1", learned},
		{"tcp,nw_src=10.0.0.2,tp_dst=80", "7", learned},
	} {
		if got := outcome(s.Run(packet(t, step.packet), trace.Options{Learned: step.learned})); got != step.want {
			t.Errorf("%s leaves at %s, want %s", step.packet, got, step.want)
		}
	}
}
