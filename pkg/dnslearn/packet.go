package dnslearn

import (
	"errors"
	"net/netip"

	"github.com/weft-cni/weft/pkg/capture"
	"github.com/weft-cni/weft/pkg/openflow"
)

// packet is what a frame has of UDP or TCP.
type packet struct {
	from, to netip.AddrPort
	tcp      bool
	seq      uint32
	syn      bool // of TCP
	payload  []byte
}

var errFrame = errors.New("not a whole UDP or TCP packet")

// tcpSYN is the flag SYN of TCP.
const tcpSYN = 0x02

// parseFrame reads an Ethernet frame. Later fragments are not read; of a first fragment the payload is what it has.
func parseFrame(frame []byte) (packet, error) {
	h := capture.Parse(frame, false)
	tcp := h.Protocol == openflow.IPProtoTCP
	if !tcp && h.Protocol != openflow.IPProtoUDP || h.Offset > 0 || len(h.Data) != h.Payload {
		return packet{}, errFrame
	}
	return packet{from: netip.AddrPortFrom(h.Src, h.SrcPort), to: netip.AddrPortFrom(h.Dst, h.DstPort), tcp: tcp,
		seq: h.TCPSequence, syn: tcp && h.TCPFlags&tcpSYN != 0, payload: h.Data}, nil
}
