package openflow_test

import (
	"net/netip"
	"testing"

	"github.com/weft-cni/weft/pkg/openflow"
)

func TestParseConnection(t *testing.T) {
	at := netip.MustParseAddrPort
	for line, want := range map[string]struct {
		c     openflow.Connection
		tuple string
	}{
		"udp,orig=(src=10.0.0.1,dst=10.1.0.1,sport=20000,dport=3259),reply=(src=10.244.0.2,dst=10.0.0.1,sport=53,dport=20000),zone=22373,mark=1342177283,labels=0xa010203": {
			openflow.Connection{Zone: 22373, Protocol: openflow.IPProtoUDP, Source: at("10.0.0.1:20000"),
				Destination: at("10.1.0.1:3259"), Endpoint: at("10.244.0.2:53"), Mark: 0x50000003},
			"ct_nw_src=10.0.0.1,ct_nw_dst=10.1.0.1,ct_nw_proto=17,ct_tp_src=20000,ct_tp_dst=3259"},
		"tcp,orig=(src=fd00::1,dst=fd00::2,sport=1,dport=2),reply=(src=fd00::2,dst=fd00::1,sport=2,dport=1),zone=22374,protoinfo=(state=ESTABLISHED)": {
			openflow.Connection{Zone: 22374, Protocol: openflow.IPProtoTCP, Source: at("[fd00::1]:1"),
				Destination: at("[fd00::2]:2"), Endpoint: at("[fd00::2]:2")},
			"ct_ipv6_src=fd00::1,ct_ipv6_dst=fd00::2,ct_nw_proto=6,ct_tp_src=1,ct_tp_dst=2"},
		"icmpv6,orig=(src=fd00::1,dst=fd00::2,id=7,type=128,code=0),reply=(src=fd00::2,dst=fd00::1,id=7,type=129,code=0),zone=22373,mark=1": {
			openflow.Connection{Zone: 22373, Protocol: openflow.IPProtoICMPv6, Source: at("[fd00::1]:0"),
				Destination: at("[fd00::2]:0"), Endpoint: at("[fd00::2]:0"),
				ICMP: openflow.ICMP{ID: 7, Type: 128}, Mark: 1},
			"ct_ipv6_src=fd00::1,ct_ipv6_dst=fd00::2,ct_nw_proto=58,icmp_id=7,icmp_type=128,icmp_code=0"},
		"47,orig=(src=10.0.0.1,dst=10.1.0.1,sport=0,dport=0),reply=(src=10.1.0.1,dst=10.0.0.1,sport=0,dport=0),zone=22373,mark=1,helper=ftp": {
			openflow.Connection{Zone: 22373, Protocol: 47, Source: at("10.0.0.1:0"), Destination: at("10.1.0.1:0"),
				Endpoint: at("10.1.0.1:0"), Mark: 1},
			"ct_nw_src=10.0.0.1,ct_nw_dst=10.1.0.1,ct_nw_proto=47,ct_tp_src=0,ct_tp_dst=0"},
	} {
		got, err := openflow.ParseConnection(line)
		if err != nil || got != want.c {
			t.Errorf("%s:\n%+v, %v; want\n%+v", line, got, err, want.c)
		}
		if got := got.Tuple(); got != want.tuple {
			t.Errorf("%s: tuple %s, want %s", line, got, want.tuple)
		}
	}
	const orig, reply = "orig=(src=10.0.0.1,dst=10.1.0.1,sport=1,dport=2)",
		"reply=(src=10.1.0.1,dst=10.0.0.1,sport=2,dport=1)"
	for _, line := range []string{
		"", "udp", "udp," + orig, "udp," + orig + "," + reply + ",zone", "udp," + orig + "," + reply + ",zone=70000", "udp," +
			orig + "," + reply + ",zone=1,mark=0x1",
		"udp," + orig + "," + reply + ",zone=1,color=red", "udp," + orig + "," + reply + ",zone=1,protoinfo=(state=NEW",
		"udp," + orig + "," + reply + "zone=1",
		"256," + orig + "," + reply, "quic," + orig + "," + reply, "icmp," + orig + "," + reply,
		"udp,orig=(src=10.0.0.1,dst=10.1.0.1,sport=1,dport=2,packets=1)," +
			reply, "udp,orig=(src=10.0.0,dst=10.1.0.1,sport=1,dport=2)," + reply,
		"udp,orig=(src=10.0.0.1,dst=10.1.0.1,sport=1,dport=65536)," + reply, "udp,orig=(src=10.0.0.1,dst=10.1.0.1,sport=1)," +
			reply,
		"Unsupported address family: 9. HEX:",
	} {
		if c, err := openflow.ParseConnection(line); err == nil {
			t.Errorf("%q: %+v, want an error", line, c)
		}
	}
}

func BenchmarkParseConnection(b *testing.B) {
	const line = "udp,orig=(src=10.0.0.1,dst=10.1.0.1,sport=20000,dport=3259),reply=(src=10.244.0.2,dst=10.0.0.1,sport=53,dport=20000),zone=22373,mark=1342177283,labels=0xa010203"
	b.ReportAllocs()
	for b.Loop() {
		if _, err := openflow.ParseConnection(line); err != nil {
			b.Fatal(err)
		}
	}
}
