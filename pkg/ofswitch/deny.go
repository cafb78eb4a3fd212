package ofswitch

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"

	"github.com/digitalocean/go-openvswitch/ovs"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/openflow"
)

// Deny takes the allowed mark from connections as a denied packet of their original direction does: the switch is
// given such a packet, which looks its connection up and goes to the table PolicyDenied. The entries stay, so that
// packets of the other direction remain replies of a denied connection and do not begin one of their own. A
// connection that has ended meanwhile is not begun again.
func (s *Switch) Deny(ctx context.Context, connections []flows.Connection) error {
	return s.verdict(ctx, "deny", connections)
}

// Allow gives the mark back to connections that lost it, in the same way.
func (s *Switch) Allow(ctx context.Context, connections []flows.Connection) error {
	return s.verdict(ctx, "allow", connections, flows.AllowAgain.Set(flows.AllowAgain.Mask))
}

func (s *Switch) verdict(ctx context.Context, what string, connections []flows.Connection, before ...ovs.Action) error {
	if len(connections) == 0 {
		return nil
	}
	var b bytes.Buffer
	for _, c := range connections {
		toDenied := openflow.CT{Table: flows.PolicyDenied, Zone: c.Zone}.Action()
		text, err := openflow.Text(append(slices.Clone(before), toDenied)...)
		if err != nil {
			return fmt.Errorf("%s a connection: %w", what, err)
		}
		fmt.Fprintf(&b, "packet-out in_port=controller packet=%s actions=%s\n", hex.EncodeToString(originalPacket(c)), text)
	}
	if err := s.bundleFile(ctx, b.Bytes()); err != nil {
		return fmt.Errorf("%s %d connections: %w", what, len(connections), err)
	}
	return nil
}

// originalPacket is a packet of a connection's original direction, without MAC addresses and payload.
func originalPacket(c flows.Connection) []byte {
	var l4 []byte
	checksumAt := -1
	switch {
	case c.Protocol == openflow.IPProtoTCP: // RFC 9293: an acknowledgment of nothing
		l4 = make([]byte, 20)
		binary.BigEndian.PutUint16(l4[0:], c.Source.Port())
		binary.BigEndian.PutUint16(l4[2:], c.Destination.Port())
		l4[12], l4[13] = 5<<4, 0x10
		checksumAt = 16
	case c.Protocol == openflow.IPProtoUDP: // RFC 768
		l4 = make([]byte, 8)
		binary.BigEndian.PutUint16(l4[0:], c.Source.Port())
		binary.BigEndian.PutUint16(l4[2:], c.Destination.Port())
		binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)))
		checksumAt = 6
	case isICMP(c.Protocol): // RFC 792, RFC 4443
		l4 = make([]byte, 8)
		l4[0], l4[1] = c.ICMP.Type, c.ICMP.Code
		binary.BigEndian.PutUint16(l4[4:], c.ICMP.ID)
		checksumAt = 2
	}
	src, dst := c.Source.Addr(), c.Destination.Addr()
	if checksumAt >= 0 {
		var pseudo uint32 // RFC 768, RFC 8200 section 8.1; ICMP of IPv4 has none
		if c.Protocol != openflow.IPProtoICMP {
			pseudo = sum(src.AsSlice()) + sum(dst.AsSlice()) + uint32(c.Protocol) + uint32(len(l4))
		}
		binary.BigEndian.PutUint16(l4[checksumAt:], checksum(pseudo+sum(l4)))
	}
	return append(networkHeader(src, dst, c.Protocol, len(l4)), l4...)
}

// networkHeader is Ethernet's header and IP's, RFC 791 or RFC 8200.
func networkHeader(src, dst netip.Addr, protocol uint8, payload int) []byte {
	const ethernet, ttl = 14, 64
	if src.Is4() {
		b := make([]byte, ethernet+20)
		binary.BigEndian.PutUint16(b[12:], 0x0800)
		ip := b[ethernet:]
		ip[0], ip[8], ip[9] = 0x45, ttl, protocol
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+payload))
		copy(ip[12:], src.AsSlice())
		copy(ip[16:], dst.AsSlice())
		binary.BigEndian.PutUint16(ip[10:], checksum(sum(ip)))
		return b
	}
	b := make([]byte, ethernet+40)
	binary.BigEndian.PutUint16(b[12:], 0x86dd)
	ip := b[ethernet:]
	ip[0], ip[6], ip[7] = 0x60, protocol, ttl
	binary.BigEndian.PutUint16(ip[4:], uint16(payload))
	copy(ip[8:], src.AsSlice())
	copy(ip[24:], dst.AsSlice())
	return b
}

// sum adds the 16-bit words of an even number of bytes.
func sum(b []byte) (n uint32) {
	for i := 0; i < len(b); i += 2 {
		n += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	return n
}

// checksum is the Internet checksum of a sum (RFC 1071).
func checksum(n uint32) uint16 {
	for n > 0xffff {
		n = n>>16 + n&0xffff
	}
	return ^uint16(n)
}
