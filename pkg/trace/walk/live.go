package walk

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weft-cni/weft/pkg/capture"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/trace"
)

// Sighting is a packet at a port of a node, where a capture sees it.
type Sighting struct {
	Node string `json:"node"`
	// Port is a pod as NAMESPACE/NAME, capture.AtGateway or capture.AtTunnel; To says that the packet goes there.
	Port string `json:"port"`
	To   bool   `json:"to"`
	// Reply says that the packet answers the one that was sent.
	Reply  bool   `json:"reply,omitempty"`
	Packet Packet `json:"-"`
	// Info is what the capture says of the packet, Time when it was there by its node's clock. Expected ones have neither.
	Info string    `json:"packet,omitempty"`
	Time time.Time `json:"time,omitzero"`
}

// String is where the packet was.
func (s Sighting) String() string {
	text := map[bool]string{true: "to", false: "from"}[s.To] + " "
	switch s.Port {
	case capture.AtTunnel:
		text = map[bool]string{true: "leaving", false: "arriving at"}[s.To] + " node " + s.Node
		return text + map[bool]string{true: " for the underlay", false: " from the underlay"}[s.To]
	case capture.AtGateway:
		return text + "the kernel of node " + s.Node
	}
	return text + "pod " + s.Port + " on node " + s.Node
}

// same says whether a sighting is the expected one: the packet is at the port, and has the addresses.
func (s Sighting) same(want Sighting) bool {
	return s.Reply == want.Reply && s.sameButReply(want)
}

func (s Sighting) sameButReply(want Sighting) bool {
	return s.Node == want.Node && s.Port == want.Port && s.To == want.To && s.Packet.Tuple() == want.Packet.Tuple()
}

// HopLive is what a packet that was sent shows of a hop.
type HopLive struct {
	// Counted are the packets that each flow which the packet takes has counted meanwhile, other packets included, in the
	// order of the flows.
	Counted []uint64 `json:"counted,omitempty"`
	// Missed is the first of these flows that has counted none.
	Missed string `json:"missed,omitempty"`
	// Seen are the sightings.
	Seen []Sighting `json:"seen"`
	// NotSeen are the ports where the packet was expected, and not seen.
	NotSeen []Sighting `json:"notSeen,omitempty"`
}

// Live is what a packet that was sent did, beside the trace.
type Live struct {
	// Sent is how many packets were sent: others only after one did not do as the trace says.
	Sent int `json:"sent"`
	// Agrees says whether the last one did as the trace says.
	Agrees bool `json:"agrees"`
	// Established says that it was delivered and, except for UDP, accepted by an answer.
	Established bool `json:"established"`
	// Text says what became of the packet.
	Text string `json:"text"`
	// Path is the index of the path that the packet took, or else of the one that it followed for longest.
	Path int `json:"path"`
	// Elsewhere are sightings that this path does not have.
	Elsewhere []Sighting `json:"elsewhere,omitempty"`
}

func (l Live) String() string {
	word := "DISAGREES with the trace"
	if l.Agrees {
		word = "agrees with the trace"
	}
	packets := "1 packet was sent"
	if l.Sent > 1 {
		packets = fmt.Sprintf("%d packets were sent, and this is about the last", l.Sent)
	}
	return fmt.Sprintf("%s; %s: %s", word, packets, l.Text)
}

// pass notes that the packet of a hop passes a port, unless it can no longer be told from others.
func (h *Hop) pass(port string, to bool, p Packet) {
	if port != "" && !p.masqueraded {
		h.passes = append(h.passes, Sighting{Node: h.Node, Port: port, To: to, Packet: p})
	}
}

// Nodes are those that the paths lead through, the client's first.
func (t *Trace) Nodes() []string {
	var list []string
	for _, p := range t.Paths {
		for _, h := range slices.Concat(p.Hops, p.Reply) {
			if !slices.Contains(list, h.Node) {
				list = append(list, h.Node)
			}
		}
	}
	return list
}

// match compares sightings with a path.
type match struct {
	path *Path
	// seen and missing are the path's ports where the packet was and was not, answered and unanswered those of the answer.
	seen, missing, answered, unanswered []Sighting
	// elsewhere are sightings of the packet that the path does not have.
	elsewhere []Sighting
}

// matchPath compares sightings with a path, but for where the first hop is entered: the switch was given the packet.
func matchPath(p *Path, all []Sighting) match {
	m := match{path: p}
	rest := slices.Clone(all)
	for i, h := range p.Hops {
		for k, want := range h.passes {
			if i > 0 || k > 0 {
				take(&rest, want, &m.seen, &m.missing)
			}
		}
	}
	for _, h := range p.Reply {
		for _, want := range h.passes {
			want.Reply = true
			take(&rest, want, &m.answered, &m.unanswered)
		}
	}
	for _, s := range rest {
		if !s.Reply { // a repeated answer is of no interest
			m.elsewhere = append(m.elsewhere, s)
		}
	}
	return m
}

// take moves the sightings that are the wanted one to seen, of several the first, or notes it as missing.
func take(rest *[]Sighting, want Sighting, seen, missing *[]Sighting) {
	i := slices.IndexFunc(*rest, want.same)
	if i < 0 {
		*missing = append(*missing, want)
		return
	}
	*seen = append(*seen, (*rest)[i])
	*rest = slices.DeleteFunc(*rest, want.same)
}

// Compare notes in the trace what was seen of the last packet that was sent. It may be called again with more
// sightings.
func (t *Trace) Compare(sent int, seen []Sighting) {
	index, best := 0, matchPath(&t.Paths[0], seen)
	for i := range t.Paths {
		m := matchPath(&t.Paths[i], seen)
		if len(m.seen)-len(m.elsewhere) > len(best.seen)-len(best.elsewhere) {
			index, best = i, m
		}
		for _, hops := range [][]Hop{t.Paths[i].Hops, t.Paths[i].Reply} {
			for k := range hops {
				hops[k].Live = nil
			}
		}
	}
	t.Live = &Live{Sent: sent, Path: index, Elsewhere: best.elsewhere}
	note := func(hops []Hop, seen, missing []Sighting) {
		for i := range hops {
			own := func(s Sighting) bool { return slices.ContainsFunc(hops[i].passes, s.sameButReply) }
			hops[i].Live = &HopLive{Seen: filter(seen, own), NotSeen: filter(missing, own)}
		}
	}
	note(best.path.Hops, best.seen, best.missing)
	if len(best.answered) > 0 {
		note(best.path.Reply, best.answered, best.unanswered)
	}
	t.judge(best)
}

func filter(list []Sighting, want func(Sighting) bool) []Sighting {
	return slices.DeleteFunc(slices.Clone(list), func(s Sighting) bool { return !want(s) })
}

// judge says whether the packet did as its path says.
func (t *Trace) judge(m match) {
	l, p := t.Live, m.path
	switch {
	case len(m.missing) > 0:
		l.Text = lost("it", m.seen, m.missing)
	case len(m.elsewhere) > 0:
		l.Text = fmt.Sprintf("the trace says %s, but it was seen %s", p, m.elsewhere[0])
	case p.Outcome != Reaches:
		l.Agrees = true
		l.Text = fmt.Sprintf("it was %s", p)
		if len(m.seen) > 0 {
			l.Text += ", and last seen " + m.seen[len(m.seen)-1].String()
		}
	case len(m.answered) == 0:
		l.Agrees, l.Established = true, !answers(t.Query.Protocol)
		l.Text = fmt.Sprintf("it reached %s", p.At)
		if p.end.Got.masqueraded {
			l.Text = "it went to a node's kernel, which gives it another source port; beyond, it cannot be told from other packets"
		}
		if !l.Established {
			l.Text += ", and was not answered"
		}
	case len(m.unanswered) > 0:
		l.Text = fmt.Sprintf("it reached %s; ", p.At) + lost("the answer", m.answered, m.unanswered)
	default:
		answer := m.answered[len(m.answered)-1]
		l.Agrees, l.Established = true, answer.Packet.Flags&trace.RST == 0
		verb := "answered with"
		if !l.Established {
			verb = "refused it with"
		}
		l.Text = fmt.Sprintf("it reached %s, which %s %s", p.At, verb, answer.Info)
		if first := slices.IndexFunc(m.seen, func(s Sighting) bool { return s.Node == answer.Node }); first >= 0 {
			l.Text += fmt.Sprintf(", back after %s", answer.Time.Sub(m.seen[first].Time).Round(10*time.Microsecond))
		}
	}
}

// answers says whether every receiver answers the first packet of a connection.
func answers(protocol uint8) bool {
	_, _, ping := echo(protocol)
	return ping || protocol == openflow.IPProtoTCP
}

// lost says where a packet was last.
func lost(what string, seen, missing []Sighting) string {
	if len(seen) == 0 {
		return fmt.Sprintf("%s was seen nowhere, not even %s", what, missing[0])
	}
	// What comes after a port where it was seen was passed, although it was not seen there.
	return fmt.Sprintf("%s was last seen %s, and not %s", what, seen[len(seen)-1], missing[0])
}

// Done says whether the last packet was seen wherever its path leads, and its answer, too.
func (t *Trace) Done() bool {
	if t.Live == nil || !t.Live.Agrees || t.Paths[t.Live.Path].Outcome != Reaches {
		return false
	}
	return t.Live.Established || slices.ContainsFunc(t.Paths[t.Live.Path].Reply, func(h Hop) bool { return h.Live != nil })
}

// Count notes what the flows of the path that the packet took have counted between two answers of its nodes, and says
// whether all flows have counted something.
func (t *Trace) Count(before, after []Node) bool {
	count := func(nodes []Node) map[string]map[openflow.Key]uint64 {
		counts := map[string]map[openflow.Key]uint64{}
		for _, n := range nodes {
			counts[n.Name] = map[openflow.Key]uint64{}
			for _, f := range n.Flows {
				counts[n.Name][f.key()] = f.Packets
			}
		}
		return counts
	}
	was, is := count(before), count(after)
	all := true
	for _, h := range slices.Concat(t.Paths[t.Live.Path].Hops, t.Paths[t.Live.Path].Reply) {
		if h.Live == nil {
			continue
		}
		h.Live.Counted, h.Live.Missed = nil, ""
		for _, f := range h.Result.Visited {
			// A flow that was installed again counts from 0.
			n := is[h.Node][f.Key]
			if old := was[h.Node][f.Key]; old <= n {
				n -= old
			}
			h.Live.Counted = append(h.Live.Counted, n)
			if n == 0 && h.Live.Missed == "" {
				h.Live.Missed = fmt.Sprintf("%s: %d %s", flows.TableName(f.Table), f.Priority, f.Match)
				all = false
			}
		}
	}
	return all
}

// write writes what a packet shows of a hop.
func (l *HopLive) write(b *strings.Builder) {
	for _, s := range l.Seen {
		fmt.Fprintf(b, "    live: seen %s: %s\n", s, s.Info)
	}
	for _, s := range l.NotSeen {
		fmt.Fprintf(b, "    live: not seen %s\n", s)
	}
	switch {
	case len(l.Counted) == 0:
	case l.Missed == "":
		fmt.Fprintf(b, "    live: counted by all %d flows\n", len(l.Counted))
	default:
		n := slices.Index(l.Counted, 0)
		fmt.Fprintf(b, "    live: counted by the first %d of %d flows; not by %s\n", n, len(l.Counted), l.Missed)
	}
}

// Sighted is a packet of a capture, if it is the one of the trace's connection that was sent, or an answer to it.
func (t *Trace) Sighted(node string, port capture.Port, p capture.Packet, names capture.Names) (s Sighting, ok bool) {
	h := capture.Parse(p.Data, port.Tunnel)
	q := t.Query
	s = Sighting{Node: node, Port: port.Name, To: p.To, Time: p.Time, Info: h.Info(names.Of), Packet: Packet{
		Protocol: h.Protocol, Src: netip.AddrPortFrom(h.Src, h.SrcPort), Dst: netip.AddrPortFrom(h.Dst, h.DstPort),
		Flags: uint16(h.TCPFlags),
	}}
	if request, reply, ping := echo(q.Protocol); ping {
		s.Reply = uint16(h.Type) == reply
		return s, h.Protocol == q.Protocol && h.ID == q.SrcPort && (s.Reply || uint16(h.Type) == request)
	}
	s.Reply = h.DstPort == q.SrcPort
	begins := h.SrcPort == q.SrcPort && (h.Protocol != openflow.IPProtoTCP || s.Packet.Flags == trace.SYN)
	return s, h.Protocol == q.Protocol && (s.Reply || begins)
}
