// Package dump reads what Open vSwitch's tools print, as far as the end-to-end tests compare it.
//
// Pure functions over text: no state, no goroutines.
package dump

import (
	"encoding/json"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"time"
)

// Flow is one line of `ovs-ofctl dump-flows`.
type Flow struct {
	Cookie   uint64
	Table    string
	Duration time.Duration
	Packets  uint64
	// Spec is what the flow does, without its counters: table, priority, match and actions.
	Spec string
}

// Identity tells flows apart by what they do and who owns them.
func (f Flow) Identity() string { return fmt.Sprintf("cookie=%#x, %s", f.Cookie, f.Spec) }

// volatile are the fields of a dumped flow that change although the flow does not. "importance" and the timeouts do
// not.
var volatile = map[string]bool{"cookie": true, "duration": true, "n_packets": true, "n_bytes": true, "idle_age": true,
	"hard_age": true}

// Flows reads `ovs-ofctl dump-flows`.
func Flows(text string) ([]Flow, error) {
	var flows []Flow
	for _, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "cookie=") { // the header of the reply
			continue
		}
		f, err := parseFlow(line)
		if err != nil {
			return nil, fmt.Errorf("read flow %q: %w", line, err)
		}
		flows = append(flows, f)
	}
	return flows, nil
}

func parseFlow(line string) (Flow, error) {
	head, actions, ok := strings.Cut(line, " actions=")
	if !ok {
		return Flow{}, fmt.Errorf("it has no actions")
	}
	var f Flow
	var kept []string
	for _, field := range strings.FieldsFunc(head, func(r rune) bool { return r == ' ' || r == ',' }) {
		name, value, _ := strings.Cut(field, "=")
		var err error
		switch name {
		case "cookie":
			f.Cookie, err = strconv.ParseUint(value, 0, 64)
		case "duration":
			f.Duration, err = time.ParseDuration(value)
		case "n_packets":
			f.Packets, err = strconv.ParseUint(value, 10, 64)
		case "table":
			f.Table = value
		}
		if err != nil {
			return Flow{}, err
		}
		if !volatile[name] {
			kept = append(kept, field)
		}
	}
	f.Spec = strings.Join(kept, ",") + " actions=" + actions
	return f, nil
}

// Port is one port's counters as `ovs-ofctl dump-ports` prints them.
type Port struct{ RxPackets, TxPackets uint64 }

// Ports reads `ovs-ofctl --names dump-ports`. Ports are named as OVS names them, without quotes.
func Ports(text string) (map[string]Port, error) {
	ports := map[string]Port{}
	var name string
	for _, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "port "); ok {
			before, after, found := strings.Cut(rest, ":")
			if !found {
				return nil, fmt.Errorf("read port counters %q: no colon", line)
			}
			name = strings.Trim(strings.TrimSpace(before), `"`)
			line = strings.TrimSpace(after)
		}
		direction, counters, found := strings.Cut(line, " pkts=")
		if name == "" || !found {
			continue
		}
		number, _, _ := strings.Cut(counters, ",")
		packets, err := strconv.ParseUint(number, 10, 64)
		if err != nil && number != "?" { // a port that does not count says so with a question mark
			return nil, fmt.Errorf("read port counters %q: %w", line, err)
		}
		port := ports[name]
		switch direction {
		case "rx":
			port.RxPackets = packets
		case "tx":
			port.TxPackets = packets
		}
		ports[name] = port
	}
	return ports, nil
}

// Difference lists what is only in after (with "+") and only in before (with "-"), sorted. Equal things that occur more
// than once count as often as they occur.
func Difference(before, after []string) []string {
	count := map[string]int{}
	for _, s := range after {
		count[s]++
	}
	for _, s := range before {
		count[s]--
	}
	var diff []string
	for s, n := range count {
		for ; n > 0; n-- {
			diff = append(diff, "+ "+s)
		}
		for ; n < 0; n++ {
			diff = append(diff, "- "+s)
		}
	}
	sort.Strings(diff)
	return diff
}

// Interfaces reads `ovs-vsctl --format=json --columns=name,external_ids list Interface`: the external_ids by name.
func Interfaces(text string) (map[string]map[string]string, error) {
	var table struct {
		Headings []string
		Data     [][]json.RawMessage
	}
	if err := json.Unmarshal([]byte(text), &table); err != nil {
		return nil, fmt.Errorf("read interfaces: %w", err)
	}
	found := map[string]map[string]string{}
	for _, row := range table.Data {
		var name string
		ids := map[string]string{}
		for i, cell := range row {
			var err error
			switch table.Headings[i] {
			case "name":
				err = json.Unmarshal(cell, &name)
			case "external_ids":
				ids, err = ovsMap(cell)
			}
			if err != nil {
				return nil, fmt.Errorf("read interfaces: column %s: %w", table.Headings[i], err)
			}
		}
		found[name] = ids
	}
	return found, nil
}

// ovsMap reads OVSDB's notation of a map, ["map",[[KEY,VALUE],…]] (RFC 7047 section 5.1).
func ovsMap(cell json.RawMessage) (map[string]string, error) {
	var kind string
	var pairs [][2]string
	if err := json.Unmarshal(cell, &[]any{&kind, &pairs}); err != nil {
		return nil, err
	}
	m := map[string]string{}
	for _, pair := range pairs {
		m[pair[0]] = pair[1]
	}
	return m, nil
}
