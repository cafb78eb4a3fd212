// Package agent ties one node's parts together: informers, OVSDB, the CNI server and the configuration on one side, the
// flow loop and the host's own network on the other.
//
// Loop.Run's goroutine owns desired state and writes the switch. Beside it each part of the node that is to be kept
// right has a goroutine of its own (see keep): the bridge, the host's network, health checks of Services, the sweep
// of connections, the policy log and others. One follows the configuration file, and the servers have theirs. They
// share what the Agent's mutex guards, and the tally of counters, which has a mutex of its own.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-cni/weft/pkg/cni"
	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/healthcheck"
	"github.com/weft-cni/weft/pkg/host"
	"github.com/weft-cni/weft/pkg/kube"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/ovsdb"
	"github.com/weft-cni/weft/pkg/state"
)

// Options are what the command line says; what an administrator configures is in the configuration file.
type Options struct {
	Node       string
	ConfigFile string
	Version    string
	// Kubeconfig says how to reach the API server where there is no service account; empty in a pod.
	Kubeconfig string
	// CNISocket is where weft-cni calls; OperatorSocket is where weftctl does.
	CNISocket      string
	OperatorSocket string
	// CNIConfDir is the container runtime's configuration directory.
	CNIConfDir string
	// ProcSys is where the node's /proc/sys is mounted writable.
	ProcSys string
	// HostRun is where the node's /run is mounted; an ovsRunDir below /run is looked for there. Empty: at its own path.
	HostRun string
	// Level lets a change of the configuration change what is logged.
	Level *slog.LevelVar
	Log   *slog.Logger
}

// Agent is one node's agent.
type Agent struct {
	opt    Options
	log    *slog.Logger
	client kube.Client
	kube   *kube.Watcher
	events *kube.Reporter
	ovs    *ovsdb.Client
	sw     *ofswitch.Switch
	host   *host.Host
	loop   *Loop
	cni    *cni.Server
	tally  tally
	peers  kube.Peers

	unavailable atomic.Bool // this node's condition NetworkUnavailable has to be set to False

	synced atomic.Bool // all objects that the API server had at the start were received

	nodeHealth nodeHealth

	pokeBridge, pokeHost, pokeNeighbours, pokeForwarding, pokeDatapath, pokePods, pokeConnections, pokeHealth, pokeLog, pokeCondition, pokeCopy chan struct{}

	mu       sync.Mutex
	cfg      config.Config
	mtu      int                    // of pods; 0 until it is known
	underlay string                 // the link that carries the node's address
	problems map[string]string      // by the part that has it
	objects  map[model.Owner]string // what of objects cannot be used
	lost     map[model.Owner]string // external addresses that Services name and others have
	pending  []config.Change        // settings that wait for a restart
	reserved map[netip.Addr]string  // addresses that no Service may have, and whose they are
	ready    bool                   // everything was right once
	copyTime time.Time              // of the copy that the agent works from; zero when it works from the API server

	// nodesSeen and servicesSeen are the revisions of these parts of the view that the host's network was last told of.
	nodesSeen, servicesSeen uint64
	// podsSeen is the revision of the pods whose host ports were last looked at; hostPorts are what the host was told.
	podsSeen  uint64
	hostPorts []host.HostPort
}

// Run runs the agent until the context ends. It returns an error when it cannot start or a part of it breaks for good.
func Run(ctx context.Context, opt Options) error {
	// Read apart from parsing: what changes in between is a change that watchConfig finds.
	configured, err := os.ReadFile(opt.ConfigFile)
	if err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	cfg, err := config.Load(opt.ConfigFile)
	if err != nil {
		return err
	}
	opt.Level.Set(cfg.LogLevel)
	a := &Agent{
		opt: opt, log: opt.Log, cfg: cfg,
		pokeBridge: make(chan struct{}, 1), pokeHost: make(chan struct{}, 1), pokeNeighbours: make(chan struct{}, 1), pokeForwarding: make(chan struct{}, 1), pokeDatapath: make(chan struct{}, 1), pokePods: make(chan struct{}, 1), pokeConnections: make(chan struct{}, 1), pokeHealth: make(chan struct{}, 1), pokeLog: make(chan struct{}, 1),
		pokeCondition: make(chan struct{}, 1), pokeCopy: make(chan struct{}, 1),
		problems: map[string]string{}, objects: map[model.Owner]string{},
	}
	a.nodeHealth.serving, a.nodeHealth.now = a.serving, time.Now
	group, ctx := errgroup.WithContext(ctx)
	// The operator's socket and the probes answer from the first moment: what is missing is what people want to know.
	group.Go(func() error { a.serveHealth(ctx); return nil })
	group.Go(func() error { a.serveNodeHealth(ctx, cfg.NodeHealthAddr); return nil })
	group.Go(func() error { return a.serveOperator(ctx) })
	group.Go(func() error { a.watchConfig(ctx, configured); return nil })
	group.Go(func() error { return a.start(ctx, group) })
	err = group.Wait()
	if a.sw != nil {
		err = errors.Join(err, a.sw.Close())
	}
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// start brings the parts up in the order that the invariants ask for: nothing is written to the switch before the
// informers have synced and the pods that are already attached are known.
func (a *Agent) start(ctx context.Context, group *errgroup.Group) error {
	var err error
	if a.client, err = kube.NewClient(a.cfg.APIServer, a.opt.Kubeconfig, &a.peers); err != nil {
		return err
	}
	a.events = kube.NewReporter(a.client, a.opt.Node)
	defer a.events.Close()
	datapath := ofswitch.Kernel
	if a.cfg.Datapath == config.DatapathNetdev {
		datapath = ofswitch.Userspace
	}
	a.sw = ofswitch.New(a.ovsRunDir(), model.BridgeName, datapath)
	var sweeper *sweeper
	loop := NewLoop(LoopOptions{
		Node: a.opt.Node, Switch: a.sw, Log: a.log, Report: a.reportOwner,
		Problem: a.objectProblem, Viewed: a.viewed, Costly: a.sw.PurgesCache,
		Sweep: func(r SweepRequest) { sweeper.request(r) },
	})
	sweeper = newSweeper(connectionTracker{a.sw}, loop.Installed, a.log)
	watcher, err := kube.NewWatcher(a.client, a.opt.Node, loop.Submit, a.log)
	if err != nil {
		return err
	}
	watcher.Draining, watcher.Unavailable = a.nodeHealth.setDraining, a.setUnavailable
	a.mu.Lock()
	a.kube = watcher
	a.mu.Unlock()
	loop.Submit(state.SetKernelDatapath{Kernel: a.cfg.Datapath == config.DatapathSystem})
	loop.Submit(state.SetTime{Now: time.Now()})
	group.Go(func() error { tellTime(ctx, loop); return nil })
	nft, err := host.NFTables()
	if err != nil {
		return err
	}
	a.host = host.New(nft, a.opt.ProcSys, a.log)

	if err := a.retry(ctx, "OVSDB", func(ctx context.Context) error {
		a.ovs, err = ovsdb.Connect(ctx, "unix:"+filepath.Join(a.ovsRunDir(), "db.sock"), model.BridgeName, a.log)
		return err
	}); err != nil {
		return err
	}
	defer a.ovs.Close()
	a.cni = cni.NewServer(cni.Config{
		Socket: a.opt.CNISocket, ProcSys: a.opt.ProcSys, Settings: a.settings, Ports: a.ovs, Flows: cleanFlows{loop, sweeper}, Log: a.log, Observe: observeCNI,
		FilterPodLinks: a.host.FilterPodLinks,
		Problem:        func(err error) { a.setProblem("CNI socket", err) },
	})
	if err := a.retry(ctx, "attached pods", func(ctx context.Context) error {
		attachments, err := a.cni.Recover(ctx)
		for _, att := range attachments {
			loop.Submit(state.SetAttachment{Attachment: att})
		}
		return err
	}); err != nil {
		return err
	}

	a.mu.Lock()
	a.loop = loop
	a.submitSettings() // from here on reconfigure does it
	a.mu.Unlock()
	group.Go(func() error { a.kube.Run(ctx); return nil })
	group.Go(func() error { a.watchAPI(ctx); return nil })
	if err := a.awaitObjects(ctx, group, loop); err != nil {
		return err
	}
	loop.Gather()
	group.Go(func() error { a.keepCopy(ctx, loop); return nil })
	if err := a.retry(ctx, nodeProblem, a.selfKnown); err != nil {
		return err
	}

	// Before the loop: flows that name these addresses are not to be removed and added again.
	if err := a.retry(ctx, "addresses of the node", a.findAddresses); err != nil {
		return err
	}
	// Before the bridge: its gateway must not change its MTU for a moment whenever an agent starts.
	if err := a.retry(ctx, "underlay", gathering(loop, a.findMTU)); err != nil {
		return err
	}
	if err := a.retry(ctx, "bridge", gathering(loop, a.syncBridge)); err != nil {
		return err
	}
	// The end comes in layers, each when the one above it is done: the CNI server rolls back what it has begun, for which
	// it needs the loop and OVSDB.
	loopCtx, stopLoop := context.WithCancel(context.WithoutCancel(ctx))
	loopDone := make(chan struct{})
	group.Go(func() error { defer close(loopDone); return loop.Run(loopCtx) })
	defer func() { stopLoop(); <-loopDone }()
	group.Go(func() error {
		a.keep(ctx, "bridge", a.syncBridge, a.ovs.Changes(), a.cni.WatchLinks(ctx), a.pokeBridge)
		return nil
	})
	group.Go(func() error { a.keep(ctx, "datapath", a.syncDatapath, a.pokeDatapath); return nil })
	group.Go(func() error { a.keep(ctx, "MTU of pods", a.syncPods, a.pokePods); return nil })
	health := healthcheck.New(healthcheck.Options{Healthy: a.serving, Problem: a.reportHealthCheck})
	defer health.Close()
	group.Go(func() error {
		a.keep(ctx, "health checks of Services", func(context.Context) error { health.Sync(healthChecks(a.loop.View())); return nil }, a.pokeHealth)
		return nil
	})
	group.Go(func() error { a.keep(ctx, "sweep of connections", sweeper.sync, sweeper.wake); return nil })
	policyLog := &policyLog{sw: a.sw, log: a.log, view: loop.View}
	group.Go(func() error {
		defer policyLog.close()
		a.keep(ctx, "policy log", policyLog.sync, a.pokeLog)
		return nil
	})
	if a.cfg.Datapath == config.DatapathNetdev {
		group.Go(func() error { a.keep(ctx, "tunnel neighbours", a.resolveNeighbours, a.pokeNeighbours); return nil })
	}
	cniCtx, stopCNI := context.WithCancel(ctx)
	cniDone := make(chan struct{})
	group.Go(func() error { defer close(cniDone); return a.cni.Serve(cniCtx) })
	defer func() { stopCNI(); <-cniDone }()
	if err := a.syncReserved(ctx); err != nil {
		a.setProblem(reservedProblem, err)
	}
	if err := a.retry(ctx, "host network", a.syncHost); err != nil {
		return err
	}
	// Not before: a Host has one user.
	group.Go(func() error { a.keep(ctx, "host network", a.syncHost, a.host.Watch(ctx), a.pokeHost); return nil })
	group.Go(func() error { a.keep(ctx, reservedProblem, a.syncReserved); return nil })
	group.Go(func() error {
		a.keep(ctx, "connections of the kernel", a.flushConnections, a.pokeConnections)
		return nil
	})
	if err := a.retry(ctx, "first programming", a.programmed); err != nil {
		return err
	}
	if err := a.retry(ctx, "flow-restore-wait", a.startForwarding); err != nil {
		return err
	}
	if err := a.retry(ctx, "CNI configuration", func(context.Context) error {
		return cni.WriteConfList(a.opt.CNIConfDir, a.opt.CNISocket, a.log)
	}); err != nil {
		return err
	}
	group.Go(func() error { a.keep(ctx, "flow-restore-wait", a.startForwarding, a.pokeForwarding); return nil })
	a.mu.Lock()
	a.ready = true
	a.mu.Unlock()
	a.checkSelf(loop.View())
	a.log.Info("ready", "node", a.opt.Node, "version", a.opt.Version)
	group.Go(func() error { a.keep(ctx, "node condition", a.syncCondition, a.pokeCondition); return nil })
	slim()
	<-ctx.Done()
	return nil
}

// firstProgramming is how long the first bundle may take before the agent says that it waits for it.
const firstProgramming = time.Second

// programmed waits, for a while and then by failing, until the switch holds the flows.
func (a *Agent) programmed(ctx context.Context) error {
	settled, cancel := context.WithTimeout(ctx, firstProgramming)
	defer cancel()
	_ = a.loop.Settled(settled) // the status says what is missing
	if s := a.loop.Status(); s.Programmed < s.Desired || s.Flows == 0 {
		return fmt.Errorf("the switch holds revision %d of %d: %s", s.Programmed, s.Desired, s.Error)
	}
	if err := a.ovs.Healthy(); err != nil {
		return err
	}
	for _, o := range []model.Owner{model.PipelineOwner, model.SelfOwner} {
		if err := a.loop.RefusedOwner(o); err != nil {
			return fmt.Errorf("without the flows of %s the node forwards nothing: %w", o, err)
		}
	}
	return nil
}

// startForwarding clears flow-restore-wait, which OVS's own restart scripts may have left behind, but not before the
// flows are in: with it the node forwards nothing, whatever flows it has.
func (a *Agent) startForwarding(ctx context.Context) error {
	waiting, err := a.ovs.FlowRestoreWait(ctx)
	if err != nil || !waiting {
		return err
	}
	if err := a.loop.Sync(ctx); err != nil {
		return err
	}
	a.log.Warn("Open vSwitch was told to wait for its flows (other_config:flow-restore-wait); they are in, so it may forward")
	return a.ovs.SetFlowRestoreWait(ctx, false)
}

// viewed is called by the loop with every new snapshot. The host's network depends on nodes and Services, and on pods
// only as far as they have host ports.
func (a *Agent) viewed(s *model.Snapshot) {
	a.mu.Lock()
	nodes, services := s.NodesRevision != a.nodesSeen, s.ServicesRevision != a.servicesSeen
	pods := s.PodsRevision != a.podsSeen
	a.nodesSeen, a.servicesSeen, a.podsSeen = s.NodesRevision, s.ServicesRevision, s.PodsRevision
	a.mu.Unlock()
	notify(a.pokeLog)
	notify(a.pokeCopy)
	a.checkSelf(s)
	if nodes || services || pods && a.hostPortsChanged(s) {
		notify(a.pokeHost)
	}
	if services {
		notify(a.pokeHealth)
	}
	if nodes {
		notify(a.pokeNeighbours)
		notify(a.pokeBridge) // the first tunnel over IPv6 needs checksums
	}
}

func (a *Agent) config() config.Config {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.cfg
}

// syncBridge keeps the bridge and the ports that every node has.
func (a *Agent) syncBridge(ctx context.Context) error {
	a.mu.Lock()
	mtu := a.mtu
	cfg := a.cfg
	a.mu.Unlock()
	view := a.loop.View()
	checksum := view.Self.TunnelAddr().Is6()
	for _, path := range view.Paths {
		checksum = checksum || path.Remote.Is6()
	}
	known, err := a.cni.Known()
	if err != nil {
		return err
	}
	changed, err := a.ovs.EnsureBridge(ctx, ovsdb.Bridge{
		Datapath:   string(cfg.Datapath),
		GatewayMTU: mtu,
		Tunnel:     cfg.TunnelType,
		Tables:     flows.TableNames(),
		Zones: []ovsdb.Zone{
			{Number: flows.Zone}, {Number: flows.SourceZone}, {Number: flows.EndpointZone, Keep: flows.EndpointMemory},
		},
		TunnelChecksum: checksum,
		Version:        a.opt.Version,
		Pods:           known,
	})
	// The port of the other tunnel type is only for a change of type, or for nodes that are in the middle of one.
	var optional *ovsdb.OptionalPortError
	if err != nil && !errors.As(err, &optional) {
		return err
	}
	a.setProblem("other tunnel type", err)
	notify(a.pokeForwarding)
	notify(a.pokeDatapath)
	restored, err := a.cni.RestorePorts(ctx)
	if len(restored) > 0 {
		a.log.Warn("pods' ports were missing on the bridge and are back", "ports", restored)
		changed = append(changed, restored...)
	}
	a.setProblem("ports of pods", err) // one pod's must not hold up the node
	mirrors, err := a.ovs.Mirrors(ctx)
	if err == nil && len(mirrors) > 0 {
		err = fmt.Errorf("bridge %s has mirrors, which copy pods' packets: %v; remove them (ovs-vsctl clear Bridge %s mirrors) "+
			"unless you want them", model.BridgeName, mirrors, model.BridgeName)
	}
	a.setProblem("mirrors", err)
	if len(changed) > 0 {
		a.log.Info("bridge changed", "bridge", model.BridgeName, "changes", changed)
		notify(a.pokeHost)
		a.loop.Verify()
	}
	return nil
}

// syncDatapath keeps the settings of the switch that are not in OVSDB, and that ovs-vswitchd forgets whenever it ends.
func (a *Agent) syncDatapath(ctx context.Context) error {
	changed, err := a.sw.EnsureFragments(ctx)
	more, tcpErr := a.sw.EnsureLiberal(ctx)
	changed = append(changed, more...)
	more, limitErr := a.sw.EnsureZoneLimit(ctx, flows.EndpointZone, flows.EndpointLimit)
	if changed = append(changed, more...); len(changed) > 0 {
		a.log.Info("datapath changed", "changes", changed)
	}
	return errors.Join(err, tcpErr, limitErr)
}
