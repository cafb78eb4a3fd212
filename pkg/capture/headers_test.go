package capture_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/pkg/capture"
)

// frames are a frame of each kind, with the line that people see. One of a tunnel begins with "tunnel".
var frames = map[string]struct {
	frame []byte
	want  string
}{
	"syn": {ip4(6, 0, client4, server4, tcp(40000, 80, 2, "")), "shop/client:40000 > shop/web:80 TCP SYN"},
	"data": {ip4(6, 0, server4, client4, tcp(80, 40000, 0x18, "hello")),
		"shop/web:80 > shop/client:40000 TCP PSH,ACK, 5 bytes"},
	"tcp6":    {ip6(6, client6, server6, tcp(40000, 80, 0x12, "")), "shop/client:40000 > shop/web:80 TCP SYN,ACK"},
	"unnamed": {ip6(17, client6, server6.Next(), udp(5000, 53, "x")), "shop/client:5000 > [fd44:0:0:1::4]:53 UDP, 1 bytes"},
	"udp":     {ip4(17, 0, client4, server4, udp(5000, 53, "query")), "shop/client:5000 > shop/web:53 UDP, 5 bytes"},
	"sctp": {ip4(132, 0, client4, server4, append(u16(5000, 36412), make([]byte, 12)...)),
		"shop/client:5000 > shop/web:36412 SCTP, 4 bytes"},
	"ping": {ip4(1, 0, client4, server4, make([]byte, 12)), "shop/client > shop/web ICMP echo reply"},
	"too big": {ip6(58, server6, client6, append([]byte{2, 0}, make([]byte, 10)...)),
		"shop/web > shop/client ICMP packet too big"},
	"icmp": {ip4(1, 0, server4, client4, append([]byte{3, 4}, make([]byte, 10)...)),
		"shop/web > shop/client ICMP unreachable, code 4"},
	"odd":   {ip4(1, 0, server4, client4, append([]byte{42, 0}, make([]byte, 10)...)), "shop/web > shop/client ICMP type 42"},
	"nd":    {solicit(server6), "shop/client > shop/web ICMP neighbor solicitation for shop/web"},
	"who":   {arp(1, client4, server4), "shop/client > shop/web ARP who has shop/web"},
	"is at": {arp(2, server4, client4), "shop/web > shop/client ARP shop/web is at 02:00:00:00:00:02"},
	"first": {ip4(17, 0x2000, client4, server4, udp(5000, 53, "query")),
		"shop/client:5000 > shop/web:53 UDP, 5 bytes, first fragment"},
	"later": {ip4(17, 185, client4, server4, udp(5000, 53, "query")),
		"shop/client > shop/web UDP fragment from byte 1480, 13 bytes"},
	"first6": {ip6(44, client6, server6, fragment6(17, 0, true, udp(5000, 53, "query"))),
		"shop/client:5000 > shop/web:53 UDP, 5 bytes, first fragment"},
	"later6": {ip6(44, client6, server6, fragment6(17, 1480, false, udp(5000, 53, "query"))),
		"shop/client > shop/web UDP fragment from byte 1480, 13 bytes"},
	"options": {ip6(0, client6, server6, extended(60, extended(6, tcp(40000, 80, 1, "")))),
		"shop/client:40000 > shop/web:80 TCP FIN"},
	// The middle of a packet is not taken for a header.
	"later options6": {ip6(44, client6, server6, fragment6(60, 1480, false, udp(0x0600, 53, "query"))),
		"shop/client > shop/web IP protocol 60 fragment from byte 1480, 13 bytes"},
	"other": {ip4(89, 0, client4, server4, []byte("ospf")), "shop/client > shop/web IP protocol 89, 4 bytes"},
	"lldp":  {ethernet(0x88cc, []byte("x")), " >  EtherType 0x88cc"},
	"tunnel": {geneve(0, ip4(6, 0, client4, server4, tcp(40000, 80, 2, ""))),
		"shop/client:40000 > shop/web:80 TCP SYN in Geneve from node/n1 to node/n2"},
	"tunnel with options": {geneve(12, ip6(17, client6, server6, udp(5000, 53, ""))),
		"shop/client:5000 > shop/web:53 UDP, 0 bytes in Geneve from node/n1 to node/n2"},
	"tunnel vxlan": {vxlan(arp(1, client4, server4)), "shop/client > shop/web ARP who has shop/web in VXLAN from node/n1 to node/n2"},
	"tunnel gre":   {gre(0x2000, make([]byte, 4), arp(1, client4, server4)), "shop/client > shop/web ARP who has shop/web in GRE from node/n1 to node/n2"},
	"tunnel gre with options": {gre(0xb000, make([]byte, 12), ip4(17, 0, client4, server4, udp(5000, 53, ""))),
		"shop/client:5000 > shop/web:53 UDP, 0 bytes in GRE from node/n1 to node/n2"},
	"tunnel ipip": {ip4(4, 0, netip.MustParseAddr("172.30.0.11"), netip.MustParseAddr("172.30.0.12"),
		ip4(6, 0, client4, server4, tcp(40000, 80, 2, ""))[14:]), "shop/client:40000 > shop/web:80 TCP SYN in IPIP from node/n1 to node/n2"},
	"tunnel sit": {ip4(41, 0, netip.MustParseAddr("172.30.0.11"), netip.MustParseAddr("172.30.0.12"),
		ip6(17, client6, server6, udp(5000, 53, ""))[14:]), "shop/client:5000 > shop/web:53 UDP, 0 bytes in IPIP from node/n1 to node/n2"},
	// GRE around an IP packet is a tunnel of another program.
	"tunnel gre of others": {ip4(47, 0, netip.MustParseAddr("172.30.0.11"), netip.MustParseAddr("172.30.0.12"), u16(0, 0x0800)),
		"node/n1 > node/n2 IP protocol 47, 4 bytes"},
	// A pod may send to such a port, too.
	"no tunnel": {geneve(0, ip4(6, 0, client4, server4, tcp(40000, 80, 2, ""))), "node/n1:50000 > node/n2:6081 UDP, 62 bytes"},
}

func line(h capture.Headers) string {
	src, dst := h.Ends(known().Of)
	return src + " > " + dst + " " + h.Info(known().Of)
}

// TestLines: each kind of packet as people see it.
func TestLines(t *testing.T) {
	for name, tc := range frames {
		if got := line(capture.Parse(tc.frame, strings.HasPrefix(name, "tunnel"))); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

// TestCutOff: a frame that is cut off anywhere is decoded as far as it goes.
func TestCutOff(t *testing.T) {
	for name, tc := range frames {
		full := capture.Parse(tc.frame, true)
		for n := range len(tc.frame) {
			h := capture.Parse(tc.frame[:n], true)
			_ = line(h)
			if h.Tunnel == nil && full.Tunnel != nil {
				continue // it looks like a packet between nodes
			}
			if h.Src.IsValid() && (h.Src != full.Src || h.Dst != full.Dst) || h.SrcPort != 0 && h.SrcPort != full.SrcPort {
				t.Errorf("%s with %d bytes: %q, with all %q", name, n, line(h), line(full))
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, tc := range frames {
		f.Add(tc.frame, true)
		f.Add(tc.frame, false)
	}
	f.Fuzz(func(_ *testing.T, frame []byte, tunnel bool) { _ = line(capture.Parse(frame, tunnel)) })
}

// TestRequest: bounds have defaults and limits; every mistake is named.
func TestRequest(t *testing.T) {
	r, err := capture.Request{At: "shop/web"}.Complete()
	if err != nil || r.Packets != capture.DefaultPackets || r.Bytes != capture.DefaultBytes ||
		r.Time != capture.DefaultTime ||
		r.SnapLen != capture.MaxSnapLen {
		t.Errorf("%+v, %v", r, err)
	}
	_, err = capture.Request{SnapLen: 10, Packets: -1, Bytes: capture.MaxBytes + 1, Time: 2 * time.Hour, Protocol: "ICMP",
		Port: 80}.Complete()
	want := "capture: length of a packet 10: want 192 to 131072; number of packets -1: want 1 to 1000000; " +
		"number of bytes 1073741825: want 1 to 1073741824; time in milliseconds 7200000: want 1 to 3600000; " +
		"no pod, Service, gateway or tunnel is named; ICMP has no ports"
	if err == nil || err.Error() != want {
		t.Errorf("%v\nwant %s", err, want)
	}
	if _, err := (capture.Request{At: "x", Protocol: "tcp"}).Complete(); err == nil ||
		err.Error() != `capture: protocol "tcp": want TCP, UDP, SCTP, ICMP` {
		t.Errorf("%v", err)
	}
	most := capture.Request{At: "x", SnapLen: capture.MaxSnapLen, Packets: capture.MaxPackets, Bytes: capture.MaxBytes,
		Time: capture.MaxTime}
	if got, err := most.Complete(); err != nil || got != most {
		t.Errorf("%+v, %v", got, err)
	}
}
