package walk

import (
	"cmp"
	"fmt"
	"io"
	"iter"
	"net/netip"
	"slices"
	"strings"
)

// clientPort is the source port of connections: one that no rule of nodes changes.
const clientPort = 40000

// maxBuckets bounds how many choices of a group are followed.
const maxBuckets = 1024

// Query is a connection to follow.
type Query struct {
	From Place `json:"from"`
	// Src is the client's address.
	Src      netip.Addr     `json:"source"`
	To       netip.AddrPort `json:"to"`
	Protocol uint8          `json:"protocol"`
	// SrcPort is the client's port; 0 is any. It is what tells a packet that was sent from others: for ICMP, the
	// identifier of the echo.
	SrcPort uint16 `json:"sourcePort,omitempty"`
}

// Trace is what becomes of a connection, for every choice of a group.
type Trace struct {
	Query Query `json:"query"`
	// Verdict is the outcome of all paths; when they differ, it is that of the worst: dropped before refused.
	Verdict Outcome `json:"verdict"`
	// Decided are the objects that decided, of all paths.
	Decided []string `json:"decided"`
	// Paths are those with different ends.
	Paths []Path `json:"paths"`
	// Live is what a packet that was sent did; nil without one.
	Live *Live `json:"live,omitempty"`
}

// Path is one way that a connection may take.
type Path struct {
	// Buckets is how many of the choices take it.
	Buckets int     `json:"buckets"`
	Outcome Outcome `json:"outcome"`
	Reason  string  `json:"reason,omitempty"`
	// At is where the packet ends, As its addresses there; both are only for one that reaches something.
	At string `json:"at,omitempty"`
	As string `json:"as,omitempty"`
	// Hops are those of the first packet, Reply those of the answer to it.
	Hops  []Hop `json:"hops"`
	Reply []Hop `json:"reply,omitempty"`
	end   End
}

// End is where the path ends.
func (p Path) End() End { return p.end }

// paths follows a connection through every choice of the groups that it meets, one path for each.
func (c *Cluster) paths(q Query) iter.Seq[Path] {
	first := First(netip.AddrPortFrom(q.Src, cmp.Or(q.SrcPort, clientPort)), q.To, q.Protocol)
	return func(yield func(Path) bool) {
		for bucket, most := 0, 1; bucket < min(most, maxBuckets); bucket++ {
			v := c.Conversation(bucket)
			e := v.Connect(q.From, first)
			most = max(most, v.Most)
			p := Path{Buckets: 1, Outcome: e.Outcome, Reason: e.Reason, Hops: v.Hops, Reply: v.Back, end: e}
			if e.Outcome == Reaches {
				p.At, p.As = e.At.String(), e.Got.String()
				if e.At == (Place{}) {
					p.At = "outside"
				}
			}
			if !yield(p) {
				return
			}
		}
	}
}

// Trace follows a connection through every choice of the groups that it meets.
func (c *Cluster) Trace(q Query) Trace {
	t := Trace{Query: q, Decided: []string{}}
	for p := range c.paths(q) {
		if i := slices.IndexFunc(t.Paths, func(o Path) bool { return o.end == p.end }); i >= 0 {
			t.Paths[i].Buckets++
			continue
		}
		t.Paths = append(t.Paths, p)
		for _, hop := range slices.Concat(p.Hops, p.Reply) {
			for _, d := range hop.Decided {
				if !slices.Contains(t.Decided, d) {
					t.Decided = append(t.Decided, d)
				}
			}
		}
	}
	order := []Outcome{Dropped, Refused, Reaches}
	t.Verdict = slices.MinFunc(t.Paths, func(a, b Path) int {
		return slices.Index(order, a.Outcome) - slices.Index(order, b.Outcome)
	}).Outcome
	return t
}

// Text is the trace for people: each path with its hops, and the verdict last. Verbose adds every flow.
func (t Trace) Text(verbose bool) string {
	var b strings.Builder
	total := 0
	for _, p := range t.Paths {
		total += p.Buckets
	}
	for i, p := range t.Paths {
		if len(t.Paths) > 1 {
			fmt.Fprintf(&b, "Path %d of %d, taken by %d of %d choices\n", i+1, len(t.Paths), p.Buckets, total)
		}
		writeHops(&b, p.Hops, verbose)
		if len(p.Reply) > 0 {
			b.WriteString("reply\n")
			writeHops(&b, p.Reply, verbose)
		}
		fmt.Fprintf(&b, "=> %s\n\n", p)
	}
	fmt.Fprintf(&b, "Verdict: %s\n", t.verdictText())
	if len(t.Decided) > 0 {
		fmt.Fprintf(&b, "Decided by: %s\n", strings.Join(t.Decided, "; "))
	}
	if t.Live != nil {
		fmt.Fprintf(&b, "Live: %s\n", t.Live)
	}
	return b.String()
}

// Write writes traces for people.
func Write(w io.Writer, traces []Trace, verbose bool) error {
	for i, t := range traces {
		if i > 0 {
			fmt.Fprintln(w)
		}
		if _, err := fmt.Fprintf(w, "%s (%s) to %s, %s\n\n%s", t.Query.From, t.Query.Src, t.Query.To,
			ProtocolName(t.Query.Protocol), t.Text(verbose)); err != nil {
			return err
		}
	}
	return nil
}

// Established says whether all traces say that the connection is.
func Established(traces []Trace) bool {
	return !slices.ContainsFunc(traces, func(t Trace) bool { return t.Verdict != Reaches })
}

// String is how a path ends.
func (p Path) String() string {
	if p.Outcome == Reaches {
		return fmt.Sprintf("reaches %s as %s", p.At, p.As)
	}
	return strings.TrimSuffix(fmt.Sprintf("%s: %s", p.Outcome, p.Reason), ": ")
}

// verdictText is the verdict with where the paths end.
func (t Trace) verdictText() string {
	ends := map[Outcome][]string{}
	for _, p := range t.Paths {
		if text := cmp.Or(p.At, p.Reason); text != "" && !slices.Contains(ends[p.Outcome], text) {
			ends[p.Outcome] = append(ends[p.Outcome], text)
		}
	}
	var list []string
	for _, o := range []Outcome{Reaches, Refused, Dropped} {
		if slices.ContainsFunc(t.Paths, func(p Path) bool { return p.Outcome == o }) {
			list = append(list, strings.TrimSpace(string(o)+" "+strings.Join(ends[o], ", ")))
		}
	}
	return strings.Join(list, "; or ")
}

func writeHops(b *strings.Builder, hops []Hop, verbose bool) {
	for _, h := range hops {
		what := "switch"
		if h.Kernel {
			what = "kernel"
		}
		fmt.Fprintf(b, "%s of %s  %s\n", what, h.Node, h.In)
		if flow := 0; verbose {
			for _, s := range h.Steps {
				indent := strings.Repeat("  ", s.Depth+2)
				if s.Flow == "" {
					fmt.Fprintf(b, "%s%s: (%s)\n", indent, s.Table, s.Note)
					continue
				}
				fmt.Fprintf(b, "%s%s: %s -> %s [%s]", indent, s.Table, s.Flow, s.Actions, s.Owner)
				if s.Reason != "" {
					fmt.Fprintf(b, " # %s", s.Reason)
				}
				if h.Live != nil {
					fmt.Fprintf(b, " (live: +%d)", h.Live.Counted[flow])
					flow++
				}
				b.WriteByte('\n')
			}
		}
		for _, d := range h.Staged {
			fmt.Fprintf(b, "    if enforced: %s\n", d)
		}
		for _, d := range h.Decided {
			fmt.Fprintf(b, "    %s\n", d)
		}
		if h.Out != "" {
			fmt.Fprintf(b, "    %s\n", h.Out)
		}
		if h.Live != nil {
			h.Live.write(b)
		}
	}
}
