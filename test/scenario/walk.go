package scenario

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/trace"
)

// packet is a packet between switches and hosts.
type packet struct {
	protocol uint8
	src, dst netip.AddrPort
	flags    uint16
}

func (p packet) String() string {
	return fmt.Sprintf("%s to %s, protocol %d", p.src, p.dst, p.protocol)
}

// tuple is what NAT looks packets up by.
type tuple struct {
	protocol uint8
	src, dst netip.AddrPort
}

func (p packet) tuple() tuple { return tuple{p.protocol, p.src, p.dst} }

func (p packet) reply() packet {
	p.src, p.dst, p.flags = p.dst, p.src, trace.SYN|trace.ACK
	return p
}

// place is where packets begin and end: a pod's port, a node's own network, or, without both, the host outside.
type place struct {
	pod  *pod
	node *node
}

func (p place) String() string {
	switch {
	case p.pod != nil:
		return p.pod.key
	case p.node != nil:
		return p.node.name
	}
	return outsideName
}

// end is what became of a packet.
type end struct {
	outcome outcome
	reason  string
	at      place
	got     packet
}

// conversation follows the packets of connections. It has the connections of all switches and hosts.
type conversation struct {
	*network
	conntrack map[*node]*trace.Conntrack
	learned   map[*node]*trace.Learned
	// nat is, for each host, what replies become.
	nat map[*node]map[tuple]packet
	// bucket is the choice of every group; most is the largest number of buckets that a group had.
	bucket, most int
	steps        bool
	log          strings.Builder
}

func (n *network) conversation(bucket int, steps bool) *conversation {
	c := &conversation{
		network: n, conntrack: map[*node]*trace.Conntrack{}, learned: map[*node]*trace.Learned{},
		nat: map[*node]map[tuple]packet{}, bucket: bucket, steps: steps,
	}
	for _, one := range n.nodes {
		c.conntrack[one], c.learned[one] = &trace.Conntrack{Kernel: n.kernel}, &trace.Learned{}
		c.nat[one] = map[tuple]packet{}
	}
	return c
}

// connect sends the first packet of a connection, the same again, the reply, and another packet. All but the first go
// where the first one went, whichever bucket the group chooses by then.
func (c *conversation) connect(from place, to netip.AddrPort, protocol model.Protocol, port uint16) end {
	p := packet{protocol.Number(), netip.AddrPortFrom(c.source(from, to.Addr()), port), to, trace.SYN}
	first := c.send(from, p)
	if first.outcome != reaches {
		return first
	}
	lost := func(what string, e end) end {
		reason := fmt.Sprintf("%s %s %s at %s as %s; the first packet at %s", what, e.outcome, e.reason, e.at, e.got,
			first.at)
		return end{outcome: dropped, reason: reason}
	}
	c.bucket++
	for _, what := range []string{"sent again", "reply", "second packet"} {
		e, want := end{}, first
		if what == "reply" {
			e, want = c.send(first.at, first.got.reply()), end{at: from, got: p.reply()}
			p.flags = trace.ACK
		} else {
			e = c.send(from, p)
		}
		if e.outcome != reaches || e.at != want.at || e.got.tuple() != want.got.tuple() {
			return lost(what, e)
		}
	}
	return first
}

// source is the address that a client's kernel chooses.
func (c *conversation) source(from place, to netip.Addr) netip.Addr {
	own := c.names.outside
	switch {
	case from.pod != nil && !from.pod.onHost:
		own = from.pod.ips
	case from.node != nil && slices.Contains(from.node.locals(from.node.snapshot), to):
		return to
	case from.node != nil && from.node.routesToSwitch(to):
		own = c.gateways[from.node.name]
	case from.node != nil:
		own = from.node.addrs
	}
	i := slices.IndexFunc(own, func(a netip.Addr) bool { return a.Is4() == to.Is4() })
	if i < 0 {
		return netip.Addr{}
	}
	return own[i]
}

// send follows a packet from where it is made.
func (c *conversation) send(from place, p packet) end {
	switch {
	case from.node == nil:
		return c.underlay(nil, p)
	case from.pod != nil && !from.pod.onHost:
		return c.switched(from.node, from.pod.port, from.pod.mac, netip.Addr{}, p)
	}
	return c.host(from.node, fromItself, p)
}

// switched sends a packet through a node's switch.
func (c *conversation) switched(here *node, port uint32, mac model.MAC, tunnel netip.Addr, p packet) end {
	in := trace.IP(port, p.src.Addr(), p.dst.Addr(), p.protocol, p.src.Port(), p.dst.Port()).WithMACs(mac, model.RouterMAC)
	if p.protocol == model.TCP.Number() {
		in = in.WithTCPFlags(p.flags)
	}
	if tunnel.IsValid() {
		in = in.WithTunnel(tunnel)
	}
	r := here.sw.Run(in, trace.Options{Conntrack: c.conntrack[here], Learned: c.learned[here], Steps: c.steps,
		Bucket: func(_ openflow.GroupID, buckets int, _ trace.Packet) int {
			c.most = max(c.most, buckets)
			return c.bucket % buckets
		}})
	if c.steps {
		fmt.Fprintf(&c.log, "switch of %s: %s\n%s", here.name, in, r)
	}
	if r.Dropped() {
		return end{outcome: dropped, reason: cmp.Or(string(r.Reason()), r.Note)}
	}
	out := r.Outputs[0]
	p.src = netip.AddrPortFrom(out.Packet.Src(), out.Packet.SrcPort())
	p.dst = netip.AddrPortFrom(out.Packet.Dst(), out.Packet.DstPort())
	switch {
	case len(r.Outputs) > 1:
		return end{outcome: dropped, reason: "several outputs"}
	case out.Port == model.PortGateway:
		return c.host(here, fromSwitch, p)
	case out.Packet.TunnelDst().IsValid():
		for _, next := range c.nodes {
			if slices.Contains(next.addrs, out.Packet.TunnelDst()) {
				return c.switched(next, out.Port, out.Packet.SrcMAC(), here.addrs[0], p)
			}
		}
		return end{outcome: dropped, reason: fmt.Sprintf("tunneled to %s, which is not a node", out.Packet.TunnelDst())}
	}
	for _, to := range c.pods {
		if to.node == here && to.port == out.Port && !to.onHost {
			if out.Packet.DstMAC() != to.mac || !slices.Contains(to.ips, p.dst.Addr()) {
				return end{outcome: dropped, reason: fmt.Sprintf("at %s as %s", to.key, out.Packet)}
			}
			return c.arrive(place{to, here}, p)
		}
	}
	return end{outcome: dropped, reason: fmt.Sprintf("at port %d, which no pod has", out.Port)}
}

// arrive reports a packet that is where it is for. A port without a server refuses new connections.
func (c *conversation) arrive(at place, p packet) end {
	e := end{outcome: reaches, at: at, got: p}
	if at.node == nil {
		return e
	}
	for _, candidate := range c.pods {
		if candidate.node != at.node || candidate.onHost == (at.pod != nil) || at.pod != nil && candidate != at.pod {
			continue
		}
		for _, container := range candidate.object.Spec.Containers {
			for _, port := range container.Ports {
				protocol := model.Protocol(cmp.Or(string(port.Protocol), string(model.TCP)))
				if protocol.Number() == p.protocol && uint16(port.ContainerPort) == p.dst.Port() {
					e.at.pod = candidate
					return e
				}
			}
		}
	}
	if p.flags == trace.SYN {
		e.outcome = refused
	}
	return e
}
