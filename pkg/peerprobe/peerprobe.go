// Package peerprobe finds out whether packets reach peer nodes. It sends ICMP echo requests (RFC 792, RFC 4443) to
// their gateways, over the paths that pods' packets take: small ones, and some of the full size that pods may send.
//
// An answer is believed only from the address that was asked and with the random bytes of the request.
package peerprobe

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// Every is how often each peer node is asked, unless there are more than perSecond for each second of it.
	Every = 10 * time.Second
	// perSecond bounds the requests of one size that a node sends.
	perSecond = 50
	// tries is how many requests in a row must stay without an answer before a peer node counts as unreachable.
	tries = 3
)

// Peer is a node to ask.
type Peer struct {
	Name string
	// Gateways are its addresses at the end of the path, at most one of each family.
	Gateways []netip.Addr
}

// Result is what is known about a peer node. The zero value says that there is no answer and no verdict yet.
type Result struct {
	// RTT is the time that the newest small request took; 0 while there is no answer.
	RTT time.Duration
	// Problem says what does not arrive; empty while everything does, and while that is not known.
	Problem string
}

// requests is what is known about requests of one size to one address.
type requests struct {
	missed   int       // in a row
	answered time.Time // the newest answer; zero for none
}

// silent says whether as many as tries are lost. The newest may be on its way.
func (r requests) silent() bool { return r.missed > tries }

type target struct {
	small, full requests
	rtt         time.Duration
}

// request is one that waits for its answer.
type request struct {
	gateway netip.Addr
	full    bool
	sent    time.Time
}

// nonce is what makes a request's answer known.
type nonce [16]byte

// socket is how requests leave and answers come.
type socket interface {
	// send sends an echo request with this payload, at least a nonce. Its error says that the request was not sent.
	send(to netip.Addr, payload []byte) error
	// receive calls answer for each echo reply, until close is called or it fails.
	receive(answer func(from netip.Addr, payload []byte)) error
	close()
}

// Prober asks peer nodes. Its methods may be called from several goroutines.
type Prober struct {
	socket socket

	mu      sync.Mutex
	peers   []Peer
	size    int
	targets map[netip.Addr]*target
	open    map[nonce]request
	next    int // the peer whose turn it is
}

func newProber(s socket) *Prober {
	return &Prober{socket: s, targets: map[netip.Addr]*target{}, open: map[nonce]request{}}
}

// Set changes whom to ask, and the size in bytes of the largest IP packet that pods send; 0 while it is not known.
func (p *Prober) Set(peers []Peer, size int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if size != p.size {
		for _, t := range p.targets {
			t.full = requests{}
		}
		maps.DeleteFunc(p.open, func(_ nonce, r request) bool { return r.full }) // they say nothing about the new size
	}
	p.peers = slices.SortedFunc(slices.Values(peers), func(a, b Peer) int { return cmp.Compare(a.Name, b.Name) })
	p.size = size
	keep := map[netip.Addr]bool{}
	for _, peer := range peers {
		for _, addr := range peer.Gateways {
			keep[addr] = true
			if p.targets[addr] == nil {
				p.targets[addr] = &target{}
			}
		}
	}
	maps.DeleteFunc(p.targets, func(addr netip.Addr, _ *target) bool { return !keep[addr] })
	maps.DeleteFunc(p.open, func(_ nonce, r request) bool { return !keep[r.gateway] })
}

// Results are by the peer node's name.
func (p *Prober) Results() map[string]Result {
	p.mu.Lock()
	defer p.mu.Unlock()
	results := make(map[string]Result, len(p.peers))
	for _, peer := range p.peers {
		var r Result
		for _, addr := range peer.Gateways {
			t := p.targets[addr]
			r.RTT = max(r.RTT, t.rtt)
			r.Problem = cmp.Or(r.Problem, t.problem(addr, p.size))
		}
		results[peer.Name] = r
	}
	return results
}

func (t *target) problem(addr netip.Addr, size int) string {
	switch {
	case t.small.silent() && t.small.answered.IsZero():
		return fmt.Sprintf("its gateway %s has never answered", addr)
	case t.small.silent():
		return fmt.Sprintf("its gateway %s has not answered since %s", addr,
			t.small.answered.UTC().Format(time.TimeOnly)+" UTC")
	case t.full.silent() && t.small.missed <= 1:
		return fmt.Sprintf("packets of %d bytes to its gateway %s are lost and small ones arrive: a link between the nodes "+
			"has a smaller MTU than this node's underlay", size, addr)
	}
	return ""
}

// Run asks until the context ends, and then closes the sockets. An error means that answers cannot be read.
func (p *Prober) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	context.AfterFunc(ctx, p.socket.close)
	group.Go(func() error { return p.socket.receive(p.answer) })
	group.Go(func() error {
		for ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-time.After(p.ask()):
			}
		}
		return nil
	})
	return group.Wait()
}

// ask asks the peer whose turn it is, and returns the pause until the next.
func (p *Prober) ask() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.expire()
	if len(p.peers) == 0 {
		return time.Second
	}
	peer := p.peers[p.next%len(p.peers)]
	p.next = (p.next + 1) % len(p.peers)
	for _, addr := range peer.Gateways {
		p.send(addr, false)
		if p.size > 0 {
			p.send(addr, true)
		}
	}
	return max(Every/time.Duration(len(p.peers)), time.Second/perSecond)
}

// send counts a request as missed until its answer comes. What cannot be sent does not arrive either.
func (p *Prober) send(to netip.Addr, full bool) {
	var id nonce
	_, _ = rand.Read(id[:]) // never fails
	payload := id[:]
	if full {
		payload = make([]byte, max(len(id), p.size-overhead(to)))
		copy(payload, id[:])
	}
	of := p.targets[to].of(full)
	of.missed++
	p.open[id] = request{to, full, time.Now()}
	_ = p.socket.send(to, payload) // the result says so, after some tries
}

func (t *target) of(full bool) *requests {
	if full {
		return &t.full
	}
	return &t.small
}

// answer takes note of an echo reply.
func (p *Prober) answer(from netip.Addr, payload []byte) {
	var id nonce
	if copy(id[:], payload) < len(id) {
		return // shorter than a nonce; copy would leave zeros, which a nonce may end with
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	r, ok := p.open[id]
	if !ok || r.gateway != from {
		return
	}
	delete(p.open, id)
	t, now := p.targets[r.gateway], time.Now()
	*t.of(r.full) = requests{answered: now}
	if !r.full {
		t.rtt = now.Sub(r.sent)
	}
}

// expire forgets requests whose answer would come too late to say anything.
func (p *Prober) expire() {
	now := time.Now()
	maps.DeleteFunc(p.open, func(_ nonce, r request) bool { return now.Sub(r.sent) > tries*Every })
}

// overhead is what the IP header without options and the ICMP header take.
func overhead(addr netip.Addr) int {
	const icmp = 8
	if addr.Is4() {
		return 20 + icmp
	}
	return 40 + icmp
}
