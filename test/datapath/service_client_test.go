//go:build integration

package datapath

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/lab"
	"github.com/weft-cni/weft/test/lab/podns"
)

// client is a place that connections come from.
type client struct {
	name string // namespace/name of a pod, or outside
	node string
	kind string // pod, node or outside
	ns   podns.Namespace
	ips  []netip.Addr
	// bound are the addresses of which dialFrom binds the one of the family. Without any, the kernel chooses.
	bound []netip.Addr
	// underWay is told by outcome.
	underWay underWay
}

// underWay knows which of a client's connections have not ended.
type underWay struct {
	mu   sync.Mutex
	next int
	open map[int]bool
}

// begin returns what ends it.
func (u *underWay) begin() (end func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.open == nil {
		u.open = map[int]bool{}
	}
	n := u.next
	u.next++
	u.open[n] = true
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		delete(u.open, n)
	}
}

// begun is how many there have been so far.
func (u *underWay) begun() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.next
}

// before is how many have not ended of the first ones.
func (u *underWay) before(begun int) (left int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for n := range u.open {
		if n < begun {
			left++
		}
	}
	return left
}

func openClient(t *testing.T, s lab.Status, name, node, kind string) *client {
	t.Helper()
	c := &client{name: name, node: node, kind: kind, ips: s.Outside.Addrs}
	path := fmt.Sprintf("/proc/%d/ns/net", s.Outside.Sandbox.Holder.PID)
	if kind != "outside" {
		p, err := s.Find(name)
		if err != nil {
			t.Fatal(err)
		}
		if node != "" && p.Node != node {
			t.Fatalf("pod %s is on %s, want %s", name, p.Node, node)
		}
		c.name, c.ips, c.node, path = p.Namespace+"/"+p.Name, p.IPs, p.Node, p.NetNS
	}
	var err error
	if c.ns, err = podns.Open(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.ns.Close() })
	return c
}

func (c *client) addr(v4 bool) netip.Addr { return of(c.ips, v4) }

// How many connections one case makes: until each of two endpoints should have been seen, and enough to see one that
// should not.
const (
	leastDials = 8
	mostDials  = 64
)

// try makes connections until all that is expected was seen.
func (c *client) try(to target, want expectation) experience {
	got := experience{reached: map[string][]netip.Addr{}, outcomes: map[podns.Outcome]int{}}
	patience, least, most := testenv.Patience(5*time.Second), leastDials, mostDials
	switch want.outcome {
	case podns.Silent:
		// TCP repeats a first packet that was lost after a second
		patience, least, most = testenv.Patience(2*time.Second), 1, 1
	case podns.Refused:
		least, most = 2, 2
	}
	for got.dials < most && (got.dials < least || len(got.reached) < len(want.sources)) {
		answer, err := c.ns.Dial(to.proto, to.addr, patience)
		got.dials++
		if err != nil {
			answer = podns.Answer{Outcome: podns.Silent, Detail: err.Error()}
		}
		got.outcomes[answer.Outcome]++
		switch source := answer.Source.Addr(); {
		case answer.Outcome != want.outcome:
			got.detail = answer.Detail
			return got
		case answer.Outcome == podns.Answered && !slices.Contains(got.reached[answer.Name], source):
			got.reached[answer.Name] = append(got.reached[answer.Name], source)
		}
	}
	return got
}
