package main

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

// phases collects what the server measures. It is called from the server's goroutines.
type phases struct {
	mu   sync.Mutex
	took map[string][]time.Duration
}

func (p *phases) observe(command, phase string, d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := command + " " + phase
	p.took[key] = append(p.took[key], d)
}

func (p *phases) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.took = map[string][]time.Duration{}
}

func (p *phases) median(key string) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return quantile(p.took[key], 0.5)
}

func quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(d))
	return sorted[int(q*float64(len(sorted)-1))]
}

func report(weft, bridge *contender, rounds, pods int, datapath string) {
	fmt.Printf("CNI through libcni, %d of each in turns, %d pods standing, OVS datapath %s\n\n", rounds, pods, datapath)
	fmt.Printf("%-5s %14s %14s %7s   %s\n", "", "weft", "bridge+h-l", "ratio", "90th percentile: weft, bridge")
	for _, c := range []struct {
		command      string
		weft, bridge []time.Duration
	}{{"ADD", weft.adds, bridge.adds}, {"DEL", weft.dels, bridge.dels}} {
		w, b := quantile(c.weft, 0.5), quantile(c.bridge, 0.5)
		fmt.Printf("%-5s %14s %14s %7.2f   %s, %s\n", c.command, round(w), round(b), float64(w)/float64(b),
			round(quantile(c.weft, 0.9)), round(quantile(c.bridge, 0.9)))
	}
	fmt.Printf("\nWhere Weft's median goes (indented phases overlap):\n")
	for _, c := range []struct {
		command string
		total   time.Duration
		phases  [][2]string
	}{
		{"ADD", quantile(weft.adds, 0.5), [][2]string{{"flows", "flows compiled and programmed"}, {"veth", "veth pair made"},
			{"pod", "pod's end configured"}, {"port", "OVSDB port added and programmed"}}},
		{"DEL", quantile(weft.dels, 0.5), [][2]string{{"remove-flows", "flows removed"},
			{"remove-port", "OVSDB port removed"}, {"remove-link", "veth pair deleted"}}},
	} {
		server := weft.phases.median(c.command + " total")
		fmt.Printf("  %s  %-32s %10s\n", c.command, "libcni, exec, start-up, socket", round(c.total-server))
		fmt.Printf("       %-32s %10s\n", "in the agent", round(server))
		for _, p := range c.phases {
			fmt.Printf("         %-30s %10s\n", p[1], round(weft.phases.median(c.command+" "+p[0])))
		}
	}
}

func round(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }
