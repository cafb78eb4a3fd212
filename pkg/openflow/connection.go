package openflow

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Connection is an entry of the switch's connection tracker.
type Connection struct {
	Zone     uint16
	Protocol uint8 // as in IP headers
	// Source and Destination are those of the connection's first packet. Ports are 0 where the tracker knows none.
	Source, Destination netip.AddrPort
	// Endpoint is where that packet went: the destination, or what it was translated to.
	Endpoint netip.AddrPort
	// ICMP identifies the connection in the place of ports.
	ICMP ICMP
	Mark uint32
}

// ICMP is the identity of an ICMP connection.
type ICMP struct {
	ID         uint16
	Type, Code uint8
}

// Tuple is the connection's first packet as `ovs-ofctl ct-flush` and `ovs-dpctl flush-conntrack` take it. It has every
// field that identifies the connection, so the switch looks it up by hash instead of comparing all connections.
func (c Connection) Tuple() string {
	field := "ct_nw_"
	if c.Source.Addr().Is6() {
		field = "ct_ipv6_"
	}
	text := fmt.Sprintf("%ssrc=%s,%sdst=%s,ct_nw_proto=%d", field, c.Source.Addr(), field, c.Destination.Addr(),
		c.Protocol)
	if c.IsICMP() {
		return text + fmt.Sprintf(",icmp_id=%d,icmp_type=%d,icmp_code=%d", c.ICMP.ID, c.ICMP.Type, c.ICMP.Code)
	}
	return text + fmt.Sprintf(",ct_tp_src=%d,ct_tp_dst=%d", c.Source.Port(), c.Destination.Port())
}

// IsICMP says whether the connection has an ICMP identity instead of ports.
func (c Connection) IsICMP() bool { return c.Protocol == IPProtoICMP || c.Protocol == IPProtoICMPv6 }

// protocolNames are those that ct_dpif_format_ipproto knows; others are numbers.
var protocolNames = map[string]uint8{"icmp": IPProtoICMP, "igmp": 2, "tcp": IPProtoTCP, "udp": IPProtoUDP, "dccp": 33,
	"icmpv6": IPProtoICMPv6, "sctp": IPProtoSCTP, "udplite": 136}

// ParseConnection reads a line of `ovs-appctl dpctl/dump-conntrack`, or says which part of it is not understood:
//
//	udp,orig=(src=10.0.0.1,dst=10.0.0.2,sport=1,dport=2),reply=(src=10.0.0.2,dst=10.0.0.1,sport=2,dport=1),
//	  zone=22373,mark=1
func ParseConnection(line string) (c Connection, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("connection %q: %w", line, err)
		}
	}()
	protocol, rest, ok := strings.Cut(line, ",orig=(")
	orig, rest, ok2 := strings.Cut(rest, "),reply=(")
	reply, rest, ok3 := strings.Cut(rest, ")")
	if !ok || !ok2 || !ok3 {
		return c, errors.New("it has no two tuples")
	}
	if c.Protocol, ok = protocolNames[protocol]; !ok {
		if c.Protocol, err = parseNumber[uint8](protocol); err != nil {
			return c, err
		}
	}
	if c.Source, c.Destination, c.ICMP, err = parseTuple(orig, c.IsICMP()); err != nil {
		return c, err
	}
	if c.Endpoint, _, _, err = parseTuple(reply, c.IsICMP()); err != nil {
		return c, err
	}
	for rest != "" {
		var key, value string
		key, rest, ok = strings.Cut(rest, "=")
		if !ok || !strings.HasPrefix(key, ",") {
			return c, fmt.Errorf("%q is not a field", key)
		}
		if inside, found := strings.CutPrefix(rest, "("); found {
			if value, rest, ok = strings.Cut(inside, ")"); !ok {
				return c, fmt.Errorf("field %s has no end", key[1:])
			}
		} else {
			n := strings.IndexByte(rest, ',')
			if n < 0 {
				n = len(rest)
			}
			value, rest = rest[:n], rest[n:]
		}
		switch key {
		case ",zone":
			c.Zone, err = parseNumber[uint16](value)
		case ",mark":
			c.Mark, err = parseNumber[uint32](value)
		case ",labels", ",protoinfo", ",helper", ",timeout": // not of interest
		default:
			err = fmt.Errorf("unknown field %s", key[1:])
		}
		if err != nil {
			return c, err
		}
	}
	return c, nil
}

var (
	portTuple = []string{"src=", ",dst=", ",sport=", ",dport="}
	icmpTuple = []string{"src=", ",dst=", ",id=", ",type=", ",code="}
)

// parseTuple reads addresses, and ports or what ICMP has.
func parseTuple(text string, icmp bool) (src, dst netip.AddrPort, id ICMP, err error) {
	names := portTuple
	if icmp {
		names = icmpTuple
	}
	values, rest := [5]string{}, text
	for i, name := range names {
		value, ok := strings.CutPrefix(rest, name)
		if !ok {
			return src, dst, id, fmt.Errorf("tuple %q: no %s", text, strings.Trim(name, ",="))
		}
		n := strings.IndexByte(value, ',')
		if n < 0 {
			n = len(value)
		}
		values[i], rest = value[:n], value[n:]
	}
	from, err1 := netip.ParseAddr(values[0])
	to, err2 := netip.ParseAddr(values[1])
	var sport, dport uint16
	var err3, err4, err5 error
	if icmp {
		id.ID, err3 = parseNumber[uint16](values[2])
		id.Type, err4 = parseNumber[uint8](values[3])
		id.Code, err5 = parseNumber[uint8](values[4])
	} else {
		sport, err3 = parseNumber[uint16](values[2])
		dport, err4 = parseNumber[uint16](values[3])
	}
	if err = errors.Join(err1, err2, err3, err4, err5); err == nil && rest != "" {
		err = fmt.Errorf("tuple %q goes on with %q", text, rest)
	}
	return netip.AddrPortFrom(from, sport), netip.AddrPortFrom(to, dport), id, err
}

func parseNumber[T uint8 | uint16 | uint32](text string) (T, error) {
	n, err := strconv.ParseUint(text, 10, 32)
	if err == nil && uint64(T(n)) != n {
		err = fmt.Errorf("%q is too large", text)
	}
	return T(n), err
}
