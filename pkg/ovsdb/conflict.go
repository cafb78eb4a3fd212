package ovsdb

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/weft-cni/weft/pkg/model"
)

// waitTunnel waits for a port with a fixed number. The error of a tunnel port names the ports with the same
// configuration, such as on another network's bridge on the same Open vSwitch (ovn-kubernetes #1010): ovs-vswitchd
// serves one port for each type, addresses, key and UDP port, and its message ("File exists") does not name the other.
// One without local_ip works beside ours and receives all of our packets, because it is looked up first (tnl_find,
// ofproto/tunnel.c).
func (c *Client) waitTunnel(ctx context.Context, s *session, port interfaceRow) error {
	err := c.waitPort(ctx, s, port.Name, uint32(*port.OFPortRequest))
	if port.Type == typeInternal || errors.Is(err, ErrDisconnected) {
		return err
	}
	conflicts, snapErr := s.conflictingPorts(port)
	switch {
	case len(conflicts) == 0 || snapErr != nil:
		return cmp.Or(err, snapErr)
	case err == nil:
		err = errors.New("packets of other nodes are received by another port")
	}
	return fmt.Errorf("%w; the same tunnel configuration has port %s: remove it (ovs-vsctl del-port) or choose another "+
		"tunnel type", err, strings.Join(conflicts, ", "))
}

// conflictingPorts are the other ports with the configuration of a tunnel port, in order.
func (s *session) conflictingPorts(port interfaceRow) (conflicts []string, err error) {
	v, err := s.snapshot("")
	if err != nil {
		return nil, err
	}
	for name, on := range v.portsByName {
		for _, uuid := range on.port.Interfaces {
			iface := v.ifaces[uuid]
			if iface == nil || iface.Name == port.Name || !sameTunnel(*iface, port) {
				continue
			}
			conflicts = append(conflicts, fmt.Sprintf("%s on bridge %s", name, on.bridge.Name))
		}
	}
	slices.Sort(conflicts)
	return conflicts, nil
}

// sameTunnel says whether two ports receive the same packets. A local_ip that is an address is not the same as flow.
func sameTunnel(a, b interfaceRow) bool {
	udpPort := func(i interfaceRow) string {
		for _, e := range model.Encapsulations {
			if e.InterfaceType() == i.Type {
				return cmp.Or(i.Options["dst_port"], fmt.Sprint(e.UDPPort()))
			}
		}
		return i.Options["dst_port"]
	}
	return a.Type == b.Type && udpPort(a) == udpPort(b) &&
		a.Options["remote_ip"] == b.Options["remote_ip"] &&
		cmp.Or(a.Options["local_ip"], "flow") == cmp.Or(b.Options["local_ip"], "flow") &&
		cmp.Or(a.Options["key"], a.Options["in_key"]) == cmp.Or(b.Options["key"], b.Options["in_key"])
}
