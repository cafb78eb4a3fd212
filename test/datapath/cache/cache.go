// Package cache reads what `ovs-appctl dpctl/dump-flows` prints: the entries of a datapath's cache. It tells in which
// fields entries differ, and how often a packet of an established connection is recirculated.
//
// It keeps no state; everything is computed from the text.
package cache

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Entry is one entry: the values that it matches, by field, and what it does. Nested fields have both names: ipv4.src.
type Entry struct {
	Match   map[string]string
	Actions string
}

// Parse reads a dump. Lines without actions are not entries.
func Parse(dump string) []Entry {
	var entries []Entry
	for line := range strings.Lines(dump) {
		line = strings.TrimSpace(line)
		match, actions, ok := strings.Cut(line, ", actions:")
		if !ok {
			continue
		}
		match, _, _ = strings.Cut(match, ", packets:")
		if strings.HasPrefix(match, "ufid:") {
			_, match, _ = strings.Cut(match, ", ")
		}
		e := Entry{Match: map[string]string{}, Actions: actions}
		e.take("", match)
		entries = append(entries, e)
	}
	return entries
}

// take reads fields that are separated by commas: name(value), name(fields), name=value.
func (e Entry) take(prefix, text string) {
	for _, part := range split(text) {
		name, value, nested := strings.Cut(part, "(")
		if key, rest, ok := strings.Cut(name, "="); ok || !nested {
			// A value may have parentheses of its own: flags(…) of a tunnel.
			if nested {
				rest += "(" + value
			}
			e.Match[prefix+key] = rest
			continue
		}
		value = strings.TrimSuffix(value, ")")
		if strings.Contains(value, "=") || strings.Contains(value, "(") {
			e.take(prefix+name+".", value)
		} else {
			e.Match[prefix+name] = value
		}
	}
}

// split cuts at the commas outside of parentheses.
func split(text string) (parts []string) {
	depth, begin := 0, 0
	for i, r := range text + "," {
		switch {
		case r == '(':
			depth++
		case r == ')':
			depth--
		case r == ',' && depth == 0:
			if part := strings.TrimSpace(text[begin:i]); part != "" {
				parts = append(parts, part)
			}
			begin = i + 1
		}
	}
	return parts
}

// mask is the part of a value that says which bits are matched; it is empty where all are.
func mask(value string) string {
	if _, m, ok := strings.Cut(value, "/"); ok {
		return "/" + m
	}
	return ""
}

// shape names the fields of an entry with their masks.
func (e Entry) shape() string {
	var fields []string
	for _, name := range slices.Sorted(maps.Keys(e.Match)) {
		fields = append(fields, name+mask(e.Match[name]))
	}
	return strings.Join(fields, ",")
}

// CountMasks is how many kinds of entries there are: those that match the same bits of the same fields are one. The
// datapath has a subtable for each, and may look a packet up in all of them.
func CountMasks(entries []Entry) int {
	shapes := map[string]bool{}
	for _, e := range entries {
		shapes[e.shape()] = true
	}
	return len(shapes)
}

// Masks describes entries for a person: those that match the same bits of the same fields in one line, with the
// fields in which they differ. The largest group is first.
func Masks(entries []Entry) string {
	groups := map[string][]Entry{}
	for _, e := range entries {
		groups[e.shape()] = append(groups[e.shape()], e)
	}
	shapes := slices.SortedFunc(maps.Keys(groups), func(a, b string) int {
		if n := len(groups[b]) - len(groups[a]); n != 0 {
			return n
		}
		return strings.Compare(a, b)
	})
	var text strings.Builder
	for _, shape := range shapes {
		group := groups[shape]
		var differ []string
		for _, name := range slices.Sorted(maps.Keys(group[0].Match)) {
			values := map[string]bool{}
			for _, e := range group {
				values[e.Match[name]] = true
			}
			if len(values) > 1 {
				differ = append(differ, fmt.Sprintf("%s (%d values)", name, len(values)))
			}
		}
		switch {
		case len(group) == 1:
			fmt.Fprintf(&text, "1 entry matches %s\n", shape)
		case len(differ) == 0:
			fmt.Fprintf(&text, "%d entries match %s\n", len(group), shape)
		default:
			fmt.Fprintf(&text, "%d entries differ only in %s; all match %s\n", len(group), strings.Join(differ, ", "), shape)
		}
	}
	return text.String()
}

// Recirculations is how often the datapath recirculates a packet of an established connection at most, on its way
// from a port: along entries that do not demand a new connection, and only as far as the dump has entries for it.
func Recirculations(entries []Entry) int { return len(deepest(entries)) }

// deepest are the entries in whose actions the recirculations are of the packet that has most of them.
func deepest(entries []Entry) []Entry {
	byID := map[string][]Entry{}
	for _, e := range entries {
		byID[e.Match["recirc_id"]] = append(byID[e.Match["recirc_id"]], e)
	}
	var follow func(id string, before []Entry) []Entry
	follow = func(id string, before []Entry) []Entry {
		most := before
		for _, e := range byID[id] {
			if strings.Contains(e.Match["ct_state"], "+new") {
				continue
			}
			for _, next := range recirculatesTo(e.Actions) {
				if slices.ContainsFunc(before, func(b Entry) bool { return b.Match["recirc_id"] == next }) {
					continue
				}
				if found := follow(next, append(slices.Clone(before), e)); len(found) > len(most) {
					most = found
				}
			}
		}
		return most
	}
	return follow("0", nil)
}

// Chain describes, for a person, the way of the packet that is recirculated most often.
func Chain(entries []Entry) string {
	var text strings.Builder
	for _, e := range deepest(entries) {
		for _, name := range slices.Sorted(maps.Keys(e.Match)) {
			fmt.Fprintf(&text, "%s=%s ", name, e.Match[name])
		}
		fmt.Fprintf(&text, "actions:%s\n", e.Actions)
	}
	return text.String()
}

func recirculatesTo(actions string) (ids []string) {
	for _, part := range strings.Split(actions, "recirc(")[1:] {
		id, _, _ := strings.Cut(part, ")")
		ids = append(ids, id)
	}
	return ids
}
