package peerprobe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const delay = 2 * time.Millisecond

var (
	one  = netip.MustParseAddr("10.244.1.1")
	two  = netip.MustParseAddr("10.244.2.1")
	two6 = netip.MustParseAddr("fd44:2::1")
)

// network is a socket whose gateways answer after delay unless lose says otherwise.
type network struct {
	mu     sync.Mutex
	lose   func(to netip.Addr, size int) bool
	sent   map[int]int // requests by size of the IP packet
	answer func(netip.Addr, []byte)
	closed chan struct{}
}

func newNetwork() *network { return &network{sent: map[int]int{}, closed: make(chan struct{})} }

func (n *network) send(to netip.Addr, payload []byte) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	size := len(payload) + overhead(to)
	n.sent[size]++
	if n.lose != nil && n.lose(to, size) {
		return errors.New("no route to host")
	}
	time.AfterFunc(delay, func() { n.reply(to, payload) })
	return nil
}

func (n *network) reply(from netip.Addr, payload []byte) {
	n.mu.Lock()
	answer := n.answer
	n.mu.Unlock()
	answer(from, payload)
}

func (n *network) receive(answer func(netip.Addr, []byte)) error {
	n.mu.Lock()
	n.answer = answer
	n.mu.Unlock()
	<-n.closed
	return nil
}

func (n *network) close() { close(n.closed) }

func (n *network) lost(lose func(to netip.Addr, size int) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lose = lose
}

// asking calls do beside a Prober that asks these peers, in a bubble of time. The prober begins a millisecond later, so
// that do, which sleeps for whole requests, never acts at the moment at which the prober asks or is answered.
func asking(t *testing.T, peers []Peer, size int, do func(n *network, p *Prober)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		p := newProber(n)
		p.Set(peers, size)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			time.Sleep(time.Millisecond)
			ended <- p.Run(ctx)
		}()
		do(n, p)
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

var pair = []Peer{{"two", []netip.Addr{two, two6}}, {"one", []netip.Addr{one}}}

func TestAnswers(t *testing.T) {
	asking(t, pair, 1450, func(n *network, p *Prober) {
		for name, r := range p.Results() {
			if r != (Result{}) {
				t.Errorf("node %s before it is asked: %+v", name, r)
			}
		}
		time.Sleep(Every)
		for _, name := range []string{"one", "two"} {
			if r := p.Results()[name]; r != (Result{RTT: delay}) {
				t.Errorf("node %s: %+v", name, r)
			}
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.sent[1450] < 3 || len(n.sent) != 3 { // and the small ones of both families
			t.Errorf("packets of these sizes were sent: %v", n.sent)
		}
	})
}

// TestSilence: a node is named after three requests without an answer, with when it answered last, and no more as soon
// as it answers.
func TestSilence(t *testing.T) {
	asking(t, pair, 1450, func(n *network, p *Prober) {
		n.lost(func(to netip.Addr, _ int) bool { return to == one })
		time.Sleep(3*Every - delay)
		if r := p.Results()["one"]; r.Problem != "" {
			t.Errorf("after three requests: %q", r.Problem)
		}
		time.Sleep(Every)
		if r := p.Results()["one"]; r.Problem != "its gateway 10.244.1.1 has never answered" || r.RTT != 0 {
			t.Errorf("a node that never answered: %+v", r)
		}
		if r := p.Results()["two"]; r.Problem != "" {
			t.Errorf("its neighbor: %q", r.Problem)
		}
		n.lost(nil)
		time.Sleep(Every + delay)
		if r := p.Results()["one"]; r.Problem != "" || r.RTT != delay {
			t.Errorf("when it answers: %+v", r)
		}
		p.mu.Lock()
		// One family is asked in two sizes, and requests are forgotten after the time of as many as make a verdict.
		if most := 2 * (tries + 1); len(p.open) > most {
			t.Errorf("%d requests wait for an answer, want at most %d", len(p.open), most)
		}
		p.mu.Unlock()
		last := time.Now().UTC()
		n.lost(func(to netip.Addr, _ int) bool { return to == two6 })
		time.Sleep(5 * Every)
		r := p.Results()["two"]
		var at time.Time
		text, ok := strings.CutPrefix(r.Problem, "its gateway fd44:2::1 has not answered since ")
		if ok {
			at, _ = time.Parse(time.TimeOnly+" MST", text)
		}
		if since := last.Sub(time.Date(last.Year(), last.Month(), last.Day(), at.Hour(), at.Minute(), at.Second(), 0,
			time.UTC)); !ok || since < 0 || since > Every {
			t.Errorf("one family is silent since %s: %q", last.Format(time.TimeOnly), r.Problem)
		}
	})
}

// TestFullSize: the loss of full-sized packets alone is named, and forgotten with the size.
func TestFullSize(t *testing.T) {
	asking(t, pair, 1450, func(n *network, p *Prober) {
		n.lost(func(to netip.Addr, size int) bool { return to == two && size > 1400 })
		time.Sleep(5 * Every)
		want := "packets of 1450 bytes to its gateway 10.244.2.1 are lost and small ones arrive: a link between the nodes " +
			"has a smaller MTU than this node's underlay"
		if r := p.Results()["two"]; r.Problem != want || r.RTT != delay {
			t.Errorf("full-sized packets are lost: %+v", r)
		}
		p.Set(pair, 1500)
		p.ask()
		p.ask()
		p.Set(pair, 1400)
		time.Sleep(delay)
		synctest.Wait() // the answers have come
		p.mu.Lock()
		if at := p.targets[one].full.answered; !at.IsZero() {
			t.Errorf("an answer of another size counts, of %s", at)
		}
		p.mu.Unlock()
		if r := p.Results()["two"]; r.Problem != "" {
			t.Errorf("with another size: %q", r.Problem)
		}
		time.Sleep(5 * Every)
		if r := p.Results()["two"]; r.Problem != "" {
			t.Errorf("with a size that fits: %q", r.Problem)
		}
	})
}

// TestForgedAnswers: without the request's bytes, and from elsewhere, an answer says nothing.
func TestForgedAnswers(t *testing.T) {
	asking(t, pair, 0, func(n *network, p *Prober) {
		n.lost(func(to netip.Addr, _ int) bool { return to == one })
		for range 5 {
			time.Sleep(Every)
			var seen []byte
			p.mu.Lock()
			for id, r := range p.open {
				if r.gateway == one {
					seen = id[:]
				}
			}
			p.mu.Unlock()
			n.reply(one, make([]byte, len(seen)))
			n.reply(one, seen[:len(seen)-1])
			n.reply(two, seen)
		}
		if r := p.Results()["one"]; r.Problem != "its gateway 10.244.1.1 has never answered" {
			t.Errorf("after forged answers: %+v", r)
		}
	})
}

// TestManyPeers: the rate is bounded, every node is asked in its turn, and what is remembered goes with the nodes.
func TestManyPeers(t *testing.T) {
	var peers []Peer
	for i := range 1000 {
		peers = append(peers, Peer{fmt.Sprint("n", i), []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1})}})
	}
	asking(t, peers, 1450, func(n *network, p *Prober) {
		time.Sleep(20 * time.Second)
		n.mu.Lock()
		if n.sent[1450] < 990 || n.sent[1450] > 1001 {
			t.Errorf("%d requests of a size in 20 s, want 50 a second", n.sent[1450])
		}
		n.mu.Unlock()
		for name, r := range p.Results() {
			if r.Problem != "" {
				t.Errorf("node %s: %s", name, r.Problem)
			}
		}
		p.Set(nil, 1450)
		p.mu.Lock()
		if len(p.targets) > 0 || len(p.open) > 0 {
			t.Errorf("%d targets and %d requests are kept without peers", len(p.targets), len(p.open))
		}
		p.mu.Unlock()
		p.Set(peers[:1], 1450)
		time.Sleep(Every)
		if r := p.Results()["n0"]; len(p.Results()) != 1 || r.RTT != delay {
			t.Errorf("a node that comes back: %+v", r)
		}
	})
}
