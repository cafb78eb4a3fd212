package agent

import (
	"net/netip"
	"time"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/policy"
)

// namesAge is how old the names of a capture's addresses may be, and namesPause how often an address without one is
// looked for.
const (
	namesAge   = 10 * time.Second
	namesPause = time.Second
)

// captureNames are the names of addresses for one capture, which one goroutine runs.
type captureNames struct {
	now   func() time.Time
	view  func() *model.Snapshot
	every func(visit func(policy.Pod) bool)
	read  time.Time
	names map[netip.Addr]string
	// pods are those of the cluster by namespace/name.
	pods map[string]podPlace
}

type podPlace struct {
	Node        string
	HostNetwork bool
	addrs       []netip.Addr
}

func newCaptureNames(a *Agent) *captureNames {
	return &captureNames{now: time.Now, view: a.loop.View, every: a.watcher().AllPods}
}

// name is the name of an address, or empty.
func (n *captureNames) name(addr netip.Addr) string {
	age := n.now().Sub(n.read)
	if name := n.names[addr]; n.read.IsZero() || age >= namesAge || name == "" && age >= namesPause {
		n.refresh()
	}
	return n.names[addr]
}

// refresh reads the names again. Pods that have ended are left out: others may have their addresses.
func (n *captureNames) refresh() {
	view := n.view()
	n.read, n.names, n.pods = n.now(), map[netip.Addr]string{}, map[string]podPlace{}
	for name, s := range view.Services {
		for _, p := range s.Ports {
			for _, f := range p.Frontends() {
				n.set(f.At.Addr(), "service/"+name)
			}
		}
	}
	n.every(func(p policy.Pod) bool {
		if p.Done {
			return true
		}
		name := p.Namespace + "/" + p.Name
		n.pods[name] = podPlace{p.Node, p.HostNetwork, p.Addrs}
		for _, addr := range p.Addrs {
			if !p.HostNetwork {
				n.names[addr] = name
			}
		}
		return true
	})
	for _, a := range view.Attachments { // what the API server has not reported yet, too
		name := a.Pod.String()
		n.pods[name] = podPlace{view.Self.Name, false, a.IPs}
		for _, addr := range a.IPs {
			n.names[addr] = name
		}
	}
	for node, path := range view.Paths {
		for _, addr := range nodeAddrs(view, node) {
			n.names[addr] = "node/" + node
		}
		for _, cidr := range path.PodCIDRs {
			n.names[model.GatewayAddr(cidr)] = "gateway/" + node
		}
	}
	for _, addr := range view.LocalAddrs {
		n.set(addr, "node/"+view.Self.Name)
	}
	for _, is4 := range []bool{true, false} {
		n.names[model.NodePortAddr(is4)] = "node-port"
		n.names[model.MasqueradeAddr(is4)] = "masqueraded"
		n.names[model.RejectAddr(is4)] = "no-endpoint"
	}
}

// set gives an address a name, or takes it away when it has another: an external address may be that of many Services.
func (n *captureNames) set(addr netip.Addr, name string) {
	if other, ok := n.names[addr]; ok && other != name {
		name = ""
	}
	n.names[addr] = name
}

// nodeAddrs are a node's addresses and those of its gateway.
func nodeAddrs(view *model.Snapshot, node string) []netip.Addr {
	path := view.Paths[node]
	list := append([]netip.Addr{}, path.Addrs...)
	for _, cidr := range path.PodCIDRs {
		list = append(list, model.GatewayAddr(cidr))
	}
	return list
}
