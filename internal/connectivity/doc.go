// Package connectivity tests a cluster's network with pods of its own, as weftctl connectivity test runs it: servers
// and clients on every node, from the image that the agents have, and tests from one to the other. It works through
// kubectl and keeps no state but a namespace in the cluster, which Run deletes again.
//
// Serve and Dial are the programs in these pods.
package connectivity

import (
	"net/netip"
	"time"
)

// Ports of the servers: HTTP and UDP echo on Port, HTTP on OtherPort, which the policy of the test does not allow.
const (
	Port      = 8080
	OtherPort = 8081
)

// Protocol is how a Target is tried.
type Protocol string

// The protocols.
const (
	// HTTP sends Size bytes and wants them back.
	HTTP Protocol = "HTTP"
	// UDP sends a datagram of Size bytes and wants it back.
	UDP Protocol = "UDP"
	// TCP only connects.
	TCP Protocol = "TCP"
	// DNS looks a name up and wants an address.
	DNS Protocol = "DNS"
)

// LargestPacket as a Target's Size is the datagram that fills a packet of the MTU of the interface it leaves by.
const LargestPacket = -1

// Target is what a client tries to reach.
type Target struct {
	Protocol Protocol `json:"protocol"`
	// Address is host:port, or a name for DNS.
	Address string `json:"address"`
	Size    int    `json:"size,omitempty"`
	// Want are the addresses of which a name must have one.
	Want []netip.Addr `json:"want,omitempty"`
	// Attempts and Timeout, of each of them, bound the target.
	Attempts int           `json:"attempts"`
	Timeout  time.Duration `json:"timeout"`
}

// Result is what came of a Target: an empty Error is success.
type Result struct {
	Error string `json:"error,omitempty"`
	// Detail is what was tried, where the target does not say it: the size of the largest packet.
	Detail string `json:"detail,omitempty"`
}
