package walk

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// OutsideName is how users write a host outside of the cluster.
const OutsideName = "outside"

// outsideAddrs are the addresses of a host outside that is not named by one of its own: of ranges for documentation
// (RFC 5737, RFC 3849).
var outsideAddrs = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}

// endpoint is what a user's word for one end of a connection means.
type endpoint struct {
	place Place
	addrs []netip.Addr
	// ports are those of a Service.
	ports []Frontend
}

// Resolve finds what a user means: FROM is a pod (NAMESPACE/NAME), a node, "outside" or an address; TO also a Service.
// TO ends with :PORT or :PORT/PROTOCOL; without, it is the port of a Service that has one, and a ping of all others.
// Words may have their kind before them: pod/, node/, service/. Namespace is that of names without one. There is one
// query for each family in which both ends have addresses.
func (c *Cluster) Resolve(from, to, namespace string) ([]Query, error) {
	client, err := c.endpoint(from, namespace, false)
	if err != nil {
		return nil, err
	}
	name, port, protocol, err := splitTarget(to)
	if err != nil {
		return nil, err
	}
	target, err := c.endpoint(name, namespace, true)
	if err != nil {
		return nil, err
	}
	if len(target.ports) > 0 {
		if port, protocol, err = pickPort(name, target.ports, port, protocol); err != nil {
			return nil, err
		}
	}
	var list []Query
	for _, is4 := range []bool{true, false} {
		dst := of(target.addrs, is4)
		if !dst.IsValid() {
			continue
		}
		src := c.Source(client.place, dst, client.addrs)
		if !src.IsValid() {
			continue
		}
		q := Query{From: client.place, Src: src, To: netip.AddrPortFrom(dst, port), Protocol: protocol}
		if protocol == 0 && is4 {
			q.Protocol = openflow.IPProtoICMP
		} else if protocol == 0 {
			q.Protocol = openflow.IPProtoICMPv6
		}
		list = append(list, q)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%s and %s have no addresses of one family", from, name)
	}
	return list, nil
}

// splitTarget splits NAME[:PORT[/PROTOCOL]]. An IPv6 address with a port is in brackets.
func splitTarget(text string) (name string, port uint16, protocol uint8, err error) {
	if addr, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		return addr.String(), 0, 0, nil
	}
	i := strings.LastIndexByte(text, ':')
	if i < 0 {
		return text, 0, 0, nil
	}
	name = strings.Trim(text[:i], "[]")
	number, word, hasProtocol := strings.Cut(text[i+1:], "/")
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || n == 0 {
		return "", 0, 0, fmt.Errorf("invalid port %q in %q; write NAME:PORT or NAME:PORT/PROTOCOL", number, text)
	}
	p := model.TCP
	if hasProtocol {
		p = model.Protocol(strings.ToUpper(word))
	}
	if p.Number() == 0 {
		return "", 0, 0, fmt.Errorf("invalid protocol %q in %q; allowed: TCP, UDP, SCTP", word, text)
	}
	return name, uint16(n), p.Number(), nil
}

// pickPort finds the port of a Service that is meant.
func pickPort(name string, ports []Frontend, port uint16, protocol uint8) (uint16, uint8, error) {
	var known []string
	for _, f := range ports {
		if port == f.At.Port() && protocol == f.Protocol.Number() {
			return port, protocol, nil
		}
		text := fmt.Sprintf("%d/%s", f.At.Port(), f.Protocol)
		if !slices.Contains(known, text) {
			known = append(known, text)
		}
	}
	switch {
	case port != 0:
		return port, protocol, nil // what becomes of it is a question, too
	case len(known) == 1:
		return ports[0].At.Port(), ports[0].Protocol.Number(), nil
	}
	return 0, 0, fmt.Errorf("the Service %s has several ports; add one of :%s", name, strings.Join(known, ", :"))
}

// endpoint finds what a word means.
func (c *Cluster) endpoint(word, namespace string, services bool) (endpoint, error) {
	if word == OutsideName {
		return endpoint{addrs: outsideAddrs}, nil
	}
	if addr, err := netip.ParseAddr(word); err == nil {
		return endpoint{place: c.placeOf(addr), addrs: []netip.Addr{addr}}, nil
	}
	kind, name := "", word
	for _, k := range []string{"pod", "node", "service", "svc"} {
		if rest, ok := strings.CutPrefix(word, k+"/"); ok && (k == "node" || namespace != "" || strings.Contains(rest, "/")) {
			kind, name = k, rest
		}
	}
	full := name
	if !strings.Contains(name, "/") && namespace != "" {
		full = namespace + "/" + name
	}
	var found []endpoint
	var what []string
	for _, n := range c.nodes {
		if (kind == "" || kind == "node") && n.Name == name {
			found, what = append(found, endpoint{place: Place{Node: n.Name}, addrs: n.Addrs}), append(what, "node/"+n.Name)
		}
		for _, p := range n.Pods {
			if (kind == "" || kind == "pod") && (p.Name == full || namespace == "" && strings.HasSuffix(p.Name, "/"+name)) {
				e := endpoint{place: Place{Pod: p.Name, Node: n.Name}, addrs: p.IPs}
				if p.HostNetwork {
					e = endpoint{place: Place{Node: n.Name}, addrs: n.Addrs}
				}
				found, what = append(found, e), append(what, "pod/"+p.Name)
			}
		}
	}
	if services && kind != "pod" && kind != "node" {
		for service, ports := range c.services() {
			if service == full || namespace == "" && strings.HasSuffix(service, "/"+name) {
				e := endpoint{ports: ports}
				for _, f := range ports {
					e.addrs = append(e.addrs, f.At.Addr())
				}
				found, what = append(found, e), append(what, "service/"+service)
			}
		}
	}
	slices.Sort(what)
	switch what = slices.Compact(what); {
	case len(what) == 1:
		return found[0], nil
	case len(what) == 0:
		return endpoint{}, fmt.Errorf("there is no %s %q on the nodes that were asked", kindsOf(kind, services), name)
	}
	return endpoint{}, errors.New(word + " may be " + strings.Join(what, " or ") + "; write one of them")
}

func kindsOf(kind string, services bool) string {
	switch {
	case kind != "":
		return kind
	case services:
		return "pod, Service or node"
	}
	return "pod or node"
}

// placeOf is where an address is; outside when no node has it.
func (c *Cluster) placeOf(addr netip.Addr) Place {
	for _, n := range c.nodes {
		for _, p := range n.Pods {
			if slices.Contains(p.IPs, addr) && !p.HostNetwork {
				return Place{Pod: p.Name, Node: n.Name}
			}
		}
	}
	for _, n := range c.nodes {
		if slices.Contains(n.Locals, addr) {
			return Place{Node: n.Name}
		}
	}
	return Place{}
}

// services are the ClusterIPs by Service, as the first node that has it serves it.
func (c *Cluster) services() map[string][]Frontend {
	all := map[string][]Frontend{}
	for _, n := range c.nodes {
		here := map[string][]Frontend{}
		for _, f := range n.Frontends {
			if _, known := all[f.Service]; !known && f.Kind == model.ClusterIP {
				here[f.Service] = append(here[f.Service], f)
			}
		}
		for service, ports := range here {
			all[service] = ports
		}
	}
	return all
}

// Places lists pods, nodes and, for targets, Services, as Resolve takes them.
func (c *Cluster) Places(services bool) []string {
	list := []string{OutsideName}
	for _, n := range c.nodes {
		list = append(list, "node/"+n.Name)
		for _, p := range n.Pods {
			list = append(list, "pod/"+p.Name)
		}
	}
	if services {
		for service := range c.services() {
			list = append(list, "service/"+service)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}
