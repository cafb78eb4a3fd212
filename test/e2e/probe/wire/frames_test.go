package wire

import (
	"encoding/hex"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

var (
	macA = MAC{0x0a, 0x58, 10, 0, 1, 2}
	macB = MAC{0x0a, 0x58, 10, 0, 1, 3}
	ip4A = netip.MustParseAddr("10.0.1.2")
	ip4B = netip.MustParseAddr("10.0.1.3")
	ip6A = netip.MustParseAddr("fd00:1::2")
	ip6B = netip.MustParseAddr("fd00:1::3")
)

// bytesOf reads hexadecimal bytes with blanks between them.
func bytesOf(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func wantBytes(t *testing.T, got []byte, want string) {
	t.Helper()
	if w := bytesOf(t, want); hex.EncodeToString(got) != hex.EncodeToString(w) {
		t.Errorf("got  % x\nwant % x", got, w)
	}
}

// The worked example of the IPv4 header checksum that every text book has.
func TestChecksumOfKnownHeader(t *testing.T) {
	header := bytesOf(t, "4500 0073 0000 4000 4011 0000 c0a8 0001 c0a8 00c7")
	if got := checksum(0, header); got != 0xb861 {
		t.Errorf("checksum %#04x, want 0xb861", got)
	}
}

// A TCP segment says what it was made from, and its checksum is right in both families.
func TestTCPFrame(t *testing.T) {
	for _, ends := range [][2]netip.Addr{{ip4A, ip4B}, {ip6A, ip6B}} {
		header := 14 + 20
		if ends[0].Is6() {
			header = 14 + 40
		}
		f := TCPFrame(macB, macA, netip.AddrPortFrom(ends[0], 1000), netip.AddrPortFrom(ends[1], 80), SYN|ACK, 0x01020304,
			0x05060708, []byte("payload"))
		verifyTransport(t, ends[0], ends[1], protoTCP, f[header:])
		copy(f[header+16:], []byte{0, 0}) // the checksum
		wantBytes(t, f[header:], "03e8 0050 0102 0304 0506 0708 5012 ffff 0000 0000"+hex.EncodeToString([]byte("payload")))
	}
}

// verifyTransport adds up the pseudo header and the message with its checksum in place: a right one gives all ones.
func verifyTransport(t *testing.T, src, dst netip.Addr, proto byte, message []byte) {
	t.Helper()
	if got := transportChecksum(src, dst, proto, message); got != 0 {
		t.Errorf("the transport checksum does not verify: remainder %#04x in % x", got, message)
	}
}

func TestUDPFrameIPv4(t *testing.T) {
	payload := Mark("ip4-a")
	f := UDPFrame(macB, macA, netip.AddrPortFrom(ip4A, 1000), netip.AddrPortFrom(ip4B, 2000), payload)
	wantBytes(t, f[:14], "0a58 0a00 0103  0a58 0a00 0102  0800")
	h, err := ipv4.ParseHeader(f[14:34])
	if err != nil {
		t.Fatal(err)
	}
	if h.Version != 4 || h.Protocol != protoUDP || h.TTL != 64 || !h.Src.Equal(net.IP(ip4A.AsSlice())) ||
		!h.Dst.Equal(net.IP(ip4B.AsSlice())) {
		t.Errorf("wrong IPv4 header: %v", h)
	}
	if got := checksum(0, f[14:34]); got != 0 {
		t.Errorf("the header checksum does not verify: %#04x", got)
	}
	udp := f[34 : 14+h.TotalLen]
	wantBytes(t, udp[:6], "03e8 07d0 0016")
	verifyTransport(t, ip4A, ip4B, protoUDP, udp)
	if tag, ok := Tag(f); !ok || tag != "ip4-a" {
		t.Errorf("tag %q, %v", tag, ok)
	}
}

func TestUDPFrameIPv6(t *testing.T) {
	f := UDPFrame(macB, macA, netip.AddrPortFrom(ip6A, 1000), netip.AddrPortFrom(ip6B, 2000), []byte("odd"))
	wantBytes(t, f[12:14], "86dd")
	h, err := ipv6.ParseHeader(f[14:54])
	if err != nil {
		t.Fatal(err)
	}
	if h.NextHeader != protoUDP || h.PayloadLen != 11 || h.HopLimit != 64 || !h.Src.Equal(net.IP(ip6A.AsSlice())) ||
		!h.Dst.Equal(net.IP(ip6B.AsSlice())) {
		t.Errorf("wrong IPv6 header: %v", h)
	}
	verifyTransport(t, ip6A, ip6B, protoUDP, f[54:65])
}

func TestARPFrame(t *testing.T) {
	f := ARPFrame(BroadcastMAC, macA, ARPReply, macA, ip4B, macB, ip4A, Mark("arp-p"))
	wantBytes(t, f[:42], "ffff ffff ffff  0a58 0a00 0102  0806"+
		"0001 0800 06 04 0002  0a58 0a00 0102 0a00 0103  0a58 0a00 0103 0a00 0102")
	if len(f) != 60 {
		t.Errorf("%d bytes, want the least length of 60", len(f))
	}
	if tag, _ := Tag(f); tag != "arp-p" {
		t.Errorf("tag %q", tag)
	}
}

func TestNeighbourDiscoveryFrames(t *testing.T) {
	all := netip.MustParseAddr("ff02::1")
	ll := netip.MustParseAddr("fe80::1")
	for name, c := range map[string]struct {
		frame []byte
		typ   ipv6.ICMPType
		size  int
		body  string
	}{
		"neighbour advertisement": {
			frame: NAFrame(macB, macA, ll, all, ip6B, macA, Mark("nd-na")),
			typ:   ipv6.ICMPTypeNeighborAdvertisement, size: 24 + 8 + 16,
			body: "2000 0000  fd00 0001 0000 0000 0000 0000 0000 0003  0201 0a58 0a00 0102  fd02",
		},
		"router advertisement": {
			frame: RAFrame(macB, macA, ll, all, macA, Mark("nd-ra")),
			typ:   ipv6.ICMPTypeRouterAdvertisement, size: 16 + 8 + 16,
			body: "4000 0708  0000 0000 0000 0000  0101 0a58 0a00 0102  fd02",
		},
	} {
		t.Run(name, func(t *testing.T) {
			h, err := ipv6.ParseHeader(c.frame[14:54])
			if err != nil {
				t.Fatal(err)
			}
			if h.HopLimit != 255 || h.NextHeader != protoICMPv6 || h.PayloadLen != c.size {
				t.Errorf("wrong IPv6 header: %v", h)
			}
			message := c.frame[54 : 54+h.PayloadLen]
			verifyTransport(t, ll, all, protoICMPv6, message)
			m, err := icmp.ParseMessage(protoICMPv6, message)
			if err != nil || m.Type != c.typ {
				t.Fatalf("parsed as %v, %v", m, err)
			}
			want := bytesOf(t, c.body)
			wantBytes(t, message[4:4+len(want)], c.body)
		})
	}
}

func TestTunnelHeaders(t *testing.T) {
	wantBytes(t, Geneve(0x123456, []byte{0xaa}), "0000 6558 123456 00 aa")
	wantBytes(t, VXLAN(0x123456, []byte{0xaa}), "0800 0000 123456 00 aa")
}

func TestTagNeedsAWholeMark(t *testing.T) {
	for _, s := range []string{"", "weftspoof", "weftspoof1234", "weftspoo-12345"} {
		if tag, ok := Tag([]byte(s)); ok {
			t.Errorf("%q has tag %q", s, tag)
		}
	}
	if tag, ok := Tag([]byte("xweftspoof12345")); !ok || tag != "12345" {
		t.Errorf("tag %q, %v", tag, ok)
	}
}
