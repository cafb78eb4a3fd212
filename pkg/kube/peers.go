package kube

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Peers knows where a client is connected to now: the address of the API server, or of what stands before it, however
// it was named. The zero value is ready; methods may be called from several goroutines.
type Peers struct {
	mu   sync.Mutex
	open map[netip.Addr]int
}

// Addrs are the addresses of the connections that are open, in any order.
func (p *Peers) Addrs() []netip.Addr {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []netip.Addr
	for a := range p.open {
		list = append(list, a)
	}
	return list
}

// dial is what client-go does by default, and remembers.
func (p *Peers) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	at, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return conn, nil //nolint:nilerr // not an IP connection: there is nothing to remember
	}
	p.add(at.Addr(), 1)
	return &peerConn{Conn: conn, closed: sync.OnceFunc(func() { p.add(at.Addr(), -1) })}, nil
}

func (p *Peers) add(a netip.Addr, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open == nil {
		p.open = map[netip.Addr]int{}
	}
	if p.open[a] += n; p.open[a] == 0 {
		delete(p.open, a)
	}
}

type peerConn struct {
	net.Conn
	closed func()
}

func (c *peerConn) Close() error {
	c.closed()
	return c.Conn.Close()
}
