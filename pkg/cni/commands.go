package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"

	"github.com/weft-cni/weft/pkg/cni/wire"
	"github.com/weft-cni/weft/pkg/model"
)

// do runs one command. Only ADD and CHECK end early when the plugin goes away; a DEL is better finished than repeated.
func (s *Server) do(ctx context.Context, req wire.Request, netns *os.File) (json.RawMessage, error) {
	if slices.Contains([]string{"ADD", "CHECK", "DEL"}, req.Command) {
		if err := validKey(req.ContainerID, req.IfName); err != nil {
			return nil, err
		}
	}
	switch req.Command {
	case "ADD":
		ctx, cancel := context.WithTimeout(ctx, doTimeout)
		defer cancel()
		return s.add(ctx, req, netns)
	case "CHECK":
		ctx, cancel := context.WithTimeout(ctx, doTimeout)
		defer cancel()
		return nil, s.check(ctx, req, netns)
	case "DEL":
		return nil, s.del(context.WithoutCancel(ctx), model.AttachmentKey{ContainerID: req.ContainerID, IfName: req.IfName})
	case "GC":
		return nil, s.gc(context.WithoutCancel(ctx), req)
	case "STATUS":
		return nil, s.status(req)
	default:
		return nil, errorf(types.ErrInvalidEnvironmentVariables, "CNI_COMMAND %q is unknown", req.Command)
	}
}

func (s *Server) add(ctx context.Context, req wire.Request, netns *os.File) (json.RawMessage, error) {
	conf, err := parseConf(req.Config)
	if err != nil {
		return nil, err
	}
	if conf.Name != NetworkName {
		return nil, errorf(types.ErrInvalidNetworkConfig, "network name %q: the network of weft-cni must be called %q", conf.Name, NetworkName)
	}
	if conf.PrevResult != nil {
		return nil, errorf(types.ErrInvalidNetworkConfig, "prevResult: weft-cni makes the interface, so it must be the first plugin of the list")
	}
	pod, mac, err := identity(req.Args, conf)
	if err != nil {
		return nil, err
	}
	if err := checkNetns(netns, req.Netns); err != nil {
		return nil, err
	}
	set := s.cfg.Settings()
	if reason := set.unready(); reason != "" {
		return nil, errorf(types.ErrTryAgainLater, "the Weft agent is not ready: %s", reason)
	}
	if set.NoAddresses != "" {
		return nil, errorf(types.ErrTryAgainLater, "no pod can be attached: %s", set.NoAddresses)
	}
	key := model.AttachmentKey{ContainerID: req.ContainerID, IfName: req.IfName}
	unlock, err := s.locks.lock(ctx, key)
	if err != nil {
		return nil, err
	}
	defer unlock()

	s.releaseOrphans()
	att, err := s.book.reserve(key, pod, set.PodCIDRs, mac)
	if err != nil {
		return nil, err
	}
	att.NetNS = req.Netns
	hostMAC, err := s.connect(ctx, att, set, conf.RuntimeConfig.Bandwidth, netns)
	var result json.RawMessage
	if err == nil {
		result, err = encodeResult(newResult(att, hostMAC, set, req, conf.DNS), conf.CNIVersion)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w (%w)", context.Cause(ctx), err)
		}
		if undo := s.remove(context.WithoutCancel(ctx), "ADD", att); undo != nil {
			err = fmt.Errorf("%w; and rolling it back failed, so its address stays reserved until DEL: %w", err, undo)
		}
		return nil, fmt.Errorf("attach pod %s: %w", pod, err)
	}
	if err := s.copies.write(att, hostMAC); err != nil {
		s.cfg.Log.Error("an attachment has no copy: if OVSDB is lost while no agent runs, its pod must be deleted", "err", err)
	}
	s.book.complete(att)
	return result, nil
}

// connect makes and realises everything that an attachment consists of. What does not depend on each other runs in
// parallel: the flows are compiled and programmed while the kernel makes the veth and OVS adds the port, which forwards
// nothing until its flows are there. On failure something of it may exist.
func (s *Server) connect(ctx context.Context, att model.Attachment, set Settings, limit egressLimit, netns *os.File) (net.HardwareAddr, error) {
	var veth *netlink.Veth
	g, gctx := errgroup.WithContext(ctx)
	g.Go(s.timed("flows", func() error {
		if err := s.cfg.Flows.Attach(gctx, att); err != nil {
			return transient("realise the pod's flows", err)
		}
		return nil
	}))
	g.Go(func() error {
		if err := s.cfg.Ports.SetLastIPs(gctx, s.book.last()); err != nil {
			s.cfg.Log.Warn("after a restart of the agent, addresses go on after the highest in use", "err", err)
		}
		return nil
	})
	g.Go(func() error {
		err := s.timed("veth", func() (err error) {
			veth, err = addVeth(att, set.MTU, netns)
			return err
		})()
		if err != nil {
			return err
		}
		g.Go(s.timed("pod", func() error {
			return configurePod(netns, att.IfName, podAddrs(att, set.PodCIDRs), set.UserspaceDatapath, limit, sysctls(s.cfg.ProcSys))
		}))
		if err := raiseHostEnd(veth, sysctls(s.cfg.ProcSys)); err != nil {
			return err
		}
		return s.timed("port", func() error {
			// Not ended early when something else fails: an interrupted transaction may still take effect, and the
			// roll-back could come before it. But do's deadline holds, or the answer would come too late.
			deadline, _ := ctx.Deadline()
			ctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), deadline)
			defer cancel()
			if err := s.cfg.Ports.AddPort(ctx, att); err != nil {
				return transient("add the pod's port to the bridge", err)
			}
			return nil
		})()
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := netlink.LinkSetGroup(veth, int(GroupAttached)); err != nil {
		return nil, fmt.Errorf("mark link %s as attached: %w", att.HostIfName, err)
	}
	return veth.HardwareAddr, nil
}

func (s *Server) timed(phase string, fn func() error) func() error {
	return func() error {
		start := time.Now()
		defer func() { s.cfg.Observe("ADD", phase, time.Since(start)) }()
		return fn()
	}
}

// transient marks a failure of the bridge or the flow loop, which reconnect and retry by themselves.
func transient(what string, err error) error {
	return fmt.Errorf("%s: %w", what, types.NewError(types.ErrTryAgainLater, err.Error(), ""))
}

// del removes an attachment. What is unknown was never made, is gone, or is an orphan.
func (s *Server) del(ctx context.Context, key model.AttachmentKey) error {
	lockCtx, cancel := context.WithTimeout(ctx, doTimeout)
	defer cancel()
	unlock, err := s.locks.lock(lockCtx, key)
	if err != nil {
		return err
	}
	defer unlock()
	att, ok := s.book.get(key)
	if !ok {
		err = s.deleteOrphan(key)
	} else if err = s.remove(ctx, "DEL", att); err != nil {
		err = fmt.Errorf("detach pod %s: %w", att.Pod, err)
	}
	if err != nil {
		return err
	}
	pending := wire.Pending{ContainerID: key.ContainerID, IfName: key.IfName}
	if err := pending.Remove(s.cfg.Socket); err != nil {
		return fmt.Errorf("remove the record of a deletion: %w", err)
	}
	return nil
}

// remove takes an attachment apart, whatever of it exists, and frees its addresses when port, flows and link are gone.
func (s *Server) remove(ctx context.Context, command string, att model.Attachment) error {
	s.book.dissolve(att.Key()) // so that RestorePorts does not bring its port back, should this fail half-way
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	timed := func(phase string, fn func() error) func() error {
		return func() error {
			start := time.Now()
			err := fn()
			s.cfg.Observe(command, "remove-"+phase, time.Since(start))
			return err
		}
	}
	var g errgroup.Group
	g.Go(timed("flows", func() error {
		if err := s.cfg.Flows.Detach(ctx, att.Key()); err != nil {
			return transient("remove the pod's flows", err)
		}
		return nil
	}))
	portErr := timed("port", func() error {
		if err := s.cfg.Ports.RemovePort(ctx, att.HostIfName); err != nil {
			return transient("remove port "+att.HostIfName, err)
		}
		return nil
	})()
	// After the port, so that OVS need not find out by itself; but in any case: a pod that shall be detached must not go on
	// sending because OVSDB is away. The kernel takes its time (20 ms), so it does not wait for the flows.
	linkErr := timed("link", func() error { return deleteLink(att.HostIfName) })()
	err := errors.Join(portErr, linkErr, g.Wait())
	if err == nil {
		err = s.copies.remove(att.HostIfName)
	}
	if err == nil {
		s.book.release(att.Key())
	}
	return err
}

// gc removes what the runtime does not list. An attachment that another request is just working on is that request's.
func (s *Server) gc(ctx context.Context, req wire.Request) error {
	conf, err := parseConf(req.Config)
	if err != nil {
		return err
	}
	if conf.Name != NetworkName {
		return errorf(types.ErrInvalidNetworkConfig, "network name %q: the network of weft-cni must be called %q", conf.Name, NetworkName)
	}
	if conf.Valid == nil {
		return errorf(types.ErrInvalidNetworkConfig, "GC needs the key cni.dev/valid-attachments; nothing was removed")
	}
	valid := map[model.AttachmentKey]bool{}
	for _, a := range *conf.Valid {
		valid[model.AttachmentKey{ContainerID: a.ContainerID, IfName: a.IfName}] = true
	}
	var errs []error
	for _, key := range s.book.keys() {
		if valid[key] || s.locks.busy(key) {
			continue
		}
		att, _ := s.book.get(key)
		// A warning with names: with two container runtimes on one network directory, each one's GC removes the other's pods.
		s.cfg.Log.Warn("removing an attachment that the runtime's GC does not list",
			"pod", att.Pod, "attachment", key, "addresses", att.IPs, "netns", att.NetNS)
		errs = append(errs, s.del(ctx, key))
	}
	return errors.Join(errs...)
}

func (s *Server) status(req wire.Request) error {
	if _, err := parseConf(req.Config); err != nil {
		return err
	}
	set := s.cfg.Settings()
	if reason := set.unready(); reason != "" {
		return errorf(errNotAvailable, "the Weft agent is not ready: %s", reason)
	}
	if set.Degraded != "" {
		return errorf(errNotAvailable, "pods cannot be attached for the moment: %s", set.Degraded)
	}
	s.releaseOrphans()
	if cidr, full := s.book.exhausted(set.PodCIDRs); full {
		return errorf(errNotAvailable, "no address is left in pod CIDR %s of this node", cidr)
	}
	return nil
}

// newResult describes the attachment: the node's interface first, the pod's second.
func newResult(att model.Attachment, hostMAC net.HardwareAddr, set Settings, req wire.Request, dns types.DNS) *current.Result {
	r := &current.Result{
		CNIVersion: current.ImplementedSpecVersion,
		Interfaces: []*current.Interface{
			{Name: att.HostIfName, Mac: hostMAC.String(), Mtu: set.MTU},
			{Name: att.IfName, Mac: att.MAC.String(), Mtu: set.MTU, Sandbox: req.Netns},
		},
		DNS: dns,
	}
	for _, a := range podAddrs(att, set.PodCIDRs) {
		bits := a.prefix.Addr().BitLen()
		r.IPs = append(r.IPs, &current.IPConfig{Interface: current.Int(1), Address: *ipNet(a.prefix), Gateway: a.gateway.AsSlice()})
		r.Routes = append(r.Routes, &types.Route{Dst: net.IPNet{IP: make(net.IP, bits/8), Mask: net.CIDRMask(0, bits)}, GW: a.gateway.AsSlice()})
	}
	return r
}

func encodeResult(r *current.Result, version string) (json.RawMessage, error) {
	converted, err := r.GetAsVersion(version)
	if err != nil {
		return nil, errorf(types.ErrIncompatibleCNIVersion, "result in version %s: %v", version, err)
	}
	var b bytes.Buffer
	if err := converted.PrintTo(&b); err != nil {
		return nil, fmt.Errorf("write the result: %w", err)
	}
	return b.Bytes(), nil
}
