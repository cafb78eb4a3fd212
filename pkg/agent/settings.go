package agent

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/weft-cni/weft/pkg/cni"
	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/host"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/state"
)

// settings is what the CNI server gives pods now.
func (a *Agent) settings() cni.Settings {
	self := a.loop.View().Self
	a.mu.Lock()
	defer a.mu.Unlock()
	s := cni.Settings{PodCIDRs: self.PodCIDRs, MTU: a.mtu, UserspaceDatapath: a.cfg.Datapath == config.DatapathNetdev}
	s.NotReady = a.notReadyLocked()
	return s
}

// notReadyLocked says why the node cannot take pods, or "". A problem that comes up later, such as a route that cannot be
// set, is reported but does not stop pods: what runs goes on, and CNI ADD fails by itself where it must.
func (a *Agent) notReadyLocked() string {
	if a.ready {
		return ""
	}
	for part, problem := range a.problems {
		return fmt.Sprintf("waiting for %s: %s", part, problem)
	}
	return "starting"
}

// syncHost keeps the node's own network: the gateway's addresses, the routes, the masquerade.
func (a *Agent) syncHost(ctx context.Context) error {
	if err := a.findMTU(ctx); err != nil {
		return err
	}
	view, cfg := a.loop.View(), a.config()
	a.mu.Lock()
	mtu := a.mtu
	a.mu.Unlock()
	want := host.Desired{
		Gateway:      model.GatewayName,
		MTU:          mtu,
		PodCIDRs:     view.Self.PodCIDRs,
		Masquerade:   cfg.EgressMasquerade,
		NoMasquerade: cfg.NonMasqueradeCIDRs,
	}
	for _, n := range view.Nodes {
		want.RemotePodCIDRs = append(want.RemotePodCIDRs, n.PodCIDRs...)
	}
	done, err := a.host.Sync(ctx, want)
	if len(done) > 0 {
		a.log.Info("host network changed", "changes", done)
	}
	return err
}

// resolveNeighbours spares the first packet to each node (userspace datapath only).
func (a *Agent) resolveNeighbours(context.Context) error {
	view := a.loop.View()
	var addrs []netip.Addr
	for _, n := range view.Nodes {
		if flows.Reachable(n, view.Self) == nil {
			addrs = append(addrs, n.TunnelAddr())
		}
	}
	return host.ResolveNeighbours(addrs)
}

// findMTU follows the underlay's MTU.
func (a *Agent) findMTU(context.Context) error {
	mtu, underlay, err := podMTU(a.config(), a.loop.View().Self)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mtu != mtu || a.underlay != underlay {
		a.log.Info("MTU of pods", "mtu", mtu, "underlay", underlay)
		a.mtu, a.underlay = mtu, underlay
		notify(a.pokeBridge)
		notify(a.pokePods)
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

// podMTU is what fits into a tunnel packet on the underlay.
func podMTU(cfg config.Config, self model.Node) (mtu int, underlay string, err error) {
	outer := self.TunnelAddr()
	under, underlay, err := host.UnderlayMTU(outer)
	if err != nil {
		return 0, "", err
	}
	if cfg.MTU != 0 {
		return cfg.MTU, underlay, nil
	}
	return under - cfg.TunnelType.Overhead(outer), underlay, nil
}

// configPoll is how often the configuration file is looked at. The kubelet renews a mounted ConfigMap about once a
// minute, by exchanging a symbolic link, which file notifications miss more easily than a look does.
const configPoll = 2 * time.Second

// watchConfig applies what may change while the agent runs and remembers what needs a restart. A file with mistakes
// changes nothing.
func (a *Agent) watchConfig(ctx context.Context) {
	last, err := os.ReadFile(a.opt.ConfigFile)
	if err != nil {
		a.setProblem("configuration", err)
	}
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
			continue
		}
		last = data
		next, err := config.Parse(data)
		if err != nil {
			a.setProblem("configuration", fmt.Errorf("%s has mistakes, the settings from before stay: %w", a.opt.ConfigFile, err))
			continue
		}
		a.setProblem("configuration", nil)
		a.reconfigure(next)
	}
}

func (a *Agent) reconfigure(next config.Config) {
	a.mu.Lock()
	var waiting []config.Change
	for _, c := range config.Diff(a.cfg, next) {
		if c.Live {
			a.log.Info("setting changed", "key", c.Key, "old", c.Old, "new", c.New)
		} else {
			a.log.Warn("setting changed, but takes effect only when the agent is restarted: kubectl -n weft-system rollout restart daemonset/weft-agent",
				"key", c.Key, "old", c.Old, "new", c.New)
			waiting = append(waiting, c)
		}
	}
	a.cfg = config.ApplyLive(a.cfg, next)
	a.pending = waiting
	cfg := a.cfg
	a.mu.Unlock()
	a.opt.Level.Set(cfg.LogLevel)
	a.loop.Submit(state.SetTunnel{Type: cfg.TunnelType})
	notify(a.pokeHost)
}
