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

// do runs one command. Only ADD and CHECK end early when the plugin exits; a DEL is finished, so that it need not be
// repeated.
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
		key := model.AttachmentKey{ContainerID: req.ContainerID, IfName: req.IfName}
		return nil, s.del(context.WithoutCancel(ctx), key)
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
		return nil, errorf(types.ErrInvalidNetworkConfig, "network name %q: the network of weft-cni must be called %q",
			conf.Name, NetworkName)
	}
	if conf.PrevResult != nil {
		return nil, errorf(types.ErrInvalidNetworkConfig,
			"prevResult: weft-cni creates the interface, so it must be the first plugin of the list")
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
	att, err := s.allocations.reserve(key, pod, set.PodCIDRs, mac)
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
			err = fmt.Errorf("%w; and the rollback failed, so its address stays reserved until DEL: %w", err, undo)
		}
		return nil, fmt.Errorf("attach pod %s: %w", pod, err)
	}
	if err := s.copies.write(att, hostMAC); err != nil {
		s.cfg.Log.Error("no copy of the attachment; if OVSDB is lost while no agent runs, its pod must be deleted",
			"err", err)
	}
	s.allocations.markComplete(att)
	return result, nil
}

// connect creates and programs all parts of an attachment. Independent parts run in parallel: the agent compiles and
// programs the flows while the kernel creates the veth and OVS adds the port, which forwards nothing until its flows
// exist. After a failure some parts may exist.
func (s *Server) connect(
	ctx context.Context, att model.Attachment, set Settings, limit egressLimit, netns *os.File,
) (net.HardwareAddr, error) {
	var veth *netlink.Veth
	g, gctx := errgroup.WithContext(ctx)
	g.Go(s.timed("flows", func() error {
		if err := s.cfg.Flows.Attach(gctx, att); err != nil {
			return transient("program the pod's flows", err)
		}
		return nil
	}))
	g.Go(func() error {
		if err := s.cfg.Ports.SetLastIPs(gctx, s.allocations.lastIPs()); err != nil {
			s.cfg.Log.Warn("last allocated addresses are not recorded; after a restart of the agent, "+
				"allocation continues after the highest address in use", "err", err)
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
			return configurePod(netns, att.IfName, podAddrs(att, set.PodCIDRs), set.UserspaceDatapath, limit,
				sysctls(s.cfg.ProcSys))
		}))
		if err := raiseHostEnd(veth, sysctls(s.cfg.ProcSys)); err != nil {
			return err
		}
		return s.timed("port", func() error {
			// A failure elsewhere does not cancel AddPort: an interrupted transaction may still take effect, after the
			// rollback. The deadline of the ADD holds, so that the response is in time.
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

// transient marks an error of the bridge or the flow loop, which reconnect and retry by themselves.
func transient(what string, err error) error {
	return fmt.Errorf("%s: %w", what, types.NewError(types.ErrTryAgainLater, err.Error(), ""))
}

// del removes an attachment. An unknown key is an orphan, or there is nothing to remove. Idempotent.
func (s *Server) del(ctx context.Context, key model.AttachmentKey) error {
	lockCtx, cancel := context.WithTimeout(ctx, doTimeout)
	defer cancel()
	unlock, err := s.locks.lock(lockCtx, key)
	if err != nil {
		return err
	}
	defer unlock()
	att, ok := s.allocations.get(key)
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

// remove deletes all parts of an attachment that exist, and frees its addresses once port, flows and link are deleted.
func (s *Server) remove(ctx context.Context, command string, att model.Attachment) error {
	s.allocations.markRemoving(att.Key()) // so that RestorePorts does not restore the port if this fails half-way
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
	// Delete the link after the port, so that ovs-vswitchd does not report a missing device; but delete it even if
	// OVSDB cannot be reached, because a detached pod must not go on sending. The kernel needs 20 ms for it, so do not
	// wait for the flows.
	linkErr := timed("link", func() error { return deleteLink(att.HostIfName) })()
	err := errors.Join(portErr, linkErr, g.Wait())
	if err == nil {
		err = s.copies.remove(att.HostIfName)
	}
	if err == nil {
		s.allocations.release(att.Key())
	}
	return err
}

// gc removes the attachments that the runtime does not list, except those that another request is working on.
func (s *Server) gc(ctx context.Context, req wire.Request) error {
	conf, err := parseConf(req.Config)
	if err != nil {
		return err
	}
	if conf.Name != NetworkName {
		return errorf(types.ErrInvalidNetworkConfig, "network name %q: the network of weft-cni must be called %q",
			conf.Name, NetworkName)
	}
	if conf.Valid == nil {
		return errorf(types.ErrInvalidNetworkConfig, "GC needs the key cni.dev/valid-attachments; nothing was removed")
	}
	valid := map[model.AttachmentKey]bool{}
	for _, a := range *conf.Valid {
		valid[model.AttachmentKey{ContainerID: a.ContainerID, IfName: a.IfName}] = true
	}
	var errs []error
	for _, key := range s.allocations.keys() {
		if valid[key] || s.locks.busy(key) {
			continue
		}
		att, _ := s.allocations.get(key)
		// Warn with names: when two container runtimes share one network directory, the GC of each removes the other's
		// pods.
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
		return errorf(errNotAvailable, "pods cannot be attached now: %s", set.Degraded)
	}
	s.releaseOrphans()
	if cidr, full := s.allocations.exhausted(set.PodCIDRs); full {
		return errorf(errNotAvailable, "no address is left in pod CIDR %s of this node", cidr)
	}
	return nil
}

// newResult returns the CNI result: the node's interface first, the pod's second.
func newResult(
	att model.Attachment, hostMAC net.HardwareAddr, set Settings, req wire.Request, dns types.DNS,
) *current.Result {
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
		r.IPs = append(r.IPs, &current.IPConfig{
			Interface: current.Int(1), Address: *ipNet(a.prefix), Gateway: a.gateway.AsSlice(),
		})
		r.Routes = append(r.Routes, &types.Route{
			Dst: net.IPNet{IP: make(net.IP, bits/8), Mask: net.CIDRMask(0, bits)}, GW: a.gateway.AsSlice(),
		})
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
