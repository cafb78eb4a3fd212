package ovsdb

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// withConflictingPorts adds to the error of a tunnel port the names of ports with the same configuration: ovs-vswitchd
// serves one port for each type, addresses, key and UDP port, and its message ("File exists") does not name the other.
// Another network's bridge on the same Open vSwitch may have one (ovn-kubernetes #1010).
func (s *session) withConflictingPorts(port interfaceRow, err error) error {
	if port.Type == typeInternal || errors.Is(err, ErrDisconnected) {
		return err
	}
	conflicts, readErr := s.otherPorts(port, func(other interfaceRow) bool {
		return sameTunnel(other, port) && other.Options["local_ip"] == port.Options["local_ip"]
	})
	if readErr != nil || len(conflicts) == 0 {
		return err
	}
	return fmt.Errorf("%w; the same tunnel configuration has port %s: remove it (ovs-vsctl del-port) or choose another "+
		"tunnel type", err, strings.Join(conflicts, ", "))
}

// checkPrecedence fails when another port gets the packets that arrive for a tunnel port. Of two ports with one type,
// UDP port, remote_ip=flow and key=flow, ovs-vswitchd takes the one with a fixed local address or without any
// (ofproto/tunnel.c, tnl_find) before the one with local_ip=flow.
func (s *session) checkPrecedence(port interfaceRow) error {
	if port.Type == typeInternal {
		return nil
	}
	before, err := s.otherPorts(port, func(other interfaceRow) bool {
		works := other.OFPort != nil && *other.OFPort > 0
		return works && sameTunnel(other, port) && other.Options["local_ip"] != port.Options["local_ip"]
	})
	if err != nil || len(before) == 0 {
		return err
	}
	return fmt.Errorf("port %s gets the tunnel packets of this node: remove it (ovs-vsctl del-port) or choose another "+
		"tunnel type", strings.Join(before, ", "))
}

// otherPorts names the ports of all bridges, except port itself, with an interface that matches, in order.
func (s *session) otherPorts(port interfaceRow, matches func(interfaceRow) bool) ([]string, error) {
	v, err := s.snapshot("")
	if err != nil {
		return nil, err
	}
	var names []string
	for name, on := range v.portsByName {
		for _, uuid := range on.port.Interfaces {
			if iface := v.ifaces[uuid]; iface != nil && iface.Name != port.Name && matches(*iface) {
				names = append(names, fmt.Sprintf("%s on bridge %s", name, on.bridge.Name))
			}
		}
	}
	slices.Sort(names)
	return names, nil
}

// sameTunnel compares what two tunnel ports receive by, but for the local address.
func sameTunnel(a, b interfaceRow) bool {
	udpPort := func(i interfaceRow) string {
		byType := map[string]string{"geneve": "6081", "vxlan": vxlanPort}
		return cmp.Or(i.Options["dst_port"], byType[i.Type])
	}
	return a.Type == b.Type && udpPort(a) == udpPort(b) && a.Options["remote_ip"] == b.Options["remote_ip"] &&
		cmp.Or(a.Options["key"], a.Options["in_key"]) == cmp.Or(b.Options["key"], b.Options["in_key"])
}
