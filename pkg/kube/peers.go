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
	open map[*peerConn]bool
}

// Addrs are the addresses of the connections that are open, in any order.
func (p *Peers) Addrs() []netip.Addr {
	p.mu.Lock()
	defer p.mu.Unlock()
	seen := map[netip.Addr]bool{}
	var list []netip.Addr
	for c := range p.open {
		if !seen[c.remote] {
			seen[c.remote] = true
			list = append(list, c.remote)
		}
	}
	return list
}

// CloseFrom closes the connections from addresses that the node has lost, and returns these addresses, so that the
// client connects again at once: nothing else tells it that no answer can come any more, and a watch would be silent
// for minutes. Connections from an address that lost says nothing about stay.
func (p *Peers) CloseFrom(lost func(local netip.Addr) bool) []netip.Addr {
	p.mu.Lock()
	var gone []*peerConn
	for c := range p.open {
		if lost(c.local) {
			gone = append(gone, c)
		}
	}
	p.mu.Unlock()
	seen := map[netip.Addr]bool{}
	var list []netip.Addr
	for _, c := range gone {
		_ = c.Close() // the client's own end fails, which is what this is for
		if !seen[c.local] {
			seen[c.local] = true
			list = append(list, c.local)
		}
	}
	return list
}

// dial is what client-go does by default, and remembers.
func (p *Peers) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	remote, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return conn, nil // not an IP connection: there is nothing to remember
	}
	local, err := netip.ParseAddrPort(conn.LocalAddr().String())
	if err != nil {
		return conn, nil
	}
	c := &peerConn{Conn: conn, peers: p, local: local.Addr().Unmap(), remote: remote.Addr()}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open == nil {
		p.open = map[*peerConn]bool{}
	}
	p.open[c] = true
	return c, nil
}

type peerConn struct {
	net.Conn
	peers         *Peers
	local, remote netip.Addr
}

// Close may be called more than once.
func (c *peerConn) Close() error {
	c.peers.mu.Lock()
	delete(c.peers.open, c)
	c.peers.mu.Unlock()
	return c.Conn.Close()
}
