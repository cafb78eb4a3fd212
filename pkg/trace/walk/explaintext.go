package walk

import (
	"fmt"
	"io"
	"strings"
)

// Agreed says whether all connections are allowed, and policies and flows agree.
func Agreed(list []Explanation) bool {
	for _, x := range list {
		if x.Verdict != Allowed || len(x.Disagreements) > 0 {
			return false
		}
	}
	return true
}

// WriteExplanations writes explanations for people. Loud shows what must not be overlooked.
func WriteExplanations(w io.Writer, list []Explanation, loud func(string) string) error {
	for i, x := range list {
		if i > 0 {
			fmt.Fprintln(w)
		}
		if _, err := fmt.Fprintf(w, "%s (%s) to %s, %s\n\n%s", x.Query.From, x.Query.Src, x.Query.To,
			ProtocolName(x.Query.Protocol), x.text(loud)); err != nil {
			return err
		}
	}
	return nil
}

func (x Explanation) text(loud func(string) string) string {
	var b strings.Builder
	total := 0
	for _, p := range x.Paths {
		total += p.Buckets
	}
	for i, p := range x.Paths {
		if len(x.Paths) > 1 {
			fmt.Fprintf(&b, "Path %d of %d, taken by %d of %d choices\n", i+1, len(x.Paths), p.Buckets, total)
		}
		for _, e := range p.Ends {
			e.write(&b)
		}
		if len(p.Ends) == 0 {
			b.WriteString("no pod whose policies count is at either end, or the packet does not get to them\n")
		}
		fmt.Fprintf(&b, "=> %s\n\n", p.Flows)
	}
	for _, note := range x.Notes {
		fmt.Fprintf(&b, "Note: %s\n", note)
	}
	for _, d := range x.Disagreements {
		fmt.Fprintln(&b, loud("POLICIES AND FLOWS DISAGREE: "+d))
	}
	fmt.Fprintf(&b, "Verdict: %s\n", x.Verdict)
	if x.Preview != "" {
		fmt.Fprintf(&b, "If the staged policies were enforced: %s\n", x.Preview)
	}
	return b.String()
}

func (e ExplainedEnd) write(b *strings.Builder) {
	fmt.Fprintf(b, "%s of %s on %s: %s (flows: %s)\n  %s\n", e.Direction, e.Pod, e.Node, e.Policies, e.Flows, e.Packet)
	if e.Policies == Unknown {
		fmt.Fprintf(b, "  %s\n", e.Why)
	}
	writeTiers(b, "  ", e.Tiers, e.Took)
	if p := e.Preview; p != nil {
		fmt.Fprintf(b, "  if the staged policies were enforced: %s (flows: %s)\n", p.Policies, p.Flows)
		writeTiers(b, "    ", p.Tiers, p.Took)
	}
}

func writeTiers(b *strings.Builder, indent string, tiers []ExplainedTier, took []TakenFlow) {
	for _, t := range tiers {
		verdict := t.Verdict
		if !t.Reached {
			verdict = "not reached"
		}
		fmt.Fprintf(b, "%s%-13s  %s: %s\n", indent, t.Tier, verdict, t.Decides)
		for _, p := range t.Policies {
			rule := "no rule matches"
			switch {
			case p.Rule != nil:
				rule = fmt.Sprintf("rule %d matches", *p.Rule)
			case t.Verdict != "deny":
				rule = "selects the pod"
			}
			name := p.Policy
			if p.Staged {
				name += " (staged)"
			}
			fmt.Fprintf(b, "%s  %s: %s, %d packets", indent, name, rule, p.Packets)
			if p.Problem != "" {
				fmt.Fprintf(b, "; not programmed as written: %s", p.Problem)
			}
			b.WriteByte('\n')
		}
	}
	for _, f := range took {
		fmt.Fprintf(b, "%sflow in %s: %d %s -> %s [%s] %d packets\n", indent, f.Table, f.Priority, f.Match, f.Actions,
			f.Owner, f.Packets)
	}
}
