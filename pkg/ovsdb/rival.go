package ovsdb

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// nameRival adds to the reason why a tunnel port does not work the ports of the same configuration: ovs-vswitchd serves
// one port for each type, remote address, key and UDP port, and its message ("File exists") does not say which has it.
// Another network's bridge on the same Open vSwitch has such a port (ovn-kubernetes #1010).
func (s *session) nameRival(port interfaceRow, err error) error {
	if port.Type == typeInternal || errors.Is(err, ErrDisconnected) {
		return err
	}
	v, viewErr := s.view("")
	if viewErr != nil {
		return err
	}
	var rivals []string
	for name, on := range v.named {
		for _, uuid := range on.port.Interfaces {
			iface := v.ifaces[uuid]
			if iface == nil || iface.Name == port.Name || !sameTunnel(*iface, port) {
				continue
			}
			rivals = append(rivals, fmt.Sprintf("%s on bridge %s", name, on.bridge.Name))
		}
	}
	if len(rivals) == 0 {
		return err
	}
	slices.Sort(rivals)
	return fmt.Errorf("%w; the same tunnel configuration has port %s: remove it (ovs-vsctl del-port) or choose another tunnel type",
		err, strings.Join(rivals, ", "))
}

func sameTunnel(a, b interfaceRow) bool {
	udpPort := func(i interfaceRow) string {
		byType := map[string]string{"geneve": "6081", "vxlan": vxlanPort}
		return cmp.Or(i.Options["dst_port"], byType[i.Type])
	}
	return a.Type == b.Type &&
		a.Options["remote_ip"] == b.Options["remote_ip"] && a.Options["local_ip"] == b.Options["local_ip"] &&
		cmp.Or(a.Options["key"], a.Options["in_key"]) == cmp.Or(b.Options["key"], b.Options["in_key"]) && udpPort(a) == udpPort(b)
}
