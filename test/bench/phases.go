package main

import (
	"fmt"
	"io"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/weft-cni/weft/test/bench/result"
)

// phases collects what the CNI server measures. It is called from the server's goroutines.
type phases struct {
	mu   sync.Mutex
	took map[string][]float64 // in milliseconds
}

func (p *phases) observe(command, phase string, d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := command + " " + phase
	p.took[key] = append(p.took[key], float64(d.Microseconds())/1e3)
}

func (p *phases) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.took = map[string][]float64{}
}

// phaseNames are the server's phases, in the order in which they begin. Those of an ADD overlap.
var phaseNames = []struct{ command, phase, text string }{
	{"ADD", "total", "in the agent"},
	{"ADD", "flows", "  flows compiled and programmed"},
	{"ADD", "veth", "  veth pair made"},
	{"ADD", "pod", "  pod's end configured"},
	{"ADD", "port", "  OVSDB port added and programmed"},
	{"DEL", "total", "in the agent"},
	{"DEL", "remove-flows", "  flows removed"},
	{"DEL", "remove-port", "  OVSDB port removed"},
	{"DEL", "remove-link", "  veth pair deleted"},
}

// print shows where the time of Weft's ADDs and DELs went in the agent. The rest is libcni, the start of weft-cni and
// its socket.
func (p *phases) print(w io.Writer) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.took) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nWEFT'S CNI\tPHASE\tMEDIAN\tms")
	for _, n := range phaseNames {
		median := result.Quantile(p.took[n.command+" "+n.phase], 0.5)
		fmt.Fprintf(t, "%s\t%s\t%s\t\n", n.command, n.text, result.Number(median))
	}
	return t.Flush()
}
