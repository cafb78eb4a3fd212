package model

import (
	"net/netip"
	"slices"
)

// LearnedName is what answers of the trusted DNS servers have said of a domain name. Both lists are sorted and have no
// address in common.
type LearnedName struct {
	// Addrs are the addresses whose TTL runs.
	Addrs []netip.Addr
	// Ended are those whose TTL is over and to which there are still connections: only these go on.
	Ended []netip.Addr
}

// MaxNameAddrs is how many Addrs a name has at most, and how many Ended.
const MaxNameAddrs = 100

// Empty says that nothing is known of the name.
func (n LearnedName) Empty() bool { return len(n.Addrs)+len(n.Ended) == 0 }

// Equal compares by content.
func (n LearnedName) Equal(other LearnedName) bool {
	return slices.Equal(n.Addrs, other.Addrs) && slices.Equal(n.Ended, other.Ended)
}

// DNSServers are the servers whose answers are believed.
type DNSServers struct {
	// Services are namespace/name: the Service's addresses with port 53, and the endpoints of that port.
	Services []string
	// Addrs are further servers.
	Addrs []netip.AddrPort
}

// Equal compares by content.
func (d DNSServers) Equal(other DNSServers) bool {
	return slices.Equal(d.Services, other.Services) && slices.Equal(d.Addrs, other.Addrs)
}

// DNSPort is the port of DNS servers.
const DNSPort = 53
