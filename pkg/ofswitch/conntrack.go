package ofswitch

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/unixctl"
)

// Connections reads a zone of the connection tracker and then calls each with every connection. A line that cannot be
// parsed is an error, returned after all others were read. ovs-vswitchd does nothing else meanwhile: 100,000
// connections take its main thread 0.6 s.
func (s *Switch) Connections(ctx context.Context, zone uint16, each func(flows.Connection)) error {
	text, err := s.dpctl(ctx, "dpctl/dump-conntrack", s.datapath(), fmt.Sprintf("zone=%d", zone))
	if err != nil {
		return fmt.Errorf("read the connections: %w", err)
	}
	bad, lines := error(nil), 0
	for line := range strings.Lines(text) {
		c, err := parseConnection(strings.TrimSuffix(line, "\n"))
		if err == nil && c.Zone != zone {
			err = fmt.Errorf("connection %q is not of zone %d", strings.TrimSpace(line), zone)
		}
		if err != nil {
			bad, lines = err, lines+1
			continue
		}
		each(c)
	}
	if bad != nil {
		return fmt.Errorf("read the connections: %d lines cannot be parsed, such as: %w", lines, bad)
	}
	return nil
}

// Remove removes a connection from the tracker. Idempotent: a connection that does not exist is not an error. The next
// packet begins a new connection.
func (s *Switch) Remove(ctx context.Context, c flows.Connection) error {
	switch {
	case !s.userspace && !isNamed(c.Protocol):
		return removeFromKernel(c)
	case s.userspace && c.Protocol == openflow.IPProtoICMPv6:
		// Open vSwitch 3.1.0 dies of a tuple of ICMPv6 (it has no reverse_icmp6_type). The connection ends by itself
		// in a minute.
		if c.Mark&uint32(flows.MarkAllowed) == 0 {
			return nil
		}
		return s.Deny(ctx, []flows.Connection{c})
	}
	zone, tuple := fmt.Sprintf("zone=%d", c.Zone), tupleText(c)
	_, err := s.dpctl(ctx, "dpctl/flush-conntrack", zone, tuple)
	if err != nil && strings.Contains(err.Error(), "multiple datapaths") {
		// Not from the start: Open vSwitch 3.1.0 takes the datapath for a tuple.
		_, err = s.dpctl(ctx, "dpctl/flush-conntrack", s.datapath(), zone, tuple)
	}
	if err != nil && !strings.Contains(err.Error(), "No such file or directory)") {
		return fmt.Errorf("remove the connection %s: %w", tuple, err)
	}
	return nil
}

// isNamed says whether Open vSwitch can name a connection of the protocol to the kernel (nl_ct_put_tuple_proto; SCTP
// since 3.2).
func isNamed(protocol uint8) bool {
	return protocol == openflow.IPProtoTCP || protocol == openflow.IPProtoUDP || isICMP(protocol)
}

// removeFromKernel removes all of a protocol between two addresses: the entries of the kernel's datapath are those of
// the agent's own network namespace, which is the node's.
func removeFromKernel(c flows.Connection) error {
	family := netlink.InetFamily(unix.AF_INET)
	if c.Source.Addr().Is6() {
		family = unix.AF_INET6
	}
	if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, between(c)); err != nil {
		return fmt.Errorf("remove the connections of protocol %d from %s to %s: %w", c.Protocol, c.Source.Addr(), c.Destination.Addr(), err)
	}
	return nil
}

// between matches the connections of the same zone, protocol and addresses.
type between flows.Connection

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (c between) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	return f.Zone == c.Zone && f.Forward.Protocol == c.Protocol && f.Forward.SrcIP.Equal(c.Source.Addr().AsSlice()) && f.Forward.DstIP.Equal(c.Destination.Addr().AsSlice())
}

// datapath is the name of the bridge's datapath (dpctl(8)): there is one of each type.
func (s *Switch) datapath() string {
	if s.userspace {
		return "netdev@ovs-netdev"
	}
	return "system@ovs-system"
}

func (s *Switch) dpctl(ctx context.Context, command string, args ...string) (string, error) {
	socket, err := unixctl.Socket(s.runDir, "ovs-vswitchd")
	if err != nil {
		return "", err
	}
	return unixctl.Call(ctx, socket, command, args...)
}

// tupleText is the first packet of a connection in the words of ovs-ofctl(8), ct-flush. A tuple that says everything
// makes the switch look the connection up; otherwise it looks at all of them.
func tupleText(c flows.Connection) string {
	field := "ct_nw_"
	if c.Source.Addr().Is6() {
		field = "ct_ipv6_"
	}
	text := fmt.Sprintf("%ssrc=%s,%sdst=%s,ct_nw_proto=%d", field, c.Source.Addr(), field, c.Destination.Addr(), c.Protocol)
	if isICMP(c.Protocol) {
		return text + fmt.Sprintf(",icmp_id=%d,icmp_type=%d,icmp_code=%d", c.ICMP.ID, c.ICMP.Type, c.ICMP.Code)
	}
	return text + fmt.Sprintf(",ct_tp_src=%d,ct_tp_dst=%d", c.Source.Port(), c.Destination.Port())
}

func isICMP(protocol uint8) bool {
	return protocol == openflow.IPProtoICMP || protocol == openflow.IPProtoICMPv6
}

// protocolNames are those that ct_dpif_format_ipproto knows; others are numbers.
var protocolNames = map[string]uint8{"icmp": openflow.IPProtoICMP, "igmp": 2, "tcp": openflow.IPProtoTCP, "udp": openflow.IPProtoUDP, "dccp": 33,
	"icmpv6": openflow.IPProtoICMPv6, "sctp": openflow.IPProtoSCTP, "udplite": 136}

// parseConnection reads a line of dpctl/dump-conntrack:
//
//	udp,orig=(src=10.0.0.1,dst=10.0.0.2,sport=1,dport=2),reply=(src=10.0.0.2,dst=10.0.0.1,sport=2,dport=1),zone=22373,mark=1
func parseConnection(line string) (c flows.Connection, err error) {
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
	if c.Source, c.Destination, c.ICMP, err = parseTuple(orig, isICMP(c.Protocol)); err != nil {
		return c, err
	}
	if c.Endpoint, _, _, err = parseTuple(reply, isICMP(c.Protocol)); err != nil {
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
func parseTuple(text string, icmp bool) (src, dst netip.AddrPort, id flows.ICMP, err error) {
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
