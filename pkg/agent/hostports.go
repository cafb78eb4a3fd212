package agent

import (
	"net/netip"
	"slices"

	"github.com/weft-cni/weft/pkg/host"
	"github.com/weft-cni/weft/pkg/model"
)

// hostPorts are the ports of this node that lead to its attached pods, in order. An attached pod that the API server
// has no longer keeps those that it had last.
func hostPorts(view *model.Snapshot, pods []model.Pod, last []host.HostPort) []host.HostPort {
	var list []host.HostPort
	known := map[model.PodRef]bool{}
	for _, p := range pods {
		known[model.PodRef{Namespace: p.Namespace, Name: p.Name}] = true
		if len(p.HostPorts) == 0 || p.Done() {
			continue
		}
		for _, a := range view.Attachments {
			// The runtime tells portmap of host ports for the pod's first interface only, which is always eth0.
			named := a.Pod.Namespace == p.Namespace && a.Pod.Name == p.Name
			if a.IfName != "eth0" || !named || a.Pod.UID != "" && a.Pod.UID != p.UID {
				continue
			}
			for _, port := range p.HostPorts {
				list = appendHostPort(list, port, a.IPs)
			}
		}
	}
	for key, a := range view.Attachments {
		if view.Unknown[key] || known[model.PodRef{Namespace: a.Pod.Namespace, Name: a.Pod.Name}] {
			continue
		}
		for _, port := range last {
			if slices.Contains(a.IPs, port.To.Addr()) {
				list = append(list, port)
			}
		}
	}
	slices.SortFunc(list, host.CompareHostPorts)
	return slices.Compact(list)
}

// appendHostPort adds a host port for each of the pod's addresses of its family. At loopback addresses there are none:
// see host.NodePort.
func appendHostPort(list []host.HostPort, port model.HostPort, ips []netip.Addr) []host.HostPort {
	if port.Addr.IsValid() && port.Addr.IsLoopback() || port.Protocol == model.UDP && model.IsTunnelUDPPort(port.Port) {
		return list
	}
	for _, ip := range ips {
		if port.Addr.IsValid() && port.Addr.Is4() != ip.Is4() {
			continue
		}
		at := port.Addr
		if at.IsValid() && at.IsUnspecified() {
			at = netip.Addr{}
		}
		to := netip.AddrPortFrom(ip, port.ContainerPort)
		list = append(list, host.HostPort{Addr: at, Protocol: port.Protocol, Port: port.Port, To: to})
	}
	return list
}

// hostPortsChanged says whether the host ports of a snapshot are others than those that the host's network was last
// told of.
func (a *Agent) hostPortsChanged(view *model.Snapshot) bool {
	pods := a.kube.Pods()
	a.mu.Lock()
	defer a.mu.Unlock()
	return !slices.Equal(hostPorts(view, pods, a.hostPorts), a.hostPorts)
}
