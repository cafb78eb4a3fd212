package wire

import (
	"net/netip"
	"time"
)

// Query is one name to look up.
type Query struct {
	Name string `json:"name"`
	IPv4 bool   `json:"ipv4"` // its IPv4 addresses; otherwise those of IPv6
	// Server is who is asked, over Net (udp or tcp). Without one it is as /etc/resolv.conf says.
	Server  netip.AddrPort `json:"server"`
	Net     string         `json:"net,omitempty"`
	Timeout time.Duration  `json:"timeout"`
}

// ResolveRequest is what `probe resolve` reads.
type ResolveRequest struct {
	Queries []Query `json:"queries"`
}

// Answer says what a name's addresses are, in order.
type Answer struct {
	Query Query         `json:"query"`
	Addrs []netip.Addr  `json:"addrs,omitempty"`
	Error string        `json:"error,omitempty"`
	RTT   time.Duration `json:"rtt"`
}

// ResolveReply is what `probe resolve` prints.
type ResolveReply struct {
	Answers []Answer `json:"answers"`
}
