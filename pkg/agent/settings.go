package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/weft-cni/weft/pkg/cni"
	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/pkg/host"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/nodepath"
	"github.com/weft-cni/weft/pkg/report"
	"github.com/weft-cni/weft/pkg/state"
)

// settings is what the CNI server gives pods now.
func (a *Agent) settings() cni.Settings {
	view := a.loop.View()
	self := view.SelfPath()
	a.mu.Lock()
	defer a.mu.Unlock()
	s := cni.Settings{PodCIDRs: self.PodCIDRs, MTU: a.mtu, UserspaceDatapath: a.cfg.Datapath == config.DatapathNetdev}
	s.NotReady, s.Degraded = a.notReadyLocked(), a.degradedLocked()
	if len(view.NewPodCIDRs) > 0 {
		s.NoAddresses = fmt.Sprintf(
			"the node's podCIDRs changed to %v, and pods still have addresses of %v: delete these pods (weftctl status names them)",
			view.NewPodCIDRs, self.PodCIDRs)
	}
	return s
}

// notReadyLocked says why the node cannot take pods yet, or "". A problem that comes up later, such as a route that
// cannot be set, is reported but does not stop pods.
func (a *Agent) notReadyLocked() string {
	if a.ready {
		return ""
	}
	for _, besides := range []bool{false, true} {
		for _, part := range slices.Sorted(maps.Keys(a.problems)) {
			if beside[part] == besides {
				return fmt.Sprintf("waiting for %s: %s", part, a.problems[part])
			}
		}
	}
	return "starting"
}

// problemsLocked are all problems of parts, as Status has them.
func (a *Agent) problemsLocked() []string {
	var list []string
	for _, part := range slices.Sorted(maps.Keys(a.problems)) {
		list = append(list, part+": "+a.problems[part])
	}
	return list
}

// degradedLocked says why a node that was ready cannot attach pods for the moment, or "".
func (a *Agent) degradedLocked() string {
	if !a.ready {
		return ""
	}
	if err := a.loop.Stuck(); err != nil {
		return err.Error()
	}
	_, quarantined := a.loop.Installed()
	if err := quarantined[model.PipelineOwner]; err != nil {
		return "the switch refuses the pipeline: " + err.Error()
	}
	if why := a.loop.SwitchError(); why != "" {
		return "the switch cannot be programmed: " + why
	}
	if err := a.ovs.Healthy(); err != nil {
		return err.Error()
	}
	return ""
}

// syncHost keeps the node's own network: the gateway's addresses, the routes, the masquerade. What is wrong with other
// nodes' objects is a problem of its own, for it must not keep this node from its work.
func (a *Agent) syncHost(ctx context.Context) error {
	mtuErr := a.findMTU(ctx) // with it the MTU from before stays
	view, cfg := a.loop.View(), a.config()
	a.mu.Lock()
	mtu := a.mtu
	a.mu.Unlock()
	peers, invalid := peerPaths(view)
	desired := host.Desired{
		Gateway:        model.GatewayName,
		MTU:            mtu,
		KernelDatapath: cfg.Datapath == config.DatapathSystem,
		Address:        view.SelfPath().Local,
		PodCIDRs:       view.SelfPath().PodCIDRs,
		Peers:          peers,
		Masquerade:     cfg.EgressMasquerade,
		NoMasquerade:   cfg.NonMasqueradeCIDRs,
	}
	desired.NodePortAddrs = nodePortAddrs(cfg.NodePortAddresses, view.Self)
	pods := a.kube.Pods()
	a.mu.Lock()
	reserved := a.reserved
	desired.HostPorts = hostPorts(view, pods, a.hostPorts)
	a.hostPorts = desired.HostPorts
	a.mu.Unlock()
	a.setProblem("external addresses of Services", serviceRoutes(&desired, view, reserved))
	a.reportLost(view)
	a.leaveRouted(ctx, view)
	a.acceptPeers(ctx, view)
	var keyErr error
	desired.WireGuard, keyErr = a.wireGuard(view, cfg.WireGuardPort)
	desired.Strict, desired.IPIP = view.Transport.Strict, acceptsIPIP(view)
	a.setProblem("addresses of the node", a.findAddresses(ctx))
	done, err := a.host.Sync(ctx, desired)
	if len(done.Changed) > 0 {
		a.log.Info("host network changed", "changes", done.Changed)
	}
	if err == nil {
		if done.WireGuard != nil {
			desired.WireGuard = nil
		}
		a.noteReceives(ctx, view, desired.WireGuard, done.IPIP == nil)
		err = a.findRouted(ctx)
	}
	a.wake(hostSynced) // also without a change of ours: an address may have come to the node
	a.setProblem("forwarding", done.Filtered)
	a.setProblem("IPIP", done.IPIP)
	a.setProblem(wireGuardProblem, errors.Join(keyErr, done.WireGuard))
	a.setProblem(podCIDRProblem, errors.Join(invalid, done.Unrouted))
	return errors.Join(mtuErr, report.RejectedPodCIDRs(view, view.Self.Name), err)
}

// nodePortAddrs are the addresses that a checked setting nodePortAddresses stands for.
func nodePortAddrs(setting []string, self model.Node) []netip.Prefix {
	var list []netip.Prefix
	for _, word := range setting {
		if word != config.PrimaryAddresses {
			list = append(list, netip.MustParsePrefix(word))
			continue
		}
		for _, a := range self.Addrs {
			list = append(list, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return list
}

// findAddresses tells the loop which addresses this node has, for policies.
func (a *Agent) findAddresses(context.Context) error {
	addrs, err := host.LocalAddrs()
	if err != nil {
		return err
	}
	a.loop.Submit(state.SetLocalAddrs{Addrs: addrs})
	a.mu.Lock()
	changed := !slices.Equal(addrs, a.localAddrs)
	a.localAddrs = addrs
	a.mu.Unlock()
	if changed {
		a.wake(addressesChanged)
	}
	a.dropLostConnections()
	a.setProblem(internalIPProblem, report.MissingAddrs(a.loop.View(), addrs))
	var tooMany error
	if n := len(addrs); n > state.MaxLocalAddrs {
		tooMany = fmt.Errorf("the node has %d addresses, of which policies take at most %d for the node; remove some", n,
			state.MaxLocalAddrs)
	}
	a.setProblem("number of addresses", tooMany)
	return nil
}

// peerPaths returns the paths to the peer nodes, in the order of their names, and the errors of their Node objects.
func peerPaths(view *model.Snapshot) (peers []model.Path, invalid error) {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(view.Nodes)) {
		peers = append(peers, view.Paths[name])
		errs = append(errs, report.RejectedPodCIDRs(view, name))
	}
	return peers, errors.Join(errs...)
}

// flushConnections removes connections without the translation that they should have from the kernel's table. It may
// take long, and a new address of a pod must not wait for it.
func (a *Agent) flushConnections(ctx context.Context) error {
	n, err := a.host.FlushConnections(ctx)
	if n > 0 {
		a.log.Info("flushed connections that lacked a translation, or had one that is gone", "connections", n)
	}
	return err
}

// internalIPProblem is the part that this node's own addresses are at fault for.
const internalIPProblem = "InternalIP"

// reservedProblem is the part that finds the addresses that the node cannot do without.
const reservedProblem = "addresses that the node needs"

// podCIDRProblem is the part that other nodes' objects are at fault for.
const podCIDRProblem = "pod CIDRs"

// resolveNeighbours spares the first packet to each node (userspace datapath only).
func (a *Agent) resolveNeighbours(context.Context) error {
	view := a.loop.View()
	var addrs []netip.Addr
	for _, path := range view.Paths {
		if path.Reachable() {
			addrs = append(addrs, path.NextHop)
		}
	}
	return host.ResolveNeighbors(addrs)
}

// findMTU follows the underlay's MTU.
func (a *Agent) findMTU(context.Context) error {
	view := a.loop.View()
	under, underlay, err := host.UnderlayMTU(view.SelfPath().Local)
	if err != nil {
		return err
	}
	mtu, err := podMTU(a.config(), view, under)
	if err != nil {
		return fmt.Errorf("underlay %s: %w", underlay, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mtu != mtu || a.underlay != underlay {
		a.log.Info("MTU of pods", "mtu", mtu, "underlay", underlay)
		a.mtu, a.underlay = mtu, underlay
		a.wake(mtuChanged)
	}
	return nil
}

// syncPods gives pods that run already the MTU that new ones get.
func (a *Agent) syncPods(ctx context.Context) error {
	a.mu.Lock()
	mtu := a.mtu
	a.mu.Unlock()
	return a.cni.SetMTU(ctx, mtu)
}

// podMTU is the configured MTU of pods, or the one that the paths and the MTU of the underlay allow.
func podMTU(cfg config.Config, view *model.Snapshot, underlay int) (int, error) {
	mtu := cfg.MTU
	if mtu == 0 {
		mtu = nodepath.PodMTU(view.Paths, underlay)
	}
	// The kernel takes IPv6 away from an interface whose MTU falls below this, and does not give it back.
	isIPv6 := func(p netip.Prefix) bool { return p.Addr().Is6() }
	if mtu < minIPv6MTU && slices.ContainsFunc(view.SelfPath().PodCIDRs, isIPv6) {
		return 0, fmt.Errorf("pods with IPv6 addresses need an MTU of %d, but would get %d (RFC 8200, section 5)", minIPv6MTU,
			mtu)
	}
	return mtu, nil
}

// minIPv6MTU is what every link that carries IPv6 must have.
const minIPv6MTU = 1280

// configPoll is how often the configuration file is looked at. The kubelet renews a mounted ConfigMap about once a
// minute, by exchanging a symbolic link, which file notifications miss more easily than a look does.
const configPoll = 2 * time.Second

// watchConfig applies what may change while the agent runs and remembers what needs a restart. A file with mistakes
// changes nothing.
func (a *Agent) watchConfig(ctx context.Context, last []byte) {
	var mistakes error // of the last content that could be read
	for {
		sleep(ctx, configPoll)
		if ctx.Err() != nil {
			return
		}
		data, err := os.ReadFile(a.opt.ConfigFile)
		if err != nil {
			a.setProblem("configuration", err)
			continue
		}
		if bytes.Equal(data, last) {
			a.setProblem("configuration", mistakes)
			continue
		}
		last, mistakes = data, nil
		next, err := config.Parse(data)
		if err != nil {
			mistakes = fmt.Errorf("%s has mistakes, the settings from before stay: %w", a.opt.ConfigFile, err)
		}
		a.setProblem("configuration", mistakes)
		if err == nil {
			a.reconfigure(next)
		}
	}
}

func (a *Agent) reconfigure(next config.Config) {
	a.mu.Lock()
	var waiting []config.Change
	for _, c := range config.Diff(a.cfg, next) {
		if c.Live {
			a.log.Info("setting changed", "key", c.Key, "old", c.Old, "new", c.New)
		} else {
			a.log.Warn("setting changed, but takes effect only when the agent is restarted: kubectl -n weft-system rollout "+
				"restart daemonset/weft-agent",
				"key", c.Key, "old", c.Old, "new", c.New)
			waiting = append(waiting, c)
		}
	}
	a.cfg = config.ApplyLive(a.cfg, next)
	a.pending = waiting
	a.opt.Level.Set(a.cfg.LogLevel)
	a.submitSettings()
	a.mu.Unlock()
	a.wake(settingsChanged)
}
