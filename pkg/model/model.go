// Package model holds the plain values of one node's desired state: what pkg/state stores, pkg/flows compiles and
// pkg/cni hands over. It does not depend on client-go, OVSDB or OpenFlow.
//
// Every value is immutable once published: its slices and maps are owned by the value and never written again.
// Goroutines therefore share values without locks.
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

// The Ethernet addresses that all nodes have in common. They are locally administered, and the last byte tells them
// apart in a capture. The router answers ARP and neighbor discovery for every address except the sender's own; the
// gateway is the node's own interface on the bridge. ReturnedMAC is the source of packets to the gateway that a client
// outside has sent to a Service and that an endpoint in the node's own network receives: their answers have to come
// back to the switch (see pkg/host).
var (
	RouterMAC   = MAC{0x0a, 0x57, 0x65, 0x66, 0x74, 0x01}
	GatewayMAC  = MAC{0x0a, 0x57, 0x65, 0x66, 0x74, 0x02}
	ReturnedMAC = MAC{0x0a, 0x57, 0x65, 0x66, 0x74, 0x03}
)

// OpenFlow port numbers. The gateway's is requested (ofport_request) and never changes. Those of tunnel ports are in
// transport.go.
const (
	PortGateway uint32 = 3
	// PortPodMin and PortPodMax bound the numbers of pods' ports.
	PortPodMin uint32 = 16
	PortPodMax uint32 = 0xfe00
)

// Names of the bridge and of the gateway port that every bridge has.
const (
	BridgeName  = "weft"
	GatewayName = "weft0"
)

// The link groups (IFLA_GROUP) that mark the node's ends of Weft's veths, see pkg/cni.
const (
	LinkGroupAttached uint32 = 0x77656674 // "weft"
	LinkGroupAdding   uint32 = LinkGroupAttached + 1
)

// Node is a node of the cluster.
type Node struct {
	Name string
	// Addrs are the node's InternalIPs, at most one of each family, the primary one first.
	Addrs []netip.Addr
	// PodCIDRs are the ranges of the node's pod addresses, at most one of each family.
	PodCIDRs []netip.Prefix
	// Underlay are the links of Addrs, as the node itself publishes them.
	Underlay []Uplink
	// ReceivesDirect: the node publishes that it accepts packets without a tunnel.
	ReceivesDirect bool
	// ReceivesIPIP: the node publishes that it accepts packets in IPIP.
	ReceivesIPIP bool
	// WireGuard is the device that the node publishes, or none. ReceivesWireGuard: it accepts packets of pods by it.
	WireGuard         WireGuard
	ReceivesWireGuard bool
	// Created is the Node object's creation time in seconds since 1970. When two nodes claim one range, the older node
	// has it.
	Created int64
}

// Equal compares all fields.
func (n Node) Equal(o Node) bool {
	return n.Name == o.Name && n.Created == o.Created && slices.Equal(n.Addrs, o.Addrs) &&
		slices.Equal(n.PodCIDRs, o.PodCIDRs) && slices.Equal(n.Underlay, o.Underlay) &&
		n.ReceivesDirect == o.ReceivesDirect && n.ReceivesIPIP == o.ReceivesIPIP && n.WireGuard == o.WireGuard &&
		n.ReceivesWireGuard == o.ReceivesWireGuard
}

// Uplink is a link of a node that carries one of its addresses.
type Uplink struct {
	// Prefix is the address with the length of its subnet.
	Prefix netip.Prefix
	MAC    MAC
}

// String is the form of the annotation weft.dev/underlay: ADDRESS/LENGTH@MAC.
func (u Uplink) String() string { return u.Prefix.String() + "@" + u.MAC.String() }

// ParseUplink reads the form of String.
func ParseUplink(s string) (Uplink, error) {
	prefix, mac, _ := strings.Cut(s, "@")
	p, err := netip.ParsePrefix(prefix)
	if err != nil {
		return Uplink{}, fmt.Errorf("%q is not ADDRESS/LENGTH@MAC: %w", s, err)
	}
	m, err := ParseMAC(mac)
	if err != nil {
		return Uplink{}, fmt.Errorf("%q is not ADDRESS/LENGTH@MAC: %w", s, err)
	}
	return Uplink{p, m}, nil
}

// Primary is the primary InternalIP; invalid while the node has no address. A tunnel between two nodes may use the
// other family (see Path).
func (n Node) Primary() netip.Addr {
	if len(n.Addrs) == 0 {
		return netip.Addr{}
	}
	return n.Addrs[0]
}

// GatewayAddr is the first address of a pod CIDR: the node's own address on the pod network.
func GatewayAddr(podCIDR netip.Prefix) netip.Addr { return podCIDR.Masked().Addr().Next() }

// PortRange is a range of ports, both ends included.
type PortRange struct{ First, Last uint16 }

// Contains reports whether the port is in the range.
func (r PortRange) Contains(port uint16) bool { return r.First <= port && port <= r.Last }

// A node's gateway address is the source of two kinds of connections to pods of other nodes: the host's own, and those
// that its switch forwards for other clients, such as those to a node port. Each kind has its own source ports, so that
// neither receives the other's replies, and neither allocator has to ask the other. The kernel's ephemeral ports begin
// at 32768 (net.ipv4.ip_local_port_range).
//
// A source port below 1024 is translated to one below 1024, as Linux NAT does, because servers take it for a sign of a
// privileged client. Linux uses ports from 600 up for this, and the two kinds share these.
var (
	OwnPorts                 = PortRange{32768, 65535}
	ForwardedPorts           = PortRange{FirstUnprivilegedPort, 32767}
	OwnPrivilegedPorts       = PortRange{812, 1023}
	ForwardedPrivilegedPorts = PortRange{600, 811}
)

// FirstUnprivilegedPort is the first port that every program may bind (IPPORT_RESERVED).
const FirstUnprivilegedPort uint16 = 1024

// ForwardedPort reports whether a port of the gateway address belongs to connections that the switch forwards for other
// clients.
func ForwardedPort(port uint16) bool {
	return ForwardedPorts.Contains(port) || ForwardedPrivilegedPorts.Contains(port)
}

// PodRef names a pod.
type PodRef struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid,omitempty"`
}

// String is the form that kubectl users know: namespace/name.
func (p PodRef) String() string { return p.Namespace + "/" + p.Name }

// ParsePodRef reads namespace/name. Both parts are required.
func ParsePodRef(s string) (PodRef, error) {
	ns, name, ok := strings.Cut(s, "/")
	if !ok || ns == "" || name == "" || strings.Contains(name, "/") {
		return PodRef{}, fmt.Errorf("%q is not NAMESPACE/NAME", s)
	}
	return PodRef{Namespace: ns, Name: name}, nil
}

// Attachment is one interface of a local pod: the pod, its addresses and its switch port in one value, because they are
// created and deleted together.
type Attachment struct {
	// ContainerID and IfName are the CNI key of the attachment.
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
	Pod         PodRef `json:"pod"`
	// NetNS is the path of the pod's network namespace; empty when it is not known.
	NetNS string `json:"netns,omitempty"`
	// HostIfName is the host's end of the veth and the name of the bridge's port.
	HostIfName string       `json:"hostIfName"`
	OFPort     uint32       `json:"ofPort"`
	MAC        MAC          `json:"mac"`
	IPs        []netip.Addr `json:"ips"`
}

// Equal compares all recorded fields.
func (a Attachment) Equal(b Attachment) bool {
	return a.Key() == b.Key() && a.Pod == b.Pod && a.NetNS == b.NetNS && a.HostIfName == b.HostIfName &&
		a.OFPort == b.OFPort &&
		a.MAC == b.MAC && slices.Equal(a.IPs, b.IPs)
}

// Key identifies the attachment on its node.
func (a Attachment) Key() AttachmentKey { return AttachmentKey{a.ContainerID, a.IfName} }

// AttachmentKey is the CNI key of an attachment: a container has one attachment for each interface name.
type AttachmentKey struct{ ContainerID, IfName string }

func (k AttachmentKey) String() string { return k.ContainerID + "/" + k.IfName }

// Pod is a pod of this node, as the API server reports it.
type Pod struct {
	PodRef
	HostNetwork bool
	Phase       string
	// HostPorts are the node's ports that lead to the pod.
	HostPorts []HostPort
}

// HostPort is a port of the node that leads to a container's port.
type HostPort struct {
	// Addr is the node's address; invalid for all addresses, unspecified (0.0.0.0, ::) for all of its family.
	Addr          netip.Addr
	Protocol      Protocol
	Port          uint16
	ContainerPort uint16
}

// Done reports whether the pod's phase is final: it has no interface any more, or soon will have none.
func (p Pod) Done() bool { return p.Phase == "Succeeded" || p.Phase == "Failed" }
