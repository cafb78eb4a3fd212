package walk_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/pkg/capture"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/trace/walk"
	"github.com/weft-cni/weft/pkg/trace/walk/walktest"
)

// livePort is the source port of packets that are sent.
const livePort = 61000

// TestLive: what was seen of a packet that was sent is compared with the path that it took; a packet that went another
// way, or was lost, is named with where it was last.
func TestLive(t *testing.T) {
	c := shop(t)
	// at writes a sighting: NODE PORT to|from SOURCE DESTINATION FLAGS.
	begin := time.Unix(1000, 0)
	at := func(line string) walk.Sighting {
		f := strings.Fields(line)
		flags := map[string]uint16{"SYN": 2, "SYN,ACK": 0x12, "RST,ACK": 0x14, "-": 0}[f[5]]
		begin = begin.Add(time.Millisecond)
		return walk.Sighting{Node: f[0], Port: f[1], To: f[2] == "to", Reply: f[5] != "SYN" && f[5] != "-", Info: f[5], Time: begin,
			Packet: walk.Packet{Src: netip.MustParseAddrPort(f[3]),
				Dst: netip.MustParseAddrPort(f[4]), Flags: flags}}
	}
	const (
		leaves  = "node1 tunnel to 10.244.1.2:61000 10.244.2.3:8080 SYN"
		arrives = "node2 tunnel from 10.244.1.2:61000 10.244.2.3:8080 SYN"
		there   = "node2 shop/web-2 to 10.244.1.2:61000 10.244.2.3:8080 SYN"
		here    = "node1 shop/web-1 to 10.244.1.2:61000 10.244.1.3:8080 SYN"
		reply1  = "node2 shop/web-2 from 10.244.2.3:8080 10.244.1.2:61000 SYN,ACK"
		reply2  = "node2 tunnel to 10.244.2.3:8080 10.244.1.2:61000 SYN,ACK"
		reply3  = "node1 tunnel from 10.244.2.3:8080 10.244.1.2:61000 SYN,ACK"
		reply4  = "node1 shop/client to 10.96.0.80:80 10.244.1.2:61000 SYN,ACK"
	)
	refused := func(line string) string { return strings.Replace(line, "SYN,ACK", "RST,ACK", 1) }
	for _, tc := range []struct {
		name, from, to            string
		seen                      []string
		agrees, established, done bool
		text                      string
	}{
		{"answered", "client", "shop/web:80", []string{leaves, arrives, there, reply1, reply2, reply3, reply4}, true, true, true,
			"it reached shop/web-2, which answered with SYN,ACK, back after 6ms"},
		{"refused", "client", "shop/web:80", []string{leaves, arrives, there, refused(reply1), refused(reply2), refused(reply3),
			refused(reply4)}, true, false, true, "it reached shop/web-2, which refused it with RST,ACK, back after 6ms"},
		{"retransmitted", "client", "shop/web:80", []string{leaves, arrives, there, reply1, reply1, reply2, reply2, reply3, reply4, reply4},
			true, true, true, "it reached shop/web-2, which answered with SYN,ACK, back after 8ms"},
		{"not answered", "client", "shop/web:80", []string{leaves, arrives, there}, true, false, false,
			"it reached shop/web-2, and was not answered"},
		{"other endpoint, not answered", "client", "shop/web:80", []string{here}, true, false, false,
			"it reached shop/web-1, and was not answered"},
		{"datagram", "client", "shop/other:53/UDP", []string{"node1 tunnel to 10.244.1.2:61000 10.244.2.2:53 -",
			"node2 tunnel from 10.244.1.2:61000 10.244.2.2:53 -", "node2 shop/other to 10.244.1.2:61000 10.244.2.2:53 -"}, true, true, true,
			"it reached shop/other"},
		{"masqueraded", "client", "outside:443", []string{"node1 gateway to 10.244.1.2:61000 192.0.2.1:443 SYN"}, true, false, false,
			"it went to a node's kernel, which gives it another source port; beyond, it cannot be told from other packets, and was not " +
				"answered"},
		{"masqueraded, answered", "client", "outside:443", []string{"node1 gateway to 10.244.1.2:61000 192.0.2.1:443 SYN",
			"node1 gateway from 192.0.2.1:443 10.244.1.2:61000 SYN,ACK", "node1 shop/client to 192.0.2.1:443 10.244.1.2:61000 SYN,ACK"},
			true, true, true, "it reached outside, which answered with SYN,ACK, back after 2ms"},
		{"lost in the tunnel", "client", "shop/web:80", []string{leaves}, false, false, false,
			"it was last seen leaving node node1 for the underlay, and not arriving at node node2 from the underlay"},
		{"lost at once", "client", "web-2:8080", nil, false, false, false,
			"it was seen nowhere, not even leaving node node1 for the underlay"},
		{"answer lost", "client", "shop/web:80", []string{leaves, arrives, there, reply1, reply2}, false, false, false,
			"it reached shop/web-2; the answer was last seen leaving node node2 for the underlay, and not arriving at node node1 " +
				"from the underlay"},
		{"denied", "other", "web-2:8080", nil, true, false, false, "it was dropped: policy-ingress"},
		{"denied, and delivered", "other", "web-2:8080", []string{"node2 shop/web-2 to 10.244.2.2:61000 10.244.2.3:8080 SYN"}, false,
			false, false, "the trace says dropped: policy-ingress, but it was seen to pod shop/web-2 on node node2"},
		{"another pod", "client", "web-2:8080", []string{leaves, arrives, there, "node2 shop/other to 10.244.1.2:61000 10.244.2.3:8080 SYN"},
			false, false, false, "the trace says reaches shop/web-2"},
		{"not translated", "client", "shop/web:80", []string{strings.Replace(leaves, "10.244.2.3:8080", "10.96.0.80:80", 1)}, false, false,
			false, "it was seen nowhere, not even"},
		{"no endpoint", "client", "shop/empty", []string{"node1 gateway to 10.244.1.2:61000 169.254.87.3:80 SYN"}, true, false, false,
			"it was refused: no endpoint, or no such port of the Service, and last seen to the kernel of node node1"},
	} {
		queries, err := c.Resolve(tc.from, tc.to, "shop")
		if err != nil {
			t.Fatal(err)
		}
		queries[0].SrcPort = livePort
		trace := c.Trace(queries[0])
		var seen []walk.Sighting
		for _, line := range tc.seen {
			s := at(line)
			s.Packet.Protocol = queries[0].Protocol
			seen = append(seen, s)
		}
		trace.Compare(1, nil) // before anything was seen
		trace.Compare(1, seen)
		l := trace.Live
		if l.Agrees != tc.agrees || l.Established != tc.established || !strings.HasPrefix(l.Text, tc.text) ||
			trace.Done() != tc.done {
			t.Errorf("%s: done %t, established %t: %s\nwant %q\n%s", tc.name, trace.Done(), l.Established, l, tc.text, trace.Text(false))
		}
		for i, p := range trace.Paths {
			if live := p.Hops[0].Live != nil; live != (i == l.Path) {
				t.Errorf("%s: path %d of %d has sightings: %t", tc.name, i, len(trace.Paths), live)
			}
		}
		if tc.name != "lost in the tunnel" {
			continue
		}
		for _, want := range []string{"    live: seen leaving node node1 for the underlay: SYN\n",
			"    live: not seen arriving at node node2 from the underlay\n"} {
			if text := trace.Text(false); !strings.Contains(text, want) {
				t.Errorf("%s: no %q:\n%s", tc.name, want, text)
			}
		}
	}
}

// TestLiveCounts: each step says what its flow has counted, and a hop where the packet was not counted any more.
func TestLiveCounts(t *testing.T) {
	before := walktest.Nodes(t)
	c, err := walk.New(before, walk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	queries, err := c.Resolve("client", "web-2:8080", "shop")
	if err != nil {
		t.Fatal(err)
	}
	trace := c.Trace(queries[0])
	trace.Compare(1, nil)
	after := walktest.Nodes(t)
	if trace.Count(before, after) {
		t.Error("flows that count nothing have counted")
	}
	if text := trace.Text(false); !strings.Contains(text, "    live: counted by the first 0 of ") {
		t.Error(text)
	}
	for _, n := range after {
		for i := range n.Flows {
			n.Flows[i].Packets = 2
		}
	}
	if !trace.Count(before, after) {
		t.Errorf("not all flows have counted:\n%s", trace.Text(true))
	}
	// Flows that had counted more before were added again since.
	for counted, want := range map[uint64]string{0: " (live: +2)\n", 1: " (live: +1)\n", 7: " (live: +2)\n"} {
		for _, n := range before {
			for i := range n.Flows {
				n.Flows[i].Packets = counted
			}
		}
		all := trace.Count(before, after)
		text := trace.Text(true)
		if !all || !strings.Contains(text, want) || !strings.Contains(text, "    live: counted by all ") {
			t.Errorf("%d packets before, want %q:\n%s", counted, want, text)
		}
	}
}

// TestSighted: a packet of a capture is the one that was sent, an answer to it, or another one.
func TestSighted(t *testing.T) {
	addr := netip.MustParseAddr
	frame := func(c openflow.Connection) capture.Packet {
		return capture.Packet{To: true, Data: c.First(model.MAC{1}, model.MAC{2})}
	}
	for _, one := range []struct{ src, dst string }{{"10.244.1.2", "10.244.2.3"}, {"fd44::2", "fd44:0:0:1::3"}} {
		src, dst := addr(one.src), addr(one.dst)
		ping := openflow.IPProtoICMP
		if src.Is6() {
			ping = openflow.IPProtoICMPv6
		}
		for _, tc := range []struct {
			protocol    uint8
			from, to    netip.AddrPort
			id          uint16
			ok, isReply bool
		}{
			{openflow.IPProtoTCP, netip.AddrPortFrom(src, livePort), netip.AddrPortFrom(dst, 80), 0, true, false},
			{openflow.IPProtoTCP, netip.AddrPortFrom(dst, 80), netip.AddrPortFrom(src, livePort), 0, true, true},
			{openflow.IPProtoTCP, netip.AddrPortFrom(src, livePort+1), netip.AddrPortFrom(dst, 80), 0, false, false},
			{openflow.IPProtoUDP, netip.AddrPortFrom(src, livePort), netip.AddrPortFrom(dst, 53), 0, true, false},
			{openflow.IPProtoSCTP, netip.AddrPortFrom(src, livePort), netip.AddrPortFrom(dst, 53), 0, true, false},
			{ping, netip.AddrPortFrom(src, 0), netip.AddrPortFrom(dst, 0), livePort, true, false},
			{ping, netip.AddrPortFrom(src, 0), netip.AddrPortFrom(dst, 0), livePort + 1, false, false},
		} {
			trace := walk.Trace{Query: walk.Query{Src: src, SrcPort: livePort, Protocol: tc.protocol}}
			p := frame(openflow.Connection{Protocol: tc.protocol, Source: tc.from, Destination: tc.to,
				ICMP: openflow.ICMP{ID: tc.id}})
			s, ok := trace.Sighted("n1", capture.Port{Name: "shop/web"}, p, capture.Names{})
			if ok != tc.ok || ok && s.Reply != tc.isReply {
				t.Errorf("%d %s to %s: %t, %+v", tc.protocol, tc.from, tc.to, ok, s)
			}
			if ok && s.Packet.Src != tc.from {
				t.Errorf("source %s, want %s", s.Packet.Src, tc.from)
			}
		}
	}
}
