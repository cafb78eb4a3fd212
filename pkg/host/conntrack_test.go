package host

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	"github.com/weft-cni/weft/pkg/model"
)

func at(text string) netip.AddrPort { return netip.MustParseAddrPort(text) }

// conn is a UDP connection between two ends, with the two ends of its replies, in zone 0.
func conn(source, destination, replySource, replyDestination string) connection {
	return connection{protocol: unix.IPPROTO_UDP, source: at(source), destination: at(destination),
		replySource: at(replySource), replyDestination: at(replyDestination)}
}

// untranslated is a connection without NAT.
func untranslated(source, destination string) connection {
	return conn(source, destination, destination, source)
}

func (c connection) of(protocol uint8) connection {
	c.protocol = protocol
	return c
}

func (c connection) in(zone uint16) connection {
	c.zone = zone
	return c
}

// nodeWithServices is node 192.0.2.1 with the pods 10.244.1.0/24.
func nodeWithServices() (Desired, []netip.Prefix) {
	d := dualStack()
	d.Address = netip.MustParseAddr("192.0.2.1")
	d.Masquerade = true
	d.NoMasquerade = prefixes("192.168.0.0/16")
	d.ServiceCIDRs = prefixes("10.96.0.0/16", "fd00:96::/112")
	d.ServicePorts = ports("198.51.100.80:53/UDP", "192.0.2.50:53/UDP")
	d.NodePorts = []NodePort{
		{Protocol: model.UDP, Port: 30053}, {IPv6: true, Protocol: model.UDP, Port: 30053}, {Protocol: model.TCP,
			Port: 30080}, {Protocol: model.UDP, Port: 6081},
	}
	d.ExternalIPs = []ExternalIP{
		{Addr: netip.MustParseAddr("192.0.2.50"), Protocol: model.UDP, Port: 53, To: at("10.96.0.10:53")},
		{Addr: netip.MustParseAddr("198.51.100.81"), Protocol: model.UDP, Port: 53, To: at("10.96.0.10:53")},
		{Addr: netip.MustParseAddr("198.51.100.80"), Protocol: model.UDP, Port: 53, To: at("169.254.87.1:30053")},
	}
	return d, prefixes("127.0.0.0/8", "192.0.2.1/32", "192.0.2.50/32", "10.244.1.1/32", "::1/128", "2001:db8::1/128",
		"fd00:10:1::1/128", "fe80::1/128")
}

func TestStaleConnections(t *testing.T) {
	d, local := nodeWithServices()
	now := translationsOf(d, local, removedTranslations{})
	for _, tt := range []struct {
		what string
		c    connection
		want bool
	}{
		{"to a node port from before the Service", untranslated("203.0.113.9:40001", "192.0.2.1:30053"), true},
		{"of the node itself", untranslated("192.0.2.1:40001", "192.0.2.1:30053"), true},
		{"of a pod", untranslated("10.244.1.7:40001", "192.0.2.1:30053"), true},
		{"at the gateway address", untranslated("10.244.1.7:40001", "10.244.1.1:30053"), true},
		{"over IPv6", untranslated("[2001:db8::9]:40001", "[2001:db8::1]:30053"), true},
		{"served", conn("203.0.113.9:40001", "192.0.2.1:30053", "240.87.117.101:30053", "203.0.113.9:40001"), false},
		{"served at the one address that all had before",
			conn("203.0.113.9:40001", "192.0.2.1:30053", "169.254.87.1:30053", "203.0.113.9:40001"), true},
		{"served, of the node itself", conn("192.0.2.1:40001", "192.0.2.1:30053", "240.87.117.101:30053", "192.0.2.1:40001"),
			false},
		{"served, of the node itself, from the gateway address",
			conn("192.0.2.1:40001", "192.0.2.1:30053", "240.87.117.101:30053", "10.244.1.1:50000"), true},
		{"served, of another address of the node",
			conn("192.0.2.50:40001", "192.0.2.1:30053", "240.87.117.101:30053", "10.244.1.1:50000"), false},
		{"of another address of the node, as itself",
			conn("192.0.2.50:40001", "192.0.2.1:30053", "240.87.117.101:30053", "192.0.2.50:40001"), true},
		{"served, of the node itself, over IPv6",
			conn("[2001:db8::1]:40001", "[2001:db8::1]:30053", "[fd57:6566:7400:1::7565]:30053", "[fd00:10:1::1]:50000"), false},
		{"served, over IPv6",
			conn("[2001:db8::9]:40001", "[2001:db8::1]:30053", "[fd57:6566:7400:1::7565]:30053", "[2001:db8::9]:40001"), false},
		{"TCP's node port", untranslated("203.0.113.9:40001", "192.0.2.1:30080"), false},
		{"over TCP", untranslated("203.0.113.9:40001", "192.0.2.1:30080").of(unix.IPPROTO_TCP), false},
		{"over SCTP", untranslated("203.0.113.9:40001", "192.0.2.1:30053").of(unix.IPPROTO_SCTP), false},
		{"in a zone of the switch", untranslated("203.0.113.9:40001", "192.0.2.1:30053").in(22373), false},
		{"to another port", untranslated("203.0.113.9:40001", "192.0.2.1:53"), false},
		{"through the node", untranslated("203.0.113.9:40001", "203.0.113.77:30053"), false},
		{"from a node port's number", untranslated("192.0.2.1:30053", "203.0.113.9:40001"), false},
		{"at loopback", untranslated("127.0.0.1:40001", "127.0.0.1:30053"), false},
		{"at a link-local address", untranslated("[fe80::9]:40001", "[fe80::1]:30053"), false},
		{"at a tunnel's port", untranslated("203.0.113.9:40001", "192.0.2.1:6081"), false},
		{"of a Service", untranslated("169.254.87.2:40001", "192.0.2.1:30053"), false},
		{"a host port with a foreign translation",
			conn("203.0.113.9:40001", "192.0.2.1:30053", "10.244.1.7:53", "203.0.113.9:40001"), false},
		{"a node port that is gone",
			conn("203.0.113.9:40001", "192.0.2.1:30054", "240.87.117.102:30054", "203.0.113.9:40001"), true},
		{"a node port at an address that is gone",
			conn("203.0.113.9:40001", "192.0.2.77:30053", "240.87.117.101:30053", "203.0.113.9:40001"), true},
		{"the switch's address itself",
			conn("192.0.2.1:40001", "240.87.117.101:30053", "240.87.117.101:30053", "192.0.2.1:40001"), false},

		{"to an external address of the node", untranslated("203.0.113.9:40001", "192.0.2.50:53"), true},
		{"to one that was not the node's", conn("192.0.2.1:40001", "192.0.2.50:53", "192.0.2.50:53", "10.244.1.1:50000"),
			true},
		{"node to a Service's external address, as itself", untranslated("192.0.2.1:40001", "198.51.100.80:53"), true},
		{"node to another port there", untranslated("192.0.2.1:40001", "198.51.100.80:54"), false},
		{"node to another port there, from when it went to the switch",
			conn("192.0.2.1:40001", "198.51.100.80:54", "198.51.100.80:54", "10.244.1.1:50000"), true},
		{"pod to another port there", conn("10.244.1.7:40001", "198.51.100.80:54", "198.51.100.80:54", "192.0.2.1:7000"),
			false},
		{"served there", conn("203.0.113.9:40001", "192.0.2.50:53", "10.96.0.10:53", "203.0.113.9:40001"), false},
		{"of the node itself, served there", conn("192.0.2.1:40001", "192.0.2.50:53", "10.96.0.10:53", "10.244.1.1:50000"),
			false},
		{"to one that is elsewhere", conn("192.0.2.1:40001", "198.51.100.80:53", "198.51.100.80:53", "10.244.1.1:50000"),
			false},
		{"to one that was the node's", conn("192.0.2.1:40001", "198.51.100.80:53", "169.254.87.1:30053", "10.244.1.1:50000"),
			true},
		{"to one that was the node's, by a cluster IP",
			conn("192.0.2.1:40001", "198.51.100.81:53", "10.96.0.10:53", "10.244.1.1:50000"), true},
		{"a foreign translation to a Service",
			conn("203.0.113.9:40001", "192.0.2.1:53", "10.96.0.10:53", "203.0.113.9:40001"), false},

		{"pod to the world, as itself", untranslated("10.244.1.7:40001", "203.0.113.9:53"), true},
		{"ping", untranslated("10.244.1.7:0", "203.0.113.9:0").of(unix.IPPROTO_ICMP), true},
		{"TCP", untranslated("10.244.1.7:40001", "203.0.113.9:53").of(unix.IPPROTO_TCP), false},
		{"IPv6", untranslated("[fd00:10:1::7]:40001", "[2001:db8::9]:53"), true},
		{"pod to the world", conn("10.244.1.7:40001", "203.0.113.9:53", "203.0.113.9:53", "192.0.2.1:7000"), false},
		{"with a foreign source translation", conn("10.244.1.7:40001", "203.0.113.9:53", "203.0.113.9:53", "192.0.2.99:7000"),
			false},
		{"pod to an exception", untranslated("10.244.1.7:40001", "192.168.0.9:53"), false},
		{"pod to an exception, by a foreign rule",
			conn("10.244.1.7:40001", "192.168.0.9:53", "192.168.0.9:53", "192.0.2.1:7000"), false},
		{"pod to its node", untranslated("10.244.1.7:40001", "192.0.2.1:53"), false},
		{"pod to a pod", untranslated("10.244.1.7:40001", "10.244.2.7:53"), false},
		{"pod to a node port", conn("10.244.1.7:40001", "192.0.2.1:30053", "240.87.117.101:30053", "10.244.1.7:40001"),
			false},
		{"pod to the world, sent elsewhere",
			conn("10.244.1.7:40001", "203.0.113.9:53", "203.0.113.10:53", "10.244.1.7:40001"), true},
		{"pod to the world, sent to the node", conn("10.244.1.7:40001", "203.0.113.9:53", "192.0.2.1:53", "10.244.1.7:40001"),
			false},
		{"another node's pod", untranslated("10.244.2.7:40001", "203.0.113.9:53"), false},
		{"out of a Service to another node, not masqueraded", untranslated("169.254.87.2:40001", "192.0.2.2:53"), true},
		{"out of a Service to another node", conn("169.254.87.2:40001", "192.0.2.2:53", "192.0.2.2:53", "192.0.2.1:7000"),
			false},

		{"node to a Service, as itself", untranslated("192.0.2.1:40001", "10.96.0.10:53"), true},
		{"node to a Service", conn("192.0.2.1:40001", "10.96.0.10:53", "10.96.0.10:53", "10.244.1.1:50000"), false},
		{"node to another node's pod, as itself", untranslated("192.0.2.1:40001", "10.244.2.7:53"), true},
		{"node to another node's pod, ping", untranslated("192.0.2.1:0", "10.244.2.7:0").of(unix.IPPROTO_ICMP), true},
		{"node to another node's pod, as gateway", untranslated("10.244.1.1:40001", "10.244.2.7:53"), false},
		{"from a privileged port", untranslated("10.244.1.1:900", "10.244.2.7:53"), false},
		{"from a port of others", untranslated("10.244.1.1:2000", "10.244.2.7:53"), true},
		{"from a privileged port of others", untranslated("10.244.1.1:700", "10.244.2.7:53"), true},
		{"node to its pod", untranslated("192.0.2.1:40001", "10.244.1.7:53"), false},
		{"node to the world", untranslated("192.0.2.1:40001", "203.0.113.9:53"), false},
		{"node to the world, as gateway to a Service that is gone",
			conn("192.0.2.1:40001", "203.0.113.9:53", "203.0.113.9:53", "10.244.1.1:50000"), true},
		{"others to another node's pod", untranslated("203.0.113.9:40001", "10.244.2.7:53"), false},
		{"a tunnel", untranslated("192.0.2.1:40001", "192.0.2.2:6081"), false},
		{"an answer to what a Service turned back", untranslated("192.0.2.1:53", "169.254.87.2:40001"), false},
	} {
		if got := now.outdated(tt.c); got != tt.want {
			t.Errorf("%s: outdated %t, want %t: %+v", tt.what, got, tt.want, tt.c)
		}
	}
}

// TestOutdatedAfterRemoval: a translation that other programs may make, too, is Weft's only right after the table has
// stopped making it.
func TestOutdatedAfterRemoval(t *testing.T) {
	d, local := nodeWithServices()
	masqueraded := conn("10.244.1.7:40001", "192.168.0.9:53", "192.168.0.9:53", "192.0.2.1:7000")
	redirected := conn("203.0.113.9:40001", "192.0.2.1:53", "10.96.0.10:53", "203.0.113.9:40001")
	now := translationsOf(d, local, removedTranslations{
		direct: prefixes(
			"192.168.0.0/16"), external: map[netip.AddrPort]netip.AddrPort{at("192.0.2.1:53"): at("10.96.0.10:53")},
	})
	for _, tt := range []struct {
		what string
		c    connection
		want bool
	}{
		{"masqueraded", masqueraded, true},
		{"masqueraded, TCP", masqueraded.of(unix.IPPROTO_TCP), false},
		{"with an address that is not the node's",
			conn("10.244.1.7:40001", "192.168.0.9:53", "192.168.0.9:53", "192.0.2.99:7000"), false},
		{"masqueraded to elsewhere", conn("10.244.1.7:40001", "203.0.113.9:53", "203.0.113.9:53", "192.0.2.1:7000"), false},
		{"external address", redirected, true},
		{"external address, led elsewhere", conn("203.0.113.9:40001", "192.0.2.1:53", "10.96.0.11:53", "203.0.113.9:40001"),
			false},
	} {
		if got := now.outdated(tt.c); got != tt.want {
			t.Errorf("%s: outdated %t, want %t", tt.what, got, tt.want)
		}
	}
}

// Without pods in a family, the node has no rules for it.
func TestOutdatedWithoutPodCIDR(t *testing.T) {
	d, local := nodeWithServices()
	d.PodCIDRs = d.PodCIDRs[:1]
	now := translationsOf(d, local, removedTranslations{})
	if now.outdated(untranslated("[2001:db8::9]:40001", "[2001:db8::1]:30053")) {
		t.Error("a connection of the family without pods is outdated")
	}
	if !now.outdated(untranslated("203.0.113.9:40001", "192.0.2.1:30053")) {
		t.Error("a connection of the family with pods is not")
	}
}

func TestRanges(t *testing.T) {
	r := disjoint(prefixes("10.0.0.0/8", "10.1.0.0/16", "192.0.2.1/32", "fd00::/16", "fd00::1/128", "192.0.2.3/32"))
	if len(r) != 4 {
		t.Errorf("ranges %v, want four", r)
	}
	for text, want := range map[string]bool{
		"10.1.2.3": true, "10.0.0.0": true, "10.255.255.255": true, "11.0.0.0": false, "9.9.9.9": false,
		"192.0.2.1": true, "192.0.2.2": false, "192.0.2.3": true, "fd00::7": true, "fd01::": false, "::": false,
	} {
		if got := r.contain(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s in %v: %t, want %t", text, r, got, want)
		}
	}
}

// attribute is a netlink attribute with the kernel's padding.
func attribute(kind uint16, value ...byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(unix.SizeofNlAttr+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	for len(b)%unix.NLA_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

func nested(kind uint16, parts ...[]byte) []byte {
	var value []byte
	for _, p := range parts {
		value = append(value, p...)
	}
	return attribute(kind|nl.NLA_F_NESTED, value...)
}

func tuple(kind uint16, from, to netip.AddrPort, more ...[]byte) []byte {
	port := func(kind uint16, p uint16) []byte { return attribute(kind, binary.BigEndian.AppendUint16(nil, p)...) }
	src, dst := uint16(nl.CTA_IP_V4_SRC), uint16(nl.CTA_IP_V4_DST)
	if from.Addr().Is6() {
		src, dst = nl.CTA_IP_V6_SRC, nl.CTA_IP_V6_DST
	}
	return nested(kind, append([][]byte{
		nested(nl.CTA_TUPLE_IP, attribute(src, from.Addr().AsSlice()...), attribute(dst, to.Addr().AsSlice()...)),
		nested(nl.CTA_TUPLE_PROTO, attribute(nl.CTA_PROTO_NUM, unix.IPPROTO_UDP), port(nl.CTA_PROTO_SRC_PORT, from.Port()),
			port(nl.CTA_PROTO_DST_PORT, to.Port())),
	}, more...)...)
}

func TestParseConnection(t *testing.T) {
	for _, want := range []connection{
		conn("203.0.113.9:40001", "192.0.2.1:30053", "169.254.87.1:30053", "203.0.113.9:40001"),
		conn("[2001:db8::9]:40001", "[2001:db8::1]:30053", "[fd57:6566:7400::1]:30053", "[2001:db8::9]:40001").in(22373),
	} {
		message := []byte{unix.AF_INET, nl.NFNETLINK_V0, 0, 0}
		message = append(message, tuple(nl.CTA_TUPLE_ORIG, want.source, want.destination)...)
		message = append(message, tuple(nl.CTA_TUPLE_REPLY, want.replySource, want.replyDestination)...)
		message = append(message, attribute(nl.CTA_STATUS, 0, 0, 0, 8)...)
		if want.zone != 0 {
			message = append(message, attribute(nl.CTA_ZONE, binary.BigEndian.AppendUint16(nil, want.zone)...)...)
		}
		got, ok := parseConnection(message)
		if !ok || got != want {
			t.Errorf("parsed %+v, %t, want %+v", got, ok, want)
		}
		for n := range message {
			parseConnection(message[:n]) // must not panic
		}
	}
	zoned := append([]byte{unix.AF_INET, nl.NFNETLINK_V0, 0, 0},
		tuple(nl.CTA_TUPLE_ORIG, at("192.0.2.2:1"), at("192.0.2.1:30053"), attribute(tupleZone, 0, 7))...)
	zoned = append(zoned, tuple(nl.CTA_TUPLE_REPLY, at("192.0.2.1:30053"), at("192.0.2.2:1"))...)
	if got, ok := parseConnection(zoned); !ok || got.zone != 7 {
		t.Errorf("the zone of one direction: parsed %+v, %t", got, ok)
	}
}

// TestRemovedTranslations: translations that the table no longer makes are found, also by a new agent.
func TestRemovedTranslations(t *testing.T) {
	nft := knftables.NewFake(knftables.InetFamily, tableName)
	d, _ := nodeWithServices()
	d.sortServices()
	n := newNAT(nft, nil)
	syncNAT(t, n, d)
	took := func(what string, want removedTranslations) {
		t.Helper()
		if diff := cmp.Diff(want, n.removed, cmp.AllowUnexported(removedTranslations{}), cmpopts.EquateEmpty(),
			cmpopts.EquateComparable(netip.Prefix{}, netip.AddrPort{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
		n.removed = removedTranslations{}
	}
	took("at first", removedTranslations{})

	d.NodePorts = nil
	d.ExternalIPs = slices.DeleteFunc(d.ExternalIPs,
		func(e ExternalIP) bool { return e.Addr == netip.MustParseAddr("192.0.2.50") })
	d.NoMasquerade = prefixes("203.0.113.0/24")
	syncNAT(t, n, d)
	change := removedTranslations{direct: prefixes("203.0.113.0/24"),
		external: map[netip.AddrPort]netip.AddrPort{at("192.0.2.50:53"): at("10.96.0.10:53")}}
	took("elements", change)

	n = newNAT(nft, nil)
	d.ExternalIPs, d.NoMasquerade = d.ExternalIPs[1:], prefixes("192.168.0.0/16")
	syncNAT(t, n, d)
	took("elements, after a restart", removedTranslations{
		direct: prefixes(
			"192.168.0.0/16"), external: map[netip.AddrPort]netip.AddrPort{at("198.51.100.80:53"): at("169.254.87.1:30053")},
	})

	n = newNAT(nft, nil)
	d.Masquerade = false
	syncNAT(t, n, d)
	took("the masquerade, after a restart", removedTranslations{direct: everywhere})
	d.Masquerade = true
	syncNAT(t, n, d)
	took("nothing", removedTranslations{})
	d.Masquerade = false
	syncNAT(t, n, d)
	took("the masquerade", removedTranslations{direct: everywhere})
}
