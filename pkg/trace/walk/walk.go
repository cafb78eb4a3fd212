package walk

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/weft-cni/weft/pkg/capture"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/trace"
)

// Outcome is what becomes of a packet.
type Outcome string

// The outcomes.
const (
	Reaches Outcome = "reaches"
	Refused Outcome = "refused"
	Dropped Outcome = "dropped"
)

// Cluster is the nodes that packets are followed through.
type Cluster struct {
	nodes []*node
	opt   Options
}

// Options are what a Cluster assumes of what is not Weft's. The zero value is a network around the cluster that takes
// every packet, and servers at every port.
type Options struct {
	// Outside says whether an address is of a host outside; nil are all that no node knows.
	Outside func(netip.Addr) bool
	// Listens names the pod that listens to a packet that has arrived at a pod, or at a node; false when none does. nil
	// is a server everywhere.
	Listens func(at Place, protocol uint8, port uint16) (pod string, ok bool)
}

// New returns the cluster of these nodes. An error names flows that cannot be interpreted; the cluster is good without.
func New(nodes []Node, opt Options) (*Cluster, error) {
	c := &Cluster{opt: opt}
	var errs []error
	for i := range nodes {
		n, err := parse(&nodes[i])
		if n != nil {
			c.nodes = append(c.nodes, n)
		}
		errs = append(errs, err)
	}
	return c, errors.Join(errs...)
}

// Place is where packets begin and end: a pod, a node's own network, or, without both, a host outside.
type Place struct {
	Pod  string `json:"pod,omitempty"`
	Node string `json:"node,omitempty"`
}

func (p Place) String() string {
	return cmp.Or(p.Pod, p.Node, "outside")
}

// Packet is a packet between switches and hosts.
type Packet struct {
	Protocol uint8
	// Src and Dst have, for ICMP, the type and the code as ports.
	Src, Dst netip.AddrPort
	// Flags are TCP's; of other protocols they say alike whether a packet is the first, a reply or a later one.
	Flags uint16
	// masqueraded says that a node's kernel has given it another source port than is shown, at random.
	masqueraded bool
}

// First is the first packet of a connection. For ICMP it is an echo request.
func First(src, dst netip.AddrPort, protocol uint8) Packet {
	p := Packet{Protocol: protocol, Src: src, Dst: dst, Flags: trace.SYN}
	if request, _, ok := echo(protocol); ok {
		p.Src, p.Dst = netip.AddrPortFrom(src.Addr(), request), netip.AddrPortFrom(dst.Addr(), 0)
	}
	return p
}

// echo are the types of an echo request and its reply.
func echo(protocol uint8) (request, reply uint16, ok bool) {
	switch protocol {
	case openflow.IPProtoICMP:
		return 8, 0, true
	case openflow.IPProtoICMPv6:
		return 128, 129, true
	}
	return 0, 0, false
}

func (p Packet) String() string {
	if _, _, ok := echo(p.Protocol); ok {
		return fmt.Sprintf("%s to %s, ICMP echo", p.Src.Addr(), p.Dst.Addr())
	}
	return fmt.Sprintf("%s to %s, %s", p.Src, p.Dst, ProtocolName(p.Protocol))
}

// ProtocolName is a protocol as Kubernetes spells it, ICMP, or its number.
func ProtocolName(number uint8) string {
	for _, p := range []model.Protocol{model.TCP, model.UDP, model.SCTP} {
		if p.Number() == number {
			return string(p)
		}
	}
	if _, _, ok := echo(number); ok {
		return "ICMP"
	}
	return fmt.Sprintf("protocol %d", number)
}

// Tuple is what NAT looks packets up by.
type Tuple struct {
	protocol uint8
	src, dst netip.AddrPort
}

// Tuple are the addresses and ports; those of ICMP are the same for a request and its reply.
func (p Packet) Tuple() Tuple {
	if _, _, ok := echo(p.Protocol); ok {
		return Tuple{p.Protocol, netip.AddrPortFrom(p.Src.Addr(), 0), netip.AddrPortFrom(p.Dst.Addr(), 0)}
	}
	return Tuple{p.Protocol, p.Src, p.Dst}
}

// Reply is the reply to a packet.
func (p Packet) Reply() Packet {
	p.Src, p.Dst, p.Flags = p.Dst, p.Src, trace.SYN|trace.ACK
	if _, reply, ok := echo(p.Protocol); ok {
		p.Src, p.Dst = netip.AddrPortFrom(p.Src.Addr(), reply), netip.AddrPortFrom(p.Dst.Addr(), 0)
	}
	return p
}

// End is where a packet ends.
type End struct {
	Outcome Outcome
	// Reason is that of the flow that dropped the packet, or says what went wrong.
	Reason string
	At     Place
	// Got is the packet as it arrived.
	Got Packet
}

// Hop is a switch or a kernel that a packet passed.
type Hop struct {
	Node string `json:"node"`
	// Kernel says that it is the node's kernel, not its switch.
	Kernel bool   `json:"kernel,omitempty"`
	In     string `json:"in"`
	// Out says where the packet left, or why it did not.
	Out string `json:"out"`
	// Decided are the objects whose flows decided: rules of policies, Services, paths.
	Decided []string `json:"decided"`
	// Staged are the rules of staged policies that would have decided.
	Staged []string     `json:"staged,omitempty"`
	Steps  []trace.Step `json:"steps,omitempty"`
	// Live is what a packet that was sent shows of the hop; nil without one.
	Live *HopLive `json:"live,omitempty"`
	// Result is the interpreter's; of a switch.
	Result trace.Result `json:"-"`
	// passes are the ports at which a capture sees the packet.
	passes []Sighting
}

// Conversation follows the packets of connections. It has the connections of all switches and hosts, and belongs to one
// goroutine.
type Conversation struct {
	*Cluster
	// Bucket is the choice of every group; Most is the largest number of buckets that a group had.
	Bucket, Most int
	// Hops are what the packets of Send have passed. Connect says what it leaves here and in Back.
	Hops, Back []Hop
	// most is how many Hops there may be before the packet counts as one that goes in circles.
	most int

	conntrack map[*node]*trace.Conntrack
	learned   map[*node]*trace.Learned
	// nat is, for each host, what replies become; returned are the packets that a host's switch has returned to it.
	nat      map[*node]map[Tuple]Packet
	returned map[*node]map[Tuple]bool
}

// Conversation begins without connections. Bucket is the choice that every group makes.
func (c *Cluster) Conversation(bucket int) *Conversation {
	v := &Conversation{
		Cluster: c, Bucket: bucket, conntrack: map[*node]*trace.Conntrack{}, learned: map[*node]*trace.Learned{},
		nat: map[*node]map[Tuple]Packet{}, returned: map[*node]map[Tuple]bool{},
	}
	for _, one := range c.nodes {
		v.conntrack[one], v.learned[one] = &trace.Conntrack{Kernel: one.Kernel}, &trace.Learned{}
		v.nat[one], v.returned[one] = map[Tuple]Packet{}, map[Tuple]bool{}
	}
	return v
}

// node is a node by its name; nil when there is none.
func (c *Cluster) node(name string) *node {
	for _, one := range c.nodes {
		if one.Name == name {
			return one
		}
	}
	return nil
}

// pod is a pod of a node by its name.
func (n *node) pod(name string) (Pod, bool) {
	i := slices.IndexFunc(n.Pods, func(p Pod) bool { return p.Name == name })
	if i < 0 {
		return Pod{}, false
	}
	return n.Pods[i], true
}

// Source is the address that a client's kernel chooses for packets to an address; invalid when it has none of the
// family. A host outside has outside's.
func (c *Cluster) Source(from Place, to netip.Addr, outside []netip.Addr) netip.Addr {
	own, here := outside, c.node(from.Node)
	if here != nil {
		pod, isPod := here.pod(from.Pod)
		switch {
		case isPod && !pod.HostNetwork:
			own = pod.IPs
		case slices.Contains(here.Locals, to):
			return to
		case here.routesToSwitch(to) || here.routed(to):
			own = here.Gateways
		default:
			own = here.Addrs
		}
	}
	return of(own, to.Is4())
}

// maxHops is how many switches and kernels a packet may pass: as many as routers lower its TTL from Linux's 64.
const maxHops = 64

// circles reports whether a packet has passed too many hops, and how it ends then.
func (v *Conversation) circles(p Packet) (End, bool) {
	return End{Outcome: Dropped, Reason: "goes in circles between a switch and a kernel: " + p.String()},
		len(v.Hops) >= v.most
}

// Send follows a packet from where it is made.
func (v *Conversation) Send(from Place, p Packet) End {
	v.most = len(v.Hops) + maxHops
	here := v.node(from.Node)
	if here == nil {
		return v.underlay(nil, p)
	}
	if pod, ok := here.pod(from.Pod); ok && !pod.HostNetwork {
		return v.switched(here, pod.Port, pod.MAC, netip.Addr{}, p)
	}
	return v.host(here, fromItself, p)
}

// Connect sends the first packet of a connection, the same again, the reply, and another packet. All but the first go
// where the first one went, whichever bucket the group chooses by then; when they do not, the connection counts as
// dropped. Hops are those of the first packet afterwards, Back those of the reply.
func (v *Conversation) Connect(from Place, p Packet) End {
	if here := v.node(from.Node); here != nil {
		if pod, ok := here.pod(from.Pod); ok && pod.HostNetwork {
			from.Pod = "" // it is the node
		}
	}
	v.Hops, v.Back = nil, nil
	first := v.Send(from, p)
	if first.Outcome != Reaches {
		return first
	}
	hops := v.Hops
	defer func() { v.Hops = hops }()
	v.Bucket++
	for _, what := range []string{"sent again", "reply", "second packet"} {
		e, want := End{}, first
		v.Hops = nil
		if what == "reply" {
			e, want = v.Send(first.At, first.Got.Reply()), End{At: from, Got: p.Reply()}
			v.Back = v.Hops
			p.Flags = trace.ACK
		} else {
			e = v.Send(from, p)
		}
		if e.Outcome != Reaches || e.At != want.At || e.Got.Tuple() != want.Got.Tuple() {
			reason := fmt.Sprintf("%s %s %s at %s as %s; the first packet at %s", what, e.Outcome, e.Reason, e.At, e.Got,
				first.At)
			return End{Outcome: Dropped, Reason: reason}
		}
	}
	return first
}

// switched sends a packet through a node's switch.
func (v *Conversation) switched(here *node, port uint32, mac model.MAC, tunnel netip.Addr, p Packet) End {
	if e, circles := v.circles(p); circles {
		return e
	}
	in := trace.IP(port, p.Src.Addr(), p.Dst.Addr(), p.Protocol, p.Src.Port(), p.Dst.Port()).WithMACs(mac, model.RouterMAC)
	if p.Protocol == model.TCP.Number() {
		in = in.WithTCPFlags(p.Flags)
	}
	if tunnel.IsValid() {
		in = in.WithTunnel(tunnel)
	}
	r := here.sw.Run(in, trace.Options{
		Conntrack: v.conntrack[here], Learned: v.learned[here], Steps: true,
		Bucket: func(_ openflow.GroupID, buckets int, _ trace.Packet) int {
			v.Most = max(v.Most, buckets)
			return v.Bucket % buckets
		},
	})
	v.Hops = append(v.Hops, Hop{
		Node: here.Name, In: here.enters(port, tunnel) + ": " + p.String(), Steps: r.Steps,
		Result: r,
	})
	hop := &v.Hops[len(v.Hops)-1]
	hop.pass(here.portName(port, tunnel), false, p)
	hop.Decided, hop.Staged = here.decided(r)
	drop := func(reason string) End {
		hop.Out = "dropped: " + reason
		return End{Outcome: Dropped, Reason: reason}
	}
	if r.Dropped() {
		return drop(cmp.Or(string(r.Reason()), r.Note))
	}
	out := r.Outputs[0]
	p.Src = netip.AddrPortFrom(out.Packet.Src(), out.Packet.SrcPort())
	p.Dst = netip.AddrPortFrom(out.Packet.Dst(), out.Packet.DstPort())
	if len(r.Outputs) > 1 {
		return drop("several outputs")
	}
	hop.pass(here.portName(out.Port, out.Packet.TunnelDst()), true, p)
	switch {
	case out.Port == model.PortGateway && out.Packet.SrcMAC() == model.ReturnedMAC:
		v.returned[here][p.Tuple()] = true
		hop.Out = "returned to the node itself: " + p.String()
		return v.arrive(Place{Node: here.Name}, p)
	case out.Port == model.PortGateway:
		hop.Out = "to the kernel: " + p.String()
		return v.host(here, fromSwitch, p)
	case out.Packet.TunnelDst().IsValid():
		to := out.Packet.TunnelDst()
		for _, next := range v.nodes {
			if slices.Contains(next.Addrs, to) {
				hop.Out = fmt.Sprintf("tunnel to node %s (%s): %s", next.Name, to, p)
				return v.switched(next, out.Port, out.Packet.SrcMAC(), of(here.Addrs, to.Is4()), p)
			}
		}
		return drop(fmt.Sprintf("tunneled to %s, which is not a node that was asked", to))
	}
	for _, to := range here.Pods {
		if to.Port == out.Port && !to.HostNetwork {
			if out.Packet.DstMAC() != to.MAC || !slices.Contains(to.IPs, p.Dst.Addr()) {
				return drop(fmt.Sprintf("at %s as %s", to.Name, out.Packet))
			}
			hop.Out = fmt.Sprintf("to pod %s: %s", to.Name, p)
			return v.arrive(Place{Pod: to.Name, Node: here.Name}, p)
		}
	}
	return drop(fmt.Sprintf("at port %d, which no pod has", out.Port))
}

// enters names where a packet enters a switch.
// portName is a port of the switch as captures name it, with the other end of its tunnel if it has one; empty for one
// that nothing is at.
func (n *node) portName(port uint32, tunnel netip.Addr) string {
	switch {
	case tunnel.IsValid():
		return capture.AtTunnel
	case port == model.PortGateway:
		return capture.AtGateway
	}
	for _, p := range n.Pods {
		if p.Port == port && !p.HostNetwork {
			return p.Name
		}
	}
	return ""
}

func (n *node) enters(port uint32, tunnel netip.Addr) string {
	switch {
	case tunnel.IsValid():
		return "from the tunnel of " + tunnel.String()
	case port == model.PortGateway:
		return "from the kernel"
	}
	for _, p := range n.Pods {
		if p.Port == port && !p.HostNetwork {
			return "from pod " + p.Name
		}
	}
	return fmt.Sprintf("from port %d", port)
}

// decided names the objects that a packet's fate on a switch comes from, in the order of the tables, and the rules of
// staged policies that would have decided.
func (n *node) decided(r trace.Result) (decided, staged []string) {
	decided = []string{}
	add := func(text string) {
		if !slices.Contains(decided, text) {
			decided = append(decided, text)
		}
	}
	for _, f := range r.Visited {
		if f == nil {
			continue
		}
		known := n.byKey[f.Key]
		if _, preview := flows.PreviewTable(f.Table); preview {
			if known != nil {
				staged = append(staged, known.Decides...)
			}
			continue
		}
		if known != nil {
			for _, rule := range known.Decides {
				add(rule)
			}
		}
		switch {
		case f.Reason != "":
			add("drop " + string(f.Reason) + " of " + f.Owner.String())
		case f.Owner.Kind == model.KindService:
			add("Service " + f.Owner.Name)
		case f.Owner.Kind == model.KindNode:
			add("path of node " + f.Owner.Name)
		case f.Owner == model.Owner{}:
			add("a foreign flow in table " + flows.TableName(f.Table))
		}
	}
	return decided, staged
}

// arrive reports a packet that is where it is for. A port without a server refuses new connections.
func (v *Conversation) arrive(at Place, p Packet) End {
	e := End{Outcome: Reaches, At: at, Got: p}
	if at.Node == "" || v.opt.Listens == nil {
		return e
	}
	if pod, ok := v.opt.Listens(at, p.Protocol, p.Dst.Port()); ok {
		e.At.Pod = pod
	} else if p.Flags == trace.SYN {
		e.Outcome = Refused
	}
	return e
}
