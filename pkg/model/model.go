// Package model holds the plain values of a node's view of the cluster: what pkg/state stores, pkg/flows compiles and
// pkg/cni hands over. It knows nothing of client-go, OVSDB or OpenFlow.
//
// Every type is a value that nobody changes after it was published; slices are owned by the value and never written
// again. So values may be shared between goroutines without locks.
package model

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// MAC is an Ethernet address as a comparable value.
type MAC [6]byte

// ParseMAC reads the colon-separated form of a 48-bit address.
func ParseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(s)
	if err != nil {
		return MAC{}, err
	}
	if len(hw) != len(MAC{}) {
		return MAC{}, fmt.Errorf("%q is not a 48-bit Ethernet address", s)
	}
	return MAC(hw), nil
}

// Hardware returns the address as the net package's slice.
func (m MAC) Hardware() net.HardwareAddr { return net.HardwareAddr(m[:]) }

func (m MAC) String() string { return m.Hardware().String() }

// MarshalText and UnmarshalText give JSON and OVSDB the colon-separated form.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (m *MAC) UnmarshalText(b []byte) (err error) {
	*m, err = ParseMAC(string(b))
	return err
}

// The two Ethernet addresses every node has in common. They are locally administered and end where they can be told
// apart in a capture. The router answers ARP and neighbour discovery for every address that is not the asker's own; the
// gateway is the node's own interface on the bridge.
var (
	RouterMAC  = MAC{0x0a, 0x57, 0x65, 0x66, 0x74, 0x01}
	GatewayMAC = MAC{0x0a, 0x57, 0x65, 0x66, 0x74, 0x02}
)

// TunnelType is the encapsulation a node sends with. Every node receives all types.
type TunnelType string

// The tunnel types, in the words of the OVSDB Interface table's "type" column.
const (
	Geneve TunnelType = "geneve"
	VXLAN  TunnelType = "vxlan"
)

// TunnelTypes lists every type in a fixed order.
var TunnelTypes = []TunnelType{Geneve, VXLAN}

// OpenFlow port numbers of the ports that every node's bridge has. They are requested (ofport_request) and do not change.
const (
	PortGeneve  uint32 = 1
	PortVXLAN   uint32 = 2
	PortGateway uint32 = 3
	// PortPodMin and PortPodMax bound the numbers that pods get.
	PortPodMin uint32 = 16
	PortPodMax uint32 = 0xfe00
)

// Names of what every node's bridge has.
const (
	BridgeName     = "weft"
	GatewayName    = "weft0"
	GenevePortName = "weft-geneve"
	VXLANPortName  = "weft-vxlan"
)

// Port is the OpenFlow port number that sends with this type.
func (t TunnelType) Port() uint32 {
	if t == VXLAN {
		return PortVXLAN
	}
	return PortGeneve
}

// UDPPort is where the tunnels' packets go: IANA's ports of RFC 8926 and RFC 7348.
func (t TunnelType) UDPPort() uint16 {
	if t == VXLAN {
		return 4789
	}
	return 6081
}

// Overhead is the number of bytes that the encapsulation adds between the underlay's IP MTU and the pod's IP MTU: outer
// IP header, UDP header, the tunnel's own header without options (RFC 8926 section 3.4, RFC 7348 section 5: 8 bytes
// each) and the inner Ethernet header.
func (t TunnelType) Overhead(outer netip.Addr) int {
	const udp, tunnel, innerEthernet = 8, 8, 14
	ip := 20
	if outer.Is6() {
		ip = 40
	}
	return ip + udp + tunnel + innerEthernet
}

// Node is a node of the cluster.
type Node struct {
	Name string
	// Addrs are the node's InternalIPs, at most one of each family, the primary one first.
	Addrs []netip.Addr
	// PodCIDRs are the ranges that the node's pods have their addresses from, at most one of each family.
	PodCIDRs []netip.Prefix
	// Created is the Node object's creation time in seconds since 1970. Of two nodes that claim one range the older
	// has it.
	Created int64
}

// Path is what this node uses of a node: the pod CIDRs that it accepts, and the tunnel that leads there.
type Path struct {
	// PodCIDRs are accepted; no two nodes' overlap.
	PodCIDRs []netip.Prefix
	// Rejected says why others are not, one entry for each.
	Rejected []string
	// Local and Remote are the outer addresses of the tunnel. They are invalid where none leads.
	Local, Remote netip.Addr
	// Primary is the node's primary InternalIP, the source of what its own clients send through its node ports.
	Primary netip.Addr
	// Unreachable says why no tunnel leads there; empty when one does, and for this node.
	Unreachable string
}

// Reachable says whether a tunnel leads to the node.
func (p Path) Reachable() bool { return p.Remote.IsValid() }

// Equal compares everything.
func (p Path) Equal(q Path) bool {
	return slices.Equal(p.PodCIDRs, q.PodCIDRs) && slices.Equal(p.Rejected, q.Rejected) &&
		p.Local == q.Local && p.Remote == q.Remote && p.Primary == q.Primary && p.Unreachable == q.Unreachable
}

// TunnelAddr is the primary InternalIP; it is invalid when the node has no address yet. Tunnels between two nodes may
// use the other family (see Path).
func (n Node) TunnelAddr() netip.Addr {
	if len(n.Addrs) == 0 {
		return netip.Addr{}
	}
	return n.Addrs[0]
}

// GatewayAddr is the first address of a pod CIDR: the node's own address among its pods.
func GatewayAddr(podCIDR netip.Prefix) netip.Addr { return podCIDR.Masked().Addr().Next() }

// PortRange is a range of ports, both ends included.
type PortRange struct{ First, Last uint16 }

// Contains tells whether a port is in the range.
func (r PortRange) Contains(port uint16) bool { return r.First <= port && port <= r.Last }

// A node's gateway address is the source of two kinds of connections to pods of other nodes: its own, and those of others that its
// switch sends on in its name, as those to a node port. Each kind has source ports to itself, so that neither takes the answers to
// the other, without a look at the other. The kernel's own choice begins at 32768 (net.ipv4.ip_local_port_range).
//
// A port below 1024 becomes one below 1024, as Linux' own translation has it: servers take it for a sign of a
// privileged client. The kernel, too, keeps to ports from 600 up for that, and the kinds share these.
var (
	OwnPorts                 = PortRange{32768, 65535}
	ForwardedPorts           = PortRange{FirstUnprivilegedPort, 32767}
	OwnPrivilegedPorts       = PortRange{812, 1023}
	ForwardedPrivilegedPorts = PortRange{600, 811}
)

// FirstUnprivilegedPort is the first port that every program may use (IPPORT_RESERVED).
const FirstUnprivilegedPort uint16 = 1024

// ForwardedPort tells whether a port of the gateway address is for connections of others.
func ForwardedPort(port uint16) bool {
	return ForwardedPorts.Contains(port) || ForwardedPrivilegedPorts.Contains(port)
}

// PodRef names a pod.
type PodRef struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid,omitempty"`
}

// String is the form users know from kubectl: namespace/name.
func (p PodRef) String() string { return p.Namespace + "/" + p.Name }

// ParsePodRef reads namespace/name.
func ParsePodRef(s string) (PodRef, error) {
	ns, name, ok := strings.Cut(s, "/")
	if !ok || ns == "" || name == "" || strings.Contains(name, "/") {
		return PodRef{}, fmt.Errorf("%q is not NAMESPACE/NAME", s)
	}
	return PodRef{Namespace: ns, Name: name}, nil
}

// Attachment is one interface of a local pod: the pod, its addresses and its switch port in one value, because they come
// and go together.
type Attachment struct {
	// ContainerID and IfName are CNI's key of the attachment.
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
	Pod         PodRef `json:"pod"`
	// NetNS is where the runtime keeps the pod's network namespace; empty when that is not known.
	NetNS string `json:"netns,omitempty"`
	// HostIfName is the node's end of the veth and the name of the bridge's port.
	HostIfName string       `json:"hostIfName"`
	OFPort     uint32       `json:"ofPort"`
	MAC        MAC          `json:"mac"`
	IPs        []netip.Addr `json:"ips"`
}

// Equal says whether two attachments agree in everything that is recorded of them.
func (a Attachment) Equal(b Attachment) bool {
	return a.Key() == b.Key() && a.Pod == b.Pod && a.NetNS == b.NetNS && a.HostIfName == b.HostIfName && a.OFPort == b.OFPort &&
		a.MAC == b.MAC && slices.Equal(a.IPs, b.IPs)
}

// Key identifies the attachment on its node.
func (a Attachment) Key() AttachmentKey { return AttachmentKey{a.ContainerID, a.IfName} }

// AttachmentKey is CNI's key of an attachment: a container has one attachment per interface name.
type AttachmentKey struct{ ContainerID, IfName string }

func (k AttachmentKey) String() string { return k.ContainerID + "/" + k.IfName }

// Pod is a pod of this node as the API server knows it.
type Pod struct {
	PodRef
	HostNetwork bool
	Phase       string
	// HostPorts are the ports of its node that lead to the pod.
	HostPorts []HostPort
}

// HostPort is a port of the node that leads to a container's.
type HostPort struct {
	// Addr is the node's address that it is at; invalid for all, an unspecified one for all of its family.
	Addr          netip.Addr
	Protocol      Protocol
	Port          uint16
	ContainerPort uint16
}

// Done says whether the pod has ended for good: it has, or soon will have, no interface.
func (p Pod) Done() bool { return p.Phase == "Succeeded" || p.Phase == "Failed" }
