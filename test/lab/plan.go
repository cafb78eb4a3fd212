package lab

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
)

// Family says which addresses a lab's nodes, pods and Services have.
type Family string

// The families; in a dual-stack lab IPv4 is the primary one.
const (
	IPv4 Family = "ipv4"
	IPv6 Family = "ipv6"
	Dual Family = "dual"
)

func (f Family) check() error {
	switch f {
	case IPv4, IPv6, Dual:
		return nil
	}
	return fmt.Errorf("IP family %q: want %s, %s or %s", f, IPv4, IPv6, Dual)
}

// pick returns the values of the families, the primary one first.
func pick[T any](f Family, v4, v6 T) []T {
	switch f {
	case IPv4:
		return []T{v4}
	case IPv6:
		return []T{v6}
	}
	return []T{v4, v6}
}

// The address plan. Nothing of it leaves the lab's own namespaces, so all labs have the same.
const (
	underlayMTU = 1500
	apiNumber   = 1
	outside     = 2
	firstNode   = 11
	maxSegments = 200
	apiPort     = 6443
)

var (
	underlay4 = netip.MustParsePrefix("172.31.0.0/24")
	underlay6 = netip.MustParsePrefix("fd57:6566:7461::/64")
	services4 = netip.MustParsePrefix("10.96.0.0/16")
	services6 = netip.MustParsePrefix("fd10:96::/112")
)

// member returns the addresses of the member with this number of the underlay's first segment.
func (f Family) member(number byte) []netip.Prefix { return f.memberOf(0, number) }

// memberOf returns the addresses of a member of a segment of the underlay. Its first member is the router.
func (f Family) memberOf(segment int, number byte) []netip.Prefix {
	a4, a6 := underlay4.Addr().As4(), underlay6.Addr().As16()
	a4[2], a6[7] = byte(segment), byte(segment)
	a4[3], a6[15] = number, number
	return pick(f, netip.PrefixFrom(netip.AddrFrom4(a4), underlay4.Bits()), netip.PrefixFrom(netip.AddrFrom16(a6),
		underlay6.Bits()))
}

func (f Family) serviceCIDRs() []netip.Prefix { return pick(f, services4, services6) }

func (f Family) api() netip.AddrPort {
	return netip.AddrPortFrom(f.member(apiNumber)[0].Addr(), apiPort)
}

func (f Family) node(segment, index int) []netip.Prefix {
	return f.memberOf(segment, byte(firstNode+index))
}

// podCIDRs returns the pod ranges of the node with this index: 10.244.I.0/24 and fd10:244:0:I::/64.
func (f Family) podCIDRs(index int) []netip.Prefix {
	v6 := [16]byte{0xfd, 0x10, 0x02, 0x44}
	v6[7] = byte(index)
	return pick(f, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(index), 0}), 24),
		netip.PrefixFrom(netip.AddrFrom16(v6), 64))
}

// nodeMAC is the MAC address of a node's physical bridge: locally administered.
func nodeMAC(index int) net.HardwareAddr {
	return net.HardwareAddr{0x02, 0x57, 0x65, 0x66, 0x74, byte(firstNode + index)}
}

// serviceIPs finds a cluster IP of each family for a Service that is not in taken. It depends on the name first of all,
// so that an edit of one Service seldom moves another.
func serviceIPs(families []corev1.IPFamily, name string, taken map[netip.Addr]bool) []netip.Addr {
	h := fnv.New32a()
	h.Write([]byte(name))
	const first, most = 10, 1 << 15
	var ips []netip.Addr
	for _, family := range families {
		for n := h.Sum32() % most; ; n = (n + 1) % most {
			ip := nth(services4, n+first)
			if family == corev1.IPv6Protocol {
				ip = nth(services6, n+first)
			}
			if !taken[ip] {
				taken[ip] = true
				ips = append(ips, ip)
				break
			}
		}
	}
	return ips
}

// nth is the address with this number in a range of at least 16 bits.
func nth(p netip.Prefix, n uint32) netip.Addr {
	b := p.Addr().AsSlice()
	binary.BigEndian.PutUint16(b[len(b)-2:], uint16(n))
	addr, _ := netip.AddrFromSlice(b) // has the length of an address
	return addr
}

func addrsOf(prefixes []netip.Prefix) []netip.Addr {
	addrs := make([]netip.Addr, len(prefixes))
	for i, p := range prefixes {
		addrs[i] = p.Addr()
	}
	return addrs
}
