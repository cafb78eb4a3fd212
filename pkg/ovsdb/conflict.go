package ovsdb

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/weft-cni/weft/pkg/model"
)

// withConflictingPorts adds to the error of a tunnel port the names of ports with the same configuration: ovs-vswitchd
// serves one port for each type, remote address, key and UDP port, and its message ("File exists") does not name the
// other. Another network's bridge on the same Open vSwitch may have one (ovn-kubernetes #1010).
func (s *session) withConflictingPorts(port interfaceRow, err error) error {
	if port.Type == typeInternal || errors.Is(err, ErrDisconnected) {
		return err
	}
	v, snapErr := s.snapshot("")
	if snapErr != nil {
		return err
	}
	var conflicts []string
	for name, on := range v.portsByName {
		for _, uuid := range on.port.Interfaces {
			iface := v.ifaces[uuid]
			if iface == nil || iface.Name == port.Name || !sameTunnel(*iface, port) {
				continue
			}
			conflicts = append(conflicts, fmt.Sprintf("%s on bridge %s", name, on.bridge.Name))
		}
	}
	if len(conflicts) == 0 {
		return err
	}
	slices.Sort(conflicts)
	return fmt.Errorf("%w; the same tunnel configuration has port %s: remove it (ovs-vsctl del-port) or choose another "+
		"tunnel type", err, strings.Join(conflicts, ", "))
}

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
		a.Options["remote_ip"] == b.Options["remote_ip"] && a.Options["local_ip"] == b.Options["local_ip"] &&
		cmp.Or(a.Options["key"], a.Options["in_key"]) == cmp.Or(b.Options["key"], b.Options["in_key"])
}
