package service_test

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kubernetes/pkg/proxy"
)

// verdict is what becomes of a packet to a Service: the endpoints that it may go to, or why it goes to none.
type verdict struct {
	endpoints []string
	refused   string // "reject", "drop" or empty
}

func (v verdict) String() string {
	if v.refused != "" {
		return v.refused
	}
	return fmt.Sprint(v.endpoints)
}

// client is where a packet comes from, and which of a Service's addresses it goes to.
type client struct {
	name string
	// external says that the packet goes to a node port, a load balancer's address or an external IP.
	external bool
	// outside says that neither a pod of this node nor the node itself sent it.
	outside bool
}

var clients = []client{
	{"a pod here to the ClusterIP", false, false},
	{"a host that routes ClusterIPs to this node", false, true},
	{"a pod here, or the node, to an external address", true, false},
	{"outside to an external address", true, true},
}

// port is one port of a Service in one family, as either side sees it.
type port struct {
	ClusterIP, Name, Protocol string
	Port, NodePort            int
	ExternalIPs, VIPs         []string
	Sources                   []string
	AffinitySeconds           int
	// Verdicts are by client's name. Those to external addresses are there only when the port has some.
	Verdicts map[string]string
}

// view is a Service as either side sees it, its ports by name, protocol and family.
type view struct {
	Ports           map[string]port
	HealthCheckPort int
	Healthy         int
}

func key(name, protocol string, is4 bool) string {
	return fmt.Sprintf("%s/%s/v4=%t", name, protocol, is4)
}

// reference asks kube-proxy's code.
func reference(s *corev1.Service, endpoints []*discoveryv1.EndpointSlice, node, zone string) view {
	v := view{Ports: map[string]port{}}
	name := types.NamespacedName{Namespace: s.Namespace, Name: s.Name}
	labels := map[string]string{}
	if zone != "" {
		labels[corev1.LabelTopologyZone] = zone
	}
	for _, family := range []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol} {
		st, et := proxy.NewServiceChangeTracker(family, nil, nil), proxy.NewEndpointsChangeTracker(family, node, nil, nil)
		st.Update(nil, s)
		for _, e := range endpoints {
			et.EndpointSliceUpdate(e, false)
		}
		ports, byPort := proxy.ServicePortMap{}, proxy.EndpointsMap{}
		ports.Update(st)
		byPort.Update(et)
		if p, ok := ports.HealthCheckNodePorts()[name]; ok {
			v.HealthCheckPort = int(p)
			// A proxy of one family counts for itself, and whichever binds the port first answers. Ours takes the larger.
			v.Healthy = max(v.Healthy, byPort.LocalReadyEndpoints()[name])
		}
		for pn, info := range ports {
			cluster, local, _, somewhere := proxy.CategorizeEndpoints(byPort[pn], info, node, labels)
			p := port{
				ClusterIP: info.ClusterIP().String(), Name: pn.Port, Protocol: string(info.Protocol()), Port: info.Port(),
				NodePort:    info.NodePort(),
				ExternalIPs: texts(info.ExternalIPs()), VIPs: texts(info.LoadBalancerVIPs()),
				AffinitySeconds: info.StickyMaxAgeSeconds(),
				Verdicts:        map[string]string{},
			}
			for _, c := range info.LoadBalancerSourceRanges() {
				p.Sources = append(p.Sources, c.String())
			}
			// The filter of a load balancer's address is for that address, also when it is an external IP, too. Weft says so
			// once.
			p.ExternalIPs = slices.DeleteFunc(p.ExternalIPs, func(a string) bool { return slices.Contains(p.VIPs, a) })
			p.normalize()
			for _, c := range clients {
				if c.external && !info.ExternallyAccessible() {
					continue
				}
				// As pkg/proxy/nftables chooses between the two.
				chosen, isLocal := cluster, false
				if !c.external && info.InternalPolicyLocal() || c.external && c.outside && info.ExternalPolicyLocal() {
					chosen, isLocal = local, true
				}
				p.Verdicts[c.name] = judge(addresses(chosen), isLocal, somewhere).String()
			}
			v.Ports[key(p.Name, p.Protocol, family == corev1.IPv4Protocol)] = p
		}
	}
	return v
}

func judge(endpoints []string, isLocal, somewhere bool) verdict {
	switch {
	case len(endpoints) > 0:
		return verdict{endpoints: endpoints}
	case isLocal && somewhere:
		return verdict{refused: "drop"}
	}
	return verdict{refused: "reject"}
}

func addresses(endpoints []proxy.Endpoint) (out []string) {
	for _, e := range endpoints {
		out = append(out, e.String())
	}
	slices.Sort(out)
	return out
}

func texts(ips []net.IP) (out []string) {
	for _, ip := range ips {
		out = append(out, ip.String())
	}
	return out
}

// normalize brings lists whose order and repetitions mean nothing into one form.
func (p *port) normalize() {
	for _, list := range []*[]string{&p.ExternalIPs, &p.VIPs, &p.Sources} {
		slices.Sort(*list)
		if *list = slices.Compact(*list); len(*list) == 0 {
			*list = nil
		}
	}
}

func stringsOf[T fmt.Stringer](values []T) (out []string) {
	for _, v := range values {
		out = append(out, v.String())
	}
	return out
}

func joined(addr netip.Addr, port uint16) string { return netip.AddrPortFrom(addr, port).String() }
