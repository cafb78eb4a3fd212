package ofswitch

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/internal/unixctl"
	"github.com/weft-cni/weft/pkg/openflow"
)

// Connections reads a zone of the connection tracker and then calls each with every connection. A line that cannot be
// parsed is an error, returned after all others were read. ovs-vswitchd does nothing else meanwhile: 100,000
// connections take its main thread 0.6 s.
func (s *Switch) Connections(ctx context.Context, zone uint16, each func(openflow.Connection)) error {
	text, err := s.dpctl(ctx, "dpctl/dump-conntrack", s.datapath(), fmt.Sprintf("zone=%d", zone))
	if err != nil {
		return fmt.Errorf("read the connections: %w", err)
	}
	bad, lines := error(nil), 0
	for line := range strings.Lines(text) {
		c, err := openflow.ParseConnection(strings.TrimSuffix(line, "\n"))
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

// ErrNotRemovable means that this Open vSwitch cannot remove such a connection. It ends by itself.
var ErrNotRemovable = errors.New("ovs-vswitchd cannot remove a connection of ICMPv6")

// Remove removes a connection from the tracker. Idempotent: a connection that does not exist is not an error. The next
// packet begins a new connection.
func (s *Switch) Remove(ctx context.Context, c openflow.Connection) error {
	switch {
	case !s.userspace && !isNamed(c.Protocol):
		return removeFromKernel(c)
	case s.userspace && c.Protocol == openflow.IPProtoICMPv6:
		// Open vSwitch 3.1.0 dies of a tuple of ICMPv6 (it has no reverse_icmp6_type). The connection ends by itself
		// in a minute.
		return ErrNotRemovable
	}
	zone, tuple := fmt.Sprintf("zone=%d", c.Zone), c.Tuple()
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
	return protocol == openflow.IPProtoTCP || protocol == openflow.IPProtoUDP || protocol == openflow.IPProtoICMP ||
		protocol == openflow.IPProtoICMPv6
}

// removeFromKernel removes all of a protocol between two addresses: the entries of the kernel's datapath are those of
// the agent's own network namespace, which is the node's.
func removeFromKernel(c openflow.Connection) error {
	family := netlink.InetFamily(unix.AF_INET)
	if c.Source.Addr().Is6() {
		family = unix.AF_INET6
	}
	if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, between(c)); err != nil {
		return fmt.Errorf("remove the connections of protocol %d from %s to %s: %w", c.Protocol, c.Source.Addr(),
			c.Destination.Addr(), err)
	}
	return nil
}

// between matches the connections of the same zone, protocol and addresses.
type between openflow.Connection

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (c between) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	return f.Zone == c.Zone && f.Forward.Protocol == c.Protocol && f.Forward.SrcIP.Equal(c.Source.Addr().AsSlice()) &&
		f.Forward.DstIP.Equal(c.Destination.Addr().AsSlice())
}

// datapath is the name of the bridge's datapath (dpctl(8)): there is one of each type.
func (s *Switch) datapath() string {
	if s.userspace {
		return "netdev@ovs-netdev"
	}
	return "system@ovs-system"
}

func (s *Switch) dpctl(ctx context.Context, command string, args ...string) (string, error) {
	socket, err := unixctl.Socket(s.ovsRunDir, "ovs-vswitchd")
	if err != nil {
		return "", err
	}
	return unixctl.Call(ctx, socket, command, args...)
}
