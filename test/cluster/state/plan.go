// Package state describes a test cluster: its address plan, and the record of a running one in its state directory.
//
// `cluster up` writes the record; the tool's other commands and the end-to-end tests read it. The values
// are plain data.
package state

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"

	"github.com/weft-cni/weft/test/lab/datapath"
)

// IPFamily says which addresses nodes, pods and Services have.
type IPFamily string

// The families; Dual clusters have IPv4 as their primary family.
const (
	IPv4 IPFamily = "ipv4"
	IPv6 IPFamily = "ipv6"
	Dual IPFamily = "dual"
)

// ParseIPFamily checks a family that a person typed.
func ParseIPFamily(text string) (IPFamily, error) {
	switch f := IPFamily(text); f {
	case IPv4, IPv6, Dual:
		return f, nil
	}
	return "", fmt.Errorf("IP family %q: want %s, %s or %s", text, IPv4, IPv6, Dual)
}

// MaxNodes is how many nodes the plan has addresses for.
const MaxNodes = 100

// The plan. Pod and Service ranges never leave the cluster's own namespaces, so all clusters share them; underlays show
// in the machine's own network namespace, so each cluster name has its own.
const (
	controlPlaneNumber = 1  // etcd and the Kubernetes programs that belong to no node
	outsideNumber      = 2  // the world beyond the nodes, also their default gateway
	hostNumber         = 3  // the machine itself, where kubectl and tests run
	firstNode          = 11 // node1

	podsV4, podsV6         = "10.244.0.0/16", "fd10:244::/56"
	servicesV4, servicesV6 = "10.96.0.0/16", "fd10:96::/112"
	// NodeMaskV4 and NodeMaskV6 are the prefix lengths of a node's part of the pod ranges.
	NodeMaskV4 = 24
	NodeMaskV6 = 64

	// An address behind the outside host that no node has a route to but the default.
	beyondV4, beyondV6 = "198.51.100.1", "2001:db8:5efe::1"

	// UnderlayMTU is that of an ordinary Ethernet.
	UnderlayMTU = 1500
	// APIPort is where kube-apiserver listens.
	APIPort = 6443
)

// Plan is the address plan of one cluster.
type Plan struct {
	Name   string   `json:"name"`
	Family IPFamily `json:"ipFamily"`
}

// v4 and v6 say which families the plan has.
func (p Plan) v4() bool { return p.Family != IPv6 }
func (p Plan) v6() bool { return p.Family != IPv4 }

// pick returns the values of the plan's families, the primary one first.
func pick[T any](p Plan, v4, v6 T) []T {
	var found []T
	if p.v4() {
		found = append(found, v4)
	}
	if p.v6() {
		found = append(found, v6)
	}
	return found
}

// underlay returns the cluster's underlay networks: 172.30.X.0/24 and fd57:6566:74:X::/64 with X from the name, where
// the usual name has 0.
func (p Plan) underlay() (v4, v6 netip.Prefix) {
	var x byte
	if p.Name != "weft" {
		h := fnv.New32a()
		h.Write([]byte(p.Name))
		x = byte(h.Sum32()%255) + 1
	}
	addr6 := netip.MustParseAddr("fd57:6566:74::").As16()
	addr6[7] = x
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 30, x, 0}), 24), netip.PrefixFrom(netip.AddrFrom16(addr6), 64)
}

// Underlay returns the networks between the nodes.
func (p Plan) Underlay() []netip.Prefix {
	v4, v6 := p.underlay()
	return pick(p, v4, v6)
}

// member returns the underlay addresses of the member with this number, with the underlay's prefix length.
func (p Plan) member(number byte) []netip.Prefix {
	v4, v6 := p.underlay()
	addr4, addr6 := v4.Addr().As4(), v6.Addr().As16()
	addr4[3], addr6[15] = number, number
	return pick(p, netip.PrefixFrom(netip.AddrFrom4(addr4), v4.Bits()), netip.PrefixFrom(netip.AddrFrom16(addr6),
		v6.Bits()))
}

// ControlPlane returns the addresses that the control plane listens on.
func (p Plan) ControlPlane() []netip.Prefix { return p.member(controlPlaneNumber) }

// Host returns the addresses of the machine itself on the underlay.
func (p Plan) Host() []netip.Prefix { return p.member(hostNumber) }

// Outside returns the addresses of the host beyond the nodes.
func (p Plan) Outside() []netip.Prefix { return p.member(outsideNumber) }

// Beyond returns the outside host's addresses that are reached over a default route only.
func (p Plan) Beyond() []netip.Addr {
	return pick(p, netip.MustParseAddr(beyondV4), netip.MustParseAddr(beyondV6))
}

// Node returns the addresses of the node with this index, which counts from 0.
func (p Plan) Node(index int) []netip.Prefix { return p.member(byte(firstNode + index)) }

// Uplink is how the node with this index is on the underlay: its default routes lead to the outside host.
func (p Plan) Uplink(index int) datapath.Uplink {
	return datapath.Uplink{MAC: p.NodeMAC(index), Addrs: p.Node(index), Gateways: Addrs(p.Outside())}
}

// NodeName is the name of the node with this index.
func NodeName(index int) string { return fmt.Sprintf("node%d", index+1) }

// NodeMAC is the MAC address of a node's NIC: locally administered, and different for every node of every cluster.
func (p Plan) NodeMAC(index int) net.HardwareAddr {
	v4, _ := p.underlay()
	mac := net.HardwareAddr{0x02, 0x57, 0, 0, v4.Addr().As4()[2], 0}
	binary.BigEndian.PutUint16(mac[2:4], 0x6566)
	mac[5] = byte(firstNode + index)
	return mac
}

// Pods returns the cluster's pod ranges.
func (p Plan) Pods() []netip.Prefix {
	return pick(p, netip.MustParsePrefix(podsV4), netip.MustParsePrefix(podsV6))
}

// Services returns the cluster's Service ranges.
func (p Plan) Services() []netip.Prefix {
	return pick(p, netip.MustParsePrefix(servicesV4), netip.MustParsePrefix(servicesV6))
}

// KubernetesServices returns the addresses of the Service "kubernetes": the first of each range.
func (p Plan) KubernetesServices() []netip.Addr {
	return addrsOf(p.Services(), func(s netip.Prefix) netip.Addr { return s.Addr().Next() })
}

// DNS returns the addresses of the cluster's DNS Service: the tenth of each range.
func (p Plan) DNS() []netip.Addr {
	return addrsOf(p.Services(), func(s netip.Prefix) netip.Addr {
		addr := s.Addr()
		for range 10 {
			addr = addr.Next()
		}
		return addr
	})
}

// APIServer is the URL of kube-apiserver.
func (p Plan) APIServer() string {
	return "https://" + netip.AddrPortFrom(p.ControlPlane()[0].Addr(), APIPort).String()
}

func addrsOf(prefixes []netip.Prefix, f func(netip.Prefix) netip.Addr) []netip.Addr {
	var addrs []netip.Addr
	for _, prefix := range prefixes {
		addrs = append(addrs, f(prefix))
	}
	return addrs
}

// Addrs returns the addresses of prefixes without their lengths.
func Addrs(prefixes []netip.Prefix) []netip.Addr { return addrsOf(prefixes, netip.Prefix.Addr) }
