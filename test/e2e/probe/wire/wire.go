// Package wire is what the end-to-end suite and the probe inside its pods say to each other: the JSON values that go
// through `kubectl exec`, and the Ethernet frames that the suite composes and the probe sends.
//
// Everything here is a plain value; nothing is shared between goroutines.
package wire

import (
	"net/netip"
	"time"
)

// Proto is how a target is reached.
type Proto string

// The protocols that Dial knows.
const (
	ICMP Proto = "icmp" // echo request of Size bytes of payload
	TCP  Proto = "tcp"  // connect to the echo port, send Size bytes, read them back
	UDP  Proto = "udp"  // one datagram of Size bytes to the echo port and back
	// Connect only completes a TCP handshake: for servers that are not the probe.
	Connect Proto = "connect"
)

// Target is one thing to reach.
type Target struct {
	// Name is what failure texts call it.
	Name  string     `json:"name"`
	Proto Proto      `json:"proto"`
	Addr  netip.Addr `json:"addr"`
	Port  uint16     `json:"port,omitempty"`
	// Size is the payload in bytes: for ICMP without the 8-byte header.
	Size int `json:"size,omitempty"`
	// Opened has a datagram of 8 bytes and its echo go before that of Size bytes (UDP).
	Opened bool `json:"opened,omitempty"`
	// DontFragment makes ICMP fail rather than be fragmented on the way.
	DontFragment bool `json:"dontFragment,omitempty"`
	// Attempts bounds the tries, each of which may take Timeout.
	Attempts int           `json:"attempts"`
	Timeout  time.Duration `json:"timeout"`
}

// DialRequest is what `probe dial` reads.
type DialRequest struct {
	Targets []Target `json:"targets"`
}

// Result says how reaching one target went.
type Result struct {
	Target   Target        `json:"target"`
	Error    string        `json:"error,omitempty"`
	Attempts int           `json:"attempts"`
	RTT      time.Duration `json:"rtt"`
	// Observed is the source address that the echo server saw (TCP and UDP).
	Observed netip.AddrPort `json:"observed"`
}

// OK tells whether the target was reached.
func (r Result) OK() bool { return r.Error == "" }

// DialReply is what `probe dial` prints.
type DialReply struct {
	Results []Result `json:"results"`
}

// Transfer is what `probe transfer` prints, and Sunk what the server's /sink answers.
type Transfer struct {
	Bytes   int64   `json:"bytes"`
	SHA256  string  `json:"sha256"`
	Seconds float64 `json:"seconds,omitempty"`
}

// Steady says how a series of pings to one address, of messages through one TCP connection, or of connections went.
type Steady struct {
	Addr     netip.Addr `json:"addr"`
	Sent     int        `json:"sent"`
	Received int        `json:"received"`
	// Lost lists the sequence numbers without an answer, at most the first 100.
	Lost []int `json:"lost,omitempty"`
	// LongestGap is the longest time between two answers.
	LongestGap time.Duration `json:"longestGap"`
	MaxRTT     time.Duration `json:"maxRTT"`
	// SendErrors counts sends the kernel refused; FirstError is the first of them.
	SendErrors int    `json:"sendErrors,omitempty"`
	FirstError string `json:"firstError,omitempty"`
}

// SteadyReply is what `probe ping`, `probe stream` and `probe knock` print at the end.
type SteadyReply struct {
	Series []Steady `json:"series"`
}

// LabelledFrame is an Ethernet frame to be sent as it is.
type LabelledFrame struct {
	Label string `json:"label"`
	Data  []byte `json:"data"`
}

// LabelledDatagram is a UDP payload to be sent through an ordinary socket; the payload of GRE when the port is 0.
type LabelledDatagram struct {
	Label string         `json:"label"`
	To    netip.AddrPort `json:"to"`
	Data  []byte         `json:"data"`
}

// SpoofRequest is what `probe spoof` reads: every frame and datagram is sent Count times.
type SpoofRequest struct {
	Iface     string             `json:"iface"`
	Count     int                `json:"count"`
	Frames    []LabelledFrame    `json:"frames,omitempty"`
	Datagrams []LabelledDatagram `json:"datagrams,omitempty"`
}

// SpoofReply is what `probe spoof` prints: how many were sent under each label.
type SpoofReply struct {
	Sent map[string]int `json:"sent"`
}

// SniffReply is what `probe sniff` prints at the end: the frames received under each mark (see Mark).
type SniffReply struct {
	Seen map[string]int `json:"seen"`
	// Frames counts everything that was looked at, marked or not.
	Frames int `json:"frames"`
}

// Link is one network interface as `probe links` prints it.
type Link struct {
	Name  string         `json:"name"`
	Index int            `json:"index"`
	MTU   int            `json:"mtu"`
	MAC   string         `json:"mac,omitempty"`
	Addrs []netip.Prefix `json:"addrs,omitempty"`
}

// LinksReply is what `probe links` prints.
type LinksReply struct {
	Links []Link `json:"links"`
}

// Ready is the line that the long-running commands (ping, stream, knock, sniff) print once they are at work. They end
// when their standard input is closed, and print their reply then.
const Ready = "ready"
