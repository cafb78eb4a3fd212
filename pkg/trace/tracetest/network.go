// Package tracetest is a cluster of interpreters: each node's policies are resolved and compiled as by its agent, and
// packets pass the nodes' flows from one node to the next. Tests compare the observed results with the expected
// verdicts of policies.
//
// A Network belongs to the test that made it; its only changing state is the nodes' connection trackers.
package tracetest

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/nodepath"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/pkg/trace"
)

// Cluster is the input of New.
type Cluster struct {
	Nodes      []model.Node
	Namespaces map[string]map[string]string
	Pods       []policy.Pod
	Policies   []policy.Policy
	PeerNodes  []policy.Node
	// Names are the domain names that all nodes have learned.
	Names map[string]model.LearnedName
	// Kernel selects the kernel datapath's conntrack behavior.
	Kernel bool
}

// ForEval is the cluster in the form that policy.Eval takes.
func (c Cluster) ForEval() policy.Cluster {
	v := policy.Cluster{Namespaces: c.Namespaces, Nodes: map[string][]netip.Addr{}, Pods: c.Pods, Policies: c.Policies,
		PeerNodes: c.PeerNodes, Names: c.Names}
	for _, n := range c.Nodes {
		v.Nodes[n.Name] = append([]netip.Addr(nil), n.Addrs...)
		for _, cidr := range n.PodCIDRs {
			v.Nodes[n.Name] = append(v.Nodes[n.Name], model.GatewayAddr(cidr))
		}
	}
	return v
}

// Begun is the cluster as connections see it that have begun: they go on to a name's addresses whose time is over.
func (c Cluster) Begun() Cluster {
	names := c.Names
	c.Names = map[string]model.LearnedName{}
	for name, learned := range names {
		c.Names[name] = model.LearnedName{Addrs: slices.Concat(learned.Addrs, learned.Ended)}
	}
	return c
}

// Network is a running cluster.
type Network struct {
	nodes []*node
	pods  map[netip.Addr]place
}

type place struct {
	node *node
	port uint32
	mac  model.MAC
	name string
}

type node struct {
	model.Node
	snapshot *model.Snapshot
	flows    *flows.Compiler
	sw       *trace.Switch
	ct       *trace.Conntrack
}

// New compiles the nodes' flows.
func New(c Cluster) (*Network, error) {
	n := &Network{pods: map[netip.Addr]place{}}
	for _, one := range c.Nodes {
		n.nodes = append(n.nodes, &node{
			Node: one, ct: &trace.Conntrack{Kernel: c.Kernel}, flows: flows.NewCompiler(),
			snapshot: &model.Snapshot{
				Self: one, Transport: model.Tunnel(model.Geneve), KernelDatapath: c.Kernel, Nodes: map[string]model.Node{},
				Attachments: map[model.AttachmentKey]model.Attachment{},
			},
		})
	}
	for _, here := range n.nodes {
		s := here.snapshot
		for _, other := range c.Nodes {
			if other.Name != here.Name {
				s.Nodes[other.Name] = other
			}
		}
		s.Paths = nodepath.Resolve(s)
		for i, p := range c.Pods {
			if p.Node != here.Name || p.HostNetwork {
				continue
			}
			a := model.Attachment{
				ContainerID: fmt.Sprint("c", i), IfName: "eth0", Pod: model.PodRef{Namespace: p.Namespace, Name: p.Name},
				OFPort: model.PortPodMin + uint32(i), MAC: model.MAC{0x0a, 0x58, 0, 0, 1, byte(i)}, IPs: p.Addrs,
			}
			s.Attachments[a.Key()] = a
			for _, ip := range p.Addrs {
				n.pods[ip] = place{here, a.OFPort, a.MAC, p.Namespace + "/" + p.Name}
			}
		}
		if err := here.resolve(c, flows.Owners(s)); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// SetPolicies replaces all policies and compiles only the differences, as agents do. Connections stay.
func (n *Network) SetPolicies(c Cluster) error {
	for _, here := range n.nodes {
		var owners []model.Owner
		for _, p := range here.snapshot.Policies {
			owners = append(owners, p.Owner())
		}
		if err := here.resolve(c, owners); err != nil {
			return err
		}
	}
	return nil
}

func (here *node) resolve(c Cluster, owners []model.Owner) error {
	w := policy.World{Node: here.Name, Pods: c.Pods, Policies: c.Policies, Nodes: c.PeerNodes,
		Names: c.Names, PodCIDRs: map[string][]netip.Prefix{}}
	for _, n := range c.Nodes {
		w.PodCIDRs[n.Name] = n.PodCIDRs
	}
	for name, labels := range c.Namespaces {
		w.Namespaces = append(w.Namespaces, policy.Namespace{Name: name, Labels: labels})
	}
	for _, a := range here.snapshot.Attachments {
		w.Attachments = append(w.Attachments, a)
	}
	next := *here.snapshot
	next.Policies = policy.Resolve(w).Policies
	next.Staging = model.AnyStaged(next.Policies)
	here.snapshot = &next
	for _, p := range next.Policies {
		owners = append(owners, p.Owner())
	}
	if _, failed := here.flows.Update(here.snapshot, owners); len(failed) > 0 {
		return fmt.Errorf("node %s: %w", here.Name, failed[0])
	}
	var err error
	here.sw, err = trace.Of(here.flows.Desired())
	return err
}

// Policies are those about the pods of a node.
func (n *Network) Policies(name string) map[model.PolicyID]model.Policy {
	return n.node(name).snapshot.Policies
}

// Desired returns the desired flows of a node's switch.
func (n *Network) Desired(name string) flows.Desired { return n.node(name).flows.Desired() }

func (n *Network) node(name string) *node {
	i := slices.IndexFunc(n.nodes, func(one *node) bool { return one.Name == name })
	return n.nodes[i]
}

// Packet is a packet to send.
type Packet struct {
	Src, Dst         netip.Addr
	Protocol         uint8
	SrcPort, DstPort uint16
	TCPFlags         uint16 // SYN when 0
}

// Reply is the reply to a packet; it cannot begin a connection.
func (p Packet) Reply() Packet {
	p.Src, p.Dst, p.SrcPort, p.DstPort, p.TCPFlags = p.Dst, p.Src, p.DstPort, p.SrcPort, trace.SYN|trace.ACK
	if p.Protocol == icmp || p.Protocol == icmp6 {
		p.SrcPort = map[uint8]uint16{icmp: 0, icmp6: 129}[p.Protocol]
		p.DstPort = 0
	}
	return p
}

// Next is a later packet of the same connection.
func (p Packet) Next() Packet {
	p.TCPFlags = trace.ACK
	return p
}

const (
	icmp  = 1
	icmp6 = 58
)

// Echo is an echo request.
func Echo(src, dst netip.Addr) Packet {
	if src.Is4() {
		return Packet{Src: src, Dst: dst, Protocol: icmp, SrcPort: 8}
	}
	return Packet{Src: src, Dst: dst, Protocol: icmp6, SrcPort: 128}
}

// Delivery is the outcome of a packet.
type Delivery struct {
	// Arrived reports that it left at its destination's port, with its own addresses and ports.
	Arrived bool
	// Reason is the reason of a drop.
	Reason flows.Reason
	// Hops are the traces of the switches that it passed, in order.
	Hops []Hop
	// Wrong describes the error when it neither arrived nor was dropped.
	Wrong string
}

// Hop is the trace of one node's switch.
type Hop struct {
	Node   string
	In     trace.Packet
	Result trace.Result
}

func (d Delivery) String() string {
	var b strings.Builder
	for _, h := range d.Hops {
		fmt.Fprintf(&b, "on %s: %s\n%s", h.Node, h.In, h.Result)
	}
	b.WriteString(d.Wrong)
	return b.String()
}

// Send sends a packet from its source. A source that is neither a pod nor a node is outside, behind the gateway of the
// destination's node.
func (n *Network) Send(p Packet) Delivery { return n.send(p, false) }

// Explain is Send with all steps recorded, for the message of a failed test.
func (n *Network) Explain(p Packet) Delivery { return n.send(p, true) }

func (n *Network) send(p Packet, steps bool) Delivery {
	here, port, mac := n.origin(p)
	in := trace.IP(port, p.Src, p.Dst, p.Protocol, p.SrcPort, p.DstPort).WithMACs(mac, model.RouterMAC)
	if p.TCPFlags != 0 && p.Protocol == 6 {
		in = in.WithTCPFlags(p.TCPFlags)
	}
	var d Delivery
	for len(d.Hops) < 3 {
		r := here.sw.Run(in, trace.Options{Conntrack: here.ct, Steps: steps})
		d.Hops = append(d.Hops, Hop{Node: here.Name, In: in, Result: r})
		if r.Dropped() {
			d.Reason = r.Reason()
			return d
		}
		out := r.Outputs[0]
		if out.Port == model.PortGeneve {
			next := slices.IndexFunc(n.nodes, func(o *node) bool { return o.Primary() == out.Packet.TunnelDst() })
			if next < 0 {
				d.Wrong = fmt.Sprintf("tunneled to %s, which is not a node", out.Packet.TunnelDst())
				return d
			}
			in = trace.IP(model.PortGeneve, out.Packet.Src(), out.Packet.Dst(), p.Protocol, out.Packet.SrcPort(),
				out.Packet.DstPort()).
				WithMACs(out.Packet.SrcMAC(), out.Packet.DstMAC()).WithTunnel(here.Primary())
			if p.Protocol == 6 && p.TCPFlags != 0 {
				in = in.WithTCPFlags(p.TCPFlags)
			}
			here = n.nodes[next]
			continue
		}
		d.Wrong = n.arrival(p, here, out)
		d.Arrived = d.Wrong == "" && len(r.Outputs) == 1
		return d
	}
	d.Wrong = "loop"
	return d
}

// origin is where a packet enters the network: nodes' gateway addresses at the nodes, and all other addresses except
// pods behind the gateway of the pod's node, where masquerading returns replies.
func (n *Network) origin(p Packet) (*node, uint32, model.MAC) {
	if at, ok := n.pods[p.Src]; ok {
		return at.node, at.port, at.mac
	}
	for _, one := range n.nodes {
		for _, cidr := range one.PodCIDRs {
			if model.GatewayAddr(cidr) == p.Src {
				return one, model.PortGateway, model.GatewayMAC
			}
		}
	}
	if at, ok := n.pods[p.Dst]; ok {
		return at.node, model.PortGateway, model.GatewayMAC
	}
	return n.nodes[0], model.PortGateway, model.GatewayMAC
}

// arrival describes the error of an output; empty when it is correct.
func (n *Network) arrival(p Packet, here *node, out trace.Output) string {
	to, isPod := n.pods[p.Dst]
	switch {
	case isPod && (to.node != here || to.port != out.Port):
		return fmt.Sprintf("for %s, left %s at port %d", to.name, here.Name, out.Port)
	case !isPod && out.Port != model.PortGateway:
		return fmt.Sprintf("not for a pod, left %s at port %d", here.Name, out.Port)
	case isPod && out.Packet.DstMAC() != to.mac:
		return fmt.Sprintf("for %s, arrived with the MAC %s", to.name, out.Packet.DstMAC())
	case p.Src == p.Dst:
		return "" // hairpin: masqueraded
	case out.Packet.Src() != p.Src, out.Packet.Dst() != p.Dst,
		out.Packet.SrcPort() != p.SrcPort, out.Packet.DstPort() != p.DstPort:
		return fmt.Sprintf("sent as %v, left %s as %s", p, here.Name, out.Packet)
	}
	return ""
}

// Allows reports whether the nodes' audits, on which sweeps are based, allow a packet's connection.
func (n *Network) Allows(p Packet) bool {
	return !slices.ContainsFunc(n.nodes, func(here *node) bool {
		return !here.audit().Allows(openflow.Connection{
			Protocol: p.Protocol, Source: netip.AddrPortFrom(p.Src, p.SrcPort),
			Endpoint: netip.AddrPortFrom(p.Dst, p.DstPort),
		})
	})
}

// Sweep sweeps every node's connections as its agent does.
func (n *Network) Sweep() {
	for _, here := range n.nodes {
		audit := here.audit()
		here.ct.Sweep(func(zone uint16, proto uint8, src, dst, endpoint netip.AddrPort, mark uint64) (uint64, bool) {
			cause := audit.Check(openflow.Connection{
				Zone: zone, Protocol: proto, Source: src, Destination: dst, Endpoint: endpoint, Mark: uint32(mark),
			})
			switch cause {
			case flows.PolicyDenies:
				return mark&^uint64(flows.MarkAllowed) | uint64(flows.MarkDenied), true
			case flows.PolicyAllows:
				return mark&^uint64(flows.MarkDenied) | uint64(flows.MarkAllowed), true
			}
			return mark, cause == ""
		})
	}
}

func (here *node) audit() *flows.Audit { return flows.NewAudit(here.snapshot, nil, nil) }

// Forget deletes all connections.
func (n *Network) Forget() {
	for _, here := range n.nodes {
		here.ct.Forget()
	}
}

// Entries returns a packet as it may enter a node's switch: from its pod, from the gateway and from the tunnels.
func (n *Network) Entries(p Packet, name string) []trace.Packet {
	in := func(port uint32, mac model.MAC) trace.Packet {
		one := trace.IP(port, p.Src, p.Dst, p.Protocol, p.SrcPort, p.DstPort).WithMACs(mac, model.RouterMAC)
		if p.TCPFlags != 0 && p.Protocol == 6 {
			one = one.WithTCPFlags(p.TCPFlags)
		}
		return one
	}
	list := []trace.Packet{in(model.PortGateway, model.GatewayMAC)}
	for _, other := range n.nodes {
		if other.Name != name {
			list = append(list, in(model.PortGeneve, model.RouterMAC).WithTunnel(other.Primary()))
		}
	}
	if at, ok := n.pods[p.Src]; ok && at.node.Name == name {
		list = append(list, in(at.port, at.mac))
	}
	return list
}
