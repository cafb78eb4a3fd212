//go:build integration

package datapath

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
)

// What a route sends, and how often. Sizes follow each other in turn. A slow machine gets less: 500 packets a second
// with their answers are more than an emulated one's kernel and handlers can take beside anything else.
const (
	chaosEvery = 100 * time.Millisecond
	// chaosFragmentsEvery is the same of datagrams in fragments, of which the userspace datapath loses some when more
	// complete at once than fit into a batch (see loads).
	chaosFragmentsEvery = 250 * time.Millisecond
)

var (
	chaosSizes         = []int{64, 1300}
	chaosFragmentSizes = []int{2000, 8000}
	// chaosForbiddenSizes are of what no policy allows: also fragments.
	chaosForbiddenSizes = []int{64, 2000}
)

// kind tells a receiver whether policies allow that a message reaches it.
type kind byte

const (
	allowed kind = iota + 1
	forbidden
)

// traffic is what is tried over and over one way while things break.
type traffic interface {
	label() string
	// since counts what was tried in a time and did not succeed, and measures the longest time that nothing did.
	since(from, to time.Time) (tried, lost int, gap time.Duration)
}

// series are attempts with their outcomes.
type series struct {
	name  string
	every time.Duration

	mu    sync.Mutex
	begun []time.Time // by number
	done  []bool
}

func (s *series) label() string { return s.name }

func (s *series) begin() (number int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begun, s.done = append(s.begun, time.Now()), append(s.done, false)
	return len(s.begun) - 1
}

func (s *series) succeed(number int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if number < len(s.done) {
		s.done[number] = true
	}
}

func (s *series) since(from, to time.Time) (tried, lost int, gap time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	first, _ := slices.BinarySearchFunc(s.begun, from, time.Time.Compare)
	var begin time.Time
	for i := first; i < len(s.begun) && !s.begun[i].After(to); i++ {
		tried++
		if s.done[i] {
			begin = time.Time{}
			continue
		}
		lost++
		if begin.IsZero() {
			begin = s.begun[i]
		}
		gap = max(gap, s.begun[i].Add(s.every).Sub(begin))
	}
	return tried, lost, gap
}

// succeeded counts the successes so far.
func (s *series) succeeded() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ok := range s.done {
		if ok {
			n++
		}
	}
	return n
}

// pinger sends numbered datagrams one way without end, and notes which of them come back as they were sent.
type pinger struct {
	series
	kind  kind
	sizes []int
	conn  *net.UDPConn
}

// startPinger sends until the test ends, the first time after a pause: routes that begin together would send together.
func startPinger(t *testing.T, from *client, to netip.AddrPort, k kind, sizes []int, every, pause time.Duration,
	name string) *pinger {
	t.Helper()
	every, pause = testenv.Patience(every), testenv.Patience(pause)
	p := &pinger{series: series{name: name, every: every}, kind: k, sizes: sizes}
	if err := from.ns.Do(func() (err error) {
		p.conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	end := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		select {
		case <-end:
		case <-time.After(pause):
			repeat(end, every, p.send)
		}
	})
	done.Go(p.receive)
	t.Cleanup(func() {
		close(end)
		p.conn.Close()
		done.Wait()
	})
	return p
}

// repeat calls f until the end.
func repeat(end <-chan struct{}, every time.Duration, f func()) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-end:
			return
		case <-ticker.C:
			f()
		}
	}
}

// chaosMessage is a message: its number, whether it is allowed, and bytes that follow from the number.
func chaosMessage(number uint64, k kind, size int) []byte {
	b := make([]byte, size)
	binary.BigEndian.PutUint64(b, number)
	b[8] = byte(k)
	fill(b[9:], number)
	return b
}

// isWhole tells whether a message arrived as it was sent.
func isWhole(b []byte) bool {
	return len(b) > 8 && bytes.Equal(b, chaosMessage(binary.BigEndian.Uint64(b), kind(b[8]), len(b)))
}

func (p *pinger) send() {
	number := p.begin()
	// An error is one of an earlier datagram, which then has no answer.
	_, _ = p.conn.Write(chaosMessage(uint64(number), p.kind, p.sizes[number%len(p.sizes)]))
}

func (p *pinger) receive() {
	message := make([]byte, 1<<14)
	for {
		n, err := p.conn.Read(message)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil || !isWhole(message[:n]):
			continue // a datagram was refused, or damaged; it has no answer
		}
		if number := int(binary.BigEndian.Uint64(message)); n == p.sizes[number%len(p.sizes)] {
			p.succeed(number)
		}
	}
}

// echoServer answers datagrams with themselves, and notes those that policies forbid or that are not as they were sent.
type echoServer struct {
	name string

	mu    sync.Mutex
	wrong map[string]int
}

func serveEcho(t *testing.T, at *client, port uint16) *echoServer {
	t.Helper()
	s := &echoServer{name: at.name, wrong: map[string]int{}}
	var conn *net.UDPConn
	if err := at.ns.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", &net.UDPAddr{Port: int(port)})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	var done sync.WaitGroup
	done.Go(func() {
		message := make([]byte, 1<<14)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(message)
			if err != nil {
				return
			}
			switch {
			case !isWhole(message[:n]):
				s.note(fmt.Sprintf("%d bytes from %s that nothing sent", n, from.Addr().Unmap()))
			case kind(message[8]) != allowed:
				s.note(fmt.Sprintf("a forbidden datagram of %d bytes from %s", n, from.Addr().Unmap()))
			}
			_, _ = conn.WriteToUDPAddrPort(message[:n], from) // the sender counts what it does not get
		}
	})
	t.Cleanup(func() { conn.Close(); done.Wait() })
	return s
}

func (s *echoServer) note(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wrong[what]++
}

// violations are what reached the server and must not have.
func (s *echoServer) violations() (list []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for what, times := range s.wrong {
		list = append(list, fmt.Sprintf("%s got %s, %d times", s.name, what, times))
	}
	slices.Sort(list)
	return list
}
