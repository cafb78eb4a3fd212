// Package capture says which packets at a node's ports are wanted, and shows those that were seen: it decodes their
// headers, filters them, names their addresses, and writes them as lines or as pcapng. The agent runs a capture (Run)
// of what a socket reads (package tap); weftctl shows the records that the agent sends.
//
// Run belongs to one goroutine and starts none. Everything else is a value or a pure function. The package builds on
// every system, since weftctl does.
package capture

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Bounds of a capture. A capture that reaches one ends and says so.
const (
	MaxPackets = 1_000_000
	MaxBytes   = 1 << 30
	MaxTime    = time.Hour
	// MinSnapLen holds the headers of a packet in a tunnel: filters need them.
	MinSnapLen = 192
	// MaxSnapLen is more than a packet has that a virtual link carries unsegmented.
	MaxSnapLen = 1 << 17

	DefaultPackets = 10_000
	DefaultBytes   = 64 << 20
	DefaultTime    = 10 * time.Minute
)

// The places beside pods and Services.
const (
	// AtGateway is the port between the node's kernel and the switch.
	AtGateway = "gateway"
	// AtTunnel is the underlay, where packets to and from other nodes are encapsulated.
	AtTunnel = "tunnel"
	// AtAll is every port of the node: of pods, AtGateway and AtTunnel, where packets need no encapsulation then.
	AtAll = "all ports"
)

// Request is what to capture. Zero bounds are the defaults.
type Request struct {
	// At is AtGateway, AtTunnel, AtAll, or the name of a pod or Service: [NAMESPACE/]NAME, with Kind to tell them apart.
	At   string `json:"at"`
	Kind string `json:"kind,omitempty"`
	// Peer limits packets to those from or to it: an address, a CIDR, or a pod, Service or node as At names them.
	Peer     string `json:"peer,omitempty"`
	PeerKind string `json:"peerKind,omitempty"`
	// Port limits packets to those from or to it, Protocol to those of it.
	Port     uint16   `json:"port,omitempty"`
	Protocol Protocol `json:"protocol,omitempty"`
	// SnapLen is how many bytes of each packet are kept.
	SnapLen int           `json:"snapLen,omitempty"`
	Packets int           `json:"packets,omitempty"`
	Bytes   int64         `json:"bytes,omitempty"`
	Time    time.Duration `json:"time,omitempty"`
}

// Complete checks a request and fills in defaults. The error names everything that is wrong.
func (r Request) Complete() (Request, error) {
	var wrong []string
	bound := func(name string, value *int64, least, most, otherwise int64) {
		if *value == 0 {
			*value = otherwise
		}
		if *value < least || *value > most {
			wrong = append(wrong, fmt.Sprintf("%s %d: want %d to %d", name, *value, least, most))
		}
	}
	snap, packets, length := int64(r.SnapLen), int64(r.Packets), int64(r.Time/time.Millisecond)
	bound("length of a packet", &snap, MinSnapLen, MaxSnapLen, MaxSnapLen)
	bound("number of packets", &packets, 1, MaxPackets, DefaultPackets)
	bound("number of bytes", &r.Bytes, 1, MaxBytes, DefaultBytes)
	bound("time in milliseconds", &length, 1, MaxTime.Milliseconds(), DefaultTime.Milliseconds())
	r.SnapLen, r.Packets, r.Time = int(snap), int(packets), time.Duration(length)*time.Millisecond
	if r.At == "" {
		wrong = append(wrong, "no pod, Service, "+AtGateway+" or "+AtTunnel+" is named")
	}
	if r.Protocol != "" && !r.Protocol.known() {
		wrong = append(wrong, fmt.Sprintf("protocol %q: want %s", r.Protocol, strings.Join(protocolNames(), ", ")))
	}
	if r.Port != 0 && r.Protocol == ICMP {
		wrong = append(wrong, "ICMP has no ports")
	}
	if len(wrong) > 0 {
		return r, fmt.Errorf("capture: %s", strings.Join(wrong, "; "))
	}
	return r, nil
}

// Port is a place where packets are seen.
type Port struct {
	// Name is what is at the port: a pod as NAMESPACE/NAME, AtGateway or AtTunnel.
	Name string `json:"name"`
	// Link is the node's network device.
	Link string `json:"link"`
	// Tunnel says that packets are encapsulated, of AtAll those of tunnels.
	Tunnel bool `json:"tunnel,omitempty"`
}

// Packet is a packet that was seen.
type Packet struct {
	// Port is the index in the list of ports.
	Port int       `json:"port"`
	Time time.Time `json:"time"`
	// To says that the packet goes to what is at the port, not that it comes from there.
	To bool `json:"to"`
	// Length is that of the whole packet, Data its beginning.
	Length int    `json:"length"`
	Data   []byte `json:"data"`
}

// Name is the name of an address, from now on.
type Name struct {
	Addr netip.Addr `json:"address"`
	// Name is empty when the address has no name any more.
	Name string `json:"name"`
}

// End is why a capture has ended.
type End struct {
	Reason string `json:"reason"`
	// Failed says that the reason is a fault, not a bound of the request.
	Failed bool `json:"failed,omitempty"`
}

// Record is a message of the agent. The first one has the ports, and is sent once packets are captured; the last one
// has the end.
type Record struct {
	Ports  []Port  `json:"ports,omitempty"`
	Name   *Name   `json:"name,omitempty"`
	Packet *Packet `json:"packet,omitempty"`
	// Lost is how many wanted packets were lost so far because they came faster than they were read.
	Lost uint64 `json:"lost,omitempty"`
	End  *End   `json:"end,omitempty"`
}
