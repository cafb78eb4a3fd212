package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"

	"github.com/weft-cni/weft/test/bench/result"
	"github.com/weft-cni/weft/test/datapath/cache"
)

// counted are the names of what a node's Open vSwitch is asked for.
var counted = []string{"entries", "masks", "upcalls", "recirculations", "flows"}

// counts makes connections on a path of a network, and counts what its switches did: on each, and then the highest.
func (t traffic) counts(ctx context.Context, n *network, p path) (found []result.Count, err error) {
	// Entries would be forgotten after ten seconds without a packet, which is less than the connections take on an
	// emulated machine.
	const key = "other_config:max-idle"
	defer func() {
		for _, s := range n.switches {
			_, undo := s.run(context.WithoutCancel(ctx), "ovs-vsctl", ovsTimeout, "remove", "Open_vSwitch", ".",
				"other_config", "max-idle")
			err = errors.Join(err, undo)
		}
	}()
	for _, s := range n.switches {
		if _, err := s.run(ctx, "ovs-vsctl", ovsTimeout, "set", "Open_vSwitch", ".", key+"=600000"); err != nil {
			return nil, err
		}
	}
	before := make([]int, len(n.switches))
	for i, s := range n.switches {
		if _, err := s.run(ctx, "ovs-appctl", "revalidator/purge"); err != nil {
			return nil, err
		}
		if before[i], err = s.upcalls(ctx); err != nil {
			return nil, err
		}
	}
	if err := t.burst(p, 0, t.connections); err != nil {
		return nil, err
	}
	highest := map[string]int{}
	for i, s := range n.switches {
		dump, err := s.run(ctx, "ovs-appctl", "dpctl/dump-flows")
		if err != nil {
			return nil, err
		}
		now, err := s.upcalls(ctx)
		if err != nil {
			return nil, err
		}
		flows, err := s.flows(ctx)
		if err != nil {
			return nil, err
		}
		entries := cache.Parse(dump)
		for name, value := range map[string]int{"entries": len(entries), "masks": cache.CountMasks(entries),
			"upcalls": now - before[i], "recirculations": cache.Recirculations(entries), "flows": flows} {
			highest[name] = max(highest[name], value)
		}
	}
	for _, name := range counted {
		found = append(found, result.Count{Case: "connections/" + p.name, System: n.system, Name: name,
			Value: highest[name]})
	}
	return found, nil
}

var (
	missedPackets = regexp.MustCompile(`lookups: hit:\d+ missed:(\d+)`)
	flowCount     = regexp.MustCompile(`flow_count=(\d+)`)
)

// upcalls are the packets that no entry of the cache matched, since the switch started.
func (s switchNode) upcalls(ctx context.Context) (int, error) {
	return s.number(ctx, missedPackets, "ovs-appctl", "dpctl/show")
}

// flows is how many flows the bridge has.
func (s switchNode) flows(ctx context.Context) (int, error) {
	return s.number(ctx, flowCount, "ovs-ofctl", "-O", "OpenFlow15", "dump-aggregate", s.bridge)
}

func (s switchNode) number(ctx context.Context, in *regexp.Regexp, args ...string) (int, error) {
	out, err := s.run(ctx, args...)
	if err != nil {
		return 0, err
	}
	match := in.FindStringSubmatch(out)
	if match == nil {
		return 0, fmt.Errorf("%v: no %s in %q", args, in, out)
	}
	return strconv.Atoi(match[1])
}
