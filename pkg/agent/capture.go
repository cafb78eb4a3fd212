package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weft-cni/weft/pkg/capture"
	"github.com/weft-cni/weft/pkg/capture/tap"
	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/pkg/model"
)

// maxCaptures is how many captures may run at the same time: each has a buffer, and costs time for every packet.
const maxCaptures = 4

// captureWait is how long a capture waits for one that is just ending: its client may know before its place is free.
const captureWait = time.Second

// Capture implements api.Source.
func (r reporter) Capture(ctx context.Context, request capture.Request, sink capture.Sink) error {
	if !r.a.isReady() {
		return errNotProgrammed
	}
	select {
	case r.a.captures <- struct{}{}:
		defer func() { <-r.a.captures }()
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(captureWait):
		return fmt.Errorf("%d captures run on this node, and there may be no more; end one of them", maxCaptures)
	}
	plan, err := r.plan(request)
	if err != nil {
		return err
	}
	t, err := openTap(plan)
	if err != nil {
		return err
	}
	r.a.log.Info("capture begins", "at", request.At, "ports", len(plan.Ports), "peer", request.Peer, "port", request.Port,
		"protocol", request.Protocol)
	err = capture.Run(ctx, t, plan, sink)
	r.a.log.Info("capture ended", "at", request.At, "err", err)
	return errors.Join(err, t.Close())
}

// plan finds ports, filter and names of a request.
func (r reporter) plan(request capture.Request) (capture.Plan, error) {
	request, err := request.Complete()
	if err != nil {
		return capture.Plan{}, err
	}
	names := newCaptureNames(r.a)
	view := r.a.loop.View()
	plan := capture.Plan{Request: request, Name: names.name,
		Filter: capture.Filter{Port: request.Port, Protocol: request.Protocol}}
	if request.Peer != "" {
		if plan.Filter.Peers, err = names.peers(view, request.PeerKind, request.Peer); err != nil {
			return plan, err
		}
	}
	switch request.At {
	case capture.AtGateway:
		err = addPort(&plan, capture.AtGateway, model.GatewayName)
	case capture.AtTunnel:
		err = r.addTunnel(&plan, view)
	case capture.AtAll:
		addPods(&plan, view)
		err = errors.Join(addPort(&plan, capture.AtGateway, model.GatewayName), r.addTunnel(&plan, view))
	default:
		err = names.addObject(&plan, view)
	}
	return plan, err
}

// openTap opens the socket of a plan.
func openTap(plan capture.Plan) (*tap.Tap, error) {
	one, links := 0, plan.Links
	if len(links) == 1 {
		one, links = links[0], nil
	}
	within := capture.Plain
	switch plan.At {
	case capture.AtTunnel:
		within = capture.Encapsulated
	case capture.AtAll:
		within = capture.Either
	}
	program, err := plan.Filter.Program(links, within, plan.SnapLen)
	if err != nil {
		return nil, fmt.Errorf("make the capture's filter: %w", err)
	}
	return tap.Open(program, one, plan.SnapLen)
}

// addPort adds a port by the name of its device.
func addPort(plan *capture.Plan, name, link string) error {
	device, err := net.InterfaceByName(link)
	if err != nil {
		return fmt.Errorf("the network device %s of %s: %w", link, name, err)
	}
	plan.Ports = append(plan.Ports, capture.Port{Name: name, Link: link, Tunnel: name == capture.AtTunnel})
	plan.Links = append(plan.Links, device.Index)
	// The node's kernel sends through the gateway what comes from the node.
	plan.Reversed = append(plan.Reversed, name == capture.AtGateway)
	return nil
}

// addTunnel adds the underlay. On the userspace datapath the device with the node's address is a port of the switch,
// and packets of tunnels pass the devices beside it.
func (r reporter) addTunnel(plan *capture.Plan, view *model.Snapshot) error {
	r.a.mu.Lock()
	underlay, userspace := r.a.underlay, r.a.cfg.Datapath == config.DatapathNetdev
	r.a.mu.Unlock()
	if !userspace {
		return addPort(plan, capture.AtTunnel, underlay)
	}
	links, err := net.Interfaces()
	if err != nil {
		return fmt.Errorf("list network devices: %w", err)
	}
	other := map[string]bool{underlay: true, model.GatewayName: true, model.BridgeName: true}
	for _, a := range view.Attachments {
		other[a.HostIfName] = true
	}
	for _, l := range links {
		if other[l.Name] || l.Flags&net.FlagLoopback != 0 || l.Flags&net.FlagUp == 0 || len(l.HardwareAddr) == 0 {
			continue
		}
		if err := addPort(plan, capture.AtTunnel, l.Name); err != nil {
			return err
		}
	}
	return nil
}

// addPods adds the ports of all pods of the node, but for those that are just being removed.
func addPods(plan *capture.Plan, view *model.Snapshot) {
	list := slices.SortedFunc(maps.Values(view.Attachments),
		func(a, b model.Attachment) int { return cmp.Compare(a.OFPort, b.OFPort) })
	for _, a := range list {
		_ = addPort(plan, a.Pod.String(), a.HostIfName) // fails for a device that is gone
	}
}

// addObject adds the ports of the pod or Service of a request. Of a Service, they are those of all pods of the node and
// the gateway: packets to the Service's addresses are at its clients', packets to its endpoints at theirs.
func (n *captureNames) addObject(plan *capture.Plan, view *model.Snapshot) error {
	object, err := n.find(view, plan.Kind, plan.At, "pod", "service")
	if err != nil {
		return err
	}
	if object.Kind == model.KindService {
		addPods(plan, view)
		plan.Filter.Ends = serviceEnds(view.Services[object.Name])
		return addPort(plan, capture.AtGateway, model.GatewayName)
	}
	attached := false
	for _, a := range view.Attachments {
		if a.Pod.String() == object.Name {
			attached = true
			if err := addPort(plan, a.Pod.String(), a.HostIfName); err != nil {
				return err
			}
		}
	}
	if attached {
		return nil
	}
	pod := n.pods[object.Name]
	switch {
	case pod.HostNetwork:
		return fmt.Errorf("pod %s is in the network of node %s, so it has no port; capture %s or %s there", object.Name, pod.Node,
			capture.AtGateway, capture.AtTunnel)
	case pod.Node != view.Self.Name:
		return fmt.Errorf("pod %s is on node %s, not on %s", object.Name, pod.Node, view.Self.Name)
	}
	return fmt.Errorf("pod %s is not attached (yet)", object.Name)
}

// serviceEnds are the addresses and ports of a Service's frontends and endpoints.
func serviceEnds(s model.Service) []capture.SocketAddr {
	var list []capture.SocketAddr
	for _, p := range s.Ports {
		add := func(at netip.AddrPort) {
			if end := (capture.SocketAddr{Protocol: capture.Protocol(p.Protocol), At: at}); !slices.Contains(list, end) {
				list = append(list, end)
			}
		}
		for _, f := range p.Frontends() {
			add(f.At)
		}
		for _, e := range slices.Concat(p.Cluster, p.Local) {
			add(netip.AddrPortFrom(e.Addr, e.Port))
		}
		for _, e := range p.Retained {
			add(e)
		}
	}
	return list
}

// peers are the addresses of what a request names as the peer.
func (n *captureNames) peers(view *model.Snapshot, kind, text string) ([]netip.Prefix, error) {
	if p, err := netip.ParsePrefix(text); err == nil {
		return []netip.Prefix{p.Masked()}, nil
	}
	if addr, err := netip.ParseAddr(text); err == nil {
		return prefixes(addr), nil
	}
	object, err := n.find(view, kind, text, "pod", "service", "node")
	if err != nil {
		return nil, err
	}
	var list []netip.Prefix
	switch object.Kind {
	case model.KindPod:
		list = prefixes(n.pods[object.Name].addrs...)
	case model.KindService:
		for _, end := range serviceEnds(view.Services[object.Name]) {
			list = append(list, prefixes(end.At.Addr())...)
		}
		slices.SortFunc(list, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
		list = slices.Compact(list)
	default:
		list = prefixes(nodeAddrs(view, object.Name)...)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%s has no address (yet)", object)
	}
	return list, nil
}

func prefixes(addrs ...netip.Addr) []netip.Prefix {
	list := make([]netip.Prefix, len(addrs))
	for i, addr := range addrs {
		addr = addr.Unmap().WithZone("")
		list[i] = netip.PrefixFrom(addr, addr.BitLen())
	}
	return list
}

// find finds an object by [NAMESPACE/]NAME among those of some kinds. An empty kind means any of them.
func (n *captureNames) find(view *model.Snapshot, kind, name string, kinds ...string) (model.Owner, error) {
	n.refresh()
	if kind != "" && !slices.Contains(kinds, kind) {
		return model.Owner{}, fmt.Errorf("%s %s: want a %s", kind, name, strings.Join(kinds, " or a "))
	}
	var found []model.Owner
	consider := func(k model.Kind, full string) {
		if (kind == "" || kind == k.String()) && slices.Contains(kinds, k.String()) &&
			(full == name || !strings.Contains(name, "/") && strings.HasSuffix(full, "/"+name)) {
			found = append(found, model.Owner{Kind: k, Name: full})
		}
	}
	for pod := range n.pods {
		consider(model.KindPod, pod)
	}
	for service := range view.Services {
		consider(model.KindService, service)
	}
	for node := range view.Paths {
		consider(model.KindNode, node)
	}
	slices.SortFunc(found, func(a, b model.Owner) int { return strings.Compare(a.String(), b.String()) })
	texts := make([]string, len(found))
	for i, o := range found {
		texts[i] = o.String()
	}
	switch len(found) {
	case 0:
		return model.Owner{}, fmt.Errorf("there is no %s %q", cmp.Or(kind, strings.Join(kinds, " or ")), name)
	case 1:
		return found[0], nil
	}
	return model.Owner{}, fmt.Errorf("%s may be %s; write one of them", name, strings.Join(texts[:min(len(texts), 10)], " or "))
}
