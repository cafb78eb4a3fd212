//go:build integration

package datapath

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"
)

// chaosEvery is the time between two datagrams of a route, which are small and large in turn.
const chaosEvery = 50 * time.Millisecond

var chaosSizes = []int{64, 1300}

// pinger sends numbered datagrams one way without end, and notes which of them are answered.
type pinger struct {
	name string
	conn *net.UDPConn

	mu       sync.Mutex
	sent     []time.Time // of each number
	answered []bool
}

func startPinger(t *testing.T, from *client, to netip.AddrPort, name string) *pinger {
	t.Helper()
	p := &pinger{name: name}
	if err := from.ns.Do(func() (err error) {
		p.conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	end := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() { p.send(end) })
	done.Go(p.receive)
	t.Cleanup(func() {
		close(end)
		p.conn.Close()
		done.Wait()
	})
	return p
}

func (p *pinger) send(end <-chan struct{}) {
	ticker := time.NewTicker(chaosEvery)
	defer ticker.Stop()
	for number := uint64(0); ; number++ {
		select {
		case <-end:
			return
		case <-ticker.C:
		}
		message := make([]byte, chaosSizes[number%uint64(len(chaosSizes))])
		binary.BigEndian.PutUint64(message, number)
		p.mu.Lock()
		p.sent, p.answered = append(p.sent, time.Now()), append(p.answered, false)
		p.mu.Unlock()
		_, _ = p.conn.Write(message) // an error is one of an earlier datagram, which then has no answer
	}
}

func (p *pinger) receive() {
	message := make([]byte, 2000)
	for {
		n, err := p.conn.Read(message)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil || n < 8:
			continue // a datagram was refused; it has no answer
		}
		number := binary.BigEndian.Uint64(message)
		p.mu.Lock()
		if number < uint64(len(p.answered)) {
			p.answered[number] = true
		}
		p.mu.Unlock()
	}
}

// since counts the datagrams that were sent in a time and have no answer, and measures the longest time that each
// datagram sent was lost.
func (p *pinger) since(from, to time.Time) (sent, lost int, gap time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var begin time.Time
	for i, at := range p.sent {
		if at.Before(from) || at.After(to) {
			continue
		}
		sent++
		if p.answered[i] {
			begin = time.Time{}
			continue
		}
		lost++
		if begin.IsZero() {
			begin = at
		}
		gap = max(gap, at.Add(chaosEvery).Sub(begin))
	}
	return sent, lost, gap
}

// echoServer answers datagrams with themselves, and notes from where they came.
type echoServer struct {
	name string
	// forbidden are addresses that policies keep away from it.
	forbidden []netip.Addr

	mu      sync.Mutex
	sources map[netip.Addr]bool
}

func serveEcho(t *testing.T, at *client, port uint16) *echoServer {
	t.Helper()
	s := &echoServer{name: at.name, sources: map[netip.Addr]bool{}}
	var conn *net.UDPConn
	if err := at.ns.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", &net.UDPAddr{Port: int(port)})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	var done sync.WaitGroup
	done.Go(func() {
		message := make([]byte, 2000)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(message)
			if err != nil {
				return
			}
			s.mu.Lock()
			s.sources[from.Addr().Unmap()] = true
			s.mu.Unlock()
			_, _ = conn.WriteToUDPAddrPort(message[:n], from) // the sender counts what it does not get
		}
	})
	t.Cleanup(func() { conn.Close(); done.Wait() })
	return s
}

// strangers are the forbidden addresses that reached the server.
func (s *echoServer) strangers() (list []netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.forbidden {
		if s.sources[a] {
			list = append(list, a)
		}
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return list
}
