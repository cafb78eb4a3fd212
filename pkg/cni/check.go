package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/cni/wire"
	"github.com/weft-cni/weft/pkg/model"
)

// check compares the attachment with the node's state and names every difference. The parts of chained plugins are not
// checked.
func (s *Server) check(ctx context.Context, req wire.Request, netns *os.File) error {
	conf, err := parseConf(req.Config)
	if err != nil {
		return err
	}
	prev, err := prevResult(req.Config, conf)
	if err != nil {
		return err
	}
	if err := checkNetns(netns, req.Netns); err != nil {
		return err
	}
	key := model.AttachmentKey{ContainerID: req.ContainerID, IfName: req.IfName}
	unlock, err := s.locks.lock(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	att, ok := s.allocations.get(key)
	if !ok {
		return errorf(types.ErrUnknownContainer, "container %s interface %s is not attached", key.ContainerID, key.IfName)
	}
	addrs := podAddrs(att, s.cfg.Settings().PodCIDRs)
	diffs := checkResult(prev, att)
	hostIndex, hostDiffs, err := checkHostEnd(att.HostIfName)
	if err != nil {
		return err
	}
	diffs = append(diffs, hostDiffs...)
	if err := inNetns(netns, func() error {
		podDiffs, err := checkPodEnd(att, addrs, hostIndex)
		diffs = append(diffs, podDiffs...)
		return err
	}); err != nil {
		return err
	}
	recorded, _, err := s.cfg.Ports.Attachments(ctx)
	if err != nil {
		return transient("read the bridge's ports", err)
	}
	diffs = append(diffs, checkPort(recorded, att)...)
	if err := s.cfg.Flows.Check(ctx, key); err != nil {
		diffs = append(diffs, fmt.Sprintf("the pod's flows: %v", err))
	}
	if len(diffs) > 0 {
		return errorf(ErrDamaged, "pod %s is not connected as ADD left it: %s", att.Pod, strings.Join(diffs, "; "))
	}
	return nil
}

func prevResult(config []byte, conf netConf) (*current.Result, error) {
	if conf.PrevResult == nil {
		return nil, errorf(types.ErrInvalidNetworkConfig, "CHECK needs prevResult, the result of the ADD")
	}
	var pc types.PluginConf
	if err := json.Unmarshal(config, &pc); err != nil {
		return nil, errorf(types.ErrDecodingFailure, "network configuration: %v", err)
	}
	if err := version.ParsePrevResult(&pc); err != nil {
		return nil, errorf(types.ErrDecodingFailure, "prevResult: %v", err)
	}
	result, err := current.GetResult(pc.PrevResult)
	if err != nil {
		return nil, errorf(types.ErrDecodingFailure, "prevResult: %v", err)
	}
	return result, nil
}

func checkResult(prev *current.Result, att model.Attachment) (diffs []string) {
	isHost := func(i *current.Interface) bool { return i.Sandbox == "" && i.Name == att.HostIfName }
	isPod := func(i *current.Interface) bool {
		return i.Sandbox != "" && i.Name == att.IfName && strings.EqualFold(i.Mac, att.MAC.String())
	}
	if !slices.ContainsFunc(prev.Interfaces, isHost) {
		diffs = append(diffs, fmt.Sprintf("prevResult lacks the node's interface %s", att.HostIfName))
	}
	if !slices.ContainsFunc(prev.Interfaces, isPod) {
		diffs = append(diffs, fmt.Sprintf("prevResult lacks the pod's interface %s with MAC %s", att.IfName, att.MAC))
	}
	for _, ip := range att.IPs {
		if !slices.ContainsFunc(prev.IPs, func(c *current.IPConfig) bool { return c.Address.IP.Equal(ip.AsSlice()) }) {
			diffs = append(diffs, fmt.Sprintf("prevResult lacks address %s", ip))
		}
	}
	return diffs
}

func checkHostEnd(name string) (index int, diffs []string, err error) {
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return 0, []string{fmt.Sprintf("the node's link %s is missing", name)}, nil
	}
	if err != nil {
		return 0, nil, fmt.Errorf("find link %s: %w", name, err)
	}
	if !isOurs(link) {
		diffs = append(diffs, fmt.Sprintf("the node's link %s is not Weft's (%s in group %d)",
			name, link.Type(), link.Attrs().Group))
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		diffs = append(diffs, fmt.Sprintf("the node's link %s is down", name))
	}
	return link.Attrs().Index, diffs, nil
}

// checkPodEnd runs in the pod's network namespace.
func checkPodEnd(att model.Attachment, addrs []podAddr, hostIndex int) (diffs []string, err error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink in the pod's network namespace: %w", err)
	}
	defer h.Close()
	link, err := h.LinkByName(att.IfName)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return []string{fmt.Sprintf("the pod's link %s is missing", att.IfName)}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find link %s in the pod: %w", att.IfName, err)
	}
	attrs := link.Attrs()
	if hostIndex != 0 && attrs.ParentIndex != hostIndex {
		diffs = append(diffs, fmt.Sprintf("the pod's link %s is not the other end of %s", att.IfName, att.HostIfName))
	}
	if attrs.HardwareAddr.String() != att.MAC.String() {
		diffs = append(diffs, fmt.Sprintf("the pod's link %s has MAC %s instead of %s",
			att.IfName, attrs.HardwareAddr, att.MAC))
	}
	if attrs.Flags&net.FlagUp == 0 {
		diffs = append(diffs, fmt.Sprintf("the pod's link %s is down", att.IfName))
	}
	present, err := h.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return diffs, fmt.Errorf("list the addresses of the pod's %s: %w", att.IfName, err)
	}
	routes, err := h.RouteList(link, netlink.FAMILY_ALL)
	if err != nil {
		return diffs, fmt.Errorf("list the routes of the pod's %s: %w", att.IfName, err)
	}
	for _, a := range addrs {
		prefix := a.prefix.String()
		if !slices.ContainsFunc(present, func(p netlink.Addr) bool { return p.IPNet.String() == prefix }) {
			diffs = append(diffs, fmt.Sprintf("the pod's link %s lacks address %s", att.IfName, a.prefix))
		}
		if !slices.ContainsFunc(routes, func(r netlink.Route) bool { return isDefaultVia(r, a.gateway) }) {
			diffs = append(diffs, fmt.Sprintf("the pod lacks its default route via %s", a.gateway))
		}
	}
	return diffs, nil
}

func isDefaultVia(r netlink.Route, gateway netip.Addr) bool {
	if r.Dst != nil {
		if ones, _ := r.Dst.Mask.Size(); ones != 0 {
			return false
		}
	}
	return r.Gw.Equal(gateway.AsSlice())
}

func checkPort(recorded []model.Attachment, att model.Attachment) []string {
	for _, r := range recorded {
		if r.Key() != att.Key() {
			continue
		}
		if r.HostIfName != att.HostIfName || r.OFPort != att.OFPort || r.MAC != att.MAC || r.Pod != att.Pod ||
			!slices.Equal(r.IPs, att.IPs) {
			return []string{fmt.Sprintf("the bridge records %+v instead of %+v", r, att)}
		}
		return nil
	}
	return []string{fmt.Sprintf("the bridge has no port %s", att.HostIfName)}
}
