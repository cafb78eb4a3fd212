package model

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Mode is how packets travel between this node and the pods of a peer node, as users write it in the setting transport.
type Mode string

// The modes. ModeHybrid is a setting only, ModeIPIP and ModeWireGuard are a path's only.
const (
	// ModeOverlay: the switch encapsulates packets and sends them through the tunnel port of the encapsulation.
	ModeOverlay Mode = "overlay"
	// ModeDirect: the node's kernel routes packets to the peer node as they are.
	ModeDirect Mode = "direct"
	// ModeHybrid is direct to the nodes in a common subnet of the underlay, and overlay to the others.
	ModeHybrid Mode = "hybrid"
	// ModeIPIP: the node's kernel puts an IP header before packets and sends them to the peer node.
	ModeIPIP Mode = "ipip"
	// ModeWireGuard: the node's kernel encrypts packets and sends them to the peer node.
	ModeWireGuard Mode = "wireguard"
)

// Routed reports whether the node's kernel leads packets to the peer node, and not the switch.
func (m Mode) Routed() bool { return m == ModeDirect || m == ModeIPIP || m == ModeWireGuard }

// Modes lists the values of the setting transport.
var Modes = []Mode{ModeOverlay, ModeDirect, ModeHybrid}

// DirectRoutes says who makes the kernel routes of direct paths, as users write it in the setting directRoutes.
type DirectRoutes string

// The values of DirectRoutes.
const (
	// RoutesNode: the agent adds a route for each pod CIDR of a peer node in a common subnet.
	RoutesNode DirectRoutes = "node"
	// RoutesNone: the network beyond the nodes has the routes, such as those of a VPC.
	RoutesNone DirectRoutes = "none"
)

// Encapsulation is the header that a packet carries from node to node.
type Encapsulation string

// The encapsulations, as users write them in the setting tunnelType.
const (
	Geneve Encapsulation = "geneve"
	VXLAN  Encapsulation = "vxlan"
	GRE    Encapsulation = "gre"
	// IPIP is made by the node's kernel. The others are made by the switch, and have a port of it.
	IPIP Encapsulation = "ipip"
)

// OpenFlow numbers and names of the tunnel ports.
const (
	PortGeneve uint32 = 1
	PortVXLAN  uint32 = 2
	PortGRE    uint32 = 4

	GenevePortName = "weft-geneve"
	VXLANPortName  = "weft-vxlan"
	GREPortName    = "weft-gre"
)

// encapsulations has all facts about each encapsulation. A row adds the encapsulation to the bridge's ports, the flows,
// the node's nftables rules, the MTU, the allowed settings and the documents. IPIP has no port.
var encapsulations = []struct {
	name  Encapsulation
	title string
	// port and portName are the OpenFlow number and the name of the encapsulation's port on every bridge. The number is
	// requested (ofport_request) and never changes.
	port     uint32
	portName string
	// interfaceType is column "type" of OVSDB's Interface table, options are more of its options.
	interfaceType string
	options       map[string]string
	// module is the kernel's module for a port of the type on the kernel datapath.
	module string
	// udpPort is 0 for an encapsulation directly in IP, which has ipProtocols instead.
	udpPort     uint16
	ipProtocols []uint8
	// header is the number of bytes between the outer IP header and the inner IP packet.
	header int
}{
	{
		name: Geneve, title: "Geneve", port: PortGeneve, portName: GenevePortName, interfaceType: "geneve", module: "vport-geneve",
		udpPort: 6081, header: udpHeader + geneveHeader + ethernetHeader,
	},
	{
		name: VXLAN, title: "VXLAN", port: PortVXLAN, portName: VXLANPortName, interfaceType: "vxlan", module: "vport-vxlan",
		options: map[string]string{"dst_port": "4789"},
		udpPort: 4789, header: udpHeader + vxlanHeader + ethernetHeader,
	},
	{
		name: GRE, title: "GRE", port: PortGRE, portName: GREPortName, interfaceType: "gre", module: "vport-gre",
		ipProtocols: []uint8{47}, header: greHeader + ethernetHeader,
	},
	{name: IPIP, title: "IPIP", ipProtocols: []uint8{protocolIPv4, protocolIPv6}},
}

// IP protocols of IP packets in IP packets: RFC 2003 and RFC 4213.
const (
	protocolIPv4 uint8 = 4
	protocolIPv6 uint8 = 41
)

// InnerProtocol is the IP protocol of IPIP around packets of a family.
func InnerProtocol(is4 bool) uint8 {
	if is4 {
		return protocolIPv4
	}
	return protocolIPv6
}

// Lengths of headers in bytes.
const (
	ipv4Header   = 20
	ipv6Header   = 40
	udpHeader    = 8
	geneveHeader = 8 // without options: RFC 8926, section 3.4
	vxlanHeader  = 8 // RFC 7348, section 5
	greHeader    = 8 // with a key: RFC 2890, section 2
	// wireGuardHeader is that of a data message with its authentication tag (wireguard.com, 5.4.6), and the most bytes
	// that it pads a packet with.
	wireGuardHeader = 16 + 16 + 15
	ethernetHeader  = 14
)

// TunnelTypes lists every encapsulation in a fixed order: the values of the setting tunnelType.
var TunnelTypes = func() []Encapsulation {
	list := make([]Encapsulation, 0, len(encapsulations))
	for _, e := range encapsulations {
		list = append(list, e.name)
	}
	return list
}()

// Encapsulations lists those of TunnelTypes that the switch makes. Every node receives all of them.
var Encapsulations = func() (list []Encapsulation) {
	for _, e := range encapsulations {
		if e.port != 0 {
			list = append(list, e.name)
		}
	}
	return list
}()

// index is the row of encapsulations; an encapsulation that is not one of TunnelTypes panics.
func (e Encapsulation) index() int {
	i := slices.Index(TunnelTypes, e)
	if i < 0 {
		panic(fmt.Sprintf("model: encapsulation %q has no facts", string(e))) // Transport.Check comes first
	}
	return i
}

// Title is the encapsulation's name in documents.
func (e Encapsulation) Title() string { return encapsulations[e.index()].title }

// Port is the OpenFlow number of the encapsulation's port on every bridge.
func (e Encapsulation) Port() uint32 { return encapsulations[e.index()].port }

// PortName is the name of this port.
func (e Encapsulation) PortName() string { return encapsulations[e.index()].portName }

// InterfaceType is the type of this port in OVSDB's Interface table.
func (e Encapsulation) InterfaceType() string { return encapsulations[e.index()].interfaceType }

// InterfaceOptions are options of this port in OVSDB in addition to those of every tunnel port. The caller must not
// change them.
func (e Encapsulation) InterfaceOptions() map[string]string { return encapsulations[e.index()].options }

// Module is the module of Linux that a port of the encapsulation needs on the kernel datapath.
func (e Encapsulation) Module() string { return encapsulations[e.index()].module }

// UDPPort is the UDP destination port: RFC 8926 (Geneve) and RFC 7348 (VXLAN). It is 0 when the encapsulation has an IP
// protocol of its own.
func (e Encapsulation) UDPPort() uint16 { return encapsulations[e.index()].udpPort }

// OuterProtocol is the protocol of the outer IP header, as documents write it.
func (e Encapsulation) OuterProtocol() string {
	if port := e.UDPPort(); port != 0 {
		return fmt.Sprintf("UDP port %d", port)
	}
	var numbers []string
	for _, protocol := range e.IPProtocols() {
		numbers = append(numbers, strconv.Itoa(int(protocol)))
	}
	return "IP protocol " + strings.Join(numbers, " or ")
}

// IPProtocols are those of the outer IP header, of an encapsulation without a UDP port. The caller must not change
// them.
func (e Encapsulation) IPProtocols() []uint8 { return encapsulations[e.index()].ipProtocols }

// InSwitch is the encapsulation with which the switch sends as long as the node's kernel does not.
func (e Encapsulation) InSwitch() Encapsulation {
	if e == IPIP {
		return Geneve
	}
	return e
}

// Overhead is the difference in bytes between the underlay's IP MTU and the pod's IP MTU, with an outer header of this
// address's family.
func (e Encapsulation) Overhead(outer netip.Addr) int {
	return ipHeader(outer) + encapsulations[e.index()].header
}

func ipHeader(outer netip.Addr) int {
	if outer.Is6() {
		return ipv6Header
	}
	return ipv4Header
}

// TunnelProtocols are the IP protocols of the encapsulations that have one of their own.
func TunnelProtocols() (protocols []uint8) {
	for _, e := range encapsulations {
		protocols = append(protocols, e.ipProtocols...)
	}
	return protocols
}

// TunnelUDPPorts are the UDP ports of all encapsulations over UDP, ascending. The node leaves packets to them
// untracked, accepts them from nodes only, and gives the ports to no Service and no hostPort.
func TunnelUDPPorts() []uint16 {
	ports := make([]uint16, 0, len(encapsulations))
	for _, e := range encapsulations {
		if e.udpPort != 0 {
			ports = append(ports, e.udpPort)
		}
	}
	slices.Sort(ports)
	return ports
}

// IsTunnelUDPPort reports whether it is one of TunnelUDPPorts.
func IsTunnelUDPPort(port uint16) bool { return slices.Contains(TunnelUDPPorts(), port) }

// PortsBesideTunnels is the largest range of unprivileged ports without a tunnel's UDP port.
func PortsBesideTunnels() PortRange {
	first, length, begin := 0, 0, int(FirstUnprivilegedPort)
	consider := func(end int) { // the range from begin to before end
		if end-begin > length {
			first, length = begin, end-begin
		}
		begin = end + 1
	}
	for _, port := range TunnelUDPPorts() {
		consider(int(port))
	}
	consider(math.MaxUint16 + 1)
	return PortRange{uint16(first), uint16(first + length - 1)}
}

// Transport is how packets travel to peer nodes: the configured way to all of them, or the one of a path.
type Transport struct {
	Mode Mode
	// Encapsulation is the header that packets carry where the mode is not ModeDirect.
	Encapsulation Encapsulation
	// FabricRoutes: the agent makes no routes for direct paths (RoutesNone).
	FabricRoutes bool
	// Encrypted: packets go by WireGuard to the nodes that receive it.
	Encrypted bool
	// Strict: nothing else goes to or comes from pods of other nodes. It needs Encrypted.
	Strict bool
}

// Tunnel is the transport that sends through the tunnel port of an encapsulation.
func Tunnel(e Encapsulation) Transport { return Transport{Mode: ModeOverlay, Encapsulation: e} }

// Check returns an error when the transport is not one that Weft has.
func (t Transport) Check() error {
	if !slices.Contains(Modes, t.Mode) {
		return fmt.Errorf("invalid mode %q; allowed: %v", t.Mode, Modes)
	}
	if !slices.Contains(TunnelTypes, t.Encapsulation) {
		return fmt.Errorf("invalid encapsulation %q; allowed: %v", t.Encapsulation, TunnelTypes)
	}
	if t.Mode == ModeHybrid && t.FabricRoutes {
		return errors.New("transport hybrid needs directRoutes node: the nodes of one subnet reach each other by routes of the agent")
	}
	return nil
}

// Overhead is how many bytes the transport adds to each IP packet: see Encapsulation.Overhead. In ModeHybrid it is that
// of the tunnels. That of WireGuard is larger than a tunnel's.
func (t Transport) Overhead(outer netip.Addr) int {
	switch {
	case t.Encrypted || t.Mode == ModeWireGuard:
		return ipHeader(outer) + udpHeader + wireGuardHeader
	case t.Mode == ModeDirect:
		return 0
	case t.Mode == ModeIPIP:
		return IPIP.Overhead(outer)
	}
	return t.Encapsulation.Overhead(outer)
}

// Path is the validated way to reach a node's pods: the accepted pod CIDRs, the transport and the next hop.
// nodepath.Resolve makes it; all other packages only read it.
type Path struct {
	// PodCIDRs are the accepted pod CIDRs; those of different nodes never overlap.
	PodCIDRs []netip.Prefix
	// Rejected holds the reason for each pod CIDR that is not accepted.
	Rejected []string
	// Addrs are the node's InternalIPs, the primary one first. Only they may be the source of the node's tunnel packets.
	Addrs []netip.Addr
	// Transport is what carries packets to the node's pods; zero for an unreachable node. This node's own entry has the
	// transport, Local and Overhead of a peer node with the same primary family.
	Transport
	// Why is the reason why a path is not direct although the setting asks for it, or empty.
	Why string
	// Hops lead to the node without a tunnel, one for each of PodCIDRs; none when that is impossible.
	Hops []Hop
	// ReceivesDirect: this node accepts packets from the node's pods that arrive by Hops.
	ReceivesDirect bool
	// NotIPIP is the reason why packets travel in another tunnel although the setting asks for IPIP, or empty.
	NotIPIP string
	// ReceivesIPIP: this node accepts packets from the node's pods in IPIP.
	ReceivesIPIP bool
	// WireGuard is the node on this node's device, from which packets are accepted; none when that is impossible.
	WireGuard WireGuardPeer
	// NotEncrypted is the reason why a path is not encrypted although the setting asks for it, or empty.
	NotEncrypted string
	// Routed is how the node's kernel is to lead packets to the node: to Hops (ModeDirect), to a device (ModeIPIP,
	// ModeWireGuard), or empty for to the switch. Once it does, it is the mode.
	Routed Mode
	// Local is this node's address that packets come from, NextHop the peer node's that they go to: the outer addresses
	// of the encapsulation. NextHop is invalid when the node is unreachable, and for this node.
	Local, NextHop netip.Addr
	// Overhead is how many bytes the transport adds to each IP packet.
	Overhead int
	// Unreachable is the reason why no packets can be sent to the node's pods. It is empty when they can, and for this
	// node.
	Unreachable string
}

// Hop is the way to a pod CIDR of a peer node by the node's kernel.
type Hop struct {
	CIDR netip.Prefix
	// Local is this node's address, NextHop the peer node's. NextHop is invalid when the route is not the agent's.
	Local, NextHop netip.Addr
	// MAC is that of the peer's link, from which packets of CIDR arrive; zero when they may come through routers.
	MAC MAC
}

// Reachable reports whether packets can be sent to the node's pods. This node's own entry is not reachable.
func (p Path) Reachable() bool { return p.NextHop.IsValid() }

// Primary is the node's primary InternalIP; invalid while the node has no address. The node's own clients of node ports
// of other nodes have it as their source.
func (p Path) Primary() netip.Addr { return Node{Addrs: p.Addrs}.Primary() }

// Equal compares all fields.
func (p Path) Equal(q Path) bool {
	return slices.Equal(p.PodCIDRs, q.PodCIDRs) && slices.Equal(p.Rejected, q.Rejected) &&
		slices.Equal(p.Addrs, q.Addrs) && p.Transport == q.Transport && p.Local == q.Local && p.NextHop == q.NextHop &&
		p.Overhead == q.Overhead && p.Unreachable == q.Unreachable && p.Why == q.Why && slices.Equal(p.Hops, q.Hops) &&
		p.ReceivesDirect == q.ReceivesDirect && p.WireGuard == q.WireGuard && p.NotEncrypted == q.NotEncrypted &&
		p.Routed == q.Routed && p.NotIPIP == q.NotIPIP && p.ReceivesIPIP == q.ReceivesIPIP
}
