package main

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/report"
)

// hit is a flow that packets took, and how many.
type hit struct {
	report.Flow
	packets uint64
}

// grown lists the flows whose counters grew by at least so many packets, in the order of the second reading.
func grown(before, after []report.Flow, atLeast uint64) []hit {
	type key struct {
		table    uint8
		priority uint16
		match    string
	}
	of := func(f report.Flow) key { return key{f.TableID, f.Priority, f.Match} }
	had := map[key]uint64{}
	for _, f := range before {
		had[of(f)] = f.Packets
	}
	var hits []hit
	for _, f := range after {
		if n := f.Packets - had[of(f)]; f.Packets >= had[of(f)] && n >= atLeast {
			hits = append(hits, hit{f, n})
		}
	}
	return hits
}

// packetsOf counts the packets that came in because of an object: those of its Classifier or SpoofGuard flows.
func packetsOf(hits []hit, table, owner string) uint64 {
	var n uint64
	for _, h := range hits {
		if h.Table == table && h.Owner == owner {
			n += h.packets
		}
	}
	return n
}

// render writes hits as an aligned table with short lines.
func render(hits []hit) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "TABLE\tPACKETS\tBECAUSE OF\tMATCH\tTHEN\n")
	for _, h := range hits {
		match := h.Match
		if match == "" {
			match = "(any)"
		}
		fmt.Fprintf(w, "%s\t+%d\t%s\t%s\t%s\n", h.Table, h.packets, h.Owner, match, then(h.Actions))
	}
	_ = w.Flush() // a strings.Builder takes every write
	return b.String()
}

// then says in short what a flow does: where it goes and what it decides. New MAC addresses are left out, every routed
// packet gets them.
func then(actions string) string {
	list := openflow.ParseActions(actions)
	if list.Drop() {
		return actions
	}
	var words []string
	for a := range list.All() {
		value, _, _ := a.Write()
		switch kind := a.Kind(); kind {
		case "set_field->tun_dst", "set_field->tun_ipv6_dst":
			words = append(words, "to node "+value)
		case "set_field->" + flows.OutPort.String():
			words = append(words, "by port "+value)
		case "goto_table":
			words = append(words, "→ "+a.Operand())
		case "set_field->eth_src", "set_field->eth_dst", "set_field->reg0":
		default:
			words = append(words, kind)
		}
	}
	return strings.Join(words, " ")
}
